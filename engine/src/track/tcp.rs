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
//! # Windows
//!
//! The reference is Guido van Rooij, *Real Stateful TCP Packet Filtering in IP Filter* (2001). His four bounds suppose
//! that every packet of both directions passes. Here, a member usually sees one direction only, so each bound uses what
//! can be known from one direction alone:
//!
//! - `edge` of an end: the highest sequence number that it is known to have sent, by its own segments, by the other end's
//!   acknowledgements, or by a hint.
//! - `W` of an end: the largest window that it can advertise at all, 65535 × 2^scale (RFC 7323 section 2.2; scale 0
//!   unless both SYNs had the option), plus 1 for a window probe.
//! - `G`, how far an end may have got without this member's noticing: 1.25 bytes per nanosecond (10 Gbit/s) since the
//!   edge was last confirmed here, at most 2^28. After two seconds, or if nothing was ever confirmed (the session came by
//!   the log or a snapshot, not by its handshake), the bound on that end is lifted and its next packet sets the edge anew.
//!   Progress messages between members will replace this.
//!
//! A segment from `S` to `R` with sequence numbers `seq..end` belongs to the connection if
//!
//! 1. `end ≤ S.edge + W(R) + G(S)`: `R` acknowledged nothing beyond the edge, so `S` can not have been allowed more;
//! 2. `seq ≥ S.edge − W(R)`: what is older was acknowledged long ago (keep-alives and retransmissions are within);
//! 3. `ack ≤ R.edge + W(S) + G(R)`: as 1, for what `R` sent through other members;
//! 4. `ack ≥ R.edge − 2 W(S)`: as RFC 5961 section 5.2.
//!
//! Once an end's FIN is known nothing beyond it belongs. In TIME_WAIT and CLOSE the bounds 1 and 3 are the edges
//! themselves, so that the packets of a successor on the same ports are never taken for the old connection's.
//!
//! # RST
//!
//! A RST is believed if its sequence number is exactly the next one: the sender's edge or the other end's last
//! acknowledgement (RFC 5961 section 3.2). After a FIN, anywhere in the window. A RST that is in the window but not exact
//! is dropped, unless this member can not know what exact is: then it passes, changes nothing here, and its receiver
//! judges.

use std::time::Duration;

use crate::event::TcpEnd;
use crate::parse::Tcp;
use crate::replica::CloseCause;
use crate::time::Time;
use crate::tuple::Direction;
use crate::verdict::Reason;

/// After so long without news of an end, its next packet sets the edge anew.
const RESYNC: Duration = Duration::from_secs(2);

/// Most that the bound on an end grows.
const GROWTH_MAX: u32 = 1 << 28;

/// What one end has sent, as far as this member knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct End {
    /// Highest sequence number sent.
    edge: u32,
    /// Highest sequence number that the other end acknowledged.
    acked: u32,
    /// The sequence number after its FIN.
    fin: Option<u32>,
    /// When `edge` was last confirmed; zero: never.
    fresh: Time,
    /// Its FIN passed here.
    fin_here: bool,
}

/// The local state of an established connection: 2 × 32 bytes, and two marks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Track {
    ends: [End; 2],
    /// A RST was believed here or elsewhere.
    reset: bool,
    /// The close was proposed here.
    proposed: bool,
}

/// What a segment means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    /// It belongs.
    Pass,
    /// It belongs, and ends its sender's data at this sequence number.
    Fin(u32),
    /// It belongs, and ends the connection.
    Reset,
    /// It does not belong.
    Not(Reason),
}

/// `a − b` in sequence space: positive if `a` is ahead (RFC 9293 section 3.4).
pub(crate) fn ahead(a: u32, b: u32) -> i64 {
    i64::from(a.wrapping_sub(b) as i32)
}

/// The largest window that `of` can advertise, plus one byte for a window probe.
pub(crate) fn reach(of: &TcpEnd, other: &TcpEnd) -> i64 {
    let scale = of.wscale.and(other.wscale).and(of.wscale).unwrap_or(0).min(14);
    (65_535_i64 << scale) + 1
}

fn index(direction: Direction) -> usize {
    match direction {
        Direction::Original => 0,
        Direction::Reply => 1,
    }
}

impl End {
    fn new(isn: u32, fresh: Time) -> End {
        let first = isn.wrapping_add(1);
        End { edge: first, acked: first, fin: None, fresh, fin_here: false }
    }

