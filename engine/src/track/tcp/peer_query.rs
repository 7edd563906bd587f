//! What to do about a segment that is not near what this member knows: it asks the others, and judges by what all know
//! together. Where nobody alive knows, the two directions of the connection prove each other.
//!
//! An honest end answers what reaches it, and names both numbers. So of two segments of opposite directions, each near
//! what the other one says, both are right: to forge that, one would have to know the numbers, or to stand on both sides. Until
//! then nothing is believed: a segment that passes at its word changes nothing here, so that a forged one can not cut the
//! connection off from its own numbers.

use std::time::Duration;

use super::{DirectionState, EdgeJump, SegmentOutcome, Track, WindowCheck, index, seq_diff};
use crate::event::{EndpointSnapshot, ProvisionalSegment, SynParams, TcpSnapshot, UnconfirmedEdge};
use crate::parse::Tcp;
use crate::time::{Coarse, Fine, Time};
use crate::tuple::Direction;

/// How long the others have for an answer: a hold's time.
const ANSWER: Duration = Duration::from_millis(250);

/// For so long an unanswered question shows that what the others knew is lost.
const UNANSWERED: Duration = Duration::from_secs(10);

// A session has no byte to spare, so one word has it all: who answered, a bit each …
const MEMBERS: u32 = (1 << 27) - 1;
/// … which directions' segments have passed at their word since the question, two bits, …
const WORDS: u32 = 27;
/// … that all have answered, …
const SETTLED: u32 = 1 << 29;
/// … that an answer came from a member that may once have known more, and does not see the connection now, …
const GAP: u32 = 1 << 30;
/// … and that one came from a member that sees the connection.
const LIVE: u32 = 1 << 31;

/// What to do about a segment that is not near.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Resolution {
    /// Ask, and hold it.
    QueryPeers,
    /// The others have been asked: hold it.
    AwaitReplies,
    /// All that anybody knows is known here: judge it strictly.
    Strict,
    /// Nobody knows: [`Track::believe`] it, or let it pass at its word.
    Provisional,
}

impl Track {
    /// What to do about a segment that is not near what is known here. `others`: how many members that are not silent may
    /// know more. `lost`: members that are silent may have known more.
    pub(crate) fn resolve(&mut self, tcp: &Tcp, others: u32, lost: bool, now: Time) -> Resolution {
        // Both numbers: acknowledgements without data have one sequence number all.
        let about = tcp.seq ^ tcp.ack.rotate_left(16);
        let forgotten = (self.history_incomplete || self.answers & GAP != 0) && self.answers & LIVE == 0;
        let nobody = lost || forgotten;
        if others == 0 && !nobody {
            return Resolution::Strict;
        }
        if let Some(age) = self.asked.age(now) {
            self.settle(others);
            let settled = self.answers & SETTLED != 0;
            if age < ANSWER {
                match (settled, nobody) {
                    (false, _) => return Resolution::AwaitReplies,
                    (true, true) => return Resolution::Provisional,
                    (true, false) if self.asked_about == about => return Resolution::Strict,
                    (true, false) => {}
                }
            } else if !settled && age < UNANSWERED && !self.is_confirmed_within(age, now) {
                // Nor has anything shown the numbers since. For the time of an answer nobody knows: the other direction has its turn, too.
                (self.asked, self.answers) = (Fine::new(now), SETTLED | GAP);
                return Resolution::Provisional;
            }
        }
        (self.asked, self.asked_about, self.answers) = (Fine::new(now), about, 0);
        self.settle(others);
        // Alone, there is nobody to ask.
        if others == 0 { Resolution::Provisional } else { Resolution::QueryPeers }
    }

    /// May a segment of this direction pass at its word? One after each question.
    pub(crate) fn allow_provisional(&mut self, direction: Direction) -> bool {
        let bit = 1 << (WORDS as usize + index(direction));
        let first = self.answers & bit == 0;
        self.answers |= bit;
        first
    }

