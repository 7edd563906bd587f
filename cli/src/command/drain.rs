//! `palisade drain` and `palisade undrain`.

use std::process::ExitCode;
use std::time::Duration;

use palisade_proto::admin::v1;

use super::time::{self, millis};
use crate::args::Global;
use crate::client::{self, within};
use crate::exit::{Exit, Failure};
use crate::print;

/// The time for a request, besides the time that traffic may take to move away.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest wait for traffic to move away; the daemon waits no longer either.
pub(super) const MAX_DRAIN_TIMEOUT: Duration = Duration::from_secs(600);

/// Arguments of `palisade drain`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// How long to wait for traffic to move away; the member stays drained afterwards. At most 10m.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time::up_to(MAX_DRAIN_TIMEOUT))]
    pub timeout: Duration,
}

/// Turns traffic away, and waits until it has moved.
///
/// # Errors
/// The member cannot be reached or refuses.
pub fn drain(global: &Global, args: &Args) -> Result<ExitCode, Failure> {
    crate::logging::start(global, "warn")?;
    client::with_member(global, async |mut client| {
        let request = v1::DrainRequest { timeout_ms: millis(args.timeout) };
        let mut stream = client.drain(within(ANSWER_TIMEOUT + args.timeout, request)).await?.into_inner();
        let mut progress = print::drain::Progress::new(global.output);
        let mut last = None;
        while let Some(v1::DrainResponse { draining, done }) = stream.message().await? {
            draining.iter().for_each(|draining| progress.show(draining));
            if done {
                last = draining;
            }
        }
        drop(progress);
        let last = last.ok_or_else(|| Failure::new(Exit::Unreachable, "the member has stopped meanwhile", None))?;
        print::drain::drained(global.output, &last)?;
        Ok(if last.quiet && !last.leader { ExitCode::SUCCESS } else { Exit::Failure.into() })
    })
}

/// Takes traffic again.
///
/// # Errors
/// The member cannot be reached or refuses.
pub fn undrain(global: &Global) -> Result<ExitCode, Failure> {
    crate::logging::start(global, "warn")?;
    client::with_member(global, async |mut client| {
        let answer = client.undrain(within(ANSWER_TIMEOUT, v1::UndrainRequest {})).await?.into_inner();
        let health = answer.health.unwrap_or_default();
        print::drain::undrained(global.output, answer.was_drained, &health)?;
        Ok(ExitCode::SUCCESS)
    })
}
