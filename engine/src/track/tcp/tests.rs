use super::snapshot_query::{self, Resolution};
use super::*;
use crate::event::{ProvisionalSegment, TcpSnapshot};
use Direction::{Original, Reply};

const T0: Time = Time(1_000_000_000);
const MS: Duration = Duration::from_millis(1);
const ISN: PerDirection<u32> = PerDirection { original: 1000, reply: 0xffff_ff00 };

fn syns() -> PerDirection<SynParams> {
    ISN.map(|isn| SynParams { isn, window: 64240, wscale: Some(2), sack: true })
}

/// A connection of which this member saw the handshake at `T0`.
struct Connection {
    track: Track,
    syns: PerDirection<SynParams>,
    closed: Option<CloseCause>,
    now: Time,
    /// The check after an inconclusive one.
    second_check: WindowCheck,
    /// Whether no member knows the numbers: segments pass provisionally, or corroborate one that did.
    unknown: bool,
    provisional: PerDirection<Option<ProvisionalSegment>>,
}

impl Connection {
    fn new() -> Connection {
        let syns = syns();
        let track = Track::new(&syns, Some(T0));
        Connection {
            track,
            syns,
            closed: None,
            now: T0,
            second_check: WindowCheck::Strict,
            unknown: false,
            provisional: PerDirection::default(),
        }
    }

    fn unseen() -> Connection {
        Connection { track: Track::new(&syns(), None), unknown: true, ..Connection::new() }
    }

    /// Sequence numbers count from the first byte of data.
    fn send(&mut self, direction: Direction, flags: u8, seq: i64, ack: i64, payload: u32) -> SegmentOutcome {
        let (s, r) = (direction, direction.flip());
        let tcp = Tcp {
            seq: ISN[s].wrapping_add(1).wrapping_add(seq as u32),
            ack: ISN[r].wrapping_add(1).wrapping_add(ack as u32),
            flags,
            window: u16::MAX,
            payload,
            wscale: None,
            sack_permitted: false,
        };
        let syns = self.syns;
        match self.track.check_segment(&syns, direction, &tcp, self.closed, WindowCheck::Relaxed, self.now) {
            SegmentOutcome::Inconclusive if self.unknown => {
                let corroborated = self.provisional[r]
                    .map(|opposite| self.track.corroborate(&syns, direction, &tcp, &opposite, self.now));
                if let Some(outcome) = corroborated.filter(|outcome| *outcome != SegmentOutcome::Inconclusive) {
                    return outcome;
                }
                self.provisional[s] = Some(ProvisionalSegment { seq_end: tcp.end(), ack: tcp.ack, age_ms: 0 });
                SegmentOutcome::Inconclusive
            }
            SegmentOutcome::Inconclusive => {
                self.track.check_segment(&syns, direction, &tcp, self.closed, self.second_check, self.now)
            }
            outcome => outcome,
        }
    }

    fn data(&mut self, direction: Direction, seq: i64, ack: i64, payload: u32) -> SegmentOutcome {
        self.send(direction, Tcp::ACK, seq, ack, payload)
    }

    fn state(&self) -> &'static str {
        self.track.state(self.closed).name()
    }
}

const MAX_WINDOW: i64 = (65_535 << 2) + 1;
const WINDOW: SegmentOutcome = SegmentOutcome::Invalid(Reason::TcpWindow);

#[test]
fn window_scale_counts_only_if_both_ends_sent_it() {
    let PerDirection { original: with, reply: other } = syns();
    let without = SynParams { wscale: None, ..other };
    assert_eq!(max_advertisable_window(&with, &other), MAX_WINDOW);
    assert_eq!(max_advertisable_window(&with, &without), 65_536);
    assert_eq!(max_advertisable_window(&without, &with), 65_536);
    assert_eq!(max_advertisable_window(&SynParams { wscale: Some(14), ..with }, &other), (65_535 << 14) + 1);
}

#[test]
fn window_check_passes_one_direction_alone() {
    for direction in [Original, Reply] {
        let mut connection = Connection::new();
        let mut at = 0;
        for _ in 0..1000 {
            assert_eq!(connection.data(direction, at, 0, 65_000), SegmentOutcome::InWindow);
            at += 65_000;
        }
        let mut connection = Connection::new();
        for n in 0..1000 {
            assert_eq!(
                connection.data(direction, 0, n * 65_000, 0),
                SegmentOutcome::InWindow,
                "acknowledgements alone, {n}"
            );
        }
    }
}

