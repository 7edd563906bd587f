//! The connection log's part of the administration: following it on all members, and hits of rules.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::StreamExt;
use palisade_engine::policy::Policy;
use palisade_engine::{MemberId, MemberInfo, Role};
use palisade_proto::Message;
use palisade_proto::admin::v1;
use palisade_proto::admin::v1::log_response::What;
use palisade_proto::member::v1 as wire;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::Service;
use super::sessions::Answers;
use crate::connection_log::follow;
use crate::member::Member;

/// Messages that wait for a slow reader; then the members' own queues fill, which drop and count.
const WAITING: usize = 1024;
/// Interval at which it is looked for members that are not followed.
const MEMBERS_INTERVAL: Duration = Duration::from_secs(1);
/// How long a member may take to tell its hits.
const HITS_TIMEOUT: Duration = Duration::from_secs(2);

/// To the reader.
type Reader = mpsc::Sender<Result<v1::LogResponse, Status>>;

async fn send(to: &Reader, what: What) -> bool {
    to.send(Ok(v1::LogResponse { what: Some(what) })).await.is_ok()
}

impl Service {
    pub(super) fn follow_log(&self, r: v1::LogRequest) -> Result<Answers<v1::LogResponse>, Status> {
        let member = self.member()?;
        let own = follow::subscribe(&member.connection_log)?;
        let (to, answers) = mpsc::channel(WAITING);
        tokio::spawn(follow_own(Arc::downgrade(&member), self.0.config().name.clone(), own, to.clone()));
        if !r.local {
            tokio::spawn(follow_others(Arc::downgrade(&member), to));
        }
        Ok(Box::pin(ReceiverStream::new(answers)))
    }

    pub(super) async fn policy_hits(&self) -> Result<v1::PolicyHitsResponse, Status> {
        let member = self.member()?;
        let own = follow::rule_hits(&member.engine);
        let cluster = member.engine.cluster_state();
        let others = firewalls(&cluster.members);
        let answers: Vec<_> = member.replication.rule_hits(&others, HITS_TIMEOUT).await;
        let mut missing_members: Vec<String> = Vec::new();
        let mut total: BTreeMap<u32, (u64, Option<u64>)> = BTreeMap::new();
        let mut add = |hits: &wire::RuleHitsResponse| {
            for rule in &hits.rules {
                let (sum, last) = total.entry(rule.rule).or_default();
                *sum += rule.hits;
                *last = (*last).max(rule.last_unix_ms);
            }
        };
        add(&own);
        for (id, answer) in answers {
            match answer {
                Ok(hits) if hits.generation == own.generation => add(&hits),
                Ok(_) | Err(_) => missing_members.extend(others.get(&id).map(|info| info.name.clone())),
            }
        }
        missing_members.sort();
        let record = cluster.policies.iter().find(|policy| policy.generation.0 == own.generation);
        let policy = record.and_then(|record| Policy::parse_at(cluster.level, "policy", &record.text).ok());
        let mut hits = |rule: u32, name: &str, text: String| {
            let (hits, last_unix_ms) = total.remove(&rule).unwrap_or_default();
            v1::RuleHits { rule, name: name.to_owned(), text, hits, last_unix_ms }
        };
        let rules = policy.iter().flat_map(|policy| policy.rules());
        let mut rules: Vec<_> =
            (1..).zip(rules).map(|(number, rule)| hits(number, &rule.name, rule.to_string())).collect();
        let default = policy.as_ref().map_or_else(|| "default drop".to_owned(), |p| p.default_action().to_string());
        rules.push(hits(0, "default", default));
        Ok(v1::PolicyHitsResponse { generation: own.generation, rules, missing_members })
    }
}

/// The members that forward packets, and so have something to log.
fn firewalls(members: &BTreeMap<MemberId, MemberInfo>) -> BTreeMap<MemberId, MemberInfo> {
    members.iter().filter(|(_, info)| info.role == Role::Firewall).map(|(id, info)| (*id, info.clone())).collect()
}

/// Passes on the events of this member until the reader or the member is gone.
async fn follow_own(
    member: Weak<Member>,
    name: String,
    mut events: tokio::sync::broadcast::Receiver<Arc<crate::connection_log::Record>>,
    to: Reader,
) {
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = to.closed() => return,
            () = tokio::time::sleep(MEMBERS_INTERVAL) => match member.upgrade() {
                Some(_) => continue,
                None => return,
            },
        };
        let what = match event {
            Ok(record) => What::Event(follow::message(&record)),
            Err(RecvError::Lagged(events)) => {
                if let Some(member) = member.upgrade() {
                    member.connection_log.follower_lost(events);
                }
                What::Lost(v1::LogLoss { member: name.clone(), events })
            }
            Err(RecvError::Closed) => return,
        };
        if !send(&to, what).await {
            return;
        }
    }
}

/// Follows each other member for as long as it is one.
async fn follow_others(member: Weak<Member>, to: Reader) {
    let followed = Arc::new(parking_lot::Mutex::new(HashSet::new()));
    loop {
        {
            let Some(member) = member.upgrade() else { return };
            let me = member.replication.identity().member;
            for (id, info) in firewalls(&member.engine.cluster_state().members) {
                if id != me && followed.lock().insert(id) {
                    let (member, followed, to) = (Arc::downgrade(&member), followed.clone(), to.clone());
                    tokio::spawn(async move {
                        follow_member(member, id, &info.name, &to).await;
                        followed.lock().remove(&id);
                    });
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(MEMBERS_INTERVAL) => {}
            () = to.closed() => return,
        }
    }
}

/// Passes on the events of another member, and connects again, until the reader is gone or it is no member any longer.
async fn follow_member(member: Weak<Member>, id: MemberId, name: &str, to: &Reader) {
    let mut reported = None;
    loop {
        let stream = {
            let Some(member) = member.upgrade() else { return };
            let cluster = member.engine.cluster_state();
            let Some(info) = cluster.members.get(&id) else { return };
            member.replication.follow_connection_log(id, info)
        };
        let reason = tokio::select! {
            () = to.closed() => return,
            stream = stream => match stream {
                Ok(mut batches) => {
                    if reported.replace(true) != Some(true) && !send(to, state(name, true, "")).await {
                        return;
                    }
                    loop {
                        let batch = tokio::select! {
                            () = to.closed() => return,
                            batch = batches.next() => batch,
                        };
                        match batch {
                            Some(Ok(batch)) => {
                                if !pass_on(name, batch, to).await {
                                    return;
                                }
                            }
                            Some(Err(status)) => break status.message().to_owned(),
                            None => break "the member has stopped".to_owned(),
                        }
                    }
                }
                Err(status) => status.message().to_owned(),
            },
        };
        if reported.replace(false) != Some(false) && !send(to, state(name, false, &reason)).await {
            return;
        }
        tokio::time::sleep(MEMBERS_INTERVAL).await;
    }
}

fn state(member: &str, followed: bool, reason: &str) -> What {
    What::Member(v1::LogMember { member: member.to_owned(), followed, reason: reason.to_owned() })
}

/// Whether the reader is still there.
async fn pass_on(name: &str, batch: wire::ConnectionLogBatch, to: &Reader) -> bool {
    for event in batch.events {
        // One of another version of this program.
        let Ok(event) = v1::ConnectionEvent::decode(event) else { continue };
        if !send(to, What::Event(event)).await {
            return false;
        }
    }
    batch.lost == 0 || send(to, What::Lost(v1::LogLoss { member: name.to_owned(), events: batch.lost })).await
}
