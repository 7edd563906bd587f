//! `palisade health`.

use std::process::ExitCode;

use palisade_proto::admin::v1;

use crate::args::Global;
use crate::client;
use crate::exit::{Exit, Failure};
use crate::print;

/// Arguments of `palisade health`: none.
#[derive(clap::Args, Debug)]
pub struct Args {}

/// Asks the member whether it is ready.
///
/// # Errors
/// The member cannot be reached.
pub fn run(global: &Global, _: &Args) -> Result<ExitCode, Failure> {
    crate::logging::start(global, "warn")?;
    client::with_member(global, async |mut client| {
        let health = client.health(v1::HealthRequest {}).await?.into_inner().health.unwrap_or_default();
        print::health::health(global.output, &health)?;
        Ok(if health.ready { ExitCode::SUCCESS } else { Exit::Failure.into() })
    })
}
