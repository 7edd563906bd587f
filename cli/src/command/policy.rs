//! `palisade policy`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use palisade_engine::Level;
use palisade_engine::policy::Policy;
use palisade_proto::admin::v1;

use super::wait::Wait;
use crate::args::Global;
use crate::client::{self, Client, REQUEST_TIMEOUT, within};
use crate::exit::{Exit, Failure};
use crate::print;

/// The time for a policy that members have to compile first.
const APPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// What to do with the policy.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Check a policy without a running member: every error with its line and place.
    Check {
        /// The file; `-` is standard input.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Ask the member too: does it accept the policy, and do its interfaces have the zones?
        #[arg(long)]
        online: bool,
    },
    /// Put a policy in force on all members at once.
    Apply {
        /// The file; `-` is standard input.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Refuse unless this generation is in force, so that nobody's change is overwritten.
        #[arg(long, value_name = "GENERATION")]
        base: Option<u64>,
        /// Put it in force even if this member refuses to compile it; can be repeated. That member passes nothing new until it
        /// has compiled it.
        #[arg(long, value_name = "NAME")]
        without: Vec<String>,
        /// For a quorum.
        #[command(flatten)]
        wait: Wait,
    },
    /// Show a policy's text.
    Show {
        /// Which one; default: the one in force.
        #[arg(value_name = "GENERATION")]
        generation: Option<u64>,
        /// Ask the leader first, so that the answer is not older than the question.
        #[arg(long)]
        barrier: bool,
        /// For a quorum, with `--barrier`.
        #[command(flatten)]
        wait: Wait,
        /// Show the canonical form, not the text as it was applied.
        #[arg(long)]
        canonical: bool,
        /// Show how often each rule of the policy in force decided, and when last, on all members.
        #[arg(long, conflicts_with_all = ["generation", "barrier", "canonical"])]
        hits: bool,
    },
    /// List the last policies: generation, author, time.
    History {
        /// Ask the leader first, so that the answer is not older than the question.
        #[arg(long)]
        barrier: bool,
        /// For a quorum, with `--barrier`.
        #[command(flatten)]
        wait: Wait,
    },
    /// Print a policy in the one canonical form.
    Fmt {
        /// The file; `-` is standard input.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Write it back to the file.
        #[arg(long, conflicts_with = "check")]
        write: bool,
        /// Print nothing; exit code 1 if the file is not in canonical form.
        #[arg(long)]
        check: bool,
    },
    /// Show what applying this policy would change. Exit code 1 if it changes anything.
    Diff {
        /// The file; `-` is standard input.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Compare with this generation; default: the one in force.
        #[arg(long, value_name = "GENERATION")]
        generation: Option<u64>,
    },
}

/// Runs it.
///
/// # Errors
/// The policy is not valid, or the member cannot be reached or refuses.
pub fn run(global: &Global, command: Command) -> Result<ExitCode, Failure> {
    crate::logging::start(global, "warn")?;
    match command {
        Command::Check { file, online } => check(global, &file, online),
        Command::Apply { file, base, without, wait } => apply(global, &file, base, without, wait),
        Command::Show { hits: true, .. } => client::with_member(global, async |mut client| {
            let request = within(REQUEST_TIMEOUT, v1::PolicyHitsRequest {});
            print::policy::hits(global.output, &client.policy_hits(request).await?.into_inner())?;
            Ok(ExitCode::SUCCESS)
        }),
        Command::Show { generation, barrier, wait, canonical, hits: false } => {
            client::with_member(global, async |mut client| {
                let answer = shown(&mut client, generation, barrier, wait).await?;
                print::policy::show(global.output, &answer, canonical)?;
                Ok(ExitCode::SUCCESS)
            })
        }
        Command::History { barrier, wait } => client::with_member(global, async |mut client| {
            let request = v1::PolicyHistoryRequest { barrier, wait_ms: wait.millis() };
            let request = within(wait.with(REQUEST_TIMEOUT), request);
            let answer = client.policy_history(request).await?.into_inner();
            print::policy::history(global.output, &answer.policies)?;
            Ok(ExitCode::SUCCESS)
        }),
        Command::Fmt { file, write, check } => fmt(&file, write, check),
        Command::Diff { file, generation } => diff(global, &file, generation),
    }
}

/// A policy file that was read and is valid.
struct Source {
    name: String,
    text: String,
    policy: Policy,
}

