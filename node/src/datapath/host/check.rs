//! Start checks: settings of the machine under which packets would silently bypass the datapath or be lost. Each of them
//! refuses the start and names its remedy.

use std::io;

use serde_json::Value;

use super::netlink::Netlink;
use super::sysctl::{self, Family, Setting};
use crate::datapath::StartError;
use crate::datapath::gate::{self, Gate};

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

/// The checks of the device and of other programs' forward chains.
pub(crate) fn device(device: &str, sysctls: SysctlPolicy) -> Result<(), StartError> {
    settings(device, sysctls)?;
    nft_chains(device)?;
    legacy_chains(device)
}

fn settings(device: &str, sysctls: SysctlPolicy) -> Result<(), StartError> {
    if sysctls.rp_filter {
        push_down_rp_filter(device).map_err(|source| StartError::Setting {
            setting: Setting::new(Family::V4, "all", "rp_filter").to_string(),
            value: 0,
            source,
        })?;
    }
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
pub(crate) fn running(device: &str, sysctls: SysctlPolicy) -> Vec<StartError> {
    // Without the forward chains: listing them at each notification costs too much on a machine with many rules. See
    // `Watcher::check_chains`.
    [settings(device, sysctls), forwards_past_the_gate()].into_iter().filter_map(Result::err).collect()
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
pub(crate) fn push_down_rp_filter(device: &str) -> io::Result<()> {
    let all = Setting::new(Family::V4, "all", "rp_filter");
    let value = all.value();
    if value != 0 {
        for interface in sysctl::interfaces(Family::V4)? {
            if interface != "all" && interface != device {
                let setting = Setting::new(Family::V4, &interface, "rp_filter");
                // The kernel, too, takes the greater number, although strict (1) is less than loose (2).
                setting.set(value.max(setting.value()))?;
            }
        }
        all.set(0)?;
    }
    Setting::new(Family::V4, device, "rp_filter").set(0)?;
    Ok(())
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

/// Refuses an nftables chain on the forward hook that drops everything without accepting palisade0's packets first.
pub(crate) fn nft_chains(device: &str) -> Result<(), StartError> {
    if let Ok(ruleset) = gate::run(&["-j", "list", "ruleset"], "")
        && let Ok(ruleset) = serde_json::from_str(&ruleset)
        && let Some(chain) = dropping_chain(&ruleset, device)
    {
        return Err(StartError::ForwardChain { chain: format!("nftables chain {chain}"), device: device.to_owned() });
    }
    Ok(())
}

/// The same for iptables-legacy, whose chains nft does not show. Its program is run only where its kernel modules are in
/// use, because running it would load them.
pub(crate) fn legacy_chains(device: &str) -> Result<(), StartError> {
    for (list, programs) in [
        ("/proc/thread-self/net/ip_tables_names", ["iptables-legacy", "/usr/sbin/iptables-legacy"]),
        ("/proc/thread-self/net/ip6_tables_names", ["ip6tables-legacy", "/usr/sbin/ip6tables-legacy"]),
    ] {
        let used = std::fs::read_to_string(list).is_ok_and(|names| names.lines().any(|name| name == "filter"));
        if used
            && let Ok(rules) = gate::run_any(&programs, &["-S", "FORWARD"], "")
            && legacy_drops(&rules, device)
        {
            let chain = format!("chain FORWARD of {}", programs[0]);
            return Err(StartError::ForwardChain { chain, device: device.to_owned() });
        }
    }
    Ok(())
}

fn legacy_drops(rules: &str, device: &str) -> bool {
    let accept = format!("-A FORWARD -i {device} -j ACCEPT");
    rules.lines().any(|l| l == "-P FORWARD DROP") && !rules.lines().any(|l| l == accept)
}

/// The first forward chain of `nft -j list ruleset` that drops by its policy or with a rule for everything (firewalld), and
/// does not accept what arrives on `device`.
fn dropping_chain(ruleset: &Value, device: &str) -> Option<String> {
    let items = ruleset.get("nftables")?.as_array()?;
    let text = |v: &Value, key: &str| v.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    items.iter().filter_map(|item| item.get("chain")).find_map(|chain| {
        if text(chain, "hook") != "forward" {
            return None;
        }
        let (family, table, name) = (text(chain, "family"), text(chain, "table"), text(chain, "name"));
        if !matches!(family.as_str(), "ip" | "ip6" | "inet") {
            return None;
        }
        let mut rules = items.iter().filter_map(|item| item.get("rule")).filter(|rule| {
            text(rule, "family") == family && text(rule, "table") == table && text(rule, "chain") == name
        });
        let drops = text(chain, "policy") == "drop" || rules.clone().any(drops_all);
        (drops && !rules.any(|rule| accepts(rule, device))).then(|| format!("{family} {table} {name}"))
    })
}

/// Whether a rule is `drop` or `reject` of everything, at most with a counter.
fn drops_all(rule: &Value) -> bool {
    let Some(parts) = rule.get("expr").and_then(Value::as_array) else { return false };
    let verdict = |part: &Value| part.get("drop").is_some() || part.get("reject").is_some();
    parts.iter().any(verdict) && parts.iter().all(|part| verdict(part) || part.get("counter").is_some())
}

/// Whether a rule is `iifname DEVICE accept`, at most with a counter or a comment.
fn accepts(rule: &Value, device: &str) -> bool {
    let Some(parts) = rule.get("expr").and_then(Value::as_array) else { return false };
    let (mut from_device, mut accept, mut more) = (false, false, false);
    for part in parts {
        if part.get("accept").is_some() {
            accept = true;
        } else if let Some(m) = part.get("match") {
            let key = m.pointer("/left/meta/key").and_then(Value::as_str);
            let this = matches!(key, Some("iifname" | "iif"))
                && m.get("op").and_then(Value::as_str) == Some("==")
                && m.get("right").and_then(Value::as_str) == Some(device);
            from_device |= this;
            more |= !this;
        } else if part.get("counter").is_none() {
            more = true;
        }
    }
    from_device && accept && !more
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ruleset(policy: &str, rules: &[Value]) -> Value {
        let mut items = vec![
            json!({"metainfo": {"version": "1.0"}}),
            json!({"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": policy}}),
        ];
        for expr in rules {
            items.push(json!({"rule": {"family": "ip", "table": "filter", "chain": "FORWARD", "expr": expr}}));
        }
        json!({"nftables": items})
    }

    fn from_device(op: &str) -> Value {
        json!({"match": {"op": op, "left": {"meta": {"key": "iifname"}}, "right": "palisade0"}})
    }

    #[test]
    fn forward_chain_that_drops_is_found_unless_it_accepts_the_device() {
        let found = |rules: &[Value]| dropping_chain(&ruleset("drop", rules), "palisade0");
        assert_eq!(found(&[]), Some("ip filter FORWARD".to_owned()));
        assert_eq!(found(&[json!([from_device("=="), {"counter": {}}, {"accept": null}])]), None);
        assert!(found(&[json!([from_device("!="), {"accept": null}])]).is_some());
        assert!(found(&[json!([from_device("=="), {"drop": null}])]).is_some());
        let narrower = json!({"match": {"op": "==", "left": {"payload": {}}, "right": 80}});
        assert!(found(&[json!([from_device("=="), narrower, {"accept": null}])]).is_some());
        assert_eq!(dropping_chain(&ruleset("accept", &[]), "palisade0"), None);
        // As firewalld does it: with a last rule for everything.
        let narrow = json!({"match": {"op": "==", "left": {"payload": {}}, "right": 80}});
        let last = |rules: &[Value]| dropping_chain(&ruleset("accept", rules), "palisade0");
        assert!(last(&[json!([{"counter": {}}, {"reject": {"type": "icmpx"}}])]).is_some());
        assert!(last(&[json!([{"drop": null}])]).is_some());
        assert_eq!(last(&[json!([narrow, {"drop": null}])]), None);
        assert_eq!(last(&[json!([from_device("=="), {"accept": null}]), json!([{"drop": null}])]), None);
        assert_eq!(dropping_chain(&json!({}), "palisade0"), None);
    }

    #[test]
    fn iptables_legacy_drop_policy_is_recognised() {
        assert!(legacy_drops("-P FORWARD DROP\n", "palisade0"));
        assert!(!legacy_drops("-P FORWARD DROP\n-A FORWARD -i palisade0 -j ACCEPT\n", "palisade0"));
        assert!(!legacy_drops("-P FORWARD ACCEPT\n", "palisade0"));
    }

    #[test]
    fn start_error_has_a_remedy() {
        use miette::Diagnostic;
        let error = StartError::RpFilter { device: "palisade0".to_owned(), all: 2, own: 0 };
        let help = error.help().unwrap().to_string();
        assert!(help.contains("net.ipv4.conf.all.rp_filter=0") && help.contains("manage_rp_filter"), "{help}");
    }
}
