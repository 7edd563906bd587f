//! `node.toml`: the local facts of one member.
//!
//! What all members must agree on (policy, membership) is in the log and not here. The file is read once, at start. Every
//! error in it is reported at once, each with its key's full path, its line, what was expected and what to do: an admin
//! who mistyped three things should not need three starts to learn it. Unknown keys are errors, because a mistyped key
//! that is silently ignored is a default that nobody chose.
//!
//! Every key, its unit and its default: `docs/config.md`, which a test compares with [`KEYS`].

mod log;
mod reader;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use palisade_engine::Role;
use palisade_engine::hold::{HoldBudget, HoldLimits};

pub use log::{Log, SyslogProtocol, SyslogTarget};
pub use reader::{ConfigError, Invalid, Problem};
use reader::{Table, Wrong};

use crate::affordable;
use crate::datapath::{Rings, valid_interface_name};
use crate::lease::LEASE_DURATION;
use crate::listen::MAX_INTERFACES;
use crate::replication::Timing;

/// Every key that there is, as `table.key`; `[]` marks a list of tables.
pub const KEYS: &[&str] = &[
    "name",
    "data_dir",
    "role",
    "cluster.listen",
    "cluster.advertise",
    "cluster.interfaces",
    "admin.socket",
    "http.listen",
    "http.interfaces",
    "readiness.hold_down",
    "readiness.routes",
    "readiness.table",
    "interface[].name",
    "interface[].zone",
    "interface[].antispoof",
    "interface[].track",
    "datapath.mode",
    "datapath.inject",
    "datapath.workers",
    "datapath.bypass_interfaces",
    "datapath.ring_memory",
    "datapath.stale_after",
    "datapath.hold_time",
    "datapath.hold_packets",
    "datapath.hold_bytes",
    "datapath.hold_unmatched_packets",
    "datapath.hold_unmatched_bytes",
    "datapath.manage_rp_filter",
    "datapath.manage_forwarding",
    "raft.durability",
    "raft.heartbeat_interval",
    "raft.election_timeout",
    "limits.memory",
    "limits.progress_rate",
    "log.rate",
    "log.daemon",
    "log.syslog",
    "log.syslog_protocol",
    "log.file",
    "log.file_bytes",
    "lab.cut_replication",
];

/// The device that the firewall's own answers are sent by. The names of the other devices for re-injection begin as its name does:
/// see [`DeviceNames`](crate::datapath::DeviceNames).
pub const INJECT_DEVICE: &str = "palisade0";

/// The longest path of the admin socket. A unix socket's path has at most 107 bytes (unix(7)), and the daemon creates the
/// socket under a longer name first: see [`crate::admin`].
const MAX_SOCKET_PATH_BYTES: usize = 107 - ".4194304.new".len();

/// The largest number of destinations in `readiness.routes`.
const MAX_ROUTES: usize = 64;

/// A key that is now a setting of the cluster: table, key, setting.
const MOVED: [(&str, &str, &str); 7] = [
    ("raft", "max_voters", "members.voters"),
    ("raft", "replace_after", "members.replace_after"),
    ("limits", "max_sessions", "table.sessions"),
    ("limits", "max_half_open", "table.half_open"),
    ("limits", "max_half_open_per_source", "table.half_open_per_source"),
    ("limits", "grace", "lease.grace"),
    ("limits", "takeover_rate", "takeover.rate"),
];

/// Reports keys that are settings of the cluster now.
fn report_moved(t: &mut Table<'_>, table: &str, problems: &mut Vec<Problem>) {
    for (_, key, setting) in MOVED.into_iter().filter(|(of, ..)| *of == table) {
        t.moved(problems, key, setting);
    }
}

/// A checked `node.toml`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The member's name, unique in its cluster.
    pub name: String,
    /// Where its identity, log and snapshots live.
    pub data_dir: PathBuf,
    /// What it does.
    pub role: Role,
    /// `[cluster]`
    pub cluster: Cluster,
    /// `[admin]`
    pub admin: Admin,
    /// `[http]`
    pub http: Http,
    /// `[readiness]`
    pub readiness: Readiness,
    /// `[[interface]]`: none if the member is a witness, at least one if not.
    pub interfaces: Vec<Interface>,
    /// `[datapath]`
    pub datapath: Datapath,
    /// `[raft]`
    pub raft: Raft,
    /// `[limits]`
    pub limits: Limits,
    /// `[log]`
    pub log: Log,
    /// `[lab]`
    pub lab: Lab,
}