#[test]
fn window_check_bounds_data_above_and_below() {
    let mut connection = Connection::new();
    assert_eq!(connection.data(Original, MAX_WINDOW + 1, 0, 0), WINDOW);
    assert_eq!(connection.data(Original, MAX_WINDOW - 999, 0, 1000), WINDOW);
    assert_eq!(connection.data(Original, MAX_WINDOW - 1000, 0, 1000), SegmentOutcome::InWindow);
    assert_eq!(connection.data(Original, 0, 0, 1), SegmentOutcome::InWindow, "a retransmission of all of it");
    assert_eq!(connection.data(Original, -1, 0, 1), WINDOW);
}

#[test]
fn window_check_bounds_acknowledgements_above_and_below() {
    let mut connection = Connection::new();
    assert_eq!(connection.data(Original, 0, MAX_WINDOW + 1, 0), WINDOW);
    assert_eq!(connection.data(Original, 0, MAX_WINDOW, 0), SegmentOutcome::InWindow);
    assert_eq!(connection.data(Original, 0, -MAX_WINDOW, 0), SegmentOutcome::InWindow);
    assert_eq!(connection.data(Original, 0, -MAX_WINDOW - 1, 0), WINDOW);
}

#[test]
fn window_check_passes_probes_keepalives_and_super_segments() {
    let mut connection = Connection::new();
    assert_eq!(connection.data(Original, 0, 0, 65_483), SegmentOutcome::InWindow);
    assert_eq!(connection.data(Original, 65_482, 0, 0), SegmentOutcome::InWindow, "keep-alive");
    assert_eq!(connection.data(Original, 65_482, 0, 1), SegmentOutcome::InWindow, "keep-alive with a byte");
    assert_eq!(connection.data(Original, 65_483, 0, 1), SegmentOutcome::InWindow, "window probe");
    assert_eq!(connection.data(Original, 0, 0, 1460), SegmentOutcome::InWindow, "retransmission");
}

#[test]
fn window_check_rejects_segments_half_the_sequence_space_away() {
    let mut connection = Connection::new();
    for at in [(1_i64 << 31) - 50, 1 << 31, (1 << 31) + 50] {
        assert_eq!(connection.data(Original, at, 0, 100), WINDOW, "{at}");
    }
}

#[test]
fn window_check_does_not_depend_on_time() {
    let mut connection = Connection::new();
    connection.now = T0 + 100_000_000 * MS;
    assert_eq!(connection.data(Original, MAX_WINDOW + 1, 0, 0), WINDOW);
    assert_eq!(connection.data(Original, MAX_WINDOW, 0, 0), SegmentOutcome::InWindow);
}

/// A segment with this sequence number.
fn about(seq: u32) -> Tcp {
    Tcp { seq, ack: 0, flags: Tcp::ACK, window: 0, payload: 0, wscale: None, sack_permitted: false }
}

/// A time after `T0`.
fn t(ms: u32) -> Time {
    T0 + ms * MS
}

/// The reply of a peer that saw the handshake.
fn complete_reply(live: bool) -> TcpSnapshot {
    Connection::new().track.snapshot(T0, live)
}

/// The reply of a peer that restarted, or joined later.
fn incomplete_reply(live: bool) -> TcpSnapshot {
    Connection::unseen().track.snapshot(T0, live)
}

#[test]
fn snapshot_query_resolves_strictly_once_all_peers_replied() {
    let mut track = Connection::new().track;
    assert_eq!(track.resolve(&about(77), 2, false, t(0)), Resolution::QueryPeers);
    assert_eq!(track.resolve(&about(77), 2, false, t(1)), Resolution::AwaitReplies);
    assert!(!track.record_reply(2, &complete_reply(false), 2, t(1)));
    assert!(!track.record_reply(2, &complete_reply(false), 2, t(1)), "the same peer again");
    assert!(track.record_reply(3, &complete_reply(false), 2, t(1)));
    assert_eq!(track.resolve(&about(77), 2, false, t(1)), Resolution::Strict);
    assert_eq!(track.resolve(&about(78), 2, false, t(5)), Resolution::QueryPeers, "another segment, another query");
    // A peer that sees the connection may show that a segment belongs. Only all peers show that it does not.
    assert!(track.record_reply(3, &complete_reply(true), 2, t(5)));
    assert_eq!(track.resolve(&about(78), 2, false, t(6)), Resolution::AwaitReplies);
    assert!(track.record_reply(2, &complete_reply(false), 2, t(6)));
    assert_eq!(track.resolve(&about(78), 2, false, t(6)), Resolution::Strict);
    let acks_more = Tcp { ack: 1, ..about(78) };
    let resolution = track.resolve(&acks_more, 2, false, t(7));
    assert_eq!(resolution, Resolution::QueryPeers, "the same data, another acknowledgement");
}

