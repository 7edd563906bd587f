//! What `palisade health` prints.

use palisade_proto::admin::v1;
use serde::Serialize;

use super::answer;
use crate::args::Output;
use crate::exit::Failure;

#[derive(Serialize)]
struct Health<'a> {
    ready: bool,
    reasons: &'a [String],
}

/// Ready or not, and why not.
///
/// # Errors
/// Standard output cannot be written.
pub fn health(output: Output, health: &v1::Health) -> Result<(), Failure> {
    answer(
        output,
        || Health { ready: health.ready, reasons: &health.reasons },
        |out| {
            writeln!(out, "{}", if health.ready { "ready" } else { "not ready" })?;
            health.reasons.iter().try_for_each(|r| writeln!(out, "  {r}"))
        },
    )
}