/// The member port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cluster {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where the other members reach it.
    pub advertise: SocketAddr,
    /// By which interfaces they do; none: the one that has the address of `listen`.
    pub interfaces: Vec<String>,
}

/// The local administration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Admin {
    /// The unix socket.
    pub socket: PathBuf,
}

/// Metrics and health over HTTP.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Http {
    /// Where it listens.
    pub listen: SocketAddr,
    /// By which interfaces it is reached, beside this machine's own programs; none: the one that has the address of `listen`.
    pub interfaces: Vec<String>,
}

/// How routers learn whether they should send traffic here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Readiness {
    /// How long a lower grade must last until it is announced.
    pub hold_down: Duration,
    /// Destinations for which a kernel route announces the grade: an address and the number of its significant bits.
    pub routes: Vec<(IpAddr, u8)>,
    /// The table of these routes.
    pub table: u32,
}

/// A data interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// The kernel's name for it.
    pub name: String,
    /// The policy's name for what is behind it.
    pub zone: String,
    /// Drop packets whose source the kernel would not route back this way.
    pub antispoof: bool,
    /// This member is ready only if the interface is up and has a carrier.
    pub track: bool,
}

/// How packets are put back into the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inject {
    /// TUN if `/dev/net/tun` can be opened, else a veth pair.
    Auto,
    /// TUN or nothing.
    Tun,
    /// A veth pair (user namespaces have no TUN).
    Veth,
}

/// How packets are captured, held and re-injected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Datapath {
    /// How packets are put back into the kernel.
    pub inject: Inject,
    /// Worker threads, 1 to 64.
    pub workers: usize,
    /// Interfaces exempt from the gate: the kernel routes what arrives on them unfiltered.
    pub bypass_interfaces: Vec<String>,
    /// The memory of all capture rings together, in bytes. `None`: by the number of rings.
    pub ring_memory: Option<usize>,
    /// The age from which a captured packet is dropped.
    pub stale_after: Duration,
    /// Bounds of each worker's hold buffer.
    pub hold: HoldLimits,
    /// May the daemon set `rp_filter` as it needs it?
    pub manage_rp_filter: bool,
    /// May the daemon switch forwarding on?
    pub manage_forwarding: bool,
}

/// The log's times.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Raft {
    /// The leader's heartbeat interval.
    pub heartbeat_interval: Duration,
    /// How long a member keeps to its leader after the leader's last message; then it campaigns.
    pub election_timeout: Duration,
}

/// What this machine can spend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Memory for the tables of sessions, in bytes.
    pub memory: u64,
    /// Bandwidth for progress reports to one other member, in bytes a second.
    pub progress_rate: usize,
}

impl Limits {
    /// The number of sessions that `memory` is enough for. It depends on the program only.
    #[must_use]
    pub fn affordable_sessions(&self) -> u64 {
        affordable::sessions(self.memory)
    }
}

/// Switches that break the member on purpose, so that tests can show that they would notice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lab {
    /// Hints and proposals of the packet path go nowhere.
    pub cut_replication: bool,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// The file cannot be read, or everything that is wrong in it.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let name = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Config::parse(&name, &text),
            Err(cause) => Err(ConfigError::Unreadable { name, cause }),
        }
    }

    /// Checks a text; `name` is the file's, for the errors.
    ///
    /// # Errors
    /// Everything that is wrong in it.
    pub fn parse(name: &str, text: &str) -> Result<Config, ConfigError> {
        let mut problems = Vec::new();
        let config = reader::document(text, &mut problems).and_then(|root| Config::read(root, &mut problems));
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => Err(ConfigError::new(name, text, problems)),
        }
    }

    /// `None` if a value is missing or wrong; every reason is in `problems` then.
    fn read(mut root: Table<'_>, problems: &mut Vec<Problem>) -> Option<Config> {
        let name = root.required(problems, "name", "give this member a name: `name = \"fw1\"`", member_name);
        let data_dir = root.or(problems, "data_dir", PathBuf::from("/var/lib/palisade"), absolute_path);
        let role = root.or(problems, "role", Role::Firewall, |v| {
            v.choice(&[("firewall", Role::Firewall), ("witness", Role::Witness)])
        });
        let cluster = Cluster::read(root.table(problems, "cluster"), problems);
        let admin = Admin::read(root.table(problems, "admin"), problems);
        let http = Http::read(root.table(problems, "http"), cluster.as_ref(), problems);
        let readiness = Readiness::read(root.table(problems, "readiness"), role, problems);
        let interfaces = Interface::read_all(&mut root, role, problems);
        let datapath = Datapath::read(root.table(problems, "datapath"), &interfaces, problems);
        let raft = Raft::read(root.table(problems, "raft"), problems);
        let limits = Limits::read(root.table(problems, "limits"), problems);
        let log = Log::read(root.table(problems, "log"), problems);
        let lab = Lab::read(root.table(problems, "lab"), problems);
        root.finish(problems);
        Some(Config {
            name: name?,
            data_dir: data_dir?,
            role: role?,
            cluster: cluster?,
            admin: admin?,
            http: http?,
            readiness: readiness?,
            interfaces,
            datapath: datapath?,
            raft: raft?,
            limits: limits?,
            log: log?,
            lab: lab?,
        })
    }
}

