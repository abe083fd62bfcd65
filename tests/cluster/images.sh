#!/usr/bin/env bash
# Packs what the cluster runs, as OCI archives that its nodes import: no registry. Usage: images.sh
# The product comes from `make image` as the profile PROFILE [release], in this release and in the next one.
set -euo pipefail
. "$(dirname "$0")/env.sh"
export PROFILE=${PROFILE:-release}
pack=$here/../../deploy/image/pack.sh
tools=$TOOLS/bin
work=$(mktemp -d "${TMPDIR:-/tmp}/tarbox-images.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$IMAGES"

# changed NAME FILE…: whether its archive is not one of these very files.
changed() {
    local name=$1 stamp
    shift
    stamp=$(sha256sum "$@" "$0" "$pack" | sha256sum)
    [ -e "$IMAGES/$name.tar" ] && [ "$(cat "$IMAGES/.$name" 2>/dev/null)" = "$stamp" ] && return 1
    echo "$stamp" >"$IMAGES/.$name.new"
}
# done_with NAME DIRECTORY ENTRYPOINT [STOP-SIGNAL]
done_with() {
    "$pack" "$IMAGES/$1.tar" "cluster.local/$1:1" "$2" "{\"Entrypoint\": $3, \"StopSignal\": \"${4:-SIGTERM}\", \"Env\": [\"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin\"], \"WorkingDir\": \"/\"}" 2>"$work/log" || { cat "$work/log" >&2; exit 1; }
    mv "$IMAGES/.$1.new" "$IMAGES/.$1"
    rm -rf "$2"
}
busybox_in() {
    local path
    mkdir -p "$1"/{bin,sbin,usr/bin,usr/sbin,usr/local/bin,etc,tmp,root,proc,sys,dev,var,mnt}
    chmod 1777 "$1/tmp"
    cp "$(command -v busybox)" "$1/bin/busybox"
    busybox --list-full | while read -r path; do
        mkdir -p "$1/$(dirname "$path")"
        [ -e "$1/$path" ] || ln "$1/bin/busybox" "$1/$path"
    done
    printf 'root:x:0:0:root:/root:/bin/sh\npostgres:x:70:70::/var:/bin/sh\n' >"$1/etc/passwd"
    printf 'root:x:0:\npostgres:x:70:\n' >"$1/etc/group"
}
# with_libraries ROOT FILE…: the programs or libraries, where they are, with all that the linker finds for them.
with_libraries() {
    local root=$1 file
    shift
    for file in "$@" $(ldd "$@" 2>/dev/null | grep -o '/[^ :]*' | sort -u); do
        [ -e "$root$file" ] || install -D -m 755 "$(realpath "$file")" "$root$file"
    done
}

if changed pause "$here/pause.c"; then
    mkdir "$work/pause"
    cc -O2 -static -s -o "$work/pause/pause" "$here/pause.c"
    done_with pause "$work/pause" '["/pause"]'
fi
if changed busybox "$(command -v busybox)"; then
    busybox_in "$work/busybox"
    done_with busybox "$work/busybox" '[]'
fi
postgres=$(dirname "$(find /usr/lib/postgresql -name initdb | sort -V | tail -n 1)")
if changed postgres "$postgres/postgres" "$here/postgres.sh"; then
    busybox_in "$work/postgres"
    with_libraries "$work/postgres" "$postgres"/{postgres,initdb,pg_ctl,psql,pg_isready} "$(command -v flock)" "${postgres%/bin}"/lib/{dict_snowball,plpgsql}.so
    ln -s "$postgres"/{psql,pg_isready} "$work/postgres/usr/local/bin/"
    cp -r --parents "/usr/share/postgresql/$(basename "${postgres%/bin}")" "$work/postgres"
    rm -rf "$work/postgres/usr/share/postgresql"/*/{man,locale,extension/[!p]*}
    cp -rL --parents /usr/lib/locale/C.utf8 /usr/share/zoneinfo/UTC "$work/postgres"
    sed "s#@POSTGRES@#$postgres#" "$here/postgres.sh" >"$work/postgres/bin/postgres.sh"
    chmod 755 "$work/postgres/bin/postgres.sh"
    ln -s /bin/postgres.sh "$work/postgres/usr/local/bin/docker-entrypoint.sh"
    # Fast: by SIGTERM it would wait for its clients to go.
    done_with postgres "$work/postgres" '["/bin/postgres.sh"]' SIGINT
fi

for program in csi-provisioner csi-attacher csi-resizer csi-snapshotter snapshot-controller registrar; do
    if changed "$program" "$BIN/$program"; then
        mkdir "$work/$program"
        cp "$BIN/$program" "$work/$program/"
        done_with "$program" "$work/$program" "[\"/$program\"]"
    fi
done
if [ -x "$BIN/agnhost" ] && changed agnhost "$BIN/agnhost"; then
    busybox_in "$work/agnhost"
    cp "$BIN/agnhost" "$work/agnhost/"
    done_with agnhost "$work/agnhost" '["/agnhost"]'
fi

# What works in a volume: the loads of `make chaos`, with the programs that they call.
(cd "$here/../.." && cargo build --quiet --profile "$PROFILE" -p tarbox-tests --bin chaos)
load=$(realpath "$here/../..")/target/$([ "$PROFILE" = dev ] && echo debug || echo "$PROFILE")/chaos
if changed load "$load" "$tools/fsx" "$(command -v sqlite3)" "$here/load.sh"; then
    busybox_in "$work/load"
    install -D -m 755 "$here/load.sh" "$work/load/usr/local/bin/load.sh"
    # Each is copied with its libraries, then put where it is looked for.
    with_libraries "$work/load" "$(command -v sqlite3)" "$tools/fsx" "$load"
    mv "$work/load$tools/fsx" "$work/load$load" "$work/load/usr/local/bin"
    strip --strip-debug "$work/load/usr/local/bin/chaos"
    done_with load "$work/load" '["/usr/local/bin/load.sh"]'
fi

# The product, twice. Cargo knows what is to be built anew.
for release in this:1: next:2:tarbox-types/next-release; do
    IFS=: read -r name tag features <<<"$release"
    out=$IMAGES/tarbox-$name.tar
    REPOSITORY=cluster.local/tarbox TAG=$tag FEATURES=$features "$here/../../deploy/image/image.sh" "$out.new" 2>"$work/log" || { cat "$work/log" >&2; exit 1; }
    # An archive that is as it was is not imported again.
    if cmp -s "$out.new" "$out"; then rm "$out.new"; else mv "$out.new" "$out"; fi
done
