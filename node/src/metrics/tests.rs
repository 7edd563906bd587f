use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};

use palisade_engine::{ClusterState, Counts, Generation, LeaseState, Protocol, TakeoverCounts};
use palisade_metrics::Kind;

use super::*;
use crate::connection_log::ConnectionLogMetrics;

fn example() -> MetricFamilies {
    let mut families = MetricFamilies::default();
    let counts = Counts {
        sessions: vec![(Protocol::TCP, "ESTABLISHED", 3), (Protocol::UDP, "ASSURED", 1)],
        half_open: 2,
        half_open_evicted: 5,
    };
    sessions::table(&mut families, &counts, &palisade_engine::replica::Settings::default(), 2_000_000);
    sessions::cluster(&mut families, LeaseState::Valid, Generation(4), &ClusterState::default());
    process::collect(&mut families);
    let buckets = vec![(0.1, 2), (0.2, 1), (f64::INFINITY, 1)];
    families.add("palisade_x_seconds", &["A histogram."], Kind::Histogram, |samples| samples.histogram(0.75, buckets));
    families
}

#[test]
fn exposition_writes_counters_histograms_and_labels_in_both_formats() {
    let text = exposition::text(example());
    for line in [
        "# HELP palisade_half_open_sessions_evicted_total Half-open sessions evicted to make room for newer ones.",
        "# TYPE palisade_half_open_sessions_evicted_total counter",
        "palisade_half_open_sessions_evicted_total 5",
        "palisade_sessions{protocol=\"tcp\",state=\"ESTABLISHED\"} 3",
        "palisade_lease_state{state=\"valid\"} 1",
        "palisade_lease_state{state=\"expired\"} 0",
        "# TYPE palisade_x_seconds histogram",
        "palisade_x_seconds_bucket{le=\"0.1\"} 2",
        "palisade_x_seconds_bucket{le=\"0.2\"} 3",
        "palisade_x_seconds_bucket{le=\"+Inf\"} 4",
        "palisade_x_seconds_count 4",
        "palisade_x_seconds_sum 0.75",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
    }
    let open = exposition::openmetrics(example());
    assert!(open.contains("# TYPE palisade_half_open_sessions_evicted counter\n"), "{open}");
    assert!(open.ends_with("# EOF\n"));
}

/// Every sample belongs to the family announced above it, every family has a help text, and none comes twice.
#[test]
fn exposition_is_well_formed() {
    check(&exposition::text(page()));
}

/// Checks a page; other tests have one of a whole daemon.
pub(crate) fn check(text: &str) {
    let mut families = BTreeSet::new();
    let mut samples = BTreeSet::new();
    let mut family = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(help.len() > 5, "{line}");
            assert!(families.insert(name.to_owned()), "{name} comes twice");
            family = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            assert_eq!(rest.split_once(' ').unwrap().0, family);
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            value.parse::<f64>().unwrap();
            assert!(series.starts_with(&family) && series.starts_with("palisade_"), "{line} below {family}");
            assert!(samples.insert(series.to_owned()), "{series} comes twice");
        }
    }
}

/// Every metric that a firewall's `/metrics` can have.
fn page() -> MetricFamilies {
    use palisade_engine::{MemberId, MemberInfo, Role};

    let member = |id: u64| crate::replication::Member {
        id: MemberId(id),
        info: MemberInfo { name: format!("fw{id}"), address: "10.9.0.1:7946".into(), role: Role::Firewall },
        voter: true,
        suffrage: crate::replication::Suffrage::Voter,
        leader: id == 1,
        matched: Some(1),
        lag: Some(0),
        reachable: true,
        draining: false,
        lease_valid: true,
        removed: false,
        cannot_read: None,
        joining: false,
    };
    let status = crate::replication::Status {
        cluster: String::new(),
        member: MemberId(1),
        name: "fw1".into(),
        starts: 1,
        role: crate::replication::RaftRole::Leader,
        term: 1,
        leader: Some(MemberId(1)),
        quorum: crate::replication::Quorum { held: true, voters: 2, answering: 2, changing: false },
        last_log: Some(1),
        committed: Some(1),
        applied: Some(1),
        snapshot: None,
        purged: None,
        members: vec![member(1), member(2)],
        lease: LeaseState::Valid,
    };
    let mut families = MetricFamilies::default();
    let counts = Counts { sessions: vec![(Protocol::TCP, "ESTABLISHED", 3)], half_open: 2, half_open_evicted: 5 };
    member_state(&mut families, crate::readiness::Grade::Full, true, false, None);
    sessions::table(&mut families, &counts, &palisade_engine::replica::Settings::default(), 2_000_000);
    sessions::takeovers(&mut families, TakeoverCounts::default());
    sessions::cluster(&mut families, LeaseState::Valid, Generation(4), &ClusterState::default());
    process::collect(&mut families);
    gate(&mut families, &GateStatus { rules: true, nft: Nft::Installed, problems: Vec::new() });
    raft::collect(&mut families, &status);
    let (replication, store) = Default::default();
    counted(&mut families, &replication, &store, Some(&DatapathMetrics::new(2, ["eth0"])));
    ConnectionLogMetrics::collect(&[&ConnectionLogMetrics::default()], &mut families);
    sessions::rule_hits(&mut families, &[], 0);
    crate::limits::AdminLimits::default().collect(&mut families);
    crate::http::HttpMetrics::collect(&[&crate::http::HttpMetrics::default()], &mut families);
    families
}

