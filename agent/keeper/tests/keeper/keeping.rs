//! What was put is there, whole, until it is replaced or deleted.

use std::io::Write;
use std::os::fd::AsFd;

use tarbox_handover::HandoverError;

use crate::place::{Place, borrowed, file, rewound};

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn what_was_put_is_given_back_until_it_is_replaced_or_deleted() {
    let place = Place::new();
    let mut client = place.client();
    let mut files = [file(), file()];
    for (file, text) in files.iter_mut().zip(["first", "second"]) {
        file.write_all(text.as_bytes()).unwrap();
    }
    assert!(client.get("k").unwrap().is_none());
    assert_eq!(client.put("k", &names(&["device", "slots"]), &borrowed(&files), b"blob").unwrap(), 1);
    // Another client, after the one that put has gone.
    drop(client);
    let mut client = place.client();
    for _ in 0..2 {
        let entry = client.get("k").unwrap().expect("kept");
        assert_eq!(
            (entry.generation, entry.names, entry.data.as_slice()),
            (1, names(&["device", "slots"]), &b"blob"[..])
        );
        let texts: Vec<_> = entry.descriptors.into_iter().map(rewound).collect();
        assert_eq!(texts, ["first", "second"]);
    }
    assert_eq!(client.put("k", &names(&["slots"]), &borrowed(&files[1..]), &[]).unwrap(), 2);
    let entry = client.get("k").unwrap().expect("kept");
    assert_eq!((entry.generation, entry.names, entry.descriptors.len()), (2, names(&["slots"]), 1));
    assert!(client.delete("k").unwrap());
    assert!(!client.delete("k").unwrap() && client.get("k").unwrap().is_none());
}

#[test]
fn a_long_listing_is_complete_and_in_order() {
    let place = Place::new();
    let mut client = place.client();
    let data = vec![7; 2000];
    for number in 0..150 {
        client.put(&format!("{number:03}"), &[], &[], &data).unwrap();
    }
    client.put("long", &[], &[], &vec![8; 32 << 10]).unwrap();
    let all = client.list().unwrap();
    let keys: Vec<_> = all.iter().map(|entry| entry.key.as_str()).collect();
    let mut expected: Vec<_> = (0..150).map(|number| format!("{number:03}")).collect();
    expected.push("long".into());
    assert_eq!(keys, expected);
    assert!(all[..150].iter().all(|entry| entry.data == data && entry.generation == 1));
    // What does not fit in a listing is there all the same.
    assert!(all[150].data.is_empty() && client.get("long").unwrap().unwrap().data.len() == 32 << 10);
}

#[test]
fn wrong_orders_are_refused_by_name_and_change_nothing() {
    let place = Place::new();
    let mut client = place.client();
    let kept = file();
    client.put("k", &names(&["slots"]), &[kept.as_fd()], b"before").unwrap();
    let told = |outcome: Result<u64, HandoverError>| outcome.unwrap_err().to_string();
    let long = "x".repeat(256);
    assert!(told(client.put("", &[], &[], &[])).contains("key ``: allowed is 1 to 255 bytes"));
    assert!(told(client.put(&long, &[], &[], &[])).contains("allowed is 1 to 255 bytes"));
    assert!(
        told(client.put("k", &names(&["a", "b"]), &[kept.as_fd()], &[]))
            .contains("1 descriptors came, 2 were expected")
    );
    assert!(
        told(client.put("k", &names(&[&long]), &[kept.as_fd()], &[])).contains("allowed is 1 to 64 bytes")
    );
    assert!(told(client.put("k", &[], &[], &vec![0; (32 << 10) + 1])).contains("up to 32768 bytes"));
    assert!(matches!(client.put("k", &[], &[], &vec![0; 100 << 10]), Err(HandoverError::TooLarge { .. })));
    let entry = client.get("k").unwrap().expect("kept");
    assert_eq!((entry.generation, entry.data.as_slice(), entry.descriptors.len()), (1, &b"before"[..], 1));
    assert_eq!(client.list().unwrap().len(), 1);
}
