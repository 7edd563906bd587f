//! The closed list of disagreements, each with the reason why a packet belongs to it. `docs/conntrack.md` has the same
//! list, with what the kernel does, what Palisade does, and why.

use palisade_engine::parse::{Kind, Packet, Tcp};
use palisade_engine::{Direction, Protocol, Reason};

use crate::facts::{End, Facts, Stage, Talk, seq_diff};
use crate::kernel::State;
use crate::ours::Ours;
use crate::packet::{ACK, Piece, RST, SYN, Side, addresses, piece};

/// A packet about which a kernel and Palisade disagree.
pub(crate) struct View<'a> {
    pub(crate) from: Side,
    /// The packet; of a datagram its fragments.
    pub(crate) packets: &'a [Vec<u8>],
    pub(crate) packet: Result<&'a Packet, Reason>,
    /// What had happened before.
    pub(crate) facts: &'a Facts,
    /// What had happened when Palisade's verdict was final.
    pub(crate) now: &'a Facts,
    /// Does this kernel pick up connections in the middle?
    pub(crate) loose: bool,
    pub(crate) state: State,
    pub(crate) ours: Ours,
}

/// A kind of disagreement.
pub(crate) struct Class {
    pub(crate) name: &'static str,
    /// May the two know different things afterwards, so that what follows cannot be compared?
    pub(crate) parts: bool,
    pub(crate) explains: fn(&View<'_>) -> bool,
}

/// A TCP segment of a connection that is known: the connection, and which end sent it.
struct Belongs<'a> {
    tcp: &'a Tcp,
    talk: &'a Talk,
    from: usize,
}

