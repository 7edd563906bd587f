//! The tasks of a running member. A task that ends before the member stops is a defect, and is reported.

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::lab_panic;

/// The tasks that run until the member stops.
pub(crate) struct Tasks {
    stop: watch::Sender<bool>,
    /// The name of a task that ended by itself.
    ended: watch::Sender<Option<&'static str>>,
    handles: Vec<(&'static str, JoinHandle<()>)>,
}

impl Tasks {
    pub(crate) fn new() -> Tasks {
        Tasks { stop: watch::Sender::new(false), ended: watch::Sender::new(None), handles: Vec::new() }
    }

    /// Runs a task until [`Tasks::stop`].
    pub(crate) fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let handle = self.spawn_server(name, task);
        self.handles.push((name, handle));
    }

    /// Runs a task that ends by itself once [`Tasks::stopped`] is true.
    pub(crate) fn spawn_server(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        let alarm = Alarm { name, stop: self.stop.subscribe(), ended: self.ended.clone() };
        tokio::spawn(async move {
            // Dropped with the task, also when it panics.
            let _alarm = alarm;
            lab_panic::task(name, task).await;
        })
    }

    /// True once the member is to stop.
    pub(crate) fn stopped(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// The name of a task that ended by itself.
    pub(crate) fn ended(&self) -> watch::Receiver<Option<&'static str>> {
        self.ended.subscribe()
    }

    /// Ends one task, as a defect would.
    #[cfg(test)]
    pub(crate) fn abort(&self, name: &str) {
        self.handles.iter().filter(|(task, _)| *task == name).for_each(|(_, task)| task.abort());
    }

    /// Ends all tasks; those that [`Tasks::spawn_server`] started end by themselves.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
        for (_, task) in &self.handles {
            task.abort();
        }
    }
}

/// Reports the end of its task when it is dropped before the member stops.
struct Alarm {
    name: &'static str,
    stop: watch::Receiver<bool>,
    ended: watch::Sender<Option<&'static str>>,
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if !*self.stop.borrow() {
            self.ended.send_replace(Some(self.name));
        }
    }
}
