//! Errors of the datapath's start, each with its remedy.

use std::io;

use super::host::Family;

/// Why the datapath does not start, with the remedy.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum StartError {
    /// The number of workers is out of range, or not that of the wake handle.
    #[error("{workers} packet workers were asked for, and the wake handle is for {handle}")]
    #[diagnostic(help("give between 1 and 64 workers, and the same number to the wake handle"))]
    Workers {
        /// As asked for.
        workers: usize,
        /// The wake handle's.
        handle: usize,
    },
    /// A name that no interface can have.
    #[error("{name:?} is not the name of an interface")]
    #[diagnostic(help("interface names have 1 to 15 bytes, without white space, quotes, slashes or colons"))]
    Name {
        /// The name.
        name: String,
    },
    /// A data interface that the gate would exempt.
    #[error(
        "the data interface {interface} is among the bypass interfaces (as {bypass}): the kernel would route what arrives on it unfiltered"
    )]
    #[diagnostic(help(
        "`ip link` shows all names of an interface; remove {bypass} from bypass_interfaces under [datapath] in node.toml, or remove the [[interface]] table of {interface}"
    ))]
    Bypassed {
        /// The data interface.
        interface: String,
        /// The name among the bypass interfaces: the same one, or another one of the interface.
        bypass: String,
    },
    /// An interface whose packets the gate would take for what Palisade re-injects.
    #[error("the interface {name} has a name as Palisade's own devices have")]
    #[diagnostic(help("rename it: names that begin with `palisade` are for re-injection"))]
    Reserved {
        /// Its name.
        name: String,
    },
    /// The policy rule `lookup local` is not the first.
    #[error("the {family} policy rule `lookup local` is not at priority 0, ahead of the gate")]
    #[diagnostic(help(
        "the gate would cut this machine itself off; put it back: `ip rule add pref 0 lookup local` (IPv6: `ip -6 rule …`)"
    ))]
    LocalRule {
        /// Of which family.
        family: Family,
    },
    /// A foreign policy rule lies at or before the gate.
    #[error("a foreign {family} policy rule at priority {priority} leads around the gate")]
    #[diagnostic(help(
        "see `ip rule` (`ip -6 rule`) and move it to a priority above 3: `ip rule del pref {priority} …`, then add it again behind the gate (`pref 1000`; without `pref` the kernel chooses 0)"
    ))]
    ForeignRule {
        /// Of which family.
        family: Family,
        /// Its priority.
        priority: u32,
    },
    /// Reverse path filtering would eat every re-injected packet.
    #[error(
        "reverse path filtering is on for {device}: rp_filter is {all} for `all` and {own} for {device}; the greater counts"
    )]
    #[diagnostic(help(
        "Palisade checks sources itself. Give each data interface the value of `all`, then `sysctl -w net.ipv4.conf.all.rp_filter=0`; or let the daemon do so: `manage_rp_filter = true` under [datapath]"
    ))]
    RpFilter {
        /// palisade0.
        device: String,
        /// The value of `all`.
        all: i64,
        /// The device's own.
        own: i64,
    },
    /// Forwarding is off.
    #[error("forwarding is off: {setting} is 0")]
    #[diagnostic(help(
        "`sysctl -w {setting}=1` (and in /etc/sysctl.d/), or `manage_forwarding = true` under [datapath]"
    ))]
    Forwarding {
        /// The setting.
        setting: String,
    },
    /// IPv6 is off on palisade0.
    #[error("IPv6 is off: {setting} is 1")]
    #[diagnostic(help("`sysctl -w {setting}=0`; to do without IPv6 altogether, boot with ipv6.disable=1"))]
    Ipv6Disabled {
        /// The setting.
        setting: String,
    },
    /// The kernel forwards multicasts or directed broadcasts, which go around the gate.
    #[error("the kernel forwards {what}s past the gate: {setting} is on")]
    #[diagnostic(help("stop what switched it on (a multicast routing daemon?), or `sysctl -w {setting}=0`"))]
    Forwards {
        /// Multicast or broadcast.
        what: &'static str,
        /// The setting.
        setting: String,
    },
    /// A FORWARD chain drops what was re-injected.
    #[error("the {chain} drops what nothing accepts, and so every packet that Palisade allows")]
    #[diagnostic(help(
        "Docker, ufw and firewalld do this. Accept what Palisade has judged: `iptables -I FORWARD -i palisade+ -j ACCEPT` (`ip6tables` likewise), in nftables `nft insert rule FAMILY TABLE CHAIN iifname \"palisade*\" accept`; or set the policy to accept"
    ))]
    ForwardChain {
        /// Family, table and chain.
        chain: String,
        /// palisade0.
        device: String,
    },
    /// A rule drops what has no route back by the interface that it came from.
    #[error("a reverse path filter in the chain {chain} drops what Palisade re-injects")]
    #[diagnostic(help(
        "Palisade checks sources itself. Let the chain begin with an exception: `nft insert rule {chain} iifname \"palisade*\" accept`; of firewalld: `IPv6_rpfilter=no` in firewalld.conf"
    ))]
    ReversePathRule {
        /// Family, table and chain.
        chain: String,
    },
    /// An XDP program on a data interface.
    #[error("an XDP program on {interface} sees packets before Palisade, and may forward them")]
    #[diagnostic(help("`ip link set dev {interface} xdp off`, and stop what attached it"))]
    Xdp {
        /// The interface.
        interface: String,
    },
    /// A data interface of a VRF.
    #[error("{interface} belongs to a VRF, and Palisade routes in the main table")]
    #[diagnostic(help("`ip link set dev {interface} nomaster`"))]
    Vrf {
        /// The interface.
        interface: String,
    },
    /// The kernel forwards labelled packets.
    #[error("the kernel forwards MPLS packets past the gate: {setting} is 1")]
    #[diagnostic(help("`sysctl -w {setting}=0`"))]
    Labels {
        /// The setting.
        setting: String,
    },
    /// Flows that the kernel forwards by itself.
    #[error("the nftables flowtable {name} forwards flows of {interface} past Palisade")]
    #[diagnostic(help("take {interface} out of it, or remove it: `nft delete flowtable FAMILY {name}`"))]
    Flowtable {
        /// Table and name.
        name: String,
        /// The data interface.
        interface: String,
    },
    /// A sysctl of palisade0 cannot be set.
    #[error("{setting} cannot be set to {value}")]
    #[diagnostic(help(
        "the daemon needs CAP_NET_ADMIN and a writable /proc/sys/net (systemd: no ProtectKernelTunables=)"
    ))]
    Setting {
        /// The setting.
        setting: String,
        /// The value.
        value: i64,
        /// Why.
        source: io::Error,
    },
    /// The device for re-injection cannot be created.
    #[error("the device {device} cannot be created")]
    #[diagnostic(help("the daemon needs CAP_NET_ADMIN, and /dev/net/tun (`modprobe tun`) or veth interfaces"))]
    Device {
        /// Its name.
        device: String,
        /// Why.
        source: io::Error,
    },
    /// The device for re-injection belongs to somebody else.
    #[error("there is an interface {device} already, and it does not go away")]
    #[diagnostic(help("is another Palisade running in this network namespace? If not: `ip link del {device}`"))]
    DeviceInUse {
        /// Its name.
        device: String,
    },
    /// Other processes attach to each new device.
    #[error("other processes attach themselves to every TUN device that is made for {device}, before it has an owner")]
    #[diagnostic(help(
        "what they write there would pass the gate. `grep -l '^iff:' /proc/[0-9]*/fdinfo/*` finds processes that have TUN devices open; end those that are not yours, or let only root open TUN devices: `chmod 600 /dev/net/tun`"
    ))]
    DeviceIntruder {
        /// The device's name.
        device: String,
    },
    /// The policy rules of the gate cannot be installed.
    #[error("the gate's policy rules cannot be installed")]
    #[diagnostic(help(
        "the daemon needs CAP_NET_ADMIN, and a kernel with CONFIG_IP_MULTIPLE_TABLES and CONFIG_IPV6_MULTIPLE_TABLES"
    ))]
    Gate {
        /// Why.
        source: io::Error,
    },
    /// The capture rings would be too small.
    #[error(
        "ring_memory is too small for {interfaces} interfaces and {workers} workers: they need {needed} bytes at least"
    )]
    #[diagnostic(help("raise ring_memory under [datapath] in node.toml, or lower workers"))]
    RingMemory {
        /// Data interfaces.
        interfaces: usize,
        /// Workers.
        workers: usize,
        /// The smallest budget.
        needed: usize,
    },
    /// A capture socket cannot be opened.
    #[error("{interface} cannot be captured")]
    #[diagnostic(help(
        "the daemon needs CAP_NET_RAW, a kernel with CONFIG_PACKET, and memory for its rings ([datapath] ring_memory: one for each interface, IP version and worker)"
    ))]
    Capture {
        /// The interface.
        interface: String,
        /// Why.
        source: io::Error,
    },
    /// The kernel did not answer, or a thread could not be started.
    #[error("the kernel refuses: {what}")]
    #[diagnostic(help("the daemon needs CAP_NET_ADMIN in its network namespace"))]
    System {
        /// What was asked of it.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}
