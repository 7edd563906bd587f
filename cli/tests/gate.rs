//! A machine whose configuration is not valid is no open router: the real program, in a namespace of its own.
#![cfg(feature = "demo")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "a test")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use palisade_lab::guard::can_run;
use palisade_lab::small::{SOON, SmallLab};

const PROGRAM: &str = env!("CARGO_BIN_EXE_palisade");
const NEVER: Duration = Duration::from_millis(300);

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let file = folder.join(name);
    std::fs::write(&file, text).unwrap();
    file
}

fn config(folder: &Path, bypass: &str) -> String {
    format!(
        "name = \"fw1\"\ndata_dir = {:?}\n[cluster]\nlisten = \"127.0.0.1:7946\"\n\
         [[interface]]\nname = \"e9\"\nzone = \"outside\"\n[datapath]\nbypass_interfaces = [{bypass}]\n",
        folder.join("data")
    )
}

fn forwards(lab: &SmallLab) -> [bool; 2] {
    [false, true].map(|v6| lab.passes(v6, NEVER))
}

#[test]
fn machine_with_a_broken_configuration_forwards_nothing() {
    if !can_run("a_broken_configuration", &["ip", "nft", "sysctl"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let lab = SmallLab::new();
    assert!(lab.passes(false, SOON) && lab.passes(true, SOON), "the kernel forwards from boot on");
    let run = |line: &str, file: &Path| lab.member.try_exec(&format!("{PROGRAM} {line} --config {}", file.display()));

    // A witness is no firewall, whatever else its file says.
    let witness = write(folder.path(), "witness.toml", "role = \"witness\"\nno_such_key = 1\n");
    assert!(run("node", &witness).is_err());
    assert_eq!(forwards(&lab), [true, true], "a witness closes its machine");
    // What only looks like a witness's file may be a firewall's.
    for text in [
        "role = \"witness\"\n[[interface]]\nname = \"f0\"\nzone = \"a\"\n",
        "role = \"firewall\"\nrole = \"witness\"\n",
        "[cluster]\nrole = \"witness\"\n",
        "name = \"\"\"\nrole = \"witness\"\n\"\"\"\n",
    ] {
        let file = write(folder.path(), "unclear.toml", text);
        for line in ["gate install", "node"] {
            let said = run(line, &file);
            assert_eq!(forwards(&lab), [false, false], "`{line}` leaves an open router with {text}: {said:?}");
            lab.member.exec(&format!("{PROGRAM} gate remove --yes"));
        }
    }

    let broken = write(folder.path(), "broken.toml", "name = \"fw1\"\nzone = [\n");
    assert!(run("node", &broken).unwrap_err().contains("broken.toml"));
    assert_eq!(forwards(&lab), [false, false], "the daemon did not start, and left an open router");
    lab.member.exec(&format!("{PROGRAM} gate remove --yes"));
    let missing = folder.path().join("none.toml");
    assert!(run("node", &missing).is_err());
    assert_eq!(forwards(&lab), [false, false], "the file is lost");
    lab.member.exec(&format!("{PROGRAM} gate remove --yes"));
    assert_eq!(forwards(&lab), [true, true]);
    let said = run("gate install", &broken).unwrap();
    assert!(said.contains("the configuration is not used"), "{said}");
    assert_eq!(forwards(&lab), [false, false]);

    // A gate that is there keeps its exemptions: a typo must not cut them off at the next restart.
    let valid = write(folder.path(), "valid.toml", &config(folder.path(), "\"f0\", \"f1\""));
    let said = run("gate install", &valid).unwrap_or_else(|e| panic!("{e}"));
    assert!(said.contains("f0"), "{said}");
    assert_eq!(forwards(&lab), [true, true], "the exemptions do not work");
    assert!(run("node", &broken).is_err() && run("gate install", &broken).is_ok());
    assert_eq!(forwards(&lab), [true, true], "the exemptions were cut off");
    let status = lab.member.exec(&format!("{PROGRAM} gate status --config {}", valid.display()));
    assert!(status.contains("policy rules  installed") && status.contains("nftables      installed"), "{status}");
}
