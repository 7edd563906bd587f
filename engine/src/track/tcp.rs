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
//! All other combinations change nothing. The states before ESTABLISHED (SYN_SENT, SYN_RECV) belong to the half-open session,
//! in `pipeline::half_open`. FINs and RSTs are known from the packets that pass here and from hints of other members.
//!
//! # State table
//!
//! The decision on a segment with correct sequence numbers. One sign: both directions; two signs: the client's segment, the
//! server's. `tests::table` enumerates all states, flags and directions, and fails for a combination without a decision.
//!
//! ```text
//!                    SYN  SYN+ACK  ACK  FIN+ACK  RST  RST+ACK  any other
//!   SYN_SENT          c     h c     h      h     R -     R         !       c  passes: part of the handshake, or a copy of it
//!   SYN_RECV          c     h c     h      h      R      R         !       h  held until more is known
//!   ESTABLISHED       c      c      p      F      R      R         !       p  passes
//!   FIN_WAIT          c      c      p      F      R      R         !       F  passes and ends its sender's data
//!   CLOSE_WAIT        c      c      p      F      R      R         !       R  passes and ends the connection
//!   LAST_ACK          c      c      p      F      R      R         !       o  may open another connection: policy decides
//!   TIME_WAIT         o      o      p      F      p      p         !       -  is not of this connection: dropped
//!   CLOSE             o      o      p      F      p      p         !       !  INVALID: dropped
//! ```
//!
//! PSH, URG and the ECN flags decide nothing. A SYN may carry data (RFC 7413). The server's SYN and the client's SYN+ACK
//! belong to a simultaneous open (RFC 9293 section 3.5). A SYN with another sequence number is treated as `o` in every state.
//! While the session lives, one such SYN a second passes, so that the receiver can answer with a challenge ACK. A SYN+ACK in `o`
//! matches no half-open session: it is held until one is known, then dropped.
//!
//! # Windows
//!
//! The reference is Guido van Rooij, *Real Stateful TCP Packet Filtering in IP Filter* (2001). His four bounds assume that the
//! filter sees every packet of both directions. A member usually sees one direction only, and paths change. So a segment
//! from `S` to `R` with sequence numbers `seq..end` is checked in up to two steps.
//!
//! A member keeps of each end: `seq_end`, the highest sequence number that it sent, known from its own segments or from the
//! other end's acknowledgements (conntrack's `td_end`); `snd_una`, the highest one acknowledged; `window_end`, the right edge of
//! the window that the other end advertised (`td_maxend`); `max_window`, the largest window that it advertised itself, scaled
//! (`td_maxwin`). `W` is the largest window that it can advertise at all: 65535 × 2^scale (RFC 7323 section 2.2; scale 0 unless
//! both SYNs had the option), plus 1 for a window probe.
//!
//! 1. *Relaxed*: the segment belongs if it is close to what this member knows, which may be from one direction alone:
//!    - `S.seq_end − min(2^24, W(R)) ≤ seq` and `end ≤ max(S.seq_end + min(2^21, W(R)), S.window_end + 1)`;
//!    - `R.seq_end − min(2^24, 2 W(S)) ≤ ack ≤ R.seq_end + min(2^21, W(S))`.
//! 2. *Strict*: otherwise the packets before it may have passed at other members. The segment is held, and the peers are queried
//!    ([`Hint::Progress`](crate::event::Hint) is the reply). Their snapshots are merged and step 1 is repeated. If all of them
//!    have replied, van Rooij's bounds are applied to what all members know together:
//!    - `S.seq_end − max_window(R) ≤ seq` and `end ≤ max(S.seq_end, S.window_end + 1)`;
//!    - `R.seq_end − 2 max_window(S) ≤ ack ≤ R.seq_end`, as RFC 5961 section 5.2.
//!
//! If some peers have not replied after 250 ms, a member is lost, and its knowledge with it. The knowledge of a restarted member
//! is lost too, unless another member sees the connection. Then no member knows the numbers, and the two directions have to
//! corroborate each other ([`snapshot_query`]): one segment passes *provisionally*, or the connection would be lost, and changes
//! nothing here. A segment of the opposite direction that is close to its numbers shows that both are genuine.
//! `docs/security.md` has the probabilities.
//!
//! Once an end's FIN is known, nothing beyond it belongs. In TIME_WAIT and CLOSE the upper bounds are the `seq_end`s themselves,
//! so that packets of a successor on the same ports are never taken for the old connection's.
//!
//! # RST
//!
//! A RST is accepted if its sequence number is exactly the next one: the sender's `seq_end`, or what the other end acknowledged
//! last (RFC 5961 section 3.2). After a FIN it may be off by min(2^19, W(R)). Otherwise the peers are queried, and a RST that
//! is still not exact after all have replied is dropped.

