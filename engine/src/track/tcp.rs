//! TCP: sequence windows, FIN, RST and TIME_WAIT of an established connection.
//!
//! ```text
//!                  FIN of one end            FIN of the other             Close{Fin} applied
//!   ESTABLISHED ──────────────────> FIN_WAIT ────────────────> LAST_ACK ───────────────────> TIME_WAIT ── time ──> (none)
//!        │                              │   └─ its ACK ─> CLOSE_WAIT ─┘                           │
//!        │ valid RST                    │ valid RST                                               │ SYN: a new half-open
//!        └──────────────────────────────┴─────────> (RST hinted, Close proposed) ─ applied ─> CLOSE ┘ session supersedes it
//! ```
//!
//! All other combinations change nothing. The way to ESTABLISHED (SYN_SENT, SYN_RECV) is the half-open session's, in
//! `pipeline::opening`. FINs and RSTs are known by the packets that pass here and by hints of the other members.
//!
//! # Every combination
//!
//! What becomes of a segment whose numbers are right. Two signs: client's, server's; one: both. `tests::table` enumerates
//! all states, flags and directions, and fails where nobody decided.
//!
//! ```text
//!                    SYN  SYN+ACK  ACK  FIN+ACK  RST  RST+ACK  any other
//!   SYN_SENT          c     h c     h      h     R -     R         !       c  passes: part of the handshake, or its copy
//!   SYN_RECV          c     h c     h      h      R      R         !       h  held until more is known
//!   ESTABLISHED       c      c      p      F      R      R         !       p  passes
//!   FIN_WAIT          c      c      p      F      R      R         !       F  passes, ends its sender's data
//!   CLOSE_WAIT        c      c      p      F      R      R         !       R  passes, ends the connection
//!   LAST_ACK          c      c      p      F      R      R         !       o  may open another connection: the policy's
//!   TIME_WAIT         o      o      p      F      p      p         !       -  is not of this connection: dropped
//!   CLOSE             o      o      p      F      p      p         !       !  INVALID: dropped
//! ```
//!
//! PSH, URG and the ECN flags decide nothing here. A SYN may carry data (RFC 7413). The server's SYN and the client's
//! SYN+ACK are those of a simultaneous open (RFC 9293 section 3.5). A SYN with another sequence number is in every state as
//! in `o`; one a second passes while the session lives, so that its end can answer with a challenge ACK. A SYN+ACK in `o`
//! fits no half-open session, so it is held until one is known, then dropped.
//!
//! # Windows
//!
//! The reference is Guido van Rooij, *Real Stateful TCP Packet Filtering in IP Filter* (2001). His four bounds suppose
//! that every packet of both directions passes. Here, a member usually sees one direction only, and paths change. So a
//! segment from `S` to `R` with sequence numbers `seq..end` is judged in up to two steps.
//!
//! What is known of an end: `edge`, the highest sequence number that it sent, by its own segments or by acknowledgements;
//! `acked`, the highest one acknowledged; `limit`, the highest one that the other end's acknowledgements and windows let
//! it send; `win`, the largest window that it advertised, scaled. `W` is the largest window that it can advertise at all,
//! 65535 × 2^scale (RFC 7323 section 2.2; scale 0 unless both SYNs had the option), plus 1 for a window probe.
//!
//! 1. *Near*: it belongs if it is close to what this member knows from one direction alone:
//!    - `S.edge − min(2^24, W(R)) ≤ seq` and `end ≤ max(S.edge + min(2^21, W(R)), S.limit + 1)`;
//!    - `R.edge − min(2^24, 2 W(S)) ≤ ack ≤ R.edge + min(2^21, W(S))`.
//! 2. *Strict*: otherwise its packets may have passed elsewhere. It is held, and the others are asked what they know
//!    ([`Hint::Progress`](crate::event::Hint)). What they answer is merged, step 1 repeated, and if all of them answered,
//!    van Rooij's bounds decide on what all know together:
//!    - `S.edge − win(R) ≤ seq` and `end ≤ max(S.edge, S.limit + 1)`;
//!    - `R.edge − 2 win(S) ≤ ack ≤ R.edge`, as RFC 5961 section 5.2.
//!
//! If after 250 ms not all have answered, a member is lost, and what it knew with it; so is what a member knew before it
//! restarted, unless another one sees the connection. Then nobody knows, and the two directions prove each other: one
//! segment passes *at its word*, or the connection would be lost, and changes nothing. One of the other direction that is near
//! what that one said shows that both are right ([`peer_query`]). `docs/security.md` has the probabilities.
//!
//! Once an end's FIN is known nothing beyond it belongs. In TIME_WAIT and CLOSE the upper bounds are the edges
//! themselves, so that the packets of a successor on the same ports are never taken for the old connection's.
//!
//! # RST
//!
//! A RST is believed if its sequence number is exactly the next one: the sender's edge or the other end's last
//! acknowledgement (RFC 5961 section 3.2). After a FIN, within min(2^19, W(R)) of the edge. Otherwise step 2: when the others
//! have answered and it still is not exact, it is dropped.

