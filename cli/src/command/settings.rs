//! `palisade cluster settings`.

use std::time::Duration;

use palisade_proto::admin::v1;

use super::wait::Wait;
use crate::args::Output;
use crate::client::{Client, within};
use crate::exit::Failure;
use crate::print;

/// The time for a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// What to do with the settings.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Show the settings in force, who changed them last, and how many sessions each member affords.
    Show {
        /// Also show what another member acknowledged just now. Needs a quorum.
        #[arg(long)]
        barrier: bool,
        /// For a quorum.
        #[command(flatten)]
        wait: Wait,
    },
    /// Change settings on all members, at one place in the log.
    Set {
        /// Settings and their values, such as table.sessions=2000000 or lease.grace=10m.
        #[arg(value_name = "KEY=VALUE", required = true)]
        settings: Vec<String>,
        /// Only if this revision is in force: refuse if somebody else has changed the settings since.
        #[arg(long, value_name = "REVISION")]
        base: Option<u64>,
        /// A member that need not afford the new values; can be repeated. If it does not, it stops, and does not start until its
        /// limits.memory is raised.
        #[arg(long, value_name = "NAME")]
        without: Vec<String>,
        /// For a quorum.
        #[command(flatten)]
        wait: Wait,
    },
}

/// Runs it.
///
/// # Errors
/// The member refuses.
pub(super) async fn run(mut client: Client, output: Output, command: Command) -> Result<(), Failure> {
    match command {
        Command::Show { barrier, wait } => {
            let request = v1::SettingsShowRequest { barrier, wait_ms: wait.millis() };
            let answer = client.settings_show(within(wait.with(REQUEST_TIMEOUT), request)).await?.into_inner();
            print::settings::show(output, &answer)
        }
        Command::Set { settings, base, without, wait } => {
            let request = v1::SettingsSetRequest { settings, base, without, wait_ms: wait.millis() };
            let answer = client.settings_set(within(wait.with(REQUEST_TIMEOUT), request)).await?.into_inner();
            print::settings::set(output, &answer)
        }
    }
}