    /// How far it may be ahead of what is known; `None`: nothing is known.
    fn growth(&self, now: Time) -> Option<i64> {
        let age = now.since(self.fresh);
        if self.fresh == Time::ZERO || age > RESYNC {
            return None;
        }
        let grown = age.as_nanos().saturating_mul(5) / 4;
        Some(i64::try_from(grown).unwrap_or(i64::MAX).min(i64::from(GROWTH_MAX)))
    }

    /// Is `number` at most `over` ahead, at most `under` behind?
    fn within(&self, number: u32, over: i64, under: i64) -> bool {
        (-under..=over).contains(&ahead(number, self.edge))
    }

    /// `number` is known to be sent. `sure`: it was within the bounds; otherwise it sets the edge anew.
    fn sent(&mut self, number: u32, sure: bool, now: Time) {
        if !sure || ahead(number, self.edge) > 0 {
            self.edge = number;
        }
        self.fresh = now;
    }

    /// Nothing that was sent lies beyond this.
    fn last(&self) -> Option<u32> {
        self.fin.or((self.fresh != Time::ZERO).then_some(self.edge))
    }
}

impl Track {
    /// A connection whose handshake these two spoke. `seen`: when this member last learned of the handshake; `None` if
    /// it never did, so that the connection may be older than it looks.
    pub(crate) fn new(client: &TcpEnd, server: &TcpEnd, seen: Option<Time>) -> Track {
        let fresh = seen.unwrap_or(Time::ZERO);
        Track { ends: [End::new(client.isn, fresh), End::new(server.isn, fresh)], reset: false, proposed: false }
    }

    /// Judges a segment of an established connection and takes it in if it belongs. SYNs are not for this function.
    pub(crate) fn segment(
        &mut self,
        talk: [&TcpEnd; 2],
        direction: Direction,
        tcp: &Tcp,
        closed: Option<CloseCause>,
        now: Time,
    ) -> Seen {
        if tcp.has(Tcp::SYN) || !(tcp.has(Tcp::ACK) || tcp.has(Tcp::RST)) {
            // RFC 9293 section 3.10.7.4: without ACK, a segment is discarded.
            return Seen::Not(Reason::TcpFlags);
        }
        let (s, r) = (index(direction), index(direction.flip()));
        let (ws, wr) = (reach(talk[s], talk[r]), reach(talk[r], talk[s]));
        if closed.is_some() {
            return self.after_close(s, r, ws, wr, tcp);
        }
        let (sender, receiver) = (self.ends[s], self.ends[r]);
        let growth = sender.growth(now);
        let over = match growth {
            Some(growth) => wr + growth,
            None => wr,
        };
        let in_window = sender.within(tcp.end(), over, wr + i64::from(tcp.payload)) && sender.within(tcp.seq, over, wr);
        if tcp.has(Tcp::RST) {
            return self.rst(s, tcp, in_window, growth.is_none());
        }
        if !in_window && growth.is_some() {
            return Seen::Not(Reason::TcpWindow);
        }
        if sender.fin.is_some_and(|fin| ahead(tcp.end(), fin) > 0) {
            return Seen::Not(Reason::TcpWindow);
        }
        let ack_growth = receiver.growth(now);
        let ack_sure = receiver.within(tcp.ack, ws + ack_growth.unwrap_or(0), 2 * ws);
        if !ack_sure && ack_growth.is_some() {
            return Seen::Not(Reason::TcpWindow);
        }
        if receiver.fin.is_some_and(|fin| ahead(tcp.ack, fin) > 0) {
            return Seen::Not(Reason::TcpWindow);
        }

        self.ends[s].sent(tcp.end(), in_window, now);
        let receiver = &mut self.ends[r];
        receiver.sent(tcp.ack, ack_sure, now);
        if !ack_sure || ahead(tcp.ack, receiver.acked) > 0 {
            receiver.acked = tcp.ack;
        }
        if tcp.has(Tcp::FIN) {
            self.ends[s].fin = Some(tcp.end());
            self.ends[s].fin_here = true;
            return Seen::Fin(tcp.end());
        }
        Seen::Pass
    }

