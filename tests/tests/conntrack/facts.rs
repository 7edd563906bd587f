//! What has happened in a history so far, as far as it takes to say why two trackers disagree about a packet. No tracker
//! of its own: it judges nothing, and it knows only what Palisade forwarded.

use palisade_engine::parse::{Kind, Packet, Tcp};
use palisade_engine::{Direction, Tuple};

use crate::kernel::State;
use crate::packet::{ACK, FIN, RST, SYN};

/// How far `a` is ahead of `b`.
pub(crate) fn ahead(a: u32, b: u32) -> i64 {
    i64::from(a.wrapping_sub(b) as i32)
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Stage {
    /// A SYN.
    Asked,
    /// A SYN-ACK.
    Answered,
    /// The handshake is complete.
    Open,
    /// Both ends sent a FIN.
    Finished,
    /// A RST passed.
    Reset,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct End {
    pub(crate) isn: u32,
    /// After the highest byte that it sent.
    pub(crate) edge: u32,
    /// After the highest byte that it may send.
    pub(crate) limit: u32,
    /// The highest acknowledgement of what it sent.
    pub(crate) acked: u32,
    /// The largest window that it advertised, in bytes.
    pub(crate) window: i64,
    pub(crate) scale: Option<u8>,
    /// After its FIN.
    pub(crate) fin: Option<u32>,
    /// After a FIN before the end of what it has sent, which no correct end sends.
    pub(crate) false_fin: Option<u32>,
}

impl End {
    /// Has it sent a FIN?
    pub(crate) fn ended(&self) -> bool {
        self.fin.or(self.false_fin).is_some()
    }
}

/// A connection.
#[derive(Clone, Debug)]
pub(crate) struct Talk {
    pub(crate) original: Tuple,
    pub(crate) ends: [End; 2],
    pub(crate) stage: Stage,
    /// Its handshake was completed.
    pub(crate) established: bool,
    /// The last SYN of its client that is not its own.
    pub(crate) contender: Option<u32>,
    /// The acknowledgement of a segment that answered the SYN instead of a SYN-ACK.
    pub(crate) challenge: Option<u32>,
    /// There was another SYN before the handshake was complete.
    pub(crate) tried: bool,
    /// The server answered with several numbers.
    pub(crate) answers: bool,
    /// There was another SYN, or another SYN-ACK, than the connection's own.
    pub(crate) rival: bool,
    /// A SYN-ACK that nobody had asked for, or a RST, came while the handshake was under way.
    pub(crate) disturbed: bool,
    /// A segment went beyond the window, and passed.
    pub(crate) overshot: bool,
    /// A SYN came after a FIN.
    pub(crate) reopened: bool,
    /// The ends of the connection before this one.
    pub(crate) old: Option<[End; 2]>,
}

impl Talk {
    fn new(tuple: Tuple, tcp: &Tcp, old: Option<[End; 2]>) -> Talk {
        let client = End {
            isn: tcp.seq,
            edge: tcp.end(),
            limit: tcp.end(),
            acked: tcp.seq,
            window: tcp.window.into(),
            scale: tcp.wscale,
            ..End::default()
        };
        let ends = [client, End::default()];
        Talk {
            original: tuple,
            ends,
            stage: Stage::Asked,
            established: false,
            contender: None,
            challenge: None,
            tried: false,
            answers: false,
            rival: false,
            disturbed: false,
            overshot: false,
            reopened: false,
            old,
        }
    }

    pub(crate) fn direction(&self, tuple: &Tuple) -> Option<Direction> {
        match tuple {
            t if *t == self.original => Some(Direction::Original),
            t if *t == self.original.inverse() => Some(Direction::Reply),
            _ => None,
        }
    }

    /// The largest window, in bytes, that this end can advertise.
    pub(crate) fn reach(&self, end: usize) -> i64 {
        65_535 << self.shift(end)
    }

    fn shift(&self, end: usize) -> u8 {
        self.ends[0].scale.and(self.ends[1].scale).and(self.ends[end].scale).unwrap_or(0)
    }

    fn take(&mut self, from: usize, tcp: &Tcp) {
        let to = 1 - from;
        if tcp.has(SYN | ACK) && from == 1 {
            let late = self.stage > Stage::Answered && self.contender.map(|s| s.wrapping_add(1)) != Some(tcp.ack);
            if late || (self.stage == Stage::Answered && tcp.seq == self.ends[1].isn) {
                self.rival |= tcp.seq != self.ends[1].isn;
                return;
            }
            self.rival |= self.stage == Stage::Answered;
            if let Some(isn) = self.contender.take().filter(|isn| isn.wrapping_add(1) == tcp.ack) {
                let client = &mut self.ends[0];
                (client.isn, client.edge, client.fin) = (isn, isn.wrapping_add(1), None);
            }
            self.answers |= self.stage == Stage::Answered;
            let limit = tcp.ack.wrapping_add(tcp.window.into());
            (self.ends[0].limit, self.ends[0].acked) = (limit, tcp.ack);
            self.ends[1] = End {
                isn: tcp.seq,
                edge: tcp.end(),
                limit: tcp.end().wrapping_add(self.ends[0].window as u32),
                acked: tcp.seq,
                window: tcp.window.into(),
                scale: tcp.wscale,
                ..End::default()
            };
            self.stage = Stage::Answered;
            return;
        }
        if tcp.has(SYN) {
            self.tried |= from == 0 && tcp.seq != self.ends[0].isn && self.stage <= Stage::Answered;
            if from == 0 && tcp.seq != self.ends[0].isn {
                (self.contender, self.rival) = (Some(tcp.seq), true);
            }
            return;
        }
        if tcp.has(RST) {
            self.stage = Stage::Reset;
            return;
        }
        if self.stage == Stage::Answered && from == 0 {
            (self.stage, self.established) = (Stage::Open, true);
        }
        let window = i64::from(tcp.window) << self.shift(from);
        let sender = &mut self.ends[from];
        sender.window = sender.window.max(window);
        if tcp.has(FIN) && ahead(tcp.end(), sender.edge) < 0 {
            sender.false_fin = Some(tcp.end());
        } else if tcp.has(FIN) && sender.fin.is_none() {
            sender.fin = Some(tcp.end());
        }
        self.overshot |= ahead(tcp.end(), sender.limit) > 1;
        if ahead(tcp.end(), sender.edge) > 0 {
            sender.edge = tcp.end();
        }
        let receiver = &mut self.ends[to];
        let limit = tcp.ack.wrapping_add(window as u32);
        if ahead(limit, receiver.limit) > 0 {
            receiver.limit = limit;
        }
        if ahead(tcp.ack, receiver.acked) > 0 {
            receiver.acked = tcp.ack;
        }
        if self.stage == Stage::Open && self.ends.iter().all(End::ended) {
            self.stage = Stage::Finished;
        }
    }
}

/// All connections of a history.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    talks: Vec<Talk>,
    /// Connections that the kernel picked up in the middle, as it saw their first packet.
    picked: Vec<Tuple>,
}

impl Facts {
    pub(crate) fn talk(&self, tuple: &Tuple) -> Option<(&Talk, Direction)> {
        self.talks.iter().find_map(|talk| Some((talk, talk.direction(tuple)?)))
    }

    /// Did the kernel that picks up do so with this connection?
    pub(crate) fn picked(&self, tuple: &Tuple) -> bool {
        self.picked.iter().any(|p| p == tuple || p.inverse() == *tuple)
    }

    /// A packet as the two kernels saw it.
    pub(crate) fn seen(&mut self, packet: &Packet, [loose, strict]: [State; 2]) {
        let Kind::Tcp(tcp) = &packet.kind else { return };
        if loose == State::New && tcp.flags & (SYN | ACK) != SYN {
            self.picked.push(packet.tuple);
        }
        let known = self.talks.iter_mut().find_map(|talk| talk.direction(&packet.tuple).map(|d| (talk, d)));
        let Some((talk, direction)) = known else { return };
        let (reply, syn) = (direction == Direction::Reply, tcp.flags & (SYN | ACK));
        if talk.stage == Stage::Asked && reply && tcp.flags & (SYN | RST) == 0 {
            talk.challenge = strict.passes().then_some(tcp.ack);
        }
        talk.reopened |= syn == SYN && talk.ends.iter().any(End::ended);
        let asked = reply && (0..=1 << 16).contains(&ahead(tcp.ack, talk.ends[0].isn.wrapping_add(1)));
        talk.disturbed |= talk.stage <= Stage::Answered && syn == SYN | ACK && !asked;
        talk.disturbed |= talk.stage == Stage::Asked && reply && tcp.has(RST);
    }

    /// A packet that Palisade forwarded.
    pub(crate) fn take(&mut self, packet: &Packet) {
        let Kind::Tcp(tcp) = &packet.kind else { return };
        let opens = tcp.flags & (SYN | ACK) == SYN;
        let known = self.talks.iter_mut().find_map(|talk| talk.direction(&packet.tuple).map(|d| (talk, d)));
        match known {
            Some((talk, Direction::Original)) if opens && talk.stage >= Stage::Finished => {
                *talk = Talk::new(packet.tuple, tcp, Some(talk.ends));
            }
            Some((talk, direction)) => talk.take(usize::from(direction == Direction::Reply), tcp),
            None if opens => self.talks.push(Talk::new(packet.tuple, tcp, None)),
            None => {}
        }
    }
}
