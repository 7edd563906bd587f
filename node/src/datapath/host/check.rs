//! Start checks: settings of the machine under which packets would silently bypass the datapath or be lost. Each of them
//! refuses the start and names its remedy.

use std::io;

use rtnetlink::packet_route::link::InfoPortKind;

use super::neighbours;
use super::netlink::Netlink;
use super::program;
use super::ruleset::{self, Ruleset};
use super::sysctl::{self, Family, Setting};
use crate::datapath::StartError;
use crate::datapath::gate::{self, Gate};
use crate::datapath::inject::DeviceNames;

/// The sysctls that the daemon may change itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct SysctlPolicy {
    pub(crate) rp_filter: bool,
    pub(crate) forwarding: bool,
}

/// The checks that need no device.
pub(crate) fn before(netlink: &mut Netlink, gate: &Gate) -> Result<(), StartError> {
    for family in Family::present() {
        let (local_first, foreign) = gate::order(netlink, gate, family)
            .map_err(|source| StartError::System { what: "the list of policy rules", source })?;
        if !local_first {
            return Err(StartError::LocalRule { family });
        }
        if let Some(&priority) = foreign.first() {
            return Err(StartError::ForeignRule { family, priority });
        }
    }
    forwards_past_the_gate()
}

/// The checks of the devices for re-injection and of other programs' forward chains.
pub(crate) fn devices(devices: &DeviceNames, sysctls: SysctlPolicy, data: &[&str]) -> Result<(), StartError> {
    settings(devices, sysctls)?;
    let ruleset = Ruleset::read().map_err(|source| StartError::System { what: "the nftables ruleset", source })?;
    let names: Vec<String> = devices.all().collect();
    nftables(&ruleset, &names, data)?;
    legacy_chains(&names)
}

fn settings(devices: &DeviceNames, sysctls: SysctlPolicy) -> Result<(), StartError> {
    if sysctls.rp_filter {
        push_down_rp_filter(devices).map_err(|source| StartError::Setting {
            setting: Setting::new(Family::V4, "all", "rp_filter").to_string(),
            value: 0,
            source,
        })?;
    }
    devices.all().try_for_each(|device| settings_of(&device, sysctls))
}

fn settings_of(device: &str, sysctls: SysctlPolicy) -> Result<(), StartError> {
    for family in Family::present() {
        match family {
            Family::V4 => {
                rp_filter(device)?;
                forwarding(&Setting::new(family, device, "forwarding"), sysctls)?;
            }
            Family::V6 => {
                let disabled = Setting::new(family, device, "disable_ipv6");
                if disabled.value() != 0 {
                    return Err(StartError::Ipv6Disabled { setting: disabled.to_string() });
                }
                forwarding(&Setting::new(family, "all", "forwarding"), sysctls)?;
            }
        }
    }
    Ok(())
}

/// The settings that are wrong now, while the datapath runs. Those that the daemon may change have been corrected.
pub(crate) fn running(devices: &DeviceNames, sysctls: SysctlPolicy) -> Vec<StartError> {
    // Without the forward chains: listing them at each notification costs too much on a machine with many rules. See
    // `Watcher::check_chains`.
    [settings(devices, sysctls), forwards_past_the_gate()].into_iter().filter_map(Result::err).collect()
}

/// Whether the kernel's reverse path filter would drop what arrives on palisade0.
pub(crate) fn rp_filter(device: &str) -> Result<(), StartError> {
    let all = Setting::new(Family::V4, "all", "rp_filter").value();
    let own = Setting::new(Family::V4, device, "rp_filter").value();
    if all.max(own) == 0 { Ok(()) } else { Err(StartError::RpFilter { device: device.to_owned(), all, own }) }
}

/// Sets `rp_filter` of `all` to 0, after every other interface got at least the value of `all`. Nothing but palisade0 is
/// checked less than before, because the greater of `all` and the interface's own value counts.
///
/// # Errors
/// The settings cannot be written.
pub(crate) fn push_down_rp_filter(devices: &DeviceNames) -> io::Result<()> {
    let all = Setting::new(Family::V4, "all", "rp_filter");
    let value = all.value();
    if value != 0 {
        for interface in sysctl::interfaces(Family::V4)? {
            if interface != "all" && !devices.contains(&interface) {
                let setting = Setting::new(Family::V4, &interface, "rp_filter");
                // The kernel, too, takes the greater number, although strict (1) is less than loose (2).
                setting.set(value.max(setting.value()))?;
            }
        }
        all.set(0)?;
    }
    devices.all().try_for_each(|device| Setting::new(Family::V4, &device, "rp_filter").set(0).map(drop))
}

