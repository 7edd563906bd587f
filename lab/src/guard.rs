//! Whether lab tests can run here, and a lock so that only one runs at a time.

use std::env;
use std::fs::File;
use std::io::Write;

use nix::unistd::geteuid;

use crate::program::find_program;

/// Held while a lab test runs: two at once would measure each other.
#[derive(Debug)]
pub struct Turn {
    _lock: File,
}

/// The programs that tests use, and the Debian package of each.
const PACKAGES: &[(&str, &str)] = &[
    ("cmp", "diffutils"),
    ("dig", "bind9-dnsutils"),
    ("dnsmasq", "dnsmasq-base"),
    ("ethtool", "ethtool"),
    ("h2load", "nghttp2-client"),
    ("initdb", "postgresql"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mount", "mount"),
    ("nft", "nftables"),
    ("nginx", "nginx-light"),
    ("openssl", "openssl"),
    ("pgbench", "postgresql"),
    ("ping", "iputils-ping"),
    ("postgres", "postgresql"),
    ("prlimit", "util-linux"),
    ("prometheus", "prometheus"),
    ("promtool", "prometheus"),
    ("rsync", "rsync"),
    ("setpriv", "util-linux"),
    ("sysctl", "procps"),
    ("tcpdump", "tcpdump"),
    ("traceroute", "traceroute"),
    ("unshare", "util-linux"),
    ("wrk", "wrk"),
];

/// The Debian package of a program.
#[must_use]
pub fn package(program: &str) -> Option<&'static str> {
    PACKAGES.iter().find(|(name, _)| *name == program).map(|(_, package)| *package)
}

/// Waits for this test's turn. `None`, with a line that says why, if the lab cannot run here: not root, or one of `programs`
/// is missing.
///
/// # Panics
/// The lab cannot run, but `PALISADE_REQUIRE_LAB=1` demands that it does.
#[must_use]
pub fn require_lab(programs: &[&str]) -> Option<Turn> {
    possible(programs).and_then(|()| turn()).map_or_else(|why| skip("", &why), Some)
}

/// Whether a test that needs no turn can run here: this is root, and the programs are there. If not, a line says why.
///
/// # Panics
/// It cannot, but `PALISADE_REQUIRE_LAB=1` demands that it does.
#[must_use]
pub fn can_run(test: &str, programs: &[&str]) -> bool {
    possible(programs).map_or_else(|why| skip(&format!(" {test}"), &why), Some).is_some()
}

/// Whether the programs are there that one part of a lab test needs. If not, a line says so.
///
/// # Panics
/// One is missing, but `PALISADE_REQUIRE_LAB=1` demands that nothing is skipped.
#[must_use]
pub fn require_programs(part: &str, programs: &[&str]) -> bool {
    installed(programs).map_or_else(|why| skip(&format!(" {part}"), &why), Some).is_some()
}

/// Says that a test, or a part of one, is skipped, and why.
///
/// # Panics
/// `PALISADE_REQUIRE_LAB=1` demands that nothing is skipped.
#[allow(clippy::panic, reason = "a test that is required and cannot run has failed")]
pub fn skip<T>(what: &str, why: &str) -> Option<T> {
    if env::var_os("PALISADE_REQUIRE_LAB").is_some_and(|v| v == "1") {
        panic!("PALISADE_REQUIRE_LAB=1, but {why}");
    }
    // Not `eprintln!`, which the harness hides when the test passes.
    let _ = writeln!(std::io::stderr(), "SKIPPED{what}: {why}");
    None
}

/// What is missing of the programs, in words.
///
/// # Errors
/// Something is.
pub fn installed(programs: &[&str]) -> Result<(), String> {
    let missing: Vec<&str> = programs.iter().copied().filter(|p| find_program(p).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<&str> = missing.iter().filter_map(|p| package(p)).collect();
    packages.sort_unstable();
    packages.dedup();
    Err(format!(
        "there is no {} on this machine (Debian: apt-get install {})",
        missing.join(", no "),
        packages.join(" ")
    ))
}

fn possible(programs: &[&str]) -> Result<(), String> {
    if geteuid().is_root() { installed(programs) } else { Err("lab tests need root".to_owned()) }
}

fn turn() -> Result<Turn, String> {
    let path = env::temp_dir().join("palisade-lab.lock");
    let open = || {
        let file = File::create(&path)?;
        // Gone with the process, however that ends. Also between processes: `cargo test` and nextest alike.
        file.lock()?;
        Ok::<_, std::io::Error>(file)
    };
    open().map(|lock| Turn { _lock: lock }).map_err(|e| format!("{}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_programs_are_named_with_their_packages() {
        assert_eq!(installed(&["sh"]), Ok(()));
        let why = installed(&["sh", "no-such-program"]).unwrap_err();
        assert!(why.contains("no-such-program"), "{why}");
        let two: Vec<&str> = ["promtool", "prometheus"].iter().filter_map(|p| package(p)).collect();
        assert_eq!(two, ["prometheus", "prometheus"]);
    }
}
