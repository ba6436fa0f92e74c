//! Memory that the disk reads and writes without a copy in between: whole pages, kept between uses.
//!
//! The first touch of a page costs more than writing it out (a virtual machine asks its host for each one), so
//! a buffer is touched beforehand and reused. Between uses it is offered back: the kernel may take the pages
//! when memory is short, and as long as it does not, using them again costs nothing.

use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::compute::comm::f32_bytes;

/// Size and alignment of what a file opened past the page cache may be read and written in.
pub const PAGE: usize = 4096;

/// A large page. Buffers are a whole number of them, so that the kernel can use few entries for many bytes.
const LARGE_PAGE: usize = 2 << 20;

/// Zeroed pages of our own.
#[derive(Debug)]
pub struct Pages {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is private to this value, as a Vec's memory is.
unsafe impl Send for Pages {}
// SAFETY: a shared reference gives shared slices only.
unsafe impl Sync for Pages {}

impl Pages {
    /// At least `bytes` bytes, not touched yet.
    ///
    /// # Errors
    /// There is not that much address space.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let len = bytes.max(1).next_multiple_of(LARGE_PAGE);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new anonymous mapping overlaps nothing that exists.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, access, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the range was mapped just now. Where there are no large pages, small ones do.
        unsafe { libc::madvise(at, len, libc::MADV_HUGEPAGE) };
        // mmap never returns null for a mapping without a fixed address.
        NonNull::new(at.cast()).map(|at| Self { at, len }).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has this length, is readable, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }

    /// All bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }

    /// Touches every page, so that the next use finds it there.
    pub fn touch(&mut self) {
        self.bytes_mut().iter_mut().step_by(PAGE).for_each(|byte| {
            // SAFETY: the reference is valid; volatile, because a plain store of what is there may be left out.
            unsafe { std::ptr::write_volatile(byte, 0) }
        });
    }

