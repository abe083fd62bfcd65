//! How a mounter is started: its command line, user and limits. Pure.

use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit};
use tarbox_handover::{CONTROL_FD, FEW_ARENAS, Limit, SpawnSpec};
use tarbox_runtime::{
    telemetry::LogFormat,
    traces::{OtlpEndpoint, STANDARD_VARIABLE},
};
use tarbox_types::{TenantId, database_url};

use super::Staged;

/// `RLIMIT_NOFILE`, `RLIMIT_MEMLOCK` and `RLIMIT_CORE`, by the kernel's numbers.
const NOFILE: u32 = 7;
const MEMLOCK: u32 = 8;
const CORE: u32 = 4;
/// Descriptors of a mounter: devices, database connections, journal segments.
const MOST_FILES: u64 = 4096;
/// Locked memory: the request slots.
const MOST_LOCKED: u64 = 256 << 20;
/// Dies before the system's own services when memory is short, after ordinary programs.
const OOM_SCORE_ADJ: i32 = -500;

/// Where a tenant's mounter keeps its journal and its control socket.
pub(crate) fn mounter_dir(run_dir: &Path, tenant: TenantId) -> PathBuf {
    run_dir.join("mounters").join(tenant.to_string())
}

/// The mounter's control socket. There is one writer; of those that only read each has its own, by its pid.
pub(crate) fn control_socket(run_dir: &Path, tenant: TenantId, reader: Option<u32>) -> PathBuf {
    let writer = mounter_dir(run_dir, tenant).join(tenant.to_string());
    let own = match reader {
        Some(pid) => writer.join("readers").join(pid.to_string()),
        None => writer,
    };
    own.join("control.sock")
}

/// What of the machine goes into how a mounter is started.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings<'a> {
    pub(crate) run_dir: &'a Path,
    /// Control groups to enter, one per hierarchy.
    pub(crate) cgroups: Vec<String>,
    pub(crate) environment: &'a [String],
    pub(crate) limits: &'a [Limit],
    /// Whether it may be spared when memory is short.
    pub(crate) may_spare: bool,
    /// Whether it does as if the kernel could not send requests again.
    pub(crate) without_resend: bool,
    /// As the agent's own.
    pub(crate) log_format: LogFormat,
}

/// How the tenant's mounter is started. Descriptor 0 of the message is the executable, 1 its log.
pub(crate) fn spec(staged: &Staged, around: Surroundings<'_>) -> SpawnSpec {
    let Surroundings { run_dir, cgroups, environment, limits, may_spare, without_resend, log_format } =
        around;
    let mut argv = vec![
        "tarbox-mount".to_owned(),
        "--tenant-id".to_owned(),
        staged.tenant.to_string(),
        "--control-fd".to_owned(),
        CONTROL_FD.to_string(),
        "--state-dir".to_owned(),
        mounter_dir(run_dir, staged.tenant).to_string_lossy().into_owned(),
        "--database-url".to_owned(),
        match &staged.login {
            Some(role) => database_url::with_user(&staged.database_url, role, None),
            None => staged.database_url.clone(),
        },
    ];
    for (flag, value) in &staged.options {
        argv.extend([flag.clone(), value.clone()]);
    }
    if staged.wish.many_readers {
        argv.push("--read-only".to_owned());
    }
    if without_resend {
        argv.push("--without-resend".to_owned());
    }
    if log_format == LogFormat::Json {
        argv.extend(["--log-format".to_owned(), "json".to_owned()]);
    }
    argv.push(staged.staging_path.to_string_lossy().into_owned());
    SpawnSpec {
        executable: 0,
        argv: argv.into_iter().map(String::into_bytes).collect(),
        env: environment.iter().map(|pair| pair.clone().into_bytes()).collect(),
        uid: staged.user,
        gid: staged.user,
        groups: Vec::new(),
        limits: limits.to_vec(),
        oom_score_adj: may_spare.then_some(OOM_SCORE_ADJ),
        cgroups,
        nice: None,
        new_session: true,
        log: Some(1),
        without_capabilities: true,
    }
}

