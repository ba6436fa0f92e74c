//! HDF5 as our writer lays it out, read from memory without libhdf5.
//!
//! Superblock 2 or 3, object headers of version 2 with their continuations, groups whose links stand in the header,
//! compact and contiguous datasets of one dimension, 64-bit integers and floats, texts of fixed length, codes of one byte,
//! and packed tables of these (HDF5 File Format Specification, version 3.0). Anything else is [`Trouble::Foreign`]: it may
//! be good HDF5 that libhdf5 reads.
//!
//! Nothing here trusts a byte: every offset and length is checked against what is there, nothing calls itself, nothing is
//! copied, and all that is looked at together is at most [`WORK`] times as long as the file, however often one thing leads
//! to another. Rows are given as they lie in the file.

use std::borrow::Cow;
use std::cell::Cell as Shared;

use super::read::{Cell, Dataset, Field, Store, Type};
use super::{Trouble, Trust};

type Read<T> = Result<T, Trouble>;

const SIGNATURE: &[u8; 8] = b"\x89HDF\r\n\x1a\n";

/// How often the whole file may be looked at: objects of ours lie side by side, and none is read more often.
const WORK: u64 = 64;

/// An address that leads nowhere.
const UNDEFINED: u64 = u64::MAX;

// Types of header messages.
const NIL: u8 = 0x00;
const DATASPACE: u8 = 0x01;
const LINK_INFO: u8 = 0x02;
const DATATYPE: u8 = 0x03;
const LINK: u8 = 0x06;
const EXTERNAL_FILES: u8 = 0x07;
const LAYOUT: u8 = 0x08;
const FILTERS: u8 = 0x0b;
const ATTRIBUTE: u8 = 0x0c;
const CONTINUATION: u8 = 0x10;
const SYMBOL_TABLE: u8 = 0x11;
const ATTRIBUTE_INFO: u8 = 0x15;

/// What is read of an object header; the rest (fill values, times) says nothing about values that are all written.
const WANTED: [u8; 10] =
    [DATASPACE, LINK_INFO, DATATYPE, LINK, EXTERNAL_FILES, LAYOUT, FILTERS, ATTRIBUTE, SYMBOL_TABLE, ATTRIBUTE_INFO];

/// A message that is stored elsewhere.
const SHARED: u8 = 0x02;

fn damaged<T>(what: &str) -> Read<T> {
    Err(Trouble::Damaged(what.to_owned()))
}

/// An HDF5 file in memory.
pub(super) struct File<'b> {
    bytes: &'b [u8],
    trust: Trust,
    root: u64,
    /// Bytes that may still be looked at.
    left: Shared<u64>,
}

struct Message<'b> {
    kind: u8,
    flags: u8,
    body: &'b [u8],
}

/// The messages of an object.
pub(super) struct Header<'b>(Vec<Message<'b>>);

/// A name in a group, and where its object is.
pub(super) struct Link<'b> {
    pub(super) name: &'b str,
    pub(super) address: u64,
}

impl<'b> File<'b> {
    /// Looks at the superblock. With [`Trust::Sealed`] no checksum is computed: the digest of the whole file was.
    pub(super) fn open(bytes: &'b [u8], trust: Trust) -> Read<Self> {
        if !bytes.starts_with(SIGNATURE) {
            return damaged("it does not begin as HDF5 does");
        }
        let mut block = Cursor(&bytes[SIGNATURE.len()..]);
        let version = block.u8()?;
        if !matches!(version, 2 | 3) {
            return Err(Trouble::Foreign("superblock"));
        }
        let (offsets, lengths, flags) = (block.u8()?, block.u8()?, block.u8()?);
        let (base, extension, end, root) = (block.u64()?, block.u64()?, block.u64()?, block.u64()?);
        let before = bytes.len() - block.0.len();
        let sum = block.u32()?;
        if lookup3(&bytes[..before]) != sum {
            return damaged("the checksum of its superblock is wrong");
        }
        if (offsets, lengths, flags, base, extension) != (8, 8, 0, 0, UNDEFINED) {
            return Err(Trouble::Foreign("superblock"));
        }
        if end > bytes.len() as u64 {
            return damaged("it is cut off");
        }
        Ok(Self { bytes, trust, root, left: Shared::new(WORK * bytes.len() as u64) })
    }

    /// Where the root group is.
    pub(super) fn root(&self) -> u64 {
        self.root
    }