use std::time::Duration;

use super::State;
use crate::event::{EndpointSnapshot, SynParams};
use crate::parse::Tcp;
use crate::replica::CloseCause;
use crate::time::{Coarse, Fine, Time};
use crate::tuple::Direction;
use crate::verdict::Reason;

/// Most that a segment may be ahead of what is known before the others are asked.
const MAX_SEQ_AHEAD: i64 = 1 << 21;

/// Most that it may be behind.
const MAX_SEQ_BEHIND: i64 = 1 << 24;

/// Most that a RST may be off after a FIN.
const RST_SLACK: i64 = 1 << 19;

/// No window is larger (RFC 7323 section 2.3); numbers farther apart than this can not be compared.
const SEQ_COMPARABLE: i64 = 1 << 30;

/// Data that a SYN may carry (RFC 7413), or that may follow before the server's end is known here.
pub(crate) const MAX_SYN_DATA: i64 = 1 << 16;

/// What one end has sent, as far as this member knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct DirectionState {
    /// Highest sequence number sent.
    seq_end: u32,
    /// Highest sequence number that the other end acknowledged.
    snd_una: u32,
    /// Highest sequence number that the other end allowed.
    window_end: u32,
    /// The sequence number after its FIN.
    fin_end: u32,
    /// When `edge` was last confirmed.
    confirmed_at: Coarse,
    /// The largest window that it advertised after its SYN, unscaled.
    max_window: u16,
    /// Its FIN is known.
    fin_known: bool,
    /// Its FIN passed here.
    fin_seen_here: bool,
}

/// The local state of an established connection: 2 × 24 bytes, and what is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Track {
    directions: [DirectionState; 2],
    /// When the others were last asked, to 4 ms: a packet that comes again after [`ANSWER`] never comes too early. Should it
    /// wrap, a question is left out, once.
    asked: Fine,
    /// Who answered, and what came of it: see [`peer_query`].
    answers: u32,
    /// What they were asked about.
    asked_about: u32,
    /// This member may once have known more (it restarted, or joined later).
    history_incomplete: bool,
    /// A RST was believed here or elsewhere.
    reset: bool,
    /// The close was proposed here.
    close_proposed: bool,
    /// [`Track::jump`]: where to, and the rest of it, coded; 0: none.
    jump_to: u32,
    jump: u8,
}

/// An edge that was moved by more than is near ([`WindowCheck::Widened`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct EdgeJump {
    /// Where it was put.
    to: u32,
    /// By less than 2^`bits`, at most 29: what is kept of where it was before.
    bits: u8,
    /// Whose it is.
    of: Direction,
    /// The direction of the segment that said so.
    by: Direction,
}

impl EdgeJump {
    /// In one byte, but for `to`: never 0.
    fn code(self) -> u8 {
        1 << 7 | (index(self.of) as u8) << 6 | (index(self.by) as u8) << 5 | self.bits
    }

