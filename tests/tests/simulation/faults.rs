//! What happens to the members, and when: drawn from the seed, or told by a test.

use std::collections::BTreeMap;

use palisade_lab::random::Random;

use crate::network::{Link, MEMBERS, MS, Nanos, SECOND};
use crate::traffic::{ALTERNATE, Kind, Traffic, WEB};
use crate::worker::HintFaults;

/// How badly packets of the traffic are treated, each of a thousand.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct PacketFaults {
    pub(crate) lost: usize,
    pub(crate) copied: usize,
    /// Sent to any member, also one that takes none.
    pub(crate) stray: usize,
    /// Longest additional delay; what comes later overtakes.
    pub(crate) delay: Nanos,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum LinkChange {
    Cut(bool),
    Delay(Nanos, Nanos),
    Loss(usize),
}

impl LinkChange {
    pub(crate) fn apply(self, link: &mut Link) {
        match self {
            LinkChange::Cut(cut) => link.cut = cut,
            LinkChange::Delay(shortest, longest) => link.delay = (shortest, longest),
            LinkChange::Loss(loss) => link.loss = loss,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// From now on nothing happens, and all is as it should be.
    Calm,
    /// All is repaired.
    Healed,
    Link {
        from: usize,
        to: usize,
        change: LinkChange,
    },
    /// `killed`: the program only. Otherwise the host loses power.
    Crash {
        member: usize,
        killed: bool,
    },
    Start(usize),
    Stall(usize),
    /// After a stall. Its monotonic clock went on meanwhile, or only the boot-time clock.
    Wake {
        member: usize,
        monotonic_too: bool,
    },
    /// Flushes take from `flush.0` to `flush.1`.
    Disk {
        member: usize,
        flush: (Nanos, Nanos),
    },
    /// The wall clock jumps, in milliseconds.
    Jump {
        member: usize,
        by: i64,
    },
    /// An administrator of this member changes the policy.
    Policy(usize),
    Hints(HintFaults),
    Packets(PacketFaults),
    Forge(Kind),
    Flood(Kind, usize),
    /// One member that does not lead stands still, or has a slow disk; all else is well.
    SlowFollower {
        stalls: bool,
    },
    /// Breaks the disk's promise: it answers before it has written.
    Lie(usize),
    /// Breaks the disk: it changes policies.
    Rot(usize),
}

/// The faults of a run, by time.
pub(crate) type Faults = BTreeMap<(Nanos, u64), Fault>;

/// What a run is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FaultPlan {
    /// Calm; one slow follower; whatever the seed says; repaired, and calm again.
    Everything,
    /// All is well.
    Calm,
    /// One follower is slow, and all else well.
    SlowFollower,
    /// The member that leads and one whose host lost power in its turn: two losses of one member each.
    TwoLosses { lying: bool },
    /// The policy changes while one member is cut off, by turns each of them.
    PolicyBehindTheBack,
    /// As [`FaultPlan::Everything`], but the disk of a member changes policies.
    Rotten,
}

#[derive(Clone, Debug)]
pub(crate) struct RunPlan {
    pub(crate) fault_plan: FaultPlan,
    /// How long flushes take.
    pub(crate) flush: (Nanos, Nanos),
}

const USUAL_FLUSH: (Nanos, Nanos) = (MS, 3 * MS);

// Times of a run, from its beginning.
const SLOW_FROM: Nanos = 700 * MS;
const SLOW_TO: Nanos = 2_000 * MS;
const ROUGH_FROM: Nanos = 2_600 * MS;
const ROUGH_TO: Nanos = 5_600 * MS;
const CALM_AGAIN: Nanos = 7_600 * MS;
const END: Nanos = 9_600 * MS;

struct Script<'a> {
    faults: Faults,
    number: u64,
    began: Nanos,
    random: &'a mut Random,
}

