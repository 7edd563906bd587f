use super::*;

const GOOD: &str = r#"
name = "fw1"
data_dir = "/var/lib/palisade"
role = "firewall"

[cluster]
listen = "10.9.0.1:7946"

[[interface]]
name = "eth0"
zone = "outside"

[[interface]]
name = "eth1"
zone = "inside"
antispoof = false
"#;

fn problems(text: &str) -> Vec<String> {
    Config::parse("node.toml", text).unwrap_err().problems().iter().map(line).collect()
}

fn line(p: &Problem) -> String {
    format!("line {}: {p}", p.line)
}

#[test]
fn defaults_are_filled_in() {
    let config = Config::parse("node.toml", GOOD).unwrap();
    assert_eq!(config.name, "fw1");
    assert_eq!(config.cluster.advertise, "10.9.0.1:7946".parse().unwrap());
    assert_eq!(config.admin.socket, Path::new("/run/palisade/admin.sock"));
    assert_eq!(config.http.listen, "127.0.0.1:9946".parse().unwrap());
    assert_eq!(config.interfaces.len(), 2);
    assert!(config.interfaces[0].antispoof);
    assert!(!config.interfaces[1].antispoof);
    assert_eq!(config.datapath.hold.max_time, Duration::from_millis(250));
    assert_eq!((config.datapath.stale_after, config.datapath.ring_memory), (Duration::from_millis(250), None));
    assert_eq!(config.limits.affordable_sessions(), 1 << 20);
    assert!(config.raft.election_timeout * 4 < LEASE_DURATION);
}

#[test]
fn all_errors_come_at_once_with_line_path_and_remedy() {
    let text = r#"
name = "fw 1"
role = "boss"
colour = "red"

[cluster]
listn = "10.9.0.1:7946"

[[interface]]
name = "lo"
zone = "any"

[datapath]
mode = "xdp"
workers = 0
hold_time = 250

[raft]
durability = "relaxed"

[limits]
memory = "1 GiB"
grace = "5m"
"#;
    let error = Config::parse("node.toml", text).unwrap_err();
    let lines: Vec<_> = error.problems().iter().map(line).collect();
    assert_eq!(
        lines,
        [
            "line 2: name: expected 1 to 63 letters, digits, `-`, `_` or `.`, found \"fw 1\"",
            "line 3: role: expected \"firewall\" or \"witness\", found \"boss\"",
            "line 4: colour: there is no such key",
            "line 6: cluster.listen: it is missing, and has no default",
            "line 7: cluster.listn: there is no such key",
            "line 10: interface[0].name: expected a data interface, found \"lo\"",
            "line 11: interface[0].zone: expected a zone's name, found \"any\"",
            "line 14: datapath.mode: expected \"auto\" or \"raw\", found \"xdp\"",
            "line 15: datapath.workers: expected a number from 1 to 64, found 0",
            "line 16: datapath.hold_time: expected a time from 10ms to 2s, found 250",
            "line 19: raft.durability: expected \"disk\", found \"relaxed\"",
            "line 22: limits.memory: expected a number from 1048576 to 1099511627776, found \"1 GiB\"",
            "line 23: limits.grace: it moved to the cluster's settings, because all members must do alike",
        ]
    );
    let help = |path: &str| error.problems().iter().find(|p| p.path == path).unwrap().help.clone();
    assert_eq!(help("cluster.listn"), "did you mean `listen`? Keys here: `listen`, `advertise`, `interfaces`");
    assert!(help("datapath.mode").contains("not yet available"));
    assert!(help("raft.durability").contains("not yet available"));
    assert!(error.problems().iter().all(|p| !p.help.is_empty()), "every error says what to do");
}

#[test]
fn syntax_errors_name_their_line() {
    let found = problems("name = \"fw1\"\nrole = = 3\n");
    assert!(found[0].starts_with("line 2: this is not TOML"), "{found:?}");
}

