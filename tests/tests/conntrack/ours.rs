//! Palisade's side: the engine of a cluster of one member, with a worker around it as `node` has.

use std::sync::Arc;
use std::time::Duration;

use palisade_engine::hold::{HoldBuffer, HoldLimits};
use palisade_engine::parse::{self, Checksum, Packet};
use palisade_engine::replica::{Applied, Batch, Command, Outcome, PolicyChange, Replica};
use palisade_engine::{
    Config, Context, Engine, Event, Generation, HoldKey, Ip, LeaseState, MemberId, Proposal, Reason, Routes, Time,
    Verdict, Wake, WorkerSet, ZoneId,
};
use palisade_tests::OPEN_POLICY;

use crate::packet::Side;

/// Between two packets of a history. The kernel needs about as long.
const STEP: Duration = Duration::from_micros(100);

const MEMBER: MemberId = MemberId(1);

/// What Palisade does with a packet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Ours {
    Forward,
    /// Forwarded after it was held for what came later.
    Late,
    Drop(Reason),
    /// Held, and when it was judged again not let pass.
    LateDrop(Reason),
    /// Fragments passed, but not all of a datagram.
    Incomplete,
}

impl Ours {
    pub(crate) fn passes(self) -> bool {
        matches!(self, Ours::Forward | Ours::Late)
    }
}

/// A packet's number in its history.
pub(crate) type Number = usize;

struct Held {
    number: Number,
    from: Side,
    packet: Packet,
}

pub(crate) struct Engines {
    engine: Arc<Engine>,
    replica: Replica,
    zones: Zones,
    hold: HoldBuffer<Held>,
    now: Time,
    next: u64,
    /// Verdicts that are final, not yet told.
    done: Vec<(Number, Ours)>,
}

#[derive(Clone, Copy)]
struct Zones([ZoneId; 2]);

impl Routes for Zones {
    fn zone(&mut self, destination: Ip) -> Option<ZoneId> {
        Side::of(destination).map(|side| self.0[side.index()])
    }
}

#[derive(Default)]
struct Keys(Vec<HoldKey>);

impl Wake for Keys {
    fn wake(&mut self, _: WorkerSet, key: HoldKey) {
        self.0.push(key);
    }
}

impl Engines {
    pub(crate) fn new() -> Engines {
        let engine = Engine::new(Config::new(MEMBER, 1, 7));
        // As a node's defaults are.
        let limits = HoldLimits::default();
        let mut ours = Engines {
            replica: Replica::new(engine.clone()),
            engine,
            zones: Zones([ZoneId::UNKNOWN; 2]),
            hold: HoldBuffer::new(limits),
            now: Time(1_000_000_000),
            next: 0,
            done: Vec::new(),
        };
        let change = PolicyChange::new(Generation(0), OPEN_POLICY.to_owned(), "differential".to_owned());
        let enact = Command::Enact(Box::new(change.enactment()));
        ours.commit(vec![Command::Policy(Box::new(change))]);
        ours.engine.compile_policies();
        let (outcomes, _) = ours.commit(vec![enact]);
        assert_eq!(outcomes, [Outcome::Policy(Generation(1))]);
        ours.zones = Zones(["outside", "inside"].map(|name| ours.engine.zone(name)));
        ours
    }

    fn commit(&mut self, commands: Vec<Command>) -> (Vec<Outcome>, Vec<HoldKey>) {
        let first = self.next;
        self.next += commands.len() as u64;
        let batch = Batch { proposer: MEMBER, first_serial: first, lowest_outstanding: first, unix_ms: 0, commands };
        let mut woken = Keys::default();
        let outcomes = Applied::outcomes(&self.replica.apply(self.now, &batch, &mut woken));
        (outcomes, woken.0)
    }

    /// Takes a packet; the verdicts that are now final, this packet's perhaps among them.
    pub(crate) fn give(&mut self, number: Number, from: Side, bytes: &[u8]) -> Vec<(Number, Ours)> {
        self.pause(STEP);
        match parse::parse(bytes, Checksum::Complete) {
            Ok(packet) => self.judge(self.now, Held { number, from, packet }),
            Err(reason) => self.done.push((number, Ours::Drop(reason))),
        }
        std::mem::take(&mut self.done)
    }

    fn judge(&mut self, since: Time, held: Held) {
        let mut context = Context {
            now: self.now,
            worker: 0,
            ingress: self.zones.0[held.from.index()],
            antispoof: true,
            lease: LeaseState::Valid,
            routes: &mut self.zones,
        };
        let mut events = Vec::new();
        let verdict = self.engine.process(&held.packet, &mut context, &mut events);
        let number = held.number;
        match verdict {
            Verdict::Forward if since < self.now => self.done.push((number, Ours::Late)),
            Verdict::Forward => self.done.push((number, Ours::Forward)),
            Verdict::Drop(reason) | Verdict::Reject(reason) if since < self.now => {
                self.done.push((number, Ours::LateDrop(reason)));
            }
            Verdict::Drop(reason) | Verdict::Reject(reason) => self.done.push((number, Ours::Drop(reason))),
            Verdict::Hold(key, class) => {
                let bytes = held.packet.length as usize;
                if let Err((_, reason)) = self.hold.hold(since, key, class, bytes, held) {
                    self.done.push((number, Ours::Drop(reason)));
                }
            }
        }
        self.settle(events);
    }

    /// Commits what was proposed, and judges again what that wakes.
    fn settle(&mut self, events: Vec<Event>) {
        let mut woken: Vec<HoldKey> = events.iter().filter_map(woken).collect();
        let commands: Vec<Command> = events.into_iter().filter_map(command).collect();
        if !commands.is_empty() {
            woken.extend(self.commit(commands).1);
        }
        let mut again = Vec::new();
        for key in woken {
            self.hold.release(key, &mut |since, held| again.push((since, held)));
        }
        for (since, held) in again {
            self.judge(since, held);
        }
    }

    /// Time passes.
    fn pause(&mut self, time: Duration) {
        self.now = self.now + time;
        let done = &mut self.done;
        self.hold.expire(self.now, &mut |_, _, held| done.push((held.number, Ours::Drop(Reason::HoldExpired))));
        let mut events = Vec::new();
        self.engine.tick(self.now, &mut events);
        self.settle(events);
    }

    /// Whether it holds packets that match nothing.
    pub(crate) fn unmatched(&self) -> bool {
        self.hold.counts().unmatched > 0
    }

    /// Time passes; the verdicts that are final by that.
    pub(crate) fn wait(&mut self, time: Duration) -> Vec<(Number, Ours)> {
        self.pause(time);
        std::mem::take(&mut self.done)
    }
}

/// Hints are for other members, of which there are none.
fn command(event: Event) -> Option<Command> {
    match event {
        Event::Propose(Proposal::Establish(establish)) => Some(Command::Establish(establish)),
        Event::Propose(Proposal::Close(close)) => Some(Command::Close(close)),
        Event::Propose(Proposal::Refresh(id)) => Some(Command::Refresh(vec![id])),
        Event::Hint(_) | Event::Wake { .. } | Event::Log(_) => None,
    }
}

/// What the engine itself wants judged again.
fn woken(event: &Event) -> Option<HoldKey> {
    match event {
        Event::Wake { key, .. } => Some(*key),
        Event::Hint(_) | Event::Propose(_) | Event::Log(_) => None,
    }
}
