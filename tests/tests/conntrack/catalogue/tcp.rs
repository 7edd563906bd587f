//! TCP.

use std::time::Duration;

use super::{Conn, Entry};
use crate::packet::{ACK, FIN, PSH, RST, SYN, Segment, Side, URG};
use crate::play::Play;

const SECOND: Duration = Duration::from_secs(1);

pub(super) const ALL: &[Entry] = &[
    ("a connection from SYN to TIME_WAIT", whole),
    ("the server closes first", server_closes),
    ("both close at once", simultaneous_close),
    ("half-closed, the other end sends on", half_close),
    ("both open at once", simultaneous_open),
    ("numbers wrap", wrap),
    ("windows of a megabyte", scaled),
    ("only one end offers a scale", one_scale),
    ("scale 14, and more than 14", largest_scale),
    ("no scale, the whole window", unscaled_window),
    ("zero window, probes, update", zero_window),
    ("the window shrinks", shrinking_window),
    ("keep-alives", keep_alive),
    ("retransmissions, also of what was acknowledged", retransmission),
    ("a hole is filled, with SACK", out_of_order),
    ("SACK of what was never sent", false_sack),
    ("D-SACK", dsack),
    ("SYN again, SYN-ACK again", syn_again),
    ("the client tries again with another number", other_isn),
    ("the client tries again with a lower number", lower_isn),
    ("the server answers with another number", other_syn_ack),
    ("TIME_WAIT, a newer SYN", |p| reuse(p, 1 << 20)),
    ("TIME_WAIT, an older SYN", |p| reuse(p, -(1 << 20))),
    ("TIME_WAIT, late segments", late_segments),
    ("CLOSE, a new SYN", reuse_after_rst),
    ("a SYN on a live connection, and its challenge ACK", challenge),
    ("the client has restarted, the server has not: no state in between", half_open),
    ("the client has restarted, and the server believes it", restart_believed),
    ("a stale SYN-ACK", stale_syn_ack),
    ("a SYN-ACK of a connection that nobody opened", unasked_syn_ack),
    ("RST exact, in the window, outside it", rst_windows),
    ("RST after a FIN", rst_after_fin),
    ("RST twice, and what was under way", rst_twice),
    ("RST answers a SYN", rst_answers),
    ("RST answers a SYN with a wrong number", rst_answers_wrongly),
    ("RST answers the SYN-ACK", rst_of_the_client),
    ("RST answers data with the number that was acknowledged", rst_of_a_closed_port),
    ("a SYN with data, taken", |p| fast_open(p, true)),
    ("a SYN with data, not taken", |p| fast_open(p, false)),
    ("the server sends before the handshake is complete", early_data),
    ("the client's ACK overtakes the SYN-ACK", ack_overtakes),
    ("data completes the handshake", data_completes),
    ("urgent data", urgent),
    ("flags that cannot be", bad_flags),
    ("ECN", ecn),
    ("a wrong checksum", bad_checksum),
    ("wrong data offsets", bad_offset),
    ("options in odd places", odd_options),
    ("options of wrong lengths", bad_options),
    ("port zero", port_zero),
    ("data after the FIN", after_fin),
    ("the server answers twice, with numbers that are close", rival_answers),
    ("a SYN close to the numbers of a connection that ends", rival_syn),
    ("a handshake is reset, and the same begins again", reset_handshake),
    ("a handshake is reset, and its ACK comes", refused_handshake),
    ("half-closed, the FIN twice, then a SYN", repeated_fin),
    ("RSTs answer what was under way", rst_answers_old),
];

/// One hundred bytes each way.
pub(super) fn chat(c: &Conn, play: &mut Play<'_>) {
    c.open(play);
    c.c(play, ACK | PSH, 0, 0, 100);
    c.s(play, ACK | PSH, 0, 100, 100);
    c.c(play, ACK, 100, 100, 0);
}

