//! Child processes that nothing outlives.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What to start. Standard output and error go to one log file.
#[derive(Debug)]
pub struct Spawn {
    command: Command,
    program: OsString,
    log: PathBuf,
}

impl Spawn {
    /// A program, with what it says going to `log` (appended, so that a restart keeps the first life's words).
    #[must_use]
    pub fn new(program: impl AsRef<OsStr>, log: impl Into<PathBuf>) -> Spawn {
        let program = program.as_ref().to_owned();
        Spawn { command: Command::new(&program), program, log: log.into() }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Spawn {
        self.command.arg(arg);
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Spawn {
        self.command.args(args);
        self
    }

    /// An environment variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Spawn {
        self.command.env(key, value);
        self
    }

    /// The user and group to run as.
    #[must_use]
    pub fn user(mut self, uid: u32, gid: u32) -> Spawn {
        self.command.uid(uid).gid(gid);
        self
    }

    /// The working directory.
    #[must_use]
    pub fn current_dir(mut self, dir: impl AsRef<Path>) -> Spawn {
        self.command.current_dir(dir);
        self
    }

    /// Starts it in the namespace of the calling thread; see [`super::netns::Netns::start`].
    pub(super) fn start(mut self) -> Result<Process> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("the log {}", self.log.display()))?;
        let copy = log.try_clone().context("the log")?;
        self.command.stdin(Stdio::null()).stdout(log).stderr(copy);
        die_with_parent(&mut self.command);
        let name = self.program.to_string_lossy().into_owned();
        let child = self.command.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Process { child, name, log: self.log })
    }
}

/// Has the kernel kill the child when the thread that forked it ends, whatever becomes of our guards.
#[allow(unsafe_code, reason = "std has no safe way to do anything between fork and exec")]
fn die_with_parent(command: &mut Command) {
    let hook = || prctl::set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from);
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; the hook makes one system call,
    // and neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(hook);
    }
}

/// A running program; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// What it has said so far.
    #[must_use]
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It is gone already.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} has already ended: {status}; see {}", self.name, self.log.display());
        }
        // Not yet waited for, so the number still is this child's.
        let pid = i32::try_from(self.child.id()).context("a process id")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// Kills it with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// It had ended by itself, which the caller wants to know.
    pub fn kill(mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.child.wait().context("waiting for the killed")?;
        Ok(())
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// It did not within `limit`, or ended by a signal.
    pub async fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let waited = tokio::time::timeout(limit, async {
            loop {
                if let Some(status) = self.child.try_wait()? {
                    return Ok::<_, io::Error>(status);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        let Ok(status) = waited.await else {
            bail!("{} still runs after {limit:?}; see {}", self.name, self.log.display());
        };
        let status = status?;
        if let Some(signal) = status.signal() {
            bail!("{} was killed by signal {signal}; see {}", self.name, self.log.display());
        }
        Ok(status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it has gone already, which is all we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
