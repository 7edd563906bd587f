# What a developer runs. `verify` only reads, `fix` only rewrites.

default: verify

# Format, lints, purity of the engine: what the gate checks before it tests.
verify:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    bash .ci/purity

# Rewrites what can be rewritten.
fix:
    cargo fmt --all
    cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged

# All tests; those that need root or programs that are missing say that they were skipped.
test *ARGS:
    cargo test --workspace {{ARGS}}

# The lab tests, as root, none skipped.
lab *ARGS:
    PALISADE_REQUIRE_LAB=1 cargo test -p palisade-tests {{ARGS}}

# What docs/performance.md measures: tables, and no verdict.
measure *ARGS:
    cargo bench -p palisade-tests -- {{ARGS}}

# Three members, real traffic, the leader dies.
demo *ARGS:
    cargo run --release -- demo {{ARGS}}
