//! What `palisade gate` prints.

use miette::Diagnostic;
use palisade_node::boot::GateAtBoot;
use palisade_node::datapath::{GateStatus, Nft};
use serde::Serialize;

use super::answer;
use crate::args::Output;
use crate::exit::Failure;

#[derive(Serialize)]
struct Status<'a> {
    /// Everything that could be there is.
    whole: bool,
    rules: bool,
    nftables: &'static str,
    problems: &'a [String],
}

/// Which locks are there; returns whether all that could be are.
///
/// # Errors
/// Standard output cannot be written.
pub fn status(output: Output, s: &GateStatus) -> Result<bool, Failure> {
    let (nftables, note) = match &s.nft {
        Nft::Installed => ("installed", String::new()),
        Nft::Missing => ("missing", String::new()),
        Nft::Unavailable(why) => ("unavailable", format!(" ({why})")),
    };
    let whole = s.rules && s.nft != Nft::Missing && s.problems.is_empty();
    answer(
        output,
        || Status { whole, rules: s.rules, nftables, problems: &s.problems },
        |out| {
            writeln!(out, "policy rules  {}", if s.rules { "installed" } else { "missing" })?;
            writeln!(out, "nftables      {nftables}{note}")?;
            s.problems.iter().try_for_each(|p| writeln!(out, "problem       {p}"))
        },
    )?;
    Ok(whole)
}

#[derive(Serialize)]
struct Installed<'a> {
    installed: bool,
    bypass_interfaces: &'a [String],
    problems: Vec<String>,
}

/// After `install`.
///
/// # Errors
/// Standard output cannot be written.
pub fn installed(output: Output, gate: &GateAtBoot) -> Result<(), Failure> {
    let GateAtBoot::Installed { bypass_interfaces, config, nft, rules } = gate else {
        let none = || Installed { installed: false, bypass_interfaces: &[], problems: Vec::new() };
        return answer(output, none, |out| writeln!(out, "a witness forwards nothing for others, and has no gate"));
    };
    let mut problems: Vec<String> =
        config.iter().map(|error| format!("the configuration is not used: {error}")).collect();
    problems.extend(nft.iter().map(|error| {
        let help = error.help().map(|help| format!("; {help}")).unwrap_or_default();
        format!("only the policy rules are installed: {error}{help}")
    }));
    problems.extend(rules.iter().cloned());
    answer(
        output,
        || Installed { installed: true, bypass_interfaces, problems: problems.clone() },
        |out| {
            writeln!(out, "the gate is installed: this machine forwards nothing that Palisade has not judged")?;
            bypass_interfaces.iter().try_for_each(|name| writeln!(out, "exempt        {name}"))?;
            problems.iter().try_for_each(|problem| writeln!(out, "problem       {problem}"))
        },
    )
}

#[derive(Serialize)]
struct Removed {
    removed: bool,
}

/// After `remove`.
///
/// # Errors
/// Standard output cannot be written.
pub fn removed(output: Output) -> Result<(), Failure> {
    answer(
        output,
        || Removed { removed: true },
        |out| writeln!(out, "the gate is removed: this machine forwards everything UNFILTERED, if forwarding is on"),
    )
}
