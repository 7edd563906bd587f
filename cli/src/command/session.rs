//! `palisade session`.

use std::process::ExitCode;
use std::time::Duration;

use palisade_engine::{Protocol, SessionId};
use palisade_proto::admin::v1;
use palisade_proto::admin::v1::session_watch_response::What;
use palisade_proto::convert::admin::{Prefix, SessionFilter};

use super::wait::Wait;
use crate::args::Global;
use crate::client::{self, within};
use crate::exit::{Exit, Failure};
use crate::print;

/// The time for `kill`.
const KILL_TIMEOUT: Duration = Duration::from_secs(60);

/// What to do with sessions.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// List the sessions of this member.
    List {
        /// Which ones.
        #[command(flatten)]
        filter: Filter,
        /// Maximum number of sessions to list.
        #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 0, hide_default_value = true)]
        limit: u64,
    },
    /// Show one session in full.
    Show {
        /// Its id, as `list` prints it.
        #[arg(value_name = "ID")]
        id: SessionId,
    },
    /// Print what the log does to sessions, as this member applies it, until interrupted.
    Watch {
        /// Which ones.
        #[command(flatten)]
        filter: Filter,
    },
    /// End sessions on all members, at once.
    #[command(group = clap::ArgGroup::new("which").required(true).multiple(true).args(["ids", "all", "proto", "src", "dst", "sport", "dport", "state", "zone"]))]
    Kill {
        /// Their ids, as `list` prints them.
        #[arg(value_name = "ID", conflicts_with_all = ["all", "proto", "src", "dst", "sport", "dport", "state", "zone"])]
        ids: Vec<SessionId>,
        /// Which ones.
        #[command(flatten)]
        filter: Filter,
        /// All sessions of the cluster.
        #[arg(long, conflicts_with_all = ["proto", "src", "dst", "sport", "dport", "state", "zone"])]
        all: bool,
        /// Tell both ends of TCP connections by RSTs.
        #[arg(long)]
        reset: bool,
        /// For a quorum.
        #[command(flatten)]
        wait: Wait,
    },
    /// Count the sessions of this member.
    Count {
        /// Which ones.
        #[command(flatten)]
        filter: Filter,
    },
}

/// Which sessions, as conntrack(8) has it: all that is given must match; addresses and ports are those that the client
/// sends.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Filter {
    /// tcp, udp, sctp, icmp, icmp6 or a number.
    #[arg(short, long, value_name = "PROTOCOL", value_parser = protocol)]
    pub proto: Option<Protocol>,
    /// The client's address or network.
    #[arg(short, long, value_name = "NET")]
    pub src: Option<Prefix>,
    /// The server's address or network.
    #[arg(short, long, value_name = "NET")]
    pub dst: Option<Prefix>,
    /// The client's port.
    #[arg(long, value_name = "PORT")]
    pub sport: Option<u16>,
    /// The server's port.
    #[arg(long, value_name = "PORT")]
    pub dport: Option<u16>,
    /// The state, as conntrack(8) names it, in any case.
    #[arg(long, value_name = "STATE", ignore_case = true, value_parser = STATES)]
    pub state: Option<String>,
    /// The zone of either side.
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<String>,
}

impl From<Filter> for v1::SessionFilter {
    fn from(f: Filter) -> v1::SessionFilter {
        SessionFilter {
            protocol: f.proto,
            src: f.src,
            dst: f.dst,
            src_port: f.sport,
            dst_port: f.dport,
            state: f.state,
            zone: f.zone,
        }
        .into()
    }
}

/// Every state that a session or half-open session can be in: of TCP first, then of everything else.
const STATES: [&str; 11] = [
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "UNREPLIED",
    "REPLIED",
    "ASSURED",
];

fn protocol(text: &str) -> Result<Protocol, String> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Protocol::TCP),
        "udp" => Ok(Protocol::UDP),
        "sctp" => Ok(Protocol::SCTP),
        "icmp" => Ok(Protocol::ICMP),
        "icmp6" | "icmpv6" => Ok(Protocol::ICMPV6),
        number => number
            .parse()
            .map(Protocol)
            .map_err(|_| "write tcp, udp, sctp, icmp, icmp6 or a number up to 255".to_owned()),
    }
}

/// Runs it.
///
/// # Errors
/// The member cannot be reached or refuses.
pub fn run(global: &Global, command: Command) -> Result<ExitCode, Failure> {
    crate::logging::start(global, "warn")?;
    client::with_member(global, async |mut client| {
        let output = global.output;
        match command {
            Command::List { filter, limit } => {
                let request = v1::SessionListRequest { filter: Some(filter.into()), limit };
                let mut stream = client.session_list(request).await?.into_inner();
                let mut list = print::session::List::new(output);
                while let Some(part) = stream.message().await? {
                    for session in part.sessions {
                        list.add(session.try_into()?)?;
                    }
                }
                list.finish()?;
            }
            Command::Show { id } => {
                let request = v1::SessionShowRequest { id: Some(id.into()) };
                let answer = client.session_show(request).await?.into_inner();
                let session = answer.session.ok_or(palisade_proto::convert::admin::AdminError::Missing("session"))?;
                print::session::show(output, &session.try_into()?, answer.rule_text.as_deref())?;
            }
            Command::Watch { filter } => {
                let request = v1::SessionWatchRequest { filter: Some(filter.into()) };
                let mut stream = client.session_watch(request).await?.into_inner();
                while let Some(part) = stream.message().await? {
                    match part.what {
                        Some(What::Event(event)) => print::session::event(output, event)?,
                        Some(What::Lost(n)) => print::session::lost(output, n)?,
                        None => {}
                    }
                }
                // A watch ends only with its member.
                return Err(Failure::new(Exit::Unreachable, "the member has stopped, or left its cluster", None));
            }
            Command::Kill { ids, filter, all: _, reset, wait } => {
                let filter = ids.is_empty().then(|| filter.into());
                let ids = ids.into_iter().map(Into::into).collect();
                let request = v1::SessionKillRequest { ids, filter, wait_ms: wait.millis(), reset };
                let request = within(wait.with(KILL_TIMEOUT), request);
                let answer = client.session_kill(request).await?.into_inner();
                print::session::killed(output, &answer, reset)?;
            }
            Command::Count { filter } => {
                let request = v1::SessionCountRequest { filter: Some(filter.into()) };
                let answer = client.session_count(request).await?.into_inner();
                print::session::count(output, &answer)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}
