//! Every state of a connection, every combination of flags, both directions; for flags that a correct end sends, numbers
//! that are right and numbers that are wrong. What follows shows whether both trackers made the same of it.

use std::time::Duration;

use crate::catalogue::Conn;
use crate::packet::{ACK, FIN, RST, SYN, Side};
use crate::play::{Arena, Play};

/// How a connection gets into a state, and the next numbers of client and server then.
type State = (&'static str, fn(&Conn, &mut Play<'_>), [i64; 2]);

const STATES: &[State] = &[
    ("none", |_, _| {}, [-1, -1]),
    ("SYN_SENT", |c, p| _ = c.syn(p), [0, -1]),
    ("SYN_RECV", |c, p| _ = c.syn(p) && c.syn_ack(p), [0, 0]),
    ("refused", |c, p| _ = c.syn(p) && c.s(p, RST | ACK, -1, 0, 0), [0, 0]),
    ("ESTABLISHED", |c, p| c.open(p), [0, 0]),
    ("ESTABLISHED with data", with_data, [3000, 2000]),
    ("contested", contested, [3000, 2000]),
    ("FIN_WAIT by client", |c, p| closing(c, p, &[Side::Client]), [3001, 2000]),
    ("FIN_WAIT by server", |c, p| closing(c, p, &[Side::Server]), [3000, 2001]),
    ("CLOSE_WAIT", close_wait, [3001, 2000]),
    ("LAST_ACK", |c, p| closing(c, p, &[Side::Client, Side::Server]), [3001, 2001]),
    ("TIME_WAIT", time_wait, [3001, 2001]),
    ("CLOSE by client", |c, p| reset(c, p, Side::Client), [3000, 2000]),
    ("CLOSE by server", |c, p| reset(c, p, Side::Server), [3000, 2000]),
];

fn with_data(c: &Conn, play: &mut Play<'_>) {
    c.open(play);
    c.c(play, ACK, 0, 0, 1000);
    c.s(play, ACK, 0, 1000, 1000);
    c.c(play, ACK, 1000, 1000, 1000);
    c.s(play, ACK, 1000, 2000, 1000);
    c.c(play, ACK, 2000, 2000, 1000);
    c.s(play, ACK, 2000, 3000, 0);
}

/// The client has restarted and tries again.
fn contested(c: &Conn, play: &mut Play<'_>) {
    with_data(c, play);
    c.c(play, SYN, 1 << 20, 0, 0);
}

fn closing(c: &Conn, play: &mut Play<'_>, who: &[Side]) {
    with_data(c, play);
    for side in who {
        match side {
            Side::Client => c.c(play, FIN | ACK, 3000, 2000, 0),
            // Either knows of the other's FIN, or both cross.
            Side::Server => c.s(play, FIN | ACK, 2000, 3000, 0),
        };
    }
}

fn close_wait(c: &Conn, play: &mut Play<'_>) {
    closing(c, play, &[Side::Client]);
    c.s(play, ACK, 2000, 3001, 0);
}

fn time_wait(c: &Conn, play: &mut Play<'_>) {
    close_wait(c, play);
    c.s(play, FIN | ACK, 2000, 3001, 0);
    c.c(play, ACK, 3001, 2001, 0);
}

fn reset(c: &Conn, play: &mut Play<'_>, from: Side) {
    with_data(c, play);
    match from {
        Side::Client => c.c(play, RST, 3000, 0, 0),
        Side::Server => c.s(play, RST | ACK, 2000, 3000, 0),
    };
}

/// Flags that a correct end may send together, apart from PSH and URG.
const SANE: [u8; 6] = [SYN, SYN | ACK, ACK, FIN | ACK, RST, RST | ACK];

/// How far a segment's numbers are off: sequence, acknowledgement. The windows are 20,000.
const OFF: [(i64, i64); 13] = [
    (-1, 0),
    (-1000, 0),
    (1000, 0),
    (19_000, 0),
    (50_000, 0),
    (-50_000, 0),
    (-200_000, 0),
    (1 << 30, 0),
    (0, -1),
    (0, 1000),
    (0, -50_000),
    (0, -200_000),
    (0, 1 << 30),
];

pub(crate) fn all(arena: &mut Arena) {
    let exact = (0..64).map(|flags| (flags, (0, 0)));
    let off = SANE.into_iter().flat_map(|flags| OFF.map(|off| (flags, off)));
    let segments: Vec<(u8, (i64, i64))> = exact.chain(off).collect();
    for state in STATES {
        for side in [Side::Client, Side::Server] {
            for (n, (flags, off)) in segments.iter().enumerate() {
                let name = format!("{}, flags {flags:#04x} by the {}, off by {off:?}", state.0, side.name());
                arena.play(&name, n % 2 == 0, |play| one(play, state, side, *flags, *off));
            }
        }
    }
}

fn one(play: &mut Play<'_>, state: &State, side: Side, flags: u8, off: (i64, i64)) {
    let c = Conn::unscaled(play);
    state.1(&c, play);
    let next = |side: Side| state.2[side.index()];
    let data = usize::from(flags & (SYN | RST) == 0) * 100;
    let segment = c.segment(side, flags, next(side) + off.0, next(side.other()) + off.1, data);
    c.send(play, side, &segment);
    // Whose numbers go on where depends on what became of it: acknowledgements show it, too.
    let follow: [&dyn Fn(&mut Play<'_>); 6] = [
        &|p| _ = c.c(p, ACK, next(Side::Client), next(Side::Server), 0),
        &|p| _ = c.s(p, ACK, next(Side::Server), next(Side::Client), 0),
        // No more than one SYN a second passes on a live connection's tuple.
        &|p| _ = p.pause(Duration::from_secs(1)),
        &|p| _ = c.c(p, SYN, 2 << 20, 0, 0),
        &|p| _ = c.s(p, SYN | ACK, 2 << 20, (2 << 20) + 1, 0),
        &|p| _ = c.c(p, ACK, (2 << 20) + 1, (2 << 20) + 1, 10),
    ];
    for step in follow {
        if play.parted() {
            return;
        }
        step(play);
    }
}