/// Closed, the client first.
fn closed(c: &Conn, play: &mut Play<'_>) {
    chat(c, play);
    c.c(play, FIN | ACK, 100, 100, 0);
    c.s(play, ACK, 100, 101, 0);
    c.s(play, FIN | ACK, 100, 101, 0);
    c.c(play, ACK, 101, 101, 0);
}

fn whole(play: &mut Play<'_>) {
    let c = Conn::new(play);
    closed(&c, play);
    // The FIN again, and the ACK that answers it.
    c.s(play, FIN | ACK, 100, 101, 0);
    c.c(play, ACK, 101, 101, 0);
}

fn server_closes(play: &mut Play<'_>) {
    let c = Conn::new(play);
    chat(&c, play);
    c.s(play, FIN | ACK, 100, 100, 0);
    c.c(play, ACK, 100, 101, 0);
    c.c(play, FIN | ACK, 100, 101, 0);
    c.s(play, ACK, 101, 101, 0);
}

fn simultaneous_close(play: &mut Play<'_>) {
    let c = Conn::new(play);
    chat(&c, play);
    c.c(play, FIN | ACK, 100, 100, 0);
    c.s(play, FIN | ACK, 100, 100, 0);
    c.c(play, ACK, 101, 101, 0);
    c.s(play, ACK, 101, 101, 0);
}

fn half_close(play: &mut Play<'_>) {
    let c = Conn::new(play);
    chat(&c, play);
    c.c(play, FIN | ACK, 100, 100, 0);
    for n in 0..10 {
        c.s(play, ACK, 100 + n * 1000, 101, 1000);
        c.c(play, ACK, 101, 1100 + n * 1000, 0);
    }
    c.s(play, FIN | ACK, 10_100, 101, 0);
    c.c(play, ACK, 101, 10_101, 0);
}

fn simultaneous_open(play: &mut Play<'_>) {
    let c = Conn::new(play);
    c.syn(play);
    if !c.s(play, SYN, -1, 0, 0) {
        return;
    }
    c.c(play, SYN | ACK, -1, 0, 0);
    c.s(play, SYN | ACK, -1, 0, 0);
    c.c(play, ACK, 0, 0, 100);
    c.s(play, ACK, 0, 100, 100);
}

fn wrap(play: &mut Play<'_>) {
    let c = Conn { isn: [u32::MAX - 1500, u32::MAX - 700], ..Conn::new(play) };
    c.open(play);
    for n in 0..5 {
        c.c(play, ACK, n * 1000, n * 1000, 1000);
        c.s(play, ACK, n * 1000, n * 1000 + 1000, 1000);
    }
    c.c(play, RST, 5000, 0, 0);
}

fn scaled(play: &mut Play<'_>) {
    let c = Conn { window: [8192, 8192], ..Conn::new(play) };
    chat(&c, play);
    let step = 1400;
    for n in 0..700 {
        c.c(play, ACK, 100 + n * step, 100, 1400);
    }
    c.s(play, ACK, 100, 100 + 700 * step, 0);
}

fn one_scale(play: &mut Play<'_>) {
    let mut c = Conn { window: [20_000, 20_000], ..Conn::new(play) };
    c.options[1] = vec![2, 4, 5, 180];
    c.open(play);
    for n in 0..14 {
        c.c(play, ACK, n * 1400, 0, 1400);
    }
    c.s(play, ACK, 0, 19_600, 0);
    // More than any window without scale.
    c.c(play, ACK, 119_600, 0, 1400);
}

fn largest_scale(play: &mut Play<'_>) {
    for shift in [14, 15, 255] {
        let mut c = Conn::new(play);
        c.tuple.src_port += u16::from(shift);
        c.options = [vec![3, 3, shift], vec![3, 3, shift]];
        c.open(play);
        c.s(play, ACK, 0, 0, 0);
        c.c(play, ACK, 0, 0, 0);
        c.c(play, ACK, 60_000 << 14, 0, 1000);
        if play.parted() {
            return;
        }
    }
}

