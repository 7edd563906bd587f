//! TCP of those who are not the connection's ends, or not yet: forged and stray segments.

use super::tcp::chat;
use super::{Conn, Entry};
use crate::packet::{ACK, FIN, PSH, RST, SYN, Side};
use crate::play::Play;

pub(super) const ALL: &[Entry] = &[
    ("data, never a SYN", mid_stream),
    ("a SYN from the server's side", from_the_server),
    ("blind segments", blind),
    ("more than the window", overshoot),
    ("a FIN before the end of the data", false_fin),
    ("by the wrong interface", wrong_interface),
    ("one forged segment beyond the window", one_beyond),
    ("the server sends early, and the handshake is never completed", never_completed),
    ("a forged SYN while a connection opens", forged_syn),
    ("a forged SYN-ACK while a connection opens", |p| forged_answer(p, SYN | ACK)),
    ("a forged RST while a connection opens", |p| forged_answer(p, RST | ACK)),
    ("a forged SYN-ACK of the client", forged_syn_ack_of_the_client),
];

fn mid_stream(play: &mut Play<'_>) {
    let c = Conn::new(play);
    c.c(play, ACK | PSH, 100, 100, 100);
    c.s(play, ACK, 100, 200, 100);
    c.c(play, ACK, 1 << 30, 1 << 30, 100);
    let mut c = Conn::new(play);
    for flags in [FIN | ACK, RST, RST | ACK, SYN | ACK] {
        c.tuple.src_port += 1;
        c.c(play, flags, 100, 100, 0);
    }
}

fn from_the_server(play: &mut Play<'_>) {
    let c = Conn::new(play);
    c.s(play, SYN, -1, 0, 0);
    c.c(play, SYN | ACK, -1, 0, 0);
}

fn blind(play: &mut Play<'_>) {
    let c = Conn::new(play);
    chat(&c, play);
    for n in -8..8_i64 {
        for flags in [ACK, FIN | ACK, RST, RST | ACK] {
            c.c(play, flags, (n << 28) + 12_345, n << 27, 10);
            c.s(play, flags, (n << 28) + 12_345, n << 27, 10);
            if play.parted() {
                return;
            }
        }
    }
}

fn overshoot(play: &mut Play<'_>) {
    let mut c = Conn { window: [60_000, 60_000], ..Conn::new(play) };
    chat(&c, play);
    c.s(play, ACK, 100, 100, 0);
    // All but the last kilobyte of seven megabytes, then more than that.
    let right = 100 + (60_000 << 7);
    for at in [1 << 20, 3 << 20, 5 << 20, right - 1000] {
        c.c(play, ACK, at, 100, 1000);
    }
    c.window[1] = 0;
    c.c(play, ACK, right + 2 * (1 << 21), 100, 1000);
    c.c(play, ACK, right, 100, 1000);
}

fn false_fin(play: &mut Play<'_>) {
    let c = Conn::new(play);
    chat(&c, play);
    c.c(play, ACK, 100, 100, 1000);
    c.c(play, FIN | ACK, 200, 100, 0);
    c.c(play, ACK, 1100, 100, 1000);
    c.s(play, ACK, 100, 2100, 0);
}

fn wrong_interface(play: &mut Play<'_>) {
    let c = Conn::new(play);
    // Spoofed: the server's address from the client's side.
    let spoofed = c.segment(Side::Server, SYN, -1, 0, 0).packet(&c.tuple.inverse());
    play.give(Side::Client, &spoofed);
    chat(&c, play);
    let reply = c.segment(Side::Server, ACK, 100, 100, 10).packet(&c.tuple.inverse());
    play.give(Side::Client, &reply);
    let request = c.segment(Side::Client, ACK, 100, 100, 10).packet(&c.tuple);
    play.give(Side::Server, &request);
}

/// Both let it pass. What the kernel then takes for the end makes it refuse the true one.
fn one_beyond(play: &mut Play<'_>) {
    let c = Conn { window: [1000, 1000], ..Conn::new(play) };
    chat(&c, play);
    c.s(play, ACK, 128_600, 100, 500);
    c.c(play, ACK, 100, 100, 1000);
    c.s(play, ACK, 100, 1100, 0);
}

fn never_completed(play: &mut Play<'_>) {
    let c = Conn::new(play);
    c.syn(play);
    c.syn_ack(play);
    c.s(play, ACK, 0, 0, 1000);
}

fn forged_syn(play: &mut Play<'_>) {
    let c = Conn::new(play);
    c.syn(play);
    Conn { isn: [c.isn[0] + 600_000, c.isn[1]], ..c.clone() }.syn(play);
    c.syn_ack(play);
    c.c(play, ACK, 0, 0, 0);
}

fn forged_answer(play: &mut Play<'_>, flags: u8) {
    let c = Conn::new(play);
    c.syn(play);
    c.s(play, flags, 30_000, 500_000, 0);
    c.syn_ack(play);
    c.c(play, ACK, 0, 0, 0);
}

fn forged_syn_ack_of_the_client(play: &mut Play<'_>) {
    let c = Conn::unscaled(play);
    c.syn(play);
    c.syn_ack(play);
    c.c(play, SYN | ACK, 1_000_000, 5000, 0);
    c.c(play, ACK, 0, 0, 0);
    c.s(play, ACK, 0, 0, 100);
    c.c(play, ACK, 0, 100, 100);
    c.s(play, ACK, 100, 100, 0);
}
