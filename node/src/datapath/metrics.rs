//! Metrics of the datapath. Each worker counts for itself, in cells that no other thread writes; a scrape adds them up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use palisade_engine::{Reason, Time};
use palisade_metrics::{
    Counter, DurationHistogram, Gauge, MetricFamilies, MetricGroup, Samples, WorkerCounter, WorkerGauge, labelled,
    metrics,
};

use super::host::interfaces::LinkState;

/// Durations of holds; the last bound is the longest hold.
const HOLD_BUCKETS: &[Duration] = &[
    Duration::from_micros(100),
    Duration::from_micros(200),
    Duration::from_micros(400),
    Duration::from_micros(800),
    Duration::from_micros(1600),
    Duration::from_micros(3200),
    Duration::from_micros(6400),
    Duration::from_micros(12_800),
    Duration::from_micros(25_600),
    Duration::from_micros(51_200),
    Duration::from_micros(102_400),
    Duration::from_micros(250_000),
];

const REASONS: usize = Reason::ALL.len();

metrics! {
    /// What one worker counts.
    pub struct WorkerMetrics {
        /// Packets and bytes by verdict and reason.
        pub verdicts: VerdictCounters,
        /// Rejected packets that got no ICMP error, because of the rate limit.
        pub icmp_errors_suppressed: WorkerCounter = "palisade_icmp_errors_suppressed_total",
        /// Segments of no session that got no RST, because of the rate limit.
        pub resets_suppressed: WorkerCounter = "palisade_resets_suppressed_total",
        /// Packets that were held at least once.
        pub held_packets: WorkerCounter = "palisade_held_packets_total",
        /// Packets held now: those that match a half-open session, and others.
        pub holds: Holds = "palisade_holds",
        /// Time for which packets were held that were released; expired ones are not counted.
        pub hold: DurationHistogram = "palisade_hold_seconds" buckets HOLD_BUCKETS,
        /// Frames received from the capture sockets.
        pub captured_frames: WorkerCounter = "palisade_captured_frames_total",
        /// Captured packets for this machine itself, which are not judged.
        pub local_packets: WorkerCounter = "palisade_local_packets_total",
        /// Frames that the kernel dropped before capture, because its ring was full.
        pub capture_dropped: WorkerCounter = "palisade_capture_dropped_total",
        /// Frames larger than a ring slot that the kernel dropped, because the socket's buffer was full.
        pub capture_oversized_dropped: WorkerCounter = "palisade_capture_oversized_dropped_total",
        /// Merged packets that the kernel does not take back as they are: cut in user space (tunnels), or given the form that it takes.
        pub segmented_packets: WorkerCounter = "palisade_segmented_packets_total",
        /// Packets whose checksum was completed in user space before they were judged, because it is not that of their own header.
        pub completed_checksums: WorkerCounter = "palisade_completed_checksums_total",
        /// Hints and proposals of the packet path dropped because the queue to the replication was full, by kind.
        pub queue_dropped: QueueDropped = "palisade_queue_dropped_total",
        /// Batches of packets that workers received.
        pub batches: WorkerCounter = "palisade_worker_batches_total",
        /// Times that a worker found no packet and slept.
        pub polls: WorkerCounter = "palisade_worker_polls_total",
        /// When the worker last made progress.
        pub heartbeat: Heartbeat,
    }
}

metrics! {
    /// What the watcher counts.
    pub struct WatcherMetrics {
        /// Times that a part of the gate was missing and was restored.
        pub gate_restored: Counter = "palisade_gate_restored_total",
        /// Times that a kernel setting was found changed and was restored.
        pub kernel_settings_restored: Counter = "palisade_kernel_settings_restored_total",
        /// Times that a re-injection device was down or missing, and was restored.
        pub devices_restored: Counter = "palisade_devices_restored_total",
        /// Times that an interface's sockets were opened again.
        pub captures_reopened: Counter = "palisade_captures_reopened_total",
        /// Packets that the kernel would have sent to another zone than the one that the verdict was about, and that the gate
        /// dropped: those that it logged, at most a limited number a second.
        pub egress_mismatches: Counter = "palisade_egress_mismatches_total",
        /// Such packets that were logged and lost, because they came too fast.
        pub egress_mismatches_lost: Counter = "palisade_egress_mismatches_lost_total",
        /// Times that a capture ring had stalled, and was opened again.
        pub captures_stalled: Counter = "palisade_captures_stalled_total",
        /// When the watcher last made progress.
        pub heartbeat: Heartbeat,
    }
}