    fn decode(to: u32, code: u8) -> Option<EdgeJump> {
        let direction = |bit: u8| if code >> bit & 1 == 0 { Direction::Original } else { Direction::Reply };
        (code != 0).then(|| EdgeJump { to, bits: code & 31, of: direction(6), by: direction(5) })
    }

    fn new(before: u32, to: u32, of: Direction, by: Direction) -> EdgeJump {
        let distance = u64::try_from(seq_diff(to, before)).unwrap_or(0);
        EdgeJump { to, bits: (u64::BITS - distance.leading_zeros()) as u8, of, by }
    }

    /// Where it was before, or a little below.
    fn before(&self) -> u32 {
        seq_add(self.to, -(1 << self.bits))
    }

    /// Does it confirm the jump that packets of direction `by` know this number of `of`'s end?
    fn is_confirmed(&self, of: Direction, number: u32, by: Direction) -> bool {
        self.by != by && self.is_reached(of, number)
    }

    fn is_reached(&self, of: Direction, number: u32) -> bool {
        self.of == of && seq_diff(number, self.to) >= 0
    }
}

/// How a segment is judged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WindowCheck {
    /// By what this member knows.
    Relaxed,
    /// As far as the two ends, the client first, may have moved while a member that died or is cut off carried them. One of
    /// the segment's two numbers must be near all the same.
    Widened([i64; 2]),
    /// By what all know together.
    Strict,
}

/// What a segment means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SegmentOutcome {
    /// It belongs.
    InWindow,
    /// It belongs, and ends its sender's data at this sequence number.
    Fin(u32),
    /// It belongs, and ends the connection.
    Rst,
    /// It does not belong.
    Invalid(Reason),
    /// It is not near what this member knows.
    Inconclusive,
}

/// `a − b` in sequence space: positive if `a` is ahead (RFC 9293 section 3.4).
pub(crate) fn seq_diff(a: u32, b: u32) -> i64 {
    i64::from(a.wrapping_sub(b) as i32)
}

/// The scale of `of`'s windows: 0 unless both have the option (RFC 7323 section 2.2).
fn scale(of: &SynParams, other: &SynParams) -> u8 {
    other.wscale.and(of.wscale).unwrap_or(0).min(14)
}

/// The largest window that `of` can advertise, plus one byte for a window probe.
pub(crate) fn max_advertisable_window(of: &SynParams, other: &SynParams) -> i64 {
    (65_535_i64 << scale(of, other)) + 1
}

/// `base + window`; a window is below 2^30.
fn seq_add(base: u32, window: i64) -> u32 {
    base.wrapping_add(window as u32)
}

fn index(direction: Direction) -> usize {
    match direction {
        Direction::Original => 0,
        Direction::Reply => 1,
    }
}

impl DirectionState {
    fn new(of: &SynParams, other: &SynParams, fresh: Coarse) -> DirectionState {
        let first = of.isn.wrapping_add(1);
        DirectionState {
            seq_end: first,
            snd_una: first,
            // Windows in SYNs are never scaled; they begin behind the SYN's data, of which there is no record.
            window_end: seq_add(first, MAX_SYN_DATA + i64::from(other.window)),
            fin_end: 0,
            confirmed_at: fresh,
            max_window: 0,
            fin_known: false,
            fin_seen_here: false,
        }
    }

    fn fin(&self) -> Option<u32> {
        self.fin_known.then_some(self.fin_end)
    }

    /// The largest window that it is known to have advertised, plus one byte for a window probe.
    fn window(&self, of: &SynParams, other: &SynParams) -> i64 {
        (i64::from(self.max_window) << scale(of, other)).max(i64::from(of.window)) + 1
    }

    /// Is `number` at most `over` ahead, at most `under` behind?
    fn within(&self, number: u32, over: i64, under: i64) -> bool {
        (-under..=over).contains(&seq_diff(number, self.seq_end))
    }

