//! How the apply path tells workers which held packets may go on.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};
use palisade_engine::packet_loop::WokenKeys;
use palisade_engine::{HoldKey, Wake, WorkerSet};
use parking_lot::Mutex;

/// Keys that a mailbox keeps. What comes beyond means "judge everything again", which is right too, only slower.
const KEYS: usize = 4096;

/// One worker's mailbox.
#[derive(Debug)]
struct Mailbox {
    /// Locked only to push one key or to take all.
    keys: Mutex<Vec<HoldKey>>,
    overflow: AtomicBool,
    /// Something is there. Set by the sender, cleared by the worker before it looks: so a busy worker needs no system
    /// call, and a sender rings only once.
    pending: AtomicBool,
    notify_fd: EventFd,
}

/// Wakes held packets at the datapath's workers. A handle: clones wake the same workers. It can be made before the
/// datapath starts; what is woken meanwhile waits for it.
#[derive(Clone, Debug)]
pub struct WorkerWake {
    mailboxes: Arc<[Mailbox]>,
}

impl WorkerWake {
    /// Mailboxes for this many workers.
    ///
    /// # Errors
    /// The process may open no more files.
    pub fn new(workers: usize) -> io::Result<WorkerWake> {
        let mailboxes = (0..workers).map(|_| {
            Ok(Mailbox {
                keys: Mutex::new(Vec::with_capacity(KEYS)),
                overflow: AtomicBool::new(false),
                pending: AtomicBool::new(false),
                notify_fd: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            })
        });
        Ok(WorkerWake { mailboxes: mailboxes.collect::<io::Result<_>>()? })
    }

    /// The workers.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.mailboxes.len()
    }

    /// Sends one key to the workers in the set.
    pub fn send(&self, workers: WorkerSet, key: HoldKey) {
        for worker in workers.iter() {
            let Some(mailbox) = self.mailboxes.get(usize::from(worker)) else { return };
            let mut keys = mailbox.keys.lock();
            if keys.len() < KEYS {
                keys.push(key);
            } else {
                mailbox.overflow.store(true, Ordering::Relaxed);
            }
            drop(keys);
            mailbox.notify();
        }
    }

    /// Makes a worker look up from its poll.
    pub(crate) fn notify(&self, worker: usize) {
        if let Some(mailbox) = self.mailboxes.get(worker) {
            mailbox.notify();
        }
    }

    /// Is something there for this worker? To be asked often.
    pub(crate) fn pending(&self, worker: usize) -> bool {
        self.mailboxes.get(worker).is_some_and(|m| m.pending.load(Ordering::Acquire))
    }

    /// Takes what is there for a worker. `into` is emptied first; its memory and the mailbox's are exchanged.
    pub(crate) fn take(&self, worker: usize, into: &mut Vec<HoldKey>) -> WokenKeys {
        into.clear();
        let Some(mailbox) = self.mailboxes.get(worker) else { return WokenKeys::None };
        if !mailbox.pending.swap(false, Ordering::AcqRel) {
            return WokenKeys::None;
        }
        let _ = mailbox.notify_fd.read(); // EAGAIN: its ring has yet to come, and will wake us once for nothing: [`WorkerWake::clear`]
        let mut keys = mailbox.keys.lock();
        std::mem::swap(&mut *keys, into);
        if mailbox.overflow.swap(false, Ordering::Relaxed) {
            WokenKeys::All
        } else if into.is_empty() {
            WokenKeys::None
        } else {
            WokenKeys::Listed
        }
    }

    /// Clears the notification of a worker that has just been woken by it. Without this, a notification that came after its
    /// keys had been taken would end every poll at once, until something else is sent. No key is lost: the mark is set before
    /// the notification is sent, and the worker looks at the mark before it polls again.
    pub(crate) fn clear(&self, worker: usize) {
        if let Some(mailbox) = self.mailboxes.get(worker) {
            let _ = mailbox.notify_fd.read(); // EAGAIN: somebody has read it
        }
    }

    /// What a worker polls.
    pub(crate) fn notify_fd(&self, worker: usize) -> Option<BorrowedFd<'_>> {
        self.mailboxes.get(worker).map(|m| m.notify_fd.as_fd())
    }
}

impl Mailbox {
    fn notify(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            let _ = self.notify_fd.write(1); // can only fail if the counter is full, and then it rings already
        }
    }
}

impl Wake for WorkerWake {
    fn wake(&mut self, workers: WorkerSet, key: HoldKey) {
        self.send(workers, key);
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    #[test]
    fn wake_reaches_only_the_workers_in_the_set() {
        let mut wake = WorkerWake::new(3).unwrap();
        let mut keys = Vec::new();
        wake.wake(WorkerSet::from([0, 2]), HoldKey(7));
        wake.wake(WorkerSet::of(2), HoldKey(8));
        assert_eq!((wake.take(0, &mut keys), keys.as_slice()), (WokenKeys::Listed, &[HoldKey(7)][..]));
        assert_eq!(wake.take(1, &mut keys), WokenKeys::None);
        assert!(wake.pending(2));
        assert_eq!((wake.take(2, &mut keys), keys.len()), (WokenKeys::Listed, 2));
        assert!(!wake.pending(2));
        wake.wake(WorkerSet::of(63), HoldKey(1)); // a worker that is not there
    }

    #[test]
    fn wake_up_that_comes_late_wakes_only_once() {
        let wake = WorkerWake::new(1).unwrap();
        let notified = || {
            let mut fds = [PollFd::new(wake.notify_fd(0).unwrap(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
        };
        let mut keys = Vec::new();
        wake.send(WorkerSet::of(0), HoldKey(1));
        assert_eq!(wake.take(0, &mut keys), WokenKeys::Listed);
        assert!(!notified());
        // The sender was interrupted between its mark and its notification.
        wake.mailboxes[0].notify_fd.write(1).unwrap();
        assert!(notified() && !wake.pending(0));
        wake.clear(0);
        assert!(!notified());
        // Cleared between mark and notification: the mark remains.
        wake.send(WorkerSet::of(0), HoldKey(2));
        wake.clear(0);
        assert!(wake.pending(0));
        assert_eq!((wake.take(0, &mut keys), keys.as_slice()), (WokenKeys::Listed, &[HoldKey(2)][..]));
    }

    #[test]
    fn an_overflow_wakes_all() {
        let wake = WorkerWake::new(1).unwrap();
        for key in 0..=KEYS as u64 {
            wake.send(WorkerSet::of(0), HoldKey(key));
        }
        let mut keys = Vec::new();
        assert_eq!(wake.take(0, &mut keys), WokenKeys::All);
        wake.send(WorkerSet::of(0), HoldKey(1));
        assert_eq!((wake.take(0, &mut keys), keys.len()), (WokenKeys::Listed, 1));
    }
}
