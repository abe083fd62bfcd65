#!/usr/bin/env bash
# Makes the root file system of the virtual machines: Debian 12 with systemd, what the tests need, and one unit that runs what it is
# handed on its second disk. Usage: tests/kernels/image.sh IMAGE
set -euo pipefail
image=$1
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}

work=$(mktemp -d "${TESTS_DIR:-/var/tmp}/tarbox-image.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root
export DEBIAN_FRONTEND=noninteractive LC_ALL=C

packages=systemd,systemd-sysv,dbus,kmod,procps,util-linux,mount,python3,fuse3,attr,acl,git,rsync,sqlite3,e2fsprogs
if ! debootstrap --variant=minbase --include="$packages" bookworm "$root" "$mirror" >"$work/log" 2>&1; then
    tail -n 30 "$work/log" >&2
    exit 1
fi
# The tests make clusters of their own; nothing is to be started in here.
mkdir -p "$root/etc/postgresql-common"
echo "create_main_cluster = false" >"$root/etc/postgresql-common/createcluster.conf"
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod +x "$root/usr/sbin/policy-rc.d"
if ! chroot "$root" apt-get install -y -qq --no-install-recommends postgresql >"$work/log" 2>&1; then
    tail -n 30 "$work/log" >&2
    exit 1
fi
# PostgreSQL works without its compiler of queries, which is larger than all the rest.
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,locale,man} \
    "$root"/usr/lib/x86_64-linux-gnu/libLLVM* "$root"/usr/lib/llvm-* "$root"/usr/lib/postgresql/*/lib/{bitcode,llvmjit.so}

echo tarbox-vm >"$root/etc/hostname"
echo "127.0.0.1 localhost tarbox-vm" >"$root/etc/hosts"
: >"$root/etc/machine-id"
# fusermount3 opens the device with the rights of the user who mounts; there is no udev here.
echo 'z /dev/fuse 0666 root root -' >"$root/etc/tmpfiles.d/fuse.conf"
cat >"$root/etc/systemd/system/handed.service" <<'UNIT'
[Unit]
Description=What the machine was started for
Requires=dbus.socket
After=basic.target dbus.socket

[Service]
Type=oneshot
ExecStart=/handed
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
TimeoutStartSec=infinity

[Install]
WantedBy=multi-user.target
UNIT
# In and out go tar streams on bare disks: these kernels have no file system of the host.
cat >"$root/handed" <<'SCRIPT'
#!/bin/sh
mkdir /handed.in /handed.out
tar -xf /dev/vdb -C /handed.in
/handed.in/start /handed.in /handed.out
tar -cf /dev/vdc -C /handed.out .
sync
systemctl poweroff --force --force
SCRIPT
chmod +x "$root/handed"
systemctl --root="$root" --quiet enable handed.service
systemctl --root="$root" --quiet set-default multi-user.target
systemctl --root="$root" --quiet mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer getty@tty1.service postgresql.service

truncate -s 6G "$image.draft"
mkfs.ext4 -q -F -O ^has_journal -d "$root" "$image.draft"
mv "$image.draft" "$image"
