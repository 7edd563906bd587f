//! PostgreSQL and pgbench: a database with connections that stay.

use std::net::IpAddr;
use std::os::unix::fs::chown;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use nix::unistd::User;
use palisade_lab::program;
use palisade_lab::{Lab, Process, Spawn};
use tempfile::TempDir;

use palisade_lab::program::{path, wait_port};
use palisade_lab::{WAIT, wait_until};

/// What it needs.
pub const PROGRAMS: &[&str] = &["postgres", "initdb", "pgbench"];

/// Where it listens.
pub const PORT: u16 = 5432;

/// A database server on the server's side, gone when dropped.
#[derive(Debug)]
pub struct Postgres {
    // The process before its folder.
    process: Process,
    _dir: TempDir,
}

/// What pgbench found.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Transactions done.
    pub transactions: u64,
    /// Transactions that failed.
    pub failed: u64,
    /// All it said.
    pub text: String,
}

impl Postgres {
    /// Makes a cluster of databases and starts it, as the user `postgres`, since it refuses to be root.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start(lab: &Lab) -> Result<Postgres> {
        let user = User::from_name("postgres")?.context("there is no user postgres")?;
        let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
        // Not in the lab's folder, which only root may enter.
        let dir = tempfile::Builder::new().prefix("palisade-postgres-").tempdir()?;
        chown(dir.path(), Some(uid), Some(gid))?;
        let data = dir.path().join("data");
        let start = |program, log: &str| -> Result<Spawn> {
            Ok(Spawn::new(path(program)?, dir.path().join(log)).user(uid, gid).current_dir(dir.path()))
        };
        let init = start("initdb", "initdb.log")?.args(["-A", "trust", "-U", "postgres", "--no-sync", "-D"]).arg(&data);
        let mut init = lab.server().start(init).await?;
        if !init.wait(WAIT).await?.success() {
            bail!("initdb failed:\n{}", init.output());
        }
        let hba = data.join("pg_hba.conf");
        std::fs::write(&hba, "host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n")?;
        let settings = [
            "listen_addresses=*".to_owned(),
            format!("port={PORT}"),
            format!("unix_socket_directories={}", dir.path().display()),
            "fsync=off".to_owned(),
            "log_connections=on".to_owned(),
            "max_connections=50".to_owned(),
        ];
        let mut postgres = start("postgres", "postgres.log")?.arg("-D").arg(&data);
        for setting in settings {
            postgres = postgres.arg("-c").arg(setting);
        }
        let mut process = lab.server().start(postgres).await?;
        wait_port(lab.server(), &mut process, PORT).await.context("postgres")?;
        // It listens before it is ready to serve.
        let ready = async || Ok(process.output().contains("ready to accept connections"));
        wait_until("postgres to be ready", ready).await.with_context(|| process.output())?;
        Ok(Postgres { process, _dir: dir })
    }

    /// How many connections it has accepted so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.process.output().lines().filter(|l| l.contains("connection authorized")).count()
    }
}

/// Makes pgbench's tables, from the client's side.
///
/// # Errors
/// It fails.
pub async fn prepare(lab: &Lab, to: IpAddr) -> Result<()> {
    pgbench(lab, to, WAIT, &["-i", "-q", "-s", "5"]).await.map(drop)
}

/// pgbench over connections that it keeps, while the test does other things, until it is told to finish.
#[derive(Debug)]
pub struct Run {
    process: Process,
}

/// It ends by itself after this time, in seconds, if nobody tells it to.
const LONGEST_RUN: &str = "3600";

impl Run {
    /// Starts it on the client's side.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start(lab: &Lab, to: IpAddr, clients: u32) -> Result<Run> {
        let (to, port, clients) = (to.to_string(), PORT.to_string(), clients.to_string());
        let spawn = Spawn::new(path("pgbench")?, lab.dir().join("pgbench"))
            .args(["-h", &to, "-p", &port, "-U", "postgres", "-P", "1"])
            .args(["-n", "-c", &clients, "-j", "1", "-T", LONGEST_RUN, "postgres"]);
        Ok(Run { process: lab.client().start(spawn).await? })
    }

    /// Transactions so far, by what it says every second.
    fn transactions(&self) -> u64 {
        // "progress: 5.0 s, 1203.4 tps, lat 8.2 ms stddev 2.5, 0 failed"
        let rates = self.process.output();
        let rates =
            rates.lines().filter_map(|l| l.strip_prefix("progress: ")?.split_once(" tps,")?.0.split_once(" s, "));
        rates.filter_map(|(_, rate)| rate.parse::<f64>().ok()).sum::<f64>() as u64
    }

    /// Waits until it has done this many more transactions.
    ///
    /// # Errors
    /// It does not within [`WAIT`].
    pub async fn transact(&self, count: u64) -> Result<()> {
        let wanted = self.transactions() + count;
        let done = wait_until("transactions", async || Ok(self.transactions() >= wanted)).await;
        done.with_context(|| self.process.output())
    }

    /// Has it finish in good order, as at the end of its time, and answers what it found.
    ///
    /// # Errors
    /// It failed: with a lost connection, it does.
    pub async fn finish(mut self) -> Result<Outcome> {
        // What its own timer would send.
        self.process.signal(Signal::SIGALRM).with_context(|| self.process.output())?;
        let status = self.process.wait(WAIT).await?;
        let text = self.process.output();
        if !status.success() {
            bail!("pgbench: {status}\n{text}");
        }
        parse(text)
    }
}

async fn pgbench(lab: &Lab, to: IpAddr, limit: Duration, args: &[&str]) -> Result<String> {
    let (to, port) = (to.to_string(), PORT.to_string());
    let all: Vec<&str> =
        ["-h", &to, "-p", &port, "-U", "postgres"].iter().chain(args).copied().chain(["postgres"]).collect();
    program::run(lab.client(), lab.dir(), limit, "pgbench", &all).await
}

fn parse(text: String) -> Result<Outcome> {
    let number = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|l| l.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let transactions = number("number of transactions actually processed:");
    let transactions = transactions.with_context(|| format!("pgbench said:\n{text}"))?;
    // Older ones do not count failures: they end with the first.
    let failed = number("number of failed transactions:").unwrap_or(0);
    if text.contains("aborted") {
        bail!("a client of pgbench gave up:\n{text}");
    }
    Ok(Outcome { transactions, failed, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_words_are_understood() {
        let text = "number of transactions actually processed: 812\nnumber of failed transactions: 2 (0.246%)\n";
        let outcome = parse(text.to_owned()).unwrap();
        assert_eq!((outcome.transactions, outcome.failed), (812, 2));
        assert!(parse(format!("{text}pgbench: error: client 3 aborted in command 1")).is_err());
        assert!(parse(String::new()).is_err());
    }
}
