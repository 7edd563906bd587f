//! What others read of the connection log: its events, on the admin socket and by other members, and hits of rules.

use std::sync::Arc;

use futures::Stream;
use palisade_engine::{Engine, Generation, RuleHits};
use palisade_proto::Message;
use palisade_proto::admin::v1;
use palisade_proto::member::v1 as wire;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tonic::Status;

use super::ConnectionLog;
use super::record::Record;
use crate::clock;

/// Followers of one member at once, other members included.
const MAX_FOLLOWERS: usize = 32;
/// Events in one message between members.
const MAX_BATCH: usize = 256;

/// The events of this member from now on.
pub(crate) fn subscribe(log: &ConnectionLog) -> Result<Receiver<Arc<Record>>, Status> {
    if log.followers() >= MAX_FOLLOWERS {
        return Err(Status::resource_exhausted(format!("{MAX_FOLLOWERS} follow this member's connection log already")));
    }
    log.follow().ok_or_else(|| Status::unavailable("this member writes no connection log"))
}

/// The same for another member, in batches.
pub(crate) fn batches(log: &ConnectionLog) -> Result<impl Stream<Item = wire::ConnectionLogBatch> + use<>, Status> {
    let state = (subscribe(log)?, log.clone());
    Ok(futures::stream::unfold(state, |(mut events, log)| async move {
        let mut batch = wire::ConnectionLogBatch::default();
        match events.recv().await {
            Ok(record) => batch.events.push(message(&record).encode_to_vec().into()),
            Err(RecvError::Lagged(lost)) => batch.lost = lost,
            Err(RecvError::Closed) => return None,
        }
        while batch.events.len() < MAX_BATCH && batch.lost == 0 {
            match events.try_recv() {
                Ok(record) => batch.events.push(message(&record).encode_to_vec().into()),
                // Told before the events that come after the gap.
                Err(TryRecvError::Lagged(lost)) => batch.lost = lost,
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        log.follower_lost(batch.lost);
        Some((batch, (events, log)))
    }))
}

/// An event, as it is sent.
pub(crate) fn message(record: &Record) -> v1::ConnectionEvent {
    let connection = record.connection.as_ref();
    let end = connection.and_then(|c| c.end.as_ref());
    let traffic = end.and_then(|end| end.traffic);
    let sent = |t: palisade_engine::Traffic| v1::Traffic { packets: t.packets, bytes: t.bytes };
    v1::ConnectionEvent {
        unix_ms: record.unix_ms,
        member: record.member.to_string(),
        event: record.event.name().to_owned(),
        rule: record.rule.to_string(),
        generation: record.generation,
        tuple: connection.map(|c| c.tuple.into()),
        ingress: connection.map_or_else(String::new, |c| c.ingress.to_string()),
        egress: connection.map_or_else(String::new, |c| c.egress.to_string()),
        verdict: connection.map_or("", |c| c.verdict).to_owned(),
        reason: connection.map_or("", |c| c.reason).to_owned(),
        session: connection.and_then(|c| c.session).map(Into::into),
        cause: end.map_or("", |end| end.cause()).to_owned(),
        forbidden_by: end.and_then(|end| end.forbidden_by()),
        duration_ms: end.and_then(|end| end.duration_ms),
        original_traffic: traffic.map(|t| sent(t.original)),
        reply_traffic: traffic.map(|t| sent(t.reply)),
        left_out: record.left_out,
    }
}

/// The hits of this member's rules.
pub(crate) fn rule_hits(engine: &Engine) -> wire::RuleHitsResponse {
    let (Generation(generation), hits) = engine.rule_hits(usize::MAX);
    let (now, unix_ms) = (clock::now(), clock::unix_ms());
    let rule = |RuleHits { rule, hits, last, .. }: RuleHits| wire::rule_hits_response::Rule {
        rule: rule.0,
        hits,
        last_unix_ms: last
            .map(|at| unix_ms.saturating_sub(u64::try_from(now.since(at).as_millis()).unwrap_or(u64::MAX))),
    };
    wire::RuleHitsResponse { generation, rules: hits.into_iter().filter(|rule| rule.hits > 0).map(rule).collect() }
}