fn names() -> BTreeSet<String> {
    page().iter().map(|family| family.name.to_owned()).collect()
}

fn documented() -> BTreeSet<String> {
    let docs = include_str!("../../../docs/metrics.md");
    docs.lines().filter_map(|l| Some(l.strip_prefix("| `")?.split_once('`')?.0.to_owned())).collect()
}

#[test]
fn docs_name_every_metric() {
    let (families, documented) = (names(), documented());
    let join = |set: Vec<&String>| set.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let missing = join(families.difference(&documented).collect());
    let gone = join(documented.difference(&families).filter(|name| name.starts_with("palisade_")).collect());
    assert!(missing.is_empty() && gone.is_empty(), "docs/metrics.md lacks: {missing}; has, but no metric is: {gone}");
}

/// The page of limits says of each what happens at the bound and which figure shows it, and those figures exist.
#[test]
fn limits_are_shown_by_metrics_that_exist() {
    let families = names();
    let page = include_str!("../../../docs/limits.md");
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter(|l| l.starts_with("| ") && !l.starts_with("| what |"))
        .map(|l| l.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    assert!(rows.len() > 40, "{}", rows.len());
    for row in rows {
        let [what, bound, then, shown] = row[..] else { panic!("{row:?} has not four columns") };
        assert!(
            !what.is_empty() && bound.contains(|c: char| c.is_ascii_digit() || c == '`') && !then.is_empty(),
            "{row:?}"
        );
        let named: Vec<&str> = shown.split('`').filter(|word| word.starts_with("palisade_")).collect();
        assert_eq!(named.is_empty(), shown == "–", "{row:?}");
        for name in named {
            assert!(families.contains(name), "no metric is named {name}");
        }
    }
    let reasons = page.split("dropped: `").skip(1).filter_map(|rest| rest.split('`').next());
    for reason in reasons.chain(["table_full", "hold_full"]) {
        assert!(palisade_engine::Reason::ALL.iter().any(|r| r.label() == reason), "no reason is named {reason}");
    }
}

#[test]
fn docs_name_every_reason() {
    let documented = documented();
    for reason in palisade_engine::Reason::ALL {
        assert!(documented.contains(reason.label()), "docs/metrics.md lacks the reason {}", reason.label());
    }
}

/// An alert on a metric that does not exist never fires.
#[test]
fn alerts_ask_for_metrics_that_exist() {
    let alerts = include_str!("../../../deploy/prometheus/palisade-alerts.yml");
    let families = names();
    let word = |c: char| !c.is_ascii_alphanumeric() && c != '_';
    let named: BTreeSet<&str> = alerts
        .lines()
        .filter_map(|l| l.trim().strip_prefix("expr: "))
        .flat_map(|expr| expr.split(word))
        .filter(|w| w.starts_with("palisade_"))
        .collect();
    assert!(named.len() > 5, "{named:?}");
    for name in named {
        assert!(families.contains(name), "no metric is named {name}");
    }
}

#[test]
fn promtool_accepts_the_alerts() {
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/prometheus/palisade-alerts.yml");
    match Command::new("promtool").args(["check", "rules", rules]).output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => eprintln!("SKIPPED: promtool is not installed (Debian: prometheus)"),
    }
}

/// Each alert fires in its test, and is silent before: an alert without one may never fire.
#[test]
fn promtool_tests_each_alert() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/prometheus");
    let read = |name: &str| std::fs::read_to_string(format!("{folder}/{name}")).unwrap();
    let (alerts, tests) = (read("palisade-alerts.yml"), read("palisade-alerts.test.yml"));
    let names: BTreeSet<&str> = alerts.lines().filter_map(|l| l.trim().strip_prefix("- alert: ")).collect();
    let silent: BTreeSet<&str> =
        tests.lines().filter_map(|l| l.trim().split_once(", alertname: ")?.1.strip_suffix('}')).collect();
    let firing: BTreeSet<&str> = tests.lines().filter_map(|l| l.trim().strip_prefix("alertname: ")).collect();
    assert!(names.len() > 20, "{names:?}");
    assert_eq!(names.difference(&firing).collect::<Vec<_>>(), Vec::<&&str>::new(), "do not fire in any test");
    assert_eq!(names.difference(&silent).collect::<Vec<_>>(), Vec::<&&str>::new(), "are not silent in any test");
    match Command::new("promtool").args(["test", "rules", "palisade-alerts.test.yml"]).current_dir(folder).output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => eprintln!("SKIPPED: promtool is not installed (Debian: prometheus)"),
    }
}

#[test]
fn promtool_accepts_the_page() {
    let child =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut child) = child else {
        eprintln!("SKIPPED: promtool is not installed (Debian: prometheus)");
        return;
    };
    child.stdin.take().unwrap().write_all(exposition::text(page()).as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
