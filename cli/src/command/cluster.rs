//! `palisade cluster`.

use std::io::{BufRead, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use palisade_node::config::Config;
use palisade_node::replication::{IdentityError, RecoverError, Recovery};
use palisade_proto::admin::v1;

use super::drain::MAX_DRAIN_TIMEOUT;
use super::time::{self, millis};
use super::wait::Wait;
use crate::args::{Global, Output};
use crate::client::{self, within};
use crate::exit::{Exit, Failure};
use crate::print;

/// The time for a join. The new member fetches the whole table first: with a million sessions that takes seconds, on a bad
/// network minutes.
const JOIN_TIMEOUT: Duration = Duration::from_secs(660);
/// The time for any other request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest validity of a join token.
const MAX_TOKEN_TTL: Duration = Duration::from_secs(365 * 86_400);

/// What to do with the cluster.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Make this machine the first member of a new cluster.
    Init {
        /// A setting that is to differ from its default; can be repeated. `palisade cluster settings show` lists them.
        #[arg(long = "set", value_name = "KEY=VALUE")]
        settings: Vec<String>,
    },
    /// Print a join token, for `palisade cluster join` on a new machine.
    Token {
        /// How long it can be used: 90s, 30m, 1h. At most 365d.
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = time::up_to(MAX_TOKEN_TTL))]
        valid: Duration,
        /// For a quorum.
        #[command(flatten)]
        wait: Wait,
    },
    /// Join this machine to the cluster that the token is of. Waits until it votes, or says that it is a learner.
    Join {
        /// Give up the membership that this machine has, without asking its cluster: for a cluster that is lost, or cannot be
        /// reached. Remove the old member there, if it is still there.
        #[arg(long)]
        abandon: bool,
        /// The token that `palisade cluster token` printed on a member; `-` reads it from standard input.
        #[arg(value_name = "TOKEN")]
        token: String,
    },
    /// Take this machine out of its cluster.
    Leave {
        /// How long to wait for traffic to move away; then the member leaves anyway. At most 10m.
        #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time::up_to(MAX_DRAIN_TIMEOUT))]
        timeout: Duration,
        /// For a quorum.
        #[command(flatten)]
        wait: Wait,
    },
    /// Remove another member that is dead and will not come back. Asks before it removes one that answers.
    Remove {
        /// Its name.
        #[arg(value_name = "NAME")]
        name: String,
        /// Remove it although it answers, without asking.
        #[arg(long)]
        yes: bool,
        /// For a quorum.
        #[command(flatten)]
        wait: Wait,
    },
    /// Tell the cluster another name or another address of a member. Without options: what this member's node.toml says, after it
    /// was changed and the daemon restarted.
    Update {
        /// The member, by the name that it has now. Without this: the one that is asked.
        #[arg(long, value_name = "NAME")]
        member: Option<String>,
        /// Its new name. The same is to stand in its node.toml.
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Where the others reach it from now on. The same is to stand in its node.toml, as `cluster.advertise`.
        #[arg(long, value_name = "ADDRESS:PORT", visible_alias = "advertise")]
        address: Option<String>,
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
    /// The level in force: which commands and formats the members use together.
    Level {
        /// What to do with it.
        #[command(subcommand)]
        command: LevelCommand,
    },
    /// Show or change what all members do alike: sizes of tables, the grace of leases, who votes.
    #[command(subcommand)]
    Settings(super::settings::Command),
    /// List the members.
    Members,
    /// How this member is, and how it sees the cluster.
    Status,
}

/// What to do with the level in force.
#[derive(clap::Subcommand, Debug)]
pub enum LevelCommand {
    /// The level in force, and the levels that each member's program knows.
    Show,
    /// Raise it, after all members have been upgraded and nobody wants to go back: it cannot be lowered again, and programs that
    /// do not know the new level cannot be members any longer.
    Raise {
        /// The level that is to be in force.
        #[arg(value_name = "LEVEL")]
        level: u16,
        /// For a quorum.
        #[command(flatten)]
        wait: Wait,
    },
}

