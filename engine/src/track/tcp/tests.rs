use super::peer_query::Resolution;
use super::*;
use crate::event::ProvisionalSegment;
use crate::verdict::Verdict;
use Direction::{Original, Reply};

const T0: Time = Time(1_000_000_000);
const MS: Duration = Duration::from_millis(1);
const ISN: [u32; 2] = [1000, 0xffff_ff00];

fn ends() -> [SynParams; 2] {
    ISN.map(|isn| SynParams { isn, window: 64240, wscale: Some(2), sack: true })
}

/// A connection of which this member saw the handshake at `T0`.
struct Connection {
    track: Track,
    ends: [SynParams; 2],
    closed: Option<CloseCause>,
    now: Time,
    /// How what is not near is judged.
    doubt: WindowCheck,
    /// Nobody knows: what is not near passes at its word, or because it agrees with one.
    nobody: bool,
    words: [Option<ProvisionalSegment>; 2],
}

impl Connection {
    fn new() -> Connection {
        let ends = ends();
        let track = Track::new(&ends[0], &ends[1], Some(T0));
        Connection { track, ends, closed: None, now: T0, doubt: WindowCheck::Strict, nobody: false, words: [None; 2] }
    }

    fn unseen() -> Connection {
        let ends = ends();
        Connection { track: Track::new(&ends[0], &ends[1], None), nobody: true, ..Connection::new() }
    }

    /// Sequence numbers count from the first byte of data.
    fn send(&mut self, direction: Direction, flags: u8, seq: i64, ack: i64, payload: u32) -> SegmentOutcome {
        let (s, r) = (index(direction), index(direction.flip()));
        let tcp = Tcp {
            seq: ISN[s].wrapping_add(1).wrapping_add(seq as u32),
            ack: ISN[r].wrapping_add(1).wrapping_add(ack as u32),
            flags,
            window: u16::MAX,
            payload,
            wscale: None,
            sack_permitted: false,
        };
        let syns = [&self.ends[0], &self.ends[1]];
        match self.track.check_segment(syns, direction, &tcp, self.closed, WindowCheck::Relaxed, self.now) {
            SegmentOutcome::Inconclusive if self.nobody => {
                let believed = self.words[r].map(|word| self.track.corroborate(syns, direction, &tcp, &word, self.now));
                if let Some(seen) = believed.filter(|seen| *seen != SegmentOutcome::Inconclusive) {
                    return seen;
                }
                self.words[s] = Some(ProvisionalSegment { seq_end: tcp.end(), ack: tcp.ack, age_ms: 0 });
                SegmentOutcome::Inconclusive
            }
            SegmentOutcome::Inconclusive => {
                self.track.check_segment(syns, direction, &tcp, self.closed, self.doubt, self.now)
            }
            seen => seen,
        }
    }

    fn data(&mut self, direction: Direction, seq: i64, ack: i64, payload: u32) -> SegmentOutcome {
        self.send(direction, Tcp::ACK, seq, ack, payload)
    }

    fn state(&self) -> &'static str {
        self.track.state(self.closed).name()
    }
}

const REACH: i64 = (65_535 << 2) + 1;
const WINDOW: SegmentOutcome = SegmentOutcome::Invalid(Reason::TcpWindow);

#[test]
fn scale_counts_only_if_both_ends_offered_it() {
    let [with, other] = ends();
    let without = SynParams { wscale: None, ..other };
    assert_eq!(max_advertisable_window(&with, &other), REACH);
    assert_eq!(max_advertisable_window(&with, &without), 65_536);
    assert_eq!(max_advertisable_window(&without, &with), 65_536);
    assert_eq!(max_advertisable_window(&SynParams { wscale: Some(14), ..with }, &other), (65_535 << 14) + 1);
}

#[test]
fn one_direction_alone_is_enough() {
    for direction in [Original, Reply] {
        let mut c = Connection::new();
        let mut at = 0;
        for _ in 0..1000 {
            assert_eq!(c.data(direction, at, 0, 65_000), SegmentOutcome::InWindow);
            at += 65_000;
        }
        let mut c = Connection::new();
        for n in 0..1000 {
            assert_eq!(c.data(direction, 0, n * 65_000, 0), SegmentOutcome::InWindow, "acknowledgements alone, {n}");
        }
    }
}

