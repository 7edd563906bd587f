//! Figures about packets.

use std::time::Duration;

use super::Sheet;
use crate::datapath::Snapshot;
use crate::datapath::metrics::HOLD_BOUNDS;

/// Writes the datapath's figures.
pub fn write(sheet: &mut Sheet, s: &Snapshot) {
    traffic(sheet, "palisade_packets", "Packets judged, by verdict and reason", s, |_, (packets, _)| packets);
    traffic(sheet, "palisade_bytes", "Bytes of the packets judged, by verdict and reason", s, |_, (_, bytes)| bytes);
    sheet.counter(
        "palisade_rejects_unanswered",
        "Rejected packets that got no ICMP error because there had been too many",
        s.unanswered,
    );
    sheet.counter("palisade_held_packets", "Packets that were held at least once", s.held.0);
    sheet.gauges("palisade_holds", "Packets held now, by budget", |m| {
        m.count([("class", "matched")], s.hold_now.0);
        m.count([("class", "unmatched")], s.hold_now.1);
    });
    let expired = s.dropped(palisade_engine::Reason::HoldExpired);
    sheet.counter(
        "palisade_holds_expired",
        "Packets dropped because what they were held for did not come in time",
        expired,
    );
    let buckets = HOLD_BOUNDS.iter().map(Duration::as_secs_f64).zip(s.hold_time.buckets);
    sheet.histogram(
        "palisade_hold_seconds",
        "How long packets were held that then went on",
        s.hold_time.sum.as_secs_f64(),
        s.hold_time.count,
        buckets,
    );
    sheet.counter("palisade_captured_frames", "Frames that the capture sockets received", s.captured);
    sheet.counter("palisade_local_packets", "Captured packets that were for this machine itself", s.local);
    sheet.counter(
        "palisade_capture_missed",
        "Frames that the kernel dropped before capture: its ring was full",
        s.missed,
    );
    sheet.counter(
        "palisade_capture_oversized_lost",
        "Frames larger than a ring slot that the kernel had no space for",
        s.oversized_lost,
    );
    sheet.counter("palisade_segmented_packets", "Packets that had to be segmented in user space", s.segmented);
    sheet.counters("palisade_sink_lost", "What the packet path told the others and found no room for, by kind", |m| {
        m.count([("kind", "hint")], s.hints_lost);
        m.count([("kind", "proposal")], s.proposals_lost);
    });
    sheet.counter("palisade_worker_batches", "Rounds in which a worker found packets", s.batches);
    sheet.counter("palisade_worker_polls", "Times that a worker went to sleep", s.polls);
    sheet.counter(
        "palisade_gate_restored",
        "Times that a part of the gate was missing and was restored",
        s.gate_restored,
    );
    sheet.counter("palisade_settings_restored", "Times that a kernel setting had to be set again", s.settings_restored);
    sheet.counter(
        "palisade_captures_reopened",
        "Times that an interface's sockets were opened again",
        s.captures_reopened,
    );
}

/// Every reason has its series from the start, zeros too: a rate needs the zero before the first one.
fn traffic(
    sheet: &mut Sheet,
    name: &'static str,
    help: &'static str,
    s: &Snapshot,
    of: impl Fn(&Snapshot, (u64, u64)) -> u64,
) {
    sheet.counters(name, help, |m| {
        m.count([("verdict", "forward"), ("reason", "")], of(s, s.forwarded));
        for (verdict, reasons) in [("drop", &s.dropped), ("reject", &s.rejected)] {
            for (reason, packets, bytes) in reasons {
                let value = of(s, (*packets, *bytes));
                // What is rejected is rejected by policy; the other reasons never are.
                if verdict == "drop" || value > 0 || *reason == palisade_engine::Reason::PolicyReject {
                    m.count([("verdict", verdict), ("reason", reason.label())], value);
                }
            }
        }
    });
}
