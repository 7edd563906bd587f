use super::*;
use Direction::{Original, Reply};

const T0: Time = Time(1_000_000_000);
const MS: Duration = Duration::from_millis(1);
const ISN: [u32; 2] = [1000, 0xffff_ff00];

fn ends() -> [TcpEnd; 2] {
    ISN.map(|isn| TcpEnd { isn, window: 64240, wscale: Some(2), sack: true })
}

/// A connection of which this member saw the handshake at `T0`.
struct Connection {
    track: Track,
    ends: [TcpEnd; 2],
    closed: Option<CloseCause>,
    now: Time,
}

impl Connection {
    fn new() -> Connection {
        let ends = ends();
        Connection { track: Track::new(&ends[0], &ends[1], Some(T0)), ends, closed: None, now: T0 }
    }

    fn unseen() -> Connection {
        let ends = ends();
        Connection { track: Track::new(&ends[0], &ends[1], None), ..Connection::new() }
    }

    /// Sequence numbers count from the first byte of data.
    fn send(&mut self, direction: Direction, flags: u8, seq: i64, ack: i64, payload: u32) -> Seen {
        let (s, r) = (index(direction), index(direction.flip()));
        let tcp = Tcp {
            seq: ISN[s].wrapping_add(1).wrapping_add(seq as u32),
            ack: ISN[r].wrapping_add(1).wrapping_add(ack as u32),
            flags,
            window: 500,
            payload,
            wscale: None,
            sack_permitted: false,
        };
        self.track.segment([&self.ends[0], &self.ends[1]], direction, &tcp, self.closed, self.now)
    }

    fn data(&mut self, direction: Direction, seq: i64, ack: i64, payload: u32) -> Seen {
        self.send(direction, Tcp::ACK, seq, ack, payload)
    }

    fn state(&self) -> &'static str {
        self.track.state(self.closed)
    }
}

const REACH: i64 = (65_535 << 2) + 1;
const WINDOW: Seen = Seen::Not(Reason::TcpWindow);

#[test]
fn scale_counts_only_if_both_ends_offered_it() {
    let [with, other] = ends();
    let without = TcpEnd { wscale: None, ..other };
    assert_eq!(reach(&with, &other), REACH);
    assert_eq!(reach(&with, &without), 65_536);
    assert_eq!(reach(&without, &with), 65_536);
    assert_eq!(reach(&TcpEnd { wscale: Some(14), ..with }, &other), (65_535 << 14) + 1);
}

#[test]
fn one_direction_alone_is_enough() {
    for direction in [Original, Reply] {
        let mut c = Connection::new();
        let mut at = 0;
        for _ in 0..1000 {
            assert_eq!(c.data(direction, at, 0, 65_000), Seen::Pass);
            at += 65_000;
        }
        let mut c = Connection::new();
        for n in 0..1000 {
            assert_eq!(c.data(direction, 0, n * 65_000, 0), Seen::Pass, "acknowledgements alone, {n}");
        }
    }
}

#[test]
fn data_is_bounded_above_and_below() {
    let mut c = Connection::new();
    assert_eq!(c.data(Original, REACH + 1, 0, 0), WINDOW);
    assert_eq!(c.data(Original, REACH - 999, 0, 1000), WINDOW);
    assert_eq!(c.data(Original, REACH - 1000, 0, 1000), Seen::Pass);
    assert_eq!(c.data(Original, 0, 0, 1), Seen::Pass, "a retransmission of all of it");
    assert_eq!(c.data(Original, -1, 0, 1), WINDOW);
}

#[test]
fn acknowledgements_are_bounded_above_and_below() {
    let mut c = Connection::new();
    assert_eq!(c.data(Original, 0, REACH + 1, 0), WINDOW);
    assert_eq!(c.data(Original, 0, REACH, 0), Seen::Pass);
    assert_eq!(c.data(Original, 0, -REACH, 0), Seen::Pass);
    assert_eq!(c.data(Original, 0, -REACH - 1, 0), WINDOW);
}

