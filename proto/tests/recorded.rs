//! What the first release says to a mounter, and hears from it, is still said and understood so: recorded bytes, and what they mean.
//!
//! `recorded/control-v1.txt` is never changed; what is added gets further lines.

use std::fmt::Debug;

use prost::Message;
use tarbox_proto::control::v1::{
    Activity, DrainRequest, FileSystemStatistics, FlushResponse, InFlight, Latencies, OperationStatistics,
    Phase, SetCredentialsRequest, SetLogLevelRequest, SetQuotaRequest, StatisticsResponse, StatusResponse,
};

const RECORDED: &str = include_str!("recorded/control-v1.txt");
/// Calls are named on the wire.
const CALLS: [&str; 7] =
    ["Status", "Flush", "SetQuota", "Statistics", "SetCredentials", "SetLogLevel", "Drain"];

fn status() -> StatusResponse {
    let in_flight = InFlight {
        unique: 1 << 40,
        operation: "write".into(),
        activity: Activity::Waiting.into(),
        age_ms: 300,
        activity_age_ms: 200,
        interrupted: true,
    };
    StatusResponse {
        tenant_id: "id".into(),
        tenant_name: "work".into(),
        version: "0.1.0".into(),
        pid: 1,
        epoch: 2,
        journal_sequence: 3,
        committed_sequence: 4,
        journal_bytes: 5,
        used_bytes: 6,
        quota_bytes: 7,
        used_inodes: 8,
        quota_inodes: 9,
        mount_point: "/m".into(),
        waiting_for: "the database".into(),
        cache_bytes: 10,
        operations: 11,
        phase: Phase::Draining.into(),
        in_flight: vec![in_flight],
        in_flight_count: 12,
        longest_executing_ms: 13,
        longest_waiting_ms: 14,
    }
}

/// Whether a message is written as recorded, and what is recorded read as this message; else the line that would be.
fn differs<M: Message + Default + PartialEq + Debug>(name: &str, meant: &M) -> Option<String> {
    let bytes = meant.encode_to_vec();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let line = format!("{name} {hex}");
    let is_recorded = RECORDED.lines().any(|recorded| recorded == line);
    let is_understood = M::decode(bytes.as_slice()).is_ok_and(|read| read == *meant);
    (!is_recorded || !is_understood).then_some(line)
}

#[test]
fn every_control_message_is_as_the_first_release_recorded_it() {
    let statistics = OperationStatistics {
        name: "read".into(),
        count: 1,
        errors: 2,
        total_ns: 3,
        latencies: vec![4, 500],
    };
    let file_system = FileSystemStatistics {
        cache_hits: 1,
        cache_misses: 2,
        cache_bytes: 3,
        journal_bytes: 4,
        journal_age_ms: 5,
        commits: Some(Latencies { count: 6, total_ns: 7, classes: vec![8, 900] }),
        quota_refusals: 10,
        ..FileSystemStatistics::default()
    };
    let audited = FileSystemStatistics { audit_events: 11, audit_bytes: 1200, ..file_system.clone() };
    let found = [
        differs("status", &status()),
        differs("flush", &FlushResponse { committed_sequence: 9 }),
        differs("quota", &SetQuotaRequest { quota_bytes: 1, quota_inodes: 2, max_file_bytes: 3 }),
        differs("statistics", &StatisticsResponse { operations: vec![statistics], file_system: None }),
        differs("credentials", &SetCredentialsRequest { database_url: "sqlite:///x".into() }),
        differs("log-level", &SetLogLevelRequest { level: "debug".into() }),
        differs("file-system", &StatisticsResponse { operations: vec![], file_system: Some(file_system) }),
        differs("audit", &StatisticsResponse { operations: vec![], file_system: Some(audited) }),
        differs("drain", &DrainRequest { millis: 1500 }),
    ];
    let wrong: Vec<String> = found.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "otherwise than recorded:\n{}", wrong.join("\n"));
    assert_eq!(RECORDED.lines().count(), 9, "recorded, but never read");
}

#[test]
fn every_call_of_the_first_release_is_still_there() {
    let service = include_str!("../tarbox/control/v1/control.proto");
    assert!(service.contains("package tarbox.control.v1;") && service.contains("service Control {"));
    for call in CALLS {
        let line = format!("rpc {call}({call}Request) returns ({call}Response);");
        assert!(service.contains(&line), "{call}");
    }
}

#[test]
fn fields_of_a_later_release_are_passed_over() {
    // Field 99 (text "new") behind what is known.
    let later = [DrainRequest { millis: 1500 }.encode_to_vec(), vec![0x9a, 6, 3, b'n', b'e', b'w']].concat();
    assert_eq!(DrainRequest::decode(later.as_slice()), Ok(DrainRequest { millis: 1500 }));
}
