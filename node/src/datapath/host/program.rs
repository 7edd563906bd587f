//! Programs of others that list their rules: iptables-legacy.

use std::io;
use std::process::{Command, Stdio};

/// Runs the first of the programs that exists.
pub(super) fn run_any(programs: &[&str], arguments: &[&str]) -> io::Result<String> {
    let mut child = None;
    for program in programs {
        let spawned = Command::new(program)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
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
    let output = child.ok_or(io::ErrorKind::NotFound)?.wait_with_output()?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let text = String::from_utf8_lossy(&output.stderr);
        Err(io::Error::other(text.lines().next().unwrap_or("it failed without a message").to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_distinguished_from_a_failing_one() {
        let missing = run_any(&["/nonexistent/nft"], &[]).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        let failing = run_any(&["/nonexistent/nft", "sh"], &["-c", "echo no >&2; exit 1"]).unwrap_err();
        assert_eq!(failing.to_string(), "no");
    }
}
