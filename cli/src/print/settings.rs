//! What `palisade cluster settings` prints.

use palisade_proto::admin::v1;
use serde::Serialize;

use super::{Table, answer, date};
use crate::args::Output;
use crate::exit::Failure;

#[derive(Serialize)]
struct Settings<'a> {
    revision: u64,
    settings: Vec<Setting<'a>>,
    history: Vec<Revision<'a>>,
    members: Vec<Member<'a>>,
}

#[derive(Serialize)]
struct Setting<'a> {
    key: &'a str,
    value: &'a str,
    default: &'a str,
    /// Times in milliseconds.
    number: u64,
    unit: &'a str,
}

#[derive(Serialize)]
struct Revision<'a> {
    revision: u64,
    author: &'a str,
    time: String,
    unix_ms: u64,
    changes: &'a [String],
    without: &'a [String],
}

#[derive(Serialize)]
struct Member<'a> {
    name: &'a str,
    affordable_sessions: Option<u64>,
}

impl<'a> From<&'a v1::SettingsShowResponse> for Settings<'a> {
    fn from(answered: &'a v1::SettingsShowResponse) -> Settings<'a> {
        let setting = |s: &'a v1::Setting| Setting {
            key: &s.key,
            value: &s.value,
            default: &s.default,
            number: s.number,
            unit: &s.unit,
        };
        let revision = |r: &'a v1::SettingsRevision| Revision {
            revision: r.revision,
            author: &r.author,
            time: date(r.unix_ms),
            unix_ms: r.unix_ms,
            changes: &r.changes,
            without: &r.without,
        };
        let member = |m: &'a v1::MemberAffords| Member { name: &m.name, affordable_sessions: m.sessions };
        Settings {
            revision: answered.revision,
            settings: answered.settings.iter().map(setting).collect(),
            history: answered.history.iter().map(revision).collect(),
            members: answered.members.iter().map(member).collect(),
        }
    }
}

/// After `show`.
///
/// # Errors
/// Standard output cannot be written.
pub fn show(output: Output, answered: &v1::SettingsShowResponse) -> Result<(), Failure> {
    answer(
        output,
        || Settings::from(answered),
        |out| {
            let mut table = Table::new(&["SETTING", "VALUE", "DEFAULT", "UNIT"]);
            for s in &answered.settings {
                let default = if s.value == s.default { "=".to_owned() } else { s.default.clone() };
                table.row([s.key.clone(), s.value.clone(), default, s.unit.clone()]);
            }
            table.write(out)?;
            match answered.history.last() {
                Some(last) => {
                    let changes = last.changes.join(" ");
                    writeln!(
                        out,
                        "\nrevision {}: {changes}, by {}, {}",
                        last.revision,
                        last.author,
                        date(last.unix_ms)
                    )?;
                }
                None => writeln!(out, "\nrevision 0: nobody has changed them")?,
            }
            let affords = answered.members.iter().map(|m| match m.sessions {
                Some(sessions) => format!("{} {sessions}", m.name),
                None => format!("{} has not said yet", m.name),
            });
            writeln!(out, "sessions that the members afford: {}", affords.collect::<Vec<_>>().join(", "))
        },
    )
}

#[derive(Serialize)]
struct Set<'a> {
    revision: u64,
    changed: bool,
    stopping: &'a [String],
}

/// After `set`.
///
/// # Errors
/// Standard output cannot be written.
pub fn set(output: Output, answered: &v1::SettingsSetResponse) -> Result<(), Failure> {
    let v1::SettingsSetResponse { revision, unchanged, stopping } = answered;
    answer(
        output,
        || Set { revision: *revision, changed: !unchanged, stopping },
        |out| {
            match unchanged {
                true => writeln!(out, "unchanged: revision {revision} has these values already")?,
                false => writeln!(out, "revision {revision} of the settings is in force")?,
            }
            for name in stopping {
                writeln!(
                    out,
                    "{name} does not afford them: it stops, and does not start until its limits.memory is raised"
                )?;
            }
            Ok(())
        },
    )
}