impl Cluster {
    fn read(mut t: Table<'_>, problems: &mut Vec<Problem>) -> Option<Cluster> {
        const WHY: &str =
            "the address and port on which the other members reach this one: `listen = \"10.9.0.1:7946\"`";
        let listen = t.required(problems, "listen", WHY, |v| v.address());
        let advertise = t.optional(problems, "advertise", |v| {
            v.address().and_then(|a| {
                if a.ip().is_unspecified() {
                    Err(Wrong::new(
                        "an address that other members can reach",
                        &a.to_string(),
                        "name one address of this machine",
                    ))
                } else {
                    Ok(a)
                }
            })
        });
        if let (Some(listen), Some(None)) = (listen, advertise)
            && listen.ip().is_unspecified()
        {
            let help = "add `advertise = \"ADDRESS:PORT\"`, or listen on one address only (safer: the member port is not authenticated yet)";
            t.problem(
                problems,
                "advertise",
                "it is missing, and `listen` names no address that other members could reach",
                "",
                help,
            );
            listening_interfaces(&mut t, None, problems);
            t.finish(problems);
            return None;
        }
        let interfaces = listening_interfaces(&mut t, listen, problems);
        t.finish(problems);
        Some(Cluster { listen: listen?, advertise: advertise?.unwrap_or(listen?), interfaces: interfaces? })
    }
}

impl Admin {
    fn read(mut t: Table<'_>, problems: &mut Vec<Problem>) -> Option<Admin> {
        let socket = t.or(problems, "socket", PathBuf::from("/run/palisade/admin.sock"), |v| {
            let path = absolute_path(v)?;
            if path.file_name().is_some() && path.as_os_str().len() <= MAX_SOCKET_PATH_BYTES {
                Ok(path)
            } else {
                Err(Wrong::new(
                    &format!("the path of a file, of at most {MAX_SOCKET_PATH_BYTES} bytes"),
                    &path.display().to_string(),
                    "choose a shorter path: unix sockets have this limit",
                ))
            }
        });
        t.finish(problems);
        Some(Admin { socket: socket? })
    }
}

impl Http {
    fn read(mut t: Table<'_>, cluster: Option<&Cluster>, problems: &mut Vec<Problem>) -> Option<Http> {
        let listen = t.or(problems, "listen", SocketAddr::from(([127, 0, 0, 1], 9946)), |v| v.address());
        if let (Some(listen), Some(cluster)) = (listen, cluster)
            && overlap(listen, cluster.listen)
        {
            t.problem(
                problems,
                "listen",
                "another address than the member port's",
                &format!("{listen}, with `cluster.listen` {}", cluster.listen),
                "choose another port",
            );
        }
        let interfaces = listening_interfaces(&mut t, listen, problems);
        t.finish(problems);
        Some(Http { listen: listen?, interfaces: interfaces? })
    }
}

