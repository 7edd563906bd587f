//! The same packet histories to the kernel's conntrack and to Palisade's engine: each disagreement belongs to a class
//! that `docs/conntrack.md` explains, or the test fails and prints the history.
//!
//! `PALISADE_SEED=n` plays one random history; `PALISADE_HISTORY=file` plays one as the test printed it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation, reason = "a test")]

mod catalogue;
mod classes;
mod facts;
mod kernel;
mod ours;
mod packet;
mod play;
mod random;
mod table;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use palisade_tests::guard::require_lab;

use play::Arena;

/// Random histories in the gate.
const RANDOM: u64 = 0;

#[test]
fn every_disagreement_with_conntrack_has_a_reason() {
    let Some(_turn) = require_lab(&["nft"]) else { return };
    // A frame's way through the kernel is one CPU's: no packet overtakes another.
    let mut one = CpuSet::new();
    one.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &one).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut arena = runtime.block_on(Arena::new()).unwrap();

    if let Some(file) = std::env::var_os("PALISADE_HISTORY") {
        let story = std::fs::read_to_string(file).unwrap();
        arena.play("replay", true, |play| play::replay(play, &story));
    } else if let Some(seed) = std::env::var("PALISADE_SEED").ok().and_then(|n| n.parse().ok()) {
        random::histories(&mut arena, seed, 1);
    } else {
        catalogue::all(&mut arena);
        table::all(&mut arena);
        random::histories(&mut arena, 0, RANDOM);
    }
    let tally = &arena.tally;
    eprintln!(
        "{} histories, {} packets; of the verdicts of two kernels {} agree to pass and {} to drop",
        tally.histories, tally.packets, tally.agreed[0], tally.agreed[1]
    );
    for (class, [loose, strict]) in &tally.disagreed {
        eprintln!("{class}: {loose} {strict}");
    }
    let shown = tally.unexplained.iter().map(String::as_str).take(5).collect::<Vec<_>>().join("\n");
    if let Some(file) = std::env::var_os("DUMP") {
        std::fs::write(file, tally.unexplained.join("\n")).unwrap();
    }
    assert!(tally.unexplained.is_empty(), "{} histories without a reason:\n{shown}", tally.unexplained.len());
}
