//! The demo as its users run it: as a program.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use palisade_lab::guard::require_lab;
use serde_json::Value;
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-under-test");

fn report(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text)
        .unwrap_or_else(|e| panic!("{e} in {text:?}; {}", String::from_utf8_lossy(&output.stderr)))
}

fn said(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn demo(binary: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(binary);
    command.args(["demo", "--json"]).args(args);
    command
}

fn assert_passed(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", said(output));
    let report = report(output);
    assert_eq!(report["verdict"], "PASS", "{report}");
    for none in ["connections_lost", "connections_failed", "resets_seen", "forbidden_passed"] {
        assert_eq!(report[none], 0, "{none}: {report}");
    }
    assert!(report["asymmetric_share"].as_f64().unwrap() > 0.5, "{report}");
    for some in ["connections_opened", "forbidden_tried", "commits", "setup_p50_us", "longest_stall_ms", "reroute_ms"] {
        assert!(report[some].as_u64().unwrap() > 0, "{some}: {report}");
    }
    assert!(report["connections_opened"].as_u64().unwrap() > 240, "{report}");
}

#[test]
fn the_demo_passes() {
    let Some(_turn) = require_lab(&[]) else { return };
    assert_passed(&demo(BINARY.as_ref(), &["--seconds", "20"]).output().unwrap());
}

#[test]
fn without_replication_connections_are_lost_and_the_demo_fails() {
    let Some(_turn) = require_lab(&[]) else { return };
    let output = demo(BINARY.as_ref(), &["--seconds", "15", "--break", "replication"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let report = report(&output);
    assert_eq!(report["verdict"], "FAIL", "{report}");
    let count = |name: &str| report[name].as_u64().unwrap();
    assert!(count("connections_lost") + count("connections_failed") > 0, "{report}");
}

#[test]
fn an_unprivileged_user_can_run_the_demo() {
    let Some(_turn) = require_lab(&[]) else { return };
    let (_dir, binary) = copy_for_all();
    let mut command = demo(&binary, &["--seconds", "15"]);
    // `nobody` and `nogroup`.
    let output = command.uid(65534).gid(65534).current_dir("/").output().unwrap();
    if output.status.code() != Some(0) && said(&output).contains("a user namespace is not to be had") {
        eprintln!("skipped: {}", said(&output));
        assert!(std::env::var_os("PALISADE_REQUIRE_LAB").is_none(), "{}", said(&output));
        return;
    }
    assert_passed(&output);
    assert!(said(&output).contains("user namespace"), "{}", said(&output));
}

#[test]
fn plain_forwarding_fails_the_demo_because_the_forbidden_passes() {
    let Some(_turn) = require_lab(&[]) else { return };
    let output = demo(BINARY.as_ref(), &["--seconds", "10", "--baseline"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let report = report(&output);
    assert!(report["forbidden_passed"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(report["connections_lost"], 0, "the lab itself loses connections: {report}");
}

/// The executable where anybody may run it.
fn copy_for_all() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let binary = dir.path().join("palisade");
    std::fs::copy(BINARY, &binary).unwrap();
    std::fs::set_permissions(&binary, Permissions::from_mode(0o755)).unwrap();
    (dir, binary)
}
