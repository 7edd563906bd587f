//! What `palisade config` prints.

use std::path::Path;

use palisade_engine::Role;
use palisade_node::config::Config;
use serde::Serialize;

use super::answer;
use crate::args::Output;
use crate::exit::Failure;

#[derive(Serialize)]
struct Checked<'a> {
    valid: bool,
    name: &'a str,
    role: &'static str,
    interfaces: usize,
}

/// A valid file.
///
/// # Errors
/// Standard output cannot be written.
pub fn checked(output: Output, file: &Path, config: &Config) -> Result<(), Failure> {
    let role = match config.role {
        Role::Firewall => "firewall",
        Role::Witness => "witness",
    };
    let interfaces = config.interfaces.len();
    answer(
        output,
        || Checked { valid: true, name: &config.name, role, interfaces },
        |out| writeln!(out, "{}: valid ({role} {}, {interfaces} data interfaces)", file.display(), config.name),
    )
}