    /// Tells the kernel that the content is of no use any more: it may take the pages, and reads give then zeros.
    pub fn offer_back(&mut self) {
        // SAFETY: the range is ours and borrowed alone. A refusal means that the pages stay, which is allowed.
        unsafe { libc::madvise(self.at.as_ptr().cast(), self.len, libc::MADV_FREE) };
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new`, and nobody can hold a slice of it any more.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.len) };
    }
}

/// Pages that one thread fills from the front while others read what it has filled.
#[derive(Debug)]
pub struct Stream {
    pages: Pages,
    /// Bytes from the front that do not change any more.
    filled: AtomicUsize,
    finite: AtomicBool,
    /// The one that filled it is gone before its time.
    broken: AtomicBool,
}

/// The one who fills a [`Stream`].
#[derive(Debug)]
pub struct Filler {
    stream: Arc<Stream>,
    at: usize,
    whole: usize,
}

impl Stream {
    /// An empty one in these pages.
    pub fn new(pages: Pages) -> Self {
        let (filled, finite) = (AtomicUsize::new(0), AtomicBool::new(true));
        Self { pages, filled, finite, broken: AtomicBool::new(false) }
    }

    /// Its pages, when nobody reads or fills it.
    pub fn into_pages(self) -> Pages {
        self.pages
    }

    /// Waits until `range` is filled, and gives it. Bytes after the `whole` of [`Filler::new`] are what they are.
    ///
    /// # Errors
    /// The one that filled it is gone.
    pub fn wait(&self, range: Range<usize>, whole: usize) -> io::Result<&[u8]> {
        while self.filled.load(Ordering::Acquire) < range.end.min(whole) {
            if self.broken.load(Ordering::Acquire) {
                return Err(io::Error::other("the snapshot was not taken to its end"));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        assert!(range.start <= range.end && range.end <= self.pages.len, "a range of the pages");
        // SAFETY: the range lies in the mapping; what is before `filled` is not written any more (Acquire pairs with the
        // Release in `push`), and what is beyond `whole` is never written.
        Ok(unsafe { std::slice::from_raw_parts(self.pages.at.as_ptr().add(range.start), range.len()) })
    }

    /// Whether all numbers so far are finite.
    pub fn is_finite(&self) -> bool {
        self.finite.load(Ordering::Acquire)
    }
}

impl Filler {
    /// A stream of `whole` bytes in these pages, and the one who fills it.
    ///
    /// # Panics
    /// The pages are fewer.
    pub fn new(pages: Pages, whole: usize) -> (Self, Arc<Stream>) {
        assert!(whole <= pages.len, "pages for the whole stream");
        let stream = Arc::new(Stream::new(pages));
        (Self { stream: Arc::clone(&stream), at: 0, whole }, stream)
    }

    /// Appends numbers, little-endian.
    ///
    /// # Panics
    /// There are more than the stream takes.
    pub fn push(&mut self, values: &[f32]) {
        // In pieces: whoever reads need not wait for the whole of a large slice.
        for values in values.chunks(1 << 20) {
            let bytes = size_of_val(values);
            assert!(bytes <= self.whole - self.at, "room for all numbers");
            // SAFETY: the range lies in the mapping, beyond `filled`, where nobody reads, and below `whole`; there is
            // one filler, borrowed alone.
            let target = unsafe { std::slice::from_raw_parts_mut(self.stream.pages.at.as_ptr().add(self.at), bytes) };
            if !copy_finite(values, target) {
                self.stream.finite.store(false, Ordering::Release);
            }
            self.at += bytes;
            self.stream.filled.store(self.at, Ordering::Release);
        }
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        if self.at < self.whole {
            self.stream.broken.store(true, Ordering::Release);
        }
    }
}

/// Copies `from` to the start of `to`. Large copies go past the caches: what is copied is not looked at soon, and
/// what lies in the caches is.
///
/// # Panics
/// `to` is shorter than `from`.
pub fn copy(from: &[u8], to: &mut [u8]) {
    let whole = stream(from, &mut to[..from.len()]).0;
    to[whole..from.len()].copy_from_slice(&from[whole..]);
}

/// As [`copy`], of fp32 numbers: little-endian, and whether all of them are finite. The copy waits for memory;
/// the look at the numbers costs nothing.
///
/// # Panics
/// `to` is shorter than `from`.
#[must_use]
pub fn copy_finite(from: &[f32], to: &mut [u8]) -> bool {
    let to = &mut to[..size_of_val(from)];
    let (whole, mut finite) = if cfg!(target_endian = "little") { stream(f32_bytes(from), to) } else { (0, true) };
    for (bytes, x) in to[whole..].chunks_exact_mut(4).zip(&from[whole / 4..]) {
        bytes.copy_from_slice(&x.to_le_bytes());
        finite &= x.is_finite();
    }
    finite
}

/// Copies the larger part of a large slice past the caches: how many bytes, and whether they are finite as fp32
/// numbers. The rest, and small slices, are left to the caller. The slices are equally long.
fn stream(from: &[u8], to: &mut [u8]) -> (usize, bool) {
    #[cfg(target_arch = "x86_64")]
    if from.len() >= 1 << 20 && to.as_ptr().align_offset(64) == 0 && is_x86_feature_detected!("avx2") {
        let whole = from.len() / 128 * 128;
        // SAFETY: AVX2 is there; both slices have `whole` bytes, a multiple of 128, and `to` begins at 64 bytes.
        return (whole, unsafe { stream_avx2(&from[..whole], &mut to[..whole]) });
    }
    (0, true)
}

/// Copies with stores that pass the caches; whether all fp32 numbers are finite.
///
/// # Safety
/// AVX2 is there; the slices are equally long, a multiple of 128 bytes; `to` is aligned to 32 bytes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn stream_avx2(from: &[u8], to: &mut [u8]) -> bool {
    use std::arch::x86_64::{
        __m256i, _mm_sfence, _mm256_and_si256, _mm256_loadu_si256, _mm256_max_epu32, _mm256_set1_epi32,
        _mm256_setzero_si256, _mm256_storeu_si256, _mm256_stream_si256,
    };
    // Largest pattern of an exponent: all ones is infinity or NaN.
    let exponent = _mm256_set1_epi32(0x7f80_0000);
    let mut largest = [_mm256_setzero_si256(); 4];
    for (from, to) in from.chunks_exact(128).zip(to.chunks_exact_mut(128)) {
        let (from, to) = (from.as_ptr().cast::<__m256i>(), to.as_mut_ptr().cast::<__m256i>());
        for (i, largest) in largest.iter_mut().enumerate() {
            // SAFETY: both chunks hold four vectors; the stores are aligned as the caller promises.
            let vector = unsafe { _mm256_loadu_si256(from.add(i)) };
            *largest = _mm256_max_epu32(*largest, _mm256_and_si256(vector, exponent));
            // SAFETY: as above.
            unsafe { _mm256_stream_si256(to.add(i), vector) };
        }
    }
    // Stores past the caches are ordered with nothing until here; another thread reads them next.
    _mm_sfence();
    largest.iter().all(|lanes| {
        let mut exponents = [0u32; 8];
        // SAFETY: the array has the size of a vector.
        unsafe { _mm256_storeu_si256(exponents.as_mut_ptr().cast(), *lanes) };
        exponents.iter().all(|&e| e < 0x7f80_0000)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_copied_whole() {
        let from: Vec<u8> = (0..(1 << 20) + 200).map(|i| (i * 7 % 251) as u8).collect();
        let mut pages = Pages::new(from.len()).unwrap();
        for len in [0, 1, 127, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 127, (1 << 20) + 200] {
            for start in [0, 4, 64] {
                pages.bytes_mut().fill(0);
                let len = len.min(from.len() - start);
                copy(&from[start..start + len], &mut pages.bytes_mut()[start..]);
                assert!(pages.bytes()[start..start + len] == from[start..start + len], "{len} from {start}");
                assert!(pages.bytes()[start + len..].iter().all(|&b| b == 0));
            }
        }
    }

    #[test]
    fn a_number_that_is_not_finite_is_seen_wherever_it_lies() {
        let mut from = vec![-f32::MAX; (1 << 18) + 40];
        let mut pages = Pages::new(4 * from.len()).unwrap();
        for len in [1, 31, 32, 1 << 18, (1 << 18) + 1, (1 << 18) + 40] {
            for start in [0, 1, 16] {
                let to = &mut pages.bytes_mut()[4 * start..];
                let end = len - start.min(len - 1);
                assert!(copy_finite(&from[..end], to));
                assert!(to[..4 * end] == *f32_bytes(&from[..end]), "{end} to {start}");
                for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    for at in [0, end / 2, end - 1] {
                        from[at] = bad;
                        assert!(!copy_finite(&from[..end], to), "{bad} at {at} of {end} to {start}");
                        from[at] = -f32::MAX;
                    }
                }
            }
        }
    }

    #[test]
    fn a_stream_gives_what_was_filled_and_no_more() {
        let values: Vec<f32> = (0..3_000_000).map(|i| i as f32).collect();
        let whole = size_of_val(values.as_slice());
        let (mut filler, stream) = Filler::new(Pages::new(whole).unwrap(), whole);
        let reader = Arc::clone(&stream);
        let mut expected = values.clone();
        expected[2_999_999] = f32::NAN;
        let thread = std::thread::spawn(move || {
            for (at, block) in expected.chunks(300_000).enumerate() {
                let from = at * 1_200_000;
                let got = reader.wait(from..from + size_of_val(block), whole).unwrap();
                assert!(got == f32_bytes(block), "block {at}");
            }
            assert!(!reader.is_finite());
        });
        for block in values[..2_999_999].chunks(777_777) {
            std::thread::sleep(Duration::from_millis(3));
            filler.push(block);
        }
        assert!(stream.is_finite());
        filler.push(&[f32::NAN]);
        thread.join().unwrap();
        drop(filler);
        let pages = Arc::into_inner(stream).unwrap().into_pages();
        let (filler, stream) = Filler::new(pages, whole);
        drop(filler);
        assert!(stream.wait(0..1, whole).is_err(), "a stream without a filler ends");
    }

    #[test]
    fn what_was_offered_back_can_be_used_again() {
        let mut pages = Pages::new(5 << 20).unwrap();
        assert_eq!(pages.len(), 6 << 20);
        for round in 1..3 {
            pages.touch();
            pages.bytes_mut().fill(round);
            assert!(pages.bytes().iter().all(|&b| b == round));
            pages.offer_back();
        }
    }
}