#[test]
fn data_is_bounded_above_and_below() {
    let mut c = Connection::new();
    assert_eq!(c.data(Original, REACH + 1, 0, 0), WINDOW);
    assert_eq!(c.data(Original, REACH - 999, 0, 1000), WINDOW);
    assert_eq!(c.data(Original, REACH - 1000, 0, 1000), SegmentOutcome::InWindow);
    assert_eq!(c.data(Original, 0, 0, 1), SegmentOutcome::InWindow, "a retransmission of all of it");
    assert_eq!(c.data(Original, -1, 0, 1), WINDOW);
}

#[test]
fn acknowledgements_are_bounded_above_and_below() {
    let mut c = Connection::new();
    assert_eq!(c.data(Original, 0, REACH + 1, 0), WINDOW);
    assert_eq!(c.data(Original, 0, REACH, 0), SegmentOutcome::InWindow);
    assert_eq!(c.data(Original, 0, -REACH, 0), SegmentOutcome::InWindow);
    assert_eq!(c.data(Original, 0, -REACH - 1, 0), WINDOW);
}

#[test]
fn probes_keepalives_and_super_segments_pass() {
    let mut c = Connection::new();
    assert_eq!(c.data(Original, 0, 0, 65_483), SegmentOutcome::InWindow);
    assert_eq!(c.data(Original, 65_482, 0, 0), SegmentOutcome::InWindow, "keep-alive");
    assert_eq!(c.data(Original, 65_482, 0, 1), SegmentOutcome::InWindow, "keep-alive with a byte");
    assert_eq!(c.data(Original, 65_483, 0, 1), SegmentOutcome::InWindow, "window probe");
    assert_eq!(c.data(Original, 0, 0, 1460), SegmentOutcome::InWindow, "retransmission");
}

#[test]
fn a_segment_half_the_space_away_is_not_near() {
    let mut c = Connection::new();
    for at in [(1_i64 << 31) - 50, 1 << 31, (1 << 31) + 50] {
        assert_eq!(c.data(Original, at, 0, 100), WINDOW, "{at}");
    }
}

#[test]
fn time_changes_no_bound() {
    let mut c = Connection::new();
    c.now = T0 + 100_000_000 * MS;
    assert_eq!(c.data(Original, REACH + 1, 0, 0), WINDOW);
    assert_eq!(c.data(Original, REACH, 0, 0), SegmentOutcome::InWindow);
}

/// A segment with this sequence number.
fn about(seq: u32) -> Tcp {
    Tcp { seq, ack: 0, flags: Tcp::ACK, window: 0, payload: 0, wscale: None, sack_permitted: false }
}

