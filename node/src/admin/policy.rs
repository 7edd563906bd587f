//! The policy's part of the administration.

use palisade_engine::policy::Policy;
use palisade_engine::replica::{Command, Outcome, PolicyChange};
use palisade_engine::{Generation, PolicyRecord};
use palisade_proto::admin::v1;
use tonic::{Code, Status};

use super::{COMMAND, Service, own_zones, refuse, require_lease, unconfirmed, unexpected};

/// The policy of a new cluster, which nobody applied and so no history has.
const FIRST: &str = "default drop\n";
/// Others may apply policies at the same time; more often than so it is no coincidence.
const TRIES: usize = 3;

fn parse(name: &str, text: &str) -> Result<Policy, Status> {
    Policy::parse(name, text).map_err(|e| {
        let help = "`palisade policy check FILE` shows each error with its place";
        refuse(Code::InvalidArgument, e.render(), help)
    })
}

fn record(p: &PolicyRecord) -> v1::PolicyRecord {
    v1::PolicyRecord { generation: p.generation.0, author: p.author.clone(), unix_ms: p.unix_ms }
}

impl Service {
    pub(super) fn check_policy(&self, r: v1::PolicyCheckRequest) -> Result<v1::PolicyCheckResponse, Status> {
        let policy = parse(&r.name, &r.text)?;
        let mine = own_zones(&self.0);
        let named = policy.zones();
        let mut not_named: Vec<String> = mine.iter().filter(|z| !named.contains(z)).cloned().collect();
        not_named.sort();
        not_named.dedup();
        let cluster = self.0.member().map(|member| member.engine.cluster_state());
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
        parse(&r.name, &r.text)?;
        let text = r.text;
        let author = match r.author.as_str() {
            "" => user.to_owned(),
            author if author == user => user.to_owned(),
            author => format!("{author} (as {user})"),
        };
        let member = self.member()?;
        for _ in 0..TRIES {
            require_lease(&member, r.wait_ms).await?;
            let cluster = member.engine.cluster_state();
            let in_force = cluster.policies.last();
            let base = r.base.unwrap_or_else(|| in_force.map_or(0, |p| p.generation.0));
            if let Some(p) = in_force.filter(|p| p.text == text && p.generation.0 == base) {
                return Ok(v1::PolicyApplyResponse { generation: p.generation.0, unchanged: true });
            }
            let change = PolicyChange { base: Generation(base), text: text.clone(), author: author.clone() };
            let command = Command::Policy(Box::new(change));
            match member.replication.command(command, COMMAND).await.map_err(|e| unconfirmed(&e))? {
                Outcome::Policy(generation) => {
                    tracing::info!(%generation, author, "a policy was applied");
                    return Ok(v1::PolicyApplyResponse { generation: generation.0, unchanged: false });
                }
                Outcome::Stale(now) if r.base.is_some() => {
                    let help =
                        format!("see what changed with `palisade policy show {now}`, then apply with `--base {now}`");
                    let message = format!("generation {now} is in force, not {base}: somebody else applied a policy");
                    return Err(refuse(Code::Aborted, message, &help));
                }
                Outcome::Stale(_) => {}
                other => return Err(unexpected(other)),
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
            (Some(p), _) => Ok(v1::PolicyShowResponse { policy: Some(record(p)), text: p.text.clone() }),
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
        let policies = member.engine.cluster_state().policies.iter().map(|p| record(p)).collect();
        Ok(v1::PolicyHistoryResponse { policies })
    }
}