/// Runs it.
///
/// # Errors
/// The member cannot be reached or refuses.
pub fn run(global: &Global, command: Command) -> Result<ExitCode, Failure> {
    crate::logging::start(global, "warn")?;
    if let Command::Recover { config, yes } = command {
        return recover(global, &config, yes);
    }
    client::with_member(global, async |mut client| {
        let output = global.output;
        match command {
            Command::Init { settings } => {
                let answer = client.init(within(REQUEST_TIMEOUT, v1::InitRequest { settings })).await?.into_inner();
                print::cluster::initialised(output, &answer)?;
            }
            Command::Token { valid, wait } => {
                let request = v1::TokenRequest { valid_ms: millis(valid), wait_ms: wait.millis() };
                let answer = client.token(within(wait.with(REQUEST_TIMEOUT), request)).await?.into_inner();
                print::cluster::token(output, &answer)?;
            }
            Command::Join { abandon, token } => {
                let token = if token == "-" { from_stdin()? } else { token };
                let answer = client.join(within(JOIN_TIMEOUT, v1::JoinRequest { token, abandon })).await?.into_inner();
                print::cluster::joined(output, &answer)?;
            }
            Command::Leave { timeout, wait } => {
                let request = v1::LeaveRequest { timeout_ms: millis(timeout), wait_ms: wait.millis() };
                let mut stream =
                    client.leave(within(wait.with(REQUEST_TIMEOUT + timeout), request)).await?.into_inner();
                let mut progress = print::drain::Progress::new(output);
                while let Some(v1::LeaveResponse { draining, left: _ }) = stream.message().await? {
                    draining.iter().for_each(|draining| progress.show(draining));
                }
                drop(progress);
                print::cluster::left(output)?;
            }
            Command::Remove { name, yes, wait } => {
                let request = |alive_too| {
                    let request = v1::RemoveRequest { member: name.clone(), alive_too, wait_ms: wait.millis() };
                    within(wait.with(REQUEST_TIMEOUT), request)
                };
                let mut answer = client.remove(request(yes)).await?.into_inner();
                if answer.alive {
                    confirm_removal(output, &name)?;
                    answer = client.remove(request(true)).await?.into_inner();
                }
                print::cluster::removed(output, &name, answer.member)?;
            }
            Command::Update { member, name, address } => {
                if member.is_some() && name.is_none() && address.is_none() {
                    let help = "name it: `--name NEW`, `--address ADDRESS:PORT`, or both";
                    return Err(Failure::new(Exit::Usage, "nothing was said that is to change", Some(help)));
                }
                let request = v1::UpdateRequest { member, name, address };
                let answer = client.update(within(REQUEST_TIMEOUT, request)).await?.into_inner();
                print::cluster::updated(output, &answer)?;
            }
            // It needs no daemon: done above.
            Command::Recover { .. } => {}
            Command::Level { command: LevelCommand::Show } => {
                let status = client.status(v1::StatusRequest {}).await?.into_inner();
                let Some(membership) = &status.membership else { return Err(no_member(&status)) };
                print::level::show(output, membership)?;
            }
            Command::Level { command: LevelCommand::Raise { level, wait } } => {
                let request = v1::LevelRaiseRequest { level: level.into(), wait_ms: wait.millis() };
                let answer = client.level_raise(within(wait.with(REQUEST_TIMEOUT), request)).await?.into_inner();
                print::level::raised(output, &answer)?;
            }
            Command::Settings(command) => super::settings::run(client, output, command).await?,
            Command::Members => {
                let status = client.status(v1::StatusRequest {}).await?.into_inner();
                let Some(membership) = &status.membership else { return Err(no_member(&status)) };
                print::cluster::members(output, membership)?;
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

/// Why there are no members to list.
fn no_member(status: &v1::StatusResponse) -> Failure {
    match status.outside() {
        v1::Outside::Starting => {
            Failure::new(Exit::Refused, "this member is starting: it reads its log", Some("wait a moment"))
        }
        v1::Outside::Removed => {
            let help = "to come back as a new member: `palisade cluster join TOKEN`";
            Failure::new(
                Exit::Refused,
                format!("this machine was removed from cluster {}", status.removed_from),
                Some(help),
            )
        }
        v1::Outside::NoCluster | v1::Outside::Unspecified => {
            let help = "make a cluster with `palisade cluster init`, or join one with `palisade cluster join TOKEN`";
            Failure::new(Exit::Refused, "this machine is in no cluster", Some(help))
        }
    }
}

/// Asks, or refuses where nobody can be asked: the member to be removed answers.
fn confirm_removal(output: Output, name: &str) -> Result<(), Failure> {
    if output == Output::Table && std::io::stdin().is_terminal() {
        eprintln!(
            "{name} answers: it is alive. Removed like this, it drops all that passes it at once.\n\
             To lose nothing, run there instead: palisade cluster leave"
        );
        if typed("the name of the member to remove it nevertheless", name)? {
            return Ok(());
        }
        return Err(Failure::new(Exit::Refused, "not confirmed: nothing was changed", None));
    }
    let help = format!(
        "on {name}: `palisade cluster leave`, which moves traffic away first. To remove it nevertheless: `palisade cluster remove {name} --yes`"
    );
    Err(Failure::new(Exit::Refused, format!("{name} answers: it is alive, and was not removed"), Some(&help)))
}

/// Has somebody at a terminal typed the member's name?
fn agreed(name: &str) -> Result<bool, Failure> {
    Ok(std::io::stdin().is_terminal() && typed("the name of this member to go on", name)?)
}

fn typed(what: &str, name: &str) -> Result<bool, Failure> {
    let mut stdin = std::io::stdin().lock();
    eprint!("\ntype {what} ({name}): ");
    let mut line = String::new();
    // Far above any name.
    stdin.by_ref().take(256).read_line(&mut line)?;
    Ok(line.trim() == name)
}

fn not_recovered(error: &RecoverError) -> Failure {
    let exit = match error {
        RecoverError::Identity(IdentityError::Locked(_))
        | RecoverError::NotMember
        | RecoverError::Removed
        | RecoverError::Alone
        | RecoverError::Majority { .. } => Exit::Refused,
        RecoverError::Identity(_)
        | RecoverError::Store(_)
        | RecoverError::Task(_)
        | RecoverError::LostLog(_)
        | RecoverError::ClusterId(_)
        | RecoverError::Random(_) => Exit::Failure,
    };
    Failure::error(exit, error)
}

fn from_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    // A token is some hundred bytes.
    std::io::stdin().lock().take(64 << 10).read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}
