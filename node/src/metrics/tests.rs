use std::io::Write as _;
use std::process::{Command, Stdio};

use palisade_engine::engine::{Counts, View};
use palisade_engine::id::Generation;
use palisade_engine::{Protocol, Standing};

use super::*;

fn sheet() -> Sheet {
    let mut sheet = Sheet::default();
    let counts = Counts {
        sessions: vec![(Protocol::TCP, "ESTABLISHED", 3), (Protocol::UDP, "ASSURED", 1)],
        half_open: 2,
        half_open_evicted: 5,
    };
    engine::sessions(&mut sheet, &counts, (1000, 100));
    engine::cluster(&mut sheet, Some(Standing::Current), Generation(4), &View::default());
    process::write(&mut sheet);
    sheet.histogram("palisade_x_seconds", "A histogram", 0.75, 4, [(0.1, 2), (0.2, 1)]);
    sheet
}

#[test]
fn counters_histograms_and_labels_are_written_as_they_must_be() {
    let text = sheet().text();
    for line in [
        "# TYPE palisade_half_open_sessions_evicted_total counter",
        "palisade_half_open_sessions_evicted_total 5",
        "palisade_sessions{protocol=\"tcp\",state=\"ESTABLISHED\"} 3",
        "palisade_current 1",
        "palisade_standing{standing=\"expired\"} 0",
        "# TYPE palisade_x_seconds histogram",
        "palisade_x_seconds_bucket{le=\"0.1\"} 2",
        "palisade_x_seconds_bucket{le=\"0.2\"} 3",
        "palisade_x_seconds_bucket{le=\"+Inf\"} 4",
        "palisade_x_seconds_count 4",
        "palisade_x_seconds_sum 0.75",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
    }
    let open = sheet().openmetrics();
    assert!(open.contains("# TYPE palisade_half_open_sessions_evicted counter\n"), "{open}");
    assert!(open.ends_with("# EOF\n"));
}

/// Every sample belongs to the family announced above it, every family has a help text, and none comes twice.
#[test]
fn the_text_is_well_formed() {
    check(&sheet().text());
}

/// As above; for the whole daemon's text too.
pub(crate) fn check(text: &str) {
    let mut families = std::collections::BTreeSet::new();
    let mut samples = std::collections::BTreeSet::new();
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

#[test]
fn promtool_accepts_it() {
    let child =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut child) = child else {
        eprintln!("SKIPPED: promtool is not installed (Debian: prometheus)");
        return;
    };
    child.stdin.take().unwrap().write_all(sheet().text().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
