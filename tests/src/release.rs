//! The programs of other releases, for tests of rolling upgrades: built here, once, into folders beside the test's own.
//!
//! - **Previous** is the program of the commit that the file `tests/previous-release` names, built from that commit's sources.
//! - **Next** is today's sources with the feature `next-level`, which plays the release after this one. The engine's tests of what
//!   that level adds (`engine/tests/next_level.rs`) are built and run with it.
//!
//! Both use the dependencies that are compiled already: a new folder starts with copies of them, and only the crates of the
//! workspace are compiled. Not twice: the folders stay.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use parking_lot::Mutex;

/// One build at a time: two at once would not be faster.
static BUILDING: Mutex<()> = Mutex::new(());

/// A program of some release.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    /// What it is, for messages.
    pub name: String,
    /// The executable.
    pub path: PathBuf,
    /// Whether it knows the level after today's.
    pub has_next_level: bool,
}

impl Program {
    /// Today's: the one that the tests are built with.
    #[must_use]
    pub fn today(path: &str) -> Program {
        Program { name: "today's program".to_owned(), path: path.into(), has_next_level: false }
    }
}

fn workspace() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// The commit that `tests/previous-release` names; none as long as no release came before this one.
fn previous_commit() -> Result<Option<String>, String> {
    let path = workspace().join("tests/previous-release");
    let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let named = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    let is_commit = |name: &str| name.len() == 40 && name.bytes().all(|b| b.is_ascii_hexdigit());
    match named {
        Some(name) if !is_commit(name) => Err(format!("{}: `{name}` is no commit's full id", path.display())),
        named => Ok(named.map(str::to_owned)),
    }
}

/// The program of the release before this one. Today's if there was none yet, or if its commit is not in this clone and cannot
/// be fetched; a line says so.
///
/// # Errors
/// It cannot be built.
pub fn previous(today: &Program) -> Result<Program, String> {
    let _one = BUILDING.lock();
    let as_previous = |why: &str| {
        eprintln!("{why}: today's program plays the previous one");
        Program { name: "today's program, as the previous one".to_owned(), ..today.clone() }
    };
    let Some(commit) = previous_commit()? else {
        return Ok(as_previous("tests/previous-release names no commit yet"));
    };
    let name = format!("the program of {}", commit.get(..12).unwrap_or(&commit));
    let folder = folder(today)?.join(format!("previous-{commit}"));
    let path = folder.join("palisade");
    if !path.exists() {
        if let Err(why) = fetch(&commit) {
            return Ok(as_previous(&format!("the previous release, commit {commit}, cannot be had ({})", why.trim())));
        }
        let source = folder.join("source");
        extract(&commit, &source)?;
        let built = build(today, &source, &folder.join("target"), &[])?;
        fs::copy(&built, &path).map_err(|e| format!("{}: {e}", path.display()))?;
        // What is left is the program.
        for rest in [source, folder.join("target")] {
            fs::remove_dir_all(&rest).map_err(|e| format!("{}: {e}", rest.display()))?;
        }
    }
    Ok(Program { name, path, has_next_level: false })
}

/// The program of the release after this one, as far as `next-level` shows it.
///
/// # Errors
/// It cannot be built.
pub fn next(today: &Program) -> Result<Program, String> {
    let _one = BUILDING.lock();
    let path = build(today, workspace(), &next_folder(today)?, NEXT)?;
    Ok(Program { name: "today's program with the next level".to_owned(), path, has_next_level: true })
}

/// What cargo is asked for besides the program: the engine's tests of the next level are built from what that needs anyway.
const NEXT: &[&str] = &["--features=palisade-node/next-level", "--test=next_level"];

fn next_folder(today: &Program) -> Result<PathBuf, String> {
    Ok(folder(today)?.join("next-level"))
}

