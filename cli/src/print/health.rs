//! What `palisade health` prints.

use palisade_proto::admin::v1;
use serde::Serialize;

use super::answer;
use crate::args::Output;
use crate::exit::Failure;

#[derive(Serialize)]
struct Health<'a> {
    ready: bool,
    readiness: &'static str,
    reasons: &'a [String],
}

/// Ready or not, and why not.
///
/// # Errors
/// Standard output cannot be written.
pub fn health(output: Output, health: &v1::Health) -> Result<(), Failure> {
    answer(
        output,
        || Health { ready: health.ready, readiness: readiness(health.readiness()), reasons: &health.reasons },
        |out| {
            writeln!(out, "{}", state(health))?;
            health.reasons.iter().try_for_each(|r| writeln!(out, "  {r}"))
        },
    )
}

/// The name of a grade.
pub(super) fn readiness(grade: v1::Readiness) -> &'static str {
    match grade {
        v1::Readiness::Full => "full",
        v1::Readiness::Fallback => "fallback",
        v1::Readiness::Withdraw | v1::Readiness::Unspecified => "withdraw",
    }
}

/// The readiness in words.
pub(super) fn state(health: &v1::Health) -> &'static str {
    match (health.ready, health.readiness()) {
        (true, _) => "ready",
        (false, v1::Readiness::Full) => "not ready",
        (false, v1::Readiness::Fallback) => "not ready (fallback: what it knows passes)",
        (false, v1::Readiness::Withdraw | v1::Readiness::Unspecified) => "not ready (withdraw: nothing passes)",
    }
}