#[test]
fn snapshot_query_that_times_out_allows_one_provisional_segment_per_direction() {
    let mut track = Connection::new().track;
    assert_eq!(track.resolve(&about(77), 2, false, t(0)), Resolution::QueryPeers);
    assert!(!track.record_reply(2, &complete_reply(false), 2, t(1)));
    assert_eq!(track.resolve(&about(77), 2, false, t(245)), Resolution::AwaitReplies);
    assert_eq!(track.resolve(&about(77), 2, false, t(250)), Resolution::Provisional);
    assert!(track.allow_provisional(Original));
    assert_eq!(track.resolve(&about(77), 2, false, t(495)), Resolution::Provisional, "the opposite direction, too");
    assert!(track.allow_provisional(Reply) && !track.allow_provisional(Original));
    assert_eq!(track.resolve(&about(77), 2, false, t(500)), Resolution::QueryPeers);
    assert_eq!(track.resolve(&about(77), 2, false, t(10_750)), Resolution::QueryPeers, "the query is too old");
}

/// A peer that joined later, or restarted, shows nothing by not knowing.
#[test]
fn snapshot_query_with_incomplete_replies_is_provisional() {
    let mut track = Connection::new().track;
    assert_eq!(track.resolve(&about(77), 1, false, t(0)), Resolution::QueryPeers);
    assert!(track.record_reply(2, &incomplete_reply(false), 1, t(1)));
    assert_eq!(track.resolve(&about(78), 1, false, t(2)), Resolution::Provisional);
    assert!(track.allow_provisional(Original) && track.allow_provisional(Reply), "one segment per direction");
    assert_eq!(track.resolve(&about(77), 1, false, t(2)), Resolution::Provisional);
    assert!(!track.allow_provisional(Original) && !track.allow_provisional(Reply));
    assert_eq!(track.resolve(&about(77), 1, false, t(252)), Resolution::QueryPeers);
    assert!(track.record_reply(2, &incomplete_reply(false), 1, t(253)));
    assert!(track.allow_provisional(Original), "after each query");
}

#[test]
fn snapshot_query_with_a_live_reply_is_strict_whatever_is_incomplete() {
    let mut track = Connection::new().track;
    assert_eq!(track.resolve(&about(77), 2, false, t(0)), Resolution::QueryPeers);
    assert!(!track.record_reply(2, &incomplete_reply(false), 2, t(1)));
    assert!(track.record_reply(3, &complete_reply(true), 2, t(1)));
    assert_eq!(track.resolve(&about(77), 2, false, t(2)), Resolution::Strict);

    let mut track = Connection::unseen().track;
    assert_eq!(track.resolve(&about(77), 1, false, t(0)), Resolution::QueryPeers);
    assert!(track.record_reply(2, &incomplete_reply(true), 1, t(1)));
    assert_eq!(track.resolve(&about(77), 1, false, t(1)), Resolution::Strict);
}

#[test]
fn snapshot_query_without_peers_resolves_at_once() {
    assert_eq!(Connection::new().track.resolve(&about(77), 0, false, t(0)), Resolution::Strict);

    let mut track = Connection::unseen().track;
    assert_eq!(track.resolve(&about(77), 0, false, t(0)), Resolution::Provisional);
    assert!(track.allow_provisional(Original));
    assert_eq!(track.resolve(&about(78), 0, false, t(1)), Resolution::Provisional);
    assert!(!track.allow_provisional(Original));
    assert_eq!(track.resolve(&about(78), 0, false, t(250)), Resolution::Provisional);
    assert!(track.allow_provisional(Original));
}

#[test]
fn snapshot_query_that_was_settled_is_not_unanswered_with_more_peers() {
    let mut track = Connection::new().track;
    assert_eq!(track.resolve(&about(77), 1, false, t(0)), Resolution::QueryPeers);
    assert!(track.record_reply(2, &complete_reply(false), 1, t(1)));
    assert_eq!(track.resolve(&about(78), 2, false, t(300)), Resolution::QueryPeers);
}