#[test]
fn probes_keepalives_and_super_segments_pass() {
    let mut c = Connection::new();
    assert_eq!(c.data(Original, 0, 0, 65_483), Seen::Pass);
    assert_eq!(c.data(Original, 65_482, 0, 0), Seen::Pass, "keep-alive");
    assert_eq!(c.data(Original, 65_482, 0, 1), Seen::Pass, "keep-alive with a byte");
    assert_eq!(c.data(Original, 65_483, 0, 1), Seen::Pass, "window probe");
    assert_eq!(c.data(Original, 0, 0, 1460), Seen::Pass, "retransmission");
}

#[test]
fn the_bound_grows_with_silence_and_is_lifted_after_two_seconds() {
    let far = REACH + 1_250_000;
    let mut c = Connection::new();
    c.now = T0 + MS / 2;
    assert_eq!(c.data(Original, far, 0, 0), WINDOW);
    c.now = T0 + MS;
    assert_eq!(c.data(Original, far, 0, 0), Seen::Pass);

    let mut c = Connection::new();
    c.now = T0 + 1900 * MS;
    assert_eq!(c.data(Original, REACH + (1 << 28) + 1, 0, 0), WINDOW, "never beyond 2^28");
    c.now = T0 + 2001 * MS;
    assert_eq!(c.data(Original, 1 << 30, 1 << 29, 0), Seen::Pass);
    assert_eq!(c.data(Original, 0, 1 << 29, 0), WINDOW, "the edge was set anew");
    assert_eq!(c.data(Reply, 1 << 29, 1 << 30, 100), Seen::Pass, "and the other end's by the acknowledgement");
}

#[test]
fn a_connection_of_unknown_age_is_taken_up_anywhere() {
    let mut c = Connection::unseen();
    assert_eq!(c.data(Reply, 1 << 30, 77_777_777, 1000), Seen::Pass);
    assert_eq!(c.data(Reply, 0, 77_777_777, 1000), WINDOW);
    assert_eq!(c.data(Original, 77_777_777, (1 << 30) + 1000, 1000), Seen::Pass);
    assert_eq!(c.data(Original, 0, (1 << 30) + 1000, 1000), WINDOW);
}

#[test]
fn flags_that_do_not_belong() {
    let mut c = Connection::new();
    for flags in [0, Tcp::FIN, Tcp::PSH, Tcp::SYN, Tcp::SYN | Tcp::ACK] {
        assert_eq!(c.send(Original, flags, 0, 0, 0), Seen::Not(Reason::TcpFlags), "{flags:#x}");
    }
    assert_eq!(c.state(), "ESTABLISHED");
}

#[test]
fn closing_goes_through_all_states() {
    let mut c = Connection::new();
    assert_eq!(c.send(Original, Tcp::FIN | Tcp::ACK, 0, 0, 10), Seen::Fin(ISN[0].wrapping_add(12)));
    assert_eq!(c.state(), "FIN_WAIT");
    assert!(!c.track.propose_close());
    assert_eq!(c.data(Original, 11, 0, 1), WINDOW, "nothing comes after a FIN");
    assert_eq!(c.data(Reply, 0, 12, 0), WINDOW, "nor is more acknowledged");
    assert_eq!(c.data(Reply, 0, 11, 100), Seen::Pass);
    assert_eq!(c.state(), "CLOSE_WAIT");
    assert_eq!(c.data(Reply, 100, 11, 100), Seen::Pass, "the other direction goes on");
    assert_eq!(c.send(Reply, Tcp::FIN | Tcp::ACK, 200, 11, 0), Seen::Fin(ISN[1].wrapping_add(202)));
    assert_eq!(c.state(), "LAST_ACK");
    assert!(c.track.propose_close());
    assert!(!c.track.propose_close(), "once");
    assert_eq!(c.data(Original, 11, 201, 0), Seen::Pass);
    c.closed = Some(CloseCause::Fin);
    assert_eq!(c.state(), "TIME_WAIT");
}

