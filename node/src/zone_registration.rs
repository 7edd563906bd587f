//! The registration of the zones of this machine's interfaces in the replicated state, when the member starts.
//!
//! A zone without a number has no identity: nothing passes at its interfaces ([`palisade_engine::Reason::NoDataInterface`]), and
//! the member is not fully ready. So a start without a quorum, with a zone that is new, ends nothing: the rest works, and the
//! registration goes on until it succeeds.

use std::sync::Weak;
use std::time::Duration;

use palisade_engine::LeaseState;

use crate::config::Config;
use crate::member::Member;

/// Time between two attempts.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// The zones of a machine's interfaces, sorted, each once.
pub(crate) fn of(config: &Config) -> Vec<String> {
    let mut zones: Vec<String> = config.interfaces.iter().map(|interface| interface.zone.clone()).collect();
    zones.sort();
    zones.dedup();
    zones
}

/// Registers a member's zones, and tries again until it has succeeded or the member ends.
pub(crate) async fn run(member: Weak<Member>) {
    let mut reported = None;
    loop {
        let Some(member) = member.upgrade() else { return };
        if member.zones_are_registered() {
            return;
        }
        if member.lease_state() == LeaseState::Valid {
            match member.replication.register_zones(member.zones()).await {
                Ok(()) => tracing::info!(zones = ?member.zones(), "the zones of this machine are registered"),
                Err(error) => {
                    let error = error.to_string();
                    if reported.as_ref() != Some(&error) {
                        tracing::warn!(error, zones = ?member.zones(), "the zones of this machine could not be registered; trying again");
                    }
                    reported = Some(error);
                }
            }
        }
        if member.zones_are_registered() {
            return;
        }
        // No handle is kept during the wait: the member's end waits until all are dropped.
        drop(member);
        tokio::time::sleep(RETRY_DELAY).await;
    }
}
