//! Limits: bytes, inodes, the largest file; what `df` shows is what there is.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    os::unix::fs::{FileExt, MetadataExt},
    process::Command,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
    sys::statvfs::statvfs,
};
use tarbox_tests::{command::end_of, deadline::wait_for, on_each_database, volume::Volume};

const LIMIT: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

on_each_database! {
    fn dd_ends_with_enospc_at_the_quota_exactly_as_df_shows(on) {
        let volume = quota(on, "100Mi");
        let stat = statvfs(volume.path()).expect("statvfs");
        assert_eq!(stat.blocks() * stat.fragment_size(), 100 * MIB, "df shows the quota");
        let free = free_bytes(&volume);
        assert!(free > 99 * MIB, "{free} of 100 MiB are free in an empty tenant");
        let mut dd = Command::new("dd");
        dd.args(["if=/dev/zero", "bs=64K"]).arg(format!("of={}", volume.at("big").display()));
        let ended = end_of(&mut dd, LIMIT).expect("dd");
        assert!(ended.code == Some(1) && ended.stderr.contains("No space left on device"), "{}", ended.stderr);
        let size = fs::metadata(volume.at("big")).expect("stat").len();
        assert_eq!(size / 4096, free / 4096, "dd wrote {size} of {free} free bytes");
        assert!(free_bytes(&volume) < 4096, "df shows {} free bytes in a full tenant", free_bytes(&volume));
        assert_eq!(fs::write(volume.at("more"), "x").expect_err("no space").raw_os_error(), Some(Errno::ENOSPC as i32));
        // What is there already can be read, overwritten in place, and removed.
        let big = File::options().write(true).open(volume.at("big")).expect("open");
        big.write_all_at(&[1; 4096], 8192).expect("overwrite in place");
        big.sync_all().expect("fsync of a full tenant");
        let _ = fs::remove_file(volume.at("more"));
        fs::remove_file(volume.at("big")).expect("unlink");
        drop(big);
        wait_for("the space to be back", LIMIT, || (free_bytes(&volume) == free).then_some(())).expect("space");
    }

    fn space_is_charged_as_it_is_allocated_and_comes_back(on) {
        let mut volume = quota(on, "64Mi");
        let free = free_bytes(&volume);
        let file = File::create(volume.at("file")).expect("create");
        file.set_len(1 << 40).expect("a sparse TiB");
        assert_eq!(free_bytes(&volume), free, "a hole takes no space");
        file.write_all_at(&[1; 8192], 1 << 30).expect("write");
        assert_eq!((free - free_bytes(&volume), file.metadata().expect("stat").blocks() * 512), (8192, 8192));
        fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, 16 << 20).expect("fallocate");
        assert_eq!(free - free_bytes(&volume), 8192 + 16 * MIB, "fallocate takes its space at once");
        file.write_all_at(&vec![2; 1 << 20], 0).expect("write into what was allocated");
        assert_eq!(free - free_bytes(&volume), 8192 + 16 * MIB, "writing there takes no more");
        assert_eq!(fallocate(&file, FallocateFlags::empty(), 0, 100 << 20), Err(Errno::ENOSPC));
        assert_eq!(free - free_bytes(&volume), 8192 + 16 * MIB, "a refused fallocate takes nothing");
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, punch, 0, 16 << 20).expect("punch");
        assert_eq!(free - free_bytes(&volume), 8192, "a punched hole gives its space back");
        file.set_len(0).expect("truncate");
        assert_eq!(free_bytes(&volume), free, "truncation gives all back");
        drop(file);
        volume.remount();
        assert_eq!(free_bytes(&volume), free, "also after a remount");
        volume.stop();
        volume.fsck();
    }

    fn what_is_stored_into_mapped_memory_beyond_the_quota_is_an_error_of_msync_and_fsync(on) {
        let volume = quota(on, "1Mi");
        let file = File::create(volume.at("file")).expect("create");
        file.set_len(4 * MIB).expect("a hole takes no space");
        let script = "import errno,mmap,os,sys\nfirst,second=(os.open(sys.argv[1],os.O_RDWR) for _ in range(2))\n\
                      memory=mmap.mmap(first,0)\nmemory[:]=b'x'*len(memory)\n\
                      for ask in (memory.flush,lambda:os.fsync(second)):\n try: ask(); print('done')\n \
                      except OSError as error: print(errno.errorcode[error.errno])\n";
        let mut python = Command::new("python3");
        let ended = end_of(python.args(["-c", script]).arg(volume.at("file")), LIMIT).expect("python3");
        assert_eq!((ended.stdout.as_str(), ended.code), ("ENOSPC\nENOSPC\n", Some(0)), "{}", ended.stderr);
        assert!(free_bytes(&volume) < 4096, "what there is room for is written");
    }

    fn inodes_end_at_their_limit_and_come_back(on) {
        let volume = Volume::with(on, &["--quota-inodes", "500"]);
        if volume.is_control() { return; }
        let stat = statvfs(volume.path()).expect("statvfs");
        assert_eq!(stat.files(), 500, "df -i shows the quota");
        let free = stat.files_free();
        let made = (0..).find(|i| match File::create(volume.at(&format!("file-{i}"))) {
            Ok(_) => false,
            Err(error) => { assert_eq!(error.raw_os_error(), Some(Errno::ENOSPC as i32)); true }
        }).expect("a limit");
        assert_eq!(made, free, "as many as df -i shows");
        assert_eq!(fs::create_dir(volume.at("dir")).expect_err("no inode").raw_os_error(), Some(Errno::ENOSPC as i32));
        fs::hard_link(volume.at("file-0"), volume.at("link")).expect("a link needs no inode");
        fs::write(volume.at("file-0"), "content").expect("content needs no inode");
        fs::remove_file(volume.at("file-1")).expect("unlink");
        wait_for("the inode to be back", LIMIT, || File::create(volume.at("again")).ok()).expect("create");
    }

    fn a_file_ends_at_the_largest_size_with_efbig(on) {
        let volume = Volume::with(on, &["--max-file-size", "1Mi"]);
        if volume.is_control() { return; }
        let file = File::create(volume.at("file")).expect("create");
        file.write_all_at(&vec![1; 1 << 20], 0).expect("up to the limit");
        assert_eq!(file.write_all_at(&[1], 1 << 20).expect_err("beyond").kind(), ErrorKind::FileTooLarge);
        assert_eq!(file.set_len((1 << 20) + 1).expect_err("beyond").kind(), ErrorKind::FileTooLarge);
        assert_eq!(file.metadata().expect("stat").len(), 1 << 20);
    }

    fn a_resize_takes_effect_at_once(on) {
        let volume = quota(on, "8Mi");
        let mut file = File::create(volume.at("file")).expect("create");
        while file.write_all(&[1; 65_536]).is_ok() {}
        let ended = volume.tarbox(&["tenant", "resize", "test", "--quota-bytes", "16Mi"]).expect("resize");
        assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
        let total = || statvfs(volume.path()).map(|stat| stat.blocks() * stat.fragment_size()).expect("statvfs");
        wait_for("df to show the new quota", Duration::from_secs(5), || (total() == 16 * MIB).then_some(())).expect("df");
        file.write_all(&vec![1; 4 << 20]).expect("write after the resize");
        let ended = volume.tarbox(&["tenant", "resize", "test", "--quota-bytes", "4Mi"]).expect("resize");
        assert_eq!(ended.code, Some(0), "below what is used: {}{}", ended.stdout, ended.stderr);
        wait_for("df to show the smaller quota", Duration::from_secs(5), || (total() == 4 * MIB).then_some(())).expect("df");
        assert!(file.write_all(&[1; 8192]).is_err(), "writes beyond a smaller quota end");
    }

    fn an_open_file_keeps_its_space_until_it_is_closed(on) {
        let volume = quota(on, "16Mi");
        let free = free_bytes(&volume);
        let mut file = File::create(volume.at("file")).expect("create");
        file.write_all(&vec![1; 4 << 20]).expect("write");
        fs::remove_file(volume.at("file")).expect("unlink");
        assert_eq!(free - free_bytes(&volume), 4 * MIB);
        file.write_all(&vec![1; 1 << 20]).expect("write to the unlinked file");
        let mut back = vec![0; 5 << 20];
        let reader = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file))).expect("reopen");
        reader.read_exact_at(&mut back, 0).expect("read it");
        drop((file, reader));
        wait_for("the space to be back", LIMIT, || (free_bytes(&volume) == free).then_some(())).expect("space");
    }
}

fn quota(on: tarbox_tests::volume::Database, bytes: &str) -> Volume {
    assert!(std::env::var_os("TESTS_CONTROL").is_none(), "a plain directory has no quota");
    Volume::with(on, &["--quota-bytes", bytes])
}

fn free_bytes(volume: &Volume) -> u64 {
    let stat = statvfs(volume.path()).expect("statvfs");
    stat.blocks_available() * stat.fragment_size()
}
