//! Who may run lab tests, and that only one runs at a time.

use std::env;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

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
#[allow(clippy::panic, reason = "a test that is required and can not run has failed")]
pub fn require_lab(programs: &[&str]) -> Option<Turn> {
    match turn(programs) {
        Ok(turn) => Some(turn),
        Err(why) if env::var_os("PALISADE_REQUIRE_LAB").is_some_and(|v| v == "1") => {
            panic!("PALISADE_REQUIRE_LAB=1, but {why}")
        }
        Err(why) => {
            // Not `eprintln!`, which the harness hides when the test passes.
            let _ = writeln!(std::io::stderr(), "skipped: {why}");
            None
        }
    }
}

fn turn(programs: &[&str]) -> Result<Turn, String> {
    if !geteuid().is_root() {
        return Err("lab tests need root".to_owned());
    }
    if let Some(missing) = programs.iter().find(|p| find_program(p).is_none()) {
        return Err(format!("there is no {missing} on this machine"));
    }
    let path = env::temp_dir().join("palisade-lab.lock");
    let open = || {
        let file = File::create(&path)?;
        // Gone with the process, however that ends. Also between processes: `cargo test` and nextest alike.
        file.lock()?;
        Ok::<_, std::io::Error>(file)
    };
    open().map(|lock| Turn { _lock: lock }).map_err(|e| format!("{}: {e}", path.display()))
}

/// Where a program is: in `PATH`, in the folders that only root has there, or where Debian hides PostgreSQL's.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    let postgres = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let postgres = postgres.map(|version| version.path().join("bin"));
    env::split_paths(&path).chain(usual).chain(postgres).map(|dir| dir.join(name)).find(|p| is_file(p))
}

fn is_file(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| m.is_file())
}
