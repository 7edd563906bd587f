//! What the demo found out, for people and for machines.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use palisade_lab::Mode;
use palisade_lab::traffic::Counts;

/// Did the promises hold?
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// All of them.
    Pass,
    /// See the reasons.
    Fail,
}

/// The report. Its JSON is one object with these fields.
#[derive(Serialize, Clone, Debug)]
pub struct Report {
    /// Members at the beginning.
    pub members: u8,
    /// Seconds that traffic flowed.
    pub seconds: f64,
    /// Connections whose handshake was completed.
    pub connections_opened: u64,
    /// Established connections that broke.
    pub connections_lost: u64,
    /// Connections that could not be opened.
    pub connections_failed: u64,
    /// Connections that ended with a reset.
    pub resets_seen: u64,
    /// The share of connections whose two directions went through different members.
    pub asymmetric_share: f64,
    /// Attempts that the policy forbids.
    pub forbidden_tried: u64,
    /// Of these, how many arrived.
    pub forbidden_passed: u64,
    /// SYNs that the client's kernel sent again.
    pub syn_retransmits: u64,
    /// Of these, how many between the leader's death and its restart, when some are lost with a dead machine.
    pub syn_retransmits_failover: u64,
    /// Half of the connections were set up within this time.
    pub setup_p50_us: u32,
    /// And 99 of 100 within this.
    pub setup_p99_us: u32,
    /// The longest wait for an answer on an established connection.
    pub longest_stall_ms: u64,
    /// From the leader's death to both routers' having taken it out.
    pub reroute_ms: Option<u64>,
    /// Commands committed through the log: at least one for every connection.
    pub commits: Option<u64>,
    /// Blocks that were echoed, and right.
    pub echoes: u64,
    /// What was done, and how long it took.
    pub steps: Vec<Step>,
    /// All in one word.
    pub verdict: Verdict,
    /// Why not, if not.
    pub reasons: Vec<String>,
}

/// One step of the script.
#[derive(Serialize, Clone, Debug)]
pub struct Step {
    /// In words.
    pub what: String,
    /// How long until it was done.
    pub took_ms: u64,
}

/// What only the script knows.
#[derive(Clone, Debug, Default)]
pub(super) struct Observed {
    pub(super) members: u8,
    pub(super) seconds: f64,
    pub(super) syn_retransmits: u64,
    pub(super) syn_retransmits_failover: u64,
    pub(super) reroute_ms: Option<u64>,
    pub(super) commits: Option<u64>,
    pub(super) steps: Vec<Step>,
    pub(super) problems: Vec<String>,
}

impl Report {
    pub(super) fn new(mode: Mode, counts: &Counts, observed: Observed) -> Report {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let [setup_p50_us, setup_p99_us] = counts.setup_percentiles([50, 99]);
        let mut report = Report {
            members: observed.members,
            seconds: observed.seconds,
            connections_opened: get(&counts.opened),
            connections_lost: get(&counts.lost),
            connections_failed: get(&counts.failed),
            resets_seen: get(&counts.resets),
            asymmetric_share: (counts.asymmetric_share() * 1000.0).round() / 1000.0,
            forbidden_tried: get(&counts.forbidden_tried),
            forbidden_passed: get(&counts.forbidden_passed),
            syn_retransmits: observed.syn_retransmits,
            syn_retransmits_failover: observed.syn_retransmits_failover,
            setup_p50_us,
            setup_p99_us,
            longest_stall_ms: get(&counts.longest_stall) / 1_000_000,
            reroute_ms: observed.reroute_ms,
            commits: observed.commits,
            echoes: get(&counts.echoes),
            steps: observed.steps,
            verdict: Verdict::Pass,
            reasons: observed.problems,
        };
        report.judge(mode);
        report.reasons.extend(counts.problems());
        report
    }

