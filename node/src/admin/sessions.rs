//! The sessions' part of the administration.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use palisade_engine::PerDirection;
use palisade_engine::policy::Policy;
use palisade_engine::replica::{Command, Outcome};
use palisade_engine::{ClusterState, Establish, Protocol, SessionId, SessionInfo, Tuple, ZonePair};
use palisade_proto::admin::v1;
use palisade_proto::convert::admin::{AdminError, Session, SessionFilter};
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::rule_names::RuleNames;
use super::{COMMAND, Service, refuse, require_lease, unconfirmed, unexpected};
use crate::clock;
use crate::member::Member;
use crate::replication::SessionChange;

/// Answers in parts.
pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Sessions in one part of a listing: some ten kilobytes.
const PART: usize = 256;
/// Parts that wait for a slow reader.
const PARTS: usize = 4;
/// Session ids in one command: within one record of the log.
const REVOKE: usize = 256;
/// Session ids that the log names of one `kill`.
const LOGGED_IDS: usize = 8;
/// Sessions that a watch remembers, so that it can tell what they were when they end.
const WATCHED: usize = 1_000_000;
/// A shard of the table is copied under its lock, so a walk goes on between shards; how long is only the reader's business.
const SLOW_READER: Duration = Duration::from_secs(30);

fn filter(f: Option<v1::SessionFilter>) -> Result<SessionFilter, Status> {
    f.unwrap_or_default().try_into().map_err(|e: AdminError| Status::invalid_argument(e.to_string()))
}

/// A `kill` in words, for the log.
pub(super) fn describe_kill(r: &v1::SessionKillRequest) -> String {
    let reset = if r.reset { " --reset" } else { "" };
    let Some(f) = &r.filter else {
        let ids: Vec<String> = r.ids.iter().take(LOGGED_IDS).map(|id| SessionId::from(*id).to_string()).collect();
        let more = r.ids.len().saturating_sub(LOGGED_IDS);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        return format!("session kill{reset} {}{more}", ids.join(" "));
    };
    match SessionFilter::try_from(f.clone()) {
        Ok(filter) if filter.is_empty() => format!("session kill{reset} --all"),
        Ok(filter) => format!("session kill{reset} {filter}"),
        Err(_) => format!("session kill{reset}"),
    }
}

fn no_session(id: SessionId) -> Status {
    let help = "it may have ended; `palisade session list` shows those that are there";
    refuse(Code::NotFound, format!("there is no session {id} on this member"), help)
}

async fn walk(member: &Arc<Member>, mut each: impl FnMut(&SessionInfo) -> bool + Send + 'static) -> Result<(), Status> {
    let engine = member.engine.clone();
    // Millions of sessions take a while: not on a runtime thread.
    let walked = tokio::task::spawn_blocking(move || engine.sessions(clock::now(), &mut each)).await;
    walked.map_err(|e| Status::internal(e.to_string()))
}

impl Service {
    pub(super) fn list(&self, r: v1::SessionListRequest) -> Result<Answers<v1::SessionListResponse>, Status> {
        let filter = filter(r.filter)?;
        let member = self.member()?;
        let cluster = member.engine.cluster_state();
        let mut left = if r.limit == 0 { u64::MAX } else { r.limit };
        let (to, parts) = mpsc::channel(PARTS);
        tokio::task::spawn_blocking(move || {
            let (mut part, mut names) = (Vec::with_capacity(PART), RuleNames::default());
            let send = |sessions| {
                // A reader that stalls must not keep this thread for ever.
                let send = tokio::time::timeout(SLOW_READER, to.send(Ok(v1::SessionListResponse { sessions })));
                matches!(tokio::runtime::Handle::current().block_on(send), Ok(Ok(())))
            };
            let mut open = true;
            member.engine.sessions(clock::now(), &mut |info| {
                if filter.matches(info, &cluster.zones) {
                    part.push(Session::new(info, &cluster.zones, names.name(&cluster, info.rule)).into());
                    left -= 1;
                }
                if part.len() >= PART {
                    open = send(std::mem::replace(&mut part, Vec::with_capacity(PART)));
                }
                open && left > 0
            });
            if open && !part.is_empty() {
                send(part);
            }
        });
        Ok(Box::pin(ReceiverStream::new(parts)))
    }