    /// The `length` bytes at `address`.
    fn at(&self, address: u64, length: u64) -> Read<&'b [u8]> {
        let end = address.checked_add(length);
        let range = usize::try_from(address).ok().zip(end.and_then(|end| usize::try_from(end).ok()));
        range
            .and_then(|(start, end)| self.bytes.get(start..end))
            .ok_or_else(|| Trouble::Damaged("a place beyond its end is named in it".to_owned()))
    }

    /// Counts what is looked at.
    fn spend(&self, bytes: usize) -> Read<()> {
        match self.left.get().checked_sub(bytes as u64) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => damaged("its objects lead in circles"),
        }
    }

    fn check(&self, block: &[u8], sum: u32) -> Read<()> {
        if self.trust == Trust::Sealed || lookup3(block) == sum {
            return Ok(());
        }
        damaged("the checksum of an object is wrong")
    }

    /// The object at `address`, with all its continuations.
    pub(super) fn header(&self, address: u64) -> Read<Header<'b>> {
        let length = self.bytes.len() as u64;
        let block = self.at(address, length.saturating_sub(address))?;
        let mut cursor = Cursor(block);
        if cursor.take(4)? != b"OHDR" || cursor.u8()? != 2 {
            return Err(Trouble::Foreign("object header"));
        }
        let flags = cursor.u8()?;
        if flags & 0x20 != 0 {
            cursor.take(16)?; // times
        }
        if flags & 0x10 != 0 {
            cursor.take(4)?; // when attributes move elsewhere
        }
        let size = cursor.uint(1 << (flags & 3))?;
        let messages = cursor.long(size)?;
        let before = block.len() - cursor.0.len();
        self.spend(before)?;
        self.check(&block[..before], cursor.u32()?)?;
        let mut found = Vec::new();
        let mut further = Vec::new();
        self.messages(messages, flags, &mut found, &mut further)?;
        while let Some((address, size)) = further.pop() {
            let block = self.at(address, size)?;
            self.spend(block.len())?;
            let Some((inside, sum)) = block.split_last_chunk::<4>() else { return damaged("a block is too short") };
            self.check(inside, u32::from_le_bytes(*sum))?;
            let Some(messages) = inside.strip_prefix(b"OCHK") else { return damaged("an object does not go on") };
            self.messages(messages, flags, &mut found, &mut further)?;
        }
        Ok(Header(found))
    }

    fn messages(
        &self,
        bytes: &'b [u8],
        flags: u8,
        found: &mut Vec<Message<'b>>,
        further: &mut Vec<(u64, u64)>,
    ) -> Read<()> {
        let ordered = flags & 0x04 != 0;
        let head = if ordered { 6 } else { 4 };
        let mut cursor = Cursor(bytes);
        // What is too short for a message is a gap.
        while cursor.0.len() >= head {
            let (kind, size, flags) = (cursor.u8()?, cursor.u16()?, cursor.u8()?);
            if ordered {
                cursor.take(2)?;
            }
            let body = cursor.take(usize::from(size))?;
            if kind == CONTINUATION {
                let mut place = Cursor(body);
                further.push((place.u64()?, place.u64()?));
            } else if kind != NIL && WANTED.contains(&kind) {
                // No object of ours has as many messages as that; this bounds the list by the file.
                if found.len() >= self.bytes.len() / 8 {
                    return damaged("an object has more parts than the file has room for");
                }
                found.push(Message { kind, flags, body });
            }
        }
        Ok(())
    }

    /// The links of a group, in the order of the file.
    pub(super) fn links(&self, header: &Header<'b>) -> Read<Vec<Link<'b>>> {
        let mut links = Vec::new();
        if header.one(DATATYPE)?.is_some() {
            return damaged("a dataset stands where a group should be");
        }
        if header.one(SYMBOL_TABLE)?.is_some() {
            return Err(Trouble::Foreign("group"));
        }
        if let Some(info) = header.one(LINK_INFO)? {
            let mut info = Cursor(info);
            let (version, flags) = (info.u8()?, info.u8()?);
            if flags & 1 != 0 {
                info.take(8)?;
            }
            if version != 0 || info.u64()? != UNDEFINED {
                return Err(Trouble::Foreign("group"));
            }
        }
        for message in header.0.iter().filter(|m| m.kind == LINK) {
            links.push(link(message)?);
        }
        let mut names: Vec<&str> = links.iter().map(|l: &Link<'_>| l.name).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return damaged("a group has two members of one name");
        }
        Ok(links)
    }

    /// The member of a group, if there is one of that name.
    pub(super) fn find(&self, group: &Header<'b>, name: &str) -> Read<Option<u64>> {
        Ok(self.links(group)?.iter().find(|l| l.name == name).map(|l| l.address))
    }

    /// A dataset.
    pub(super) fn rows(&self, header: &Header<'b>) -> Read<Dataset<'b>> {
        let part = |kind: u8| header.one(kind)?.ok_or_else(|| Trouble::Damaged("a dataset lacks a part".to_owned()));
        let (ty, size) = datatype(part(DATATYPE)?)?;
        let n = dataspace(part(DATASPACE)?)?;
        let layout = part(LAYOUT)?;
        if n == 0 {
            // Laid out in whatever way: there is nothing.
            return Ok(Dataset { ty, n: 0, bytes: Cow::Borrowed(&[]) });
        }
        if header.one(FILTERS)?.is_some() || header.one(EXTERNAL_FILES)?.is_some() {
            return Err(Trouble::Foreign("dataset"));
        }
        let data = self.data(layout)?;
        let n = usize::try_from(n).ok();
        match n.and_then(|n| n.checked_mul(size)) {
            Some(bytes) if bytes == data.len() => {
                self.spend(bytes)?;
                Ok(Dataset { ty, n: n.unwrap_or_default(), bytes: Cow::Borrowed(data) })
            }
            _ => damaged("a dataset claims another size than it has"),
        }
    }

    /// The bytes that a layout message leads to.
    fn data(&self, layout: &'b [u8]) -> Read<&'b [u8]> {
        let mut layout = Cursor(layout);
        let (version, class) = (layout.u8()?, layout.u8()?);
        match (version, class) {
            (3 | 4, 0) => {
                let size = layout.u16()?;
                layout.take(usize::from(size))
            }
            (3 | 4, 1) => match (layout.u64()?, layout.u64()?) {
                // Never written: libhdf5 makes it of fill values.
                (UNDEFINED, _) => Err(Trouble::Foreign("dataset")),
                (address, size) => self.at(address, size),
            },
            _ => Err(Trouble::Foreign("dataset")),
        }
    }

    /// The value of an attribute that holds one text.
    pub(super) fn text_attribute(&self, header: &Header<'b>, wanted: &str) -> Read<&'b [u8]> {
        if let Some(info) = header.one(ATTRIBUTE_INFO)? {
            let mut info = Cursor(info);
            let (_, flags) = (info.u8()?, info.u8()?);
            if flags & 1 != 0 {
                info.take(2)?;
            }
            if info.u64()? != UNDEFINED {
                return Err(Trouble::Foreign("attribute"));
            }
        }
        for message in header.0.iter().filter(|m| m.kind == ATTRIBUTE) {
            let mut body = Cursor(message.body);
            let (version, flags) = (body.u8()?, body.u8()?);
            if version != 3 || flags != 0 || message.flags & SHARED != 0 {
                return Err(Trouble::Foreign("attribute"));
            }
            let (name, ty, space) = (body.u16()?, body.u16()?, body.u16()?);
            body.u8()?; // character set of the name
            let name = body.take(usize::from(name))?;
            let (ty, size) = datatype(body.take(usize::from(ty))?)?;
            let n = dataspace(body.take(usize::from(space))?)?;
            if name.strip_suffix(b"\0") != Some(wanted.as_bytes()) {
                continue;
            }
            if !matches!(ty, Type::Cell(Cell::Text(_))) || n != 1 {
                return damaged("the path of an array is no text");
            }
            return body.take(size);
        }
        damaged("an array has no path")
    }
}

impl<'b> Header<'b> {
    /// The one message of a kind, if there is one.
    fn one(&self, kind: u8) -> Read<Option<&'b [u8]>> {
        let mut found = self.0.iter().filter(|m| m.kind == kind);
        match (found.next(), found.next()) {
            (None, _) => Ok(None),
            (Some(one), None) if one.flags & SHARED == 0 => Ok(Some(one.body)),
            (Some(_), None) => Err(Trouble::Foreign("object")),
            (Some(_), Some(_)) => damaged("an object says one thing twice"),
        }
    }
}

fn link<'b>(message: &Message<'b>) -> Read<Link<'b>> {
    let mut body = Cursor(message.body);
    let (version, flags) = (body.u8()?, body.u8()?);
    if version != 1 || message.flags & SHARED != 0 {
        return Err(Trouble::Foreign("link"));
    }
    let hard = flags & 0x08 == 0 || body.u8()? == 0;
    if flags & 0x04 != 0 {
        body.take(8)?; // when it was made
    }
    if flags & 0x10 != 0 {
        body.u8()?; // character set
    }
    let length = body.uint(1 << (flags & 3))?;
    let name = body.long(length)?;
    if !hard {
        return Err(Trouble::Foreign("link"));
    }
    let Ok(name) = std::str::from_utf8(name) else { return damaged("a name in it is not UTF-8") };
    Ok(Link { name, address: body.u64()? })
}

