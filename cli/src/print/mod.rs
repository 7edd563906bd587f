//! Printers: what commands answer, for people or for machines. The JSON's field names are part of the interface.

pub mod audit;
pub mod cluster;
pub mod config;
pub mod drain;
pub mod gate;
pub mod health;
pub mod level;
pub mod log;
pub mod policy;
pub mod recover;
pub mod session;
pub mod settings;

use std::io::{self, Write};
use std::time::Duration;

use palisade_node::connection_log::date_and_time;
use serde::Serialize;

use crate::args::Output;
use crate::exit::Failure;

/// Writes to standard output. That nobody reads on (`| head`) is no failure.
///
/// # Errors
/// Standard output cannot be written, for another reason.
pub fn out(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match write(&mut stdout).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => Err(Failure::from(e)),
        Ok(()) => Ok(()),
    }
}

/// One answer: a JSON document, or what `table` writes.
fn answer<T: Serialize>(
    output: Output,
    json: impl FnOnce() -> T,
    table: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), Failure> {
    match output {
        Output::Table => out(table),
        Output::Json => {
            let text = serde_json::to_string_pretty(&json()).map_err(io::Error::from)?;
            out(|out| writeln!(out, "{text}"))
        }
    }
}

/// `1 session`, `2 sessions`.
fn many(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// One line of a stream of answers, as JSON.
fn json_line<T: Serialize>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(io::Error::from)?;
    out(|out| writeln!(out, "{text}"))
}

/// Columns below their heads, two blanks apart. No trailing blanks, so that copies of it diff well.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With these heads.
    #[must_use]
    pub fn new(heads: &[&str]) -> Table {
        Table { rows: vec![heads.iter().map(|h| (*h).to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    /// Writes it.
    ///
    /// # Errors
    /// The writer's.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |c: usize| self.rows.iter().filter_map(|r| r.get(c)).map(|t| t.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, w)| format!("{cell:<w$}")).collect();
            writeln!(out, "{}", cells.join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// A time in at most two units: `3d4h`, `5m10s`, `12s`, `350ms`.
#[must_use]
pub fn time(t: Duration) -> String {
    let s = t.as_secs();
    match s {
        0 => format!("{}ms", t.as_millis()),
        1..60 => format!("{s}s"),
        60..3600 => format!("{}m{}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{}h", s / 86_400, s % 86_400 / 3600),
    }
}

/// Milliseconds since 1970 as RFC 3339 in UTC, to the second.
#[must_use]
pub fn date(unix_ms: u64) -> String {
    format!("{}Z", date_and_time(unix_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(date(1_709_251_199_999), "2024-02-29T23:59:59Z");
        assert_eq!(date(4_102_444_800_000), "2100-01-01T00:00:00Z");
    }

    #[test]
    fn times_have_at_most_two_units() {
        assert_eq!(time(Duration::from_millis(350)), "350ms");
        assert_eq!(time(Duration::from_secs(59)), "59s");
        assert_eq!(time(Duration::from_secs(310)), "5m10s");
        assert_eq!(time(Duration::from_secs(4 * 3600 + 60)), "4h1m");
        assert_eq!(time(Duration::from_secs(3 * 86_400 + 4 * 3600)), "3d4h");
    }

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["ID", "NAME"]);
        table.row(["1".into(), "fw1".into()]);
        table.row(["100".into(), "x".into()]);
        let mut text = Vec::new();
        table.write(&mut text).unwrap();
        assert_eq!(String::from_utf8(text).unwrap(), "ID   NAME\n1    fw1\n100  x\n");
    }
}
