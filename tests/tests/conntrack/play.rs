//! A history as it is played: each packet goes to both kernels and to the engine, and their verdicts are compared.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use anyhow::{Result, ensure};
use palisade_engine::parse::{self, Checksum, Packet};
use palisade_engine::{Protocol, Reason, Tuple};

use crate::classes::{View, explanation};
use crate::facts::Facts;
use crate::kernel::{Kernel, State};
use crate::ours::{Engines, Number, Ours};
use crate::packet::{self, Side, host};

/// The longest that Palisade holds a packet.
const HOLD: Duration = Duration::from_millis(250);

/// Host numbers below are the markers'.
const FIRST_HOST: u16 = 16;

/// Both kernels, and what was found.
pub(crate) struct Arena {
    pub(crate) kernels: [Kernel; 2],
    pub(crate) tally: Tally,
    /// Print each history.
    pub(crate) tell: bool,
    next: u16,
}

/// Counts.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) histories: u64,
    pub(crate) packets: u64,
    /// Of the verdicts of two kernels on each packet: both let it pass, both do not.
    pub(crate) agreed: [u64; 2],
    /// By class and kernel.
    pub(crate) disagreed: BTreeMap<&'static str, [u64; 2]>,
    /// Nobody knows why.
    pub(crate) unexplained: Vec<String>,
}

impl Arena {
    /// A kernel that picks up connections in the middle, as is the default, and one that does not.
    pub(crate) async fn new() -> Result<Arena> {
        let kernels = [Kernel::new("loose", true).await?, Kernel::new("strict", false).await?];
        Ok(Arena { kernels, tally: Tally::default(), tell: false, next: FIRST_HOST })
    }

    /// What did not come out is what the rules denied, and what the kernel's IP layer did not take.
    pub(crate) async fn check_denied(&self) -> Result<()> {
        for kernel in &self.kernels {
            let (absent, denied) = (kernel.absent, kernel.denied().await?);
            eprintln!("{}: {absent} packets did not come out, {denied} of them denied by the rules", kernel.name);
            ensure!(denied > 0 && denied <= absent);
        }
        Ok(())
    }

    /// Plays a history between hosts that no other one has.
    pub(crate) fn play(&mut self, name: &str, v4: bool, history: impl FnOnce(&mut Play<'_>)) {
        let number = self.next;
        self.next = self.next.checked_add(1).expect("too many histories");
        self.tally.histories += 1;
        let mut play = Play {
            arena: self,
            ours: Engines::new(),
            facts: Facts::default(),
            name: name.to_owned(),
            hosts: [host(Side::Client, number, v4), host(Side::Server, number, v4)],
            story: String::new(),
            open: Vec::new(),
            given: 0,
            parted: false,
            unexplained: false,
        };
        history(&mut play);
        play.finish();
    }
}

/// A packet whose fate at Palisade is not yet final.
struct Open {
    number: Number,
    from: Side,
    /// Of a datagram its fragments.
    packets: Vec<Vec<u8>>,
    states: [State; 2],
    facts: Facts,
    /// In the order of `packets`, as far as they are final.
    verdicts: Vec<Ours>,
}

impl Open {
    /// Of fragments: do those that pass make a whole datagram? That is what a kernel, which reassembles, lets pass.
    fn verdict(&self) -> Ours {
        let [verdict] = self.verdicts[..] else {
            let dropped = self.verdicts.iter().copied().find(|v| !v.passes());
            let passed = self.packets.iter().zip(&self.verdicts).filter(|(_, v)| v.passes());
            let mut pieces: Vec<_> = passed.filter_map(|(packet, _)| packet::piece(packet)).collect();
            pieces.sort_unstable();
            let joined = pieces.windows(2).all(|two| two[0].end == two[1].begin);
            let whole = joined && pieces.first().is_some_and(|p| p.begin == 0) && pieces.last().is_some_and(|p| p.last);
            return match (whole, dropped) {
                (true, _) => Ours::Forward,
                (false, reason) => reason.unwrap_or(Ours::Incomplete),
            };
        };
        verdict
    }
}

pub(crate) struct Play<'a> {
    arena: &'a mut Arena,
    ours: Engines,
    facts: Facts,
    name: String,
    hosts: [palisade_engine::Ip; 2],
    /// What happened, one line each, to be read and to be replayed.
    story: String,
    open: Vec<Open>,
    given: Number,
    /// The two may know different things from here on.
    parted: bool,
    unexplained: bool,
}