#[test]
fn snapshot_of_a_peer_moves_the_bounds() {
    let far = 1_i64 << 31;
    let (mut here, mut there) = (Connection::new(), Connection::new());
    there.now = T0 + 5000 * MS;
    there.unknown = true;
    assert_eq!(there.data(Reply, 100, far, 0), SegmentOutcome::Inconclusive);
    assert_eq!(there.data(Original, far, 100, 0), SegmentOutcome::InWindow);
    here.now = there.now;
    assert_eq!(here.data(Original, far, 100, 0), WINDOW);
    here.track.record_reply(2, &there.track.snapshot(there.now, true), 1, here.now);
    assert_eq!(here.data(Original, far, 100, 0), SegmentOutcome::InWindow);
    assert_eq!(here.data(Original, 0, 0, 0), WINDOW);
    // An older snapshot changes nothing.
    let before = here.track.directions;
    here.track.record_reply(3, &Connection::new().track.snapshot(here.now, false), 1, here.now);
    assert_eq!(here.track.directions.original.seq_end, before.original.seq_end);
}

#[test]
fn corroboration_accepts_two_directions_that_agree_and_nothing_else() {
    let mut connection = Connection::unseen();
    let before = connection.track;
    assert_eq!(connection.data(Reply, 1 << 30, 77_777_777, 1000), SegmentOutcome::Inconclusive);
    // Forged segments of the same direction do not displace it, and do not corroborate it.
    assert_eq!(connection.data(Original, 999_999_999, 5, 1000), SegmentOutcome::Inconclusive);
    assert_eq!(connection.data(Original, 77_777_777, 5, 1000), SegmentOutcome::Inconclusive);
    assert_eq!(connection.data(Original, 5, (1 << 30) + 1000, 1000), SegmentOutcome::Inconclusive);
    assert_eq!(connection.send(Original, Tcp::RST, 123_456_789, 0, 0), SegmentOutcome::Inconclusive);
    assert_eq!(connection.track, before);
    assert_eq!(connection.data(Original, 77_777_777, (1 << 30) + 1000, 1000), SegmentOutcome::InWindow);
    assert!(!connection.track.snapshot(connection.now, true).history_incomplete);
    connection.unknown = false;
    assert_eq!(connection.data(Reply, 0, 77_777_777, 1000), WINDOW);
    assert_eq!(connection.data(Original, 0, (1 << 30) + 1000, 1000), WINDOW);
    assert_eq!(connection.data(Reply, (1 << 30) + 1000, 77_778_777, 1000), SegmentOutcome::InWindow);
}

#[test]
fn corroboration_by_a_rst_needs_the_exact_number() {
    let mut connection = Connection::unseen();
    assert_eq!(connection.data(Original, 1 << 30, 77_777_777, 1000), SegmentOutcome::Inconclusive);
    assert_eq!(connection.send(Reply, Tcp::RST, 77_777_778, 0, 0), SegmentOutcome::Inconclusive);
    // A RST is no evidence.
    connection.provisional.reply = None;
    assert_eq!(connection.send(Reply, Tcp::RST, 77_777_777, 0, 0), SegmentOutcome::Rst);
}

#[test]
fn snapshot_with_a_complete_history_completes_an_incomplete_one() {
    let mut late = Connection::unseen().track;
    let mut knows = Connection::new();
    late.merge_snapshot(&Connection::unseen().track.snapshot(T0, true), T0);
    assert!(late.snapshot(T0, true).history_incomplete);
    knows.data(Original, 0, 0, 100);
    late.merge_snapshot(&knows.track.snapshot(T0, true), T0);
    assert!(!late.snapshot(T0, true).history_incomplete);
}

#[test]
fn flags_of_no_valid_segment_are_invalid() {
    let mut connection = Connection::new();
    for flags in [0, Tcp::FIN, Tcp::PSH, Tcp::SYN, Tcp::SYN | Tcp::ACK] {
        assert_eq!(connection.send(Original, flags, 0, 0, 0), SegmentOutcome::Invalid(Reason::TcpFlags), "{flags:#x}");
    }
    assert_eq!(connection.state(), "ESTABLISHED");
}

