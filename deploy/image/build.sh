#!/usr/bin/env bash
# Builds the programs that an image holds: static, so that they run in an image without a libc, and in whatever root a mounter is
# started in. Prints the directory that they lie in. Usage: deploy/image/build.sh PACKAGE[:FEATURE,…] …
#   PROFILE   a profile of cargo [release]
#   TARGET    where it is to run [this machine's kind: x86_64-unknown-linux-gnu or aarch64-unknown-linux-gnu]
#   IMAGE_TARGET_DIR  cargo's directory: apart from that of `make build`, whose programs are linked dynamically [~/.cache/tarbox/image]
set -euo pipefail
cd "$(dirname "$0")/../.."
profile=${PROFILE:-release}
target=${TARGET:-$(uname -m)-unknown-linux-gnu}
directory=${IMAGE_TARGET_DIR:-$HOME/.cache/tarbox/image}

# glibc's own resolver (files, dns) is part of a static libc since 2.34; in an older one it is loaded when it is asked, and missing in the image.
version=$(ldd --version | sed -n '1s/.* //p')
[ "$(printf '%s\n' 2.34 "$version" | sort -V | sed -n 1p)" = 2.34 ] || { echo "build.sh: glibc 2.34 or newer is needed, this is $version" >&2; exit 1; }

# Named, not guessed: with --target the flags do not reach what runs while building. Paths of this machine do not belong into an image.
flags="-C target-feature=+crt-static"
flags+=" --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo --remap-path-prefix=$PWD=/tarbox"
export RUSTFLAGS=$flags
packages=() features=
for package in "$@"; do
    packages+=(-p "${package%%:*}")
    case $package in *:*) features+=${features:+,}${package#*:} ;; esac
done
cargo build --quiet --locked --profile "$profile" --target "$target" --target-dir "$directory" --bins "${packages[@]}" ${features:+--features "$features"} >&2
[ "$profile" = dev ] && profile=debug
echo "$directory/$target/$profile"
