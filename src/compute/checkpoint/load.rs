//! Reading checkpoints: whether one is whole, and any range of it, whatever ranks wrote it. Every chunk that is
//! read is checked on the way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::manifest::{self, Dtype, GroupEntry, Kind, Manifest, Part, ShardEntry};
use super::shard::{self, CHUNK_BYTES, ChunkRead};
use super::{MANIFEST_FILE, list, pages};
use crate::compute::model::Layout;
use crate::compute::{ComputeError, Result};
use crate::record::{Digest, RecordError};

/// A whole checkpoint on disk.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its directory.
    pub dir: PathBuf,
    /// What it says.
    pub manifest: Manifest,
}

/// The newest usable checkpoint, and why newer ones were refused.
#[derive(Debug, Default)]
pub struct Found {
    /// It; `None` if there is none.
    pub checkpoint: Option<Checkpoint>,
    /// A line for every one that was passed over.
    pub refused: Vec<String>,
}

/// A range of numbers that somebody wants.
#[derive(Debug)]
pub struct Want<'a> {
    /// Number of the group.
    pub group: usize,
    /// What the numbers are.
    pub kind: Kind,
    /// First element in the group.
    pub first: usize,
    /// Where they go.
    pub target: &'a mut [f32],
}

/// Looks for the newest checkpoint below `dir` with this fingerprint whose files, and those of the checkpoints it
/// needs, have the digests that their manifests promise.
///
/// # Errors
/// The directory cannot be listed.
pub fn find(dir: &Path, fingerprint: &Digest) -> Result<Found> {
    let mut found = Found::default();
    for name in list(dir)?.into_iter().rev() {
        let path = dir.join(&name);
        if !path.join(MANIFEST_FILE).exists() {
            found
                .refused
                .push(format!("`{}` was being written when the run ended; the one before is used", path.display()));
            continue;
        }
        match usable(dir, &path, fingerprint) {
            Ok(checkpoint) => {
                found.checkpoint = Some(checkpoint);
                break;
            }
            Err(e) => found.refused.push(format!("{e}; the one before is used")),
        }
    }
    Ok(found)
}

fn usable(dir: &Path, path: &Path, fingerprint: &Digest) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(path)?;
    if &checkpoint.manifest.fingerprint != fingerprint {
        return Err(ComputeError::input(path, "belongs to another fingerprint (other parameters or inputs)"));
    }
    checkpoint.verify()?;
    for name in &checkpoint.manifest.needs {
        Checkpoint::open(&dir.join(name))
            .and_then(|c| c.verify())
            .map_err(|e| ComputeError::input(path, format!("needs `{name}`, which cannot be used ({e})")))?;
    }
    Ok(checkpoint)
}

/// Where a piece of a chunk goes.
struct Piece<'a> {
    /// First byte in the chunk.
    at: usize,
    dtype: Dtype,
    target: &'a mut [f32],
}

impl Checkpoint {
    /// Reads the manifest.
    ///
    /// # Errors
    /// It is missing, damaged, newer, or its seal is not its own.
    pub fn open(dir: &Path) -> Result<Self> {
        let manifest = Manifest::read(&dir.join(MANIFEST_FILE))?;
        Ok(Self { dir: dir.to_path_buf(), manifest })
    }

    /// Compares every shard with the manifest's size and digests.
    ///
    /// # Errors
    /// A shard is missing, cut short or changed: named.
    pub fn verify(&self) -> Result<()> {
        for shard in &self.manifest.shards {
            self.check_size(shard)?;
            let chunks = shard.blake3.iter().enumerate();
            let chunks = chunks.map(|(chunk, digest)| ChunkRead { chunk, digest: Some(digest), then: () }).collect();
            self.read_chunks(shard, chunks, &|(), _| ())?;
        }
        Ok(())
    }

    fn check_size(&self, shard: &ShardEntry) -> Result<()> {
        let path = self.dir.join(&shard.file);
        let size = match std::fs::metadata(&path) {
            Ok(m) => m.len(),
            Err(_) => return Err(ComputeError::missing(&path, "is not there")),
        };
        if size != shard.bytes {
            return Err(ComputeError::input(
                &path,
                format!("is cut short or damaged: {size} bytes where its manifest promises {}", shard.bytes),
            ));
        }
        match &shard.digest {
            Some(digest) if Digest::of_file(&path)? != *digest => {
                Err(ComputeError::input(&path, "is damaged: its digest is not the one of its manifest"))
            }
            _ => Ok(()),
        }
    }

    fn read_chunks<T: Send>(
        &self,
        shard: &ShardEntry,
        chunks: Vec<ChunkRead<'_, T>>,
        take: &(dyn Fn(T, &[u8]) + Sync),
    ) -> Result<()> {
        let path = self.dir.join(&shard.file);
        shard::read(&path, shard.bytes, chunks, take).map_err(|e| match e.kind() {
            std::io::ErrorKind::InvalidData => {
                ComputeError::input(&path, format!("is damaged: {e} have not the digest of its manifest"))
            }
            std::io::ErrorKind::UnexpectedEof => {
                ComputeError::input(&path, "is cut short: it ends before its manifest says")
            }
            _ => ComputeError::Record(RecordError::io("read", &path)(e)),
        })
    }