    fn rst(&mut self, s: usize, tcp: &Tcp, in_window: bool, unknown: bool) -> Seen {
        let sender = self.ends[s];
        let exact = tcp.seq == sender.edge || tcp.seq == sender.acked;
        let fin = self.ends.iter().any(|e| e.fin.is_some());
        if (sender.fresh != Time::ZERO && exact) || (fin && in_window) {
            self.reset = true;
            return Seen::Reset;
        }
        // Never seen: any number may be the right one. Not seen for long: near the edge, it may.
        if sender.fresh == Time::ZERO || (unknown && in_window) {
            return Seen::Pass;
        }
        Seen::Not(if in_window { Reason::TcpRst } else { Reason::TcpWindow })
    }

    /// In TIME_WAIT and CLOSE: retransmissions and last acknowledgements belong; nothing new does.
    fn after_close(&self, s: usize, r: usize, ws: i64, wr: i64, tcp: &Tcp) -> Seen {
        let belongs = |end: &End, number: u32, under: i64| {
            end.last().is_some_and(|last| (-under..=0).contains(&ahead(number, last)))
        };
        let seq = belongs(&self.ends[s], tcp.seq, wr) && belongs(&self.ends[s], tcp.end(), wr);
        let ack = !tcp.has(Tcp::ACK) || belongs(&self.ends[r], tcp.ack, 2 * ws);
        match seq && ack {
            true if tcp.has(Tcp::FIN) && !tcp.has(Tcp::RST) => Seen::Fin(tcp.end()),
            true => Seen::Pass,
            false => Seen::Not(Reason::NoSession),
        }
    }

    /// Could `direction`'s end have sent a segment with this sequence number? For ICMP errors about it.
    pub(crate) fn sent(&self, talk: [&TcpEnd; 2], direction: Direction, seq: u32, now: Time) -> bool {
        let (s, r) = (index(direction), index(direction.flip()));
        let reach = reach(talk[r], talk[s]);
        let end = &self.ends[s];
        end.growth(now).is_none_or(|growth| end.within(seq, reach + growth, 2 * reach))
    }

    /// Another member saw a FIN that ends at `end`.
    pub(crate) fn fin_elsewhere(&mut self, direction: Direction, end: u32) {
        let sender = &mut self.ends[index(direction)];
        if sender.fin.is_none() {
            sender.fin = Some(end);
            if sender.fresh == Time::ZERO || ahead(end, sender.edge) > 0 {
                sender.edge = end;
            }
        }
    }

    /// Another member believed a RST. Is that new?
    pub(crate) fn rst_elsewhere(&mut self) -> bool {
        !std::mem::replace(&mut self.reset, true)
    }

    /// Are both FINs known?
    pub(crate) fn finished(&self) -> bool {
        self.ends.iter().all(|e| e.fin.is_some())
    }

    /// Is it this member's to propose the close now? Of both FINs, the reply direction's passes at exactly one member
    /// (unless routes change); that member proposes, others only when it does not. Yields true once.
    pub(crate) fn propose_close(&mut self) -> bool {
        let now = !self.proposed && self.finished() && self.ends[1].fin_here;
        self.proposed |= now;
        now
    }

    /// A RST was believed: is it this member's to propose the close? Yields true once.
    pub(crate) fn propose_reset(&mut self) -> bool {
        !std::mem::replace(&mut self.proposed, true)
    }

    /// The close is not in the log though it should be: why it is to be closed.
    pub(crate) fn overdue(&mut self) -> Option<CloseCause> {
        let cause = if self.reset { CloseCause::Rst } else { CloseCause::Fin };
        self.proposed = true;
        (self.reset || self.finished()).then_some(cause)
    }

    /// Is it not closed by the log, but at its end?
    pub(crate) fn ending(&self) -> bool {
        self.reset || self.ends.iter().any(|e| e.fin.is_some())
    }

    /// The state as conntrack(8) names it.
    pub(crate) fn state(&self, closed: Option<CloseCause>) -> &'static str {
        match closed {
            Some(CloseCause::Fin) => return "TIME_WAIT",
            Some(CloseCause::Rst) => return "CLOSE",
            None => {}
        }
        let acked = |e: &End| e.fin.is_some_and(|fin| ahead(e.acked, fin) >= 0);
        match self.ends.iter().filter(|e| e.fin.is_some()).count() {
            0 => "ESTABLISHED",
            1 if self.ends.iter().any(acked) => "CLOSE_WAIT",
            1 => "FIN_WAIT",
            _ => "LAST_ACK",
        }
    }
}

#[cfg(test)]
mod tests;