fn unscaled_window(play: &mut Play<'_>) {
    let c = Conn { window: [65_535, 65_535], ..Conn::unscaled(play) };
    c.open(play);
    for n in 0..46 {
        c.c(play, ACK, n * 1400, 0, 1400);
    }
    c.c(play, ACK, 64_400, 0, 1135);
    c.s(play, ACK, 0, 65_535, 0);
    // The first byte again, a whole window later.
    c.c(play, ACK, 0, 0, 1);
}

fn zero_window(play: &mut Play<'_>) {
    let mut c = Conn::unscaled(play);
    chat(&c, play);
    c.window[1] = 0;
    c.s(play, ACK, 100, 100, 0);
    for _ in 0..3 {
        c.c(play, ACK, 100, 100, 1);
        c.s(play, ACK, 100, 100, 0);
        c.c(play, ACK, 99, 100, 0);
        c.s(play, ACK, 100, 100, 0);
    }
    c.window[1] = 20_000;
    c.s(play, ACK, 100, 100, 0);
    c.c(play, ACK, 100, 100, 1400);
}

fn shrinking_window(play: &mut Play<'_>) {
    let mut c = Conn::unscaled(play);
    chat(&c, play);
    c.window[1] = 1000;
    c.s(play, ACK, 100, 100, 0);
    // Sent before it knew.
    c.c(play, ACK, 15_000, 100, 1000);
}

fn keep_alive(play: &mut Play<'_>) {
    let c = Conn::new(play);
    chat(&c, play);
    for data in [0, 1] {
        c.c(play, ACK, 99, 100, data);
        c.s(play, ACK, 100, 100, 0);
        c.s(play, ACK, 99, 100, data);
        c.c(play, ACK, 100, 100, 0);
    }
}

fn retransmission(play: &mut Play<'_>) {
    let c = Conn::unscaled(play);
    chat(&c, play);
    for n in 0..10 {
        c.c(play, ACK, 100 + n * 1000, 100, 1000);
    }
    c.s(play, ACK, 100, 10_100, 0);
    for n in 0..10 {
        c.c(play, ACK, 100 + n * 1000, 100, 1000);
        c.s(play, ACK, 100, 10_100, 0);
    }
    // As one, and cut elsewhere.
    c.c(play, ACK, 600, 100, 1400);
    // An old acknowledgement.
    c.s(play, ACK, 100, 3100, 0);
}

fn sack(left: u32, right: u32) -> Vec<u8> {
    [&[1, 1, 5, 10][..], &left.to_be_bytes(), &right.to_be_bytes()].concat()
}

fn with_sack(c: &Conn, play: &mut Play<'_>, ack: i64, left: i64, right: i64) {
    let number = |n: i64| c.isn[0].wrapping_add(1).wrapping_add(n as u32);
    let segment = c.segment(Side::Server, ACK, 100, ack, 0);
    c.send(play, Side::Server, &Segment { options: sack(number(left), number(right)), ..segment });
}

fn out_of_order(play: &mut Play<'_>) {
    let c = Conn::new(play);
    chat(&c, play);
    c.c(play, ACK, 1500, 100, 1400);
    with_sack(&c, play, 100, 1500, 2900);
    c.c(play, ACK, 2900, 100, 1400);
    with_sack(&c, play, 100, 1500, 4300);
    c.c(play, ACK, 100, 100, 1400);
    c.s(play, ACK, 100, 4300, 0);
}

fn false_sack(play: &mut Play<'_>) {
    let c = Conn::new(play);
    chat(&c, play);
    with_sack(&c, play, 100, 1500, 2900);
}

fn dsack(play: &mut Play<'_>) {
    let c = Conn::new(play);
    chat(&c, play);
    c.c(play, ACK, 0, 100, 100);
    with_sack(&c, play, 100, 0, 100);
    c.c(play, ACK, 100, 100, 100);
}

