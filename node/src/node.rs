//! The composition of the daemon: what is started, in which order, and what ends with what.
//!
//! ```text
//!            node.toml                                       SIGTERM, SIGINT
//!                │                                                 │
//!  gate ──> [Daemon] ── admin socket ── http ── readiness ── watchdog      [run] waits
//!                │ the data folder has an identity, or `init`, `join`
//!                v
//!            [Member]: replication, then the datapath
//! ```
//!
//! **Order at the start.** The gate is installed first: if anything later fails, the machine forwards nothing. The datapath
//! starts only when the member's lease is valid for the first time, because it would drop every packet before that. If the
//! machine's settings forbid the datapath, the daemon ends with the reason and its remedy.
//!
//! **Order at the end.** The member is drained ([`crate::drain`]): not ready, and leadership to another member, while routers
//! turn away. Then the datapath stops, then the replication. The gate stays.
//!
//! **Tasks.** All of them end when the future of [`Node::run`] is dropped. One that ends by itself ends the daemon: without its
//! admin socket nobody could stop it in good order, without HTTP routers would not learn of its state. The same holds for the
//! tasks and threads of the member, of its replication and of its datapath. A panic while one connection is served ends that
//! connection only.
//!
//! | task | does | cancel-safe |
//! |---|---|---|
//! | `run` itself | waits for a signal or a failure | yes |
//! | admin server | answers the unix socket; one task a connection | an `init`, `join` or `leave` goes on in a task of its own |
//! | http server | `/metrics`, `/healthz`, `/readyz` | yes |
//! | the member's starter | waits for the lease, starts the datapath, ends the daemon if one of its threads dies | yes: a datapath that was started is stored or stopped |
//! | readiness | follows the grade of readiness, logs it, and announces it by kernel routes | yes |
//! | watchdog | tells systemd that all threads make progress | yes |

use std::collections::{BTreeSet, HashMap, HashSet};
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use miette::Diagnostic;
use nix::sys::stat::{Mode, umask};
use palisade_engine::Role;
use palisade_raft_store::Unreadable;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet, spawn_blocking};

use crate::admin::{self, SocketError};
use crate::clock;
use crate::config::{Config, INJECT_DEVICE};
use crate::daemon::Daemon;
use crate::datapath::{self, Gate};
use crate::http::{self, HttpState};
use crate::lab_panic;
use crate::listen::{ListenError, SecondLock};
use crate::member::{MemberEnd, MemberError, MemberFailure};
use crate::readiness;
use crate::replication::OpenError;
use crate::systemd;