    /// `number` is known to be sent.
    fn sent(&mut self, number: u32, now: Time) {
        if seq_diff(number, self.seq_end) > 0 {
            self.seq_end = number;
        }
        self.confirmed_at = Coarse::new(now);
        self.clamp_to_seq_end();
    }

    /// What was acknowledged and allowed follows the edge, or after gigabytes unseen it would seem to lie ahead.
    fn clamp_to_seq_end(&mut self) {
        if !(0..=SEQ_COMPARABLE).contains(&seq_diff(self.window_end, self.seq_end)) {
            self.window_end = self.seq_end;
        }
        if !(0..=SEQ_COMPARABLE).contains(&seq_diff(self.seq_end, self.snd_una)) {
            self.snd_una = seq_add(self.seq_end, -SEQ_COMPARABLE);
        }
    }

    /// The other end acknowledged `ack`, and allows what is below `limit`.
    fn record_ack(&mut self, ack: u32, limit: u32) {
        if seq_diff(ack, self.snd_una) > 0 {
            self.snd_una = ack;
        }
        if seq_diff(limit, self.window_end) > 0 {
            self.window_end = limit;
        }
    }

    /// Nothing that was sent lies beyond this.
    fn last(&self) -> Option<u32> {
        self.fin().or((self.confirmed_at != Coarse::NEVER).then_some(self.seq_end))
    }

    /// Takes in what another member knows. Whoever is fresher is right, if the two are too far apart to be compared.
    fn merge(&mut self, theirs: &EndpointSnapshot, now: Time) {
        let fresh = theirs.age_ms.map_or(Coarse::NEVER, |age| Coarse::new(now - Duration::from_millis(age.into())));
        let distance = seq_diff(theirs.seq_end, self.seq_end);
        if (1..=SEQ_COMPARABLE).contains(&distance)
            || (fresh.is_after(self.confirmed_at) && distance.abs() > SEQ_COMPARABLE)
        {
            self.seq_end = theirs.seq_end;
        }
        self.clamp_to_seq_end();
        if (0..=SEQ_COMPARABLE).contains(&seq_diff(theirs.window_end, self.seq_end))
            && seq_diff(theirs.window_end, self.window_end) > 0
        {
            self.window_end = theirs.window_end;
        }
        if (0..=SEQ_COMPARABLE).contains(&seq_diff(self.seq_end, theirs.snd_una))
            && seq_diff(theirs.snd_una, self.snd_una) > 0
        {
            self.snd_una = theirs.snd_una;
        }
        self.max_window = self.max_window.max(theirs.max_window);
        if fresh.is_after(self.confirmed_at) {
            self.confirmed_at = fresh;
        }
    }
}

impl Track {
    /// A connection whose handshake these two spoke. `seen`: when this member last learned of the handshake; `None` if
    /// it never did, so that the connection may be older than it looks.
    pub(crate) fn new(client: &SynParams, server: &SynParams, seen: Option<Time>) -> Track {
        let fresh = seen.map_or(Coarse::NEVER, Coarse::new);
        Track {
            directions: [DirectionState::new(client, server, fresh), DirectionState::new(server, client, fresh)],
            asked: Fine::NEVER,
            answers: 0,
            asked_about: 0,
            history_incomplete: seen.is_none(),
            reset: false,
            close_proposed: false,
            jump_to: 0,
            jump: 0,
        }
    }

