//! A DNS server (dnsmasq) and who asks it (dig), over UDP and TCP.

use std::fmt::Write as _;
use std::net::IpAddr;

use anyhow::{Context, Result};
use palisade_lab::program;
use palisade_lab::{Lab, Process, Spawn, WAIT};

use palisade_lab::program::{path, wait_port};

const PORT: u16 = 53;

/// A name with about 3 KiB of TXT records: far more than fits into one packet.
pub const BIG: &str = "big.lab.test";

/// How many records [`BIG`] has.
pub const BIG_RECORDS: usize = 12;

/// Starts the server; every name in `lab.test` has an address of each family.
///
/// # Errors
/// It does not start.
pub async fn start(lab: &Lab) -> Result<Process> {
    let mut config = String::from(
        "no-resolv\nno-hosts\nuser=root\ngroup=root\npid-file=\nport=53\nlocal=/test/\nedns-packet-max=4096\n\
         address=/lab.test/10.20.0.7\naddress=/lab.test/fd20::7\n",
    );
    for number in 0..BIG_RECORDS {
        writeln!(config, "txt-record={BIG},{number:0>250}")?;
    }
    let file = lab.dir().join("dnsmasq.conf");
    std::fs::write(&file, config)?;
    let spawn = Spawn::new(path("dnsmasq")?, lab.dir().join("dnsmasq.log"))
        .arg("--keep-in-foreground")
        .arg("--log-facility=-")
        .arg(format!("--conf-file={}", file.display()));
    let mut process = lab.server().start(spawn).await?;
    wait_port(lab.server(), &mut process, PORT).await.context("dnsmasq")?;
    Ok(process)
}

/// Asks for `count` different names, one after the other and each once, with dig's further arguments; answers how many
/// addresses came.
///
/// # Errors
/// dig cannot be run.
pub async fn many(lab: &Lab, server: IpAddr, count: u32, more: &[&str]) -> Result<usize> {
    let names: Vec<String> = (0..count).map(|n| format!("n{n}.lab.test AAAA")).collect();
    let file = lab.dir().join("dig.names");
    std::fs::write(&file, names.join("\n") + "\n")?;
    let answers = dig(lab, server, &[&["-f", &file.display().to_string()], more].concat()).await?;
    Ok(answers.lines().filter(|l| *l == "fd20::7").count())
}

/// Asks for the [`BIG`] name; answers how many of its records came.
///
/// # Errors
/// dig cannot be run.
pub async fn big(lab: &Lab, server: IpAddr, more: &[&str]) -> Result<usize> {
    let answers = dig(lab, server, &[&[BIG, "TXT"], more].concat()).await?;
    Ok(answers.lines().filter(|l| l.starts_with('"') && l.len() == 252).count())
}

async fn dig(lab: &Lab, server: IpAddr, args: &[&str]) -> Result<String> {
    // Each question once: what is lost is to be seen.
    let at = format!("@{server}");
    let args = [&[&*at, "+short", "+tries=1", "+timeout=20"], args].concat();
    let (_, text) = program::output(lab.client(), lab.dir(), WAIT, "dig", &args).await?;
    Ok(text)
}