impl Script<'_> {
    fn at(&mut self, time: Nanos, fault: Fault) {
        self.number += 1;
        self.faults.insert((self.began + time, self.number), fault);
    }

    fn between(&mut self, from: Nanos, to: Nanos) -> Nanos {
        from + self.random.number() % (to - from)
    }

    fn member(&mut self) -> usize {
        self.random.below(MEMBERS)
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.random.below(n) == 0
    }

    /// Cuts one direction between two members, or heals it.
    fn cut(&mut self, time: Nanos, from: usize, to: usize, cut: bool) {
        self.at(time, Fault::Link { from, to, change: LinkChange::Cut(cut) });
    }

    fn incident(&mut self) {
        let from = self.between(ROUGH_FROM, ROUGH_TO - 200 * MS);
        let to = self.between(from + 50 * MS, ROUGH_TO.min(from + 2 * SECOND));
        let member = self.member();
        let others: Vec<usize> = (0..MEMBERS).filter(|n| *n != member).collect();
        match self.random.below(15) {
            // Cut off, in both directions or one.
            0 | 1 => {
                let direction = self.random.below(4);
                for other in others {
                    for (a, b) in [(member, other), (other, member)]
                        .into_iter()
                        .skip(usize::from(direction == 1))
                        .take(if direction == 2 { 1 } else { 2 })
                    {
                        self.cut(from, a, b, true);
                        self.cut(to, a, b, false);
                    }
                }
            }
            // One pair.
            2 => {
                let other = others[self.random.below(2)];
                self.cut(from, member, other, true);
                self.cut(to, member, other, false);
                if self.one_in(2) {
                    self.cut(from, other, member, true);
                    self.cut(to, other, member, false);
                }
            }
            3 | 4 => {
                let killed = self.one_in(2);
                self.at(from, Fault::Crash { member, killed });
                self.at(to, Fault::Start(member));
            }
            5 | 6 => {
                let monotonic_too = !self.one_in(3);
                self.at(from, Fault::Stall(member));
                self.at(to, Fault::Wake { member, monotonic_too });
            }
            7 => {
                let slowest = self.between(10 * MS, 200 * MS);
                self.at(from, Fault::Disk { member, flush: (slowest / 4, slowest) });
                self.at(to, Fault::Disk { member, flush: USUAL_FLUSH });
            }
            8 => {
                let (loss, longest) = (self.random.below(100), self.between(5 * MS, 60 * MS));
                for other in others {
                    for (a, b) in [(member, other), (other, member)] {
                        self.at(from, Fault::Link { from: a, to: b, change: LinkChange::Loss(loss) });
                        self.at(from, Fault::Link { from: a, to: b, change: LinkChange::Delay(MS, longest) });
                    }
                }
            }
            9 => {
                let faults = HintFaults {
                    lost: self.random.below(300),
                    copied: self.random.below(300),
                    late: self.random.below(300),
                };
                self.at(from, Fault::Hints(faults));
            }
            10 => {
                let faults = PacketFaults {
                    lost: self.random.below(100),
                    copied: self.random.below(100),
                    stray: self.random.below(300),
                    delay: self.between(1, 50 * MS),
                };
                self.at(from, Fault::Packets(faults));
            }
            11 => {
                let by = i64::try_from(self.random.number() % 7_200_000).unwrap_or(0) - 3_600_000;
                self.at(from, Fault::Jump { member, by });
            }
            12 => self.at(from, Fault::Policy(member)),
            13 => {
                let count = 50 + self.random.below(400);
                self.at(from, Fault::Flood(Kind::Flood, count));
            }
            // All of them lose power.
            _ if self.one_in(3) => {
                for member in 0..MEMBERS {
                    self.at(from, Fault::Crash { member, killed: false });
                    self.at(to, Fault::Start(member));
                }
            }
            _ => self.at(from, Fault::Policy(member)),
        }
    }

    fn repair(&mut self, time: Nanos) {
        let normal = (MS, 4 * MS);
        for member in 0..MEMBERS {
            self.at(time, Fault::Wake { member, monotonic_too: true });
            self.at(time, Fault::Start(member));
            self.at(time, Fault::Disk { member, flush: USUAL_FLUSH });
            for to in (0..MEMBERS).filter(|to| *to != member) {
                for change in [LinkChange::Cut(false), LinkChange::Loss(0), LinkChange::Delay(normal.0, normal.1)] {
                    self.at(time, Fault::Link { from: member, to, change });
                }
            }
        }
        self.at(time, Fault::Hints(HintFaults::default()));
        self.at(time, Fault::Packets(PacketFaults::default()));
        self.at(time, Fault::Healed);
    }

    fn slow_follower(&mut self) {
        let stalls = self.one_in(2);
        self.at(SLOW_FROM, Fault::SlowFollower { stalls });
        self.repair(SLOW_TO);
    }

    /// Packets that must not pass, all the time; near misses only while all is well. (A member that takes a connection
    /// over has to believe numbers that are as near as that, until both directions have spoken.)
    fn attacks(&mut self, end: Nanos, quiet: Nanos, count: usize) {
        for _ in 0..count {
            let time = self.between(300 * MS, end);
            let kind = if time > quiet || self.one_in(2) { Kind::Blind } else { Kind::Near };
            self.at(time, Fault::Forge(kind));
        }
    }
}

