//! Races (P1): for any order of packets, hints, commits and applies, with hints lost and duplicated, a packet of a
//! legitimate connection is never dropped, and no member forwards its data before it has applied the establishment.

use proptest::prelude::*;

use super::cluster::*;
use crate::testing::POLICY;
use crate::verdict::Verdict;

#[derive(Clone, Copy, Debug)]
enum Step {
    Deliver(usize),
    Lose(usize),
    Duplicate(usize),
    Client(usize),
    Server(usize),
    Commit,
    Apply(usize),
    Policy,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_usize..100).prop_map(Step::Deliver),
        1 => (0_usize..100).prop_map(Step::Lose),
        1 => (0_usize..100).prop_map(Step::Duplicate),
        4 => (0_usize..3).prop_map(Step::Client),
        4 => (0_usize..3).prop_map(Step::Server),
        2 => Just(Step::Commit),
        3 => (0_usize..3).prop_map(Step::Apply),
        1 => Just(Step::Policy),
    ]
}

/// The state of the two endpoints.
#[derive(Default)]
struct Endpoints {
    server_has_syn: bool,
    client_has_syn_ack: bool,
}

impl Endpoints {
    /// The client sends the packet that its state requires.
    fn client(&mut self, k: &mut Cluster, c: &Conn, at: usize) -> Verdict {
        if !self.client_has_syn_ack {
            let verdict = k.pass(at, c.syn());
            self.server_has_syn |= verdict == Verdict::Forward;
            return verdict;
        }
        let applied = k.members[at].engine.counts().sessions.iter().any(|s| s.2 > 0);
        let verdict = k.pass(at, c.data());
        assert_eq!(verdict == Verdict::Forward, applied, "forwarded if and only if the establishment is applied");
        verdict
    }

    fn server(&mut self, k: &mut Cluster, c: &Conn, at: usize) -> Option<Verdict> {
        let verdict = self.server_has_syn.then(|| k.pass(at, c.syn_ack()))?;
        self.client_has_syn_ack |= verdict == Verdict::Forward;
        Some(verdict)
    }
}

fn legitimate(verdict: Verdict) -> bool {
    verdict == Verdict::Forward || verdict.held().is_some()
}

proptest! {
    #[test]
    fn race_never_drops_a_legitimate_connection(steps in prop::collection::vec(step(), 1..80)) {
        let (mut k, c, mut endpoints) = (Cluster::new(), Conn::new(1), Endpoints::default());
        for step in steps {
            k.now = k.now + MS;
            let hint = |n: usize, k: &Cluster| n.checked_rem(k.hints.len());
            match step {
                Step::Deliver(n) => {
                    if let Some(at) = hint(n, &k) {
                        let one = k.hints.remove(at);
                        let rest = std::mem::replace(&mut k.hints, vec![one]);
                        k.deliver_one();
                        k.hints.extend(rest);
                    }
                }
                Step::Lose(n) => {
                    if let Some(at) = hint(n, &k) {
                        k.hints.remove(at);
                    }
                }
                Step::Duplicate(n) => {
                    if let Some(at) = hint(n, &k) {
                        let copy = k.hints[at].clone();
                        k.hints.push(copy);
                    }
                }
                Step::Client(at) => prop_assert!(legitimate(endpoints.client(&mut k, &c, at))),
                Step::Server(at) => prop_assert!(endpoints.server(&mut k, &c, at).is_none_or(legitimate)),
                Step::Commit => k.commit(),
                Step::Apply(at) => drop(k.apply(at)),
                Step::Policy => {
                    let proposals = std::mem::take(&mut k.proposals);
                    k.policy(POLICY);
                    k.proposals = proposals;
                }
            }
        }
        // After retransmissions by both endpoints everything arrives.
        for _ in 0..4 {
            k.deliver();
            endpoints.client(&mut k, &c, A);
            k.deliver();
            endpoints.server(&mut k, &c, B);
            k.deliver();
            k.settle();
            k.now = k.now + 1000 * MS;
        }
        prop_assert!(endpoints.client_has_syn_ack);
        for m in [A, B, C] {
            prop_assert_eq!(endpoints.client(&mut k, &c, m), Verdict::Forward);
            prop_assert_eq!(k.members[m].engine.counts().half_open, 0);
        }
    }
}