#[test]
fn values_that_contradict_each_other() {
    let any = GOOD.replace("10.9.0.1:7946", "0.0.0.0:7946");
    assert!(problems(&any)[0].contains("cluster.advertise: it is missing, and `listen` names no address"));
    let any = any.replace("7946\"", "7946\"\nadvertise = \"10.9.0.1:7946\"");
    assert!(problems(&any)[0].contains("cluster.interfaces: expected the interfaces by which the port may be reached"));
    let named =
        any.replace("[[interface]]\nname = \"eth0\"", "interfaces = [\"eth2\"]\n[[interface]]\nname = \"eth0\"");
    assert_eq!(Config::parse("node.toml", &named).unwrap().cluster.interfaces, ["eth2"]);
    let any = format!("{GOOD}\n[http]\nlisten = \"[::]:9946\"\n");
    assert!(problems(&any)[0].contains("http.interfaces: expected the interfaces by which the port may be reached"));
    let route = |key: &str| problems(&format!("{GOOD}\n[readiness]\n{key}\n"));
    assert!(route("table = 254")[0].contains("readiness.table: expected a number from 256"));
    assert!(
        route("routes = [\"192.0.2.1/24\"]")[0].contains("readiness.routes: expected a prefix, found \"192.0.2.1/24\"")
    );
    let witness = GOOD.replace("\"firewall\"", "\"witness\"");
    assert!(problems(&witness)[0].contains("a witness forwards nothing"));
    let twice = GOOD.replace("eth1", "eth0");
    assert_eq!(problems(&twice), ["line 14: interface[1].name: expected each interface once, found \"eth0\" again"]);
    let hasty = format!("{GOOD}\n[raft]\nheartbeat_interval = \"100ms\"\nelection_timeout = \"200ms\"\n");
    assert!(problems(&hasty)[0].contains("raft.election_timeout: expected at least three times the heartbeat"));
}

