//! The policy's part of the administration.

use palisade_engine::policy::{Policy, PolicyHash};
use palisade_engine::replica::{Outcome, PolicyChange};
use palisade_engine::{ClusterState, Generation, Level, MemberId, PolicyRecord};
use palisade_proto::admin::v1;
use tonic::{Code, Status};

use crate::replication::{PutError, PutInForce};

use super::{COMMAND, Service, own_zones, refuse, require_lease, unconfirmed, unexpected};

/// The policy of a new cluster, which nobody applied and so no history has.
const FIRST: &str = "default drop\n";
/// Others may apply policies at the same time; more often than so it is no coincidence.
const TRIES: usize = 3;

/// Reads a policy in the language of the level in force.
fn parse(level: Level, name: &str, text: &str) -> Result<Policy, Status> {
    Policy::parse_at(level, name, text).map_err(|e| {
        let help = match Policy::needed_level(text) {
            Some(needed) => format!(
                "the policy needs level {needed}, and level {level} is in force: once every member knows level {needed}, `palisade cluster level raise {needed}`"
            ),
            None => "`palisade policy check FILE` shows each error with its place".to_owned(),
        };
        refuse(Code::InvalidArgument, e.render(), &help)
    })
}

fn record(cluster: &ClusterState, p: &PolicyRecord) -> v1::PolicyRecord {
    let without = names(cluster, &p.without);
    v1::PolicyRecord { generation: p.generation.0, author: p.author.clone(), unix_ms: p.unix_ms, without }
}

/// The members' names; of those that have left, what is left of them.
fn names<'a>(cluster: &ClusterState, ids: impl IntoIterator<Item = &'a MemberId>) -> Vec<String> {
    ids.into_iter().map(|id| cluster.member_name(*id)).collect()
}

/// The ids of members.
fn ids(cluster: &ClusterState, names: &[String]) -> Result<Vec<MemberId>, Status> {
    let id = |name: &String| {
        cluster.member_named(name).ok_or_else(|| {
            refuse(Code::InvalidArgument, format!("there is no member {name}"), "`palisade cluster members` lists them")
        })
    };
    names.iter().map(id).collect()
}

/// Why a policy is not in force, for its author.
fn not_in_force(cluster: &ClusterState, error: PutError) -> Status {
    let (why, reports, code) = match error {
        PutError::Propose(error) => return unconfirmed(&error),
        PutError::Refused(outcome) => return unexpected(outcome),
        PutError::Superseded { .. } => {
            return refuse(Code::Aborted, error.to_string(), "see `palisade policy history`");
        }
        PutError::Withdrawn(reports) => ("the policy was not put in force", reports, Code::FailedPrecondition),
        PutError::Timeout(reports) => ("the cluster did not decide on the policy in time", reports, Code::Unavailable),
    };
    let refused =
        reports.refused.iter().map(|(id, reason)| format!("{} refused it: {reason}", names(cluster, [id]).join("")));
    let mut all: Vec<String> = refused.collect();
    let late = cluster.members.keys().filter(|id| !reports.refused.contains_key(id) && !reports.compiled.contains(id));
    let late = names(cluster, late);
    if !late.is_empty() {
        all.push(format!("{} had not compiled it in time", late.join(", ")));
    }
    let help = match reports.refused.is_empty() {
        true => "a majority of the voters, with the leader, must compile it: see `palisade cluster status`".to_owned(),
        false => {
            let names = names(cluster, reports.refused.keys());
            let options: Vec<String> = names.iter().map(|name| format!("--without {name}")).collect();
            let options = options.join(" ");
            format!(
                "`palisade policy apply FILE {options}` puts it in force all the same; a member that has not compiled it passes nothing once its grace is over"
            )
        }
    };
    refuse(code, format!("{why}: {}", all.join("; ")), &help)
}

