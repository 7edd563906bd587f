//! What `palisade cluster level` prints.

use palisade_proto::admin::v1;
use serde::Serialize;

use super::{Table, answer};
use crate::args::Output;
use crate::exit::Failure;

/// What a member has registered that it can.
#[derive(Serialize)]
pub(super) struct Capabilities<'a> {
    program: &'a str,
    lowest_level: u32,
    highest_level: u32,
    max_sessions: u64,
}

impl<'a> From<&'a v1::Capabilities> for Capabilities<'a> {
    fn from(known: &'a v1::Capabilities) -> Capabilities<'a> {
        Capabilities {
            program: &known.program,
            lowest_level: known.lowest_level,
            highest_level: known.highest_level,
            max_sessions: known.max_sessions,
        }
    }
}

/// A member's program and its levels, in two cells of a table.
pub(super) fn cells(member: &v1::Member) -> [String; 2] {
    match &member.capabilities {
        None => ["-".to_owned(), "-".to_owned()],
        Some(known) if known.lowest_level == known.highest_level => {
            [known.program.clone(), known.lowest_level.to_string()]
        }
        Some(known) => [known.program.clone(), format!("{}-{}", known.lowest_level, known.highest_level)],
    }
}

/// What can be done about the level in force; nothing if all is as it should be.
pub(super) fn note(membership: &v1::Membership) -> Option<String> {
    let v1::Membership { level, possible_level, .. } = membership;
    if possible_level > level {
        return Some(format!(
            "every member knows level {possible_level}: if nobody has to go back to the programs before, `palisade cluster level raise {possible_level}`"
        ));
    }
    let known = |m: &v1::Member| m.capabilities.as_ref().map_or(*level, |known| known.highest_level);
    let best = membership.members.iter().map(known).max().filter(|best| best > level)?;
    let behind = membership.members.iter().filter(|m| known(m) < best).map(|m| m.name.as_str());
    Some(format!("not upgraded to level {best} yet: {}", behind.collect::<Vec<_>>().join(", ")))
}

#[derive(Serialize)]
struct Levels<'a> {
    level: u32,
    possible_level: u32,
    members: Vec<Member<'a>>,
}

#[derive(Serialize)]
struct Member<'a> {
    id: u64,
    name: &'a str,
    /// `None`: it has not started since it joined.
    capabilities: Option<Capabilities<'a>>,
}

/// The level in force and the members' levels.
///
/// # Errors
/// Standard output cannot be written.
pub fn show(output: Output, membership: &v1::Membership) -> Result<(), Failure> {
    let json = || Levels {
        level: membership.level,
        possible_level: membership.possible_level,
        members: membership
            .members
            .iter()
            .map(|m| Member { id: m.id, name: &m.name, capabilities: m.capabilities.as_ref().map(Into::into) })
            .collect(),
    };
    answer(output, json, |out| {
        writeln!(out, "level {} is in force", membership.level)?;
        if let Some(note) = note(membership) {
            writeln!(out, "{note}")?;
        }
        writeln!(out)?;
        let mut table = Table::new(&["ID", "NAME", "PROGRAM", "LEVELS"]);
        for member in &membership.members {
            let [program, levels] = cells(member);
            table.row([member.id.to_string(), member.name.clone(), program, levels]);
        }
        table.write(out)
    })
}

#[derive(Serialize)]
struct Raised {
    level: u32,
}

/// After `raise`.
///
/// # Errors
/// Standard output cannot be written.
pub fn raised(output: Output, answered: &v1::LevelRaiseResponse) -> Result<(), Failure> {
    let level = answered.level;
    answer(output, || Raised { level }, |out| writeln!(out, "level {level} is in force"))
}
