//! The member of a [`SmallLab`]: a datapath with a judge that the test controls.

pub mod virtio;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use palisade_engine::parse::Packet;
use palisade_engine::{Context, Event, Generation, HoldClass, HoldKey, Reason, Verdict, ZoneId};
use palisade_lab::small::SmallLab;
use palisade_node::clock;
use palisade_node::datapath::{self, Datapath, Interface, Judge, Options, Sinks, StartError, WorkerWake};
use palisade_node::lease::Lease;

/// What the tests run in the namespaces, beside what every machine has.
pub const PROGRAMS: &[&str] = &["ip", "nft", "sysctl"];

/// Whether a frame arrives that should: it is sent until it does, for a datapath that was late drops what is too old. What
/// arrives more than once is taken in, too.
pub fn arrives(mut send: impl FnMut() -> bool, receiver: &std::net::UdpSocket) -> bool {
    let arrived = (0..200).any(|_| send());
    while receiver.recv(&mut [0; 64]).is_ok() {}
    arrived
}

/// Both interfaces of the lab's member, and defaults for the rest.
pub fn two_interfaces() -> Options {
    let interface =
        |name: &str, zone: &str| Interface { name: name.into(), zone: zone.into(), antispoof: true, track: true };
    Options { interfaces: vec![interface("f0", "outside"), interface("f1", "inside")], ..Options::default() }
}

/// Starts a datapath in the member.
pub fn start(lab: &SmallLab, options: Options, judge: &Arc<Fixed>) -> Result<Running, StartError> {
    let judge = Arc::clone(judge);
    lab.member.call(move || Running::start(options, judge))
}

/// A datapath and what keeps it going.
pub struct Running {
    pub datapath: Datapath,
    pub wake: WorkerWake,
    /// Kept, so that the queues stay open.
    _receivers:
        (tokio::sync::mpsc::Receiver<palisade_engine::Hint>, tokio::sync::mpsc::Receiver<palisade_engine::Proposal>),
}

impl Running {
    pub fn start(options: Options, judge: Arc<Fixed>) -> Result<Running, StartError> {
        let lease = Arc::new(Lease::new(Duration::from_secs(3600)));
        lease.renew(clock::now());
        let (hints, hints_received) = tokio::sync::mpsc::channel(16);
        let (proposals, proposals_received) = tokio::sync::mpsc::channel(16);
        let wake = WorkerWake::new(options.workers).unwrap();
        let sinks = Sinks { hints, proposals };
        let datapath = datapath::start_with(options, judge, lease, wake.clone(), sinks)?;
        Ok(Running { datapath, wake, _receivers: (hints_received, proposals_received) })
    }
}

/// A judge that says the same to everything.
#[derive(Default)]
pub struct Fixed(AtomicU8);

pub const KEY: HoldKey = HoldKey(42);

impl Fixed {
    pub fn forward() -> Arc<Fixed> {
        Arc::default()
    }

    /// 0 forward, 1 drop, 2 hold, 3 reject, 4 forward if there is a route to a known zone, 5 panic,
    /// 6 forward what goes to port 80.
    pub fn say(&self, what: u8) {
        self.0.store(what, Ordering::SeqCst);
    }
}

/// Forwards a packet to where its route leads.
fn forward(packet: &Packet, context: &mut Context<'_>) -> Verdict {
    let egress = context.routes.zone(packet.tuple.dst);
    egress.into_iter().for_each(|zone| context.routes.set_egress(zone));
    Verdict::Forward
}

impl Judge for Fixed {
    fn judge(&self, packet: &Packet, context: &mut Context<'_>, _: &mut Vec<Event>) -> Verdict {
        match self.0.load(Ordering::Relaxed) {
            0 => forward(packet, context),
            1 => Verdict::Drop(Reason::Policy),
            2 => Verdict::Hold(KEY, HoldClass::Matched),
            3 => Verdict::Reject(Reason::PolicyReject),
            6 if packet.tuple.dst_port == 80 => forward(packet, context),
            6 => Verdict::Drop(Reason::Policy),
            5 => panic!("a judge that fails, as this test wants it"),
            _ => match context.routes.zone(packet.tuple.dst) {
                // f0 is zone 1, f1 zone 2: the two ends must lie on different sides.
                Some(zone) if zone != ZoneId::UNKNOWN && zone != context.ingress => {
                    context.routes.set_egress(zone);
                    Verdict::Forward
                }
                Some(_) => Verdict::Drop(Reason::WrongZone),
                None => Verdict::Drop(Reason::NoRoute),
            },
        }
    }

    fn generation(&self) -> Generation {
        Generation(1)
    }

    fn zone(&self, name: &str) -> ZoneId {
        match name {
            "outside" => ZoneId(1),
            "inside" => ZoneId(2),
            _ => ZoneId::UNKNOWN,
        }
    }
}
