//! Turning traffic away, with progress: `drain`, `undrain`, `leave`.

use std::time::Duration;

use palisade_proto::admin::v1;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::sessions::Answers;
use super::{Service, audit, quorum_wait};
use crate::clock;
use crate::drain::{DrainOutcome, DrainReason, Draining};

/// Longest wait for traffic to move away.
const MOST_WAIT: Duration = Duration::from_secs(600);
/// Answers that wait to be read; progress that is not read in time is left out.
const ANSWERS: usize = 4;

impl Service {
    pub(super) fn drain(&self, r: v1::DrainRequest) -> Result<Answers<v1::DrainResponse>, Status> {
        let moved = self.0.drain(limit(r.timeout_ms))?;
        let last = async move {
            match moved.await {
                DrainOutcome::Drained(d) | DrainOutcome::TimedOut(d) => {
                    Ok(v1::DrainResponse { draining: Some(message(&d)), done: true })
                }
                DrainOutcome::Cancelled => {
                    Err(Status::aborted("`palisade undrain` came in between, or the member has stopped"))
                }
            }
        };
        let progress = |draining| v1::DrainResponse { draining: Some(draining), done: false };
        Ok(followed(self.0.follow_drain(), last, progress))
    }

    pub(super) fn undrain(&self) -> Result<v1::UndrainResponse, Status> {
        let was_drained = self.0.undrain()?;
        Ok(v1::UndrainResponse { was_drained, health: Some(self.health_now()) })
    }

    pub(super) fn leave(&self, user: String, r: v1::LeaveRequest) -> Answers<v1::LeaveResponse> {
        let leaving = self.0.leave(limit(r.timeout_ms), quorum_wait(r.wait_ms));
        let last = async move {
            audit::log(&user, "cluster leave", leaving.await.map_err(Status::from))?;
            Ok(v1::LeaveResponse { draining: None, left: true })
        };
        let progress = |draining| v1::LeaveResponse { draining: Some(draining), left: false };
        followed(self.0.follow_drain(), last, progress)
    }
}

fn limit(timeout_ms: u64) -> Duration {
    Duration::from_millis(timeout_ms).min(MOST_WAIT)
}

/// How far it is, until `last` is there.
fn followed<T: Send + 'static>(
    mut drain: watch::Receiver<Option<Draining>>,
    last: impl Future<Output = Result<T, Status>> + Send + 'static,
    progress: impl Fn(v1::Draining) -> T + Send + 'static,
) -> Answers<T> {
    let (answers, stream) = mpsc::channel(ANSWERS);
    tokio::spawn(async move {
        tokio::pin!(last);
        loop {
            tokio::select! {
                biased;
                // Nobody waits for it any longer: fine.
                last = &mut last => return drop(answers.send(last).await),
                Ok(()) = drain.changed() => {
                    let draining = drain.borrow_and_update().as_ref().map(message);
                    if let Some(draining) = draining
                        && let Err(mpsc::error::TrySendError::Closed(_)) = answers.try_send(Ok(progress(draining)))
                    {
                        return;
                    }
                }
            }
        }
    });
    Box::pin(ReceiverStream::new(stream))
}

/// As it travels.
pub(super) fn message(d: &Draining) -> v1::Draining {
    let reason = match d.reason {
        DrainReason::Operator => v1::DrainReason::Operator,
        DrainReason::Leaving => v1::DrainReason::Leaving,
        DrainReason::Stopping => v1::DrainReason::Stopping,
    };
    let for_ms = u64::try_from(clock::now().since(d.since).as_millis()).unwrap_or(u64::MAX);
    v1::Draining { reason: reason.into(), for_ms, packets_per_second: d.packets, quiet: d.quiet, leader: d.leader }
}