fn syn_again(play: &mut Play<'_>) {
    let c = Conn::new(play);
    c.syn(play);
    c.syn(play);
    c.syn_ack(play);
    c.syn(play);
    c.syn_ack(play);
    c.c(play, ACK, 0, 0, 0);
    c.syn_ack(play);
    c.c(play, ACK, 0, 0, 0);
    c.syn(play);
    c.s(play, ACK, 0, 0, 0);
    c.c(play, ACK, 0, 0, 100);
}

fn other_isn(play: &mut Play<'_>) {
    let c = Conn::new(play);
    c.syn(play);
    play.pause(SECOND);
    let again = Conn { isn: [c.isn[0] + (1 << 20), c.isn[1]], ..c };
    chat(&again, play);
}

fn lower_isn(play: &mut Play<'_>) {
    let c = Conn::new(play);
    c.syn(play);
    play.pause(SECOND);
    let again = Conn { isn: [c.isn[0] - 500_000, c.isn[1]], ..c };
    again.syn(play);
    again.syn_ack(play);
    again.c(play, ACK, 0, 0, 0);
}

fn other_syn_ack(play: &mut Play<'_>) {
    let c = Conn::new(play);
    c.syn(play);
    c.syn_ack(play);
    let other = Conn { isn: [c.isn[0], 77], ..c };
    other.syn_ack(play);
    other.c(play, ACK, 0, 0, 0);
    other.s(play, ACK, 0, 0, 100);
}

fn reuse(play: &mut Play<'_>, isn: i64) {
    let c = Conn::new(play);
    closed(&c, play);
    let next = Conn { isn: [c.isn[0].wrapping_add(isn as u32), c.isn[1] + (1 << 24)], ..c };
    closed(&next, play);
}

fn late_segments(play: &mut Play<'_>) {
    let c = Conn::new(play);
    closed(&c, play);
    c.c(play, ACK | PSH, 0, 0, 100);
    c.s(play, ACK | PSH, 0, 100, 100);
    c.s(play, FIN | ACK, 100, 101, 0);
    c.c(play, RST, 101, 0, 0);
    c.c(play, ACK, 101, 101, 100);
    c.s(play, ACK, 101, 101, 100);
}

fn reuse_after_rst(play: &mut Play<'_>) {
    let c = Conn::new(play);
    chat(&c, play);
    c.c(play, RST, 100, 0, 0);
    let next = Conn { isn: [c.isn[0] + 5_000_000, 42], ..c };
    chat(&next, play);
}

fn challenge(play: &mut Play<'_>) {
    let c = Conn::new(play);
    chat(&c, play);
    let next = Conn { isn: [c.isn[0] + (1 << 26), 99], ..c.clone() };
    next.syn(play);
    c.s(play, ACK, 100, 100, 0);
    c.c(play, RST, 100, 0, 0);
    play.pause(SECOND);
    chat(&next, play);
}

/// RFC 9293 section 3.5.1, figure 9: the answer to the SYN acknowledges the old connection, and the client resets it.
fn half_open(play: &mut Play<'_>) {
    let old = Conn::new(play);
    let c = Conn { isn: [old.isn[0] + (1 << 26), 0], ..old.clone() };
    c.syn(play);
    old.s(play, ACK, 100, 100, 0);
    old.c(play, RST, 100, 0, 0);
    play.pause(SECOND);
    c.syn(play);
    c.syn_ack(play);
    c.c(play, ACK, 0, 0, 100);
}

fn restart_believed(play: &mut Play<'_>) {
    let c = Conn::new(play);
    chat(&c, play);
    let next = Conn { isn: [c.isn[0] + (1 << 26), 99], ..c };
    chat(&next, play);
}

fn stale_syn_ack(play: &mut Play<'_>) {
    let c = Conn::new(play);
    c.syn(play);
    let stale = Conn { isn: [c.isn[0] - 5000, 7], ..c.clone() };
    stale.syn_ack(play);
    c.syn_ack(play);
    c.c(play, ACK, 0, 0, 0);
    c.s(play, ACK, 0, 0, 100);
}

