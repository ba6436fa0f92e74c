//! What the thread that moves messages needs of a library that carries them.
//!
//! MPI is one; ranks that are threads of one process are another, for tests that need many of them, and need
//! messages to arrive late and out of step.

use std::ffi::c_int;

use crate::compute::Result;

/// Messages between two ranks with the same tag arrive in the order in which they were posted.
pub(super) trait Link {
    /// A message on its way.
    type Request;

    /// This process.
    fn rank(&self) -> usize;

    /// All processes.
    fn size(&self) -> usize;

    /// Begins to send `len` bytes.
    ///
    /// # Safety
    /// The bytes stay where they are and unchanged until the request is complete, or for ever if the link failed.
    unsafe fn send(&mut self, peer: usize, tag: c_int, data: *const u8, len: usize) -> Result<Self::Request>;

    /// Begins to receive `len` bytes.
    ///
    /// # Safety
    /// The room stays where it is, and nobody reads or writes it, until the request is complete, or for ever if
    /// the link failed.
    unsafe fn receive(&mut self, peer: usize, tag: c_int, data: *mut u8, len: usize) -> Result<Self::Request>;

    /// Moves messages without blocking. The indices of those that are complete go into `done`.
    fn test(&mut self, requests: &mut [Self::Request], done: &mut Vec<usize>) -> Result<()>;

    /// Leaves in order; every request is complete.
    fn close(self) -> Result<()>;
}
