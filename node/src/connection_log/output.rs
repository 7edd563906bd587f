//! The outputs of the connection log: one thread and one bounded queue each.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use palisade_metrics::Counter;

use super::daemon_log::DaemonLog;
use super::file::LogFile;
use super::record::Record;
use super::syslog::Syslog;
use super::{ConnectionLogMetrics, Shared};
use crate::clock;
use crate::config::Log;
use crate::lab_panic;

/// Events that wait for one output.
const OUTPUT_QUEUE: usize = 8192;
/// How long the outputs have to write what they were given before the daemon ends.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval at which that is looked at.
pub(super) const STOP_POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Interval at which an output that has nothing to write does its housekeeping.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// Time without a warning after one about a failing output.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// Where records are written. Only its own thread calls it, so it may block.
pub(super) trait Output: Send + 'static {
    /// Its name, for warnings.
    fn name(&self) -> &'static str;

    /// Writes a record. `Ok(false)`: it was left out.
    fn write(&mut self, record: &Record) -> io::Result<bool>;

    /// Has everything written reach its destination: no further record waits.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The queue of one output.
pub(super) struct OutputQueue {
    queue: SyncSender<Arc<Record>>,
    dropped: fn(&ConnectionLogMetrics) -> &Counter,
}

impl OutputQueue {
    pub(super) fn send(&self, record: &Arc<Record>, metrics: &ConnectionLogMetrics) {
        if self.queue.try_send(record.clone()).is_err() {
            (self.dropped)(metrics).inc();
        }
    }
}

/// Starts the outputs that the configuration names.
pub(super) fn start(
    member: &str,
    config: &Log,
    shared: &Arc<Shared>,
    threads: &mut Vec<JoinHandle<()>>,
) -> io::Result<Vec<OutputQueue>> {
    let mut queues = Vec::new();
    let mut add = |output: Box<dyn Output>, dropped: fn(&ConnectionLogMetrics) -> &Counter| -> io::Result<()> {
        let (queue, records) = sync_channel(OUTPUT_QUEUE);
        let shared = shared.clone();
        let name = format!("log-{}", output.name());
        let thread = std::thread::Builder::new().name(name.clone());
        threads.push(thread.spawn(move || {
            lab_panic::thread(&name);
            run(output, &records, dropped(&shared.metrics));
        })?);
        queues.push(OutputQueue { queue, dropped });
        Ok(())
    };
    if config.daemon {
        add(Box::new(DaemonLog::new()), |metrics| &metrics.dropped.daemon)?;
    }
    if let Some(syslog) = &config.syslog {
        add(Box::new(Syslog::new(member, syslog.clone())), |metrics| &metrics.dropped.syslog)?;
    }
    if let Some(file) = &config.file {
        add(Box::new(LogFile::new(file.clone(), config.file_bytes as u64)), |metrics| &metrics.dropped.file)?;
    }
    Ok(queues)
}

/// Writes until the queue is closed.
fn run(mut output: Box<dyn Output>, records: &Receiver<Arc<Record>>, dropped: &Counter) {
    let mut warned = None;
    let mut warn = |name: &'static str, error: io::Error| {
        let now = clock::now();
        if warned.is_none_or(|at| now.since(at) >= WARNING_INTERVAL) {
            warned = Some(now);
            tracing::warn!(%error, output = name, "events of the connection log are lost");
        }
    };
    loop {
        let received = match records.try_recv() {
            Ok(record) => Ok(record),
            Err(_) => {
                if let Err(error) = output.flush() {
                    warn(output.name(), error);
                }
                records.recv_timeout(IDLE_INTERVAL)
            }
        };
        match received {
            Ok(record) => match output.write(&record) {
                Ok(true) => {}
                Ok(false) => dropped.inc(),
                Err(error) => {
                    dropped.inc();
                    warn(output.name(), error);
                }
            },
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    // Its failure was told with the record.
    let _ = output.flush();
}