impl Play<'_> {
    pub(crate) fn v4(&self) -> bool {
        self.hosts[0].is_v4()
    }

    /// From the client to the server.
    pub(crate) fn tuple(&self, protocol: Protocol, src_port: u16, dst_port: u16) -> Tuple {
        Tuple { src: self.hosts[0], dst: self.hosts[1], src_port, dst_port, protocol }
    }

    /// Has a disagreement left the trackers with different knowledge?
    pub(crate) fn parted(&self) -> bool {
        // What is held but belongs to nothing that Palisade knows will not pass, while the kernel has taken it in.
        let will = || self.ours.unmatched() && self.open.iter().any(|o| o.states.iter().any(|s| s.passes()));
        self.parted || self.unexplained || will()
    }

    /// Gives a packet to all; those that Palisade has now forwarded, this one or earlier ones that it held.
    pub(crate) fn give(&mut self, from: Side, bytes: &[u8]) -> Vec<Number> {
        self.give_all(from, &[bytes.to_vec()])
    }

    /// Gives the fragments of one datagram, which kernels let go when they have the last one. Passes if all pass.
    pub(crate) fn datagram(&mut self, from: Side, fragments: &[Vec<u8>]) -> bool {
        !self.give_all(from, fragments).is_empty()
    }

    fn give_all(&mut self, from: Side, packets: &[Vec<u8>]) -> Vec<Number> {
        let number = self.given;
        self.given += 1;
        self.arena.tally.packets += packets.len() as u64;
        let (mut states, mut told) = ([State::Absent; 2], Vec::new());
        let facts = self.facts.clone();
        let line: Vec<String> = packets.iter().map(|bytes| hex(bytes)).collect();
        let _ = writeln!(self.story, "{} {}", from.name(), line.join("+"));
        for bytes in packets {
            for (state, kernel) in states.iter_mut().zip(&mut self.arena.kernels) {
                *state = (*state).min(kernel.give(from, bytes, 5).expect("the lab"));
            }
            told.extend(self.ours.give(number, from, bytes));
        }
        let _ = writeln!(self.story, "# {number}: {}, kernels: {states:?}, Palisade: {told:?}", show(&packets[0]));
        if let Ok(packet) = parse::parse(&packets[0], Checksum::Complete) {
            self.facts.seen(&packet, states);
        }
        self.open.push(Open { number, from, packets: packets.to_vec(), states, facts, verdicts: Vec::new() });
        self.resolve(told)
    }

    /// Time passes, for Palisade only: so little that no timeout of conntrack (10 s and more) is reached.
    pub(crate) fn pause(&mut self, time: Duration) -> Vec<Number> {
        assert!(time <= Duration::from_secs(2), "conntrack would notice");
        let _ = writeln!(self.story, "pause {}", time.as_millis());
        let done = self.ours.wait(time);
        self.resolve(done)
    }

    fn finish(&mut self) {
        let done = self.ours.wait(HOLD);
        self.resolve(done);
        assert!(self.open.is_empty(), "{}: a packet without a verdict", self.name);
        let text = format!("# {}\n{}", self.name, self.story);
        if self.arena.tell {
            eprintln!("{text}");
        }
        if self.unexplained {
            self.arena.tally.unexplained.push(text);
        }
    }

    fn resolve(&mut self, finals: Vec<(Number, Ours)>) -> Vec<Number> {
        let mut forwarded = Vec::new();
        for (number, ours) in finals {
            let Some(at) = self.open.iter().position(|o| o.number == number) else { continue };
            let open = &mut self.open[at];
            open.verdicts.push(ours);
            if open.verdicts.len() < open.packets.len() {
                continue;
            }
            let open = self.open.remove(at);
            let ours = open.verdict();
            self.compare(&open, ours);
            if ours.passes() {
                forwarded.push(number);
                if let Ok(packet) = parse::parse(&open.packets[0], Checksum::Complete) {
                    self.facts.take(&packet);
                }
            }
        }
        forwarded
    }

    fn compare(&mut self, open: &Open, ours: Ours) {
        let packet = parse::parse(&open.packets[0], Checksum::Complete);
        for (kernel, state) in open.states.into_iter().enumerate() {
            if state.passes() == ours.passes() {
                self.arena.tally.agreed[usize::from(!ours.passes())] += 1;
                continue;
            }
            let view = View {
                from: open.from,
                packets: &open.packets,
                packet: packet.as_ref().map_err(|reason| *reason),
                facts: &open.facts,
                now: &self.facts,
                loose: kernel == 0,
                state,
                ours,
            };
            let Some(class) = explanation(&view) else {
                self.unexplained = true;
                let _ = writeln!(self.story, "# UNEXPLAINED: {}: {state:?}, {ours:?}", open.number);
                continue;
            };
            let _ = writeln!(self.story, "# {} is {}", open.number, class.name);
            self.arena.tally.disagreed.entry(class.name).or_default()[kernel] += 1;
            self.parted |= class.parts;
        }
    }
}

/// One line about a packet.
fn show(bytes: &[u8]) -> String {
    match parse::parse(bytes, Checksum::Complete) {
        Ok(Packet { tuple, kind, .. }) => format!("{tuple} {kind:?}"),
        Err(reason) => format!("{} bytes, {}", bytes.len(), Reason::label(reason)),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Plays a story again: the packets (of a datagram its fragments) and the pauses.
pub(crate) fn replay(play: &mut Play<'_>, story: &str) {
    let packets = |text: &str| text.split('+').map(unhex).collect::<Vec<_>>();
    for line in story.lines() {
        match line.split_once(' ') {
            Some(("client", text)) => drop(play.give_all(Side::Client, &packets(text))),
            Some(("server", text)) => drop(play.give_all(Side::Server, &packets(text))),
            Some(("pause", time)) => drop(play.pause(Duration::from_millis(time.parse().unwrap()))),
            _ => {}
        }
    }
}

fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}