/// The number of rows.
fn dataspace(body: &[u8]) -> Read<u64> {
    let mut body = Cursor(body);
    let (version, rank, flags) = (body.u8()?, body.u8()?, body.u8()?);
    match (version, rank) {
        (2, 0) => {
            // A scalar has one value, the null space none.
            Ok(u64::from(body.u8()? == 0))
        }
        (2, 1) if flags & !1 == 0 => {
            body.u8()?;
            body.u64()
        }
        _ => Err(Trouble::Foreign("dataspace")),
    }
}

/// A type and the bytes of one value.
fn datatype(body: &[u8]) -> Read<(Type<'_>, usize)> {
    let mut body = Cursor(body);
    let [class, low, high, ..] = peek(&body)?;
    if class & 0x0f != 6 {
        let (cell, size) = cell(&mut body)?;
        return Ok((Type::Cell(cell), size));
    }
    if class != 0x36 {
        return Err(Trouble::Foreign("datatype"));
    }
    body.take(4)?;
    let members = usize::from(u16::from_le_bytes([low, high]));
    let row = body.u32()? as usize;
    // An offset takes as many bytes as are needed for the size.
    let width = match row {
        0..=0xff => 1,
        0x100..=0xffff => 2,
        0x1_0000..=0xff_ffff => 3,
        _ => 4,
    };
    // A member has at least a name, an offset and a type: 1 + 1 + 8 bytes.
    if members == 0 || members > body.0.len() / 10 {
        return damaged("a table has more columns than there is room for");
    }
    let mut fields = Vec::with_capacity(members);
    for _ in 0..members {
        let name = body.name()?;
        let offset = body.uint(width)? as usize;
        let (cell, size) = cell(&mut body)?;
        if offset.checked_add(size).is_none_or(|end| end > row) {
            return damaged("a column lies beyond its row");
        }
        fields.push(Field { name: Cow::Borrowed(name), offset, cell });
    }
    Ok((Type::Table { row, fields }, row))
}

