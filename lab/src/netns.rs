//! Network namespaces held by a file descriptor, each with threads of its own.
//!
//! A network namespace belongs to a thread, not to a process, and a socket belongs to the namespace in which it was
//! made. So every namespace has a thread that entered it and drives a small runtime: netlink sockets, sysctls, child
//! processes and traffic all start there. Nothing has a name in the file system, so nothing can be left behind: the
//! namespace is gone with the last descriptor, socket and process in it.

use std::fs::File;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use super::netlink::Netlink;
use super::process::{Process, Spawn};

/// A network namespace; cheap to clone, gone with its last clone.
#[derive(Clone, Debug)]
pub struct Netns {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    file: Arc<File>,
    keeper: NsThread,
    netlink: Netlink,
}

/// One thread inside a namespace, driving a single-threaded runtime until it is dropped.
#[derive(Debug)]
pub struct NsThread {
    handle: Handle,
    // Dropping the sender ends the thread.
    _stop: oneshot::Sender<()>,
}

impl NsThread {
    /// Starts a thread that first does `enter` and then runs tasks. The error of `enter` is the error of this.
    fn start<T: Send + 'static>(
        name: String,
        enter: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<(NsThread, T)> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (started, wait) = mpsc::sync_channel(1);
        thread::Builder::new()
            .name(name)
            .spawn(move || {
                let entered = enter().and_then(|value| {
                    Ok((Builder::new_current_thread().enable_all().build().context("a runtime")?, value))
                });
                match entered {
                    Ok((runtime, value)) => {
                        if started.send(Ok((runtime.handle().clone(), value))).is_ok() {
                            // The error is the sender's being dropped, which is the very signal.
                            let _ = runtime.block_on(stopped);
                        }
                        runtime.shutdown_background();
                    }
                    Err(e) => drop(started.send(Err(e))),
                }
            })
            .context("a thread")?;
        let (handle, value) = wait.recv().map_err(|_| anyhow!("the thread of a namespace ended at once"))??;
        Ok((NsThread { handle, _stop: stop }, value))
    }

    /// Runs a task on this thread.
    pub fn spawn<F>(&self, task: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.handle.spawn(task)
    }

    /// Runs a task on this thread and waits for it.
    ///
    /// # Errors
    /// The task was cancelled, because the thread ended, or panicked.
    pub async fn run<F>(&self, task: F) -> Result<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.handle.spawn(task).await.context("a task in a namespace")
    }
}

impl Netns {
    /// Makes a namespace with its loopback up.
    ///
    /// # Errors
    /// The kernel does not allow it.
    pub async fn new(name: &str) -> Result<Netns> {
        let (keeper, file) = NsThread::start(format!("ns {name}"), || {
            unshare(CloneFlags::CLONE_NEWNET).context("a new network namespace (needs CAP_SYS_ADMIN)")?;
            File::open("/proc/thread-self/ns/net").context("/proc/thread-self/ns/net")
        })?;
        let netlink = keeper.run(async { Netlink::open() }).await?.context("netlink")?;
        let netns = Netns { inner: Arc::new(Inner { name: name.to_owned(), file: Arc::new(file), keeper, netlink }) };
        netns.netlink().up("lo").await?;
        Ok(netns)
    }

    /// Its name in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Routes, links and addresses of this namespace.
    #[must_use]
    pub fn netlink(&self) -> &Netlink {
        &self.inner.netlink
    }

    /// The descriptor, to move links here.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.inner.file
    }

    /// A path that `nsenter --net=` understands, as long as this process lives.
    #[must_use]
    pub fn path(&self) -> String {
        use std::os::fd::AsRawFd;
        format!("/proc/{}/fd/{}", std::process::id(), self.inner.file.as_raw_fd())
    }

    /// A further thread in this namespace, for traffic that must not delay anything else.
    ///
    /// # Errors
    /// No thread, or no permission to enter.
    pub fn thread(&self, purpose: &str) -> Result<NsThread> {
        let file = Arc::clone(&self.inner.file);
        let name = self.inner.name.clone();
        let thread = NsThread::start(format!("{name} {purpose}"), move || {
            setns(&*file, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering the namespace {name}"))
        })?;
        Ok(thread.0)
    }

    /// Runs a task on the namespace's own thread.
    pub fn spawn<F>(&self, task: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.inner.keeper.spawn(task)
    }

    /// Runs a task inside the namespace and waits for it.
    ///
    /// # Errors
    /// The task panicked.
    pub async fn run<F>(&self, task: F) -> Result<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.inner.keeper.run(task).await
    }

    /// Starts a program inside the namespace. It is killed when the guard is dropped, and by the kernel when this
    /// process dies.
    ///
    /// # Errors
    /// The program cannot be started.
    pub async fn start(&self, spawn: Spawn) -> Result<Process> {
        // Must be the keeper: the kernel sends the "parent died" signal when the *thread* that forked ends.
        self.run(async move { spawn.start() }).await?
    }

    /// Writes one sysctl of this namespace, as `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// The kernel has no such sysctl, or does not take the value.
    pub async fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        // /proc/sys/net shows the namespace of the thread that opens it.
        let path = format!("/proc/sys/{key}");
        let (at, text) = (path.clone(), value.to_owned());
        self.run(async move { std::fs::write(at, text) }).await?.with_context(|| format!("{path} = {value}"))
    }

    /// Writes a sysctl that not every kernel has.
    pub async fn sysctl_if_any(&self, key: &str, value: &str) {
        // These are optional; callers that need the value use `sysctl`.
        let _ = self.sysctl(key, value).await;
    }

    /// Reads a file of `/proc/net` as this namespace has it.
    ///
    /// # Errors
    /// There is no such file.
    pub async fn proc_net(&self, file: &str) -> Result<String> {
        // /proc/net is the main thread's, which is elsewhere.
        let path = format!("/proc/thread-self/net/{file}");
        let read: io::Result<String> = self.run(async move { std::fs::read_to_string(path) }).await?;
        read.with_context(|| format!("/proc/net/{file}"))
    }
}