impl RunPlan {
    pub(crate) fn of(fault_plan: FaultPlan) -> RunPlan {
        RunPlan { fault_plan, flush: USUAL_FLUSH }
    }

    pub(crate) fn faults(&self, random: &mut Random, began: Nanos) -> Faults {
        let mut script = Script { faults: Faults::new(), number: 0, began, random };
        let (end, _) = self.times(0);
        match self.fault_plan {
            FaultPlan::Calm => script.attacks(end, end, 60),
            FaultPlan::SlowFollower => script.slow_follower(),
            FaultPlan::Everything | FaultPlan::Rotten => {
                if self.fault_plan == FaultPlan::Rotten {
                    script.at(0, Fault::Rot(1));
                    script.at(1, Fault::Policy(0));
                }
                script.attacks(end, SLOW_FROM, 100);
                script.slow_follower();
                let incidents = 2 + script.random.below(7);
                for _ in 0..incidents {
                    script.incident();
                }
                script.at(ROUGH_FROM, Fault::Flood(Kind::Forbidden, 10));
                script.at(ROUGH_FROM, Fault::Flood(Kind::Flood, 100));
                script.repair(ROUGH_TO);
                script.at(CALM_AGAIN, Fault::Calm);
            }
            FaultPlan::TwoLosses { lying } => {
                // Member 2 has nothing of what is decided now; of the two others one loses power, and then the other one too.
                let away = 2;
                for other in [0, 1] {
                    script.cut(MS, away, other, true);
                    script.cut(MS, other, away, true);
                    if lying {
                        script.at(0, Fault::Lie(other));
                        script.at(0, Fault::Disk { member: other, flush: (SECOND, SECOND) });
                    }
                }
                script.at(2 * SECOND, Fault::Crash { member: 0, killed: false });
                script.at(2 * SECOND, Fault::Crash { member: 1, killed: false });
                script.at(2_300 * MS, Fault::Start(1));
                script.repair(2_400 * MS);
                script.at(4 * SECOND, Fault::Calm);
            }
            FaultPlan::PolicyBehindTheBack => {
                for member in 0..MEMBERS {
                    let begin = MS + member as Nanos * 2_500 * MS;
                    for other in (0..MEMBERS).filter(|other| *other != member) {
                        script.cut(begin, member, other, true);
                        script.cut(begin, other, member, true);
                        script.cut(begin + 2 * SECOND, member, other, false);
                        script.cut(begin + 2 * SECOND, other, member, false);
                    }
                    // Routers do not notice.
                    script.at(begin, Fault::Packets(PacketFaults { stray: 1000, ..PacketFaults::default() }));
                    script.at(begin + 600 * MS, Fault::Policy((member + 1) % MEMBERS));
                    script.at(begin + 650 * MS, Fault::Policy((member + 2) % MEMBERS));
                }
            }
        }
        script.faults
    }

    /// When the run ends, and until when connections open.
    pub(crate) fn times(&self, began: Nanos) -> (Nanos, Nanos) {
        let (end, opens) = match self.fault_plan {
            FaultPlan::Calm => (2 * SECOND, 1_500 * MS),
            FaultPlan::SlowFollower => (SLOW_TO + 200 * MS, SLOW_TO - 200 * MS),
            FaultPlan::Everything | FaultPlan::Rotten => (END, END - 500 * MS),
            FaultPlan::TwoLosses { .. } => (7 * SECOND, 1_800 * MS),
            FaultPlan::PolicyBehindTheBack => (8 * SECOND, 7_500 * MS),
        };
        (began + end, began + opens)
    }

    pub(crate) fn connections(&self, traffic: &mut Traffic, random: &mut Random, began: Nanos, until: Nanos) {
        let count = (until - began) / (150 * MS);
        for number in 0..count {
            let time = began + random.number() % (until - began);
            traffic.plan(time, if number % 4 == 3 { ALTERNATE } else { WEB });
        }
    }
}