impl Readiness {
    fn read(mut t: Table<'_>, role: Option<Role>, problems: &mut Vec<Problem>) -> Option<Readiness> {
        let hold_down = t.or(problems, "hold_down", Duration::from_secs(3), |v| {
            v.duration(Duration::from_millis(0), Duration::from_secs(60))
        });
        let routes = t.or(problems, "routes", Vec::new(), |v| {
            let prefixes = v.prefixes()?;
            if prefixes.len() > MAX_ROUTES {
                let found = format!("{} prefixes", prefixes.len());
                return Err(Wrong::new(&format!("at most {MAX_ROUTES} prefixes"), &found, "name fewer"));
            }
            Ok(prefixes)
        });
        // 253 to 255 are the kernel's: default, main, local.
        let table = t.or(problems, "table", 7946, |v| v.count(256, u32::MAX as usize));
        if let (Some(Role::Witness), Some([_, ..])) = (role, routes.as_deref()) {
            t.problem(
                problems,
                "routes",
                "no routes, because a witness forwards nothing",
                &routes.as_ref().map_or(0, Vec::len).to_string(),
                "remove the key, or set `role = \"firewall\"`",
            );
        }
        t.finish(problems);
        Some(Readiness { hold_down: hold_down?, routes: routes?, table: u32::try_from(table?).ok()? })
    }
}

/// The interfaces by which a port may be reached.
fn listening_interfaces(
    t: &mut Table<'_>,
    listen: Option<SocketAddr>,
    problems: &mut Vec<Problem>,
) -> Option<Vec<String>> {
    let interfaces = t.or(problems, "interfaces", Vec::new(), |v| {
        let names = v.strings(any_interface_name)?;
        if names.len() > MAX_INTERFACES {
            let found = format!("{} names", names.len());
            return Err(Wrong::new(&format!("at most {MAX_INTERFACES} interfaces"), &found, "name fewer"));
        }
        Ok(names)
    });
    if let (Some(listen), Some(names)) = (listen, &interfaces)
        && listen.ip().is_unspecified()
        && names.is_empty()
    {
        let help = "name the interfaces by which others may connect: `interfaces = [\"eth2\"]`; or listen on one address: then it is the interface that has it";
        t.problem(
            problems,
            "interfaces",
            "the interfaces by which the port may be reached",
            "none, and `listen` names no address",
            help,
        );
    }
    interfaces
}

/// Whether a machine cannot listen on both addresses.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let any = |a: SocketAddr, b: SocketAddr| a.ip().is_unspecified() && (a.is_ipv6() || b.is_ipv4());
    a.port() == b.port() && a.port() != 0 && (a.ip() == b.ip() || any(a, b) || any(b, a))
}

impl Interface {
    fn read_all(root: &mut Table<'_>, role: Option<Role>, problems: &mut Vec<Problem>) -> Vec<Interface> {
        let mut found: Vec<Interface> = Vec::new();
        let tables = root.tables(problems, "interface");
        match role {
            Some(Role::Firewall) if tables.is_empty() => root.problem(
                problems,
                "interface",
                "at least one data interface",
                "none",
                "add `[[interface]]` with `name = \"eth0\"` and `zone = \"outside\"`, or set `role = \"witness\"`",
            ),
            Some(Role::Witness) if !tables.is_empty() => root.problem(
                problems,
                "interface",
                "no data interface, because a witness forwards nothing",
                &tables.len().to_string(),
                "remove every `[[interface]]`, or set `role = \"firewall\"`",
            ),
            _ => {}
        }
        for mut t in tables {
            let name = t.required(
                problems,
                "name",
                "the kernel's name of the interface, as `ip link` shows it",
                interface_name,
            );
            let zone =
                t.required(problems, "zone", "the policy's name for what is behind it, such as \"inside\"", zone_name);
            let antispoof = t.or(problems, "antispoof", true, |v| v.boolean());
            let track = t.or(problems, "track", true, |v| v.boolean());
            if let Some(name) = &name
                && found.iter().any(|i| i.name == *name)
            {
                t.problem(
                    problems,
                    "name",
                    "each interface once",
                    &format!("\"{name}\" again"),
                    "remove one of the two tables",
                );
            }
            t.finish(problems);
            if let (Some(name), Some(zone), Some(antispoof), Some(track)) = (name, zone, antispoof, track) {
                found.push(Interface { name, zone, antispoof, track });
            }
        }
        found
    }
}

