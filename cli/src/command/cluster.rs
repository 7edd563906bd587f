//! `palisade cluster`.

use std::io::Read;
use std::process::ExitCode;
use std::time::Duration;

use palisade_proto::admin::v1;

use crate::args::Global;
use crate::client::{self, within};
use crate::exit::{Exit, Failure};
use crate::print;

/// A joiner fetches the whole table first: with a million sessions some seconds, on a bad network some minutes.
const JOIN_DEADLINE: Duration = Duration::from_secs(600);
const DEADLINE: Duration = Duration::from_secs(30);

/// What to do with the cluster.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Make this machine the first member of a new cluster.
    Init,
    /// Print a join token, for `palisade cluster join` on a new machine.
    Token {
        /// How long it can be used: 90s, 30m, 1h.
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
        valid: Duration,
    },
    /// Join this machine to the cluster that the token is of.
    Join {
        /// The token that `palisade cluster token` printed on a member; `-` reads it from standard input.
        #[arg(value_name = "TOKEN")]
        token: String,
    },
    /// Take this machine out of its cluster.
    Leave {
        /// How long to be not ready first, so that routers send the traffic elsewhere.
        #[arg(long, value_name = "TIME", default_value = "3s", value_parser = duration)]
        drain: Duration,
    },
    /// Remove another member that is dead and will not come back.
    Remove {
        /// Its name.
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// List the members.
    Members,
    /// How this member is, and how it sees the cluster.
    Status,
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "write a number and its unit: 90s, 30m, 1h".to_owned();
    let at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(at);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    number.checked_mul(seconds).filter(|s| *s > 0).map(Duration::from_secs).ok_or_else(wrong)
}

/// Runs it.
///
/// # Errors
/// The member can not be reached or refuses.
pub fn run(global: &Global, command: Command) -> Result<ExitCode, Failure> {
    crate::logging::start(global, "warn")?;
    client::block_on(async {
        let mut client = client::connect(&global.socket).await?;
        let output = global.output;
        match command {
            Command::Init => {
                let answer = client.init(within(DEADLINE, v1::InitRequest {})).await?.into_inner();
                print::cluster::initialised(output, &answer)?;
            }
            Command::Token { valid } => {
                let valid_ms = u64::try_from(valid.as_millis()).unwrap_or(u64::MAX);
                let answer = client.token(within(DEADLINE, v1::TokenRequest { valid_ms })).await?.into_inner();
                print::cluster::token(output, &answer)?;
            }
            Command::Join { token } => {
                let token = if token == "-" { from_stdin()? } else { token };
                let answer = client.join(within(JOIN_DEADLINE, v1::JoinRequest { token })).await?.into_inner();
                print::cluster::joined(output, &answer)?;
            }
            Command::Leave { drain } => {
                let drain_ms = u64::try_from(drain.as_millis()).unwrap_or(u64::MAX);
                client.leave(within(DEADLINE + drain, v1::LeaveRequest { drain_ms })).await?;
                print::cluster::left(output)?;
            }
            Command::Remove { name } => {
                let request = within(DEADLINE, v1::RemoveRequest { member: name.clone() });
                let answer = client.remove(request).await?.into_inner();
                print::cluster::removed(output, &name, answer.member)?;
            }
            Command::Members => {
                let status = client.status(v1::StatusRequest {}).await?.into_inner();
                let membership = status.membership.ok_or_else(|| {
                    let help =
                        "make a cluster with `palisade cluster init`, or join one with `palisade cluster join TOKEN`";
                    Failure::new(Exit::Refused, "this machine is in no cluster", Some(help))
                })?;
                print::cluster::members(output, &membership)?;
            }
            Command::Status => {
                let status = client.status(v1::StatusRequest {}).await?.into_inner();
                print::cluster::status(output, &status)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn from_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    // A token is some hundred bytes.
    std::io::stdin().lock().take(64 << 10).read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}
