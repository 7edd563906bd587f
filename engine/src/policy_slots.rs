//! The compiled policies of this member: the one in force, and the candidate's.
//!
//! Compiling a policy may take seconds and hundreds of megabytes, so it is done beside the packet path and beside apply, by
//! whoever asks [`Engine::policy_to_compile`] and reports with [`Engine::policy_compiled`]. Putting the candidate in force is an
//! exchange of pointers then.
//!
//! What if this member has not compiled the candidate when the log puts it in force?
//!
//! - While packets pass here (the lease is valid, or in its grace), it may not go on: [`Replica::is_ready`] is false, nothing
//!   is applied, the packet path goes on by the policy before, and the lease is not renewed, as that of a member which is cut off.
//! - When no packet passes (the lease is expired; after a start; while the log is replayed), it goes on *closed*: with a policy
//!   that drops everything, until it has compiled the one in force. Until then there is no lease. So a replay compiles only the
//!   last policy, and a member that cannot compile one is there again with the next one.
//!
//! [`Replica::is_ready`]: crate::replica::Replica::is_ready

use std::collections::HashMap;
use std::sync::Arc;

use crate::active_policy::ActivePolicy;
use crate::cluster_state::{Candidate, ClusterState, PolicyRecord};
use crate::engine::Engine;
use crate::id::{Generation, ZoneId};
use crate::policy::{Policy, PolicyError, PolicyHash};
use crate::rule_hits::HitCounters;

/// Memory that parsing takes for each byte of the text, at most.
const PARSE_BYTES: u64 = 96;

/// Why a policy was not compiled here.
#[derive(Debug, thiserror::Error)]
pub enum CompileRefusal {
    /// The text has errors. Every member of this version says so.
    #[error("its text is not valid here: {0}")]
    Text(String),
    /// What was proposed beside the text is not true.
    #[error("its {0} is not that of its text")]
    Mismatch(&'static str),
    /// This machine has not enough memory.
    #[error("compiling it takes up to {} MiB of memory, and this machine has {} MiB", .needed >> 20, .available >> 20)]
    Memory {
        /// What compiling may take, in bytes.
        needed: u64,
        /// What there is, in bytes.
        available: u64,
    },
    /// The compiler ended without a result: a defect.
    #[error("the compiler ended without a result")]
    Crashed,
}

impl CompileRefusal {
    /// Whether it may be otherwise later.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        matches!(self, CompileRefusal::Memory { .. })
    }
}

impl From<&PolicyError> for CompileRefusal {
    fn from(error: &PolicyError) -> CompileRefusal {
        let first = error.problems().first();
        CompileRefusal::Text(
            first.map_or_else(String::new, |problem| format!("line {}: {problem}", error.place(problem).0)),
        )
    }
}

/// Which policy a task compiles.
#[derive(Clone)]
enum Source {
    Candidate(Arc<Candidate>),
    InForce(Arc<PolicyRecord>),
}

/// A policy to compile.
pub struct PolicyTask {
    source: Source,
    cluster: Arc<ClusterState>,
    /// Whose hit counters go on.
    before: Arc<ActivePolicy>,
}

/// A compiled policy that is not in force yet.
pub struct CompiledPolicy(Box<ActivePolicy>);

impl PolicyTask {
    /// The hash of the policy.
    #[must_use]
    pub fn hash(&self) -> PolicyHash {
        match &self.source {
            Source::Candidate(candidate) => candidate.hash,
            Source::InForce(record) => record.hash,
        }
    }

    /// Whether the policy is in force already.
    #[must_use]
    pub fn is_in_force(&self) -> bool {
        matches!(self.source, Source::InForce(_))
    }

    /// Compiles it, in the language of the level in force. With too little `memory` (bytes) nothing large is allocated.
    ///
    /// # Errors
    /// [`CompileRefusal`]
    pub fn compile(&self, memory: Option<u64>) -> Result<CompiledPolicy, CompileRefusal> {
        let (text, zones, generation) = match &self.source {
            Source::Candidate(candidate) => (&candidate.text, &candidate.zones, Generation(candidate.base.0 + 1)),
            Source::InForce(record) => (&record.text, &record.zones, record.generation),
        };
        let enough = |needed: u64| match memory {
            Some(available) if available < needed => Err(CompileRefusal::Memory { needed, available }),
            _ => Ok(()),
        };
        let for_parsing = text.len() as u64 * PARSE_BYTES;
        enough(for_parsing)?;
        if PolicyHash::of(text) != self.hash() {
            return Err(CompileRefusal::Mismatch("hash"));
        }
        let policy =
            Policy::parse_at(self.cluster.level, "policy", text).map_err(|error| CompileRefusal::from(&error))?;
        if policy.zones() != zones.as_slice() {
            return Err(CompileRefusal::Mismatch("list of zones"));
        }
        enough(for_parsing + policy.cost().bytes())?;
        let numbers = zone_numbers(&self.cluster);
        let number = |name: &str| numbers.get(name).copied().unwrap_or(ZoneId::UNKNOWN);
        let rules = policy.compile(&mut |name| number(name));
        let zones = zones.iter().map(|name| number(name)).collect();
        let mut compiled = ActivePolicy {
            generation,
            rules: Some(rules),
            source: Some((self.hash(), zones)),
            ..ActivePolicy::default()
        };
        compiled.hits = HitCounters::carried_over(&compiled, &self.before);
        Ok(CompiledPolicy(Box::new(compiled)))
    }
}