/// Why the daemon did not start, or could not go on.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum NodeError {
    /// The gate.
    #[error("the gate cannot be installed, so this machine would forward unfiltered")]
    #[diagnostic(help(
        "the daemon needs CAP_NET_ADMIN and a kernel with CONFIG_IP_MULTIPLE_TABLES: run it as root, or from its systemd unit"
    ))]
    Gate(#[source] io::Error),
    /// The task that installs the gate panicked.
    #[error("the installation of the gate broke off")]
    GateTask(#[source] JoinError),
    /// The admin socket.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Socket(#[from] SocketError),
    /// The port of `/metrics`.
    #[error("the HTTP port cannot be opened")]
    #[diagnostic(transparent)]
    Http(#[from] ListenError),
    /// SIGTERM, SIGINT.
    #[error("the signal handlers cannot be installed")]
    Signals(#[source] io::Error),
    /// The member does not start.
    #[error("the member cannot be started")]
    #[diagnostic(transparent)]
    Start(#[from] MemberError),
    /// A task ended by itself.
    #[error("the task `{0}` ended")]
    #[diagnostic(help(
        "a bug: report what was logged before this. The gate is closed and nothing passes this machine until the daemon is started again; its systemd unit does so"
    ))]
    Task(&'static str),
    /// The admin socket's set-up panicked.
    #[error("the set-up of the admin socket broke off")]
    SocketTask(#[source] JoinError),
    /// The member ran and cannot go on.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Failure(#[from] MemberFailure),
}

impl NodeError {
    /// Whether the member cannot read what another version of Palisade has written. Starting it again changes nothing.
    #[must_use]
    pub fn is_unreadable(&self) -> bool {
        Unreadable::find(self).is_some()
    }
}

/// How long the daemon may take to stop, the time in which traffic moves away included. With what the process itself takes to
/// end, it is gone within five seconds.
const STOP_TIMEOUT: Duration = Duration::from_millis(4500);

/// The daemon.
#[derive(Debug)]
pub struct Node;

impl Node {
    /// Runs a member until SIGTERM or SIGINT. A second signal ends it at once.
    ///
    /// # Errors
    /// [`NodeError`]
    pub async fn run(config: Config) -> Result<(), NodeError> {
        let mut term = signal(SignalKind::terminate()).map_err(NodeError::Signals)?;
        let mut int = signal(SignalKind::interrupt()).map_err(NodeError::Signals)?;
        let stop = async move {
            tokio::select! { _ = term.recv() => {} _ = int.recv() => {} }
            (term, int)
        };
        Node::run_until(config, stop, |(mut term, mut int)| async move {
            tokio::select! { _ = term.recv() => {} _ = int.recv() => {} }
        })
        .await
    }

    /// As [`Node::run`], until `stop`. `force_stop` makes the future that cuts the graceful shutdown short, from what `stop`
    /// returns.
    async fn run_until<S, F: Future<Output = ()>>(
        config: Config,
        stop: impl Future<Output = S>,
        force_stop: impl FnOnce(S) -> F,
    ) -> Result<(), NodeError> {
        if let Some(name) = &config.lab.panic {
            lab_panic::set(name);
        }
        // The log and the snapshots hold the policy and who talks to whom. A service manager may set this too; a shell does not.
        umask(Mode::S_IRWXG | Mode::S_IRWXO);
        let gate = install_gate(&config).await?;
        let second_lock = second_lock(gate.as_ref());
        let http = http::Server::bind(&config.http, second_lock.clone())?;
        let path = config.admin.socket.clone();
        // It asks the name service for the group.
        let socket = spawn_blocking(move || admin::Socket::bind(&path)).await.map_err(NodeError::SocketTask)??;
        let (ends, mut ended) = mpsc::channel(4);
        let daemon = Arc::new(Daemon::new(config, gate, second_lock, ends));

        let mut tasks = Tasks::default();
        let pages: Arc<dyn HttpState> = daemon.clone();
        tasks.spawn("http", async move {
            http.serve(pages).await;
        });
        tasks.spawn("admin", admin::serve(socket, daemon.clone()));
        tasks.spawn("readiness", readiness::follow(daemon.clone()));
        tasks.spawn("watchdog", watchdog(daemon.clone()));

        match daemon.open().await {
            Ok(()) => {}
            Err(MemberError::Replication(OpenError::NotMember)) => {
                tracing::info!(
                    "this machine is in no cluster: `palisade cluster init` creates one, `palisade cluster join` joins one"
                );
            }
            Err(MemberError::Replication(OpenError::Removed(removed))) => tracing::error!("{}", with_help(&removed)),
            Err(e) => return Err(e.into()),
        }
        systemd::notify("READY=1");

        let mut stop = std::pin::pin!(stop);
        let force_stop = loop {
            tokio::select! {
                stopped = &mut stop => break force_stop(stopped),
                Some(end) = ended.recv() => match end {
                    // The daemon stays: it says what has happened, and joins again on request.
                    MemberEnd::Removed => tasks.spawn_once("removal", daemon.clone().on_removed()),
                    MemberEnd::Failed(failure) => {
                        systemd::notify("STOPPING=1");
                        daemon.close().await;
                        return Err(failure.into());
                    }
                },
                ended = tasks.ended() => {
                    systemd::notify("STOPPING=1");
                    daemon.close().await;
                    return Err(NodeError::Task(ended));
                }
            }
        };
        systemd::notify("STOPPING=1");
        let begin = clock::now();
        tokio::select! {
            () = daemon.graceful_shutdown() => {}
            () = force_stop => tracing::info!("a second signal: ending at once"),
        }
        // The store is whole at any moment, as after a crash: what hangs is not waited for.
        let left = STOP_TIMEOUT.saturating_sub(clock::now().since(begin));
        if tokio::time::timeout(left, daemon.close()).await.is_err() {
            tracing::warn!("not everything has ended within {STOP_TIMEOUT:?}: ending nevertheless");
        }
        tracing::info!("stopped; the gate stays");
        Ok(())
    }
}

/// An error with what to do about it, on one line.
fn with_help(error: &impl Diagnostic) -> String {
    error.help().map_or_else(|| error.to_string(), |help| format!("{error}; {help}"))
}

/// The daemon's own tasks, by name.
#[derive(Default)]
struct Tasks {
    set: JoinSet<()>,
    names: HashMap<tokio::task::Id, &'static str>,
    /// Those that may end.
    once: HashSet<tokio::task::Id>,
}

impl Tasks {
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.names.insert(self.set.spawn(lab_panic::task(name, task)).id(), name);
    }

    /// As [`Tasks::spawn`], of a task that has an end.
    fn spawn_once(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let id = self.set.spawn(lab_panic::task(name, task)).id();
        self.names.insert(id, name);
        self.once.insert(id);
    }

    /// Waits until one of them ends that should not, or panics. Cancel-safe.
    async fn ended(&mut self) -> &'static str {
        loop {
            let id = match self.set.join_next_with_id().await {
                Some(Ok((id, ()))) if self.once.remove(&id) => {
                    self.names.remove(&id);
                    continue;
                }
                Some(Ok((id, ()))) => id,
                Some(Err(error)) => {
                    tracing::error!(%error, "a task of the daemon died");
                    error.id()
                }
                None => return std::future::pending().await,
            };
            return self.names.get(&id).copied().unwrap_or("unnamed");
        }
    }
}

/// Installs the gate, but not on a witness: a witness forwards nothing for others. Its table has an owner as long as the
/// handle exists.
async fn install_gate(config: &Config) -> Result<Option<Gate>, NodeError> {
    if config.role == Role::Witness {
        return Ok(None);
    }
    let gate = Gate::new(INJECT_DEVICE, &config.datapath.bypass_interfaces);
    gate.set_data_interfaces(config.interfaces.iter().map(|interface| &interface.name));
    let installing = gate.clone();
    let installed = spawn_blocking(move || installing.install()).await.map_err(NodeError::GateTask)?;
    let installed = installed.map_err(NodeError::Gate)?;
    for problem in &installed.problems {
        tracing::warn!("the gate is not whole: {problem}");
    }
    match installed.nft {
        Ok(()) => tracing::info!("the gate is installed"),
        Err(error) => tracing::warn!(%error, "the gate is installed, but without its second lock (nftables)"),
    }
    Ok(Some(gate))
}

/// The gate's table, as the second lock of the listeners. A witness has none.
fn second_lock(gate: Option<&Gate>) -> SecondLock {
    let Some(gate) = gate.cloned() else { return SecondLock::default() };
    SecondLock::new(move |listeners| {
        let listener = |address: IpAddr, port: u16, indices: &BTreeSet<u32>| datapath::Listener {
            address,
            port,
            interfaces: indices.iter().copied().collect(),
        };
        let all = |(address, indices): &(SocketAddr, BTreeSet<u32>)| {
            // A socket on `[::]` also takes IPv4 connections.
            let v4 = (address.ip() == Ipv6Addr::UNSPECIFIED).then_some(Ipv4Addr::UNSPECIFIED.into());
            let addresses = std::iter::once(address.ip()).chain(v4);
            addresses.map(|ip| listener(ip, address.port(), indices)).collect::<Vec<_>>()
        };
        let listeners: Vec<_> = listeners.values().flat_map(all).collect();
        if let Err(error) = gate.set_listeners(&listeners) {
            tracing::warn!(%error, "the gate's table does not have the interfaces of the listeners: their socket filters do");
        }
    })
}

/// Tells systemd that the process lives, while no thread is stuck.
async fn watchdog(daemon: Arc<Daemon>) {
    let Some(interval) = systemd::watchdog_interval() else { return std::future::pending().await };
    loop {
        if daemon.stuck_threads().is_empty() {
            systemd::notify("WATCHDOG=1");
        }
        tokio::time::sleep(interval).await;
    }
}
