//! What `palisade cluster recover` prints.

use std::io::{self, Write};

use palisade_node::replication::{Recovered, RecoveryPlan, RemovedMember};
use serde::Serialize;

use super::{answer, many};
use crate::args::Output;
use crate::exit::Failure;

#[derive(Serialize)]
struct Recovery<'a> {
    recovered: bool,
    /// The cluster from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<&'a str>,
    old_cluster: &'a str,
    member: u64,
    name: &'a str,
    removed: Vec<Removed<'a>>,
    last_log: u64,
    committed: u64,
    policy: u64,
    sessions: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    old_store: Option<String>,
}

#[derive(Serialize)]
struct Removed<'a> {
    id: u64,
    name: &'a str,
    address: &'a str,
    voter: bool,
    answers: bool,
}

fn json<'a>(plan: &'a RecoveryPlan, done: Option<&'a Recovered>) -> Recovery<'a> {
    let removed = |l: &'a RemovedMember| Removed {
        id: l.id.0,
        name: &l.info.name,
        address: &l.info.address,
        voter: l.voter,
        answers: l.answers,
    };
    Recovery {
        recovered: done.is_some(),
        cluster: done.map(|d| d.cluster.as_str()),
        old_cluster: &plan.cluster,
        member: plan.member.0,
        name: &plan.name,
        removed: plan.removed.iter().map(removed).collect(),
        last_log: plan.last_log,
        committed: plan.committed,
        policy: plan.policy.0,
        sessions: plan.sessions,
        old_store: done.map(|d| d.old_store.display().to_string()),
    }
}

/// Before anything is done: what will be lost, and what will be there.
///
/// # Errors
/// Standard output cannot be written.
pub fn plan(output: Output, plan: &RecoveryPlan) -> Result<(), Failure> {
    answer(output, || json(plan, None), |out| text(out, plan))
}

fn text(out: &mut dyn Write, plan: &RecoveryPlan) -> io::Result<()> {
    writeln!(out, "{} (member {}) would go on alone, as a new cluster.\n", plan.name, plan.member)?;
    writeln!(out, "Lost:")?;
    for l in &plan.removed {
        let vote = if l.voter { "voter" } else { "learner" };
        let there = if l.answers { ": IT ANSWERS; stop it, it must never run again as it is" } else { "" };
        writeln!(out, "  {} (member {}, {}, {vote}) will be removed{there}", l.info.name, l.id, l.info.address)?;
    }
    writeln!(out, "  whatever the others acknowledged after log entry {}, the last one here", plan.last_log)?;
    writeln!(out, "  join tokens: make new ones\n")?;
    writeln!(out, "Kept:")?;
    writeln!(out, "  {} and policy generation {}", many(plan.sessions, "session"), plan.policy)?;
    if plan.last_log > plan.committed {
        let (first, last) = (plan.committed + 1, plan.last_log);
        writeln!(out, "  log entries {first} to {last}, though this member never heard that they were committed")?;
    }
    writeln!(
        out,
        "\nOther machines join again, with an empty data_dir, under new ids. This cannot be taken back. If a"
    )?;
    writeln!(out, "majority of the old members ever runs again, there are TWO clusters: make sure that they stay off.")
}

/// After it was done.
///
/// # Errors
/// Standard output cannot be written.
pub fn done(output: Output, plan: &RecoveryPlan, done: &Recovered) -> Result<(), Failure> {
    answer(
        output,
        || json(plan, Some(done)),
        |out| {
            let kept = many(plan.sessions, "session");
            writeln!(out, "{} is the only member of the new cluster {}", plan.name, done.cluster)?;
            writeln!(out, "kept: {kept}, policy generation {}, the log up to entry {}", plan.policy, plan.last_log)?;
            for l in &plan.removed {
                writeln!(
                    out,
                    "removed: {} (member {}); keep it off, empty its data_dir, join it again",
                    l.info.name, l.id
                )?;
            }
            writeln!(out, "the old log in {} is not used any longer", done.old_store.display())?;
            writeln!(out, "next: start the daemon, `palisade cluster token` here, `palisade cluster join TOKEN` there")
        },
    )
}