use std::time::Duration;

use super::State;

use crate::parse::Tcp;
use crate::reset::{BothEdges, Edges};
use crate::session::{CloseCause, SynParams};
use crate::time::{Stamp17ms, Time};
use crate::tuple::{Direction, PerDirection};
use crate::verdict::Reason;
use snapshot_query::SnapshotQuery;

/// How far a segment may be ahead of what is known, in bytes, before the peers are queried.
const MAX_SEQ_AHEAD: i64 = 1 << 21;

/// How far a segment may be behind what is known, in bytes.
const MAX_SEQ_BEHIND: i64 = 1 << 24;

/// How far a RST after a FIN may be from the next sequence number, in bytes.
const MAX_RST_OFFSET: i64 = 1 << 19;

/// The largest distance, in bytes, at which two sequence numbers can be compared. No window is larger (RFC 7323 section 2.3).
const SEQ_COMPARABLE: i64 = 1 << 30;

/// Maximum size of the data, in bytes, that a SYN may carry (RFC 7413), or that may follow it before the server's SYN is
/// known here.
pub(crate) const MAX_SYN_DATA: i64 = 1 << 16;

/// For how long an unconfirmed `seq_end` is good enough to judge an ICMP error.
const ICMP_MAX_AGE: Duration = Duration::from_secs(2);

/// The window state of one direction: what its sender has sent, as far as this member knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct DirectionState {
    /// The highest sequence number sent.
    seq_end: u32,
    /// The highest sequence number that the receiver acknowledged.
    snd_una: u32,
    /// The highest sequence number that the receiver's window allows.
    window_end: u32,
    /// The sequence number after the sender's FIN, if `fin_known`.
    fin_end: u32,
    /// When `seq_end` was last confirmed.
    confirmed_at: Stamp17ms,
    /// The largest window that the sender advertised after its SYN, unscaled.
    max_window: u16,
    /// Whether the sender's FIN is known.
    fin_known: bool,
    /// Whether the sender's FIN passed here.
    fin_seen_here: bool,
}

/// The local state of an established connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Track {
    directions: PerDirection<DirectionState>,
    query: SnapshotQuery,
    /// Whether this member may have missed packets: it restarted, or joined later.
    history_incomplete: bool,
    /// Whether a RST was accepted, here or at another member.
    reset: bool,
    /// Whether this member has proposed the close.
    close_proposed: bool,
    /// [`EdgeJump::to`] of the unconfirmed jump.
    jump_to: u32,
    /// The rest of the unconfirmed jump, as [`EdgeJump::encode`] packs it. 0: there is none.
    jump_code: u8,
}

/// A `seq_end` that moved farther than the relaxed check allows, and that the opposite direction has not confirmed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct EdgeJump {
    /// Where it moved to.
    to: u32,
    /// It moved by less than 2^`bits`, at most 29. There is no room for the exact distance.
    bits: u8,
    /// Whose `seq_end` it is.
    of: Direction,
    /// The direction of the segment that asserted it.
    by: Direction,
}

impl EdgeJump {
    fn new(before: u32, to: u32, of: Direction, by: Direction) -> EdgeJump {
        let distance = u64::try_from(seq_diff(to, before)).unwrap_or(0);
        EdgeJump { to, bits: (u64::BITS - distance.leading_zeros()) as u8, of, by }
    }

    /// All fields but `to` in one byte, which is never 0.
    fn encode(self) -> u8 {
        let bit = |direction| u8::from(direction == Direction::Reply);
        1 << 7 | bit(self.of) << 6 | bit(self.by) << 5 | self.bits
    }

    fn decode(to: u32, code: u8) -> Option<EdgeJump> {
        let direction = |bit: u8| if code >> bit & 1 == 0 { Direction::Original } else { Direction::Reply };
        (code != 0).then(|| EdgeJump { to, bits: code & 31, of: direction(6), by: direction(5) })
    }

    /// Where the `seq_end` was before the jump, or a little below.
    fn before(&self) -> u32 {
        seq_add(self.to, -(1 << self.bits))
    }

