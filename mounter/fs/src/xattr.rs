//! Extended attributes of an inode, all in one value: a sorted list of names and values.
//!
//! The value is a version byte, then for each attribute: length of the name (1 byte), name, length of the value (4 bytes,
//! little-endian), value; sorted by name. No attributes = no value.

use bytes::{BufMut, Bytes, BytesMut};
use tarbox_types::ErrorKind;

/// The longest name in bytes (`XATTR_NAME_MAX`).
pub const NAME_MAX: usize = 255;
/// The largest value in bytes (`XATTR_SIZE_MAX`).
pub const VALUE_MAX: usize = 65_536;
/// The most that all names take in `listxattr`, a NUL after each (`XATTR_LIST_MAX`).
pub const LIST_MAX: usize = 65_536;
/// The most that the attributes of one inode take together: one value of full size, and as much again.
pub const TOTAL_MAX: usize = 2 * VALUE_MAX;

const V1: u8 = 1;

/// Why an attribute cannot be read or changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum XattrError {
    /// The name is empty, too long or has a NUL in it (`ERANGE` as in Linux).
    #[error("the attribute's name is empty or longer than {NAME_MAX} bytes")]
    BadName,
    /// The value is too large (`E2BIG`).
    #[error("the attribute's value is larger than {VALUE_MAX} bytes")]
    ValueTooLarge,
    /// The inode has no room for it (`ENOSPC`).
    #[error("the inode's attributes take more than {TOTAL_MAX} bytes")]
    NoRoom,
    /// It exists, and was to be created (`EEXIST`).
    #[error("the attribute exists")]
    Exists,
    /// It does not exist (`ENODATA`).
    #[error("the attribute does not exist")]
    Missing,
    /// The stored value is none (`EIO`).
    #[error("the stored attributes are damaged")]
    Damaged,
}

impl XattrError {
    /// Its kind.
    #[must_use]
    pub fn kind(self) -> ErrorKind {
        match self {
            Self::BadName | Self::ValueTooLarge => ErrorKind::InvalidArgument,
            Self::NoRoom => ErrorKind::Exhausted,
            Self::Exists => ErrorKind::AlreadyExists,
            Self::Missing => ErrorKind::NotFound,
            Self::Damaged => ErrorKind::Damaged,
        }
    }
}

/// What `setxattr` may find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SetFlags {
    /// It must not exist (`XATTR_CREATE`).
    pub create: bool,
    /// It must exist (`XATTR_REPLACE`).
    pub replace: bool,
}

impl SetFlags {
    /// The flags of `setxattr(2)`; `None` where others are set.
    #[must_use]
    pub fn from_bits(bits: u32) -> Option<Self> {
        let (create, replace) = (libc::XATTR_CREATE as u32, libc::XATTR_REPLACE as u32);
        (bits & !(create | replace) == 0)
            .then_some(Self { create: bits & create != 0, replace: bits & replace != 0 })
    }
}

/// The attributes of an inode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Xattrs {
    /// Sorted by name.
    list: Vec<(Bytes, Bytes)>,
}

impl Xattrs {
    /// Reads the stored value; `None` = no attributes. Names and values share the stored bytes.
    ///
    /// # Errors
    /// [`XattrError::Damaged`] for anything but what [`Xattrs::encode`] made.
    pub fn decode(value: Option<&Bytes>) -> Result<Self, XattrError> {
        let Some(value) = value else { return Ok(Self::default()) };
        let mut input = value.clone();
        if take(&mut input, 1)?[0] != V1 {
            return Err(XattrError::Damaged);
        }
        let mut list = Vec::new();
        while !input.is_empty() {
            let name_len = take(&mut input, 1)?[0];
            let name = take(&mut input, name_len.into())?;
            let mut len = [0; 4];
            len.copy_from_slice(&take(&mut input, 4)?);
            let value = take(&mut input, u32::from_le_bytes(len) as usize)?;
            list.push((name, value));
        }
        let sorted = list.windows(2).all(|pair| pair[0].0 < pair[1].0);
        if sorted && !list.is_empty() { Ok(Self { list }) } else { Err(XattrError::Damaged) }
    }