fn peek(body: &Cursor<'_>) -> Read<[u8; 8]> {
    match body.0.first_chunk::<8>() {
        Some(head) => Ok(*head),
        None => damaged("a type is cut off"),
    }
}

/// A type that is no table.
fn cell(body: &mut Cursor<'_>) -> Read<(Cell, usize)> {
    const INTEGER: [u8; 11] = [8, 0, 0, 8, 0, 0, 0, 0, 0, 64, 0];
    const FLOAT: [u8; 19] = [0x20, 63, 0, 8, 0, 0, 0, 0, 0, 64, 0, 52, 11, 0, 52, 0xff, 3, 0, 0];
    const BYTE: [u8; 11] = [0, 0, 0, 1, 0, 0, 0, 0, 0, 8, 0];
    let foreign = Err(Trouble::Foreign("datatype"));
    let [class, bits0, bits1, _, size @ ..] = peek(body)?;
    let size = u32::from_le_bytes(size) as usize;
    if !(1..=3).contains(&(class >> 4)) {
        return foreign;
    }
    body.u8()?;
    match class & 0x0f {
        0 if body.take(INTEGER.len())? == INTEGER => Ok((Cell::Integer, 8)),
        1 if body.take(FLOAT.len())? == FLOAT => Ok((Cell::Float, 8)),
        // UTF-8, ended or padded by NUL.
        3 if matches!(bits0, 0x10 | 0x11) => {
            body.take(7)?;
            Ok((Cell::Text(size), size))
        }
        8 if class == 0x38 && size == 1 => {
            body.take(7)?;
            if body.u8()? & 0x0f != 0 || body.take(BYTE.len())? != BYTE {
                return foreign;
            }
            let members = usize::from(u16::from_le_bytes([bits0, bits1]));
            for _ in 0..members {
                body.name()?;
            }
            body.take(members)?;
            Ok((Cell::Code, 1))
        }
        _ => foreign,
    }
}

