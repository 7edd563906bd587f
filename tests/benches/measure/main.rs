//! The measurements behind docs/performance.md, as tables. They judge nothing: the exit code says only whether they ran.
//!
//! `cargo bench -p palisade-tests -- [--json] [NAME…]`; without names all of them. The lab needs root. A measurement whose
//! programs are missing is skipped, with the Debian package to install.
#![allow(missing_docs, reason = "a program")]

mod cluster;
mod lab;
mod log;
mod snapshots;

use std::process::ExitCode;

use anyhow::{Result, bail};
use futures::future::{FutureExt, LocalBoxFuture};
use nix::unistd::geteuid;
use palisade_lab::guard::installed;
use palisade_tests::figures::Table;

/// One measurement.
struct Measurement {
    name: &'static str,
    what: &'static str,
    /// Whether it needs namespaces, and so root.
    lab: bool,
    programs: &'static [&'static str],
    run: fn() -> LocalBoxFuture<'static, Result<Table>>,
}

const MEASUREMENTS: &[Measurement] = &[
    Measurement {
        name: "setup",
        what: "setup time of new connections at a steady rate",
        lab: true,
        programs: &[],
        run: || lab::setup().boxed_local(),
    },
    Measurement {
        name: "kill",
        what: "stalls after kill -9 of each member, under 10,000 connections",
        lab: true,
        programs: &[],
        run: || lab::kill().boxed_local(),
    },
    Measurement {
        name: "stop",
        what: "setup time while a member hangs (SIGSTOP), against before",
        lab: true,
        programs: &[],
        run: || lab::stop().boxed_local(),
    },
    Measurement {
        name: "web",
        what: "new connections a second, flat out, against plain forwarding",
        lab: true,
        programs: &["nginx", "wrk"],
        run: || lab::web().boxed_local(),
    },
    Measurement {
        name: "denied",
        what: "setup time of connections beside 5,000 denied packets a second whose rule is logged",
        lab: true,
        programs: &[],
        run: || lab::denied().boxed_local(),
    },
    Measurement {
        name: "bulk",
        what: "one TCP stream through one member, against plain forwarding",
        lab: true,
        programs: &["iperf3"],
        run: || lab::bulk().boxed_local(),
    },
    Measurement {
        name: "packets",
        what: "small packets of one session through one member, against plain forwarding",
        lab: true,
        programs: &[],
        run: || lab::packets().boxed_local(),
    },
    Measurement {
        name: "commit",
        what: "commit latency in a cluster of three in one process, and when its leader is lost",
        lab: false,
        programs: &[],
        run: || log::commit().boxed_local(),
    },
    Measurement {
        name: "join",
        what: "a member joins a cluster with a million sessions (PALISADE_SESSIONS)",
        lab: false,
        programs: &[],
        run: || log::join_large().boxed_local(),
    },
    Measurement {
        name: "snapshots",
        what: "commits while snapshots of a million sessions (PALISADE_SESSIONS) are written to a disk with 50 MB/s",
        lab: false,
        programs: &[],
        run: || snapshots::measure().boxed_local(),
    },
];

fn main() -> ExitCode {
    // cargo passes `--bench`.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let json = args.iter().any(|arg| arg == "--json");
    let names: Vec<&str> = args.iter().map(String::as_str).filter(|arg| *arg != "--json").collect();
    match measure(&names, json) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(names: &[&str], json: bool) -> Result<()> {
    let known = || MEASUREMENTS.iter().map(|m| format!("  {:<8} {}", m.name, m.what)).collect::<Vec<_>>().join("\n");
    if let Some(unknown) = names.iter().find(|name| !MEASUREMENTS.iter().any(|m| m.name == **name)) {
        bail!("there is no measurement {unknown}; there are:\n{}", known());
    }
    let chosen: Vec<&Measurement> =
        MEASUREMENTS.iter().filter(|m| names.is_empty() || names.contains(&m.name)).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut tables = Vec::new();
    for one in chosen {
        let possible = if one.lab && !geteuid().is_root() { Err("it needs root".to_owned()) } else { Ok(()) };
        if let Err(why) = possible.and_then(|()| installed(one.programs)) {
            // Asked for by its name, it could not be run.
            if names.contains(&one.name) {
                bail!("{}: {why}", one.name);
            }
            eprintln!("SKIPPED {}: {why}", one.name);
            continue;
        }
        eprintln!("{}: {}", one.name, one.what);
        let table = runtime.block_on((one.run)())?;
        if !json {
            println!("{table}");
        }
        tables.push(table);
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&tables)?);
    }
    Ok(())
}