    /// The value to be stored; `None` = no attributes.
    #[must_use]
    pub fn encode(&self) -> Option<Bytes> {
        if self.list.is_empty() {
            return None;
        }
        let mut out = BytesMut::with_capacity(1 + self.total());
        out.put_u8(V1);
        for (name, value) in &self.list {
            out.put_u8(name.len() as u8);
            out.put_slice(name);
            out.put_u32_le(value.len() as u32);
            out.put_slice(value);
        }
        Some(out.freeze())
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The value of an attribute.
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&Bytes> {
        self.find(name).ok().map(|at| &self.list[at].1)
    }

    /// Sets an attribute.
    ///
    /// # Errors
    /// What `setxattr(2)` answers; nothing is changed then.
    pub fn set(&mut self, name: &[u8], value: &[u8], flags: SetFlags) -> Result<(), XattrError> {
        if name.is_empty() || name.len() > NAME_MAX || name.contains(&0) {
            return Err(XattrError::BadName);
        }
        if value.len() > VALUE_MAX {
            return Err(XattrError::ValueTooLarge);
        }
        let found = self.find(name);
        match found {
            Ok(_) if flags.create => return Err(XattrError::Exists),
            Err(_) if flags.replace => return Err(XattrError::Missing),
            _ => {}
        }
        let old = found.map_or(0, |at| size(&self.list[at]));
        let listed = self.names().map(|name| name.len() + 1).sum::<usize>();
        let new = (Bytes::copy_from_slice(name), Bytes::copy_from_slice(value));
        if self.total() - old + size(&new) > TOTAL_MAX
            || (found.is_err() && listed + name.len() + 1 > LIST_MAX)
        {
            return Err(XattrError::NoRoom);
        }
        match found {
            Ok(at) => self.list[at] = new,
            Err(at) => self.list.insert(at, new),
        }
        Ok(())
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// [`XattrError::Missing`] if it is not there.
    pub fn remove(&mut self, name: &[u8]) -> Result<(), XattrError> {
        let at = self.find(name).map_err(|_| XattrError::Missing)?;
        self.list.remove(at);
        Ok(())
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &Bytes> {
        self.list.iter().map(|(name, _)| name)
    }

    /// What `listxattr(2)` answers: the names that are to be shown, a NUL after each.
    #[must_use]
    pub fn list(&self, shown: impl Fn(&[u8]) -> bool) -> Bytes {
        let mut out = BytesMut::new();
        for name in self.names().filter(|name| shown(name)) {
            out.put_slice(name);
            out.put_u8(0);
        }
        out.freeze()
    }

    fn find(&self, name: &[u8]) -> Result<usize, usize> {
        self.list.binary_search_by(|(known, _)| known.as_ref().cmp(name))
    }

    fn total(&self) -> usize {
        self.list.iter().map(size).sum()
    }
}

/// Bytes that an attribute takes.
fn size((name, value): &(Bytes, Bytes)) -> usize {
    1 + name.len() + 4 + value.len()
}

fn take(input: &mut Bytes, len: usize) -> Result<Bytes, XattrError> {
    if len > input.len() { Err(XattrError::Damaged) } else { Ok(input.split_to(len)) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    const ANY: SetFlags = SetFlags { create: false, replace: false };
    const CREATE: SetFlags = SetFlags { create: true, replace: false };
    const REPLACE: SetFlags = SetFlags { create: false, replace: true };

    proptest! {
        #[test]
        fn attributes_are_a_sorted_map_that_survives_storing(
            steps in vec(("[a-c]{1,2}", vec(any::<u8>(), 0..20), 0u8..4), 0..40),
        ) {
            let (mut xattrs, mut model) = (Xattrs::default(), BTreeMap::new());
            for (name, value, what) in steps {
                let name = name.into_bytes();
                let had = model.contains_key(&name);
                let (result, expected) = match what {
                    0 => (xattrs.remove(&name), model.remove(&name).map(drop).ok_or(XattrError::Missing)),
                    1 if had => (xattrs.set(&name, &value, CREATE), Err(XattrError::Exists)),
                    2 if !had => (xattrs.set(&name, &value, REPLACE), Err(XattrError::Missing)),
                    _ => {
                        model.insert(name.clone(), value.clone());
                        (xattrs.set(&name, &value, [ANY, CREATE, REPLACE, ANY][what as usize]), Ok(()))
                    }
                };
                prop_assert_eq!(result, expected);
                let stored = xattrs.encode();
                prop_assert_eq!(stored.is_none(), model.is_empty());
                xattrs = Xattrs::decode(stored.as_ref()).expect("what was stored");
                for name in [&b"a"[..], b"bb", b"c"] {
                    prop_assert_eq!(xattrs.get(name).map(|value| value.to_vec()), model.get(name).cloned());
                }
                let list = model.keys().flat_map(|name| name.iter().copied().chain([0])).collect::<Vec<_>>();
                prop_assert_eq!(xattrs.list(|_| true), list);
            }
        }

        #[test]
        fn any_bytes_decode_or_are_damage(bytes in vec(0u8..4, 0..40)) {
            let bytes = Bytes::from(bytes);
            match Xattrs::decode(Some(&bytes)) {
                Ok(xattrs) => prop_assert_eq!(xattrs.encode(), Some(bytes)),
                Err(error) => prop_assert_eq!(error, XattrError::Damaged),
            }
        }
    }

    #[test]
    fn limits_are_those_of_the_kernel() {
        let mut xattrs = Xattrs::default();
        assert_eq!(xattrs.set(b"", b"", ANY), Err(XattrError::BadName));
        assert_eq!(xattrs.set(&[b'n'; 256], b"", ANY), Err(XattrError::BadName));
        assert_eq!(xattrs.set(b"a", &[0; VALUE_MAX + 1], ANY), Err(XattrError::ValueTooLarge));
        assert_eq!(xattrs.set(&[b'n'; 255], &[0; VALUE_MAX], ANY), Ok(()));
        assert_eq!(xattrs.set(b"a", &[0; VALUE_MAX], ANY), Err(XattrError::NoRoom));
        assert_eq!(xattrs.set(&[b'n'; 255], &[1; VALUE_MAX], ANY), Ok(()), "in place of itself it has room");
    }

    #[test]
    fn names_fill_a_list_and_no_more() {
        let mut xattrs = Xattrs::default();
        let name = |n: usize| format!("{n:0>63}").into_bytes();
        for n in 0..LIST_MAX / 64 {
            assert_eq!(xattrs.set(&name(n), b"", ANY), Ok(()));
        }
        assert_eq!(xattrs.list(|_| true).len(), LIST_MAX);
        assert_eq!(xattrs.set(b"x", b"", ANY), Err(XattrError::NoRoom));
    }

    #[test]
    fn unknown_flags_are_none() {
        assert_eq!(SetFlags::from_bits(1), Some(CREATE));
        assert_eq!(SetFlags::from_bits(2), Some(REPLACE));
        assert_eq!(SetFlags::from_bits(4), None);
    }
}
