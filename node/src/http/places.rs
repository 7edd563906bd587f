//! Places for connections: who gets one, and whose connection is closed for it.
//!
//! Anybody may open connections and say nothing. So a source has a share, and a newcomer takes the place of a connection that
//! is idle: the oldest of the source that has the most. Sources that have asked before, and this machine's own programs, have
//! places of their own, which no stranger can take.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use palisade_engine::Time;
use palisade_metrics::{Counter, Gauge, labelled, metrics};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Connections of sources that have not asked before.
pub(super) const STRANGERS: Pool = Pool { places: 64, share: 16 };
/// Connections of this machine's own programs, and of sources that have asked before: a scraper, routers' probes, some people.
pub(super) const KNOWN: Pool = Pool { places: 32, share: 8 };
/// Sources that are remembered; the one that has not asked for the longest time is forgotten.
const MAX_KNOWN_SOURCES: usize = 256;

labelled! {
    /// Connections by class.
    pub(crate) struct Classes: Gauge, "class" { stranger, known }
}

labelled! {
    /// Closed connections by cause.
    pub(crate) struct Causes: Counter, "cause" { displaced, refused }
}

metrics! {
    /// Metrics of the HTTP server.
    pub(crate) struct HttpMetrics {
        /// Connections to the HTTP server, by whether their source has asked before.
        pub(crate) connections: Classes = "palisade_http_connections",
        /// Connections to the HTTP server that were closed for lack of room: idle ones that made room for others, and new ones.
        pub(crate) closed: Causes = "palisade_http_connections_closed_total",
        /// Packets to the HTTP port that the kernel dropped: from an interface that is not in `http.interfaces`, or for lack of
        /// room. Read every ten seconds.
        pub(crate) dropped: Counter = "palisade_http_port_dropped_total",
    }
}

/// How many connections there may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Pool {
    /// Of all sources.
    pub(super) places: usize,
    /// Of one source.
    pub(super) share: usize,
}

/// Where connections come from: an IPv4 address, an IPv6 /64, or this machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Source {
    Own,
    Other(IpAddr),
}

impl Source {
    /// The source of a connection between these addresses. A program of this machine that connects to one of the machine's
    /// addresses has that address itself.
    pub(super) fn new(peer: IpAddr, local: Option<IpAddr>) -> Source {
        let peer = peer.to_canonical();
        if peer.is_loopback() || local.is_some_and(|local| local.to_canonical() == peer) {
            return Source::Own;
        }
        Source::Other(match peer {
            IpAddr::V4(_) => peer,
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
        })
    }
}

#[derive(Debug)]
struct Place {
    source: Source,
    known: bool,
    /// Whether a request is answered now.
    busy: bool,
    /// Since when it is idle, or busy.
    since: Time,
    close: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    taken: HashMap<u64, Place>,
    /// Sources that have asked, the one that asked last at the end.
    known: VecDeque<Source>,
}

impl State {
    fn count(&self, keep: impl Fn(&Place) -> bool) -> usize {
        self.taken.values().filter(|place| keep(place)).count()
    }

    /// The idle connection that makes room: the oldest of the source with the most connections.
    fn victim(&self, keep: impl Fn(&Place) -> bool) -> Option<u64> {
        let candidates = self.taken.iter().filter(|(_, place)| keep(place) && !place.busy);
        let order = |place: &Place| {
            (self.count(|p| p.known == place.known && p.source == place.source), std::cmp::Reverse(place.since))
        };
        candidates.max_by_key(|(_, place)| order(place)).map(|(number, _)| *number)
    }
}

/// The places.
#[derive(Debug, Default)]
pub(super) struct Places {
    state: Mutex<State>,
    pub(super) metrics: HttpMetrics,
}

impl Places {
    /// Takes a place for a connection, if there is one or an idle connection makes room.
    pub(super) fn take(self: &Arc<Places>, source: Source, now: Time) -> Option<Taken> {
        let mut state = self.state.lock();
        let known = source == Source::Own || state.known.contains(&source);
        let pool = if known { KNOWN } else { STRANGERS };
        let in_pool = |place: &Place| place.known == known;
        let own = |place: &Place| in_pool(place) && place.source == source;
        let victim = if state.count(own) >= pool.share {
            Some(state.victim(own))
        } else if state.count(in_pool) >= pool.places {
            Some(state.victim(in_pool))
        } else {
            None
        };
        match victim {
            Some(None) => {
                self.metrics.closed.refused.inc();
                return None;
            }
            Some(Some(number)) => {
                self.metrics.closed.displaced.inc();
                if let Some(place) = state.taken.remove(&number) {
                    place.close.notify_one();
                }
            }
            None => {}
        }
        let number = state.next;
        state.next += 1;
        let close = Arc::new(Notify::new());
        state.taken.insert(number, Place { source, known, busy: false, since: now, close: close.clone() });
        self.show(&state);
        Some(Taken { places: self.clone(), number, source, close })
    }

    fn show(&self, state: &State) {
        let known = state.count(|place| place.known);
        self.metrics.connections.known.set(known as u64);
        self.metrics.connections.stranger.set((state.taken.len() - known) as u64);
    }
}