#[test]
fn who_did_not_see_the_replys_fin_does_not_propose() {
    let mut c = Connection::new();
    c.send(Original, Tcp::FIN | Tcp::ACK, 0, 0, 0);
    c.track.fin_elsewhere(Reply, ISN[1].wrapping_add(2));
    assert!(c.track.finished());
    assert!(!c.track.propose_close());
    assert_eq!(c.track.overdue(), Some(CloseCause::Fin));

    let mut c = Connection::new();
    c.send(Reply, Tcp::FIN | Tcp::ACK, 0, 0, 0);
    assert!(!c.track.propose_close());
    c.track.fin_elsewhere(Original, ISN[0].wrapping_add(2));
    assert!(c.track.propose_close());
}

#[test]
fn a_rst_must_be_exact() {
    let mut c = Connection::new();
    assert_eq!(c.data(Original, 0, 0, 1000), Seen::Pass);
    assert_eq!(c.send(Original, Tcp::RST, 999, 0, 0), Seen::Not(Reason::TcpRst));
    assert_eq!(c.send(Original, Tcp::RST, 1001, 0, 0), Seen::Not(Reason::TcpRst));
    assert_eq!(c.send(Original, Tcp::RST, REACH + 1001, 0, 0), WINDOW);
    assert_eq!(c.send(Original, Tcp::RST, 1000, 0, 0), Seen::Reset, "the edge");
    assert!(c.track.propose_reset());
    assert!(!c.track.propose_reset(), "once");

    let mut c = Connection::new();
    assert_eq!(c.data(Original, 0, 0, 1000), Seen::Pass);
    assert_eq!(c.data(Reply, 0, 500, 0), Seen::Pass);
    assert_eq!(c.send(Original, Tcp::RST, 500, 0, 0), Seen::Reset, "what the other end expects");
    assert_eq!(c.track.overdue(), Some(CloseCause::Rst));
}

#[test]
fn after_a_fin_a_rst_in_the_window_is_enough() {
    let mut c = Connection::new();
    c.send(Original, Tcp::FIN | Tcp::ACK, 0, 0, 0);
    assert_eq!(c.send(Reply, Tcp::RST, 77, 0, 0), Seen::Reset);
}

#[test]
fn a_rst_that_can_not_be_judged_passes_and_changes_nothing() {
    let mut c = Connection::unseen();
    let before = c.track;
    assert_eq!(c.send(Original, Tcp::RST, 123_456_789, 0, 0), Seen::Pass);
    assert_eq!(c.track, before);
    let mut c = Connection::new();
    c.now = T0 + 3000 * MS;
    let before = c.track;
    assert_eq!(c.send(Original, Tcp::RST, 77, 0, 0), Seen::Pass);
    assert_eq!(c.send(Original, Tcp::RST, REACH + 1, 0, 0), WINDOW);
    assert_eq!(c.track, before);
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
    let gone = Seen::Not(Reason::NoSession);
    let mut c = Connection::new();
    c.send(Original, Tcp::FIN | Tcp::ACK, 0, 0, 100);
    c.send(Reply, Tcp::FIN | Tcp::ACK, 0, 101, 50);
    c.closed = Some(CloseCause::Fin);
    assert_eq!(c.data(Original, 101, 51, 0), Seen::Pass, "the last ACK");
    assert_eq!(c.send(Reply, Tcp::FIN | Tcp::ACK, 0, 101, 50), Seen::Fin(ISN[1].wrapping_add(52)), "its FIN again");
    assert_eq!(c.data(Original, 0, 51, 100), Seen::Pass, "retransmitted data");
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
            // Sent, received by the other end, acknowledgement received.
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
                let seen = members[member].data(direction, seq, received[r], length as u32);
                prop_assert_eq!(seen, Seen::Pass);
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
