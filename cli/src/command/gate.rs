//! `palisade gate`: works without a daemon, because the gate stays when the daemon dies.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use palisade_node::boot::install_gate;
use palisade_node::config::{Config, INJECT_DEVICE};
use palisade_node::datapath::Gate;
use palisade_proto::admin::v1;

use crate::args::Global;
use crate::client::{self, within};
use crate::exit::{Exit, Failure};
use crate::print;

/// What to do with the gate.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Show whether both locks of the gate are in place. Exit code 1 if one is missing, or the gate has a problem.
    Status {
        /// The configuration file that names the exempt interfaces (`bypass_interfaces`). Default: what the running daemon
        /// has, else /etc/palisade/node.toml.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Install the gate: from now on this machine forwards nothing that no daemon has judged. For the boot, before there is
    /// a network. If the configuration is not valid, a gate that is there stays, and a new one exempts no interface.
    Install {
        /// The configuration file that names the exempt interfaces (`bypass_interfaces`).
        #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
        config: PathBuf,
    },
    /// Remove the gate: this machine's kernel then forwards everything, UNFILTERED. Only while the daemon is stopped.
    Remove {
        /// Yes, forward everything unfiltered.
        #[arg(long)]
        yes: bool,
    },
}

/// The time for the question to the daemon.
const DAEMON_TIMEOUT: Duration = Duration::from_secs(5);
/// The configuration file that the systemd unit starts the daemon with.
const DEFAULT_CONFIG: &str = "/etc/palisade/node.toml";
const ROOT: &str = "run this as root, in the network namespace of the daemon";

/// Runs it.
///
/// # Errors
/// The gate cannot be read or removed, or the daemon still runs.
pub fn run(global: &Global, command: &Command) -> Result<ExitCode, Failure> {
    crate::logging::start(global, "warn")?;
    match command {
        Command::Status { config } => {
            let bypass_interfaces = match config {
                Some(file) => configured(file)?,
                None => bypass_interfaces(&global.socket, DEFAULT_CONFIG.as_ref())?,
            };
            let status = Gate::new(INJECT_DEVICE, &bypass_interfaces)
                .status()
                .map_err(|e| Failure::new(Exit::Failure, format!("the gate cannot be read: {e}"), Some(ROOT)))?;
            let whole = print::gate::status(global.output, &status)?;
            Ok(if whole { ExitCode::SUCCESS } else { Exit::Failure.into() })
        }
        Command::Install { config } => {
            let installed = install_gate(config)
                .map_err(|e| Failure::new(Exit::Failure, format!("the gate cannot be installed: {e}"), Some(ROOT)))?;
            print::gate::installed(global.output, &installed)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Remove { yes } => {
            if !yes {
                let help = "if that is what you want: `palisade gate remove --yes`";
                return Err(Failure::new(
                    Exit::Refused,
                    "without the gate this machine forwards everything unfiltered",
                    Some(help),
                ));
            }
            if std::os::unix::net::UnixStream::connect(&global.socket).is_ok() {
                let help = "stop the daemon first (`systemctl stop palisade`): it would put the gate back at once";
                return Err(Failure::new(Exit::Refused, "the daemon is running", Some(help)));
            }
            Gate::remove()
                .map_err(|e| Failure::new(Exit::Failure, format!("the gate cannot be removed: {e}"), Some(ROOT)))?;
            print::gate::removed(global.output)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The interfaces that the gate exempts: those of the running daemon, else those of the default configuration file, else
/// none.
fn bypass_interfaces(socket: &Path, default: &Path) -> Result<Vec<String>, Failure> {
    let asked = client::block_on(async {
        let mut client = client::connect(socket).await?;
        Ok(client.gate(within(DAEMON_TIMEOUT, v1::GateRequest {})).await?.into_inner().bypass_interfaces)
    });
    match asked {
        Ok(names) => Ok(names),
        // The gate can be read without the daemon.
        Err(_) if default.exists() => configured(default),
        Err(_) => Ok(Vec::new()),
    }
}

fn configured(file: &Path) -> Result<Vec<String>, Failure> {
    let config = Config::load(file).map_err(|e| Failure::diagnostic(Exit::Failure, e))?;
    Ok(config.datapath.bypass_interfaces)
}

#[cfg(test)]
mod tests {
    use palisade_node::Node;

    use super::*;

    fn free_port() -> u16 {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    fn write_config(dir: &Path, bypass: &str) -> PathBuf {
        let text = format!(
            "name = \"w1\"\nrole = \"witness\"\ndata_dir = {:?}\n[cluster]\nlisten = \"127.0.0.1:{}\"\n\
             [admin]\nsocket = {:?}\n[http]\nlisten = \"127.0.0.1:{}\"\n[datapath]\nbypass_interfaces = [\"{bypass}\"]\n",
            dir.join("data"),
            free_port(),
            dir.join("admin.sock"),
            free_port(),
        );
        let file = dir.join("node.toml");
        std::fs::write(&file, text).unwrap();
        file
    }

    #[test]
    fn gate_status_takes_bypass_interfaces_from_the_daemon_else_from_the_default_configuration() {
        let (running, stopped) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let default = write_config(stopped.path(), "wg1");
        let config = Config::load(&write_config(running.path(), "wg0")).unwrap();
        let socket = config.admin.socket.clone();

        assert_eq!(bypass_interfaces(&socket, &default).unwrap(), ["wg1"], "no daemon");
        assert!(bypass_interfaces(&socket, &stopped.path().join("none")).unwrap().is_empty(), "neither");

        let daemon = tokio::runtime::Runtime::new().unwrap();
        let node = daemon.spawn(Node::run(config));
        let mut polls = 0..6_000;
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(polls.next().is_some() && !node.is_finished(), "the daemon does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(bypass_interfaces(&socket, &default).unwrap(), ["wg0"]);
        node.abort();
    }
}
