#!/bin/sh
# shellcheck disable=SC3045 # It is busybox that reads with a limit.
# What works in the volume at /data, as the only process of its container: the loads of `make chaos` that are named, and a log that stays
# open from the first moment to the last. Each load's lines are in /tmp/NAME.out; orders go to /tmp/NAME.in.
# Usage: load.sh NAME…; then, in the same container: load.sh --orders ORDER, which tells every load
set -eu
if [ "${1:-}" = --orders ]; then
    for order in /tmp/*.in; do echo "$2" >"$order"; done
    exit
fi
export TESTS_TOOLS=/usr/local
for name in "$@"; do
    mkfifo "/tmp/$name.in"
    mkdir -p "/tmp/scratch-$name"
    # Its end of the pipe stays open: an order that has been read is not the last.
    { chaos load "$name" --dir "/data/$name" --scratch "/tmp/scratch-$name" --seed "${SEED:-1}" --rest "${REST:-20}" <>"/tmp/$name.in" >"/tmp/$name.out" 2>&1; echo "failed: it ended with $?" >>"/tmp/$name.out"; } &
done
# One descriptor, opened once, through everything that happens.
exec 7>>/data/held
number=0
: >/tmp/held.out
mkfifo /tmp/held.in
exec 8<>/tmp/held.in
while :; do
    number=$((number + 1))
    echo "$number" >&7 || { echo "failed append $number to the log that stays open" >>/tmp/held.out; exec sleep 100000; }
    echo "operations $number" >>/tmp/held.out
    # Rests, unless there is an order.
    if read -r -t 0.1 order <&8; then
        case $order in
            stop) echo stopped >>/tmp/held.out; read -r order <&8 ;;
        esac
        case $order in
            verify)
                # By another descriptor: every line is there, once and in order.
                if seq "$number" | cmp -s - /data/held; then echo verified >>/tmp/held.out; else echo "wrong: the log that stayed open is not 1 to $number" >>/tmp/held.out; fi
                read -r order <&8 ;;
        esac
    fi
done
