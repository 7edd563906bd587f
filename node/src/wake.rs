//! Wake-ups of held packets, for several tasks.

use palisade_engine::{HoldKey, Wake, WorkerSet};

/// A [`Wake`] that can be given to several tasks.
pub(crate) trait SharedWake: Wake + Send + Sync {
    fn copy(&self) -> Box<dyn SharedWake>;
}

impl<W: Wake + Clone + Send + Sync + 'static> SharedWake for W {
    fn copy(&self) -> Box<dyn SharedWake> {
        Box::new(self.clone())
    }
}

/// Adapts it to the engine's argument.
pub(crate) struct Waker(pub(crate) Box<dyn SharedWake>);

impl Wake for Waker {
    fn wake(&mut self, workers: WorkerSet, key: HoldKey) {
        self.0.wake(workers, key);
    }
}

/// Wakes nobody: where no packets are held.
pub(crate) struct NoWake;

impl Wake for NoWake {
    fn wake(&mut self, _: WorkerSet, _: HoldKey) {}
}