#[test]
fn doubts_are_asked_about_and_judged_by_the_answers() {
    let t = |ms: u32| T0 + ms * MS;
    let knows = |live| Connection::new().track.snapshot(T0, live);
    // Both others answer.
    let mut track = Connection::new().track;
    assert_eq!(track.resolve(&about(77), 2, false, t(0)), Resolution::QueryPeers);
    assert_eq!(track.resolve(&about(77), 2, false, t(1)), Resolution::AwaitReplies);
    assert!(!track.record_reply(2, &knows(false), 2, t(1)));
    assert!(!track.record_reply(2, &knows(false), 2, t(1)), "the same one again");
    assert!(track.record_reply(3, &knows(false), 2, t(1)));
    assert_eq!(track.resolve(&about(77), 2, false, t(1)), Resolution::Strict);
    assert_eq!(
        track.resolve(&about(78), 2, false, t(5)),
        Resolution::QueryPeers,
        "another packet needs another answer"
    );
    // One that sees it may show that it belongs; only all of them that it does not.
    assert!(track.record_reply(3, &knows(true), 2, t(5)));
    assert_eq!(track.resolve(&about(78), 2, false, t(6)), Resolution::AwaitReplies);
    assert!(track.record_reply(2, &knows(false), 2, t(6)));
    assert_eq!(track.resolve(&about(78), 2, false, t(6)), Resolution::Strict);
    let acks_more = Tcp { ack: 1, ..about(78) };
    assert_eq!(
        track.resolve(&acks_more, 2, false, t(7)),
        Resolution::QueryPeers,
        "the same data, another acknowledgement"
    );
    // Nobody answers: one packet, then another question.
    let mut track = Connection::new().track;
    assert_eq!(track.resolve(&about(77), 2, false, t(0)), Resolution::QueryPeers);
    assert!(!track.record_reply(2, &knows(false), 2, t(1)));
    assert_eq!(track.resolve(&about(77), 2, false, t(245)), Resolution::AwaitReplies);
    assert_eq!(track.resolve(&about(77), 2, false, t(250)), Resolution::Provisional);
    assert!(track.allow_provisional(Original));
    assert_eq!(track.resolve(&about(77), 2, false, t(495)), Resolution::Provisional, "for the other direction, too");
    assert!(track.allow_provisional(Reply) && !track.allow_provisional(Original));
    assert_eq!(track.resolve(&about(77), 2, false, t(500)), Resolution::QueryPeers);
    assert_eq!(track.resolve(&about(77), 2, false, t(10_750)), Resolution::QueryPeers, "too long ago");
    // Whoever came later, or restarted, proves nothing by its ignorance: what it knew is taken from one packet.
    let restarted = |live| Connection::unseen().track.snapshot(T0, live);
    let mut track = Connection::new().track;
    assert_eq!(track.resolve(&about(77), 1, false, t(0)), Resolution::QueryPeers);
    assert!(track.record_reply(2, &restarted(false), 1, t(1)));
    assert_eq!(track.resolve(&about(78), 1, false, t(2)), Resolution::Provisional);
    assert!(track.allow_provisional(Original) && track.allow_provisional(Reply), "one of each direction");
    assert_eq!(track.resolve(&about(77), 1, false, t(2)), Resolution::Provisional);
    assert!(!track.allow_provisional(Original) && !track.allow_provisional(Reply));
    assert_eq!(track.resolve(&about(77), 1, false, t(252)), Resolution::QueryPeers);
    assert!(track.record_reply(2, &restarted(false), 1, t(253)));
    assert!(track.allow_provisional(Original), "of each question");
    // Unless one sees it.
    let mut track = Connection::new().track;
    assert_eq!(track.resolve(&about(77), 2, false, t(0)), Resolution::QueryPeers);
    assert!(!track.record_reply(2, &restarted(false), 2, t(1)));
    assert!(track.record_reply(3, &knows(true), 2, t(1)));
    assert_eq!(track.resolve(&about(77), 2, false, t(2)), Resolution::Strict);
    let mut track = Connection::unseen().track;
    assert_eq!(track.resolve(&about(77), 1, false, t(0)), Resolution::QueryPeers);
    assert!(track.record_reply(2, &restarted(true), 1, t(1)));
    assert_eq!(track.resolve(&about(77), 1, false, t(1)), Resolution::Strict);
    // It alone.
    let mut track = Connection::unseen().track;
    assert_eq!(track.resolve(&about(77), 0, false, t(0)), Resolution::Provisional);
    assert!(track.allow_provisional(Original));
    assert_eq!(track.resolve(&about(78), 0, false, t(1)), Resolution::Provisional);
    assert!(!track.allow_provisional(Original));
    assert_eq!(track.resolve(&about(78), 0, false, t(250)), Resolution::Provisional);
    assert!(track.allow_provisional(Original));
    // A question that was answered stays answered, also when there are more members than were asked.
    let mut track = Connection::new().track;
    assert_eq!(track.resolve(&about(77), 1, false, t(0)), Resolution::QueryPeers);
    assert!(track.record_reply(2, &knows(false), 1, t(1)));
    assert_eq!(track.resolve(&about(78), 2, false, t(300)), Resolution::QueryPeers);
    // Alone, there is nobody to ask.
    assert_eq!(Connection::new().track.resolve(&about(77), 0, false, t(0)), Resolution::Strict);
}