#[test]
fn close_by_fins_goes_through_all_states() {
    let mut connection = Connection::new();
    assert_eq!(
        connection.send(Original, Tcp::FIN | Tcp::ACK, 0, 0, 10),
        SegmentOutcome::Fin(ISN.original.wrapping_add(12))
    );
    assert_eq!(connection.state(), "FIN_WAIT");
    assert!(!connection.track.take_fin_close());
    assert_eq!(connection.data(Original, 11, 0, 1), WINDOW, "nothing comes after a FIN");
    assert_eq!(connection.data(Reply, 0, 12, 0), WINDOW, "and nothing beyond it is acknowledged");
    assert_eq!(connection.data(Reply, 0, 11, 100), SegmentOutcome::InWindow);
    assert_eq!(connection.state(), "CLOSE_WAIT");
    assert_eq!(connection.data(Reply, 100, 11, 100), SegmentOutcome::InWindow, "the opposite direction continues");
    assert_eq!(
        connection.send(Reply, Tcp::FIN | Tcp::ACK, 200, 11, 0),
        SegmentOutcome::Fin(ISN.reply.wrapping_add(202))
    );
    assert_eq!(connection.state(), "LAST_ACK");
    assert!(connection.track.take_fin_close());
    assert!(!connection.track.take_fin_close(), "once");
    assert_eq!(connection.data(Original, 11, 201, 0), SegmentOutcome::InWindow);
    connection.closed = Some(CloseCause::Fin);
    assert_eq!(connection.state(), "TIME_WAIT");
}

#[test]
fn close_is_proposed_where_the_replys_fin_passed() {
    let mut connection = Connection::new();
    connection.send(Original, Tcp::FIN | Tcp::ACK, 0, 0, 0);
    connection.track.record_peer_fin(Reply, ISN.reply.wrapping_add(2));
    assert!(connection.track.both_fins_known());
    assert!(!connection.track.take_fin_close());
    assert_eq!(connection.track.take_overdue_close(), Some(CloseCause::Fin));

    let mut connection = Connection::new();
    connection.send(Reply, Tcp::FIN | Tcp::ACK, 0, 0, 0);
    assert!(!connection.track.take_fin_close());
    connection.track.record_peer_fin(Original, ISN.original.wrapping_add(2));
    assert!(connection.track.take_fin_close());
}

#[test]
fn rst_must_be_exact() {
    let mut connection = Connection::new();
    assert_eq!(connection.data(Original, 0, 0, 1000), SegmentOutcome::InWindow);
    assert_eq!(connection.send(Original, Tcp::RST, 999, 0, 0), SegmentOutcome::Invalid(Reason::TcpRst));
    assert_eq!(connection.send(Original, Tcp::RST, 1001, 0, 0), SegmentOutcome::Invalid(Reason::TcpRst));
    assert_eq!(connection.send(Original, Tcp::RST, MAX_WINDOW + 1001, 0, 0), SegmentOutcome::Invalid(Reason::TcpRst));
    assert_eq!(connection.send(Original, Tcp::RST, 1000, 0, 0), SegmentOutcome::Rst, "the end of what was sent");
    assert!(connection.track.take_rst_close());
    assert!(!connection.track.take_rst_close(), "once");

    let mut connection = Connection::new();
    assert_eq!(connection.data(Original, 0, 0, 1000), SegmentOutcome::InWindow);
    assert_eq!(connection.data(Reply, 0, 500, 0), SegmentOutcome::InWindow);
    assert_eq!(
        connection.send(Original, Tcp::RST, 500, 0, 0),
        SegmentOutcome::Rst,
        "the number that the other end expects"
    );
    assert_eq!(connection.track.take_overdue_close(), Some(CloseCause::Rst));
}

#[test]
fn rst_after_a_fin_need_only_be_in_the_window() {
    let mut connection = Connection::new();
    connection.send(Original, Tcp::FIN | Tcp::ACK, 0, 0, 0);
    assert_eq!(connection.send(Reply, Tcp::RST, 77, 0, 0), SegmentOutcome::Rst);
}

#[test]
fn invalid_segment_changes_nothing() {
    let mut connection = Connection::new();
    connection.data(Original, 0, 0, 100);
    let before = connection.track;
    connection.data(Original, MAX_WINDOW * 2, 0, 100);
    connection.data(Original, 100, MAX_WINDOW * 2, 100);
    connection.send(Original, Tcp::SYN, 0, 0, 0);
    connection.send(Original, Tcp::RST, 7, 0, 0);
    connection.send(Original, Tcp::FIN | Tcp::ACK, MAX_WINDOW * 2, 0, 0);
    assert_eq!(connection.track, before);
}