    /// Judges a segment of an established connection and takes it in if it belongs. SYNs are not for this function.
    pub(crate) fn check_segment(
        &mut self,
        syns: [&SynParams; 2],
        direction: Direction,
        tcp: &Tcp,
        closed: Option<CloseCause>,
        mode: WindowCheck,
        now: Time,
    ) -> SegmentOutcome {
        if tcp.has(Tcp::SYN) || tcp.has(Tcp::FIN | Tcp::RST) || !(tcp.has(Tcp::ACK) || tcp.has(Tcp::RST)) {
            // RFC 9293 section 3.10.7.4: without ACK, a segment is discarded.
            return SegmentOutcome::Invalid(Reason::TcpFlags);
        }
        let (s, r) = (index(direction), index(direction.flip()));
        let (ws, wr) = (max_advertisable_window(syns[s], syns[r]), max_advertisable_window(syns[r], syns[s]));
        if closed.is_some() {
            return self.check_after_close(s, r, ws, wr, tcp);
        }
        let (sender, receiver) = (self.directions[s], self.directions[r]);
        if tcp.has(Tcp::RST) {
            return self.check_rst(s, wr, tcp, mode);
        }
        let allowed = seq_diff(sender.window_end, sender.seq_end) + 1;
        let (over, under, ack_over, ack_under) = match mode {
            WindowCheck::Relaxed | WindowCheck::Widened(_) => (
                allowed.max(wr.min(MAX_SEQ_AHEAD)),
                wr.min(MAX_SEQ_BEHIND),
                ws.min(MAX_SEQ_AHEAD),
                (2 * ws).min(MAX_SEQ_BEHIND),
            ),
            WindowCheck::Strict => {
                (allowed.max(0), receiver.window(syns[r], syns[s]), 0, 2 * sender.window(syns[s], syns[r]))
            }
        };
        // Both ends of the segment from one distance: half the space away, the one seems ahead and the other behind.
        let begin = seq_diff(tcp.seq, sender.seq_end);
        let end = begin + i64::from(tcp.end().wrapping_sub(tcp.seq));
        let seq_fits = |over: i64| end <= over && begin >= -(under + self.unconfirmed(s));
        let ack_fits = |over: i64| receiver.within(tcp.ack, over, ack_under + self.unconfirmed(r));
        let (mut seq, mut ack) = (seq_fits(over), ack_fits(ack_over));
        let mut jump = None;
        if let WindowCheck::Widened(bounds) = mode
            && seq != ack
        {
            if ack && seq_fits(over.max(bounds[s])) {
                (seq, jump) = (true, Some((direction, tcp.end())));
            } else if seq && ack_fits(ack_over.max(bounds[r])) {
                (ack, jump) = (true, Some((direction.flip(), tcp.ack)));
            }
        }
        match mode {
            WindowCheck::Relaxed | WindowCheck::Widened(_) if !(seq && ack) => return SegmentOutcome::Inconclusive,
            WindowCheck::Strict if !(seq && ack) => return SegmentOutcome::Invalid(Reason::TcpWindow),
            WindowCheck::Relaxed | WindowCheck::Widened(_) | WindowCheck::Strict => {}
        }
        if sender.fin().is_some_and(|fin| seq_diff(tcp.end(), fin) > 0)
            || receiver.fin().is_some_and(|fin| seq_diff(tcp.ack, fin) > 0)
        {
            return SegmentOutcome::Invalid(Reason::TcpWindow);
        }

        // Both directions have shown their numbers before.
        self.history_incomplete &= [sender, receiver].iter().any(|end| end.confirmed_at == Coarse::NEVER);
        let confirmed = |jump: &EdgeJump| {
            jump.is_confirmed(direction, tcp.end(), direction)
                || jump.is_confirmed(direction.flip(), tcp.ack, direction)
        };
        if self.jump().as_ref().is_some_and(confirmed) {
            self.jump = 0;
        }
        if let Some((of, to)) = jump {
            // A second one must not make of the first one's end what was known.
            let known = self.jump().filter(|jump| jump.of == of).map(|jump| jump.before());
            let before = known.unwrap_or(self.directions[index(of)].seq_end);
            (self.jump_to, self.jump) = (to, EdgeJump::new(before, to, of, direction).code());
        }
        let sender = &mut self.directions[s];
        let next = tcp.seq == sender.seq_end && sender.confirmed_at != Coarse::NEVER;
        sender.sent(tcp.end(), now);
        // Windows that come with a jump count no more than it does, and large ones only in a segment that is exactly the next,
        // which nobody guesses: or a forged one would widen what belongs to a gigabyte.
        let scale = scale(syns[s], syns[r]);
        let most = |most: i64| if next { i64::MAX } else { most };
        let window = if self.jump == 0 { i64::from(tcp.window) << scale } else { 0 };
        sender.max_window = sender.max_window.max((window.min(most(MAX_SEQ_BEHIND / 2)) >> scale) as u16);
        let limit = seq_add(tcp.ack, window.min(most(MAX_SEQ_AHEAD)));
        let receiver = &mut self.directions[r];
        receiver.sent(tcp.ack, now);
        receiver.record_ack(tcp.ack, limit);
        let sender = &mut self.directions[s];
        // No correct end sends a FIN that ends before what it has already sent: its receiver takes it for a copy of old data.
        if tcp.has(Tcp::FIN) && tcp.end() == sender.seq_end {
            (sender.fin_end, sender.fin_known, sender.fin_seen_here) = (tcp.end(), true, true);
            return SegmentOutcome::Fin(tcp.end());
        }
        SegmentOutcome::InWindow
    }