labelled! {
    /// Held packets by the budget that they are held in.
    pub struct Holds: WorkerGauge, "class" { matched, unmatched }
}

labelled! {
    /// Dropped messages of the packet path by kind.
    pub struct QueueDropped: WorkerCounter, "kind" { hint, proposal }
}

/// Packets and their bytes. A packet of several segments (GSO) counts as many.
#[derive(Debug, Default)]
struct TrafficCounters {
    packets: WorkerCounter,
    bytes: WorkerCounter,
}

impl TrafficCounters {
    fn add(&self, packets: u64, bytes: u64) {
        self.packets.add(packets);
        self.bytes.add(bytes);
    }
}

/// Packets and bytes by verdict and reason: each packet once, at its final verdict.
#[derive(Debug)]
pub struct VerdictCounters {
    forwarded: TrafficCounters,
    dropped: [TrafficCounters; REASONS],
    rejected: [TrafficCounters; REASONS],
}

impl Default for VerdictCounters {
    fn default() -> VerdictCounters {
        VerdictCounters {
            forwarded: TrafficCounters::default(),
            dropped: std::array::from_fn(|_| TrafficCounters::default()),
            rejected: std::array::from_fn(|_| TrafficCounters::default()),
        }
    }
}

impl VerdictCounters {
    pub(crate) fn forwarded(&self, packets: u64, bytes: u64) {
        self.forwarded.add(packets, bytes);
    }

    pub(crate) fn dropped(&self, reason: Reason, packets: u64, bytes: u64) {
        if let Some(traffic) = self.dropped.get(usize::from(reason as u8)) {
            traffic.add(packets, bytes);
        }
    }

    pub(crate) fn rejected(&self, reason: Reason, packets: u64, bytes: u64) {
        if let Some(traffic) = self.rejected.get(usize::from(reason as u8)) {
            traffic.add(packets, bytes);
        }
    }

    /// Every reason has its series from the start, zeros too: a rate needs the zero before the first one.
    fn samples(all: &[&Self], of: fn(&TrafficCounters) -> &WorkerCounter, samples: &mut Samples<'_>) {
        let total = |part: &dyn Fn(&Self) -> Option<&TrafficCounters>| -> u64 {
            all.iter().filter_map(|counters| part(counters)).map(|traffic| of(traffic).get()).sum()
        };
        let mut add = |verdict, reason, value| samples.with("verdict", verdict).with("reason", reason).integer(value);
        add("forward", "", total(&|counters| Some(&counters.forwarded)));
        for (at, reason) in Reason::ALL.iter().enumerate() {
            add("drop", reason.label(), total(&|counters| counters.dropped.get(at)));
        }
        for (at, reason) in Reason::ALL.iter().enumerate() {
            let value = total(&|counters| counters.rejected.get(at));
            // Only the policy rejects; the other reasons always drop.
            if value > 0 || *reason == Reason::PolicyReject {
                add("reject", reason.label(), value);
            }
        }
    }
}

impl MetricGroup for VerdictCounters {
    fn collect(all: &[&Self], families: &mut MetricFamilies) {
        families.counters("palisade_packets_total", "Packets judged, by verdict and reason.", |samples| {
            VerdictCounters::samples(all, |traffic| &traffic.packets, samples);
        });
        families.counters("palisade_bytes_total", "Bytes of the packets judged, by verdict and reason.", |samples| {
            VerdictCounters::samples(all, |traffic| &traffic.bytes, samples);
        });
    }
}

/// The last time at which a thread made progress. For the health checks: not exported.
#[derive(Debug, Default)]
pub struct Heartbeat(AtomicU64);