impl View<'_> {
    /// The kernel lets it pass; Palisade does not, for one of these reasons.
    fn only_kernel(&self, reasons: &[Reason]) -> bool {
        self.state.passes() && matches!(self.ours, Ours::Drop(reason) if reasons.contains(&reason))
    }

    /// The kernel lets it pass; Palisade held it in vain.
    fn only_kernel_held(&self) -> bool {
        self.only_kernel(&[Reason::HoldExpired]) || (self.state.passes() && matches!(self.ours, Ours::LateDrop(_)))
    }

    /// Palisade lets it pass; for the kernel it is INVALID, or new from the wrong side.
    fn only_ours(&self) -> bool {
        !self.state.passes() && self.ours.passes()
    }

    fn bytes(&self) -> &[u8] {
        &self.packets[0]
    }

    fn v4(&self) -> bool {
        self.bytes()[0] >> 4 == 4
    }

    /// What follows an IP header without options or extensions, if that is of this protocol.
    fn body(&self, protocol: Protocol) -> Option<&[u8]> {
        let (number, at) = if self.v4() { (9, 20) } else { (6, 40) };
        self.bytes().get(at..).filter(|_| self.bytes()[number] == protocol.0)
    }

    /// The type and code of an ICMP message.
    fn icmp(&self) -> Option<(u8, u8)> {
        let body = self.body(if self.v4() { Protocol::ICMP } else { Protocol::ICMPV6 })?;
        Some((body[0], body[1]))
    }

    /// The types of the extension headers of an IPv6 packet.
    fn extensions(&self) -> Vec<u8> {
        let (bytes, mut found) = (self.bytes(), Vec::new());
        if self.v4() {
            return found;
        }
        let (mut kind, mut at) = (bytes[6], 40);
        while [0, 43, 60].contains(&kind) && at + 1 < bytes.len() {
            found.push(kind);
            (kind, at) = (bytes[at], at + 8 + 8 * usize::from(bytes[at + 1]));
        }
        found
    }

    /// Whether it arrived on an interface that its source is not behind.
    fn elsewhere(&self) -> bool {
        addresses(self.bytes()).is_some_and(|(src, _)| Side::of(src) != Some(self.from))
    }

    fn pieces(&self) -> Vec<Piece> {
        self.packets.iter().filter_map(|packet| piece(packet)).collect()
    }

    fn tcp(&self) -> Option<&Tcp> {
        match &self.packet.ok()?.kind {
            Kind::Tcp(tcp) => Some(tcp),
            _ => None,
        }
    }

    /// Is it a TCP segment of a known connection, and this true of it?
    fn is(&self, condition: impl Fn(&Belongs<'_>) -> bool) -> bool {
        self.belongs(self.facts).is_some_and(|b| condition(&b))
    }

    /// The same, with what is known at the verdict.
    fn is_now(&self, condition: impl Fn(&Belongs<'_>) -> bool) -> bool {
        self.belongs(self.now).is_some_and(|b| condition(&b))
    }

    fn belongs<'f>(&'f self, facts: &'f Facts) -> Option<Belongs<'f>> {
        let (talk, direction) = facts.talk(&self.packet.ok()?.tuple)?;
        Some(Belongs { tcp: self.tcp()?, talk, from: usize::from(direction == Direction::Reply) })
    }
}

impl Belongs<'_> {
    /// ACK, perhaps data, perhaps FIN.
    fn plain(&self) -> bool {
        self.tcp.has(ACK) && self.tcp.flags & (SYN | RST) == 0
    }

    fn rst(&self) -> bool {
        self.tcp.has(RST)
    }

    /// Of SYN and ACK it has these.
    fn syn(&self, flags: u8) -> bool {
        self.tcp.flags & (SYN | ACK) == flags
    }

    fn stage(&self, stages: &[Stage]) -> bool {
        stages.contains(&self.talk.stage)
    }

    fn over(&self) -> bool {
        self.stage(&[Stage::Finished, Stage::Reset])
    }

    fn sender(&self) -> &End {
        &self.talk.ends[self.from]
    }

    fn receiver(&self) -> &End {
        &self.talk.ends[1 - self.from]
    }

    /// How far its end is beyond what its sender has sent.
    fn beyond(&self) -> i64 {
        seq_diff(self.tcp.end(), self.sender().seq_end)
    }

    /// How far its acknowledgement is beyond what the other end has sent.
    fn ack_beyond(&self) -> i64 {
        seq_diff(self.tcp.ack, self.receiver().seq_end)
    }

    /// Older than a whole window, or two: `docs/security.md`, "near".
    fn behind_the_windows(&self) -> bool {
        let seq =
            seq_diff(self.sender().seq_end, self.tcp.seq) > MAX_SEQ_BEHIND.min(self.talk.max_window(1 - self.from));
        seq || self.tcp.has(ACK) && -self.ack_beyond() > MAX_SEQ_BEHIND.min(2 * self.talk.max_window(self.from))
    }

    /// More than what its receiver allows, and more than could be allowed unseen.
    fn beyond_the_windows(&self) -> bool {
        seq_diff(self.tcp.end(), self.sender().window_end) > 1
            && self.beyond() > MAX_SEQ_AHEAD.min(self.talk.max_window(1 - self.from))
    }

    /// Beyond what was seen, but no farther than what may have passed elsewhere.
    fn unseen(&self) -> bool {
        let seq = seq_diff(self.tcp.end(), self.sender().window_end) > 0 && self.beyond() > 0;
        (seq || self.ack_beyond() > 0) && !self.beyond_the_windows() && self.ack_beyond() <= MAX_SEQ_AHEAD
    }

    /// A segment as a correct end sends it: nothing beyond what is allowed or sent, nothing older than the windows. So if a
    /// kernel does not let it pass, it has lost track.
    fn fits(&self) -> bool {
        let allowed = seq_diff(self.tcp.end(), self.sender().window_end) <= 1 || self.beyond() <= 0;
        self.plain() && allowed && self.ack_beyond() <= 0 && !self.behind_the_windows()
    }

    /// Does it belong to what was, once all was said?
    fn belongs_to_the_end(&self) -> bool {
        let acknowledges = !self.tcp.has(ACK) || self.ack_beyond() <= 0;
        self.beyond() <= 0 && acknowledges && !self.behind_the_windows()
    }

    /// RFC 9293 section 3.10.7.3: the answer to a SYN acknowledges it, and it alone or with its data.
    fn answers_the_syn(&self) -> bool {
        let client = &self.talk.ends[0];
        self.from == 1 && self.tcp.has(ACK) && [client.isn.wrapping_add(1), client.seq_end].contains(&self.tcp.ack)
    }

    fn answers_a_contender(&self) -> bool {
        let answered = |end: &End| end.isn.wrapping_add(1) == self.tcp.ack;
        self.from == 1 && self.tcp.has(ACK) && self.talk.contenders.iter().any(answered)
    }

    /// It passes or not as it would with the numbers and the scale of a rival.
    fn judged_as_a_rivals(&self, passes: bool) -> bool {
        let near = self.beyond() <= MAX_SEQ_AHEAD && self.ack_beyond() <= MAX_SEQ_AHEAD;
        self.talk.rival
            && self.plain()
            && if passes { near } else { -self.beyond() > 65_535 || -self.ack_beyond() > 131_070 }
    }

    fn any_fin(&self) -> bool {
        self.talk.ends.iter().any(End::ended)
    }

    fn after_fin(&self) -> bool {
        self.sender().fin.is_some_and(|fin| seq_diff(self.tcp.end(), fin) > 0)
            || self.receiver().fin.is_some_and(|fin| seq_diff(self.tcp.ack, fin) > 0)
    }

    /// A FIN before the end of the data is taken for the end.
    fn after_false_fin(&self) -> bool {
        self.sender().false_fin.is_some_and(|fin| seq_diff(self.tcp.end(), fin) > 0)
            || self.receiver().false_fin.is_some_and(|fin| seq_diff(self.tcp.ack, fin) > 0)
    }

    /// Before the first byte of data, or acknowledging what is before it.
    fn before_the_first(&self) -> bool {
        seq_diff(self.tcp.seq, self.sender().isn) < 1 || seq_diff(self.tcp.ack, self.receiver().isn) < 1
    }

    /// The right edge of a SACK block beyond all that the other end has sent?
    fn false_sack(&self, bytes: &[u8], at: usize) -> bool {
        let options = options(&bytes[at..]);
        let blocks = options.iter().filter(|(kind, _)| *kind == 5).flat_map(|(_, value)| value.chunks_exact(8));
        let mut rights = blocks.filter_map(|block| Some(u32::from_be_bytes(*block.last_chunk()?)));
        rights.any(|right| seq_diff(right, self.receiver().seq_end) > 0)
    }

    /// Nothing that the connection before this one on the same tuple could not have sent.
    fn of_the_old(&self) -> bool {
        let old = self.talk.old.as_ref().map(|ends| (&ends[self.from], &ends[1 - self.from]));
        let number = |n: u32, edge: u32| (-MAX_SEQ_BEHIND..=0).contains(&seq_diff(n, edge));
        old.is_some_and(|(s, r)| {
            number(self.tcp.end(), s.seq_end) && (!self.tcp.has(ACK) || number(self.tcp.ack, r.seq_end))
        })
    }

    fn exact(&self) -> bool {
        [self.sender().seq_end, self.sender().snd_una].contains(&self.tcp.seq)
    }

    /// It acknowledges a SYN, and data that this SYN might have carried.
    fn answers_early_data(&self) -> bool {
        let own = (self.talk.stage == Stage::Asked).then_some(&self.talk.ends[0]);
        let mut isns = own.into_iter().chain(&self.talk.contenders).map(|end| end.isn.wrapping_add(1));
        isns.any(|first| (1..=1 << 16).contains(&seq_diff(self.tcp.ack, first)))
    }
}