fn unasked_syn_ack(play: &mut Play<'_>) {
    let c = Conn::new(play);
    c.syn_ack(play);
    c.c(play, RST, 0, 0, 0);
}

fn rst_windows(play: &mut Play<'_>) {
    for (port, seq) in [0, 1, -1, 1000, -1000, 60_000, 9_000_000, 1 << 30, -(1 << 30)].into_iter().enumerate() {
        for flags in [RST, RST | ACK] {
            for from in [Side::Client, Side::Server] {
                let mut c = Conn::new(play);
                c.tuple.src_port = 1000 + port as u16 * 10 + u16::from(flags == RST) * 2 + from.index() as u16;
                chat(&c, play);
                c.send(play, from, &c.segment(from, flags, 100 + seq, 100, 0));
            }
        }
    }
}

fn rst_after_fin(play: &mut Play<'_>) {
    for (port, seq) in [0, 1, 2, -50, 5000].into_iter().enumerate() {
        let mut c = Conn::new(play);
        c.tuple.src_port = 1000 + port as u16;
        chat(&c, play);
        c.c(play, FIN | ACK, 100, 100, 0);
        c.c(play, RST, 100 + seq, 0, 0);
    }
}

fn rst_twice(play: &mut Play<'_>) {
    let c = Conn::new(play);
    chat(&c, play);
    c.s(play, ACK, 100, 100, 1000);
    c.c(play, RST, 100, 0, 0);
    c.c(play, RST, 100, 0, 0);
    c.s(play, ACK, 100, 100, 1000);
}

fn rst_answers(play: &mut Play<'_>) {
    let c = Conn::new(play);
    c.syn(play);
    let refused = c.segment(Side::Server, RST | ACK, 0, 0, 0);
    c.send(play, Side::Server, &Segment { seq: 0, window: 0, ..refused });
    // And again.
    let next = Conn { isn: [c.isn[0] + 1000, c.isn[1]], ..c };
    chat(&next, play);
}

fn rst_answers_wrongly(play: &mut Play<'_>) {
    for (port, (flags, ack)) in
        [(RST, 0), (RST | ACK, -1), (RST | ACK, 1), (RST | ACK, 1 << 20)].into_iter().enumerate()
    {
        let mut c = Conn::new(play);
        c.tuple.src_port = 1000 + port as u16;
        c.syn(play);
        c.s(play, flags, 0, ack, 0);
    }
}

fn rst_of_the_client(play: &mut Play<'_>) {
    let c = Conn::new(play);
    c.syn(play);
    c.syn_ack(play);
    c.c(play, RST, 0, 0, 0);
    c.syn(play);
}

fn rst_of_a_closed_port(play: &mut Play<'_>) {
    let c = Conn::new(play);
    chat(&c, play);
    for n in 0..3 {
        c.c(play, ACK, 100 + n * 100, 100, 100);
    }
    // The server process is gone: its kernel answers each with the number that the segment acknowledges.
    for _ in 0..3 {
        c.s(play, RST, 100, 0, 0);
    }
}

fn fast_open(play: &mut Play<'_>, taken: bool) {
    let c = Conn::new(play);
    c.c(play, SYN, -1, 0, 500);
    let (acked, again) = if taken { (500, 500) } else { (0, 0) };
    c.s(play, SYN | ACK, -1, acked, 0);
    c.c(play, ACK, again, 0, 500);
    c.s(play, ACK, 0, again + 500, 100);
}

fn early_data(play: &mut Play<'_>) {
    let c = Conn::new(play);
    c.syn(play);
    c.syn_ack(play);
    c.s(play, ACK, 0, 0, 1000);
    c.s(play, ACK, 1000, 0, 1000);
    c.c(play, ACK, 0, 0, 0);
    c.c(play, ACK, 0, 2000, 100);
}

fn ack_overtakes(play: &mut Play<'_>) {
    let c = Conn::new(play);
    c.syn(play);
    c.c(play, ACK, 0, 0, 0);
    c.syn_ack(play);
    c.c(play, ACK, 0, 0, 100);
}