    /// An edge was moved further than is near, and the other direction has not confirmed it.
    fn jump(&self) -> Option<EdgeJump> {
        EdgeJump::decode(self.jump_to, self.jump)
    }

    /// By how much more an end's numbers may be behind its edge: until the other direction confirms a jump, what was near
    /// before it still belongs, or a forged segment could cut the connection off from its own numbers.
    fn unconfirmed(&self, end: usize) -> i64 {
        let jump = self.jump().filter(|jump| index(jump.of) == end);
        jump.map_or(0, |jump| seq_diff(self.directions[end].seq_end, jump.before()).max(0))
    }

    /// May this member once have known more?
    pub(crate) fn has_incomplete_history(&self) -> bool {
        self.history_incomplete
    }

    /// When the number of this direction's end was last confirmed.
    pub(crate) fn fresh(&self, direction: Direction) -> Coarse {
        self.directions[index(direction)].confirmed_at
    }

    /// It has not been confirmed since then, whatever has passed.
    pub(crate) fn restore_confirmed_at(&mut self, direction: Direction, since: Coarse) {
        self.directions[index(direction)].confirmed_at = since;
    }

    /// How long ago the two ends' numbers were last confirmed, the client's first; `None`: never.
    pub(crate) fn confirmation_ages(&self, now: Time) -> [Option<Duration>; 2] {
        self.directions.map(|end| end.confirmed_at.age(now))
    }

    fn check_rst(&mut self, s: usize, wr: i64, tcp: &Tcp, mode: WindowCheck) -> SegmentOutcome {
        let sender = self.directions[s];
        let exact = tcp.seq == sender.seq_end || tcp.seq == sender.snd_una;
        let fin = self.directions.iter().any(|e| e.fin_known);
        let slack = wr.min(RST_SLACK);
        if (sender.confirmed_at != Coarse::NEVER && exact) || (fin && sender.within(tcp.seq, slack, slack)) {
            self.reset = true;
            return SegmentOutcome::Rst;
        }
        match mode {
            WindowCheck::Relaxed | WindowCheck::Widened(_) => SegmentOutcome::Inconclusive,
            WindowCheck::Strict => SegmentOutcome::Invalid(Reason::TcpRst),
        }
    }

    /// In TIME_WAIT and CLOSE: retransmissions and last acknowledgements belong; nothing new does.
    fn check_after_close(&self, s: usize, r: usize, ws: i64, wr: i64, tcp: &Tcp) -> SegmentOutcome {
        let belongs = |end: &DirectionState, number: u32, under: i64| {
            end.last().is_some_and(|last| (-under..=0).contains(&seq_diff(number, last)))
        };
        let seq = belongs(&self.directions[s], tcp.seq, wr) && belongs(&self.directions[s], tcp.end(), wr);
        let ack = !tcp.has(Tcp::ACK) || belongs(&self.directions[r], tcp.ack, 2 * ws);
        match seq && ack {
            true if tcp.has(Tcp::FIN) && !tcp.has(Tcp::RST) => SegmentOutcome::Fin(tcp.end()),
            true => SegmentOutcome::InWindow,
            false => SegmentOutcome::Invalid(Reason::NoSession),
        }
    }