#[test]
fn what_another_member_knows_moves_the_bounds() {
    let far = 1_i64 << 31;
    let (mut here, mut there) = (Connection::new(), Connection::new());
    there.now = T0 + 5000 * MS;
    there.nobody = true;
    assert_eq!(there.data(Reply, 100, far, 0), SegmentOutcome::Inconclusive);
    assert_eq!(there.data(Original, far, 100, 0), SegmentOutcome::InWindow);
    here.now = there.now;
    assert_eq!(here.data(Original, far, 100, 0), WINDOW);
    here.track.record_reply(2, &there.track.snapshot(there.now, true), 1, here.now);
    assert_eq!(here.data(Original, far, 100, 0), SegmentOutcome::InWindow);
    assert_eq!(here.data(Original, 0, 0, 0), WINDOW);
    // What is older changes nothing.
    let before = here.track.directions;
    here.track.record_reply(3, &Connection::new().track.snapshot(here.now, false), 1, here.now);
    assert_eq!(here.track.directions[0].seq_end, before[0].seq_end);
}

#[test]
fn a_connection_of_unknown_age_is_taken_up_where_its_directions_agree() {
    let mut c = Connection::unseen();
    let before = c.track;
    assert_eq!(c.data(Reply, 1 << 30, 77_777_777, 1000), SegmentOutcome::Inconclusive);
    // Forged ones, before and after, take nothing from it: neither by their numbers nor as its answer.
    assert_eq!(c.data(Original, 999_999_999, 5, 1000), SegmentOutcome::Inconclusive);
    assert_eq!(c.data(Original, 77_777_777, 5, 1000), SegmentOutcome::Inconclusive);
    assert_eq!(c.data(Original, 5, (1 << 30) + 1000, 1000), SegmentOutcome::Inconclusive);
    assert_eq!(c.send(Original, Tcp::RST, 123_456_789, 0, 0), SegmentOutcome::Inconclusive);
    assert_eq!(c.track, before);
    assert_eq!(c.data(Original, 77_777_777, (1 << 30) + 1000, 1000), SegmentOutcome::InWindow);
    assert!(!c.track.snapshot(c.now, true).history_incomplete);
    c.nobody = false;
    assert_eq!(c.data(Reply, 0, 77_777_777, 1000), WINDOW);
    assert_eq!(c.data(Original, 0, (1 << 30) + 1000, 1000), WINDOW);
    assert_eq!(c.data(Reply, (1 << 30) + 1000, 77_778_777, 1000), SegmentOutcome::InWindow);
}

#[test]
fn a_rst_agrees_only_if_it_is_exact() {
    let mut c = Connection::unseen();
    assert_eq!(c.data(Original, 1 << 30, 77_777_777, 1000), SegmentOutcome::Inconclusive);
    assert_eq!(c.send(Reply, Tcp::RST, 77_777_778, 0, 0), SegmentOutcome::Inconclusive);
    // It is no word.
    c.words[1] = None;
    assert_eq!(c.send(Reply, Tcp::RST, 77_777_777, 0, 0), SegmentOutcome::Rst);
}

#[test]
fn whoever_never_missed_anything_tells_what_a_gap_missed() {
    let mut late = Connection::unseen().track;
    let mut knows = Connection::new();
    late.merge_snapshot(&Connection::unseen().track.snapshot(T0, true), T0);
    assert!(late.snapshot(T0, true).history_incomplete);
    knows.data(Original, 0, 0, 100);
    late.merge_snapshot(&knows.track.snapshot(T0, true), T0);
    assert!(!late.snapshot(T0, true).history_incomplete);
}

#[test]
fn flags_that_do_not_belong() {
    let mut c = Connection::new();
    for flags in [0, Tcp::FIN, Tcp::PSH, Tcp::SYN, Tcp::SYN | Tcp::ACK] {
        assert_eq!(c.send(Original, flags, 0, 0, 0), SegmentOutcome::Invalid(Reason::TcpFlags), "{flags:#x}");
    }
    assert_eq!(c.state(), "ESTABLISHED");
}

