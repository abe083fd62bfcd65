#!/bin/sh
# Coverage of the product by all tests, the whole-system tests included (their mounters write profiles when they end well).
# Fails below 80 % of the lines.
set -eu
cd "$(dirname "$0")/.."
TOOLS="${TESTS_TOOLS:-$HOME/.cache/tarbox/tools}"
PATH="$TOOLS/bin:$PATH"
# Environment of an instrumented build: everything cargo builds from here on, by the tests too, is instrumented.
eval "$(cargo llvm-cov show-env --sh)"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
cargo llvm-cov clean --workspace
cargo test --workspace --no-fail-fast
cargo llvm-cov report --ignore-filename-regex '(^|/)(tests|fuzz)/' --fail-under-lines 80
