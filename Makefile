# Stockade. Two commands do everything on a fresh machine: `make run`, `make test`.
.PHONY: run test check bench hooks build plugins fast-test vm-test soak fuzz wheel fmt

# Builds, starts the daemon with the example plugins, calls a tool on a real photograph.
run:
	@scripts/run

# Installs what the tests need and passes them all.
test:
	@scripts/test

# Validates: fmt, clippy with warnings denied, deny, typos, docs.
check:
	@scripts/check

# Measures against direct tonic in the same run; writes docs/benchmarks.md.
bench:
	@scripts/bench

# Installs the pre-commit hook that runs the fast tests.
hooks:
	@scripts/hooks

# The unit under a real systemd, in a virtual machine without KVM (a minute and a half).
vm-test:
	@deploy/vm/test

# Ten thousand restarts; nothing may grow. Two thousand deaths of the daemon in the
# middle of writing; nothing acknowledged may be lost.
soak:
	cargo build --workspace
	STOCKADE_KILLS=2000 cargo test --workspace --test hosting -- survive_sigkill --nocapture
	STOCKADE_SOAK_RESTARTS=10000 cargo test --workspace --test faults -- restarts_let_nothing_grow --nocapture

# Fuzzes what outsiders may send, ten minutes for each target.
fuzz:
	@scripts/fuzz

# Unit tests only: seconds.
fast-test:
	cargo test --workspace --exclude stockade-tests --quiet

build:
	cargo build --release --workspace

# The example plugins as directories, ready for `stockade serve --plugins target/plugins`.
plugins: build
	@scripts/plugins release target/plugins

# The Python package as a wheel, in target/wheels.
wheel:
	@scripts/wheel

fmt:
	cargo fmt --all