#[test]
fn closed_connection_accepts_only_what_was_sent_before() {
    let gone = SegmentOutcome::Invalid(Reason::NoSession);
    let mut connection = Connection::new();
    connection.send(Original, Tcp::FIN | Tcp::ACK, 0, 0, 100);
    connection.send(Reply, Tcp::FIN | Tcp::ACK, 0, 101, 50);
    connection.closed = Some(CloseCause::Fin);
    assert_eq!(connection.data(Original, 101, 51, 0), SegmentOutcome::InWindow, "the last ACK");
    assert_eq!(
        connection.send(Reply, Tcp::FIN | Tcp::ACK, 0, 101, 50),
        SegmentOutcome::Fin(ISN.reply.wrapping_add(52)),
        "its FIN again"
    );
    assert_eq!(connection.data(Original, 0, 51, 100), SegmentOutcome::InWindow, "retransmitted data");
    assert_eq!(connection.data(Original, 102, 51, 0), gone, "a successor's segment");
    assert_eq!(connection.data(Original, 101, 52, 0), gone);
    assert_eq!(connection.data(Original, 101, 51, 1), gone);
    connection.now = T0 + 100_000 * MS;
    assert_eq!(connection.data(Original, 5000, 51, 0), gone, "at any time later");

    let mut connection = Connection::unseen();
    connection.closed = Some(CloseCause::Rst);
    assert_eq!(connection.state(), "CLOSE");
    assert_eq!(connection.data(Original, 0, 0, 0), gone, "nothing is known, so nothing belongs");
}

#[test]
fn icmp_error_must_quote_what_was_sent() {
    let mut connection = Connection::new();
    connection.data(Original, 0, 0, 1000);
    let quoted = |connection: &Connection, seq: u32| {
        connection.track.may_have_sent(&connection.syns, Original, ISN.original.wrapping_add(seq), connection.now)
    };
    assert!(quoted(&connection, 1));
    assert!(quoted(&connection, 1001));
    assert!(!quoted(&connection, 1 << 20));
    connection.now = T0 + 3000 * MS;
    assert!(quoted(&connection, 1 << 20));
}

/// Two correct ends with any loss, any reordering within a window, and any choice of member for each packet: no member drops
/// a packet.
mod legitimate {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn traffic_passes_at_any_member(
            steps in prop::collection::vec((any::<bool>(), 0_usize..3, 0_u32..65_000, 0_u8..4, 0_u64..400), 1..400),
        ) {
            let mut members = [Connection::new(), Connection::new(), Connection::new()];
            // Sent; received by the other end; acknowledgement received. By direction.
            let mut sent = PerDirection::<i64>::default();
            let mut received = PerDirection::<i64>::default();
            let mut acked = PerDirection::<i64>::default();
            for (client, member, length, what, micros) in steps {
                let direction = if client { Original } else { Reply };
                let (s, r) = (direction, direction.flip());
                for m in &mut members {
                    m.now = m.now + Duration::from_micros(micros);
                }
                let window = MAX_WINDOW - 1;
                let room = (acked[s] + window - sent[s]).max(0);
                let (seq, length) = match what {
                    // New data, lost behind the firewall, or not.
                    0 | 1 => (sent[s], i64::from(length).min(room)),
                    // A retransmission of what is not acknowledged.
                    2 => (acked[s], i64::from(length).min(sent[s] - acked[s])),
                    // A bare acknowledgement.
                    _ => (sent[s], 0),
                };
                let known = members.each_ref().map(|m| m.track.snapshot(m.now, true));
                members[member].second_check = WindowCheck::Relaxed;
                let mut seen = members[member].data(direction, seq, received[r], length as u32);
                if seen == SegmentOutcome::Inconclusive {
                    let now = members[member].now;
                    for (id, known) in (1..).zip(&known) {
                        members[member].track.record_reply(id, known, 2, now);
                    }
                    members[member].second_check = WindowCheck::Strict;
                    seen = members[member].data(direction, seq, received[r], length as u32);
                }
                prop_assert_eq!(seen, SegmentOutcome::InWindow);
                sent[s] = sent[s].max(seq + length);
                if what != 0 {
                    if seq <= received[s] {
                        received[s] = received[s].max(seq + length);
                    }
                    acked[r] = acked[r].max(received[r]);
                }
            }
        }
    }
}

mod query_machine;
mod table;
