//! What the agent does to the machine beside mounting: asked by the shell, each a small function that never hangs.
//!
//! ```text
//! boot      id() -> io::Result<String>;  now() -> Duration (CLOCK_BOOTTIME)
//! state     save(dir, tenant, &impl Serialize) / load_all::<T>(dir) -> (found, faults) / remove(dir, tenant)
//! mountinfo Mounts::read()?.at(path) -> topmost mount there { device: (major, minor), fs_type, source, read_only, … };
//!           .of_device(device) -> every place where it is seen
//! ladder    unmount(path, device, step, limit) -> Result<(), StillMounted { pinned_by }>: every mount of the device under the path
//! cgroup    Cgroups::detect(); .make(tenant, memory) -> directories to enter; .oom_kills(tenant); .set_memory; .remove(tenant); .used(tenant)
//! sentry    place(path) -> the read-only directory under a mount point; clear(path)
//! ```
