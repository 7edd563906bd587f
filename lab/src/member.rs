//! One member: its namespace, its files, its daemon.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use palisade_engine::Role;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use super::addr::{self, SIDES, Side};
use super::http::Connection;
use super::netns::{Netns, NsThread};
use super::process::{Process, Spawn};
use super::wait::WAIT;

/// The limit of an HTTP request. A daemon that is stopped does not answer.
const HTTP_TIMEOUT: Duration = Duration::from_secs(10);

/// What stands where Palisade should.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// The real thing.
    Palisade,
    /// The real thing, with hints and commits cut off: connections must be lost.
    CutReplication,
    /// Plain forwarding by the kernel: what the lab itself does to traffic.
    Baseline,
}

/// A member of the lab's cluster.
#[derive(Debug)]
pub struct Member {
    number: usize,
    name: String,
    mode: Mode,
    netns: Netns,
    binary: PathBuf,
    dir: PathBuf,
    role: Role,
    /// Where the others reach it.
    cluster: SocketAddr,
    life: Option<Running>,
}

#[derive(Debug)]
enum Running {
    Daemon(Process),
    /// In place of a daemon, somebody who answers that all is well.
    Baseline {
        readyz: Option<NsThread>,
    },
}

impl Member {
    /// A member that does not run yet.
    ///
    /// # Errors
    /// Its files cannot be written.
    pub fn new(number: usize, role: Role, mode: Mode, netns: Netns, binary: &Path, dir: &Path) -> Result<Member> {
        let name = format!("fw{number}");
        let dir = dir.join(&name);
        std::fs::create_dir_all(dir.join("data")).with_context(|| dir.display().to_string())?;
        let cluster = SocketAddr::new(addr::fabric(number), addr::CLUSTER_PORT);
        let member = Member { number, name, mode, netns, binary: binary.to_owned(), dir, role, cluster, life: None };
        member.write_config("")?;
        Ok(member)
    }

