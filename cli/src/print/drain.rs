//! What `palisade drain` and `palisade undrain` print, and how far a member has got that turns traffic away.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use palisade_proto::admin::v1;
use serde::Serialize;

use super::{answer, many};
use crate::args::Output;
use crate::exit::Failure;

/// A line on the terminal that says how far it is; nothing where standard error is none. Gone when it is dropped.
#[derive(Debug)]
pub struct Progress(ProgressBar);

impl Progress {
    /// Shows nothing yet.
    #[must_use]
    pub fn new(output: Output) -> Progress {
        if output == Output::Json {
            return Progress(ProgressBar::hidden());
        }
        let bar = ProgressBar::new_spinner();
        // The template is a constant; a wrong one would only look different.
        bar.set_style(
            ProgressStyle::with_template("{spinner} {msg} ({elapsed})")
                .unwrap_or_else(|_| ProgressStyle::default_spinner()),
        );
        bar.enable_steady_tick(Duration::from_millis(100));
        Progress(bar)
    }

    /// Shows how far it is.
    pub fn show(&mut self, draining: &v1::Draining) {
        self.0.set_message(progress(draining));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn progress(d: &v1::Draining) -> String {
    let passing = match (d.quiet, d.packets_per_second) {
        (true, _) => "traffic has moved away".to_owned(),
        (false, n) => format!("not ready; {} a second still pass here", many(n, "packet")),
    };
    let lead = if d.leader { ", and it is still the leader" } else { "" };
    passing + lead
}

/// How far a member is that turns traffic away.
#[derive(Serialize)]
pub(super) struct Draining {
    reason: &'static str,
    for_ms: u64,
    packets_per_second: u64,
    quiet: bool,
    leader: bool,
}

impl From<&v1::Draining> for Draining {
    fn from(d: &v1::Draining) -> Draining {
        let reason = match d.reason() {
            v1::DrainReason::Operator => "operator",
            v1::DrainReason::Leaving => "leaving",
            v1::DrainReason::Stopping => "stopping",
            v1::DrainReason::Unspecified => "unknown",
        };
        let v1::Draining { for_ms, packets_per_second, quiet, leader, .. } = *d;
        Draining { reason, for_ms, packets_per_second, quiet, leader }
    }
}

impl Draining {
    /// For the status: one line.
    pub(super) fn line(&self) -> String {
        let seconds = self.for_ms / 1000;
        let passing = many(self.packets_per_second, "packet");
        let lead = if self.leader { ", still the leader" } else { "" };
        format!("{} for {seconds} s, {passing} a second still pass here{lead}", self.reason)
    }
}

/// After `drain`.
///
/// # Errors
/// Standard output cannot be written.
pub fn drained(output: Output, d: &v1::Draining) -> Result<(), Failure> {
    answer(
        output,
        || Draining::from(d),
        |out| {
            if d.quiet {
                writeln!(
                    out,
                    "drained: traffic has moved away ({} in the last second)",
                    many(d.packets_per_second, "packet")
                )?;
            } else {
                writeln!(
                    out,
                    "drained, but traffic does not move away: {} passed here in the last second",
                    many(d.packets_per_second, "packet")
                )?;
                writeln!(out, "do the routers on both sides follow /readyz (or `palisade health`)?")?;
            }
            if d.leader {
                writeln!(out, "it is still the leader: no other voter has taken over; see `palisade cluster members`")?;
            }
            writeln!(out, "it forwards what still comes; `palisade undrain`, or a restart, takes traffic again")
        },
    )
}

#[derive(Serialize)]
struct Undrained<'a> {
    was_drained: bool,
    ready: bool,
    reasons: &'a [String],
}

/// After `undrain`.
///
/// # Errors
/// Standard output cannot be written.
pub fn undrained(output: Output, was_drained: bool, health: &v1::Health) -> Result<(), Failure> {
    let was = if was_drained { "undrained" } else { "was not drained: nothing to take back" };
    let now = match (health.ready, was_drained) {
        (true, true) => ": ready for traffic again".to_owned(),
        (true, false) => String::new(),
        (false, _) => format!("; but this member is NOT READY: {}", health.reasons.join("; ")),
    };
    answer(
        output,
        || Undrained { was_drained, ready: health.ready, reasons: &health.reasons },
        |out| writeln!(out, "{was}{now}"),
    )
}