/// The numbers of all zones.
fn zone_numbers(cluster: &ClusterState) -> HashMap<&str, ZoneId> {
    let named = (0..=u16::MAX).zip(&cluster.zones).filter(|(_, name)| !name.is_empty());
    named.map(|(number, name)| (name.as_str(), ZoneId(number))).collect()
}

/// What this member reports of the candidate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicyReport {
    /// The candidate's.
    pub hash: PolicyHash,
    /// Why it was refused; `None`: it is compiled.
    pub refused: Option<String>,
}

/// What has become of the candidate here.
struct CandidateResult {
    candidate: Arc<Candidate>,
    result: Result<CompiledPolicy, CompileRefusal>,
}

/// The compiled policies besides the one that is active.
#[derive(Default)]
pub(crate) struct PolicySlots {
    /// Whether packets may pass here, so that apply has to wait for the compiler.
    packets_pass: bool,
    candidate: Option<CandidateResult>,
    /// The policy in force, while it is not compiled and this member is closed.
    closed: Option<Arc<PolicyRecord>>,
    /// Why that was refused.
    refused: Option<CompileRefusal>,
    /// Policies that are not used any longer. Freeing a large one takes milliseconds, so apply leaves that to others.
    retired: Vec<Arc<ActivePolicy>>,
}

impl PolicySlots {
    /// Takes the compiled candidate, if it is this one.
    fn take(&mut self, wanted: &Arc<Candidate>) -> Option<CompiledPolicy> {
        let result = self.candidate.take_if(|result| Arc::ptr_eq(&result.candidate, wanted))?;
        result.result.ok()
    }
}

impl Engine {
    /// What to compile now: the policy in force, if it is not, or the candidate.
    #[must_use]
    pub fn policy_to_compile(&self) -> Option<PolicyTask> {
        let slots = self.policy_slots.lock();
        // Under the lock: a candidate that is put in force meanwhile is not seen as one.
        let cluster = self.cluster_state();
        let source = match (&slots.closed, &cluster.candidate) {
            (Some(record), _) if slots.refused.is_none() => Source::InForce(record.clone()),
            (_, Some(candidate)) if !slots.candidate.as_ref().is_some_and(|r| Arc::ptr_eq(&r.candidate, candidate)) => {
                Source::Candidate(candidate.clone())
            }
            _ => return None,
        };
        Some(PolicyTask { source, cluster, before: self.active_policy.load_full() })
    }

    /// Takes the result of a task. One that nobody waits for any longer is dropped.
    pub fn policy_compiled(&self, task: &PolicyTask, result: Result<CompiledPolicy, CompileRefusal>) {
        let unused = {
            let mut slots = self.policy_slots.lock();
            match &task.source {
                Source::Candidate(candidate) => {
                    let cluster = self.cluster.load();
                    let is_wanted = cluster.candidate.as_ref().is_some_and(|wanted| Arc::ptr_eq(wanted, candidate));
                    let new = CandidateResult { candidate: candidate.clone(), result };
                    if is_wanted { slots.candidate.replace(new) } else { Some(new) }.map(|unused| unused.result)
                }
                Source::InForce(record) if slots.closed.as_ref().is_some_and(|closed| Arc::ptr_eq(closed, record)) => {
                    match result {
                        Ok(compiled) => {
                            (slots.closed, slots.refused) = (None, None);
                            let old = self.activate(*compiled.0);
                            slots.retired.push(old);
                        }
                        Err(refusal) => slots.refused = Some(refusal),
                    }
                    None
                }
                Source::InForce(_) => Some(result),
            }
        };
        // Not under the lock: it may be large.
        drop(unused);
    }

    /// Compiles on this thread whatever is to be compiled. For tests, tools and benchmarks; the daemon has a thread for it.
    pub fn compile_policies(&self) {
        while let Some(task) = self.policy_to_compile() {
            let result = task.compile(None);
            self.policy_compiled(&task, result);
        }
    }

    /// Has policies compiled again that were refused for a reason that may have passed.
    pub fn retry_policies(&self) {
        let mut slots = self.policy_slots.lock();
        slots.refused.take_if(|refusal| refusal.is_temporary());
        slots.candidate.take_if(|of| matches!(&of.result, Err(refusal) if refusal.is_temporary()));
    }

    /// Whether there are policies to free.
    #[must_use]
    pub fn has_unused_policies(&self) -> bool {
        !self.policy_slots.lock().retired.is_empty()
    }

