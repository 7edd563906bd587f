//! `palisade cluster`.

use std::io::{BufRead, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use palisade_node::config::Config;
use palisade_node::replication::{IdentityError, RecoverError, Recovery};
use palisade_proto::admin::v1;

use crate::args::{Global, Output};
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
        /// How long to wait for traffic to move away; then it leaves all the same. At most 10m.
        #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
        timeout: Duration,
    },
    /// Remove another member that is dead and will not come back.
    Remove {
        /// Its name.
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// When a majority is lost for good: go on alone with what this machine has, as a new cluster. The daemon must be
    /// stopped. Says first what will be lost.
    Recover {
        /// The member's configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Do it, without asking for the member's name.
        #[arg(long)]
        yes: bool,
    },
    /// List the members.
    Members,
    /// How this member is, and how it sees the cluster.
    Status,
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A time as people write it: `90s`, `30m`, `1h`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
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
    if let Command::Recover { config, yes } = command {
        return recover(global, &config, yes);
    }
    client::with_member(global, async |mut client| {
        let output = global.output;
        match command {
            Command::Init => {
                let answer = client.init(within(DEADLINE, v1::InitRequest {})).await?.into_inner();
                print::cluster::initialised(output, &answer)?;
            }
            Command::Token { valid } => {
                let request = v1::TokenRequest { valid_ms: millis(valid) };
                let answer = client.token(within(DEADLINE, request)).await?.into_inner();
                print::cluster::token(output, &answer)?;
            }
            Command::Join { token } => {
                let token = if token == "-" { from_stdin()? } else { token };
                let answer = client.join(within(JOIN_DEADLINE, v1::JoinRequest { token })).await?.into_inner();
                print::cluster::joined(output, &answer)?;
            }
            Command::Leave { timeout } => {
                let request = v1::LeaveRequest { timeout_ms: millis(timeout) };
                let mut stream = client.leave(within(DEADLINE + timeout, request)).await?.into_inner();
                let mut progress = print::drain::Progress::new(output);
                while let Some(v1::LeaveResponse { draining, left: _ }) = stream.message().await? {
                    draining.iter().for_each(|draining| progress.show(draining));
                }
                drop(progress);
                print::cluster::left(output)?;
            }
            Command::Remove { name } => {
                let request = within(DEADLINE, v1::RemoveRequest { member: name.clone() });
                let answer = client.remove(request).await?.into_inner();
                print::cluster::removed(output, &name, answer.member)?;
            }
            // It needs no daemon: done above.
            Command::Recover { .. } => {}
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

/// Goes on alone, after it has said what that means and somebody has agreed.
fn recover(global: &Global, config: &Path, yes: bool) -> Result<ExitCode, Failure> {
    let config = Config::load(config).map_err(|e| Failure::diagnostic(Exit::Failure, e))?;
    client::block_on(async {
        let recovery = Recovery::prepare(&(&config).into()).await.map_err(|e| not_recovered(&e))?;
        let name = recovery.plan().name.clone();
        if !yes {
            print::recover::plan(global.output, recovery.plan())?;
            if !(global.output == Output::Table && agreed(&name)?) {
                let help = "if that is what you want: the same command with `--yes`";
                return Err(Failure::new(Exit::Refused, "not confirmed: nothing was changed", Some(help)));
            }
        }
        let plan = recovery.plan().clone();
        let recovered = recovery.carry_out().await.map_err(|e| not_recovered(&e))?;
        print::recover::done(global.output, &plan, &recovered)?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Has somebody at a terminal typed the member's name?
fn agreed(name: &str) -> Result<bool, Failure> {
    let mut stdin = std::io::stdin().lock();
    if !stdin.is_terminal() {
        return Ok(false);
    }
    eprint!("\ntype the name of this member to go on ({name}): ");
    let mut line = String::new();
    // Far above any name.
    stdin.by_ref().take(256).read_line(&mut line)?;
    Ok(line.trim() == name)
}

fn not_recovered(error: &RecoverError) -> Failure {
    let (exit, help) = match error {
        RecoverError::Identity(IdentityError::Locked(_)) => {
            (Exit::Refused, Some("stop the daemon first: `systemctl stop palisade`"))
        }
        RecoverError::NotMember | RecoverError::Removed | RecoverError::Alone | RecoverError::Majority { .. } => {
            (Exit::Refused, None)
        }
        RecoverError::Identity(_)
        | RecoverError::Store(_)
        | RecoverError::Task(_)
        | RecoverError::LostLog(_)
        | RecoverError::ClusterId(_)
        | RecoverError::Random(_) => (Exit::Failure, None),
    };
    Failure::new(exit, palisade_node::error::chain(error), help)
}

fn from_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    // A token is some hundred bytes.
    std::io::stdin().lock().take(64 << 10).read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}