/// Bytes that are taken from the front.
struct Cursor<'b>(&'b [u8]);

impl<'b> Cursor<'b> {
    fn take(&mut self, n: usize) -> Read<&'b [u8]> {
        match self.0.split_at_checked(n) {
            Some((taken, rest)) => {
                self.0 = rest;
                Ok(taken)
            }
            None => damaged("a part of it is cut off"),
        }
    }

    fn long(&mut self, n: u64) -> Read<&'b [u8]> {
        match usize::try_from(n) {
            Ok(n) => self.take(n),
            Err(_) => damaged("a part of it is cut off"),
        }
    }

    /// A little-endian number of 1 to 8 bytes.
    fn uint(&mut self, width: usize) -> Read<u64> {
        let mut word = [0u8; 8];
        word[..width].copy_from_slice(self.take(width)?);
        Ok(u64::from_le_bytes(word))
    }

    fn u8(&mut self) -> Read<u8> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Read<u16> {
        Ok(self.uint(2)? as u16)
    }

    fn u32(&mut self) -> Read<u32> {
        Ok(self.uint(4)? as u32)
    }

    fn u64(&mut self) -> Read<u64> {
        self.uint(8)
    }

    /// A name that ends with NUL.
    fn name(&mut self) -> Read<&'b str> {
        let Some(end) = self.0.iter().position(|b| *b == 0) else { return damaged("a name is cut off") };
        let name = &self.take(end + 1)?[..end];
        std::str::from_utf8(name).or_else(|_| damaged("a name in it is not UTF-8"))
    }
}

/// Jenkins' lookup3 (`hashlittle` from 0), the checksum of HDF5's metadata.
fn lookup3(bytes: &[u8]) -> u32 {
    let start = 0xdead_beef_u32.wrapping_add(bytes.len() as u32);
    let (mut a, mut b, mut c) = (start, start, start);
    let word = |bytes: &[u8], i: usize| {
        let mut word = [0u8; 4];
        let part = bytes.get(4 * i..).unwrap_or_default();
        let n = part.len().min(4);
        word[..n].copy_from_slice(&part[..n]);
        u32::from_le_bytes(word)
    };
    let mut rest = bytes;
    while rest.len() > 12 {
        let (block, tail) = rest.split_at(12);
        a = a.wrapping_add(word(block, 0));
        b = b.wrapping_add(word(block, 1));
        c = c.wrapping_add(word(block, 2));
        a = a.wrapping_sub(c) ^ c.rotate_left(4);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(6);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(8);
        b = b.wrapping_add(a);
        a = a.wrapping_sub(c) ^ c.rotate_left(16);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(19);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(4);
        b = b.wrapping_add(a);
        rest = tail;
    }
    if rest.is_empty() {
        return c;
    }
    a = a.wrapping_add(word(rest, 0));
    b = b.wrapping_add(word(rest, 1));
    c = c.wrapping_add(word(rest, 2));
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    (c ^ b).wrapping_sub(b.rotate_left(24))
}

impl Store for File<'_> {
    type Object = u64;

    fn root(&self) -> Read<u64> {
        Ok(self.root)
    }

    fn member(&self, group: &u64, name: &str) -> Read<Option<u64>> {
        self.find(&self.header(*group)?, name)
    }

    fn members(&self, group: &u64) -> Read<Vec<(String, u64)>> {
        Ok(self.links(&self.header(*group)?)?.into_iter().map(|l| (l.name.to_owned(), l.address)).collect())
    }

    fn dataset(&self, object: &u64) -> Read<Dataset<'_>> {
        self.rows(&self.header(*object)?)
    }

    fn path_of(&self, object: &u64) -> Read<Vec<u8>> {
        self.text_attribute(&self.header(*object)?, "path").map(<[u8]>::to_vec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lookup3_reference() {
        // Of Bob Jenkins' own driver5(): hashlittle of this text from 0 and from 1 ends so.
        assert_eq!(lookup3(b"Four score and seven years ago"), 0x1777_0551);
        assert_eq!(lookup3(b""), 0xdead_beef);
    }
}
