//! The gate's second lock: an nftables table that drops transit in prerouting, before anything else may accept it.
//!
//! Made and read by the program `nft`, where it is installed; without it the first lock stands alone.

use std::io::{self, Write};
use std::process::{Command, Stdio};

/// The table's name, in the family `inet`.
pub(crate) const TABLE: &str = "palisade_gate";

/// Ways to run `nft` that also work where `PATH` lacks the sbin folders.
const PROGRAMS: [&str; 3] = ["nft", "/usr/sbin/nft", "/sbin/nft"];

/// The ruleset, as a script that replaces whatever was there in one transaction.
fn script(pass: &[String]) -> String {
    // Names were checked: no quote is in them.
    let names: Vec<String> = pass.iter().map(|name| format!("\"{name}\"")).collect();
    format!(
        "add table inet {TABLE}\n\
         delete table inet {TABLE}\n\
         table inet {TABLE} {{\n\
         \tchain prerouting {{\n\
         \t\ttype filter hook prerouting priority -450; policy accept;\n\
         \t\tiifname != {{ {} }} fib daddr type != {{ local, broadcast, multicast, anycast }} drop\n\
         \t}}\n\
         }}\n",
        names.join(", ")
    )
}

/// Runs `nft` with these arguments and this input; `NotFound` if there is no such program.
pub(crate) fn run(arguments: &[&str], input: &str) -> io::Result<String> {
    run_any(&PROGRAMS, arguments, input)
}

/// Runs the first of the programs that exists.
pub(crate) fn run_any(programs: &[&str], arguments: &[&str], input: &str) -> io::Result<String> {
    let mut child = None;
    for program in programs {
        let spawned = Command::new(program)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        match spawned {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => {
                child = Some(other?);
                break;
            }
        }
    }
    let mut child = child.ok_or(io::ErrorKind::NotFound)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let text = String::from_utf8_lossy(&output.stderr);
        Err(io::Error::other(text.lines().next().unwrap_or("it failed without a word").to_owned()))
    }
}

/// Installs the table, replacing what is there, and returns its listing.
pub(super) fn install(pass: &[String]) -> io::Result<String> {
    run(&["-f", "-"], &script(pass))?;
    list()
}

/// The table as it is: what changed, changed its listing.
pub(super) fn list() -> io::Result<String> {
    run(&["list", "table", "inet", TABLE], "")
}

/// Removes the table.
pub(super) fn remove() -> io::Result<()> {
    run(&["-f", "-"], &format!("add table inet {TABLE}\ndelete table inet {TABLE}\n")).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_names_every_exemption() {
        let script = script(&["lo".to_owned(), "palisade0".to_owned(), "mgmt0".to_owned()]);
        assert!(script.contains("iifname != { \"lo\", \"palisade0\", \"mgmt0\" } fib daddr type"), "{script}");
    }

    #[test]
    fn a_missing_program_is_told_from_a_failing_one() {
        let missing = run_any(&["/nonexistent/nft"], &[], "").unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        let failing = run_any(&["/nonexistent/nft", "sh"], &["-c", "echo no >&2; exit 1"], "").unwrap_err();
        assert_eq!(failing.to_string(), "no");
    }
}
