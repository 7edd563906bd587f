//! `palisade log`: the connection log.

use std::process::ExitCode;

use palisade_proto::admin::v1;
use palisade_proto::admin::v1::log_response::What;

use crate::args::Global;
use crate::client;
use crate::exit::{Exit, Failure};
use crate::print;

/// Arguments of `palisade log`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Only events of this kind.
    #[arg(long, value_name = "EVENT", value_parser = ["opened", "denied", "closed"])]
    pub event: Option<String>,
    /// Only events of the rule with this name; `default` is the default action.
    #[arg(long, value_name = "NAME")]
    pub rule: Option<String>,
    /// Only what this member logs, not the others.
    #[arg(long)]
    pub local: bool,
    /// End after this many events.
    #[arg(short = 'n', long, value_name = "COUNT")]
    pub limit: Option<u64>,
}

/// Prints events of connections until interrupted.
///
/// # Errors
/// The member cannot be reached or refuses.
pub fn run(global: &Global, args: &Args) -> Result<ExitCode, Failure> {
    crate::logging::start(global, "warn")?;
    client::with_member(global, async |mut client| {
        let mut left = args.limit.unwrap_or(u64::MAX);
        let mut stream = client.log(v1::LogRequest { local: args.local }).await?.into_inner();
        while left > 0
            && let Some(answer) = stream.message().await?
        {
            match answer.what {
                Some(What::Event(event)) if wanted(args, &event) => {
                    print::log::event(global.output, &event)?;
                    left -= 1;
                }
                Some(What::Lost(loss)) => print::log::lost(global.output, &loss)?,
                Some(What::Member(member)) => print::log::member(global.output, &member)?,
                Some(What::Event(_)) | None => {}
            }
        }
        match left {
            0 => Ok(ExitCode::SUCCESS),
            // It ends only with its member.
            _ => Err(Failure::new(Exit::Unreachable, "the member has stopped, or left its cluster", None)),
        }
    })
}

fn wanted(args: &Args, event: &v1::ConnectionEvent) -> bool {
    // What was left out may have been of this kind.
    let kind = args.event.as_ref().is_none_or(|kind| *kind == event.event || event.tuple.is_none());
    kind && args.rule.as_ref().is_none_or(|rule| *rule == event.rule)
}