    /// Refuses a layout that is not the checkpoint's.
    ///
    /// # Errors
    /// A group or parameter differs.
    pub fn check_layout(&self, layout: &Layout) -> Result<()> {
        let wanted = manifest::group_entries(layout, &[]);
        let same = |(a, b): (&GroupEntry, &GroupEntry)| (&a.name, a.len, &a.spans) == (&b.name, b.len, &b.spans);
        if self.manifest.groups.len() == wanted.len() && self.manifest.groups.iter().zip(&wanted).all(same) {
            return Ok(());
        }
        Err(ComputeError::input(
            &self.dir,
            "holds another model (names, shapes or lanes differ): move it away, or go back to the parameters it was made with",
        ))
    }

    /// Refuses frozen groups that are not those the checkpoint was made over; `frozen` has their digests.
    ///
    /// # Errors
    /// A digest differs, or another group is frozen.
    pub fn check_frozen(&self, frozen: &[(usize, Digest)]) -> Result<()> {
        for (number, group) in self.manifest.groups.iter().enumerate() {
            let digest = frozen.iter().find(|(n, _)| *n == number).map(|(_, digest)| digest);
            if group.frozen.as_ref() != digest {
                return Err(ComputeError::input(
                    &self.dir,
                    format!(
                        "was made over other frozen parameters (`{}`): move it away, or go back to the model it was made with",
                        group.name
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Reads `target.len()` elements of a group, from element `first` on, whatever ranks wrote them.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn read(&self, kind: Kind, group: usize, first: usize, target: &mut [f32]) -> Result<()> {
        self.load(vec![Want { group, kind, first, target }])
    }

    /// Reads ranges, whatever ranks wrote them, each chunk once, and checks what it reads.
    ///
    /// # Errors
    /// A shard cannot be read, is missing, cut short or changed: named; no shard holds a range.
    pub fn load(&self, wants: Vec<Want<'_>>) -> Result<()> {
        let mut reads: Vec<BTreeMap<usize, Vec<Piece<'_>>>> = Vec::new();
        reads.resize_with(self.manifest.shards.len(), BTreeMap::new);
        for want in wants {
            let mut at = want.first;
            let mut target = want.target;
            while !target.is_empty() {
                let (number, part) = self.part_at(want.kind, want.group, at)?;
                let take = target.len().min(part.first + part.len - at);
                let (mut now, rest) = target.split_at_mut(take);
                target = rest;
                let size = part.dtype.bytes();
                let mut byte = usize::try_from(part.at).unwrap_or(usize::MAX) + (at - part.first) * size;
                at += take;
                while !now.is_empty() {
                    let chunk = byte / CHUNK_BYTES;
                    let in_chunk = byte % CHUNK_BYTES;
                    let take = now.len().min((CHUNK_BYTES - in_chunk) / size);
                    let (piece, rest) = now.split_at_mut(take);
                    reads[number].entry(chunk).or_default().push(Piece {
                        at: in_chunk,
                        dtype: part.dtype,
                        target: piece,
                    });
                    byte += take * size;
                    now = rest;
                }
            }
        }
        for (shard, reads) in self.manifest.shards.iter().zip(reads) {
            if reads.is_empty() {
                continue;
            }
            self.check_size(shard)?;
            let chunks = reads.into_iter();
            let chunks = chunks.map(|(chunk, then)| ChunkRead { chunk, digest: shard.blake3.get(chunk), then });
            self.read_chunks(shard, chunks.collect(), &|pieces: Vec<Piece<'_>>, bytes| {
                pieces.into_iter().for_each(|piece| piece.fill(bytes));
            })?;
        }
        Ok(())
    }

    /// The shard and the part that hold an element.
    fn part_at(&self, kind: Kind, group: usize, at: usize) -> Result<(usize, &Part)> {
        let holds = |p: &&Part| p.kind == kind && p.group == group && (p.first..p.first + p.len).contains(&at);
        let shards = self.manifest.shards.iter().enumerate();
        shards.filter_map(|(n, shard)| shard.parts.iter().find(holds).map(|p| (n, p))).next().ok_or_else(|| {
            ComputeError::input(&self.dir, "does not hold the whole model: remove it, the one before is used")
        })
    }
}

impl Piece<'_> {
    fn fill(self, chunk: &[u8]) {
        let bytes = &chunk[self.at..self.at + self.target.len() * self.dtype.bytes()];
        match self.dtype {
            Dtype::F32 if cfg!(target_endian = "little") => {
                pages::copy(bytes, crate::compute::comm::f32_bytes_mut(self.target));
            }
            Dtype::F32 => {
                for (x, b) in self.target.iter_mut().zip(bytes.chunks_exact(4)) {
                    *x = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
            Dtype::Bf16 => {
                for (x, b) in self.target.iter_mut().zip(bytes.chunks_exact(2)) {
                    *x = f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
                }
            }
        }
    }
}