/// `CAP_SYS_RESOURCE`, by its bit.
const SYS_RESOURCE: u64 = 1 << 24;

/// Whether this process may spare others when memory is short; without the capability the kernel refuses it.
pub(crate) fn may_spare() -> bool {
    let status = procfs::process::Process::myself().and_then(|process| process.status());
    status.is_ok_and(|status| status.capeff & SYS_RESOURCE != 0)
}

/// The limits of a mounter; none above what this process may give.
pub(crate) fn limits() -> Vec<Limit> {
    let most = |resource| getrlimit(resource).map_or(0, |(_, hard)| hard);
    let limit = |number, resource, wanted: u64| {
        let value = wanted.min(most(resource));
        Limit { resource: number, soft: value, hard: value }
    };
    vec![
        limit(NOFILE, Resource::RLIMIT_NOFILE, MOST_FILES),
        limit(MEMLOCK, Resource::RLIMIT_MEMLOCK, MOST_LOCKED),
        // A core dump would hold the requests up for its whole length, and hold the tenant's data.
        limit(CORE, Resource::RLIMIT_CORE, 0),
    ]
}

/// What of the agent's environment a mounter gets: certificates, time zone, where a build that measures coverage says so. And where
/// traces are sent, by the variable that is no key of ours: a release that does not know it does not mind. And how malloc is to keep house.
pub(crate) fn environment(otlp_endpoint: Option<&OtlpEndpoint>) -> Vec<String> {
    let inherited = ["SSL_CERT_FILE", "SSL_CERT_DIR", "TZ", "RUST_BACKTRACE", "LLVM_PROFILE_FILE"];
    let inherited =
        inherited.into_iter().filter_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?)));
    let traces = otlp_endpoint.map(|endpoint| format!("{STANDARD_VARIABLE}={}", endpoint.as_str()));
    let (name, value) = FEW_ARENAS;
    inherited.chain(traces).chain([format!("{name}={value}")]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tarbox_rpc::csi::capability::MountWish;

    #[test]
    fn the_command_line_names_the_tenant_its_database_and_its_options() {
        let tenant = TenantId::random();
        let staged = Staged {
            tenant,
            staging_path: "/staging".into(),
            wish: MountWish {
                read_only: true,
                nosuid: false,
                nodev: false,
                noexec: false,
                group: None,
                many_readers: true,
            },
            name: "work".into(),
            database_url: "postgresql://u@h/d".into(),
            login: Some("tarbox_r".into()),
            options: vec![("--cache-size".into(), "1Gi".into())],
            changed: Default::default(),
            user: Some(1_900_000_000),
            native: vec![],
            memory: tarbox_types::ByteSize(0),
            published: Default::default(),
            inline: None,
        };
        let around = Surroundings {
            run_dir: Path::new("/run/t"),
            cgroups: vec![],
            environment: &["TZ=UTC".into()],
            limits: &[],
            may_spare: false,
            without_resend: true,
            log_format: LogFormat::Json,
        };
        let spec = spec(&staged, around);
        assert_eq!(spec.oom_score_adj, None);
        let argv: Vec<_> = spec.argv.iter().map(|word| String::from_utf8_lossy(word)).collect();
        let line = argv.join(" ");
        assert_eq!(
            line,
            format!(
                "tarbox-mount --tenant-id {tenant} --control-fd 3 --state-dir /run/t/mounters/{tenant} \
                 --database-url postgresql://tarbox_r@h/d --cache-size 1Gi --read-only \
                 --without-resend --log-format json /staging"
            )
        );
        assert_eq!((spec.uid, spec.gid, spec.new_session), (Some(1_900_000_000), Some(1_900_000_000), true));
        assert_eq!(spec.env, [b"TZ=UTC".to_vec()]);
    }
}