fn forwarding(setting: &Setting, sysctls: SysctlPolicy) -> Result<(), StartError> {
    if setting.value() == 0 && sysctls.forwarding {
        setting.set(1).map_err(|source| StartError::Setting { setting: setting.to_string(), value: 1, source })?;
    }
    if setting.value() == 0 { Err(StartError::Forwarding { setting: setting.to_string() }) } else { Ok(()) }
}

fn forwards_past_the_gate() -> Result<(), StartError> {
    for family in Family::present() {
        for (key, what) in [("mc_forwarding", "multicast"), ("bc_forwarding", "directed broadcast")] {
            let interfaces =
                sysctl::interfaces(family).map_err(|source| StartError::System { what: "/proc/sys/net", source })?;
            for interface in interfaces {
                let setting = Setting::new(family, &interface, key);
                if setting.value() != 0 {
                    return Err(StartError::Forwards { what, setting: setting.to_string() });
                }
            }
        }
    }
    Ok(())
}

/// Refuses nftables rules of other programs that drop what our devices re-inject, and flowtables that forward past them.
pub(crate) fn nftables(ruleset: &Ruleset, devices: &[String], data: &[&str]) -> Result<(), StartError> {
    ruleset.obstacle(devices).or_else(|| ruleset.flowtable(data)).map_or(Ok(()), Err)
}

/// Refuses what others made of a data interface.
pub(crate) fn interfaces(netlink: &mut Netlink, data: &[&str]) -> Result<(), StartError> {
    let all = neighbours::neighbours(netlink)
        .map_err(|source| StartError::System { what: "the list of interfaces", source })?;
    for link in all.iter().filter(|link| data.contains(&link.name.as_str())) {
        let interface = link.name.clone();
        if link.xdp {
            return Err(StartError::Xdp { interface });
        }
        // A port of a bridge, bond or team may leave it again: it is a condition of readiness.
        if link.port == Some(InfoPortKind::Vrf) {
            return Err(StartError::Vrf { interface });
        }
    }
    labels()
}

/// Refuses MPLS input: a label leads to a route of its own, past IP's.
fn labels() -> Result<(), StartError> {
    let Ok(folder) = std::fs::read_dir("/proc/sys/net/mpls/conf") else { return Ok(()) };
    for entry in folder.flatten() {
        let interface = entry.file_name().to_string_lossy().into_owned();
        if std::fs::read_to_string(entry.path().join("input")).is_ok_and(|on| on.trim() == "1") {
            return Err(StartError::Labels { setting: format!("net.mpls.conf.{}.input", interface.replace('.', "/")) });
        }
    }
    Ok(())
}

/// The same for iptables-legacy, whose chains nftables does not show. Its program is run only where its kernel modules are
/// in use, because running it would load them.
pub(crate) fn legacy_chains(devices: &[String]) -> Result<(), StartError> {
    for (list, programs) in [
        ("/proc/thread-self/net/ip_tables_names", ["iptables-legacy", "/usr/sbin/iptables-legacy"]),
        ("/proc/thread-self/net/ip6_tables_names", ["ip6tables-legacy", "/usr/sbin/ip6tables-legacy"]),
    ] {
        let names = std::fs::read_to_string(list).unwrap_or_default();
        for table in names.lines().filter(|name| matches!(*name, "filter" | "raw" | "mangle")) {
            if let Ok(listing) = program::run_any(&programs, &["-t", table, "-S"])
                && let Some(error) = ruleset::legacy(&format!("{} {table}", programs[0]), &listing).obstacle(devices)
            {
                return Err(error);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_error_has_a_remedy() {
        use miette::Diagnostic;
        let error = StartError::RpFilter { device: "palisade0".to_owned(), all: 2, own: 0 };
        let help = error.help().unwrap().to_string();
        assert!(help.contains("net.ipv4.conf.all.rp_filter=0") && help.contains("manage_rp_filter"), "{help}");
    }
}