    /// Whether a packet of direction `by` that knows `seq` of `of`'s end confirms the jump.
    fn is_confirmed(&self, of: Direction, seq: u32, by: Direction) -> bool {
        self.by != by && self.is_reached(of, seq)
    }

    fn is_reached(&self, of: Direction, seq: u32) -> bool {
        self.of == of && seq_diff(seq, self.to) >= 0
    }
}

/// A variant of the window check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WindowCheck {
    /// Against what this member knows.
    Relaxed,
    /// As `Relaxed`, and as many bytes farther as each end may have sent unseen, at a member that died or is isolated. Only
    /// one of the segment's two numbers may be that far away.
    Widened(PerDirection<i64>),
    /// Against what all members know together.
    Strict,
}

/// The result of a window check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SegmentOutcome {
    /// The segment belongs to the connection.
    InWindow,
    /// It belongs, and ends its sender's data at this sequence number.
    Fin(u32),
    /// It belongs, and ends the connection.
    Rst,
    /// It does not belong.
    Invalid(Reason),
    /// It is too far from what this member knows for a decision.
    Inconclusive,
}

impl SegmentOutcome {
    /// Whether the segment belongs to the connection.
    pub(crate) fn belongs(self) -> bool {
        match self {
            SegmentOutcome::InWindow | SegmentOutcome::Fin(_) | SegmentOutcome::Rst => true,
            SegmentOutcome::Invalid(_) | SegmentOutcome::Inconclusive => false,
        }
    }
}

/// How far the numbers of a segment may be from the two `seq_end`s, in bytes.
struct WindowBounds {
    seq_ahead: i64,
    seq_behind: i64,
    ack_ahead: i64,
    ack_behind: i64,
}

/// Where the numbers of a segment are relative to the [`WindowBounds`].
enum WindowFit {
    /// Both numbers are within.
    Inside,
    /// One number is within. The other one moves this end's `seq_end` to this number, by no more than it may have moved unseen.
    InsideWithJump(Direction, u32),
    /// The segment does not fit.
    Outside,
}

/// `a − b` in sequence space: positive if `a` is ahead (RFC 9293 section 3.4).
pub(crate) fn seq_diff(a: u32, b: u32) -> i64 {
    i64::from(a.wrapping_sub(b) as i32)
}

/// `base + distance` in sequence space; a distance is below 2^30.
fn seq_add(base: u32, distance: i64) -> u32 {
    base.wrapping_add(distance as u32)
}

/// The scale of `of`'s windows: 0 unless both ends sent the option (RFC 7323 section 2.2).
fn window_scale(of: &SynParams, other: &SynParams) -> u8 {
    other.wscale.and(of.wscale).unwrap_or(0).min(14)
}

/// The largest window that `of` can advertise, plus one byte for a window probe.
pub(crate) fn max_advertisable_window(of: &SynParams, other: &SynParams) -> i64 {
    (65_535_i64 << window_scale(of, other)) + 1
}

impl DirectionState {
    fn new(of: &SynParams, other: &SynParams, confirmed_at: Stamp17ms) -> DirectionState {
        let first = of.isn.wrapping_add(1);
        DirectionState {
            seq_end: first,
            snd_una: first,
            // Windows in SYNs are never scaled. They begin behind the SYN's data, whose length is not recorded.
            window_end: seq_add(first, MAX_SYN_DATA + i64::from(other.window)),
            fin_end: 0,
            confirmed_at,
            max_window: 0,
            fin_known: false,
            fin_seen_here: false,
        }
    }

    /// The sequence number after the FIN, if that is known.
    fn fin(&self) -> Option<u32> {
        self.fin_known.then_some(self.fin_end)
    }

    fn is_confirmed(&self) -> bool {
        self.confirmed_at != Stamp17ms::NEVER
    }

    /// The largest window that this end is known to have advertised, plus one byte for a window probe.
    fn window(&self, of: &SynParams, other: &SynParams) -> i64 {
        (i64::from(self.max_window) << window_scale(of, other)).max(i64::from(of.window)) + 1
    }

    /// Whether `seq` is at most `ahead` bytes ahead of `seq_end` and at most `behind` bytes behind it.
    fn is_within(&self, seq: u32, ahead: i64, behind: i64) -> bool {
        (-behind..=ahead).contains(&seq_diff(seq, self.seq_end))
    }

