//! The members' network: TCP connections over links that have delays, lose, are cut in one direction or both.
//!
//! TCP loses, copies and reorders nothing that a program could see. So what a bad link does to a connection is time: a
//! loss is a retransmission timeout, a cut is everything that is sent meanwhile arriving after it has healed. A host
//! that loses power says nothing; its connections are reset when it is back and somebody uses them. (Packets of the
//! traffic, and hints before they are sent, are lost, copied and reordered one by one: `worker.rs`, `traffic.rs`.)

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures::Stream;
use palisade_lab::random::Random;
use palisade_node::simulation::Connection;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::host::Host;

/// Nanoseconds since the simulation began.
pub(crate) type Nanos = u64;
pub(crate) const MS: Nanos = 1_000_000;
pub(crate) const SECOND: Nanos = 1_000 * MS;

pub(crate) const MEMBERS: usize = 3;

/// No link is faster: hosts can be stepped one after the other for so long.
pub(crate) const STEP: Nanos = MS;

/// The shortest retransmission timeout (Linux: TCP_RTO_MIN).
const RETRANSMISSION: Nanos = 200 * MS;
/// Bytes of a connection that are under way or unread.
const BUFFER: usize = 1 << 20;

/// One direction between two members.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) cut: bool,
    /// Shortest and longest delay.
    pub(crate) delay: (Nanos, Nanos),
    /// Of a thousand segments, how many are lost at first.
    pub(crate) loss: usize,
}

enum Chunk {
    Open,
    Opened,
    Data(Vec<u8>),
    End,
    Reset,
}

#[derive(Default)]
struct End {
    host: usize,
    incarnation: u32,
    unread: VecDeque<u8>,
    under_way: usize,
    ended: bool,
    reset: bool,
    opened: bool,
    /// Its program has let go of it.
    closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// What it sent arrives in order, not before this.
    last: Nanos,
    /// What it sent and a cut link keeps.
    parked: VecDeque<Chunk>,
}

#[derive(Default)]
struct Listener {
    waiting: VecDeque<u64>,
    waker: Option<Waker>,
}

#[derive(Default)]
struct Plug {
    on: bool,
    incarnation: u32,
    listener: Option<Listener>,
}

struct Inner {
    now: Nanos,
    seed: u64,
    number: u64,
    links: [[Link; MEMBERS]; MEMBERS],
    plugs: [Plug; MEMBERS],
    pipes: BTreeMap<u64, [End; 2]>,
    /// By the time of arrival: connection, receiving end.
    arrivals: BTreeMap<(Nanos, u64), (u64, usize, Chunk)>,
}

/// What a link is like at this moment. It depends on nothing else, so that it is the same in a run in which programs did the
/// same things in another order.
fn weather(seed: u64, from: usize, to: usize, now: Nanos) -> Random {
    let mut hasher = DefaultHasher::new();
    (seed, from, to, now / MS).hash(&mut hasher);
    Random(hasher.finish())
}

/// The network.
pub(crate) struct Network(Mutex<Inner>);

impl Network {
    pub(crate) fn new(seed: u64, delay: (Nanos, Nanos)) -> Network {
        let link = Link { cut: false, delay, loss: 0 };
        Network(Mutex::new(Inner {
            now: 0,
            seed,
            number: 0,
            links: [[link; MEMBERS]; MEMBERS],
            plugs: Default::default(),
            pipes: BTreeMap::new(),
            arrivals: BTreeMap::new(),
        }))
    }

    /// The time at which the current step began.
    pub(crate) fn now(&self) -> Nanos {
        self.0.lock().now
    }

    pub(crate) fn link(&self, from: usize, to: usize) -> Link {
        self.0.lock().links[from][to]
    }

    /// Changes a link; what waited for it to heal arrives a while later.
    pub(crate) fn set_link(&self, from: usize, to: usize, change: impl FnOnce(&mut Link)) {
        let mut inner = self.0.lock();
        let inner = &mut *inner;
        let link = &mut inner.links[from][to];
        change(link);
        if link.cut {
            return;
        }
        for (id, ends) in &mut inner.pipes {
            for sender in 0..2 {
                if ends[sender].host == from && ends[1 - sender].host == to && !ends[sender].parked.is_empty() {
                    let wait = MS + weather(inner.seed, from, to, inner.now).number() % RETRANSMISSION;
                    ends[sender].last = ends[sender].last.max(inner.now + wait);
                    for chunk in std::mem::take(&mut ends[sender].parked) {
                        inner.number += 1;
                        inner.arrivals.insert((ends[sender].last, inner.number), (*id, 1 - sender, chunk));
                    }
                }
            }
        }
    }

