//! What has happened in a history so far, as far as it takes to say why two trackers disagree about a packet. No tracker
//! of its own: it judges nothing, and it knows only what Palisade forwarded.

use palisade_engine::parse::{Kind, Packet, Tcp};
use palisade_engine::{Direction, Tuple};

use crate::kernel::State;
use crate::packet::{ACK, FIN, RST, SYN};

/// `a − b` in sequence space: positive if `a` is ahead.
pub(crate) fn seq_diff(a: u32, b: u32) -> i64 {
    i64::from(a.wrapping_sub(b) as i32)
}

/// How far an acknowledgement may be behind for conntrack at least (MAXACKWINCONST).
const KERNELS_ACK: i64 = 66_000;

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
    pub(crate) seq_end: u32,
    /// After the highest byte that it may send.
    pub(crate) window_end: u32,
    /// The highest acknowledgement of what it sent.
    pub(crate) snd_una: u32,
    /// The largest window that it advertised, in bytes.
    pub(crate) window: i64,
    pub(crate) scale: Option<u8>,
    /// After its FIN.
    pub(crate) fin: Option<u32>,
    /// After a FIN before the end of what it has sent, which no correct end sends.
    pub(crate) false_fin: Option<u32>,
}

impl End {
    /// From a SYN.
    fn client(tcp: &Tcp) -> End {
        End {
            isn: tcp.seq,
            seq_end: tcp.end(),
            window_end: tcp.end(),
            snd_una: tcp.seq,
            window: tcp.window.into(),
            scale: tcp.wscale,
            ..End::default()
        }
    }

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
    /// What other SYNs of its client said.
    pub(crate) contenders: Vec<End>,
    /// What the SYN-ACKs of the handshake said.
    servers: Vec<End>,
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
    /// A segment passed that went beyond the window, or acknowledged what is long past.
    pub(crate) odd: bool,
    /// A SYN came after a FIN.
    pub(crate) reopened: bool,
    /// The ends of the connection before this one.
    pub(crate) old: Option<[End; 2]>,
}

impl Talk {
    fn new(tuple: Tuple, tcp: &Tcp, old: Option<[End; 2]>) -> Talk {
        let client = End::client(tcp);
        let ends = [client, End::default()];
        Talk {
            original: tuple,
            ends,
            stage: Stage::Asked,
            established: false,
            contenders: Vec::new(),
            servers: Vec::new(),
            challenge: None,
            tried: false,
            answers: false,
            rival: false,
            disturbed: false,
            odd: false,
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
    pub(crate) fn max_window(&self, end: usize) -> i64 {
        65_535 << self.shift(end)
    }

    fn shift(&self, end: usize) -> u8 {
        self.ends[0].scale.and(self.ends[1].scale).and(self.ends[end].scale).unwrap_or(0)
    }

    /// A SYN-ACK of the server.
    fn answered(&mut self, tcp: &Tcp) {
        let contender = self.contenders.iter().position(|c| c.isn.wrapping_add(1) == tcp.ack);
        match (self.stage, contender) {
            // A copy.
            (Stage::Answered, None) if self.servers.iter().any(|s| s.isn == tcp.seq) => return,
            (Stage::Answered, None) => (self.rival, self.answers) = (true, true),
            (Stage::Asked, None) => {}
            (_, None) => {
                self.rival |= tcp.seq != self.ends[1].isn;
                return;
            }
            (stage, Some(at)) => {
                self.rival |= stage >= Stage::Answered;
                if stage >= Stage::Open {
                    self.old = Some(self.ends);
                }
                let other = self.contenders.swap_remove(at);
                self.contenders.push(std::mem::replace(&mut self.ends[0], other));
                self.servers.clear();
            }
        }
        let limit = tcp.ack.wrapping_add(tcp.window.into());
        (self.ends[0].window_end, self.ends[0].snd_una) = (limit, tcp.ack);
        self.ends[1] = End { window_end: tcp.end().wrapping_add(self.ends[0].window as u32), ..End::client(tcp) };
        self.servers.push(self.ends[1]);
        self.stage = Stage::Answered;
    }

    fn take(&mut self, from: usize, tcp: &Tcp) {
        let to = 1 - from;
        if tcp.has(SYN | ACK) && from == 1 {
            return self.answered(tcp);
        }
        if tcp.has(SYN) {
            if from == 0 && tcp.seq != self.ends[0].isn {
                self.tried |= self.stage <= Stage::Answered;
                self.rival = true;
                self.contenders.push(End::client(tcp));
            }
            return;
        }
        if tcp.has(RST) {
            // One of the connection before changes nothing of a new SYN.
            let answers = tcp.has(ACK) && tcp.ack == self.ends[0].isn.wrapping_add(1);
            if self.stage > Stage::Asked || self.old.is_none() || from == 0 || answers {
                self.stage = Stage::Reset;
            }
            return;
        }
        if self.stage == Stage::Answered && from == 0 {
            // The client chooses.
            let chosen =
                self.servers.iter().filter(|s| seq_diff(tcp.ack, s.isn) > 0).min_by_key(|s| seq_diff(tcp.ack, s.isn));
            if let Some(server) = chosen.filter(|s| s.isn != self.ends[1].isn) {
                self.ends[1] = *server;
            }
            (self.stage, self.established) = (Stage::Open, true);
        }
        // The kernel lets these pass, but ignores them, or takes their end for the sender's.
        let behind = -seq_diff(tcp.ack, self.ends[to].seq_end) > KERNELS_ACK.max(self.ends[from].window);
        let window = i64::from(tcp.window) << self.shift(from);
        let sender = &mut self.ends[from];
        sender.window = sender.window.max(window);
        if tcp.has(FIN) && seq_diff(tcp.end(), sender.seq_end) < 0 {
            sender.false_fin = Some(tcp.end());
        } else if tcp.has(FIN) && sender.fin.is_none() {
            sender.fin = Some(tcp.end());
        }
        self.odd |= seq_diff(tcp.end(), sender.window_end) > 1 || behind;
        if seq_diff(tcp.end(), sender.seq_end) > 0 {
            sender.seq_end = tcp.end();
        }
        let receiver = &mut self.ends[to];
        let limit = tcp.ack.wrapping_add(window as u32);
        if seq_diff(limit, receiver.window_end) > 0 {
            receiver.window_end = limit;
        }
        if seq_diff(tcp.ack, receiver.snd_una) > 0 {
            receiver.snd_una = tcp.ack;
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
        let asked = reply && (0..=1 << 16).contains(&seq_diff(tcp.ack, talk.ends[0].isn.wrapping_add(1)));
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