    /// Writes `node.toml`, with `extra` at its end.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_config(&self, extra: &str) -> Result<()> {
        let path = self.config();
        std::fs::write(&path, self.node_toml() + extra).with_context(|| path.display().to_string())
    }

    fn node_toml(&self) -> String {
        let cluster = self.cluster;
        let mut text = format!(
            "name = \"{}\"\ndata_dir = {:?}\nrole = \"{}\"\n\n[cluster]\nlisten = \"{cluster}\"\nadvertise = \"{cluster}\"\n\n\
             [admin]\nsocket = {:?}\n\n[http]\nlisten = \"0.0.0.0:{}\"\ninterfaces = {:?}\n",
            self.name,
            self.dir.join("data"),
            if self.role == Role::Witness { "witness" } else { "firewall" },
            self.socket(),
            addr::HTTP_PORT,
            // The routers' checks come by the data interfaces.
            if self.role == Role::Witness {
                vec!["eth-fabric"]
            } else {
                vec!["eth-fabric", "eth-client", "eth-server"]
            },
        );
        // Tests count connections that a member must not be given for long.
        text += "\n[readiness]\nhold_down = \"0s\"\n";
        for side in SIDES.into_iter().filter(|_| self.role == Role::Firewall) {
            text += &format!("\n[[interface]]\nname = \"{}\"\nzone = \"{}\"\n", side.interface(), side.zone());
        }
        if self.mode == Mode::CutReplication {
            text += "\n[lab]\ncut_replication = true\n";
        }
        text
    }

    /// Its number: 1, 2, ….
    #[must_use]
    pub fn number(&self) -> usize {
        self.number
    }

    /// Its name: fw1, fw2, ….
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its folder, with configuration, data and log.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of `node.toml`.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.join("node.toml")
    }

    /// The admin socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join("admin.sock")
    }

    /// The daemon's log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Whether its daemon runs, as far as we know.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.life.is_some()
    }

    /// The daemon's process id.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        match &self.life {
            Some(Running::Daemon(process)) => Some(process.pid()),
            _ => None,
        }
    }

    /// Exchanges the program, as a package does. A daemon that runs goes on with the one that it has until its next start.
    pub fn exchange(&mut self, binary: &Path) {
        binary.clone_into(&mut self.binary);
    }

    /// Moves the member to another address on its network between the members, beside the one that it has, and writes it into
    /// `node.toml`: the daemon has it from its next start on.
    ///
    /// # Errors
    /// The address is there already, or the file cannot be written.
    pub async fn move_to(&mut self, address: IpAddr) -> Result<()> {
        self.netns.netlink().add_address("eth-fabric", address, 24).await?;
        self.cluster = SocketAddr::new(address, addr::CLUSTER_PORT);
        self.write_config("")
    }

    /// Starts the daemon.
    ///
    /// # Errors
    /// It runs already, or cannot be started.
    pub async fn start(&mut self) -> Result<()> {
        if self.life.is_some() {
            bail!("{} runs already", self.name);
        }
        self.life = Some(if self.mode == Mode::Baseline {
            self.netns.sysctl("net/ipv4/ip_forward", "1").await?;
            self.netns.sysctl("net/ipv6/conf/all/forwarding", "1").await?;
            Running::Baseline { readyz: Some(answer_readyz(&self.netns).await?) }
        } else {
            // A socket that a killed daemon left is the daemon's own to clean up; that, too, is under test.
            let spawn = Spawn::new(&self.binary, self.log()).arg("node").arg("--config").arg(self.config());
            // The daemon's own choice of what to log, unless RUST_LOG is set here.
            Running::Daemon(self.netns.start(spawn.env("NO_COLOR", "1")).await?)
        });
        Ok(())
    }

    /// Kills the daemon with SIGKILL; when this returns it is gone.
    ///
    /// # Errors
    /// It did not run, or had died by itself.
    pub async fn kill(&mut self) -> Result<()> {
        match self.life.take() {
            Some(Running::Daemon(process)) => process.kill(),
            Some(Running::Baseline { .. }) => {
                self.netns.sysctl("net/ipv4/ip_forward", "0").await?;
                self.netns.sysctl("net/ipv6/conf/all/forwarding", "0").await
            }
            None => bail!("{} does not run", self.name),
        }
    }

    /// Sends a signal to the daemon, as SIGSTOP and SIGCONT.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        match &mut self.life {
            Some(Running::Daemon(process)) => process.signal(signal),
            _ => bail!("{} does not run", self.name),
        }
    }

    /// Asks the daemon to end (SIGTERM) and waits until it has.
    ///
    /// # Errors
    /// It does not run, does not end in time, or ends with an error.
    pub async fn terminate(&mut self, limit: Duration) -> Result<()> {
        match self.life.take() {
            Some(Running::Daemon(mut process)) => {
                if process.ended()?.is_none() {
                    process.signal(Signal::SIGTERM)?;
                }
                let status = process.wait(limit).await?;
                if status.success() { Ok(()) } else { bail!("{} ended with {status}", self.name) }
            }
            Some(life @ Running::Baseline { .. }) => {
                self.life = Some(life);
                self.kill().await
            }
            None => bail!("{} does not run", self.name),
        }
    }

    /// How the baseline says that it is no longer ready; it still forwards.
    pub(super) fn withdraw(&mut self) {
        if let Some(Running::Baseline { readyz }) = &mut self.life {
            readyz.take();
        }
    }

    /// Fails if the daemon has ended by itself.
    ///
    /// # Errors
    /// It has, with the end of its log.
    pub fn check(&mut self) -> Result<()> {
        if let Some(Running::Daemon(process)) = &mut self.life
            && let Some(status) = process.ended()?
        {
            let tail = tail(&self.log(), 15);
            self.life = None;
            bail!("{} has ended by itself: {status}. Its log, {}, ends with:\n{tail}", self.name, self.log().display());
        }
        Ok(())
    }

    /// Waits until the daemon takes commands.
    ///
    /// # Errors
    /// It does not within `limit`.
    pub async fn wait_up(&mut self, limit: Duration) -> Result<()> {
        self.wait_http("/healthz", limit).await
    }

    /// Waits until the daemon says that it is ready to forward.
    ///
    /// # Errors
    /// It does not within `limit`.
    pub async fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        self.wait_http("/readyz", limit).await
    }

    async fn wait_http(&mut self, path: &'static str, limit: Duration) -> Result<()> {
        let end = tokio::time::Instant::now() + limit;
        loop {
            self.check()?;
            if let Ok((200, _)) = self.http(path).await {
                return Ok(());
            }
            if tokio::time::Instant::now() > end {
                let tail = tail(&self.log(), 15);
                bail!("{}: {path} is not 200 after {limit:?}. Its log, {}:\n{tail}", self.name, self.log().display());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Asks the daemon over HTTP, from its own namespace.
    ///
    /// # Errors
    /// No answer within ten seconds.
    pub async fn http(&self, path: &str) -> Result<(u16, String)> {
        let (to, path) = (addr::http(self.number), path.to_owned());
        let ask = async move { Connection::open(to).await?.get(&path).await };
        let answer = self.netns.run(tokio::time::timeout(HTTP_TIMEOUT, ask)).await?;
        Ok(answer.with_context(|| format!("{} does not answer", self.name))??)
    }

    /// The sum of a metric's samples with these labels (each as `verdict="drop"`); zero if there is none.
    ///
    /// # Errors
    /// No answer.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        let (status, text) = self.http("/metrics").await?;
        if status != 200 {
            bail!("{}: /metrics answers {status}", self.name);
        }
        Ok(super::counters::metric(&text, name, labels)?.unwrap_or(0.0))
    }

    /// Runs a command of the CLI against this member and returns its standard output.
    ///
    /// # Errors
    /// It fails, with what it said, or takes too long.
    pub async fn cli(&self, args: &[&str]) -> Result<String> {
        let what = args.first().copied().unwrap_or_default();
        let mut command = Command::new(&self.binary);
        command.args(args).arg("--socket").arg(self.socket()).kill_on_drop(true);
        // Nobody can be asked.
        command.stdin(std::process::Stdio::null());
        // Where an administrator would run it: on the member's machine.
        let run = async move { tokio::time::timeout(WAIT, command.output()).await };
        let output = self.netns.run(run).await?;
        let output = output.with_context(|| format!("palisade {what} … takes too long"))??;
        if !output.status.success() {
            let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            bail!("palisade {} at {}: {}\n{out}{err}", args.join(" "), self.name, output.status);
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// `palisade cluster status -o json`.
    ///
    /// # Errors
    /// As [`Member::cli`]; or it is no JSON.
    pub async fn status(&self) -> Result<Value> {
        let text = self.cli(&["cluster", "status", "-o", "json"]).await?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }
}

/// The last lines of a log, for error messages.
fn tail(path: &Path, lines: usize) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Answers every request with 200, as a ready member would; on a thread of its own, so that all ends with it.
async fn answer_readyz(netns: &Netns) -> Result<NsThread> {
    let thread = netns.thread("readyz")?;
    let listener = thread.run(TcpListener::bind(("0.0.0.0", addr::HTTP_PORT))).await?.context("the baseline's port")?;
    thread.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    });
    Ok(thread)
}

async fn answer(mut stream: TcpStream) {
    let mut request = [0; 1024];
    while let Ok(1..) = stream.read(&mut request).await {
        if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.is_err() {
            return;
        }
    }
}

impl Member {
    /// The sysctls that the documentation asks of a router: it forwards, and leaves sources to Palisade.
    pub(super) async fn prepare(&self) -> Result<()> {
        for (key, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv6/conf/default/forwarding", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ] {
            self.netns.sysctl(key, value).await?;
        }
        Ok(())
    }

    /// The routes to the networks behind the two routers.
    pub(super) async fn add_routes(&self) -> Result<()> {
        for side in SIDES {
            let netlink = self.netns.netlink();
            let ifindex = netlink.index(side.interface()).await?;
            for (network, (via, _)) in side.networks().into_iter().zip(side.link(self.number, 1)) {
                netlink.replace_route(network, None, &[super::netlink::NextHop { via, ifindex }]).await?;
            }
        }
        Ok(())
    }

    /// Where the router on `side` asks whether this member is ready.
    pub(super) fn readyz(&self, side: Side) -> SocketAddr {
        SocketAddr::new(side.link(self.number, 2)[0].0, addr::HTTP_PORT)
    }
}