    /// Notes that everything up to `seq` was sent.
    fn record_sent(&mut self, seq: u32, now: Time) {
        if seq_diff(seq, self.seq_end) > 0 {
            self.seq_end = seq;
        }
        self.confirmed_at = Stamp17ms::new(now);
        self.clamp_to_seq_end();
    }

    /// Keeps `window_end` and `snd_una` comparable with `seq_end`. After gigabytes unseen they would seem to lie ahead of it.
    fn clamp_to_seq_end(&mut self) {
        if !(0..=SEQ_COMPARABLE).contains(&seq_diff(self.window_end, self.seq_end)) {
            self.window_end = self.seq_end;
        }
        if !(0..=SEQ_COMPARABLE).contains(&seq_diff(self.seq_end, self.snd_una)) {
            self.snd_una = seq_add(self.seq_end, -SEQ_COMPARABLE);
        }
    }

    /// Notes that the other end acknowledged `ack` and allows what is below `window_end`.
    fn record_ack(&mut self, ack: u32, window_end: u32) {
        if seq_diff(ack, self.snd_una) > 0 {
            self.snd_una = ack;
        }
        if seq_diff(window_end, self.window_end) > 0 {
            self.window_end = window_end;
        }
    }

    /// The sequence number that ends all data sent, if that is known.
    fn last_sent(&self) -> Option<u32> {
        self.fin().or(self.is_confirmed().then_some(self.seq_end))
    }
}

impl Track {
    /// The state after a handshake. `handshake_seen`: when this member last learned of the handshake. `None`: it never did, so
    /// that the connection may be older than it looks.
    pub(crate) fn new(syns: &PerDirection<SynParams>, handshake_seen: Option<Time>) -> Track {
        let confirmed_at = handshake_seen.map_or(Stamp17ms::NEVER, Stamp17ms::new);
        let PerDirection { original: client, reply: server } = syns;
        Track {
            directions: PerDirection {
                original: DirectionState::new(client, server, confirmed_at),
                reply: DirectionState::new(server, client, confirmed_at),
            },
            query: SnapshotQuery::NONE,
            history_incomplete: handshake_seen.is_none(),
            reset: false,
            close_proposed: false,
            jump_to: 0,
            jump_code: 0,
        }
    }

    /// Checks a segment without SYN, and records it if it belongs.
    pub(crate) fn check_segment(
        &mut self,
        syns: &PerDirection<SynParams>,
        direction: Direction,
        tcp: &Tcp,
        closed: Option<CloseCause>,
        check: WindowCheck,
        now: Time,
    ) -> SegmentOutcome {
        if tcp.has(Tcp::SYN) || tcp.has(Tcp::FIN | Tcp::RST) || !(tcp.has(Tcp::ACK) || tcp.has(Tcp::RST)) {
            // RFC 9293 section 3.10.7.4: without ACK, a segment is discarded.
            return SegmentOutcome::Invalid(Reason::TcpFlags);
        }
        if closed.is_some() {
            return self.check_after_close(syns, direction, tcp);
        }
        if tcp.has(Tcp::RST) {
            return self.check_rst(syns, direction, tcp, check);
        }
        let jump = match self.fit(syns, direction, tcp, check) {
            WindowFit::Inside => None,
            WindowFit::InsideWithJump(of, to) => Some((of, to)),
            WindowFit::Outside => {
                return match check {
                    WindowCheck::Relaxed | WindowCheck::Widened(_) => SegmentOutcome::Inconclusive,
                    WindowCheck::Strict => SegmentOutcome::Invalid(Reason::TcpWindow),
                };
            }
        };
        let beyond_fin = |of: Direction, seq: u32| self.directions[of].fin().is_some_and(|fin| seq_diff(seq, fin) > 0);
        if beyond_fin(direction, tcp.end()) || beyond_fin(direction.flip(), tcp.ack) {
            return SegmentOutcome::Invalid(Reason::TcpWindow);
        }
        self.update_jump(direction, tcp, jump);
        self.record_segment(syns, direction, tcp, now)
    }

