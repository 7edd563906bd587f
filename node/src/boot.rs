//! The gate at boot, and for a daemon whose configuration is not valid: the machine must not forward by itself because of a
//! typo.

use std::io;
use std::path::Path;

use palisade_engine::Role;

use crate::config::{Config, ConfigError, INJECT_DEVICE};
use crate::datapath::{Gate, NftError};

/// What became of the gate.
#[derive(Debug)]
pub enum GateAtBoot {
    /// There is none on a witness, which forwards nothing for others.
    Witness,
    /// It is installed.
    Installed {
        /// The interfaces that it exempts: those of the configuration or, if that is not valid, those that it exempted
        /// already.
        bypass_interfaces: Vec<String>,
        /// What is wrong with the configuration.
        config: Option<ConfigError>,
        /// Why it has no nftables table. That a daemon owns the table already is no reason.
        nft: Option<NftError>,
        /// What is wrong with its policy rules.
        rules: Vec<String>,
    },
}

/// Installs the gate as the configuration file says. If that is not valid, a gate that is there stays as it is, and where
/// there is none nothing is exempt.
///
/// # Errors
/// The kernel refuses: then the machine is open.
pub fn install_gate(file: &Path) -> io::Result<GateAtBoot> {
    let (gate, bypass_interfaces, config) = match Config::load(file) {
        Ok(config) if config.role == Role::Witness => return Ok(GateAtBoot::Witness),
        Ok(config) => {
            let bypass = config.datapath.bypass_interfaces;
            let gate = Gate::new(INJECT_DEVICE, &bypass);
            gate.set_data_interfaces(config.interfaces.iter().map(|interface| &interface.name));
            (gate, bypass, None)
        }
        Err(_) if std::fs::read_to_string(file).is_ok_and(|text| is_a_witness(&text)) => {
            return Ok(GateAtBoot::Witness);
        }
        Err(error) => {
            let bypass = Gate::exemptions()?;
            (Gate::new(INJECT_DEVICE, &bypass), bypass, Some(error))
        }
    };
    let installed = gate.install()?;
    let nft = installed.nft.err().filter(|error| !matches!(error, NftError::Owned));
    Ok(GateAtBoot::Installed { bypass_interfaces, config, nft, rules: installed.problems })
}

/// Installs the gate for a daemon that cannot start, and says so in the log: it must not leave an open router behind.
pub fn close_gate(config: &Path) {
    match install_gate(config) {
        Ok(GateAtBoot::Witness) => {}
        Ok(GateAtBoot::Installed { bypass_interfaces, rules, .. }) => tracing::warn!(
            exempt = ?bypass_interfaces,
            problems = ?rules,
            "the gate is installed: this machine forwards nothing until the configuration is valid (`palisade gate remove` opens it)"
        ),
        Err(error) => {
            tracing::error!(%error, "the gate cannot be installed: this machine forwards as its kernel is set")
        }
    }
}

/// Whether a configuration that is not valid is a witness's all the same: a TOML document whose `role` says so, and that has no
/// data interface, not even by a misspelt key. What is less clear than that may be a firewall's, and leaves no open router.
fn is_a_witness(text: &str) -> bool {
    let Ok(document) = text.parse::<toml::Table>() else { return false };
    let names_interfaces = document.keys().any(|key| key.to_lowercase().starts_with("interface"));
    document.get("role").and_then(toml::Value::as_str) == Some("witness") && !names_interfaces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn witness_with_an_invalid_file_is_known_by_its_role() {
        for witness in
            ["role = \"witness\"", "  role='witness' # small", "nme = 1\nrole= \"witness\"\n[cluster]\nlisten = 1"]
        {
            assert!(is_a_witness(witness), "{witness}");
        }
        for firewall in [
            "",
            "# role = \"witness\"",
            "role = \"firewall\"",
            "roles = \"witness\"",
            "name = \"witness\"",
            "role = \"witness\"\n[[interface]]\nname = \"eth0\"\nzone = \"outside\"",
            "role = \"firewall\"\nrole = \"witness\"",
            "[cluster]\nrole = \"witness\"",
            "name = \"\"\"\nrole = \"witness\"\n\"\"\"",
            "role = \"witness\"\n[[",
        ] {
            assert!(!is_a_witness(firewall), "{firewall}");
        }
    }
}
