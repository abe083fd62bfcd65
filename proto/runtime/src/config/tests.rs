//! Precedence, and what the messages say.

use tarbox_types::ByteSize;

use super::*;

const KEYS: &[&str] = &["cacheSize", "databaseURL", "readOnly"];

fn size(text: &str) -> Result<u64, String> {
    text.parse::<ByteSize>().map(ByteSize::bytes).map_err(|error| error.expected.to_owned())
}

fn variables(pairs: &[(&str, &str)]) -> impl Iterator<Item = (OsString, OsString)> {
    pairs.iter().map(|(name, value)| (name.into(), value.into())).collect::<Vec<_>>().into_iter()
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file() {
    let mut layers = Layers::new(KEYS);
    assert_eq!(layers.read("cacheSize", size), None);
    layers.file(Path::new("c.toml"), "cacheSize = '1Mi'\nreadOnly = true");
    assert_eq!(layers.read("cacheSize", size), Some(1 << 20));
    layers.environment(variables(&[("TARBOX_CACHE_SIZE", "2Mi"), ("TARBOX_TEST_SEED", "1"), ("HOME", "/")]));
    assert_eq!(layers.read("cacheSize", size), Some(2 << 20));
    layers.flag("cacheSize", Some("3Mi".into()));
    assert_eq!(layers.read("cacheSize", size), Some(3 << 20));
    assert_eq!(layers.source("cacheSize"), Source::Flag("--cache-size".into()));
    assert_eq!(layers.read("readOnly", boolean), Some(true));
    assert_eq!(layers.source("databaseURL"), Source::Default);
    layers.finish().expect("no fault");
}

#[test]
fn a_bare_number_is_read_as_text_would_be() {
    let mut layers = Layers::new(KEYS);
    layers.file(Path::new("c.toml"), "cacheSize = 4096");
    assert_eq!(layers.read("cacheSize", size), Some(4096));
}

#[test]
fn every_fault_of_every_layer_is_named_with_key_value_allowed_and_source() {
    let mut layers = Layers::new(KEYS);
    layers.file(
        Path::new("/etc/c.toml"),
        "# ours\ncacheSize = 'lots'\ncache_siz = 1\nreadOnly = [1]\n[odd]\nx = 1",
    );
    layers.environment(variables(&[
        ("TARBOX_CACHESIZE", "1"),
        ("TARBOX_COLOUR", "red"),
        ("TARBOX_READ_ONLY", "yes"),
    ]));
    layers.flag("cacheSize", Some("12KB".into()));
    layers.read("cacheSize", size);
    layers.read("readOnly", boolean);
    let error = layers.finish().expect_err("faults");
    assert!(!error.is_usage());
    let text = error.to_string();
    for expected in [
        "8 faults",
        "cacheSize = `lots` (from /etc/c.toml, line 2): allowed is a size",
        "unknown key `cache_siz` (from /etc/c.toml, line 3); did you mean `cacheSize`?",
        "readOnly = `[1]` (from /etc/c.toml, line 4): allowed is one string, number or boolean",
        "unknown key `odd` (from /etc/c.toml, line 5); allowed are cacheSize, databaseURL, readOnly",
        "unknown key `TARBOX_CACHESIZE` (from the environment variable TARBOX_CACHESIZE); did you mean `TARBOX_CACHE_SIZE`?",
        "unknown key `TARBOX_COLOUR`",
        "TARBOX_DATABASE_URL",
        "readOnly = `yes` (from the environment variable TARBOX_READ_ONLY): allowed is true or false",
        "cacheSize = `12KB` (from the flag --cache-size): allowed is a size",
    ] {
        assert!(text.contains(expected), "`{expected}` is not in:\n{text}");
    }
}

#[test]
fn a_file_that_is_not_toml_is_named_with_the_line() {
    let mut layers = Layers::new(KEYS);
    layers.file(Path::new("c.toml"), "cacheSize = 1\nreadOnly = = true\n");
    let text = layers.finish().expect_err("a fault").to_string();
    assert!(text.contains("c.toml") && text.contains("line 2"), "{text}");
}

#[test]
fn a_bad_flag_alone_is_wrong_usage() {
    let mut layers = Layers::new(KEYS);
    layers.flag("cacheSize", Some("much".into()));
    layers.read("cacheSize", size);
    assert!(layers.finish().expect_err("a fault").is_usage());
}

#[test]
fn names_follow_from_the_key() {
    for (key, variable, flag) in [
        ("databaseURL", "TARBOX_DATABASE_URL", "--database-url"),
        ("cacheSize", "TARBOX_CACHE_SIZE", "--cache-size"),
        ("tenant", "TARBOX_TENANT", "--tenant"),
        ("tenantId", "TARBOX_TENANT_ID", "--tenant-id"),
    ] {
        assert_eq!((variable_name(key).as_str(), flag_name(key).as_str()), (variable, flag));
    }
}