    /// The bounds that a segment of this direction has to keep.
    fn bounds(&self, syns: &PerDirection<SynParams>, direction: Direction, check: WindowCheck) -> WindowBounds {
        let (sender, receiver) = (direction, direction.flip());
        let allowed = seq_diff(self.directions[sender].window_end, self.directions[sender].seq_end) + 1;
        let bounds = match check {
            WindowCheck::Relaxed | WindowCheck::Widened(_) => {
                let sender_max = max_advertisable_window(&syns[sender], &syns[receiver]);
                let receiver_max = max_advertisable_window(&syns[receiver], &syns[sender]);
                WindowBounds {
                    seq_ahead: allowed.max(receiver_max.min(MAX_SEQ_AHEAD)),
                    seq_behind: receiver_max.min(MAX_SEQ_BEHIND),
                    ack_ahead: sender_max.min(MAX_SEQ_AHEAD),
                    ack_behind: (2 * sender_max).min(MAX_SEQ_BEHIND),
                }
            }
            WindowCheck::Strict => WindowBounds {
                seq_ahead: allowed.max(0),
                seq_behind: self.directions[receiver].window(&syns[receiver], &syns[sender]),
                ack_ahead: 0,
                ack_behind: 2 * self.directions[sender].window(&syns[sender], &syns[receiver]),
            },
        };
        WindowBounds {
            seq_behind: bounds.seq_behind + self.unconfirmed_bytes(sender),
            ack_behind: bounds.ack_behind + self.unconfirmed_bytes(receiver),
            ..bounds
        }
    }

    fn fit(&self, syns: &PerDirection<SynParams>, direction: Direction, tcp: &Tcp, check: WindowCheck) -> WindowFit {
        let (sender, receiver) = (direction, direction.flip());
        let bounds = self.bounds(syns, direction, check);
        // Both ends of the segment from one distance: at half the sequence space, one of them would seem ahead, the other behind.
        let begin = seq_diff(tcp.seq, self.directions[sender].seq_end);
        let end = begin + i64::from(tcp.end().wrapping_sub(tcp.seq));
        let seq_fits = |ahead: i64| end <= ahead && begin >= -bounds.seq_behind;
        let ack_fits = |ahead: i64| self.directions[receiver].is_within(tcp.ack, ahead, bounds.ack_behind);
        match (seq_fits(bounds.seq_ahead), ack_fits(bounds.ack_ahead), check) {
            (true, true, _) => WindowFit::Inside,
            (false, true, WindowCheck::Widened(unseen)) if seq_fits(bounds.seq_ahead.max(unseen[sender])) => {
                WindowFit::InsideWithJump(sender, tcp.end())
            }
            (true, false, WindowCheck::Widened(unseen)) if ack_fits(bounds.ack_ahead.max(unseen[receiver])) => {
                WindowFit::InsideWithJump(receiver, tcp.ack)
            }
            _ => WindowFit::Outside,
        }
    }

    /// Ends the unconfirmed jump if a segment that belongs confirms it, then notes the jump that the segment itself asserts.
    fn update_jump(&mut self, direction: Direction, tcp: &Tcp, jump: Option<(Direction, u32)>) {
        let confirms = |jump: EdgeJump| {
            jump.is_confirmed(direction, tcp.end(), direction)
                || jump.is_confirmed(direction.flip(), tcp.ack, direction)
        };
        if self.jump().is_some_and(confirms) {
            self.clear_jump();
        }
        if let Some((of, to)) = jump {
            // After a second jump of the same end, what is confirmed is still what was before the first one.
            let unconfirmed = self.jump().filter(|jump| jump.of == of);
            let before = unconfirmed.map_or(self.directions[of].seq_end, |jump| jump.before());
            self.jump_to = to;
            self.jump_code = EdgeJump::new(before, to, of, direction).encode();
        }
    }

    /// Records the numbers of a segment that belongs.
    fn record_segment(
        &mut self,
        syns: &PerDirection<SynParams>,
        direction: Direction,
        tcp: &Tcp,
        now: Time,
    ) -> SegmentOutcome {
        let receiver = direction.flip();
        let both_confirmed = self.directions.iter().all(DirectionState::is_confirmed);
        self.history_incomplete &= !both_confirmed;
        let has_jump = self.jump_code != 0;

        let sender = &mut self.directions[direction];
        let is_next = tcp.seq == sender.seq_end && sender.is_confirmed();
        sender.record_sent(tcp.end(), now);
        // A window that comes with an unconfirmed jump does not count. A large one counts only in a segment that is exactly the
        // next one, which nobody guesses. Otherwise one forged segment would widen the bounds to a gigabyte.
        let scale = window_scale(&syns[direction], &syns[receiver]);
        let window = if has_jump { 0 } else { i64::from(tcp.window) << scale };
        let limited_to = |max: i64| if is_next { window } else { window.min(max) };
        sender.max_window = sender.max_window.max((limited_to(MAX_SEQ_BEHIND / 2) >> scale) as u16);
        let window_end = seq_add(tcp.ack, limited_to(MAX_SEQ_AHEAD));

        let acknowledged = &mut self.directions[receiver];
        acknowledged.record_sent(tcp.ack, now);
        acknowledged.record_ack(tcp.ack, window_end);

        let sender = &mut self.directions[direction];
        // No correct end sends a FIN that ends before what it has already sent: its receiver takes it for a copy of old data.
        if tcp.has(Tcp::FIN) && tcp.end() == sender.seq_end {
            sender.fin_end = tcp.end();
            sender.fin_known = true;
            sender.fin_seen_here = true;
            return SegmentOutcome::Fin(tcp.end());
        }
        SegmentOutcome::InWindow
    }