/// The options of a TCP header, as far as their lengths make sense.
fn options(tcp: &[u8]) -> Vec<(u8, &[u8])> {
    let mut rest = tcp.get(20..usize::from(tcp[12] >> 4) * 4).unwrap_or_default();
    let mut found = Vec::new();
    while let [kind, after @ ..] = rest {
        match (kind, after.first()) {
            (0, _) => break,
            (1, _) => rest = after,
            (_, Some(&length)) if length >= 2 && usize::from(length) <= rest.len() => {
                found.push((*kind, &rest[2..usize::from(length)]));
                rest = &rest[usize::from(length)..];
            }
            _ => {
                // What is left makes no sense.
                found.push((*kind, &[]));
                break;
            }
        }
    }
    found
}

/// Has one of these options another length than it can have?
fn odd_length((kind, value): &(u8, &[u8])) -> bool {
    match kind {
        2 => value.len() != 2,
        3 => value.len() != 1,
        4 => !value.is_empty(),
        8 => value.len() != 8,
        _ => value.is_empty(),
    }
}

/// Codes that an ICMP error has (RFC 792, RFC 1812, RFC 4443, RFC 7112 and IANA's list).
fn codes(v4: bool, kind: u8) -> Option<u8> {
    match (v4, kind) {
        (true, 3) => Some(16),
        (true, 11) | (false, 3) => Some(2),
        (true, 12) => Some(3),
        (false, 1) => Some(9),
        (false, 2) => Some(1),
        (false, 4) => Some(11),
        _ => None,
    }
}