#[test]
fn closing_goes_through_all_states() {
    let mut c = Connection::new();
    assert_eq!(c.send(Original, Tcp::FIN | Tcp::ACK, 0, 0, 10), SegmentOutcome::Fin(ISN[0].wrapping_add(12)));
    assert_eq!(c.state(), "FIN_WAIT");
    assert!(!c.track.take_fin_close());
    assert_eq!(c.data(Original, 11, 0, 1), WINDOW, "nothing comes after a FIN");
    assert_eq!(c.data(Reply, 0, 12, 0), WINDOW, "nor is more acknowledged");
    assert_eq!(c.data(Reply, 0, 11, 100), SegmentOutcome::InWindow);
    assert_eq!(c.state(), "CLOSE_WAIT");
    assert_eq!(c.data(Reply, 100, 11, 100), SegmentOutcome::InWindow, "the other direction goes on");
    assert_eq!(c.send(Reply, Tcp::FIN | Tcp::ACK, 200, 11, 0), SegmentOutcome::Fin(ISN[1].wrapping_add(202)));
    assert_eq!(c.state(), "LAST_ACK");
    assert!(c.track.take_fin_close());
    assert!(!c.track.take_fin_close(), "once");
    assert_eq!(c.data(Original, 11, 201, 0), SegmentOutcome::InWindow);
    c.closed = Some(CloseCause::Fin);
    assert_eq!(c.state(), "TIME_WAIT");
}

#[test]
fn who_did_not_see_the_replys_fin_does_not_propose() {
    let mut c = Connection::new();
    c.send(Original, Tcp::FIN | Tcp::ACK, 0, 0, 0);
    c.track.record_peer_fin(Reply, ISN[1].wrapping_add(2));
    assert!(c.track.both_fins_known());
    assert!(!c.track.take_fin_close());
    assert_eq!(c.track.take_overdue_close(), Some(CloseCause::Fin));

    let mut c = Connection::new();
    c.send(Reply, Tcp::FIN | Tcp::ACK, 0, 0, 0);
    assert!(!c.track.take_fin_close());
    c.track.record_peer_fin(Original, ISN[0].wrapping_add(2));
    assert!(c.track.take_fin_close());
}

#[test]
fn a_rst_must_be_exact() {
    let mut c = Connection::new();
    assert_eq!(c.data(Original, 0, 0, 1000), SegmentOutcome::InWindow);
    assert_eq!(c.send(Original, Tcp::RST, 999, 0, 0), SegmentOutcome::Invalid(Reason::TcpRst));
    assert_eq!(c.send(Original, Tcp::RST, 1001, 0, 0), SegmentOutcome::Invalid(Reason::TcpRst));
    assert_eq!(c.send(Original, Tcp::RST, REACH + 1001, 0, 0), SegmentOutcome::Invalid(Reason::TcpRst));
    assert_eq!(c.send(Original, Tcp::RST, 1000, 0, 0), SegmentOutcome::Rst, "the edge");
    assert!(c.track.take_rst_close());
    assert!(!c.track.take_rst_close(), "once");

    let mut c = Connection::new();
    assert_eq!(c.data(Original, 0, 0, 1000), SegmentOutcome::InWindow);
    assert_eq!(c.data(Reply, 0, 500, 0), SegmentOutcome::InWindow);
    assert_eq!(c.send(Original, Tcp::RST, 500, 0, 0), SegmentOutcome::Rst, "what the other end expects");
    assert_eq!(c.track.take_overdue_close(), Some(CloseCause::Rst));
}

#[test]
fn after_a_fin_a_rst_in_the_window_is_enough() {
    let mut c = Connection::new();
    c.send(Original, Tcp::FIN | Tcp::ACK, 0, 0, 0);
    assert_eq!(c.send(Reply, Tcp::RST, 77, 0, 0), SegmentOutcome::Rst);
}

#[test]
fn what_does_not_belong_changes_nothing() {
    let mut c = Connection::new();
    c.data(Original, 0, 0, 100);
    let before = c.track;
    c.data(Original, REACH * 2, 0, 100);
    c.data(Original, 100, REACH * 2, 100);
    c.send(Original, Tcp::SYN, 0, 0, 0);
    c.send(Original, Tcp::RST, 7, 0, 0);
    c.send(Original, Tcp::FIN | Tcp::ACK, REACH * 2, 0, 0);
    assert_eq!(c.track, before);
}

