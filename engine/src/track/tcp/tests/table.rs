//! The state table of [`super`]: every state, every combination of flags, both directions.

use super::*;
use crate::verdict::Verdict;

/// The states of this table. `connection_in` makes each of them; a new one does not compile without that.
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

/// The decision on a segment with the numbers that a correct sender would put there.
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
    /// It opens another connection, if policy allows.
    Opens,
    /// INVALID.
    Flags,
    /// It is not of this connection.
    No,
}
use Decision::*;

/// The flags that decide. PSH, URG and the ECN flags never do.
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
        // The SYN-ACK may have passed at another member.
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

/// The connection in a state. `None`: it is half-open.
fn connection_in(state: State) -> Option<Connection> {
    const FIN: u8 = Tcp::FIN | Tcp::ACK;
    let mut connection = Connection::new();
    match state {
        SynSent | SynRecv => return None,
        Established => {}
        FinWait => {
            connection.send(Original, FIN, 0, 0, 0);
        }
        CloseWait => {
            connection.send(Original, FIN, 0, 0, 0);
            connection.data(Reply, 0, 1, 0);
        }
        LastAck | TimeWait | Close => {
            connection.send(Original, FIN, 0, 0, 0);
            connection.send(Reply, FIN, 0, 1, 0);
        }
    }
    connection.closed = match state {
        TimeWait => Some(CloseCause::Fin),
        Close => Some(CloseCause::Rst),
        SynSent | SynRecv | Established | FinWait | CloseWait | LastAck => None,
    };
    Some(connection)
}

/// The decision of the code.
fn done(state: State, flags: u8, direction: Direction) -> Decision {
    use crate::pipeline::{HandshakeStep, TcpHandshake};
    let (s, r) = (direction, direction.flip());
    let Some(connection) = connection_in(state) else {
        let syns = syns();
        let first = |of: Direction| ISN[of].wrapping_add(1);
        let seq = if flags & Tcp::SYN != 0 { ISN[s] } else { first(s) };
        let tcp = Tcp { seq, ack: first(r), flags, window: 9, payload: 0, wscale: None, sack_permitted: false };
        let server = (state == SynRecv).then_some(&syns.reply);
        let handshake = TcpHandshake { client: &syns.original, server, proposed: false, challenge: None };
        return match handshake.classify(direction, &tcp) {
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
        return match crate::pipeline::judge_syn(&connection.syns, direction, &tcp, connection.closed) {
            Some(Verdict::Forward) => Copy,
            Some(Verdict::Drop(Reason::TcpFlags)) => Flags,
            Some(other) => panic!("{other:?}"),
            None => Opens,
        };
    }
    let mut connection = connection;
    // The sender's FIN, if it sent one, has the last of its sequence numbers, and is repeated. Everything is acknowledged.
    let (sent, got) = (connection.track.directions[s], connection.track.directions[r]);
    let seq = if flags & Tcp::FIN != 0 && sent.fin_known { sent.seq_end.wrapping_sub(1) } else { sent.seq_end };
    let tcp = Tcp { seq, ack: got.seq_end, flags, window: 9, payload: 0, wscale: None, sack_permitted: false };
    match connection.track.check_segment(
        &connection.syns,
        direction,
        &tcp,
        connection.closed,
        WindowCheck::Relaxed,
        connection.now,
    ) {
        SegmentOutcome::InWindow => Pass,
        SegmentOutcome::Fin(_) => Fin,
        SegmentOutcome::Rst => Reset,
        SegmentOutcome::Invalid(Reason::TcpFlags) => Flags,
        SegmentOutcome::Invalid(_) | SegmentOutcome::Inconclusive => No,
    }
}

#[test]
fn state_table_decides_every_combination() {
    let mut seen = [0; 8];
    for state in STATES {
        for set in 0..1_u8 << FLAGS.len() {
            let flags = (0..FLAGS.len()).filter(|n| set >> n & 1 == 1).fold(0, |f, n| f | FLAGS[n]);
            for direction in [Original, Reply] {
                let expected = decided(state, flags, direction);
                // Other flags change nothing.
                for other in [0, Tcp::PSH, Tcp::URG, 0x40, 0x80, 0xe8] {
                    let done = done(state, flags | other, direction);
                    assert_eq!(done, expected, "{state:?}, {flags:#04x} + {other:#04x}, {direction:?}");
                }
                seen[expected as usize] += 1;
            }
        }
    }
    assert!(seen.iter().all(|n| *n > 0), "each decision occurs: {seen:?}");
}

#[test]
fn state_table_has_the_states_that_are_shown() {
    let shown: Vec<_> = STATES.iter().filter_map(|s| connection_in(*s)).map(|connection| connection.state()).collect();
    assert_eq!(shown, ["ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE"]);
}