/// Most that Palisade lets a segment be ahead of and behind what it knows (`docs/security.md`).
const MAX_SEQ_AHEAD: i64 = 1 << 21;
const MAX_SEQ_BEHIND: i64 = 1 << 24;
/// The same for a RST after a FIN.
const SLACK: i64 = 1 << 19;

const fn class(name: &'static str, parts: bool, explains: fn(&View<'_>) -> bool) -> Class {
    Class { name, parts, explains }
}

/// The class that a disagreement belongs to: the first one that explains it.
pub(crate) fn explanation(view: &View<'_>) -> Option<&'static Class> {
    CLASSES.iter().find(|class| (class.explains)(view))
}

pub(crate) const CLASSES: &[Class] = &[
    class("wrong-interface", false, |v| {
        v.only_kernel(&[Reason::WrongZone, Reason::Antispoof, Reason::IcmpUnrelated]) && v.elsewhere()
    }),
    class("to-oneself", false, |v| {
        v.only_kernel(&[Reason::Martian]) && addresses(v.bytes()).is_some_and(|(src, dst)| src == dst)
    }),
    class("ipv4-options", false, |v| {
        v.only_kernel(&[Reason::IpOption, Reason::Malformed]) && v.v4() && v.bytes()[0] & 15 > 5
    }),
    class("reserved-bit", false, |v| v.only_kernel(&[Reason::Malformed]) && v.v4() && v.bytes()[6] & 0x80 != 0),
    class("routing-header", false, |v| v.only_kernel(&[Reason::IpOption]) && v.extensions().contains(&43)),
    class("many-extension-headers", false, |v| v.only_kernel(&[Reason::IpOption]) && v.extensions().len() > 8),
    class("ipv6-options", false, |v| v.only_kernel(&[Reason::IpOption]) && matches!(v.extensions()[..], [0 | 60])),
    class("hop-by-hop-not-first", false, |v| {
        v.only_kernel(&[Reason::Malformed]) && v.extensions().iter().skip(1).any(|kind| *kind == 0)
    }),
    class("overlapping-fragments", false, |v| {
        let mut pieces = v.pieces();
        pieces.sort_unstable();
        let overlap = pieces.windows(2).any(|two| two[0].end > two[1].begin);
        v.state == State::Absent && v.ours.passes() && overlap
    }),
    class("tiny-fragments", false, |v| {
        let tcp = v.body(Protocol::TCP).is_some();
        v.only_kernel(&[Reason::Fragment]) && tcp && v.pieces().iter().any(|piece| piece.begin == 8)
    }),
    class("tcp-option-lengths", false, |v| {
        let odd = |tcp| options(tcp).iter().any(odd_length);
        v.only_kernel(&[Reason::Malformed]) && v.body(Protocol::TCP).is_some_and(odd)
    }),
    class("port-zero", false, |v| {
        let body = v.body(Protocol::TCP).or(v.body(Protocol::UDP));
        v.only_kernel(&[Reason::Malformed]) && body.is_some_and(|b| b[..2] == [0, 0] || b[2..4] == [0, 0])
    }),
    class("udp-without-checksum", false, |v| {
        let none = v.body(Protocol::UDP).is_some_and(|udp| udp[6..8] == [0, 0]);
        v.only_kernel(&[Reason::BadChecksum]) && !v.v4() && none
    }),
    class("udp-options", false, |v| {
        let length = |udp: &[u8]| usize::from(u16::from_be_bytes([udp[4], udp[5]]));
        v.only_ours() && v.body(Protocol::UDP).is_some_and(|udp| length(udp) < udp.len())
    }),
    class("sctp", false, |v| v.only_ours() && v.body(Protocol(132)).is_some()),
    class("icmp-queries", false, |v| {
        let (v4, icmp) = (v.v4(), v.icmp());
        v.only_kernel(&[Reason::IcmpType])
            && icmp.is_some_and(|(kind, _)| matches!((v4, kind), (true, 13..=18) | (false, 139 | 140)))
    }),
    class("quench-and-redirect", false, |v| {
        v.only_kernel(&[Reason::IcmpType])
            && v.state == State::Related
            && v.v4()
            && matches!(v.icmp(), Some((4 | 5, _)))
    }),
    class("icmp-codes", false, |v| {
        let unknown = |(kind, code)| codes(v.v4(), kind).is_some_and(|codes| code >= codes);
        v.only_kernel(&[Reason::IcmpType]) && v.state == State::Related && v.icmp().is_some_and(unknown)
    }),
    class("icmp-numbers", false, |v| {
        let Ok(Packet { kind: Kind::IcmpError(about), .. }) = v.packet else { return false };
        let talk = v.facts.talk(&about.tuple);
        let far = |(talk, direction): (&Talk, Direction)| {
            let sender = talk.ends[usize::from(direction == Direction::Reply)];
            about.seq.is_some_and(|seq| seq_diff(seq, sender.seq_end).abs() > MAX_SEQ_AHEAD.min(talk.max_window(0)))
        };
        v.only_kernel(&[Reason::IcmpUnrelated]) && talk.is_some_and(far)
    }),
    class("icmp-truncated", false, |v| {
        let header = if v.v4() { 20 } else { 40 };
        let cut = v.bytes().len() < header + 8 + header + 8;
        v.only_kernel(&[Reason::Truncated]) && v.state == State::Related && v.icmp().is_some() && cut
    }),
    class("icmp-in-fragments", false, |v| {
        let protocol = if v.v4() { v.bytes()[9] } else { v.bytes()[40] };
        v.only_kernel(&[Reason::Fragment]) && v.state == State::Related && matches!(protocol, 1 | 58)
    }),
    class("rst-at-opening", true, |v| {
        let exact = |b: &Belongs<'_>| match b.talk.stage {
            Stage::Asked if b.from == 1 => b.answers_the_syn(),
            _ => b.tcp.seq == b.sender().seq_end && (!b.tcp.has(ACK) || !b.before_the_first() && b.ack_beyond() <= 0),
        };
        v.only_kernel(&[Reason::TcpRst]) && v.is(|b| b.rst() && b.stage(&[Stage::Asked, Stage::Answered]) && !exact(b))
    }),
    class("mid-stream", true, |v| {
        let opens = v.tcp().is_none_or(|tcp| tcp.flags & (SYN | ACK) == SYN);
        let begins = v.loose && v.state == State::New && !opens;
        begins || v.loose && v.state.passes() && v.packet.is_ok_and(|p| v.facts.picked(&p.tuple))
    }),
    class("behind-the-windows", false, |v| {
        v.only_kernel(&[Reason::TcpWindow]) && v.is(|b| b.plain() && !b.over() && b.behind_the_windows())
    }),
    class("beyond-the-windows", true, |v| {
        v.only_kernel(&[Reason::TcpWindow]) && v.is(|b| b.plain() && !b.over() && b.beyond_the_windows())
    }),
    class("unseen", true, |v| v.only_ours() && v.is(|b| b.plain() && !b.over() && b.unseen())),
    class("false-fin", true, |v| {
        (v.only_kernel(&[Reason::TcpWindow]) || v.only_kernel_held()) && v.is_now(|b| b.plain() && b.after_false_fin())
    }),
    class("handshake-numbers", true, |v| {
        v.only_kernel(&[Reason::TcpWindow])
            && v.is(|b| b.plain() && b.stage(&[Stage::Answered]) && b.before_the_first())
    }),
    class("after-a-fin", true, |v| v.only_kernel(&[Reason::TcpWindow]) && v.is(|b| b.plain() && b.after_fin())),
    class("after-a-reset-handshake", true, |v| {
        let dropped = v.only_kernel(&[Reason::NoSession]) || v.only_kernel_held();
        let again = |b: &Belongs<'_>| b.talk.old.is_some_and(|old| old[0].isn == b.talk.ends[0].isn);
        dropped && v.is(|b| b.stage(&[Stage::Open]) && !b.rst() && b.tcp.has(ACK) && again(b))
    }),
    class("after-a-refused-handshake", true, |v| {
        let dropped = v.only_kernel(&[Reason::NoSession]) || v.only_kernel_held();
        dropped && v.is(|b| (b.plain() || b.rst()) && b.over() && !b.talk.established)
    }),
    class("after-the-end", true, |v| {
        let dropped = v.only_kernel(&[Reason::NoSession, Reason::TcpFlags]) || v.only_kernel_held();
        let late = |b: &Belongs<'_>| b.over() && !b.belongs_to_the_end();
        dropped && v.is(|b| (late(b) || b.talk.old.is_some() && !b.of_the_old()) && (b.plain() || b.rst()))
    }),
    class("rst-not-exact", true, |v| {
        v.only_kernel(&[Reason::TcpRst]) && v.is(|b| b.rst() && b.talk.established && !b.exact())
    }),
    class("rst-acknowledgement", true, |v| {
        v.only_ours() && v.is(|b| b.rst() && b.exact() && (b.ack_beyond() > 0 || b.behind_the_windows()) && !b.over())
    }),
    class("rst-after-the-end", true, |v| {
        let near = |b: &Belongs<'_>| seq_diff(b.tcp.seq, b.sender().seq_end).abs() <= SLACK;
        v.only_ours() && v.is(|b| b.rst() && (b.over() && b.belongs_to_the_end() || b.any_fin() && near(b)))
    }),
    class("held-for-the-handshake", true, |v| {
        v.only_kernel_held() && v.is(|b| b.plain() && b.from == 1 && b.stage(&[Stage::Answered]))
    }),
    class("early-data-acknowledged", true, |v| {
        v.only_ours()
            && v.is(|b| b.from == 1 && b.tcp.has(ACK) && b.tcp.flags & (SYN | RST) != 0 && b.answers_early_data())
    }),
    class("challenge-ack", true, |v| {
        (v.only_kernel(&[Reason::TcpWindow]) || v.only_kernel_held())
            && v.is(|b| b.from == 1 && b.plain() && b.stage(&[Stage::Asked]))
    }),
    class("second-syn", true, |v| {
        let another = |b: &Belongs<'_>| b.talk.rival || b.stage(&[Stage::Open]) && b.tcp.seq != b.sender().isn;
        v.only_kernel(&[Reason::TcpWindow]) && v.is(|b| b.syn(SYN) && b.from == 0 && another(b))
    }),
    class("syn-ack-of-the-client", false, |v| v.only_kernel_held() && v.is(|b| b.syn(SYN | ACK) && b.from == 0)),
    class("stray-syn-ack", true, |v| {
        let proper = |b: &Belongs<'_>| match b.talk.stage {
            Stage::Asked => b.answers_the_syn(),
            Stage::Answered | Stage::Open => b.tcp.seq == b.sender().isn && seq_diff(b.tcp.ack, b.receiver().isn) == 1,
            Stage::Finished | Stage::Reset => false,
        };
        v.only_kernel_held() && v.is(|b| b.syn(SYN | ACK) && b.from == 1 && !proper(b))
    }),
    class("simultaneous-open", true, |v| {
        v.only_kernel(&[Reason::Policy])
            && v.is(|b| b.syn(SYN) && b.from == 1 && (b.stage(&[Stage::Asked]) || b.talk.tried || b.talk.disturbed))
    }),
    class("crossed-handshake", true, |v| {
        let own = |b: &Belongs<'_>| b.tcp.seq == b.sender().isn;
        let syn = |b: &Belongs<'_>| b.from == 1 && b.syn(SYN) && (own(b) || b.over());
        let copy = |b: &Belongs<'_>| syn(b) || own(b) && b.from == 0 && b.syn(SYN | ACK);
        let answer = |b: &Belongs<'_>| b.from == 1 && b.syn(SYN | ACK) && b.answers_the_syn();
        let ack = |b: &Belongs<'_>| b.from == 0 && b.plain() && b.tcp.payload == 0 && b.tcp.seq == b.sender().seq_end;
        v.only_ours() && v.is(|b| copy(b) || b.stage(&[Stage::Asked, Stage::Answered]) && (answer(b) || ack(b)))
    }),
    class("predecessor", true, |v| {
        v.only_ours() && v.is(|b| b.stage(&[Stage::Asked, Stage::Answered]) && !b.tcp.has(SYN) && b.of_the_old())
    }),
    class("syn-after-a-fin", true, |v| v.only_ours() && v.is(|b| b.talk.reopened && b.fits())),
    class("sack-of-the-unseen", true, |v| {
        let at = if v.v4() { 20 } else { 40 };
        v.only_ours() && v.is(|b| b.plain() && b.false_sack(v.bytes(), at))
    }),
    class("several-syn-acks", true, |v| v.only_ours() && v.is(|b| b.talk.answers && b.fits())),
    class("before-its-time", true, |v| {
        let Ok(p) = v.packet else { return false };
        let opening = v.facts.talk(&p.tuple).is_none_or(|(talk, _)| matches!(talk.stage, Stage::Asked | Stage::Reset));
        let answers = v.tcp().is_none() || v.is_now(|b| b.tcp.has(ACK) || b.rst());
        !v.state.passes() && v.ours == Ours::Late && opening && answers
    }),
    class("disturbed-handshake", true, |v| v.only_ours() && v.is(|b| b.talk.disturbed && b.fits())),
    class("lost-track", true, |v| v.only_ours() && v.is(|b| b.talk.odd && (b.fits() || b.rst() && b.exact()))),
    class("another-syn", true, |v| {
        let begins = |b: &Belongs<'_>| b.from == 0 && b.syn(SYN) && b.stage(&[Stage::Asked]);
        v.only_ours() && v.is(|b| begins(b) || b.talk.tried && b.fits() || b.rst() && b.answers_a_contender())
    }),
    class("rival-half-open", true, |v| {
        let own = |b: &Belongs<'_>| if b.over() { b.belongs_to_the_end() } else { b.stage(&[Stage::Open]) && b.fits() };
        let old = |b: &Belongs<'_>| b.stage(&[Stage::Asked]) && b.from == 0 && b.of_the_old();
        let copy = |b: &Belongs<'_>| b.talk.answers && b.from == 1 && b.syn(SYN | ACK) && b.tcp.seq == b.sender().isn;
        let held = v.only_kernel_held() && v.is(|b| b.plain() && (b.talk.rival && own(b) || old(b)) || copy(b));
        let wrong = v.only_kernel(&[Reason::TcpWindow]) || v.only_ours();
        held || wrong && v.is(|b| b.judged_as_a_rivals(v.ours.passes()))
    }),
];
