//! The routers left and right of the members: ECMP over all that are ready.
//!
//! Each watches `/readyz` of each member over its own link and takes a member that dies, or says no, out of the set. That
//! is the part that BFD and a routing protocol play in a real network. The last member is never taken out: what happens
//! at a firewall that is not ready is the firewall's business, not to be covered up by a missing route.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::clock;
use anyhow::Result;
use palisade_engine::Time;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::http::Connection;
use super::netlink::NextHop;
use super::netns::{Netns, NsThread};

/// How often a member is asked.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How long an answer may take. A refusal counts at once, silence the second time: on a busy machine one late answer is
/// no death.
const POLL_TIMEOUT: Duration = Duration::from_millis(150);

/// A member as one router sees it.
#[derive(Clone, Debug)]
pub struct Target {
    /// The member's number.
    pub number: usize,
    /// Where it says whether it is ready.
    pub readyz: SocketAddr,
    /// The next hops, one a family.
    pub hops: [NextHop; 2],
}

/// A change of the ECMP set.
#[derive(Clone, Copy, Debug)]
pub struct RouteChange {
    /// When the new route was in place.
    pub at: Time,
    /// Whose.
    pub number: usize,
    /// Whether it is in the set now.
    pub live: bool,
}

/// The networks that are reached through the members, one a family, with the preferred source.
#[derive(Clone, Copy, Debug)]
pub struct RoutedNetwork {
    /// Network and prefix length.
    pub network: (IpAddr, u8),
    /// The source address of what starts here.
    pub source: IpAddr,
}

/// One router. Its tasks end when it is dropped.
#[derive(Debug)]
pub struct Router {
    thread: NsThread,
    state: Arc<State>,
    watches: Vec<(usize, JoinHandle<()>)>,
}

#[derive(Debug)]
struct State {
    netns: Netns,
    networks: [RoutedNetwork; 2],
    /// By how many places the set is rotated; the two routers differ in it.
    rotation: usize,
    /// Held while the kernel's routes are changed, so that they cannot be changed in the wrong order.
    set: tokio::sync::Mutex<Vec<(Target, bool)>>,
    changes: Mutex<Vec<RouteChange>>,
    frozen: Mutex<bool>,
}

impl Router {
    /// A router that knows no member yet.
    ///
    /// # Errors
    /// No thread.
    pub fn new(netns: &Netns, networks: [RoutedNetwork; 2], rotation: usize) -> Result<Router> {
        let state = State {
            netns: netns.clone(),
            networks,
            rotation,
            set: tokio::sync::Mutex::default(),
            changes: Mutex::default(),
            frozen: Mutex::new(false),
        };
        Ok(Router { thread: netns.thread("router")?, state: Arc::new(state), watches: Vec::new() })
    }

    /// Begins to watch a member; it carries nothing until it is ready.
    pub async fn add(&mut self, target: Target) {
        let number = target.number;
        self.state.set.lock().await.push((target.clone(), false));
        let watch = self.thread.spawn(watch(Arc::clone(&self.state), target));
        self.watches.push((number, watch));
    }

    /// Which members carry traffic now.
    pub async fn live(&self) -> Vec<usize> {
        self.state.set.lock().await.iter().filter(|(_, live)| *live).map(|(t, _)| t.number).collect()
    }

    /// All changes so far.
    #[must_use]
    pub fn changes(&self) -> Vec<RouteChange> {
        self.state.changes.lock().clone()
    }

    /// While frozen, the routes stay as they are whatever the members say.
    pub fn freeze(&self, frozen: bool) {
        *self.state.frozen.lock() = frozen;
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        for (_, watch) in &self.watches {
            watch.abort();
        }
    }
}

async fn watch(state: Arc<State>, target: Target) {
    let mut ticks = interval(POLL_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connection: Option<Connection> = None;
    let mut silent = false;
    loop {
        ticks.tick().await;
        let answer = timeout(POLL_TIMEOUT, ask(&mut connection, target.readyz)).await;
        let ready = match answer {
            Ok(ready) => {
                silent = false;
                ready
            }
            Err(_) => {
                connection = None;
                if !silent {
                    silent = true;
                    continue;
                }
                false
            }
        };
        if !*state.frozen.lock() {
            state.set(target.number, ready).await;
        }
    }
}

async fn ask(connection: &mut Option<Connection>, to: SocketAddr) -> bool {
    // A kept connection may have been closed by a server that is well: only a new one is proof.
    if let Some(kept) = connection
        && let Ok((status, _)) = kept.get("/readyz").await
    {
        return status == 200;
    }
    *connection = Connection::open(to).await.ok();
    match connection {
        Some(new) => new.get("/readyz").await.is_ok_and(|(status, _)| status == 200),
        None => false,
    }
}

impl State {
    async fn set(&self, number: usize, ready: bool) {
        let mut set = self.set.lock().await;
        let live = set.iter().filter(|(_, live)| *live).count();
        let Some(entry) = set.iter_mut().find(|(t, _)| t.number == number) else { return };
        if entry.1 == ready || (!ready && live == 1) {
            return;
        }
        entry.1 = ready;
        let mut hops: Vec<[NextHop; 2]> = set.iter().filter(|(_, live)| *live).map(|(t, _)| t.hops).collect();
        // The kernels of both routers hash alike and symmetrically. Rotated against each other, the two sets send the two
        // directions of every connection through different members.
        let by = self.rotation % hops.len();
        hops.rotate_left(by);
        let mut done = true;
        for (family, routed) in self.networks.iter().enumerate() {
            let hops: Vec<NextHop> = hops.iter().map(|pair| pair[family]).collect();
            let netlink = self.netns.netlink();
            if let Err(e) = netlink.replace_route(routed.network, Some(routed.source), &hops).await {
                tracing::warn!("router {}: {e:#}", self.netns.name());
                done = false;
            }
        }
        if done {
            self.changes.lock().push(RouteChange { at: clock::now(), number, live: ready });
        } else if let Some(entry) = set.iter_mut().find(|(t, _)| t.number == number) {
            // To be tried again at the next answer.
            entry.1 = !ready;
        }
    }
}