impl Datapath {
    fn read(mut t: Table<'_>, interfaces: &[Interface], problems: &mut Vec<Problem>) -> Option<Datapath> {
        let mode = t.or(problems, "mode", (), |v| {
            match v.choice(&[("auto", true), ("raw", true), ("tc", false), ("xdp", false)])? {
                true => Ok(()),
                false => Err(Wrong::new(
                    "\"auto\" or \"raw\"",
                    &v.found(),
                    "the fast path (tc, xdp) is not yet available: use \"auto\"",
                )),
            }
        });
        let inject = t.or(problems, "inject", Inject::Auto, |v| {
            v.choice(&[("auto", Inject::Auto), ("tun", Inject::Tun), ("veth", Inject::Veth)])
        });
        let workers = t.or(problems, "workers", default_workers(), |v| v.count(1, 64));
        let bypass_interfaces = t.or(problems, "bypass_interfaces", Vec::new(), |v| {
            let names = v.strings(interface_name)?;
            let repeated = names.iter().enumerate().find(|(n, name)| names.iter().take(*n).any(|other| other == *name));
            match repeated {
                Some((_, name)) => {
                    Err(Wrong::new("each interface once", &format!("\"{name}\" again"), "remove one of the two names"))
                }
                None => Ok(names),
            }
        });
        for name in bypass_interfaces.iter().flatten().filter(|name| interfaces.iter().any(|i| i.name == **name)) {
            t.problem(
                problems,
                "bypass_interfaces",
                "no data interface: the kernel would route what arrives on it without any filtering",
                &format!("\"{name}\", which `[[interface]]` names too"),
                "remove it from this list, or remove its `[[interface]]` table",
            );
        }
        let ring_memory = t.optional(problems, "ring_memory", |v| v.count(1 << 17, 1 << 40));
        if let (Some(Some(memory)), Some(workers)) = (ring_memory, workers)
            && let Err(needed) = Rings::share(interfaces.len(), workers, Some(memory))
        {
            let found = format!("{memory}, with {} interfaces and {workers} workers", interfaces.len());
            let help = "each interface, IP version and worker has a ring: raise it, or lower `workers`";
            t.problem(problems, "ring_memory", &format!("at least {needed}"), &found, help);
        }
        let stale_after = t.or(problems, "stale_after", Duration::from_millis(250), |v| {
            v.duration(Duration::from_millis(10), Duration::from_secs(10))
        });
        let hold_time = t.or(problems, "hold_time", Duration::from_millis(250), |v| {
            v.duration(Duration::from_millis(10), Duration::from_secs(2))
        });
        let packets = t.or(problems, "hold_packets", 4096, |v| v.count(16, 1 << 20));
        let bytes = t.or(problems, "hold_bytes", 16 << 20, |v| v.count(1 << 16, 1 << 30));
        let unmatched_packets = t.or(problems, "hold_unmatched_packets", 512, |v| v.count(1, 1 << 16));
        let unmatched_bytes = t.or(problems, "hold_unmatched_bytes", 1 << 20, |v| v.count(1 << 12, 1 << 28));
        let manage_rp_filter = t.or(problems, "manage_rp_filter", true, |v| v.boolean());
        let manage_forwarding = t.or(problems, "manage_forwarding", true, |v| v.boolean());
        t.finish(problems);
        mode?;
        Some(Datapath {
            inject: inject?,
            workers: workers?,
            bypass_interfaces: bypass_interfaces?,
            ring_memory: ring_memory?,
            stale_after: stale_after?,
            hold: HoldLimits {
                matched: HoldBudget { packets: packets?, bytes: bytes? },
                unmatched: HoldBudget { packets: unmatched_packets?, bytes: unmatched_bytes? },
                max_time: hold_time?,
            },
            manage_rp_filter: manage_rp_filter?,
            manage_forwarding: manage_forwarding?,
        })
    }
}

