//! What `palisade audit` prints.

use std::collections::BTreeMap;

use palisade_proto::admin::v1;
use serde::Serialize;

use super::{Table, answer};
use crate::args::Output;
use crate::exit::Failure;

#[derive(Serialize)]
struct Audit<'a> {
    equal: bool,
    index: u64,
    members: Vec<Member<'a>>,
}

#[derive(Serialize)]
struct Member<'a> {
    id: u64,
    name: &'a str,
    /// Hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    state: &'static str,
}

/// The digest that most members have.
fn most(answer: &v1::AuditResponse) -> Option<u64> {
    let mut votes: BTreeMap<u64, usize> = BTreeMap::new();
    answer.members.iter().filter_map(|m| m.digest).for_each(|digest| *votes.entry(digest).or_default() += 1);
    votes.into_iter().max_by_key(|(_, count)| *count).map(|(digest, _)| digest)
}

/// Each member's digest. Returns whether all members have answered, and all have the same.
///
/// # Errors
/// Standard output cannot be written.
pub fn audit(output: Output, report: &v1::AuditResponse) -> Result<bool, Failure> {
    let most = most(report);
    let state = |m: &v1::MemberDigest| match m.digest {
        None => "no answer",
        digest if digest == most => "equal",
        Some(_) => "different",
    };
    let members = report.members.iter().map(|m| Member {
        id: m.id,
        name: &m.name,
        digest: m.digest.map(|digest| format!("{digest:016x}")),
        state: state(m),
    });
    let members: Vec<Member<'_>> = members.collect();
    let equal = members.iter().all(|m| m.state == "equal");
    let mut table = Table::new(&["ID", "NAME", "DIGEST", "STATE"]);
    for m in &members {
        table.row([
            m.id.to_string(),
            m.name.to_owned(),
            m.digest.clone().unwrap_or("-".to_owned()),
            m.state.to_owned(),
        ]);
    }
    answer(
        output,
        || Audit { equal, index: report.index, members },
        |out| {
            table.write(out)?;
            let verdict =
                if equal { "the states of all members are equal" } else { "NOT ALL STATES ARE KNOWN TO BE EQUAL" };
            writeln!(out, "\n{verdict} at entry {}", report.index)
        },
    )?;
    Ok(equal)
}