    /// Could `direction`'s end have sent a segment with this sequence number? For ICMP errors about it. What this member
    /// has not seen for two seconds may be far from what it knows.
    pub(crate) fn sent(&self, syns: [&SynParams; 2], direction: Direction, seq: u32, now: Time) -> bool {
        const STALE: Duration = Duration::from_secs(2);
        let (s, r) = (index(direction), index(direction.flip()));
        let reach = max_advertisable_window(syns[r], syns[s]);
        let end = &self.directions[s];
        end.confirmed_at.age(now).is_none_or(|age| age > STALE)
            || end.within(seq, reach.min(MAX_SEQ_AHEAD), 2 * reach.min(MAX_SEQ_BEHIND))
    }

    /// Another member saw a FIN that ends at `end`.
    pub(crate) fn record_peer_fin(&mut self, direction: Direction, end: u32) {
        let sender = &mut self.directions[index(direction)];
        let behind = sender.confirmed_at != Coarse::NEVER && seq_diff(end, sender.seq_end) < 0;
        if !sender.fin_known && !behind {
            (sender.fin_end, sender.fin_known) = (end, true);
            if sender.confirmed_at == Coarse::NEVER || seq_diff(end, sender.seq_end) > 0 {
                sender.seq_end = end;
                sender.clamp_to_seq_end();
            }
        }
    }

    /// Another member believed a RST. Is that new?
    pub(crate) fn record_peer_rst(&mut self) -> bool {
        !std::mem::replace(&mut self.reset, true)
    }

    /// Are both FINs known?
    pub(crate) fn both_fins_known(&self) -> bool {
        self.directions.iter().all(|e| e.fin_known)
    }

    /// Is it this member's to propose the close now? Of both FINs, the reply direction's passes at exactly one member
    /// (unless routes change); that member proposes, others only when it does not. Yields true once.
    pub(crate) fn take_fin_close(&mut self) -> bool {
        let now = !self.close_proposed && self.both_fins_known() && self.directions[1].fin_seen_here;
        self.close_proposed |= now;
        now
    }

    /// A RST was believed: is it this member's to propose the close? Yields true once.
    pub(crate) fn take_rst_close(&mut self) -> bool {
        !std::mem::replace(&mut self.close_proposed, true)
    }

    /// The close is not in the log though it should be: why it is to be closed.
    pub(crate) fn take_overdue_close(&mut self) -> Option<CloseCause> {
        let cause = if self.reset { CloseCause::Rst } else { CloseCause::Fin };
        self.close_proposed = true;
        (self.reset || self.both_fins_known()).then_some(cause)
    }

    /// Is it not closed by the log, but at its end?
    pub(crate) fn ending(&self) -> bool {
        self.reset || self.directions.iter().any(|e| e.fin_known)
    }

    /// The state of the session.
    pub(crate) fn state(&self, closed: Option<CloseCause>) -> State {
        match closed {
            Some(CloseCause::Fin) => return State::TimeWait,
            Some(CloseCause::Rst) => return State::Close,
            None if self.reset => return State::Close,
            None => {}
        }
        let acked = |e: &DirectionState| e.fin().is_some_and(|fin| seq_diff(e.snd_una, fin) >= 0);
        match self.directions.iter().filter(|e| e.fin_known).count() {
            0 => State::Established,
            1 if self.directions.iter().any(acked) => State::CloseWait,
            1 => State::FinWait,
            _ => State::LastAck,
        }
    }
}

pub(crate) mod peer_query;

#[cfg(test)]
mod tests;