    /// The jump that the opposite direction has not confirmed yet.
    fn jump(&self) -> Option<EdgeJump> {
        EdgeJump::decode(self.jump_to, self.jump_code)
    }

    fn clear_jump(&mut self) {
        self.jump_code = 0;
    }

    /// How many bytes farther behind its `seq_end` an end's numbers may be. Until a jump is confirmed, what was close before it
    /// still belongs. Otherwise one forged segment could lock the real connection out.
    fn unconfirmed_bytes(&self, of: Direction) -> i64 {
        let jump = self.jump().filter(|jump| jump.of == of);
        jump.map_or(0, |jump| seq_diff(self.directions[of].seq_end, jump.before()).max(0))
    }

    fn check_rst(
        &mut self,
        syns: &PerDirection<SynParams>,
        direction: Direction,
        tcp: &Tcp,
        check: WindowCheck,
    ) -> SegmentOutcome {
        let sender = self.directions[direction];
        let is_exact = tcp.seq == sender.seq_end || tcp.seq == sender.snd_una;
        let any_fin = self.directions.iter().any(|d| d.fin_known);
        let offset = max_advertisable_window(&syns[direction.flip()], &syns[direction]).min(MAX_RST_OFFSET);
        if (sender.is_confirmed() && is_exact) || (any_fin && sender.is_within(tcp.seq, offset, offset)) {
            self.reset = true;
            return SegmentOutcome::Rst;
        }
        match check {
            WindowCheck::Relaxed | WindowCheck::Widened(_) => SegmentOutcome::Inconclusive,
            WindowCheck::Strict => SegmentOutcome::Invalid(Reason::TcpRst),
        }
    }

    /// Checks a segment in TIME_WAIT or CLOSE: retransmissions and last acknowledgements belong, nothing new does.
    fn check_after_close(&self, syns: &PerDirection<SynParams>, direction: Direction, tcp: &Tcp) -> SegmentOutcome {
        let (sender, receiver) = (direction, direction.flip());
        let sender_max = max_advertisable_window(&syns[sender], &syns[receiver]);
        let receiver_max = max_advertisable_window(&syns[receiver], &syns[sender]);
        let was_sent = |of: Direction, seq: u32, behind: i64| {
            self.directions[of].last_sent().is_some_and(|last| (-behind..=0).contains(&seq_diff(seq, last)))
        };
        let seq_fits = was_sent(sender, tcp.seq, receiver_max) && was_sent(sender, tcp.end(), receiver_max);
        let ack_fits = !tcp.has(Tcp::ACK) || was_sent(receiver, tcp.ack, 2 * sender_max);
        if !(seq_fits && ack_fits) {
            SegmentOutcome::Invalid(Reason::NoSession)
        } else if tcp.has(Tcp::FIN) && !tcp.has(Tcp::RST) {
            SegmentOutcome::Fin(tcp.end())
        } else {
            SegmentOutcome::InWindow
        }
    }

    /// Whether `direction`'s sender may have sent a segment with this sequence number, which an ICMP error quotes. Without a
    /// recent confirmation any number may be right.
    pub(crate) fn may_have_sent(
        &self,
        syns: &PerDirection<SynParams>,
        direction: Direction,
        seq: u32,
        now: Time,
    ) -> bool {
        let max_window = max_advertisable_window(&syns[direction.flip()], &syns[direction]);
        let sender = &self.directions[direction];
        sender.confirmed_at.age(now).is_none_or(|age| age > ICMP_MAX_AGE)
            || sender.is_within(seq, max_window.min(MAX_SEQ_AHEAD), 2 * max_window.min(MAX_SEQ_BEHIND))
    }