    fn judge(&mut self, mode: Mode) {
        let mut fail = |failed: bool, reason: String| {
            if failed {
                self.reasons.push(reason);
            }
        };
        fail(self.connections_lost > 0, format!("{} established connections were lost", self.connections_lost));
        fail(self.connections_failed > 0, format!("{} connections could not be opened", self.connections_failed));
        fail(self.resets_seen > 0, format!("{} connections were reset", self.resets_seen));
        fail(self.forbidden_passed > 0, format!("{} forbidden attempts arrived", self.forbidden_passed));
        fail(self.forbidden_tried == 0, "no forbidden attempt was made".to_owned());
        fail(self.echoes == 0, "no block was echoed".to_owned());
        fail(
            self.asymmetric_share <= 0.5,
            format!("only {} of the connections were asymmetric", self.asymmetric_share),
        );
        fail(self.reroute_ms.is_none(), "no member was taken out by both routers after its death".to_owned());
        let uncommitted = self.commits.is_none_or(|n| n < self.connections_opened);
        fail(
            mode != Mode::Baseline && uncommitted,
            format!(
                "{} connections opened, but {} commands committed",
                self.connections_opened,
                self.commits.map_or("unknown".to_owned(), |n| n.to_string())
            ),
        );
        if !self.reasons.is_empty() {
            self.verdict = Verdict::Fail;
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            writeln!(f, "  {:<60} {:>7} ms", step.what, step.took_ms)?;
        }
        let mut row = |name: &str, value: String| writeln!(f, "  {name:<38} {value}");
        let optional = |n: Option<u64>, unit: &str| n.map_or("not seen".to_owned(), |n| format!("{n}{unit}"));
        row("connections opened", self.connections_opened.to_string())?;
        row("  of these lost", self.connections_lost.to_string())?;
        row("connections that could not be opened", self.connections_failed.to_string())?;
        row("resets seen", self.resets_seen.to_string())?;
        row("blocks echoed and verified", self.echoes.to_string())?;
        row("two directions, two members", format!("{:.1} %", self.asymmetric_share * 100.0))?;
        row("forbidden attempts", self.forbidden_tried.to_string())?;
        row("  of these arrived", self.forbidden_passed.to_string())?;
        let failover = self.syn_retransmits_failover;
        row("SYNs sent again", format!("{} ({failover} while a member was dead)", self.syn_retransmits))?;
        row("connection setup, p50 / p99", format!("{} / {} µs", self.setup_p50_us, self.setup_p99_us))?;
        row("longest stall", format!("{} ms", self.longest_stall_ms))?;
        row("routers took the dead leader out after", optional(self.reroute_ms, " ms"))?;
        row("commands committed", optional(self.commits, ""))?;
        match self.verdict {
            Verdict::Pass => writeln!(f, "\nPASS: no connection noticed anything.")?,
            Verdict::Fail => {
                writeln!(f, "\nFAIL:")?;
                for reason in &self.reasons {
                    writeln!(f, "  - {reason}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> (Counts, Observed) {
        let counts = Counts::default();
        for counter in [&counts.opened, &counts.echoes, &counts.forbidden_tried, &counts.looked_at, &counts.asymmetric]
        {
            counter.store(10, Ordering::Relaxed);
        }
        (counts, Observed { members: 3, reroute_ms: Some(60), commits: Some(10), ..Observed::default() })
    }

    #[test]
    fn a_good_run_passes() {
        let (counts, observed) = good();
        let report = Report::new(Mode::Palisade, &counts, observed);
        assert_eq!(report.reasons, Vec::<String>::new());
        assert_eq!(report.verdict, Verdict::Pass);
        let json = serde_json::to_value(&report).unwrap();
        for field in [
            "members",
            "connections_opened",
            "connections_lost",
            "connections_failed",
            "resets_seen",
            "asymmetric_share",
            "forbidden_tried",
            "forbidden_passed",
            "syn_retransmits",
            "setup_p50_us",
            "setup_p99_us",
            "longest_stall_ms",
            "reroute_ms",
            "commits",
        ] {
            assert!(json[field].is_number(), "{field}: {}", json[field]);
        }
        assert_eq!(json["verdict"], "PASS");
    }

    #[test]
    fn each_broken_promise_fails_the_run() {
        type Damage = fn(&Counts, &mut Observed);
        let damages: [Damage; 10] = [
            |c, _| c.lost.store(1, Ordering::Relaxed),
            |c, _| c.failed.store(1, Ordering::Relaxed),
            |c, _| c.resets.store(1, Ordering::Relaxed),
            |c, _| c.forbidden_passed.store(1, Ordering::Relaxed),
            |c, _| c.forbidden_tried.store(0, Ordering::Relaxed),
            |c, _| c.asymmetric.store(5, Ordering::Relaxed),
            |c, _| c.echoes.store(0, Ordering::Relaxed),
            |_, o| o.reroute_ms = None,
            |_, o| o.commits = Some(9),
            |_, o| o.problems.push("the new member did not become ready".to_owned()),
        ];
        for (number, damage) in damages.iter().enumerate() {
            let (counts, mut observed) = good();
            damage(&counts, &mut observed);
            let report = Report::new(Mode::Palisade, &counts, observed);
            assert_eq!(report.verdict, Verdict::Fail, "damage {number}");
            assert!(report.to_string().contains("FAIL"));
        }
    }
}
