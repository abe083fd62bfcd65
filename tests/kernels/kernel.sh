#!/usr/bin/env bash
# Fetches a kernel of Debian and makes an initial file system that loads its modules. Nothing is installed here.
# Usage: tests/kernels/kernel.sh 5.10|6.1|6.12 DIRECTORY; leaves `vmlinuz`, `initrd` and `release` in it.
set -euo pipefail
version=$1 to=$2
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
# Each is the kernel of a release.
case $version in
    5.10) suite=bullseye ;;
    6.1) suite=bookworm ;;
    6.12) suite=trixie ;;
    *) echo "kernel.sh: kernel $version is not known: 5.10, 6.1 or 6.12" >&2; exit 64 ;;
esac
# What the machine's devices and the tests need, besides what the kernel has built in.
modules="virtio_pci virtio_blk virtio_rng ext4 fuse overlay loop autofs4"

work=$(mktemp -d "${TESTS_DIR:-/var/tmp}/tarbox-kernel.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists/partial,cache/archives/partial,package} "$work"/initrd/{bin,modules,proc,sys,dev,root}

# Sources and lists of its own: those of this machine are not touched.
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$mirror" "$suite" "$keyring" "$mirror-security" "$suite-security" >"$work/sources.list"
apt=(-o "APT::Sandbox::User=root" -o "Dir::Etc::sourcelist=$work/sources.list" -o "Dir::Etc::sourceparts=-" -o "Dir::State::lists=$work/lists"
    -o "Dir::Cache=$work/cache" -o "APT::Architecture=amd64")
apt-get -qq "${apt[@]}" update
package=$(apt-cache "${apt[@]}" depends linux-image-cloud-amd64 | sed -n "s/^ *Depends: \(linux-image-$version\..*-cloud-amd64\)$/\1/p" | head -n 1)
[ -n "$package" ] || { echo "kernel.sh: $suite has no package of kernel $version" >&2; exit 1; }
(cd "$work" && apt-get -qq "${apt[@]}" download "$package")
dpkg-deb -x "$work/$package"_*.deb "$work/package"
release=${package#linux-image-}
# Newer packages have the modules below /usr only.
[ -d "$work/package/lib" ] || ln -s usr/lib "$work/package/lib"

# In the order in which they depend on each other.
depmod -b "$work/package" "$release"
: >"$work/initrd/modules/order"
for module in $modules; do
    modprobe -S "$release" -d "$work/package" --show-depends "$module" | sed -n 's/^insmod \([^ ]*\).*/\1/p'
done | awk '!seen[$0]++' | while read -r file; do
    name=$(basename "${file%.xz}")
    case $file in
        *.xz) xz -dc "$file" >"$work/initrd/modules/$name" ;;
        *) cp "$file" "$work/initrd/modules/$name" ;;
    esac
    echo "$name" >>"$work/initrd/modules/order"
done
cp "$(command -v busybox)" "$work/initrd/bin/busybox"
cat >"$work/initrd/init" <<'SCRIPT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do insmod "/modules/$module"; done </modules/order
while [ ! -b /dev/vda ]; do sleep 0.05; done
mount -t ext4 -o noatime /dev/vda /root || exec sh
umount /proc /sys
mount --move /dev /root/dev
exec switch_root /root /lib/systemd/systemd
SCRIPT
chmod +x "$work/initrd/init"
(cd "$work/initrd" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$work/initrd.gz"
mkdir -p "$to"
cp "$work/package/boot/vmlinuz-$release" "$to/vmlinuz"
mv "$work/initrd.gz" "$to/initrd"
# Last: where it stands, all is there.
echo "$release" >"$to/release"