/// A connection's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Taken {
    places: Arc<Places>,
    number: u64,
    source: Source,
    close: Arc<Notify>,
}

impl Taken {
    /// Whether the connection is one of this machine's own programs.
    pub(super) fn is_own(&self) -> bool {
        self.source == Source::Own
    }

    /// Waits until the connection has to make room.
    pub(super) async fn displaced(&self) {
        self.close.notified().await;
    }

    /// Notes that a request is answered from now on, or that its answer is made.
    pub(super) fn set_busy(&self, busy: bool, now: Time) {
        let mut state = self.places.state.lock();
        if let Some(place) = state.taken.get_mut(&self.number) {
            (place.busy, place.since) = (busy, now);
        }
        if busy && let Source::Other(_) = self.source {
            state.known.retain(|source| *source != self.source);
            state.known.push_back(self.source);
            if state.known.len() > MAX_KNOWN_SOURCES {
                state.known.pop_front();
            }
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut state = self.places.state.lock();
        state.taken.remove(&self.number);
        self.places.show(&state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(n: u8) -> Source {
        Source::new(IpAddr::from([192, 0, 2, n]), None)
    }

    fn at(ms: u64) -> Time {
        Time(1_000_000_000 + ms * 1_000_000)
    }

    fn is_displaced(taken: &Taken) -> bool {
        !taken.places.state.lock().taken.contains_key(&taken.number)
    }

    #[test]
    fn source_is_an_address_a_prefix_or_this_machine() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(Source::new(ip("2001:db8::1"), None), Source::new(ip("2001:db8::ffff:1"), None));
        assert_ne!(Source::new(ip("2001:db8::1"), None), Source::new(ip("2001:db8:0:1::1"), None));
        assert_eq!(Source::new(ip("::ffff:192.0.2.1"), None), source(1));
        for (peer, local) in [("127.0.0.1", None), ("::1", None), ("10.9.0.1", Some("10.9.0.1"))] {
            assert_eq!(Source::new(ip(peer), local.map(ip)), Source::Own);
        }
    }

    #[test]
    fn places_of_one_source_are_its_share() {
        let places = Arc::new(Places::default());
        let mut silent: Vec<Taken> =
            (0..STRANGERS.share).map(|n| places.take(source(1), at(n as u64)).unwrap()).collect();
        // Its own oldest one makes room, nobody else's.
        let other = places.take(source(2), at(0)).unwrap();
        silent.push(places.take(source(1), at(100)).unwrap());
        assert_eq!(silent.iter().map(is_displaced).filter(|d| *d).count(), 1);
        assert!(is_displaced(&silent[0]) && !is_displaced(&other));
        silent.iter().for_each(|taken| taken.set_busy(true, at(200)));
        // All but the displaced one are busy, so none makes room; but the source is known now, and has a second share.
        let known = places.take(source(1), at(300)).unwrap();
        assert!(silent.iter().skip(1).all(|taken| !is_displaced(taken)));
        drop((known, other));
        assert_eq!(places.metrics.closed.displaced.get(), 1);
    }

    #[test]
    fn places_are_taken_from_the_source_with_most_idle_connections() {
        let places = Arc::new(Places::default());
        let one = places.take(source(200), at(0)).unwrap();
        let mut silent = Vec::new();
        for n in 0..STRANGERS.places - 1 {
            silent.push(places.take(source((n % 8) as u8), at(1 + n as u64)).unwrap());
        }
        assert_eq!(places.metrics.connections.stranger.get() as usize, STRANGERS.places);
        let late = places.take(source(201), at(1000)).unwrap();
        assert!(!is_displaced(&one) && !is_displaced(&late), "the oldest of all, but the only one of its source");
        assert_eq!(silent.iter().filter(|taken| is_displaced(taken)).count(), 1);
        assert_eq!(places.metrics.connections.stranger.get() as usize, STRANGERS.places);
    }

    #[test]
    fn places_of_known_sources_are_not_taken_by_strangers() {
        let places = Arc::new(Places::default());
        let poller = places.take(source(250), at(0)).unwrap();
        poller.set_busy(true, at(1));
        poller.set_busy(false, at(2));
        drop(poller);
        // Busy ones, which make no room.
        let busy: Vec<Taken> = (0..STRANGERS.places)
            .map(|n| {
                let taken = places.take(source((n / 8) as u8), at(3)).unwrap();
                places.state.lock().taken.get_mut(&taken.number).unwrap().busy = true;
                taken
            })
            .collect();
        assert!(places.take(source(251), at(4)).is_none(), "a stranger finds no room");
        assert_eq!(places.metrics.closed.refused.get(), 1);
        assert!(places.take(source(250), at(4)).is_some() && places.take(Source::Own, at(4)).is_some());
        drop(busy);
        assert_eq!(places.metrics.connections.stranger.get(), 0);
    }

    #[test]
    fn known_sources_are_bounded() {
        let places = Arc::new(Places::default());
        for n in 0..2 * MAX_KNOWN_SOURCES {
            let taken = places.take(Source::Other(IpAddr::from([10, 0, (n >> 8) as u8, n as u8])), at(0)).unwrap();
            taken.set_busy(true, at(1));
        }
        assert_eq!(places.state.lock().known.len(), MAX_KNOWN_SOURCES);
    }
}