#[test]
fn after_the_close_only_what_was_sent_before_belongs() {
    let gone = SegmentOutcome::Invalid(Reason::NoSession);
    let mut c = Connection::new();
    c.send(Original, Tcp::FIN | Tcp::ACK, 0, 0, 100);
    c.send(Reply, Tcp::FIN | Tcp::ACK, 0, 101, 50);
    c.closed = Some(CloseCause::Fin);
    assert_eq!(c.data(Original, 101, 51, 0), SegmentOutcome::InWindow, "the last ACK");
    assert_eq!(
        c.send(Reply, Tcp::FIN | Tcp::ACK, 0, 101, 50),
        SegmentOutcome::Fin(ISN[1].wrapping_add(52)),
        "its FIN again"
    );
    assert_eq!(c.data(Original, 0, 51, 100), SegmentOutcome::InWindow, "retransmitted data");
    assert_eq!(c.data(Original, 102, 51, 0), gone, "a successor's");
    assert_eq!(c.data(Original, 101, 52, 0), gone);
    assert_eq!(c.data(Original, 101, 51, 1), gone);
    c.now = T0 + 100_000 * MS;
    assert_eq!(c.data(Original, 5000, 51, 0), gone, "however long ago");

    let mut c = Connection::unseen();
    c.closed = Some(CloseCause::Rst);
    assert_eq!(c.state(), "CLOSE");
    assert_eq!(c.data(Original, 0, 0, 0), gone, "nothing is known, so nothing belongs");
}

#[test]
fn icmp_errors_quote_what_was_sent() {
    let mut c = Connection::new();
    c.data(Original, 0, 0, 1000);
    let quoted =
        |c: &Connection, seq: u32| c.track.sent([&c.ends[0], &c.ends[1]], Original, ISN[0].wrapping_add(seq), c.now);
    assert!(quoted(&c, 1));
    assert!(quoted(&c, 1001));
    assert!(!quoted(&c, 1 << 20));
    c.now = T0 + 3000 * MS;
    assert!(quoted(&c, 1 << 20));
}