    /// The host is switched on: what it was connected to before is reset when it hears of it.
    pub(crate) fn switch_on(&self, host: usize) {
        let mut inner = self.0.lock();
        inner.plugs[host].on = true;
        inner.plugs[host].incarnation += 1;
        inner.reset_connections_of(host);
    }

    /// The host is off from now on. If only its program was killed, its kernel says so to its peers.
    pub(crate) fn switch_off(&self, host: usize, killed: bool) {
        let mut inner = self.0.lock();
        inner.plugs[host].on = false;
        inner.plugs[host].listener = None;
        if killed {
            inner.plugs[host].incarnation += 1;
            inner.reset_connections_of(host);
        }
    }

    /// Delivers what arrives until `now`.
    pub(crate) fn advance(&self, now: Nanos) {
        let mut wakers = Vec::new();
        {
            let mut inner = self.0.lock();
            inner.now = now;
            while let Some(first) = inner.arrivals.first_entry()
                && first.key().0 <= now
            {
                let (pipe, end, chunk) = first.remove();
                inner.arrive(pipe, end, chunk, &mut wakers);
            }
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Listens on a host; its address is its number.
    pub(crate) fn listen(host: Arc<Host>) -> impl Stream<Item = io::Result<Box<dyn Connection>>> {
        host.network.0.lock().plugs[host.index].listener = Some(Listener::default());
        futures::stream::poll_fn(move |context| {
            let mut inner = host.network.0.lock();
            let Some(listener) = &mut inner.plugs[host.index].listener else { return Poll::Ready(None) };
            match listener.waiting.pop_front() {
                Some(pipe) => {
                    let host = host.clone();
                    Poll::Ready(Some(Ok(Box::new(Socket { host, pipe, end: 1 }) as Box<dyn Connection>)))
                }
                None => {
                    listener.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
    }

    pub(crate) async fn connect(host: Arc<Host>, to: usize) -> io::Result<Box<dyn Connection>> {
        let socket = {
            let now = host.elapsed();
            let mut inner = host.network.0.lock();
            inner.number += 1;
            let pipe = inner.number;
            let plug =
                |index: usize| End { host: index, incarnation: inner.plugs[index].incarnation, ..End::default() };
            let ends = [plug(host.index), plug(to)];
            inner.pipes.insert(pipe, ends);
            inner.send(pipe, 0, Chunk::Open, now);
            Socket { host: host.clone(), pipe, end: 0 }
        };
        std::future::poll_fn(|context| {
            let mut inner = host.network.0.lock();
            match inner.pipes.get_mut(&socket.pipe).map(|ends| &mut ends[0]) {
                Some(end) if end.reset => Poll::Ready(Err(io::Error::from(io::ErrorKind::ConnectionRefused))),
                Some(end) if end.opened => Poll::Ready(Ok(())),
                Some(end) => {
                    end.reader = Some(context.waker().clone());
                    Poll::Pending
                }
                None => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            }
        })
        .await?;
        Ok(Box::new(socket))
    }
}

impl Inner {
    fn send(&mut self, pipe: u64, sender: usize, chunk: Chunk, now: Nanos) {
        let Some(ends) = self.pipes.get_mut(&pipe) else { return };
        let link = self.links[ends[sender].host][ends[1 - sender].host];
        let (shortest, longest) = link.delay;
        let mut random = weather(self.seed, ends[sender].host, ends[1 - sender].host, now);
        let mut delay = shortest + random.number() % (longest - shortest + 1);
        if link.loss > 0 && random.below(1000) < link.loss {
            delay += RETRANSMISSION;
        }
        ends[sender].last = ends[sender].last.max(now + delay);
        self.number += 1;
        self.arrivals.insert((ends[sender].last, self.number), (pipe, 1 - sender, chunk));
    }

    fn arrive(&mut self, pipe: u64, to: usize, chunk: Chunk, wakers: &mut Vec<Waker>) {
        let Some(ends) = self.pipes.get_mut(&pipe) else { return };
        let (from, at) = (ends[1 - to].host, ends[to].host);
        if self.links[from][at].cut || !ends[1 - to].parked.is_empty() {
            return ends[1 - to].parked.push_back(chunk);
        }
        let plug = &mut self.plugs[at];
        if let Chunk::Open = chunk {
            let now = self.now;
            return match &mut plug.listener {
                Some(listener) if plug.on => {
                    ends[to].incarnation = plug.incarnation;
                    ends[to].opened = true;
                    listener.waiting.push_back(pipe);
                    wakers.extend(listener.waker.take());
                    self.send(pipe, to, Chunk::Opened, now);
                }
                _ if plug.on => self.send(pipe, to, Chunk::Reset, now),
                // Nobody answers.
                _ => {}
            };
        }
        let end = &mut ends[to];
        if !plug.on || end.incarnation != plug.incarnation {
            return;
        }
        match chunk {
            Chunk::Data(_) if end.closed => {
                let now = self.now;
                return self.send(pipe, to, Chunk::Reset, now);
            }
            Chunk::Data(bytes) => {
                end.under_way -= bytes.len().min(end.under_way);
                end.unread.extend(bytes);
            }
            Chunk::Opened => end.opened = true,
            Chunk::End => end.ended = true,
            Chunk::Reset => end.reset = true,
            Chunk::Open => {}
        }
        if end.reset {
            wakers.extend(end.writer.take());
        }
        wakers.extend(end.reader.take());
        self.tidy(pipe);
    }

    /// Peers of connections that the host has forgotten hear of it.
    fn reset_connections_of(&mut self, host: usize) {
        let (now, incarnation) = (self.now, self.plugs[host].incarnation);
        let lost = |end: &End| end.host == host && end.incarnation != incarnation;
        let pipes: Vec<(u64, usize)> =
            self.pipes.iter().filter_map(|(id, ends)| ends.iter().position(lost).map(|end| (*id, end))).collect();
        for (pipe, end) in pipes {
            if let Some(ends) = self.pipes.get_mut(&pipe) {
                ends[end].closed = true;
                ends[end].parked.clear();
            }
            self.send(pipe, end, Chunk::Reset, now);
            self.tidy(pipe);
        }
    }

    /// Forgets a connection that both ends have let go of.
    fn tidy(&mut self, pipe: u64) {
        if self.pipes.get(&pipe).is_some_and(|ends| ends.iter().all(|end| end.closed)) {
            self.pipes.remove(&pipe);
        }
    }
}

/// A program's end of a connection.
struct Socket {
    host: Arc<Host>,
    pipe: u64,
    end: usize,
}

impl Drop for Socket {
    fn drop(&mut self) {
        let now = self.host.elapsed();
        let mut inner = self.host.network.0.lock();
        let plug = &inner.plugs[self.host.index];
        let (on, incarnation) = (plug.on, plug.incarnation);
        let Some(ends) = inner.pipes.get_mut(&self.pipe) else { return };
        let alive = on && ends[self.end].incarnation == incarnation;
        ends[self.end].closed = true;
        if alive {
            inner.send(self.pipe, self.end, Chunk::End, now);
        }
        inner.tidy(self.pipe);
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.host.network.0.lock();
        let Some(ends) = inner.pipes.get_mut(&self.pipe) else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        };
        let end = &mut ends[self.end];
        if end.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if !end.unread.is_empty() {
            let (first, _) = end.unread.as_slices();
            let length = first.len().min(to.remaining());
            to.put_slice(&first[..length]);
            end.unread.drain(..length);
            let writer = ends[1 - self.end].writer.take();
            drop(inner);
            // The other host's: it is awake in its next step.
            writer.into_iter().for_each(Waker::wake);
            return Poll::Ready(Ok(()));
        }
        if end.ended {
            return Poll::Ready(Ok(()));
        }
        end.reader = Some(context.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let now = self.host.elapsed();
        let mut inner = self.host.network.0.lock();
        let Some(ends) = inner.pipes.get_mut(&self.pipe) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        if ends[self.end].reset {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let other = &mut ends[1 - self.end];
        if other.unread.len() + other.under_way >= BUFFER {
            ends[self.end].writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        other.under_way += bytes.len();
        inner.send(self.pipe, self.end, Chunk::Data(bytes.to_vec()), now);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let now = self.host.elapsed();
        let mut inner = self.host.network.0.lock();
        inner.send(self.pipe, self.end, Chunk::End, now);
        Poll::Ready(Ok(()))
    }
}