    /// Judges a segment by what one of the other direction said, where nobody knows. If the two agree, both are right, and that is
    /// known from now on; otherwise nothing changes.
    pub(crate) fn corroborate(
        &mut self,
        syns: [&SynParams; 2],
        direction: Direction,
        tcp: &Tcp,
        word: &ProvisionalSegment,
        now: Time,
    ) -> SegmentOutcome {
        // After a FIN a RST need not be exact; of numbers that nobody knows it must.
        if tcp.has(Tcp::RST) && tcp.seq != word.ack {
            return SegmentOutcome::Inconclusive;
        }
        let before = *self;
        let (s, r) = (index(direction), index(direction.flip()));
        for (end, edge) in [(s, word.ack), (r, word.seq_end)] {
            let end = &mut self.directions[end];
            (end.seq_end, end.snd_una, end.window_end) = (edge, edge, edge);
            end.confirmed_at = Coarse::new(now);
        }
        self.jump = 0;
        let seen = self.check_segment(syns, direction, tcp, None, WindowCheck::Relaxed, now);
        if !matches!(seen, SegmentOutcome::InWindow | SegmentOutcome::Fin(_) | SegmentOutcome::Rst) {
            *self = before;
            return SegmentOutcome::Inconclusive;
        }
        self.history_incomplete = false;
        seen
    }

    /// Are this connection's numbers known as they were so lately?
    pub(crate) fn is_confirmed_within(&self, within: Duration, now: Time) -> bool {
        self.confirmation_ages(now).into_iter().flatten().any(|age| age < within)
    }

    /// What this member knows. `live`: it saw the connection lately.
    pub(crate) fn snapshot(&self, now: Time, live: bool) -> TcpSnapshot {
        let sent = |at: usize, end: &DirectionState| {
            // What is not confirmed here must not become the others' knowledge.
            let before = self.jump().filter(|jump| index(jump.of) == at).map(|jump| jump.before());
            let age = end.confirmed_at.age(now).filter(|_| !self.history_incomplete);
            EndpointSnapshot {
                seq_end: before.unwrap_or(end.seq_end),
                snd_una: before.unwrap_or(end.snd_una),
                window_end: before.unwrap_or(end.window_end),
                max_window: end.max_window,
                age_ms: age.map(|age| u32::try_from(age.as_millis()).unwrap_or(u32::MAX)),
                fin_end: end.fin(),
            }
        };
        let unconfirmed = self.jump().map(|jump| UnconfirmedEdge {
            of: jump.of,
            by: jump.by,
            seq_end: self.directions[index(jump.of)].seq_end,
        });
        TcpSnapshot {
            endpoints: [sent(0, &self.directions[0]), sent(1, &self.directions[1])],
            unconfirmed,
            live,
            history_incomplete: self.history_incomplete,
        }
    }

    /// Takes in what another member knows.
    pub(crate) fn merge_snapshot(&mut self, known: &TcpSnapshot, now: Time) {
        for (end, theirs) in self.directions.iter_mut().zip(&known.endpoints) {
            end.merge(theirs, now);
            if let Some(fin) = theirs.fin_end.filter(|fin| !end.fin_known && seq_diff(*fin, end.seq_end) >= 0) {
                (end.fin_end, end.fin_known) = (fin, true);
            }
        }
        // Whoever has never missed anything has told what this member may have missed.
        self.history_incomplete &= known.history_incomplete || known.endpoints.iter().any(|end| end.age_ms.is_none());
        // Their edges have no part in what is unconfirmed there; their claim has.
        let confirmed = |jump: &EdgeJump| {
            let claimed = known.unconfirmed.is_some_and(|claim| jump.is_confirmed(claim.of, claim.seq_end, claim.by));
            claimed || jump.is_reached(jump.of, known.endpoints[index(jump.of)].seq_end)
        };
        if self.jump().as_ref().is_some_and(confirmed) {
            self.jump = 0;
        }
    }

    /// Takes in the answer of another member, by its place among them. Is it time to judge again? The word of one that sees the
    /// connection may show that a segment belongs; that it does not, only all together can.
    pub(crate) fn record_reply(&mut self, place: usize, known: &TcpSnapshot, others: u32, now: Time) -> bool {
        self.merge_snapshot(known, now);
        self.answers |= 1 << (place % MEMBERS.count_ones() as usize);
        match (known.live, known.history_incomplete) {
            (true, _) => self.answers |= LIVE,
            (false, true) => self.answers |= GAP,
            (false, false) => {}
        }
        self.settle(others);
        known.live || self.is_answered(others)
    }

    /// Have so many others answered?
    fn is_answered(&self, others: u32) -> bool {
        (self.answers & MEMBERS).count_ones() >= others
    }

    /// If so many others have answered, that stays so, though another one may come that was not asked.
    fn settle(&mut self, others: u32) {
        if self.is_answered(others) {
            self.answers |= SETTLED;
        }
    }
}