fn data_completes(play: &mut Play<'_>) {
    let c = Conn::new(play);
    c.syn(play);
    c.syn_ack(play);
    c.c(play, ACK | PSH, 0, 0, 100);
    c.s(play, ACK, 0, 100, 0);
}

fn urgent(play: &mut Play<'_>) {
    let c = Conn::new(play);
    chat(&c, play);
    c.c(play, ACK | URG, 100, 100, 10);
    c.s(play, ACK, 100, 110, 0);
    c.s(play, FIN | ACK | URG, 100, 110, 1);
}

fn bad_flags(play: &mut Play<'_>) {
    let c = Conn::new(play);
    for flags in [0, FIN, PSH, URG, FIN | SYN, SYN | RST, FIN | RST, FIN | PSH | URG, 0x3f, SYN | FIN | ACK] {
        c.c(play, flags, 0, 0, 0);
    }
    chat(&c, play);
    for flags in [0, FIN, PSH, URG, FIN | SYN, SYN | RST, FIN | RST | ACK, FIN | PSH | URG, 0x3f, SYN | RST | ACK] {
        c.c(play, flags, 100, 100, 0);
        c.s(play, flags, 100, 100, 0);
    }
    c.c(play, ACK, 100, 100, 100);
}

fn ecn(play: &mut Play<'_>) {
    let c = Conn::new(play);
    c.c(play, SYN | 0xc0, -1, 0, 0);
    c.s(play, SYN | ACK | 0x40, -1, 0, 0);
    c.c(play, ACK, 0, 0, 0);
    c.c(play, ACK | 0x80, 0, 0, 100);
    c.s(play, ACK | 0x40, 0, 100, 0);
}

/// A segment of the client, changed after it was built.
fn damaged(c: &Conn, play: &mut Play<'_>, flags: u8, seq: i64, change: impl FnOnce(&mut [u8])) -> bool {
    let mut packet = c.segment(Side::Client, flags, seq, 100, 0).packet(&c.tuple);
    let at = if play.v4() { 20 } else { 40 };
    change(&mut packet[at..]);
    !play.give(Side::Client, &packet).is_empty()
}

fn bad_checksum(play: &mut Play<'_>) {
    let c = Conn::new(play);
    damaged(&c, play, SYN, -1, |tcp| tcp[16] ^= 0x55);
    chat(&c, play);
    damaged(&c, play, ACK, 100, |tcp| tcp[16] ^= 0x55);
    damaged(&c, play, RST, 100, |tcp| tcp[17] ^= 1);
    c.c(play, ACK, 100, 100, 100);
}

fn bad_offset(play: &mut Play<'_>) {
    let c = Conn::new(play);
    chat(&c, play);
    for words in [0, 4, 6, 15] {
        damaged(&c, play, ACK, 100, |tcp| {
            // The checksum stays right: what the one word loses another one gains.
            let less = u16::from(tcp[12]).wrapping_sub(words << 4) << 8;
            tcp[12] = (words << 4) as u8;
            let sum = u32::from(u16::from_be_bytes([tcp[16], tcp[17]])) + u32::from(less);
            let sum = (sum & 0xffff) + (sum >> 16);
            tcp[16..18].copy_from_slice(&(sum as u16).to_be_bytes());
        });
    }
}

fn with_options(c: &Conn, play: &mut Play<'_>, flags: u8, seq: i64, options: &[u8]) -> bool {
    let segment = c.segment(Side::Client, flags, seq, 100, 0);
    c.send(play, Side::Client, &Segment { options: options.to_vec(), ..segment })
}

