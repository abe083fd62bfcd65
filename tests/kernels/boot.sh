#!/usr/bin/env bash
# Boots one machine, hands it a tar stream, waits until it powers itself off. Usage: tests/kernels/boot.sh KERNEL-DIRECTORY IMAGE IN.tar OUT.tar LOG
# The image is not changed. It emulates, unless KERNELS_ACCEL=kvm: a virtual machine's own KVM often cannot start other kernels.
set -euo pipefail
kernel=$1 image=$2 in=$3 out=$4 log=$5
cpu=host
# cmpxchg16b as QEMU 7.2 emulates it corrupts lists of kernel 6.12 at boot.
[ "${KERNELS_ACCEL:=tcg}" = kvm ] || cpu=max,cx16=off
[ "$KERNELS_ACCEL" = kvm ] && accel=kvm || accel=tcg,thread=multi,tb-size=512

# Disks come in whole sectors.
truncate -s %512 "$in"
truncate -s 256M "$out"
disk() { printf 'file=%s,format=raw,if=none,id=%s,cache=unsafe,%s' "$2" "$1" "$3"; }
# Its temporary image, the changes to the root, lies where the others do.
TMPDIR=$(dirname "$out") exec timeout --kill-after=10 "${KERNELS_LIMIT:-3600}" nice -n 10 qemu-system-x86_64 \
    -accel "$accel" -cpu "$cpu" -m "${KERNELS_MEMORY:-2048}" -smp 2 -nographic -nodefaults -serial "file:$log" -no-reboot \
    -kernel "$kernel/vmlinuz" -initrd "$kernel/initrd" \
    -append "console=ttyS0 quiet panic=-1 systemd.show_status=false systemd.unified_cgroup_hierarchy=1 mitigations=off" \
    -drive "$(disk root "$image" snapshot=on)" -device virtio-blk-pci,drive=root \
    -drive "$(disk in "$in" readonly=on)" -device virtio-blk-pci,drive=in \
    -drive "$(disk out "$out" readonly=off)" -device virtio-blk-pci,drive=out \
    -device virtio-rng-pci
