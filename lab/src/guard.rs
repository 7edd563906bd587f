//! Who may run lab tests, and that only one runs at a time.

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

/// Waits for this test's turn. `None`, with a line that says why, if the lab can not run here: not root, or one of
/// `programs` is missing.
///
/// # Panics
/// The lab can not run, but `PALISADE_REQUIRE_LAB=1` demands that it does.
#[must_use]
pub fn require_lab(programs: &[&str]) -> Option<Turn> {
    turn(programs).map_or_else(|why| skip("", &why), Some)
}

/// Are the programs there that one part of a lab test needs? If not, that is said.
///
/// # Panics
/// One is missing, but `PALISADE_REQUIRE_LAB=1` demands that nothing is skipped.
#[must_use]
pub fn require_programs(part: &str, programs: &[&str]) -> bool {
    installed(programs).map_or_else(|why| skip(&format!(" {part}"), &why), Some).is_some()
}

#[allow(clippy::panic, reason = "a test that is required and can not run has failed")]
fn skip<T>(what: &str, why: &str) -> Option<T> {
    if env::var_os("PALISADE_REQUIRE_LAB").is_some_and(|v| v == "1") {
        panic!("PALISADE_REQUIRE_LAB=1, but {why}");
    }
    // Not `eprintln!`, which the harness hides when the test passes.
    let _ = writeln!(std::io::stderr(), "skipped{what}: {why}");
    None
}

fn installed(programs: &[&str]) -> Result<(), String> {
    match programs.iter().find(|p| find_program(p).is_none()) {
        Some(missing) => Err(format!("there is no {missing} on this machine")),
        None => Ok(()),
    }
}

fn turn(programs: &[&str]) -> Result<Turn, String> {
    if !geteuid().is_root() {
        return Err("lab tests need root".to_owned());
    }
    installed(programs)?;
    let path = env::temp_dir().join("palisade-lab.lock");
    let open = || {
        let file = File::create(&path)?;
        // Gone with the process, however that ends. Also between processes: `cargo test` and nextest alike.
        file.lock()?;
        Ok::<_, std::io::Error>(file)
    };
    open().map(|lock| Turn { _lock: lock }).map_err(|e| format!("{}: {e}", path.display()))
}