/// What the start of the daemon would refuse, `palisade config check` refuses before it.
#[test]
fn config_check_refuses_what_the_start_refuses() {
    for name in [r#"a\"b"#, r"a\\b", "palisade0", "palisade-x"] {
        let named = GOOD.replace("eth0", name);
        assert!(problems(&named)[0].contains("interface[0].name: expected"), "{name}: {:?}", problems(&named));
    }
    let bypass = |list: &str| problems(&format!("{GOOD}\n[datapath]\nbypass_interfaces = {list}\n"));
    assert_eq!(
        bypass(r#"["mgmt0", "wg0", "mgmt0"]"#),
        ["line 19: datapath.bypass_interfaces: expected each interface once, found \"mgmt0\" again"]
    );
    assert!(bypass(r#"["a\"b"]"#)[0].contains("expected an interface name"));
    assert_eq!(
        bypass(r#"["eth1", "mgmt0", "eth0"]"#),
        ["eth1", "eth0"].map(|name| format!(
            "line 19: datapath.bypass_interfaces: expected no data interface: the kernel would route what arrives on it without any filtering, found \"{name}\", which `[[interface]]` names too"
        ))
    );

    let ports = format!("{GOOD}\n[http]\nlisten = \"10.9.0.1:7946\"\n");
    assert!(problems(&ports)[0].contains("http.listen: expected another address than the member port's"));
    let any = format!("{GOOD}\n[http]\nlisten = \"0.0.0.0:7946\"\ninterfaces = [\"eth2\"]\n");
    assert!(problems(&any)[0].contains("http.listen: expected another address than the member port's"));
    let other = format!("{GOOD}\n[http]\nlisten = \"127.0.0.1:7946\"\n");
    Config::parse("node.toml", &other).unwrap();

    // The daemon creates the socket under a longer name first.
    let socket = |path: &str| Config::parse("node.toml", &format!("{GOOD}\n[admin]\nsocket = \"{path}\"\n"));
    socket(&format!("/{}", "s".repeat(94))).unwrap();
    assert!(socket(&format!("/{}", "s".repeat(95))).is_err());
    assert!(socket("/run/palisade/..").is_err());
}

#[test]
fn wrong_shapes_are_errors() {
    let text = format!("interface = 3\n{}", &GOOD[..GOOD.find("[[").unwrap()]);
    assert!(
        problems(&text).iter().any(|p| p.contains("interface: expected a list of tables, found 3")),
        "{:?}",
        problems(&text)
    );
    let text = format!("raft = \"disk\"\n{GOOD}");
    assert!(problems(&text).iter().any(|p| p.contains("raft: expected a table, found \"disk\"")));
}

#[test]
fn an_unreadable_file_is_an_error() {
    let error = Config::load(Path::new("/nonexistent/node.toml")).unwrap_err();
    assert!(error.to_string().starts_with("/nonexistent/node.toml cannot be read: No such file"), "{error}");
}

/// The documentation lists exactly the keys that exist.
#[test]
fn docs_name_every_key() {
    let docs = include_str!("../../../docs/config.md");
    let docs = docs.split("## Keys that are settings now").next().unwrap();
    let documented: std::collections::BTreeSet<&str> =
        docs.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')).map(|(key, _)| key).collect();
    assert_eq!(documented, KEYS.iter().copied().collect());
}

/// And the list is what the reader accepts: a file with every key is valid.
#[test]
fn every_key_is_accepted() {
    let text = r#"
name = "fw1"
data_dir = "/d"
role = "firewall"
[cluster]
listen = "0.0.0.0:1"
advertise = "10.0.0.1:1"
interfaces = ["eth2"]
[admin]
socket = "/s"
[http]
listen = "[::1]:1"
interfaces = ["eth2", "eth3"]
[readiness]
hold_down = "0s"
routes = ["0.0.0.0/0", "2001:db8::/32"]
table = 300
[[interface]]
name = "eth0"
zone = "outside"
antispoof = false
track = false
[datapath]
mode = "raw"
inject = "veth"
workers = 3
bypass_interfaces = ["mgmt0"]
ring_memory = 100_000_000
stale_after = "400ms"
hold_time = "100ms"
hold_packets = 100
hold_bytes = 1_000_000
hold_unmatched_packets = 10
hold_unmatched_bytes = 0x10000
manage_rp_filter = false
manage_forwarding = false
[raft]
durability = "disk"
heartbeat_interval = "50ms"
election_timeout = "200ms"
[limits]
memory = 10_000_000
progress_rate = 1_000_000
[log]
rate = 1000
daemon = false
syslog = "[fd00::1]:601"
syslog_protocol = "tcp"
file = "/var/log/palisade/connections"
file_bytes = 1_000_000
[lab]
cut_replication = true
"#;
    let config = Config::parse("node.toml", text).unwrap();
    assert_eq!((config.datapath.hold.matched.packets, config.datapath.hold.unmatched.packets), (100, 10));
    assert_eq!((config.datapath.hold.matched.bytes, config.datapath.hold.unmatched.bytes), (1_000_000, 65_536));
    assert_eq!(config.datapath.bypass_interfaces, ["mgmt0"]);
    assert!(!config.interfaces[0].track);
    assert_eq!(
        (config.datapath.ring_memory, config.datapath.stale_after),
        (Some(100_000_000), Duration::from_millis(400))
    );
    let routes = [("0.0.0.0", 0), ("2001:db8::", 32)].map(|(address, length)| (address.parse().unwrap(), length));
    assert_eq!((config.readiness.routes, config.readiness.table), (routes.into(), 300));
    assert_eq!((config.limits.memory, config.limits.progress_rate), (10_000_000, 1_000_000));
    assert_eq!(config.limits.affordable_sessions(), 9_765);
    let keys = text.lines().filter(|l| l.contains('=')).count();
    assert_eq!(keys, KEYS.len());
}

#[test]
fn workers_leave_room_for_raft() {
    for (processors, workers) in [(1, 1), (2, 1), (3, 2), (4, 3), (8, 7), (9, 7), (16, 14), (64, 56), (128, 64)] {
        assert_eq!(workers_for(processors), workers, "{processors}");
    }
}

#[test]
fn memory_of_the_rings_is_enough_for_all_of_them() {
    let with = |memory: usize| format!("{GOOD}\n[datapath]\nworkers = 4\nring_memory = {memory}\n");
    assert_eq!(Config::parse("node.toml", &with(2 << 20)).unwrap().datapath.ring_memory, Some(2 << 20));
    let found = problems(&with((2 << 20) - 1));
    assert_eq!(
        found,
        ["line 20: datapath.ring_memory: expected at least 2097152, found 2097151, with 2 interfaces and 4 workers"]
    );
}

#[test]
fn keys_that_are_settings_now_say_how_to_set_them() {
    for (table, key, setting) in MOVED {
        let assignment = palisade_engine::replica::Assignment::parse(&format!("{setting}=5"));
        assert!(!matches!(assignment, Err(palisade_engine::replica::AssignmentError::Unknown(_))), "{setting}");
        for (written, value) in [("5", "5"), ("\"10m\"", "10m")] {
            let text = format!("{GOOD}\n[{table}]\n{key} = {written}\n");
            let error = Config::parse("node.toml", &text).unwrap_err();
            let [problem] = error.problems() else { panic!("{error:?}") };
            assert!(problem.to_string().starts_with(&format!("{table}.{key}: it moved to the cluster's settings")));
            let command = format!("`palisade cluster settings set {setting}={value}`");
            assert!(problem.help.contains(&command), "{}", problem.help);
        }
        let page = include_str!("../../../docs/config.md");
        assert!(page.contains(&format!("| `{table}.{key}` | `{setting}` |")), "docs/config.md lacks {table}.{key}");
    }
}