fn read(file: &Path) -> Result<Source, Failure> {
    let (name, text) = if file == Path::new("-") {
        ("standard input".to_owned(), std::io::read_to_string(std::io::stdin().lock()))
    } else {
        (file.display().to_string(), std::fs::read_to_string(file))
    };
    let text = text.map_err(|e| {
        let help = match e.kind() {
            std::io::ErrorKind::InvalidData => Some("a policy is a UTF-8 text file; docs/policy.md describes it"),
            _ => None,
        };
        Failure::new(Exit::Failure, format!("the policy {name} cannot be read: {e}"), help)
    })?;
    // The same policy for machines: what `show -o json` prints as `policy`.
    let json = file.extension().is_some_and(|e| e == "json");
    let policy = if json { from_json(&name, &text)? } else { parse(&name, &text)? };
    let text = if json { policy.to_string() } else { text };
    Ok(Source { name, text, policy })
}

fn parse(name: &str, text: &str) -> Result<Policy, Failure> {
    Policy::parse(name, text).map_err(|e| Failure::diagnostic(Exit::Failure, e))
}

fn from_json(name: &str, text: &str) -> Result<Policy, Failure> {
    serde_json::from_str(text).map_err(|e| {
        let help = "the JSON form of a policy is what `palisade policy show -o json` prints as `policy`";
        Failure::new(Exit::Failure, format!("{name} is no valid policy: {e}"), Some(help))
    })
}

fn check(global: &Global, file: &Path, online: bool) -> Result<ExitCode, Failure> {
    let source = read(file)?;
    let level = Policy::needed_level(&source.text).unwrap_or(Level::HIGHEST);
    if !online {
        print::policy::checked(global.output, &source.name, &source.policy, level, None)?;
        return Ok(ExitCode::SUCCESS);
    }
    client::with_member(global, async |mut client| {
        let request = v1::PolicyCheckRequest { name: source.name.clone(), text: source.text };
        let answer = client.policy_check(request).await?.into_inner();
        print::policy::checked(global.output, &source.name, &source.policy, level, Some(&answer))?;
        Ok(ExitCode::SUCCESS)
    })
}

fn apply(
    global: &Global,
    file: &Path,
    base: Option<u64>,
    without: Vec<String>,
    wait: Wait,
) -> Result<ExitCode, Failure> {
    let source = read(file)?;
    let author = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_default();
    client::with_member(global, async |mut client| {
        let Source { name, text, policy } = source;
        let request = v1::PolicyApplyRequest { name, text, author, base, wait_ms: wait.millis(), without };
        let answer = client.policy_apply(within(wait.with(APPLY_TIMEOUT), request)).await?.into_inner();
        print::policy::applied(global.output, &policy, &answer)?;
        Ok(ExitCode::SUCCESS)
    })
}

async fn shown(
    client: &mut Client,
    generation: Option<u64>,
    barrier: bool,
    wait: Wait,
) -> Result<v1::PolicyShowResponse, Failure> {
    let request = v1::PolicyShowRequest { generation, barrier, wait_ms: wait.millis() };
    let request = within(wait.with(REQUEST_TIMEOUT), request);
    Ok(client.policy_show(request).await?.into_inner())
}

fn fmt(file: &Path, write: bool, check: bool) -> Result<ExitCode, Failure> {
    let source = read(file)?;
    let canonical = source.policy.to_string();
    if check {
        let same = canonical == source.text;
        return Ok(if same { ExitCode::SUCCESS } else { Exit::Failure.into() });
    }
    if write && file != Path::new("-") {
        if canonical != source.text {
            std::fs::write(file, &canonical)
                .map_err(|e| Failure::new(Exit::Failure, format!("{} cannot be written: {e}", source.name), None))?;
        }
    } else {
        print::out(|out| out.write_all(canonical.as_bytes()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn diff(global: &Global, file: &Path, generation: Option<u64>) -> Result<ExitCode, Failure> {
    let source = read(file)?;
    client::with_member(global, async |mut client| {
        let old = shown(&mut client, generation, false, Wait::default()).await?;
        let new = source.policy.to_string();
        let same = print::policy::diff(global.output, &old, &source.name, &new)?;
        Ok(if same { ExitCode::SUCCESS } else { Exit::Failure.into() })
    })
}
