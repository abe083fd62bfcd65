#!/bin/sh
# Licences, bans and sources always; advisories where their database can be had.
set -eu
cd "$(dirname "$0")/.."
DENY="${TESTS_TOOLS:-$HOME/.cache/tarbox/tools}/bin/cargo-deny"
"$DENY" --workspace check bans licenses sources
if "$DENY" --workspace fetch db 2>/dev/null || ls "${CARGO_HOME:-$HOME/.cargo}"/advisory-dbs/*/crates >/dev/null 2>&1; then
    "$DENY" --workspace check advisories
else
    echo "deny: the advisory database cannot be reached and there is no copy of it: advisories were NOT checked" >&2
fi
