//! Memory files that nobody can change any more: secrets, executables.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;

use crate::HandoverError;

/// A memory file with these bytes, sealed against every change. `name` shows in `/proc/PID/fd` only.
///
/// # Errors
/// Where no memory can be had.
pub fn sealed(name: &str, bytes: &[u8]) -> Result<OwnedFd, HandoverError> {
    let mut file = create(name, MemfdFlags::NOEXEC_SEAL)?;
    file.write_all(bytes).map_err(|source| HandoverError::Io { doing: "write a memory file", source })?;
    seal(file)
}

/// A copy of a program in memory, sealed, that can be executed where no file can.
///
/// # Errors
/// Where it cannot be read, or no memory be had.
pub fn sealed_executable(name: &str, program: &mut impl Read) -> Result<OwnedFd, HandoverError> {
    let mut file = create(name, MemfdFlags::EXEC)?;
    std::io::copy(program, &mut file)
        .map_err(|source| HandoverError::Io { doing: "copy a program into memory", source })?;
    seal(file)
}

/// All that is in a memory file.
///
/// # Errors
/// Where it cannot be read.
pub fn read_sealed(descriptor: impl AsFd) -> Result<Vec<u8>, HandoverError> {
    let failed = |source| HandoverError::Io { doing: "read a memory file", source };
    let mut file = File::from(descriptor.as_fd().try_clone_to_owned().map_err(failed)?);
    // The position is shared by all who hold a duplicate.
    file.rewind().map_err(failed)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// `wished` tells whether it may be executed; kernels before 6.3 do not know that, and allow it.
fn create(name: &str, wished: MemfdFlags) -> Result<File, HandoverError> {
    let always = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let created = match memfd_create(name, always | wished) {
        Err(Errno::INVAL) => memfd_create(name, always),
        other => other,
    };
    created.map(File::from).map_err(HandoverError::io("make a memory file"))
}

fn seal(file: File) -> Result<OwnedFd, HandoverError> {
    let all = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(&file, all).map_err(HandoverError::io("seal a memory file"))?;
    Ok(file.into())
}
