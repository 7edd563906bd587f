//! P3, fail closed: a member that is cut off admits nothing new once its lease is no longer valid, nor under a policy
//! that is no longer in force; and nothing is released before a majority has it on disk. (Two leaders at a time are no split
//! brain: openraft orders those of one term by their ids. What they would decide differently shows as two states at one
//! index: P6.)

use std::collections::{BTreeMap, BTreeSet};

use palisade_engine::packet_loop::PacketOutcome;
use palisade_engine::parse::Tcp;
use palisade_engine::replica::Command;
use palisade_engine::{Generation, Tuple};
use palisade_node::lease::LEASE_DURATION;

use crate::faults::FaultPlan;
use crate::network::{MEMBERS, MS, Nanos};
use crate::sim::{Fact, Sim, allows_alternate};
use crate::traffic::{ALTERNATE, Kind};
use crate::worker::{Break, ObservedPacket};

use super::Invariant;

/// Being current, and the step in which the simulation sees what happened.
const MARGIN: Nanos = 5 * MS;

#[derive(Default)]
pub(crate) struct FailClosed {
    /// Since when each member has had no majority.
    alone: [Option<Nanos>; MEMBERS],
    /// When each generation was first seen applied anywhere.
    policies: BTreeMap<Generation, Nanos>,
    /// Connections of which a packet passed that a commit was needed for; and where.
    admitted: BTreeSet<usize>,
    passed: BTreeSet<(usize, usize)>,
    /// What SYNs have opened at members that may.
    opened: BTreeSet<Tuple>,
}

fn current_for() -> Nanos {
    u64::try_from(LEASE_DURATION.as_nanos()).unwrap_or(u64::MAX)
}

impl FailClosed {
    fn forwarded(&mut self, seen: &ObservedPacket, sim: &Sim) -> Result<(), String> {
        let segment = &seen.segment;
        let since = self.alone[seen.member].filter(|since| seen.at > since + current_for() + MARGIN);
        if segment.is_syn() {
            if since.is_none() {
                self.opened.insert(segment.tuple);
            }
            // A copy of one that another member has let pass may pass, as the rest of its handshake.
            if let Some(since) = since
                && !self.opened.contains(&segment.tuple)
            {
                return Err(format!("a SYN passed at a member that has been alone since {since}: {seen:?}"));
            }
            if segment.tuple.dst_port == ALTERNATE {
                self.by_old_policy(seen)?;
            }
        }
        let Some(connection) = segment.connection.filter(|_| segment.kind == Kind::Legitimate) else { return Ok(()) };
        if segment.has(Tcp::SYN) {
            return Ok(());
        }
        // From here on the handshake had to be committed.
        let of_it = |command: &Command| matches!(command, Command::Establish(e) if e.original == segment.tuple);
        if self.passed.insert((connection, seen.member))
            && let Some(since) = since
            // What it has applied may pass; also what reached it when it still had a majority, and waited in its kernel.
            && !sim.applied(seen.member, of_it)
        {
            return Err(format!("a new connection passed at a member that has been alone since {since}: {seen:?}"));
        }
        if self.admitted.insert(connection) {
            let disks = sim.durable(of_it).len();
            if disks <= MEMBERS / 2 {
                return Err(format!("released with the session on {disks} disks: {seen:?}"));
            }
        }
        Ok(())
    }

    /// Was a policy that allows it in force lately?
    fn by_old_policy(&self, seen: &ObservedPacket) -> Result<(), String> {
        let lately = seen.at.saturating_sub(current_for() + MARGIN + 20 * MS);
        let mut begins = self.policies.iter().peekable();
        while let Some((generation, _)) = begins.next() {
            let ended = begins.peek().map(|(_, at)| **at);
            if allows_alternate(*generation) && ended.is_none_or(|ended| ended >= lately) {
                return Ok(());
            }
        }
        Err(format!("admitted by a policy that has not been in force for a second: {seen:?}"))
    }
}

impl Invariant for FailClosed {
    fn name(&self) -> &'static str {
        "P3 fail closed"
    }

    fn hear(&mut self, fact: &Fact<'_>, sim: &Sim) -> Result<(), String> {
        // Only what changes it changes it: looked at with every fact, so before the packet that is judged by it.
        for member in 0..MEMBERS {
            match (sim.has_majority(member), self.alone[member]) {
                (true, _) => self.alone[member] = None,
                (false, None) => self.alone[member] = Some(sim.now),
                _ => {}
            }
        }
        match fact {
            Fact::Sample(sample) => {
                self.policies.entry(sample.generation).or_insert(sim.now);
                Ok(())
            }
            Fact::Packet(seen) if seen.outcome == PacketOutcome::Forwarded => {
                self.policies.entry(seen.generation).or_insert(seen.at);
                self.forwarded(seen, sim)
            }
            Fact::Packet(_) | Fact::Fault => Ok(()),
        }
    }
}

#[test]
fn a_member_that_is_cut_off_admits_nothing() {
    crate::seeds(20, FaultPlan::PolicyBehindTheBack).hold();
}

/// In these its followers stand still, it is cut off in one direction, and they wake and answer what it had sent before
/// (docs/decisions/0003-read-index.md).
#[test]
fn a_leader_does_not_prove_itself_by_old_answers() {
    crate::run(100_998, 1, FaultPlan::Everything, None).hold();
    crate::run(107_390, 1, FaultPlan::Everything, None).hold();
}

#[test]
fn fail_closed_fails_if_a_member_holds_itself_for_current() {
    crate::broken(FaultPlan::PolicyBehindTheBack, (None, Break::AlwaysCurrent)).violate("P3 fail closed");
}

#[test]
fn fail_closed_fails_if_packets_are_released_before_the_commit() {
    crate::broken(FaultPlan::Calm, (None, Break::ReleaseBeforeCommit)).violate("P3 fail closed");
}