impl Service {
    pub(super) fn check_policy(&self, r: v1::PolicyCheckRequest) -> Result<v1::PolicyCheckResponse, Status> {
        let cluster = self.0.member().map(|member| member.engine.cluster_state());
        // A new cluster begins at the highest level that its first member's program knows.
        let policy = parse(cluster.as_ref().map_or(Level::HIGHEST, |cluster| cluster.level), &r.name, &r.text)?;
        let mine = own_zones(&self.0);
        let named = policy.zones();
        let mut not_named: Vec<String> = mine.iter().filter(|z| !named.contains(z)).cloned().collect();
        not_named.sort();
        not_named.dedup();
        let registered = || cluster.iter().flat_map(|cluster| cluster.member_zones.values().flatten());
        // On a machine in no cluster, or without interfaces, there may be nothing to compare with.
        let comparable = !mine.is_empty() || registered().next().is_some();
        let without = |z: &&String| comparable && !mine.contains(z) && !registered().any(|registered| registered == *z);
        Ok(v1::PolicyCheckResponse {
            canonical: policy.to_string(),
            zones_without_interface: named.iter().filter(without).cloned().collect(),
            zones_not_named: not_named,
            generation_in_force: self.0.member().map_or(0, |m| m.engine.generation().0),
        })
    }

    pub(super) async fn apply_policy(
        &self,
        r: v1::PolicyApplyRequest,
        user: &str,
    ) -> Result<v1::PolicyApplyResponse, Status> {
        let member = self.member()?;
        let zones = parse(member.engine.cluster_state().level, &r.name, &r.text)?.zones().to_vec();
        let text = r.text;
        let hash = PolicyHash::of(&text);
        let author = match r.author.as_str() {
            "" => user.to_owned(),
            author if author == user => user.to_owned(),
            author => format!("{author} (as {user})"),
        };
        let overridden = ids(&member.engine.cluster_state(), &r.without)?;
        for _ in 0..TRIES {
            require_lease(&member, r.wait_ms).await?;
            let cluster = member.engine.cluster_state();
            let in_force = cluster.policies.last();
            let base = r.base.unwrap_or_else(|| in_force.map_or(0, |p| p.generation.0));
            if let Some(p) = in_force.filter(|p| *p.text == *text && p.generation.0 == base) {
                let generation = p.generation.0;
                return Ok(v1::PolicyApplyResponse { generation, unchanged: true, without: Vec::new() });
            }
            let change = PolicyChange {
                base: Generation(base),
                text: text.clone(),
                author: author.clone(),
                hash,
                zones: zones.clone(),
                overridden: overridden.clone(),
            };
            match member.replication.put_policy(change, COMMAND).await {
                Ok(PutInForce { generation, without }) => {
                    tracing::info!(%generation, author, ?without, "a policy was applied");
                    let without = names(&member.engine.cluster_state(), &without);
                    return Ok(v1::PolicyApplyResponse { generation: generation.0, unchanged: false, without });
                }
                Err(PutError::Refused(Outcome::Stale(now))) if r.base.is_some() => {
                    let help =
                        format!("see what changed with `palisade policy show {now}`, then apply with `--base {now}`");
                    let message = format!("generation {now} is in force, not {base}: somebody else applied a policy");
                    return Err(refuse(Code::Aborted, message, &help));
                }
                Err(PutError::Refused(Outcome::Stale(_))) => {}
                Err(error) => return Err(not_in_force(&member.engine.cluster_state(), error)),
            }
        }
        Err(refuse(Code::Aborted, "somebody else keeps applying policies", "find out who: `palisade policy history`"))
    }

    pub(super) async fn show_policy(&self, r: v1::PolicyShowRequest) -> Result<v1::PolicyShowResponse, Status> {
        let member = self.member_at(r.barrier, r.wait_ms).await?;
        let cluster = member.engine.cluster_state();
        let found = match r.generation {
            None => cluster.policies.last(),
            Some(wanted) => cluster.policies.iter().find(|p| p.generation.0 == wanted),
        };
        match (found, r.generation.unwrap_or(0)) {
            (Some(p), _) => Ok(v1::PolicyShowResponse { policy: Some(record(&cluster, p)), text: p.text.to_string() }),
            (None, 0) => {
                Ok(v1::PolicyShowResponse { policy: Some(v1::PolicyRecord::default()), text: FIRST.to_owned() })
            }
            (None, wanted) => {
                let message = format!("there is no policy generation {wanted}, or it is too long ago");
                Err(refuse(Code::NotFound, message, "`palisade policy history` lists those that are kept"))
            }
        }
    }

    pub(super) async fn policies(&self, r: v1::PolicyHistoryRequest) -> Result<v1::PolicyHistoryResponse, Status> {
        let member = self.member_at(r.barrier, r.wait_ms).await?;
        let cluster = member.engine.cluster_state();
        let policies = cluster.policies.iter().map(|p| record(&cluster, p)).collect();
        Ok(v1::PolicyHistoryResponse { policies })
    }
}
