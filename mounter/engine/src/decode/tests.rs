//! Every byte sequence is decoded or refused; what is decoded is what stands there.

use proptest::prelude::*;

use super::*;
use crate::opcode::COUNT;

fn message(opcode: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&((abi::IN_HEADER_SIZE + body.len()) as u32).to_ne_bytes());
    bytes.extend_from_slice(&opcode.to_ne_bytes());
    bytes.extend_from_slice(&(UNIQUE_RESEND | 42).to_ne_bytes());
    bytes.extend_from_slice(&7_u64.to_ne_bytes());
    for number in [1000_u32, 100, 4711, 0] {
        bytes.extend_from_slice(&number.to_ne_bytes());
    }
    bytes.extend_from_slice(body);
    bytes
}

fn decode(bytes: &[u8], dialect: Dialect) -> Result<Operation<'_>, DecodeError> {
    Frame::parse(bytes, dialect)?.operation()
}

#[test]
fn the_header_keeps_bit_63_and_the_request_id_does_not() {
    let bytes = message(op::READLINK, &[]);
    let header = Header::parse(&bytes).unwrap();
    assert_eq!((header.unique, header.request_id()), (UNIQUE_RESEND | 42, 42));
    assert_eq!((header.nodeid, header.uid, header.gid, header.pid), (7, 1000, 100, 4711));
}

#[test]
fn rename2_has_its_fields_and_both_names() {
    let mut body = Vec::from(9_u64.to_ne_bytes());
    body.extend_from_slice(&[2, 0, 0, 0, 0, 0, 0, 0]);
    body.extend_from_slice(b"old\0new\0");
    let bytes = message(op::RENAME2, &body);
    let (name, new_name) = (OsStr::new("old"), OsStr::new("new"));
    let wanted = Operation::Rename2 { name, new_parent: 9, new_name, flags: 2 };
    assert_eq!(decode(&bytes, Dialect::default()), Ok(wanted));
}

#[test]
fn setxattr_is_read_by_the_negotiated_layout() {
    let (name, value) = (OsStr::new("user.a"), &b"vv"[..]);
    let short = [&[2, 0, 0, 0, 1, 0, 0, 0][..], b"user.a\0vv"].concat();
    let wanted = Operation::Setxattr { name, value, flags: 1, setxattr_flags: 0 };
    assert_eq!(decode(&message(op::SETXATTR, &short), Dialect { setxattr_ext: false }), Ok(wanted));
    let long = [&[2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0][..], b"user.a\0vv"].concat();
    let wanted = Operation::Setxattr { name, value, flags: 1, setxattr_flags: 1 };
    assert_eq!(decode(&message(op::SETXATTR, &long), Dialect { setxattr_ext: true }), Ok(wanted));
}

#[test]
fn a_write_whose_size_disagrees_with_its_data_is_refused() {
    let mut body = [0; 40];
    body[16..20].copy_from_slice(&4_u32.to_ne_bytes());
    let right = [&body[..], b"data"].concat();
    assert!(decode(&message(op::WRITE, &right), Dialect::default()).is_ok());
    for data in [&b"dat"[..], b"data!"] {
        let wrong = [&body[..], data].concat();
        let wrong = message(op::WRITE, &wrong);
        assert_eq!(decode(&wrong, Dialect::default()), Err(DecodeError::Length { opcode: op::WRITE }));
    }
}

#[test]
fn names_must_not_be_empty_or_unended() {
    let name = DecodeError::Name { opcode: op::LOOKUP };
    assert_eq!(decode(&message(op::LOOKUP, b"\0"), Dialect::default()), Err(name));
    assert_eq!(decode(&message(op::LOOKUP, b"abc"), Dialect::default()), Err(name));
    let length = DecodeError::Length { opcode: op::LOOKUP };
    assert_eq!(decode(&message(op::LOOKUP, b"abc\0d"), Dialect::default()), Err(length));
}

#[test]
fn batch_forget_counts_its_pairs() {
    let pairs: Vec<u8> = [5_u64, 1, 6, 2].iter().flat_map(|number| number.to_ne_bytes()).collect();
    let body = |count: u32| [&count.to_ne_bytes()[..], &[0; 4], &pairs].concat();
    let bytes = message(op::BATCH_FORGET, &body(2));
    let Ok(Operation::BatchForget(forgets)) = decode(&bytes, Dialect::default()) else { panic!() };
    assert_eq!(forgets.to_vec(), [(5, 1), (6, 2)]);
    for count in [0, 1, 3, u32::MAX] {
        assert!(decode(&message(op::BATCH_FORGET, &body(count)), Dialect::default()).is_err());
    }
}

#[test]
fn init_takes_the_upper_flags_only_where_they_are_announced() {
    let body = |low: u32| {
        let mut body = vec![0_u8; 64];
        for (place, number) in body.chunks_exact_mut(4).zip([7, 45, 131_072, low, 0x80]) {
            place.copy_from_slice(&number.to_ne_bytes());
        }
        body
    };
    let flags = |bytes: &[u8]| match decode(bytes, Dialect::default()) {
        Ok(Operation::Init(init)) => init.flags,
        other => panic!("{other:?}"),
    };
    let announced = abi::init::INIT_EXT as u32;
    assert_eq!(flags(&message(op::INIT, &body(announced))), abi::init::INIT_EXT | abi::init::HAS_RESEND);
    assert_eq!(flags(&message(op::INIT, &body(1))), 1);
    assert_eq!(flags(&message(op::INIT, &body(1)[..16])), 1);
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), ext: bool) {
        let _ = decode(&bytes, Dialect { setxattr_ext: ext });
    }

    #[test]
    fn no_body_of_any_operation_makes_the_decoder_panic(
        opcode in 0..COUNT as u32 + 2,
        body in proptest::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..200),
        ext: bool,
    ) {
        let bytes = message(opcode, &body);
        if let Ok(Operation::BatchForget(forgets)) = decode(&bytes, Dialect { setxattr_ext: ext }) {
            prop_assert_eq!(forgets.to_vec().len() * 16 + 8, body.len());
        }
    }

    #[test]
    fn a_cut_or_lengthened_message_is_refused(opcode in 1..COUNT as u32, extra in 1_usize..64, cut: bool) {
        let whole = message(opcode, &[1; 64]);
        let bytes = if cut { whole[..whole.len() - extra].to_vec() } else { [&whole[..], &vec![0; extra]].concat() };
        let refused = matches!(decode(&bytes, Dialect::default()), Err(DecodeError::Header { .. }));
        prop_assert!(refused);
    }
}
