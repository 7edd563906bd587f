//! An audit on request: the digests of all members at one index.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use palisade_engine::replica::Replica;
use palisade_engine::{Engine, MemberId, MemberInfo};
use palisade_proto::member::v1 as wire;
use palisade_raft_store::Auditor;

use crate::peer::connections::{Lane, Peers};

/// How long a member may take to answer, and to apply the index before.
const DIGEST_TIMEOUT: Duration = Duration::from_secs(2);

/// The members' digests at one index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AuditReport {
    /// The index.
    pub index: u64,
    /// The members that have come, each with its digest. None: it did not answer, or has not applied the index yet.
    pub members: Vec<(MemberId, MemberInfo, Option<u64>)>,
}

/// Asks all members that have come for their digests at the last index that is applied here. `None` before the first one.
pub(crate) async fn audit(engine: &Engine, auditor: &Auditor<Replica>, peers: &Peers) -> Option<AuditReport> {
    let cluster = engine.cluster_state();
    let come = cluster.members.iter().filter(|(id, _)| !cluster.joining.contains_key(id));
    let come: BTreeMap<MemberId, MemberInfo> = come.map(|(id, info)| (*id, info.clone())).collect();
    let (index, own) = auditor.points().into_iter().next()?;
    let answers = peers.fan_out(&come, Lane::Control, DIGEST_TIMEOUT, |mut client| async move {
        client.digests(wire::DigestsRequest { indices: vec![index] }).await
    });
    let at_index = |digests: wire::DigestsResponse| digests.digests.into_iter().find(|d| d.index == index);
    let digests = answers.filter_map(async |(id, answer)| Some((id, at_index(answer.ok()?)?.digest)));
    let mut digests: BTreeMap<MemberId, u64> = digests.collect().await;
    digests.insert(peers.me(), own);
    let members = come.into_iter().map(|(id, info)| (id, info, digests.get(&id).copied()));
    Some(AuditReport { index, members: members.collect() })
}