    pub(super) fn show(&self, r: v1::SessionShowRequest) -> Result<v1::SessionShowResponse, Status> {
        let id: SessionId = r.id.ok_or_else(|| Status::invalid_argument("the session's id is missing"))?.into();
        let member = self.member()?;
        let cluster = member.engine.cluster_state();
        let info = member.engine.session(clock::now(), id).ok_or_else(|| no_session(id))?;
        let rule_text = rule_text(&cluster, &info);
        #[cfg(feature = "next-level")]
        let rule_text = rule_text.map(|text| match member.engine.next_level_tag_of(id) {
            Some(tag) if tag > 0 => format!("{text} # tag {tag}"),
            _ => text,
        });
        let mut names = RuleNames::default();
        let session = Session::new(&info, &cluster.zones, names.name(&cluster, info.rule));
        Ok(v1::SessionShowResponse { session: Some(session.into()), rule_text })
    }

    pub(super) async fn count(&self, r: v1::SessionCountRequest) -> Result<v1::SessionCountResponse, Status> {
        let filter = filter(r.filter)?;
        let member = self.member()?;
        if filter.is_empty() {
            let counts = member.engine.counts();
            let sessions = counts.sessions.iter().map(|(_, _, n)| n).sum();
            return Ok(v1::SessionCountResponse { sessions, half_open: counts.half_open });
        }
        let cluster = member.engine.cluster_state();
        let found = Arc::new(parking_lot::Mutex::new(v1::SessionCountResponse::default()));
        let counted = found.clone();
        walk(&member, move |info| {
            if filter.matches(info, &cluster.zones) {
                let mut found = counted.lock();
                if info.half_open { found.half_open += 1 } else { found.sessions += 1 }
            }
            true
        })
        .await?;
        let found = *found.lock();
        Ok(found)
    }

    pub(super) async fn kill(&self, r: v1::SessionKillRequest) -> Result<v1::SessionKillResponse, Status> {
        let member = self.member()?;
        require_lease(&member, r.wait_ms).await?;
        let (mut ids, mut half_open_skipped) = (Vec::new(), 0);
        match r.filter {
            None => {
                for id in r.ids {
                    let id = SessionId::from(id);
                    match member.engine.session(clock::now(), id) {
                        Some(info) if info.half_open => half_open_skipped += 1,
                        Some(_) => ids.push(id),
                        None => return Err(no_session(id)),
                    }
                }
            }
            Some(f) => {
                let filter = filter(Some(f))?;
                let cluster = member.engine.cluster_state();
                let found = Arc::new(parking_lot::Mutex::new((Vec::new(), 0)));
                let matched = found.clone();
                walk(&member, move |info| {
                    if filter.matches(info, &cluster.zones) {
                        let mut found = matched.lock();
                        if info.half_open { found.1 += 1 } else { found.0.push(info.id) }
                    }
                    true
                })
                .await?;
                (ids, half_open_skipped) = std::mem::take(&mut *found.lock());
            }
        }
        let (mut reset, mut reset_later) = (0, 0);
        for part in ids.chunks(REVOKE) {
            // Before they are gone.
            let connections = part.iter().filter(|_| r.reset).filter_map(|id| member.engine.session(clock::now(), *id));
            let tuples = connections.map(|info| info.original);
            let tuples: Vec<Tuple> = tuples.filter(|tuple| tuple.protocol == Protocol::TCP).collect();
            let command = Command::Revoke(part.to_vec());
            match member.replication.command(command, COMMAND).await.map_err(|e| unconfirmed(&e))? {
                Outcome::Accepted => {}
                other => return Err(unexpected(other)),
            }
            for tuple in tuples {
                if member.resets.tell(&member, tuple) { reset += 1 } else { reset_later += 1 }
            }
        }
        let limit = member.replication.certain_after();
        Ok(v1::SessionKillResponse {
            killed: ids.len() as u64,
            half_open_skipped,
            certain_after_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
            reset,
            reset_later,
        })
    }

