//! `palisade audit`.

use std::process::ExitCode;
use std::time::Duration;

use palisade_proto::admin::v1;

use super::wait::Wait;
use crate::args::Global;
use crate::client::{self, within};
use crate::exit::{Exit, Failure};
use crate::print;

/// The time for the request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Arguments of `palisade audit`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// For a quorum.
    #[command(flatten)]
    wait: Wait,
}

/// Compares the states of all members.
///
/// # Errors
/// The member cannot be reached, or has no quorum.
pub fn run(global: &Global, args: &Args) -> Result<ExitCode, Failure> {
    crate::logging::start(global, "warn")?;
    client::with_member(global, async |mut client| {
        let request = v1::AuditRequest { wait_ms: args.wait.millis() };
        let answer = client.audit(within(args.wait.with(REQUEST_TIMEOUT), request)).await?.into_inner();
        let equal = print::audit::audit(global.output, &answer)?;
        Ok(if equal { ExitCode::SUCCESS } else { Exit::Failure.into() })
    })
}
