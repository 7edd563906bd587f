//! The command line's grammar. Completions and man pages are generated from it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::command;

const EXIT_CODES: &str = "\
Exit codes:
  0  done (health: ready; diff: no difference)
  1  failed (health: not ready; diff: different; check: not valid)
  2  wrong usage
  3  the member cannot be reached, or has no quorum
  4  refused: not allowed, or not in this state
  5  there is no such session, policy or member
  6  of the daemon: another version of Palisade wrote what this one cannot read";

/// A stateful firewall cluster for Linux routers that is one active-active firewall.
#[derive(Parser, Debug)]
#[command(name = "palisade", version, after_long_help = EXIT_CODES, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    /// The options of all commands.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of all commands.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// The member's admin socket.
    #[arg(
        long,
        global = true,
        env = "PALISADE_SOCKET",
        value_name = "PATH",
        default_value = "/run/palisade/admin.sock",
        help_heading = "Global options"
    )]
    pub socket: PathBuf,
    /// How to print the answer (and, with json, the error).
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "table", help_heading = "Global options")]
    pub output: Output,
    /// What to log: a level, or `MODULE=LEVEL,…` such as `palisade_node=debug,info`; default: RUST_LOG, else info for
    /// `node` and warn for the rest.
    #[arg(long, global = true, value_name = "FILTER", help_heading = "Global options")]
    pub log: Option<String>,
    /// How to log (to standard error).
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text", help_heading = "Global options")]
    pub log_format: LogFormat,
}

/// How answers are printed.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// For machines: one JSON document; streams print one per line.
    Json,
}

/// How the log is written.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run a member of the cluster: the daemon.
    Node(command::node::Args),
    /// Check a member's configuration file.
    #[command(subcommand)]
    Config(command::config::Command),
    /// Create, join, leave and show the cluster.
    #[command(subcommand)]
    Cluster(command::cluster::Command),
    /// Check, apply and show the policy.
    #[command(subcommand)]
    Policy(command::policy::Command),
    /// List, watch and kill sessions.
    #[command(subcommand)]
    Session(command::session::Command),
    /// Print the connection log of all members, until interrupted.
    Log(command::log::Args),
    /// Turn traffic away from this member before maintenance: not ready, and leadership to another member.
    Drain(command::drain::Args),
    /// Take traffic again after `drain`.
    Undrain,
    /// Show whether this member is ready to carry traffic. Exit code 0 or 1.
    Health(command::health::Args),
    /// Compare the states of all members now. Exit code 0: all are equal.
    Audit(command::audit::Args),
    /// The lock that keeps this machine's kernel from forwarding past Palisade.
    #[command(subcommand)]
    Gate(command::gate::Command),
    /// A whole cluster on this machine, in network namespaces, with real traffic and real failures.
    #[cfg(feature = "demo")]
    Demo(crate::demo::Args),
    /// Print completions for a shell.
    Completions(command::completions::Args),
    /// Write man pages.
    Man(command::man::Args),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    fn accepts(line: &str) -> bool {
        Cli::try_parse_from(line.split_whitespace()).is_ok()
    }

    #[test]
    fn command_line_accepts_what_the_docs_show() {
        for line in [
            "palisade node --config node.toml",
            "palisade node --config node.toml --log debug --log-format json",
            "palisade config check node.toml",
            "palisade cluster init",
            "palisade cluster init --set table.sessions=2000000 --set lease.grace=10m",
            "palisade cluster settings show --barrier -o json",
            "palisade cluster settings set table.sessions=2000000 lease.grace=10m --base 3 --without fw2 --wait 10s",
            "palisade cluster token --valid 30m",
            "palisade cluster join TOKEN",
            "palisade cluster leave",
            "palisade cluster leave --timeout 10s",
            "palisade cluster remove fw3",
            "palisade cluster remove fw3 --yes --wait 30s",
            "palisade cluster update",
            "palisade audit",
            "palisade audit --wait 10s -o json",
            "palisade cluster update --member fw3 --name edge3 --address 10.9.1.3:7946",
            "palisade cluster update --advertise [2001:db8::3]:7946",
            "palisade cluster join --abandon TOKEN",
            "palisade cluster token --wait 30s",
            "palisade cluster recover --config node.toml --yes",
            "palisade cluster members -o json",
            "palisade --socket /tmp/s cluster status",
            "palisade policy check p.policy",
            "palisade policy check --online p.policy",
            "palisade policy apply p.policy --base 3",
            "palisade policy show 3",
            "palisade policy show --canonical",
            "palisade policy show --hits",
            "palisade log",
            "palisade log --event denied --rule default --local -n 10 -o json",
            "palisade policy history --barrier",
            "palisade policy fmt --check p.policy",
            "palisade policy diff p.policy",
            "palisade session list -p tcp -s 10.0.0.0/8 --dport 443 --state ESTABLISHED --zone dmz",
            "palisade session list --state time_wait -n 5",
            "palisade session show 2-1a3f",
            "palisade session watch --dst 2001:db8::1",
            "palisade session kill 2-1a3f 1-4",
            "palisade session kill -s 192.0.2.1",
            "palisade session kill --all",
            "palisade session count --proto udp",
            "palisade drain",
            "palisade drain --timeout 2m -o json",
            "palisade undrain",
            "palisade health",
            "palisade gate status",
            "palisade gate install",
            "palisade gate remove --yes",
            "palisade completions bash",
            "palisade man /tmp/man",
        ] {
            assert!(accepts(line), "{line}");
        }
    }

    #[test]
    fn command_line_refuses_invalid_values() {
        for line in [
            "palisade",
            "palisade node",
            "palisade session list --dport 65536",
            "palisade session list -p nonsense",
            "palisade session list -s 10.0.0.0/33",
            "palisade session list --state ESTABLISHD",
            "palisade session show 12",
            "palisade session kill",
            "palisade session kill 2-1a3f --all",
            "palisade session kill 2-1a3f -s 10.0.0.1",
            "palisade session kill --all -s 10.0.0.1",
            "palisade cluster token --valid soon",
            "palisade cluster token --valid 18446744073709551615s",
            "palisade cluster leave --timeout 18446744073709551615s",
            "palisade drain --timeout 18446744073709551615s",
            "palisade drain --timeout 11m",
            "palisade drain --timeout 0s",
            "palisade cluster token --wait 11m",
            "palisade cluster recover --yes",
            "palisade cluster settings set",
            "palisade policy fmt --check --write p.policy",
            "palisade policy show 3 --hits",
            "palisade log --event lost",
            "palisade health -o xml",
        ] {
            assert!(!accepts(line), "{line}");
        }
    }
}