/// Runs the engine's tests of the next level. Returns what they say.
///
/// # Errors
/// One fails, or they cannot be built.
pub fn test_next(today: &Program) -> Result<String, String> {
    let _one = BUILDING.lock();
    let target = next_folder(today)?;
    build(today, workspace(), &target, NEXT)?;
    let mut cargo = cargo(workspace(), &target);
    let said = run(cargo.args(["test", "--workspace", "--locked", "--offline"]).args(NEXT))?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// Where the programs are kept: in the target folder.
fn folder(today: &Program) -> Result<PathBuf, String> {
    let target = today.path.parent().and_then(Path::parent).ok_or("today's program is in no target folder")?;
    let folder = target.join("rolling-upgrade");
    fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    Ok(folder)
}

/// Runs a program to its end. Its standard output, or what it said instead.
fn run(command: &mut Command) -> Result<Vec<u8>, String> {
    let what = format!("{:?}", command.get_program());
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("{what}: {e}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(format!("{what} ended with {}:\n{}", output.status, String::from_utf8_lossy(&output.stderr)))
}

fn git(args: &[&str]) -> Result<Vec<u8>, String> {
    run(Command::new("git").arg("-C").arg(workspace()).args(args))
}

/// Sees to it that a commit is in this clone, which may be a shallow one. Only where nothing may be skipped is it fetched.
fn fetch(commit: &str) -> Result<(), String> {
    let object = format!("{commit}^{{commit}}");
    if git(&["cat-file", "-e", &object]).is_ok() {
        return Ok(());
    }
    if env::var_os("PALISADE_REQUIRE_LAB").is_none_or(|v| v != "1") {
        return Err(format!(
            "the previous release, commit {commit}, is not in this clone (`git fetch origin {commit}`)"
        ));
    }
    git(&["fetch", "--quiet", "--depth", "1", "origin", commit])?;
    git(&["cat-file", "-e", &object]).map(drop)
}

/// Puts a commit's files into a folder.
fn extract(commit: &str, to: &Path) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("{}: {e}", to.display());
    if to.exists() {
        fs::remove_dir_all(to).map_err(failed)?;
    }
    fs::create_dir_all(to).map_err(failed)?;
    let archive = to.join("archive.tar");
    fs::write(&archive, git(&["archive", "--format=tar", commit])?).map_err(failed)?;
    run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(to))?;
    fs::remove_file(&archive).map_err(failed)
}

/// Starts a target folder with the dependencies that this test was built with. They keep their times: cargo compares them.
fn seed(today: &Program, target: &Path) -> Result<(), String> {
    let debug = target.join("debug");
    let from = today.path.parent().ok_or("today's program is in no folder")?;
    if debug.exists() || !from.ends_with("debug") {
        return Ok(());
    }
    let parts = target.join("parts");
    fs::create_dir_all(&parts).map_err(|e| format!("{}: {e}", parts.display()))?;
    run(Command::new("cp").arg("-a").arg(from.join(".fingerprint")).arg(from.join("build")).arg(&parts))?;
    run(Command::new("cp").arg("-al").arg(from.join("deps")).arg(&parts))?;
    // The workspace's own crates have the same names in both folders: they must not share a file.
    for folder in [".fingerprint", "build", "deps"] {
        let folder = parts.join(folder);
        let entries = fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let library = [".rlib", ".rmeta", ".so"].iter().any(|end| name.ends_with(end));
            if name.contains("palisade") || (folder.ends_with("deps") && !library) {
                let path = entry.path();
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.map_err(|e| format!("{}: {e}", path.display()))?;
            }
        }
    }
    fs::rename(&parts, &debug).map_err(|e| format!("{}: {e}", debug.display()))
}

/// Cargo in a workspace, with the profile of the programs.
fn cargo(source: &Path, target: &Path) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(source).env("CARGO_TARGET_DIR", target);
    // What cargo says to this test is not for that build.
    let ours = |name: &str| {
        ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"].iter().any(|p| name.starts_with(p))
    };
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(ours)) {
        cargo.env_remove(name);
    }
    // Quickly built rather than quick; an explicit choice counts.
    if env::var_os("CARGO_PROFILE_DEV_OPT_LEVEL").is_none() {
        cargo.env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
    }
    cargo.env("CARGO_PROFILE_DEV_DEBUG", "0");
    cargo
}

/// Builds the program from `source`. Returns the executable.
#[expect(clippy::disallowed_methods, reason = "it says how long the build took")]
fn build(today: &Program, source: &Path, target: &Path, more: &[&str]) -> Result<PathBuf, String> {
    seed(today, target)?;
    let begun = Instant::now();
    let mut said = String::new();
    // Without the network first: the crates of Cargo.lock are there, unless another commit has other ones.
    for network in [&["--offline"][..], &[]] {
        let mut cargo = cargo(source, target);
        // A test target as well, although nobody runs it: so dependencies have the features that they have in this build.
        cargo
            .args(["build", "--workspace", "--locked", "--bin", "palisade-under-test", "--test", "docs"])
            .args(network)
            .args(more);
        match run(&mut cargo) {
            Ok(_) => {
                eprintln!("built {} in {:.0?}", target.display(), begun.elapsed());
                return Ok(target.join("debug/palisade-under-test"));
            }
            Err(why) => said = why,
        }
    }
    Err(said)
}