impl Raft {
    fn read(mut t: Table<'_>, problems: &mut Vec<Problem>) -> Option<Raft> {
        let durability =
            t.or(problems, "durability", (), |v| match v.choice(&[("disk", true), ("relaxed", false)])? {
                true => Ok(()),
                false => Err(Wrong::new(
                    "\"disk\"",
                    &v.found(),
                    "\"relaxed\" is not yet available: use \"disk\", the default",
                )),
            });
        let usual = Timing::default();
        let heartbeat = t.or(problems, "heartbeat_interval", usual.heartbeat, |v| {
            v.duration(Duration::from_millis(10), Duration::from_millis(100))
        });
        // Even if the first vote is lost, there is a new leader within four times this. Leases must still be valid then, or
        // every change of leader would stop new connections everywhere.
        let election = t.or(problems, "election_timeout", usual.election, |v| {
            v.duration(Duration::from_millis(60), LEASE_DURATION / 4)
        });
        if let (Some(heartbeat), Some(election)) = (heartbeat, election)
            && election < heartbeat * 3
        {
            let found = format!("{election:?}, with a heartbeat of {heartbeat:?}");
            t.problem(
                problems,
                "election_timeout",
                "at least three times the heartbeat",
                &found,
                "a single lost heartbeat must not start an election: raise `election_timeout` or lower `heartbeat_interval`",
            );
        }
        report_moved(&mut t, "raft", problems);
        t.finish(problems);
        durability?;
        Some(Raft { heartbeat_interval: heartbeat?, election_timeout: election? })
    }
}

impl Limits {
    fn read(mut t: Table<'_>, problems: &mut Vec<Problem>) -> Option<Limits> {
        let memory = t.or(problems, "memory", 1 << 30, |v| v.count(1 << 20, 1 << 40));
        let progress_rate = t.or(problems, "progress_rate", 4_000_000, |v| v.count(10_000, 1_000_000_000));
        report_moved(&mut t, "limits", problems);
        t.finish(problems);
        Some(Limits { memory: memory? as u64, progress_rate: progress_rate? })
    }
}

impl Lab {
    fn read(mut t: Table<'_>, problems: &mut Vec<Problem>) -> Option<Lab> {
        let cut_replication = t.or(problems, "cut_replication", false, |v| v.boolean());
        t.finish(problems);
        Some(Lab { cut_replication: cut_replication? })
    }
}

/// All processors but one in eight, and at least one where there are two or more: Raft, the disk and the kernel's own packet
/// work need some.
fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, |n| workers_for(n.get()))
}

fn workers_for(processors: usize) -> usize {
    (processors - processors.div_ceil(8).min(processors.saturating_sub(1))).clamp(1, 64)
}

fn member_name(v: reader::Value<'_>) -> Result<String, Wrong> {
    let name = v.string()?;
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.is_empty() && name.len() <= 63 && name.chars().all(good) {
        Ok(name)
    } else {
        Err(Wrong::new(
            "1 to 63 letters, digits, `-`, `_` or `.`",
            &v.found(),
            "the host name does well: `name = \"fw1\"`",
        ))
    }
}

fn zone_name(v: reader::Value<'_>) -> Result<String, Wrong> {
    let name = v.string()?;
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let first = name.starts_with(|c: char| c.is_ascii_alphabetic());
    if name == "any" {
        return Err(Wrong::new("a zone's name", "\"any\"", "`any` means every zone in a policy: choose another name"));
    }
    if first && name.len() <= 63 && name.chars().all(good) {
        Ok(name)
    } else {
        Err(Wrong::new(
            "a letter, then letters, digits, `-` or `_`",
            &v.found(),
            "use the name that the policy's `zone` line has",
        ))
    }
}

fn interface_name(v: reader::Value<'_>) -> Result<String, Wrong> {
    let name = v.string()?;
    if name == "lo" {
        return Err(Wrong::new("a data interface", &v.found(), "this device is never filtered: remove it here"));
    }
    if name.starts_with(INJECT_DEVICE.trim_end_matches('0')) {
        let help = "Palisade's own devices begin so, and the gate lets them pass: rename the interface";
        return Err(Wrong::new("an interface whose name does not begin with `palisade`", &v.found(), help));
    }
    any_interface_name(v)
}

/// The name of an interface that may also be `lo`, or not be Palisade's to filter.
fn any_interface_name(v: reader::Value<'_>) -> Result<String, Wrong> {
    let name = v.string()?;
    if valid_interface_name(&name) {
        Ok(name)
    } else {
        Err(Wrong::new(
            "an interface name: 1 to 15 bytes without white space, quotes, slashes or colons",
            &v.found(),
            "use the name that `ip link` shows",
        ))
    }
}

fn absolute_path(v: reader::Value<'_>) -> Result<PathBuf, Wrong> {
    let path = PathBuf::from(v.string()?);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(Wrong::new(
            "an absolute path",
            &v.found(),
            "begin it with `/`: the daemon's working directory is not yours",
        ))
    }
}

#[cfg(test)]
mod tests;
