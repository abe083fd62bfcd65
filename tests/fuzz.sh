#!/bin/sh
# Each fuzz target for FUZZ_SECONDS (60 by default).
set -eu
cd "$(dirname "$0")/../mounter"
TOOLS="${TESTS_TOOLS:-$HOME/.cache/tarbox/tools}"
PATH="$TOOLS/bin:$PATH"
for target in $(cargo +nightly fuzz list); do
    cargo +nightly fuzz run "$target" -- -max_total_time="${FUZZ_SECONDS:-60}" -rss_limit_mb=2048
done