impl Heartbeat {
    pub(crate) fn set(&self, now: Time) {
        self.0.store(now.0, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> Time {
        Time(self.0.load(Ordering::Relaxed))
    }
}

impl MetricGroup for Heartbeat {
    fn collect(_: &[&Self], _: &mut MetricFamilies) {}
}

/// The state of a data interface, as the watcher has found it last.
#[derive(Debug, Default)]
pub struct InterfaceGauges {
    name: String,
    /// Whether it is up.
    pub up: Gauge,
    /// Whether it has a carrier.
    pub carrier: Gauge,
    /// Whether its frames are captured.
    pub captured: Gauge,
}

impl InterfaceGauges {
    pub(crate) fn set(&self, link: LinkState, captured: bool) {
        self.up.set(link.up);
        self.carrier.set(link.carrier);
        self.captured.set(captured);
    }
}

/// The datapath's metrics; any thread may read them at any time.
#[derive(Debug)]
pub struct DatapathMetrics {
    /// One for each data interface, in the order of the configuration.
    pub interfaces: Vec<InterfaceGauges>,
    /// One for each worker.
    pub workers: Vec<Arc<WorkerMetrics>>,
    /// The watcher's.
    pub watcher: WatcherMetrics,
}

impl DatapathMetrics {
    pub(crate) fn new<'a>(workers: usize, interfaces: impl IntoIterator<Item = &'a str>) -> DatapathMetrics {
        let gauges = |name: &str| InterfaceGauges { name: name.to_owned(), ..InterfaceGauges::default() };
        DatapathMetrics {
            interfaces: interfaces.into_iter().map(gauges).collect(),
            workers: (0..workers).map(|_| Arc::default()).collect(),
            watcher: WatcherMetrics::default(),
        }
    }

    /// Adds all metrics, each the sum over the workers.
    pub fn collect(&self, families: &mut MetricFamilies) {
        WorkerMetrics::collect(&self.workers.iter().map(|worker| &**worker).collect::<Vec<_>>(), families);
        WatcherMetrics::collect(&[&self.watcher], families);
        let mut gauges = |name, help, of: fn(&InterfaceGauges) -> &Gauge| {
            families.gauges(name, help, |samples| {
                for interface in &self.interfaces {
                    samples.with("interface", &interface.name).integer(of(interface).get());
                }
            });
        };
        gauges("palisade_interface_up", "Whether a data interface is up.", |interface| &interface.up);
        gauges("palisade_interface_carrier", "Whether a data interface has a carrier.", |interface| &interface.carrier);
        gauges("palisade_interface_captured", "Whether a data interface's frames are captured.", |i| &i.captured);
    }

    /// A number, summed over the workers.
    pub fn total(&self, of: impl Fn(&WorkerMetrics) -> u64) -> u64 {
        self.workers.iter().map(|worker| of(worker)).sum()
    }

    /// Packets forwarded.
    #[must_use]
    pub fn forwarded(&self) -> u64 {
        self.total(|worker| worker.verdicts.forwarded.packets.get())
    }

    /// Packets dropped for one reason.
    #[must_use]
    pub fn dropped(&self, reason: Reason) -> u64 {
        self.total(|worker| {
            worker.verdicts.dropped.get(usize::from(reason as u8)).map_or(0, |traffic| traffic.packets.get())
        })
    }

    /// Packets rejected for one reason.
    #[must_use]
    pub fn rejected(&self, reason: Reason) -> u64 {
        self.total(|worker| {
            worker.verdicts.rejected.get(usize::from(reason as u8)).map_or(0, |traffic| traffic.packets.get())
        })
    }
}

#[cfg(test)]
mod tests {
    use palisade_metrics::Value;

    use super::*;

    #[test]
    fn reason_number_is_its_place_in_the_list() {
        for (at, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(usize::from(*reason as u8), at);
        }
    }

    #[test]
    fn datapath_metrics_are_summed_over_the_workers() {
        let metrics = DatapathMetrics::new(2, []);
        for worker in &metrics.workers {
            worker.verdicts.forwarded(2, 100);
            worker.verdicts.dropped(Reason::Stale, 1, 60);
            worker.hold.observe(Duration::from_micros(100));
            worker.hold.observe(Duration::from_micros(101));
            worker.hold.observe(Duration::from_secs(1));
        }
        assert_eq!((metrics.forwarded(), metrics.dropped(Reason::Stale), metrics.dropped(Reason::Policy)), (4, 2, 0));
        let mut families = MetricFamilies::default();
        metrics.collect(&mut families);
        let family = |name| families.iter().find(|f| f.name == name).unwrap();
        let Value::Histogram { buckets, .. } = &family("palisade_hold_seconds").samples[0].value else { panic!() };
        let counts: Vec<u64> = buckets.iter().map(|(_, count)| *count).collect();
        assert_eq!((&counts[..2], counts.iter().sum::<u64>()), (&[2, 2][..], 6));
        assert_eq!(family("palisade_bytes_total").samples[0].value, Value::Integer(200));
    }
}