/// A reference: any two ends that keep to their windows, any loss, any reordering within a window, any choice of member
/// for each packet of each direction: no member drops a packet.
mod legitimate {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn traffic_passes_whichever_member_sees_it(
            steps in prop::collection::vec((any::<bool>(), 0_usize..3, 0_u32..65_000, 0_u8..4, 0_u64..400), 1..400),
        ) {
            let mut members = [Connection::new(), Connection::new(), Connection::new()];
            // EndpointSnapshot, received by the other end, acknowledgement received.
            let mut sent = [0_i64; 2];
            let mut received = [0_i64; 2];
            let mut acked = [0_i64; 2];
            for (client, member, length, what, micros) in steps {
                let direction = if client { Original } else { Reply };
                let (s, r) = (index(direction), index(direction.flip()));
                for m in &mut members {
                    m.now = m.now + Duration::from_micros(micros);
                }
                let window = REACH - 1;
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
                members[member].doubt = WindowCheck::Relaxed;
                let mut seen = members[member].data(direction, seq, received[r], length as u32);
                if seen == SegmentOutcome::Inconclusive {
                    let now = members[member].now;
                    for (id, known) in (1..).zip(&known) {
                        members[member].track.record_reply(id, known, 2, now);
                    }
                    members[member].doubt = WindowCheck::Strict;
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

/// Every state, every combination of flags, both directions.
mod table {
    use super::*;

    /// The states of this table. `of` makes each of them; a new one does not compile without a decision in `decided`.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum State {
        SynSent,
        SynRecv,
        Established,
        /// The client's FIN was seen.
        FinWait,
        /// It was acknowledged.
        CloseWait,
        /// Both FINs were seen.
        LastAck,
        TimeWait,
        Close,
    }
    use self::State::*;

    const STATES: [State; 8] = [SynSent, SynRecv, Established, FinWait, CloseWait, LastAck, TimeWait, Close];

    /// What becomes of a segment whose numbers are right: those that its sender would put there.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Decision {
        /// It belongs.
        Pass,
        /// It belongs and ends its sender's data.
        Fin,
        /// It belongs and ends the connection.
        Reset,
        /// A copy of the handshake: it passes and changes nothing.
        Copy,
        /// It is held until more is known.
        Hold,
        /// It opens another connection, if the policy allows.
        Opens,
        /// INVALID.
        Flags,
        /// It is not of this connection.
        No,
    }
    use Decision::*;

    /// SYN, ACK, FIN, RST: what decides; PSH, URG and the ECN flags never do, and URG is the parser's.
    const FLAGS: [u8; 4] = [Tcp::SYN, Tcp::ACK, Tcp::FIN, Tcp::RST];

    fn decided(state: State, flags: u8, direction: Direction) -> Decision {
        const SYN: u8 = Tcp::SYN;
        const SYN_ACK: u8 = Tcp::SYN | Tcp::ACK;
        const ACK: u8 = Tcp::ACK;
        const FIN_ACK: u8 = Tcp::FIN | Tcp::ACK;
        const RST: u8 = Tcp::RST;
        const RST_ACK: u8 = Tcp::RST | Tcp::ACK;
        match (state, flags, direction) {
            // RFC 9293 section 3.10.7: a segment without SYN, ACK or RST is never valid; nor is SYN with FIN or RST, nor
            // FIN with RST.
            (_, 0, _) | (_, Tcp::FIN, _) => Flags,
            (_, f, _) if f & Tcp::SYN != 0 && f & (Tcp::FIN | Tcp::RST) != 0 => Flags,
            (_, f, _) if f & Tcp::FIN != 0 && f & Tcp::RST != 0 => Flags,

            (SynSent, SYN, Original) => Copy,
            // Simultaneous open (RFC 9293 section 3.5): a SYN from the other side, which a SYN-ACK of the client answers.
            (SynSent | SynRecv, SYN, Reply) => Copy,
            (SynSent | SynRecv, SYN_ACK, Reply) => Copy,
            (SynSent | SynRecv, SYN_ACK, Original) => Hold,
            // The SYN-ACK may have been elsewhere.
            (SynSent, ACK | FIN_ACK, _) => Hold,
            (SynSent, RST | RST_ACK, Original) => Reset,
            // RFC 9293 section 3.10.7.3: it must acknowledge the SYN.
            (SynSent, RST, Reply) => No,
            (SynSent, RST_ACK, Reply) => Reset,

            (SynRecv, SYN, Original) => Copy,
            (SynRecv, ACK | FIN_ACK, _) => Hold,
            (SynRecv, RST | RST_ACK, _) => Reset,

            // RFC 5961 section 4: a copy gets a challenge ACK.
            (Established | FinWait | CloseWait | LastAck, SYN | SYN_ACK, _) => Copy,
            (Established | FinWait | CloseWait | LastAck, ACK, _) => Pass,
            (Established | FinWait | CloseWait | LastAck, FIN_ACK, _) => Fin,
            (Established | FinWait | CloseWait | LastAck, RST | RST_ACK, _) => Reset,

            // RFC 9293 section 3.10.7.4, fifth: a new SYN may reuse the tuple.
            (TimeWait | Close, SYN | SYN_ACK, _) => Opens,
            (TimeWait | Close, ACK | RST | RST_ACK, _) => Pass,
            (TimeWait | Close, FIN_ACK, _) => Fin,

            (state, flags, direction) => panic!("nobody decided on {state:?}, {flags:#04x}, {direction:?}"),
        }
    }

    /// The connection in a state; `None`: it is half-open.
    fn of(state: State) -> Option<Connection> {
        const FIN: u8 = Tcp::FIN | Tcp::ACK;
        let mut c = Connection::new();
        match state {
            SynSent | SynRecv => return None,
            Established => {}
            FinWait => {
                c.send(Original, FIN, 0, 0, 0);
            }
            CloseWait => {
                c.send(Original, FIN, 0, 0, 0);
                c.data(Reply, 0, 1, 0);
            }
            LastAck | TimeWait | Close => {
                c.send(Original, FIN, 0, 0, 0);
                c.send(Reply, FIN, 0, 1, 0);
            }
        }
        c.closed = match state {
            TimeWait => Some(CloseCause::Fin),
            Close => Some(CloseCause::Rst),
            SynSent | SynRecv | Established | FinWait | CloseWait | LastAck => None,
        };
        Some(c)
    }

    /// What the code does.
    fn done(state: State, flags: u8, direction: Direction) -> Decision {
        use crate::pipeline::{HandshakeStep, step};
        let (s, r) = (index(direction), index(direction.flip()));
        let Some(c) = of(state) else {
            let ends = ends();
            let first = |at: usize| ISN[at].wrapping_add(1);
            let seq = if flags & Tcp::SYN != 0 { ISN[s] } else { first(s) };
            let tcp = Tcp { seq, ack: first(r), flags, window: 9, payload: 0, wscale: None, sack_permitted: false };
            let server = (state == SynRecv).then_some(&ends[1]);
            return match step(&ends[0], server, direction, &tcp, false, None) {
                Ok(
                    HandshakeStep::SynRetransmit
                    | HandshakeStep::SynAckRetransmit
                    | HandshakeStep::FirstSynAck
                    | HandshakeStep::SynAckNewIsn
                    | HandshakeStep::SimultaneousSyn,
                ) => Copy,
                Ok(
                    HandshakeStep::Ambiguous
                    | HandshakeStep::EarlyData
                    | HandshakeStep::AckInWindow
                    | HandshakeStep::FinalAck,
                ) => Hold,
                Ok(HandshakeStep::ChallengeAck | HandshakeStep::ChallengeRst) => panic!("its numbers are right"),
                Ok(HandshakeStep::Reset) => Reset,
                Ok(HandshakeStep::ClientPacket | HandshakeStep::ServerPacket) => panic!("not TCP"),
                Err(Reason::TcpFlags) => Flags,
                Err(_) => No,
            };
        };
        if flags & Tcp::SYN != 0 {
            let tcp = Tcp {
                seq: ISN[s],
                ack: ISN[r].wrapping_add(1),
                flags,
                window: 9,
                payload: 0,
                wscale: None,
                sack_permitted: false,
            };
            return match crate::pipeline::syn(&c.ends[0], &c.ends[1], direction, &tcp, c.closed) {
                Some(Verdict::Forward) => Copy,
                Some(Verdict::Drop(Reason::TcpFlags)) => Flags,
                Some(other) => panic!("{other:?}"),
                None => Opens,
            };
        }
        let mut c = c;
        // Its FIN, if it sent one, is the last of its sequence numbers, and is repeated; all is acknowledged.
        let (sent, got) = (c.track.directions[s], c.track.directions[r]);
        let seq = if flags & Tcp::FIN != 0 && sent.fin_known { sent.seq_end.wrapping_sub(1) } else { sent.seq_end };
        let tcp = Tcp { seq, ack: got.seq_end, flags, window: 9, payload: 0, wscale: None, sack_permitted: false };
        match c.track.check_segment([&c.ends[0], &c.ends[1]], direction, &tcp, c.closed, WindowCheck::Relaxed, c.now) {
            SegmentOutcome::InWindow => Pass,
            SegmentOutcome::Fin(_) => Fin,
            SegmentOutcome::Rst => Reset,
            SegmentOutcome::Invalid(Reason::TcpFlags) => Flags,
            SegmentOutcome::Invalid(_) | SegmentOutcome::Inconclusive => No,
        }
    }

    #[test]
    fn every_combination_is_decided() {
        let mut seen = [0; 8];
        for state in STATES {
            for set in 0..1_u8 << FLAGS.len() {
                let flags = (0..FLAGS.len()).filter(|n| set >> n & 1 == 1).fold(0, |f, n| f | FLAGS[n]);
                for direction in [Original, Reply] {
                    let expected = decided(state, flags, direction);
                    // Whatever else is set changes nothing.
                    for other in [0, Tcp::PSH, Tcp::URG, 0x40, 0x80, 0xe8] {
                        let done = done(state, flags | other, direction);
                        assert_eq!(done, expected, "{state:?}, {flags:#04x} + {other:#04x}, {direction:?}");
                    }
                    seen[expected as usize] += 1;
                }
            }
        }
        assert!(seen.iter().all(|n| *n > 0), "each decision is made somewhere: {seen:?}");
    }

    #[test]
    fn the_states_are_those_that_are_shown() {
        let shown: Vec<_> = STATES.iter().filter_map(|s| of(*s)).map(|c| c.state()).collect();
        assert_eq!(shown, ["ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE"]);
    }
}
