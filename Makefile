# The one entrance. CI calls these targets and nothing else. Needs a Rust toolchain, root and apt; the rest is installed by deps-*.
export PATH := $(HOME)/.cargo/bin:$(PATH)
TOOLS ?= $(or $(TESTS_TOOLS),$(HOME)/.cache/tarbox/tools)
WHOLE = cargo test -p tarbox-tests --no-fail-fast

.PHONY: sanity build run demo test fmt lint deny doc coverage pjdfstest fsx differ bench chaos test-postgres fuzz stress soak patience crowd volumes races constant measure audit-cost test-kernels chart manifests image e2e e2e-suite clean deps-run deps-test
build: ; cargo build --release --bins -p tarbox-mounter -p tarbox-keeper -p tarbox-agent -p tarbox-controller
run: deps-run build ; PATH="$(CURDIR)/target/release:$$PATH" agent/demo/run.sh
demo: build ; tests/deps.sh demo && PATH="$(CURDIR)/target/release:$$PATH" agent/demo/day.sh
test: deps-test lint ; cargo test --workspace --no-fail-fast
fmt: ; cargo fmt --all
lint: ; cargo fmt --all --check && cargo clippy --workspace --all-targets --quiet -- -D warnings
deny: ; tests/deps.sh deny && tests/deny.sh
doc: ; RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
coverage: ; tests/deps.sh coverage && tests/coverage.sh
pjdfstest: deps-test ; $(WHOLE) --test posix -- pjdfstest
fsx: deps-test ; TESTS_FSX_OPERATIONS=1000000 $(WHOLE) --test data -- fsx
differ: deps-test ; TESTS_SEQUENCES=300 $(WHOLE) --test posix -- random
bench: build ; tests/deps.sh bench && cargo build --release -p tarbox-tests --bins && cargo build --release -p tarbox-engine --features nullfs --bin tarbox-nullfs && target/release/bench --null "target/release/tarbox-nullfs mount {} ttl=3600 readers=2" $(BENCH)
# The programs as they are shipped, and the harness by itself: together they would be built with the harness' features.
chaos: build ; tests/deps.sh chaos && cargo build --release -p tarbox-tests --bins && target/release/chaos $(CHAOS)
sanity: deps-test ; tests/deps.sh sanity && $(WHOLE) --test controller -- --ignored --nocapture sanity
test-postgres: deps-test ; cargo test --workspace --no-fail-fast -- postgres
fuzz: ; tests/deps.sh fuzz && tests/fuzz.sh
stress: deps-test ; TESTS_STRESS_SECONDS=60 $(WHOLE) --test programs -- stress
soak: deps-test ; TESTS_PROFILE=release $(WHOLE) --test soak -- --ignored
patience: deps-test ; TESTS_AWAY_SECONDS=600 TESTS_PROFILE=release $(WHOLE) --test patience
test-kernels: ; tests/deps.sh kernels && tests/kernels/run.sh
chart: ; tests/deps.sh chart && tests/chart.sh check
manifests: ; tests/deps.sh chart && tests/chart.sh render
volumes: deps-test ; TESTS_PROFILE=release $(WHOLE) --test volumes -- --ignored --nocapture --test-threads 1
races: deps-test ; TESTS_RACE_SECONDS=600 cargo test --release -p tarbox-store --lib races -- --nocapture
constant: deps-test ; cargo test --release -p tarbox-store --lib constant_time -- --ignored --nocapture --test-threads 1
audit-cost: deps-test ; TESTS_PROFILE=release $(WHOLE) --test audit -- --ignored --nocapture
image: ; tests/deps.sh image && deploy/image/image.sh
e2e: ; tests/deps.sh cluster && tests/cluster/build.sh && tests/cluster/images.sh && tests/cluster/run.sh $(CASES)
e2e-suite: ; tests/deps.sh cluster && tests/cluster/build.sh suite && tests/cluster/images.sh && CLUSTER_SUITE=1 CLUSTER_NODES=one tests/cluster/run.sh suite
measure: deps-test ; cargo test --release -p tarbox-store --lib measure -- --ignored --nocapture --test-threads 1
crowd: deps-test ; TESTS_PROFILE=release $(WHOLE) --test node -- --ignored --nocapture
clean: ; cargo clean && rm -rf bench-results chaos-results
deps-run: ; tests/deps.sh run
deps-test: ; tests/deps.sh test