fn odd_options(play: &mut Play<'_>) {
    let c = Conn::new(play);
    chat(&c, play);
    // A maximum segment size, a scale and SACK-permitted outside a SYN, unknown ones, padding behind the end.
    for options in [
        &[2, 4, 5, 180][..],
        &[3, 3, 14],
        &[4, 2],
        &[253, 4, 1, 2],
        &[0, 7, 7, 7],
        &[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
    ] {
        with_options(&c, play, ACK, 100, options);
    }
    // The scale of the handshake still counts.
    c.c(play, ACK, 100, 100, 1400);
    c.s(play, ACK, 100, 1500, 0);
}

fn bad_options(play: &mut Play<'_>) {
    for (port, options) in [
        &[2, 3, 5][..],
        &[3, 4, 7, 0],
        &[4, 3, 0],
        &[8, 4, 0, 0],
        &[253, 0, 0, 0],
        &[253, 1, 0, 0],
        &[253, 40, 0, 0],
        &[1, 1, 1, 5],
    ]
    .into_iter()
    .enumerate()
    {
        let mut c = Conn::new(play);
        c.tuple.src_port = 1000 + port as u16;
        with_options(&c, play, SYN, -1, options);
    }
}

fn port_zero(play: &mut Play<'_>) {
    let mut c = Conn::new(play);
    c.tuple.src_port = 0;
    c.syn(play);
    let mut c = Conn::new(play);
    c.tuple.dst_port = 0;
    c.syn(play);
}

fn after_fin(play: &mut Play<'_>) {
    let c = Conn::new(play);
    chat(&c, play);
    c.c(play, FIN | ACK, 100, 100, 0);
    c.c(play, ACK, 101, 100, 100);
}

fn rival_answers(play: &mut Play<'_>) {
    let c = Conn::new(play);
    c.syn(play);
    c.syn_ack(play);
    Conn { isn: [c.isn[0], c.isn[1] + 100], ..c.clone() }.syn_ack(play);
    c.c(play, ACK, 0, 0, 100);
    c.s(play, ACK, 0, 100, 100);
    c.s(play, ACK, 100, 100, 100);
}

/// The client's last data are lost on the way, and sent again.
fn rival_syn(play: &mut Play<'_>) {
    let c = Conn::new(play);
    chat(&c, play);
    c.s(play, FIN | ACK, 100, 100, 0);
    Conn { isn: [c.isn[0] - 500, 0], ..c.clone() }.syn(play);
    c.c(play, ACK, 100, 101, 100);
    c.c(play, FIN | ACK, 200, 101, 0);
    c.c(play, ACK, 100, 101, 100);
    c.s(play, ACK, 101, 201, 0);
}

fn reset_handshake(play: &mut Play<'_>) {
    let c = Conn::new(play);
    c.syn(play);
    c.syn_ack(play);
    c.s(play, RST | ACK, 0, 0, 0);
    c.syn(play);
    c.syn_ack(play);
    c.c(play, ACK, 0, 0, 0);
    c.c(play, ACK, 0, 0, 100);
}

fn refused_handshake(play: &mut Play<'_>) {
    let c = Conn::new(play);
    c.syn(play);
    c.syn_ack(play);
    c.s(play, RST, 0, 0, 0);
    c.c(play, ACK, 0, 0, 0);
}

fn repeated_fin(play: &mut Play<'_>) {
    let c = Conn::new(play);
    chat(&c, play);
    c.c(play, FIN | ACK, 100, 100, 0);
    c.c(play, FIN | ACK, 100, 100, 0);
    c.s(play, ACK, 100, 101, 0);
    c.c(play, SYN, 1 << 20, 0, 0);
    c.s(play, ACK, 100, 101, 100);
    c.c(play, ACK, 101, 200, 0);
}

fn rst_answers_old(play: &mut Play<'_>) {
    let c = Conn::new(play);
    chat(&c, play);
    c.c(play, ACK, 100, 100, 100);
    c.s(play, ACK, 100, 100, 0);
    c.c(play, RST, 200, 0, 0);
    // Sent before the RST arrived, each; the client is gone, and its kernel answers with what they acknowledge.
    c.s(play, ACK, 100, 200, 0);
    c.c(play, RST, 100, 0, 0);
}