    /// Whether this member may have missed packets of the connection.
    pub(crate) fn has_incomplete_history(&self) -> bool {
        self.history_incomplete
    }

    /// When the `seq_end` of this direction was last confirmed.
    pub(crate) fn confirmed_at(&self, direction: Direction) -> Stamp17ms {
        self.directions[direction].confirmed_at
    }

    /// Takes a confirmation back: the `seq_end` of this direction counts as confirmed at `confirmed_at`.
    pub(crate) fn restore_confirmed_at(&mut self, direction: Direction, confirmed_at: Stamp17ms) {
        self.directions[direction].confirmed_at = confirmed_at;
    }

    /// How long ago each `seq_end` was last confirmed. `None`: never.
    pub(crate) fn confirmation_ages(&self, now: Time) -> PerDirection<Option<Duration>> {
        self.directions.map(|direction| direction.confirmed_at.age(now))
    }

    /// Whether any `seq_end` was confirmed less than `within` ago.
    pub(crate) fn is_confirmed_within(&self, within: Duration, now: Time) -> bool {
        self.confirmation_ages(now).iter().flatten().any(|age| *age < within)
    }

    /// What the receiver of each direction may expect next.
    pub(crate) fn edges(&self) -> BothEdges {
        self.directions.map(|d| d.is_confirmed().then_some(Edges { acknowledged: d.snd_una, sent: d.seq_end }))
    }

    /// Records a FIN that another member saw and that ends at `end`.
    pub(crate) fn record_peer_fin(&mut self, direction: Direction, end: u32) {
        let sender = &mut self.directions[direction];
        let is_old = sender.is_confirmed() && seq_diff(end, sender.seq_end) < 0;
        if sender.fin_known || is_old {
            return;
        }
        sender.fin_end = end;
        sender.fin_known = true;
        if !sender.is_confirmed() || seq_diff(end, sender.seq_end) > 0 {
            sender.seq_end = end;
            sender.clamp_to_seq_end();
        }
    }

    /// Records that another member accepted a RST. Returns whether this is new.
    pub(crate) fn record_peer_rst(&mut self) -> bool {
        !std::mem::replace(&mut self.reset, true)
    }

    /// Whether the FINs of both ends are known.
    pub(crate) fn both_fins_known(&self) -> bool {
        self.directions.iter().all(|direction| direction.fin_known)
    }

    /// Whether this member is to propose the close now, because both ends have sent their FINs. True once. The member at which
    /// the reply direction's FIN passed proposes; without route changes that is one member. The others propose only if it does
    /// not.
    pub(crate) fn take_fin_close(&mut self) -> bool {
        let due = !self.close_proposed && self.both_fins_known() && self.directions.reply.fin_seen_here;
        self.close_proposed |= due;
        due
    }

    /// Whether this member is to propose the close of a connection whose RST it accepted. True once.
    pub(crate) fn take_rst_close(&mut self) -> bool {
        !std::mem::replace(&mut self.close_proposed, true)
    }

    /// The cause of a close that should already be in the log and is not. This member then counts as its proposer.
    pub(crate) fn take_overdue_close(&mut self) -> Option<CloseCause> {
        self.close_proposed = true;
        if self.reset {
            Some(CloseCause::Rst)
        } else if self.both_fins_known() {
            Some(CloseCause::Fin)
        } else {
            None
        }
    }

    /// Whether a FIN or a RST was accepted.
    pub(crate) fn is_ending(&self) -> bool {
        self.reset || self.directions.iter().any(|direction| direction.fin_known)
    }

    /// The state of the session.
    pub(crate) fn state(&self, closed: Option<CloseCause>) -> State {
        match closed {
            Some(CloseCause::Fin) => return State::TimeWait,
            Some(CloseCause::Rst) => return State::Close,
            None if self.reset => return State::Close,
            None => {}
        }
        let is_fin_acked = |d: &DirectionState| d.fin().is_some_and(|fin| seq_diff(d.snd_una, fin) >= 0);
        match self.directions.iter().filter(|d| d.fin_known).count() {
            0 => State::Established,
            1 if self.directions.iter().any(is_fin_acked) => State::CloseWait,
            1 => State::FinWait,
            _ => State::LastAck,
        }
    }
}

mod snapshot;
pub(crate) mod snapshot_query;

#[cfg(test)]
mod tests;
