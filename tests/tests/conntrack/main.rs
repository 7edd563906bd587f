//! The same packet histories to the kernel's conntrack and to Palisade's engine: each disagreement belongs to a class
//! that `docs/conntrack.md` explains, or the test fails and prints the history.
//!
//! `PALISADE_SEED=n` plays one random history, `PALISADE_HISTORIES=n` that many of them instead of [`RANDOM`], and
//! `PALISADE_HISTORY=file` one as the test printed it. Each prints what became of every packet.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation, reason = "a test")]

mod catalogue;
mod classes;
mod facts;
mod kernel;
mod narrow;
mod ours;
mod packet;
mod play;
mod random;
mod table;

use std::collections::BTreeSet;
use std::env;
use std::fs;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use palisade_lab::guard::require_lab;

use classes::CLASSES;
use play::{Arena, Tally};

/// Random histories in the gate.
const RANDOM: u64 = 5000;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/conntrack.md");

#[test]
fn every_disagreement_with_conntrack_has_a_reason() {
    let Some(_turn) = require_lab(&["nft"]) else { return };
    stay_on_one_cpu();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut arena = runtime.block_on(Arena::new()).unwrap();

    let number = |name| env::var(name).ok().and_then(|n| n.parse().ok());
    if let Some(file) = env::var_os("PALISADE_HISTORY") {
        let story = fs::read_to_string(file).unwrap();
        arena.tell = true;
        arena.play("replayed", true, |play| play::replay(play, &story));
    } else if let Some(seed) = number("PALISADE_SEED") {
        arena.tell = true;
        random::histories(&mut arena, seed, 1);
    } else {
        catalogue::all(&mut arena);
        table::all(&mut arena);
        random::histories(&mut arena, 0, number("PALISADE_HISTORIES").unwrap_or(RANDOM));
        runtime.block_on(arena.check_denied()).unwrap();
        report(&arena.tally);
        return all_occur(&arena.tally);
    }
    report(&arena.tally);
}

/// A packet's way through the kernel then is one CPU's, on which none overtakes another.
fn stay_on_one_cpu() {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let cpu = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap_or(false)).unwrap();
    let mut one = CpuSet::new();
    one.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &one).unwrap();
}

/// A class that nothing belongs to any longer has to go from the list, and from the page.
fn all_occur(tally: &Tally) {
    let gone: Vec<_> = CLASSES.iter().map(|c| c.name).filter(|name| !tally.disagreed.contains_key(name)).collect();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    assert!(gone.is_empty(), "on Linux {}, no history shows: {gone:?}", release.trim());
}

fn report(tally: &Tally) {
    eprintln!(
        "{} histories, {} packets; of the verdicts of two kernels {} agree to pass and {} to drop; these do not:",
        tally.histories, tally.packets, tally.agreed[0], tally.agreed[1]
    );
    for class in CLASSES {
        if let Some([loose, strict]) = tally.disagreed.get(class.name) {
            eprintln!("{loose:>6} {strict:>6}  {}", class.name);
        }
    }
    let shown = tally.unexplained.iter().map(String::as_str).take(60).collect::<Vec<_>>().join("\n");
    assert!(tally.unexplained.is_empty(), "{} histories without a reason:\n{shown}", tally.unexplained.len());
}

/// `docs/conntrack.md`, `behind-the-windows`: who knows addresses and ports, and guesses the rest.
#[test]
fn of_blind_segments_conntrack_lets_a_quarter_pass() {
    const SEGMENTS: u64 = 4000;
    const HANDSHAKE: u64 = 3;
    let Some(_turn) = require_lab(&["nft"]) else { return };
    stay_on_one_cpu();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut arena = runtime.block_on(Arena::new()).unwrap();
    arena.play("blind segments", true, |play| random::blind(play, SEGMENTS));
    let tally = &arena.tally;
    assert!(tally.unexplained.is_empty(), "{}", tally.unexplained[0]);
    let both = tally.agreed[0] / 2 - HANDSHAKE;
    let kernel = tally.disagreed["behind-the-windows"][1] + both;
    let ours = tally.disagreed.get("unseen").map_or(0, |[_, strict]| *strict) + both;
    eprintln!("of {SEGMENTS} blind segments {kernel} pass the kernel, {ours} Palisade");
    assert!(kernel > SEGMENTS / 5 && ours < SEGMENTS / 500);
}

#[test]
fn the_classes_are_those_of_the_documentation() {
    let page = fs::read_to_string(PAGE).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    let listed: Vec<&str> = rows.map(|(name, _)| name).collect();
    let documented: BTreeSet<&str> = listed.iter().copied().collect();
    assert_eq!(documented.len(), listed.len(), "a class is listed twice");
    let known: BTreeSet<&str> = CLASSES.iter().map(|class| class.name).collect();
    assert_eq!(known.len(), CLASSES.len(), "two classes have one name");
    assert_eq!(documented, known);
}
