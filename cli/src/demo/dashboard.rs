//! What one sees while the demo runs: a panel on a terminal, plain lines elsewhere. All of it goes to standard error,
//! so that standard output is the report alone.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use palisade_engine::Time;
use palisade_node::clock;
use parking_lot::Mutex;
use tokio::time::interval;

use palisade_lab::traffic::Traffic;

const PANEL_INTERVAL: Duration = Duration::from_millis(250);
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// What the script tells the view.
#[derive(Debug)]
pub(super) struct Dashboard {
    pub(super) began: Time,
    state: Mutex<State>,
    terminal: bool,
}

#[derive(Clone, Debug, Default)]
struct State {
    leader: String,
    members: Vec<(usize, &'static str)>,
    drawn: usize,
}

impl Dashboard {
    pub(super) fn new() -> Arc<Dashboard> {
        let terminal = std::io::stderr().is_terminal();
        Arc::new(Dashboard { began: clock::now(), state: Mutex::default(), terminal })
    }

    /// Something happened; it stays on the screen above the panel.
    pub(super) fn say(&self, text: &str) {
        let mut state = self.state.lock();
        let erase = erase(&mut state);
        let at = clock::now().since(self.began).as_secs_f64();
        eprintln!("{erase}{at:6.1} s  {text}");
    }

    pub(super) fn leader(&self, name: &str) {
        self.state.lock().leader = name.to_owned();
    }

    /// What a member is doing just now.
    pub(super) fn member(&self, number: usize, what: &'static str) {
        let mut state = self.state.lock();
        match state.members.iter_mut().find(|(n, _)| *n == number) {
            Some(member) => member.1 = what,
            None => state.members.push((number, what)),
        }
    }

    /// Takes the panel off the screen.
    pub(super) fn close(&self) {
        let erase = erase(&mut self.state.lock());
        eprint!("{erase}");
    }

    /// Shows what happens, for ever.
    pub(super) async fn show(self: Arc<Dashboard>, traffic: Arc<Traffic>) {
        let mut ticks = interval(if self.terminal { PANEL_INTERVAL } else { LINE_INTERVAL });
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let ways = traffic.ways().await;
            let text = if self.terminal { self.panel(&traffic, &ways) } else { self.line(&traffic, &ways) };
            let mut state = self.state.lock();
            let erase = erase(&mut state);
            if self.terminal {
                state.drawn = text.lines().count();
            }
            // Nobody looks any more: no reason to end.
            let _ = write!(std::io::stderr().lock(), "{erase}{text}");
        }
    }

    fn panel(&self, traffic: &Traffic, ways: &[[usize; 2]]) -> String {
        let state = self.state.lock().clone();
        let mut text = String::from("\n           to server   to client\n");
        for (number, what) in &state.members {
            let share = |side: usize| ways.iter().filter(|way| way[side] == *number).count();
            let name = format!("fw{number}");
            let role = if name == state.leader { "leader, " } else { "" };
            let bar = "█".repeat(share(0) / 8);
            let _ = writeln!(text, "     {name} {:>9} {:>11}   {role}{what} \x1b[36m{bar}\x1b[0m", share(0), share(1));
        }
        let counts = traffic.counts();
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let bad = |n: u64| if n == 0 { "0".to_owned() } else { format!("\x1b[31;1m{n}\x1b[0m") };
        let _ = writeln!(
            text,
            "     {} long-lived connections, {} opened in all; lost {}, failed {}, reset {}",
            traffic.alive(),
            get(&counts.opened),
            bad(get(&counts.lost)),
            bad(get(&counts.failed)),
            bad(get(&counts.resets)),
        );
        let _ = writeln!(
            text,
            "     forbidden: {} tried, {} arrived;  asymmetric {:.0} %;  stalled {} ms now, {} ms at most",
            get(&counts.forbidden_tried),
            bad(get(&counts.forbidden_passed)),
            counts.asymmetric_share() * 100.0,
            traffic.stalled_for().as_millis(),
            get(&counts.longest_stall) / 1_000_000,
        );
        text
    }

    fn line(&self, traffic: &Traffic, ways: &[[usize; 2]]) -> String {
        let state = self.state.lock().clone();
        let counts = traffic.counts();
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut text = format!("{:6.1} s  ", clock::now().since(self.began).as_secs_f64());
        for (number, _) in &state.members {
            let share = |side: usize| ways.iter().filter(|way| way[side] == *number).count();
            let star = if format!("fw{number}") == state.leader { "*" } else { "" };
            let _ = write!(text, "fw{number}{star} {}/{}  ", share(0), share(1));
        }
        let _ = writeln!(
            text,
            "alive {} opened {} lost {} failed {} forbidden {}/{} asymmetric {:.2} stalled {} ms",
            traffic.alive(),
            get(&counts.opened),
            get(&counts.lost),
            get(&counts.failed),
            get(&counts.forbidden_passed),
            get(&counts.forbidden_tried),
            counts.asymmetric_share(),
            traffic.stalled_for().as_millis(),
        );
        text
    }
}

/// What takes the last panel off the screen: up over its lines, clearing what is below.
fn erase(state: &mut State) -> String {
    match std::mem::take(&mut state.drawn) {
        0 => String::new(),
        lines => format!("\x1b[{lines}A\x1b[J"),
    }
}