    /// Frees policies that are not used any longer.
    pub fn free_policies(&self) {
        let unused = {
            let mut slots = self.policy_slots.lock();
            let (unused, used) =
                std::mem::take(&mut slots.retired).into_iter().partition(|p| Arc::strong_count(p) == 1);
            slots.retired = used;
            let unused: Vec<Arc<ActivePolicy>> = unused;
            unused
        };
        // Not under the lock.
        drop(unused);
    }

    /// What this member reports of the candidate; `None`: nothing yet, or there is none.
    #[must_use]
    pub fn policy_report(&self) -> Option<PolicyReport> {
        let slots = self.policy_slots.lock();
        let of = slots.candidate.as_ref()?;
        Some(PolicyReport { hash: of.candidate.hash, refused: of.result.as_ref().err().map(ToString::to_string) })
    }

    /// Why the policy in force was refused here, if it was.
    #[must_use]
    pub fn policy_refused(&self) -> Option<String> {
        self.policy_slots.lock().refused.as_ref().map(ToString::to_string)
    }

    /// Whether this member has compiled the policy in force. If not, it drops everything, and must have no lease.
    #[must_use]
    pub fn is_policy_compiled(&self) -> bool {
        self.policy_slots.lock().closed.is_none()
    }

    /// Says whether packets pass here: whether the lease is, or is about to be, valid or in its grace. It is not to be so
    /// unless this returns true; that is, without a compiled policy.
    pub fn set_packets_pass(&self, pass: bool) -> bool {
        let mut slots = self.policy_slots.lock();
        slots.packets_pass = pass && slots.closed.is_none();
        slots.packets_pass
    }

    /// Whether a sweep may revoke the sessions that the policy in force forbids. While a policy waits for its confirmation, it
    /// may not: they drop, and stay for the case that the policy before comes back.
    #[must_use]
    pub fn may_revoke_forbidden(&self) -> bool {
        // Every policy is final as soon as it is in force.
        self.is_policy_compiled()
    }

    /// Whether apply has to wait until this candidate is compiled.
    pub(crate) fn waits_for(&self, wanted: &Arc<Candidate>) -> bool {
        let slots = self.policy_slots.lock();
        let is_compiled = |of: &CandidateResult| Arc::ptr_eq(&of.candidate, wanted) && of.result.is_ok();
        slots.packets_pass && !slots.candidate.as_ref().is_some_and(is_compiled)
    }

    /// Puts a candidate in force, whose end as a candidate `publish` makes known.
    pub(crate) fn enact_policy(
        &self,
        (candidate, record): (Arc<Candidate>, Arc<PolicyRecord>),
        publish: impl FnOnce(),
    ) {
        let mut slots = self.policy_slots.lock();
        let compiled = slots.take(&candidate);
        // The zones first: rules are about their numbers.
        publish();
        slots.refused = None;
        let policy = match compiled {
            Some(CompiledPolicy(compiled)) => {
                slots.closed = None;
                *compiled
            }
            None => {
                let generation = record.generation;
                slots.closed = Some(record);
                slots.packets_pass = false;
                ActivePolicy { generation, ..ActivePolicy::default() }
            }
        };
        let old = self.activate(policy);
        slots.retired.push(old);
    }

    /// Forgets what was compiled of a candidate that is none any longer.
    pub(crate) fn forget_old_candidate(&self) {
        let mut slots = self.policy_slots.lock();
        let cluster = self.cluster.load();
        let is_old =
            |of: &mut CandidateResult| !cluster.candidate.as_ref().is_some_and(|now| Arc::ptr_eq(now, &of.candidate));
        if let Some(CandidateResult { result: Ok(CompiledPolicy(compiled)), .. }) = slots.candidate.take_if(is_old) {
            slots.retired.push(Arc::from(compiled));
        }
    }

    /// Puts in force what a snapshot says. A policy that is active here already stays so; another one is to be compiled first.
    pub(crate) fn install_policy(&self, cluster: ClusterState, generation: Generation) {
        let mut slots = self.policy_slots.lock();
        let record = cluster.policies.last().cloned();
        let numbers = zone_numbers(&cluster);
        let is_active = record.as_ref().is_some_and(|record| {
            let active = self.active_policy.load();
            let zones =
                || record.zones.iter().map(|name| numbers.get(name.as_str()).copied().unwrap_or(ZoneId::UNKNOWN));
            let same =
                |(hash, known): &(PolicyHash, Vec<ZoneId>)| *hash == record.hash && known.iter().copied().eq(zones());
            active.generation == generation && active.source.as_ref().is_some_and(same)
        });
        self.publish(cluster);
        if is_active {
            return;
        }
        (slots.closed, slots.refused) = (record, None);
        slots.packets_pass &= slots.closed.is_none();
        let old = self.activate(ActivePolicy { generation, ..ActivePolicy::default() });
        slots.retired.push(old);
    }
}