    pub(super) async fn watch(&self, r: v1::SessionWatchRequest) -> Result<Answers<v1::SessionWatchResponse>, Status> {
        let filter = filter(r.filter)?;
        let member = self.member()?;
        let place = self.0.admin_limits().watch().ok_or_else(|| {
            refuse(
                Code::ResourceExhausted,
                "there are too many watches of sessions already",
                "end one of them, or list sessions",
            )
        })?;
        // First the events, then the table: so nothing falls between the two.
        let events = member.replication.subscribe();
        let known = Arc::new(parking_lot::Mutex::new(HashMap::new()));
        let (collected, of, cluster) = (known.clone(), filter.clone(), member.engine.cluster_state());
        let mut names = RuleNames::default();
        walk(&member, move |info| {
            let mut known = collected.lock();
            if !info.half_open && of.matches(info, &cluster.zones) {
                known.insert(info.id, Session::new(info, &cluster.zones, names.name(&cluster, info.rule)));
            }
            known.len() < WATCHED
        })
        .await?;
        let known = std::mem::take(&mut *known.lock());
        let (to, answers) = mpsc::channel(PART);
        let following = follow(Arc::downgrade(&member), events, known, filter, to);
        tokio::spawn(async move {
            following.await;
            drop(place);
        });
        Ok(Box::pin(ReceiverStream::new(answers)))
    }
}

/// Translates events until the reader or the member is gone.
async fn follow(
    member: std::sync::Weak<Member>,
    mut events: broadcast::Receiver<Arc<crate::replication::SessionEvent>>,
    mut known: HashMap<SessionId, Session>,
    filter: SessionFilter,
    to: mpsc::Sender<Result<v1::SessionWatchResponse, Status>>,
) {
    use v1::session_watch_response::What;
    let mut names = RuleNames::default();
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = to.closed() => return,
        };
        let what = match event {
            Ok(event) => {
                let Some(member) = member.upgrade() else { return };
                let cluster = member.engine.cluster_state();
                let mut forbidden_by = None;
                let (change, session) = match &event.change {
                    SessionChange::Established(e) => {
                        let info = match member.engine.session(clock::now(), e.id) {
                            Some(info) => info,
                            // It is gone already.
                            None => established(e),
                        };
                        if !filter.matches(&info, &cluster.zones) {
                            continue;
                        }
                        let session = Session::new(&info, &cluster.zones, names.name(&cluster, info.rule));
                        if known.len() >= WATCHED {
                            let message = "more than a million sessions match";
                            let _ = to.send(Err(refuse(Code::ResourceExhausted, message, "narrow the filter"))).await;
                            return;
                        }
                        known.insert(e.id, session.clone());
                        (v1::SessionChange::Established, Some(session))
                    }
                    SessionChange::Closed(close) => (v1::SessionChange::Closed, known.get(&close.id).cloned()),
                    SessionChange::Expired(id) => (v1::SessionChange::Expired, known.remove(id)),
                    SessionChange::Revoked(id) => (v1::SessionChange::Revoked, known.remove(id)),
                    SessionChange::Forbidden(id, generation) => {
                        forbidden_by = Some(generation.0);
                        (v1::SessionChange::Revoked, known.remove(id))
                    }
                };
                let Some(session) = session else { continue };
                What::Event(v1::SessionEvent {
                    change: change.into(),
                    session: Some(session.into()),
                    unix_ms: event.unix_ms,
                    index: event.index,
                    forbidden_by,
                })
            }
            Err(broadcast::error::RecvError::Lagged(lost)) => What::Lost(lost),
            Err(broadcast::error::RecvError::Closed) => return,
        };
        if to.send(Ok(v1::SessionWatchResponse { what: Some(what) })).await.is_err() {
            return;
        }
    }
}

/// A session as its establishment had it.
fn established(e: &Establish) -> SessionInfo {
    SessionInfo {
        id: e.id,
        original: e.original,
        reply: e.reply,
        zones: ZonePair { ingress: e.ingress, egress: e.egress },
        rule: (e.generation, e.rule),
        state: "ESTABLISHED",
        half_open: false,
        idle: Duration::ZERO,
        timeout: Duration::ZERO,
        traffic: PerDirection::default(),
    }
}

fn rule_text(cluster: &ClusterState, info: &SessionInfo) -> Option<String> {
    let record = cluster.policies.iter().find(|p| p.generation == info.rule.0)?;
    let policy = Policy::parse_at(cluster.level, "policy", &record.text).ok()?;
    let compiled = policy.compile(&mut |name| {
        let number = cluster.zones.iter().position(|z| z == name).and_then(|n| u16::try_from(n).ok());
        number.map_or(palisade_engine::ZoneId::UNKNOWN, palisade_engine::ZoneId)
    });
    Some(compiled.rule_text(info.rule.1).to_owned())
}
