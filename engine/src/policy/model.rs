//! The parts of a policy, and its canonical form.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::addr::Ip;
use crate::id::RuleId;
use crate::parse::IpOption;
use crate::timeouts::Timeouts;
use crate::tuple::Protocol;

/// The action of a rule or of the default.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Lets the session through.
    Accept,
    /// Discards silently.
    Drop,
    /// Discards and sends a TCP RST or an ICMP error.
    Reject,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Action::Accept => "accept",
            Action::Drop => "drop",
            Action::Reject => "reject",
        })
    }
}

/// The decision of a policy on a new connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// The rule that decided.
    pub rule: RuleId,
    /// Whether the decision is logged.
    pub log: bool,
}

/// A parsed and checked policy, not yet bound to zone numbers. `Display` writes the canonical form.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Policy {
    pub(super) zones: Vec<String>,
    pub(super) sets: Vec<Named<Address>>,
    pub(super) services: Vec<Named<Service>>,
    #[serde(skip_serializing_if = "Timeouts::is_default")]
    pub(super) timeouts: Timeouts,
    pub(super) default: Default,
    pub(super) ip_options: Vec<IpOption>,
    pub(super) rules: Vec<Rule>,
}

/// A [`Policy`] as deserialized, not yet checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    #[serde(default)]
    zones: Vec<String>,
    #[serde(default)]
    sets: Vec<Named<Address>>,
    #[serde(default)]
    services: Vec<Named<Service>>,
    #[serde(default)]
    timeouts: Timeouts,
    default: Default,
    #[serde(default)]
    ip_options: Vec<IpOption>,
    #[serde(default)]
    rules: Vec<Rule>,
}

impl TryFrom<Unchecked> for Policy {
    type Error = String;

    /// Checks the canonical text like any other. Refuses the policy if that text parses to another one, for example because
    /// a name contains a line break.
    fn try_from(unchecked: Unchecked) -> Result<Policy, String> {
        let Unchecked { zones, sets, services, timeouts, default, ip_options, rules } = unchecked;
        let policy = Policy { zones, sets, services, timeouts, default, ip_options, rules };
        match Policy::parse("policy", &policy.to_string()) {
            Ok(checked) if checked == policy => Ok(checked),
            Ok(_) => Err("a name in the policy is empty or contains characters that names cannot have".to_owned()),
            Err(error) => Err(error.render()),
        }
    }
}

/// The action for connections that no rule matches.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Default {
    /// What to do.
    pub action: Action,
    /// Whether the decision is logged.
    #[serde(default)]
    pub log: bool,
}

/// A set or a service: a name for a list.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named<T> {
    /// Its name.
    pub name: String,
    /// The members of the list; never empty.
    pub members: Vec<T>,
}

/// A rule.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The action.
    pub action: Action,
    /// Its name.
    pub name: String,
    /// The ingress zones of the connection's first packet.
    pub from: List<String>,
    /// The egress zones.
    pub to: List<String>,
    /// The source addresses.
    pub source: List<Address>,
    /// The destination addresses.
    pub destination: List<Address>,
    /// The services.
    pub services: List<Service>,
    /// Whether the decision is logged.
    #[serde(default)]
    pub log: bool,
}

/// Everything, or a list; as JSON the word `"any"` or an array.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum List<T> {
    /// Everything.
    Any(AnyWord),
    /// The items of the list; never empty.
    Of(Vec<T>),
}

impl<T> List<T> {
    /// Everything.
    pub const ANY: List<T> = List::Any(AnyWord::Any);

    /// The list, unless it is everything.
    #[must_use]
    pub fn items(&self) -> Option<&[T]> {
        match self {
            List::Any(_) => None,
            List::Of(items) => Some(items),
        }
    }
}

/// The word `any`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AnyWord {
    /// `any`.
    Any,
}

/// A member of a list of addresses.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Address {
    /// An address or a prefix.
    Prefix(Prefix),
    /// A set's name.
    Set(String),
}

/// An address prefix; a single address has the full length. The bits beyond the length are 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prefix {
    /// The first address.
    pub(super) address: Ip,
    /// The number of significant bits.
    pub(super) length: u8,
}

impl Prefix {
    /// The first address.
    #[must_use]
    pub fn address(self) -> Ip {
        self.address
    }

    /// The number of significant bits.
    #[must_use]
    pub fn length(self) -> u8 {
        self.length
    }

    /// The first and last address, as numbers; IPv4 addresses are in the lower 32 bits.
    pub(super) fn range(self) -> (u128, u128) {
        let (first, bits) = number(self.address);
        let host = bits - u32::from(self.length);
        (first, first | (1u128.checked_shl(host).unwrap_or(0).wrapping_sub(1)))
    }
}

/// An address as a number, and its size in bits.
pub(super) fn number(address: Ip) -> (u128, u32) {
    match address {
        Ip::V4(bytes) => (u32::from_be_bytes(bytes).into(), 32),
        Ip::V6(bytes) => (u128::from_be_bytes(bytes), 128),
    }
}

impl FromStr for Prefix {
    type Err = String;

    /// Parses a prefix; the error is a message for the user.
    fn from_str(text: &str) -> Result<Prefix, String> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let parsed: IpAddr = address.parse().map_err(|_| format!("`{address}` is not an IPv4 or IPv6 address"))?;
        if let IpAddr::V6(v6) = parsed
            && let Some(v4) = v6.to_ipv4_mapped()
        {
            return Err(format!("`{address}` is an IPv4 address in IPv6 notation: write {v4}"));
        }
        let address = Ip::from(parsed);
        let (first, bits) = number(address);
        let length = match length {
            None => bits,
            Some(digits) => (!digits.is_empty() && digits.len() <= 3 && digits.bytes().all(|b| b.is_ascii_digit()))
                .then(|| digits.parse().ok())
                .flatten()
                .filter(|&length| length <= bits)
                .ok_or_else(|| format!("`{digits}` is not a prefix length: it goes from 0 to {bits}"))?,
        };
        let mask = 1u128.checked_shl(bits - length).unwrap_or(0).wrapping_sub(1);
        if first & mask != 0 {
            let network = match address {
                // The value fits in 32 bits.
                Ip::V4(_) => Ip::V4(((first & !mask) as u32).to_be_bytes()),
                Ip::V6(_) => Ip::V6((first & !mask).to_be_bytes()),
            };
            return Err(format!("{text} has bits set beyond its length: write {network}/{length} or {address}"));
        }
        // At most 128.
        Ok(Prefix { address, length: length as u8 })
    }
}

/// A member of a list of services.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Service {
    /// A protocol. For ICMP and ICMPv6 this is echo, the only message that opens a session.
    Protocol(Protocol),
    /// TCP, UDP or SCTP to a range of destination ports.
    Ports(Protocol, u16, u16),
    /// A service's name.
    Named(String),
}

impl FromStr for Service {
    type Err = String;

    /// Parses a service; the error is a message for the user.
    fn from_str(text: &str) -> Result<Service, String> {
        match text.split_once('/') {
            None => match text {
                "tcp" => Ok(Service::Protocol(Protocol::TCP)),
                "udp" => Ok(Service::Protocol(Protocol::UDP)),
                "sctp" => Ok(Service::Protocol(Protocol::SCTP)),
                "icmp" => Ok(Service::Protocol(Protocol::ICMP)),
                "icmp6" => Ok(Service::Protocol(Protocol::ICMPV6)),
                "proto" => Err("`proto` needs a number, as in proto/47".to_owned()),
                name if is_name(name) => Ok(Service::Named(name.to_owned())),
                _ => Err(format!("`{text}` is not a service")),
            },
            Some(("tcp", ports)) => range(ports).map(|(low, high)| Service::Ports(Protocol::TCP, low, high)),
            Some(("udp", ports)) => range(ports).map(|(low, high)| Service::Ports(Protocol::UDP, low, high)),
            Some(("sctp", ports)) => range(ports).map(|(low, high)| Service::Ports(Protocol::SCTP, low, high)),
            Some(("icmp", "echo")) => Ok(Service::Protocol(Protocol::ICMP)),
            Some(("icmp6", "echo")) => Ok(Service::Protocol(Protocol::ICMPV6)),
            Some((icmp @ ("icmp" | "icmp6"), _)) => Err(format!(
                "only echo opens an ICMP session: write {icmp}/echo (ICMP errors about a session are always forwarded)"
            )),
            Some(("proto", digits)) => match decimal(digits).and_then(|number| u8::try_from(number).ok()) {
                Some(number) => Ok(Service::Protocol(Protocol(number))),
                None => Err(format!("`{digits}` is not an IP protocol number: it goes from 0 to 255")),
            },
            Some((protocol, _)) => Err(format!("`{protocol}` is not a protocol")),
        }
    }
}

/// Parses `80` or `1000-2000`.
fn range(text: &str) -> Result<(u16, u16), String> {
    let port = |digits: &str| {
        decimal(digits)
            .and_then(|number| u16::try_from(number).ok())
            .filter(|&port| port != 0)
            .ok_or_else(|| format!("`{digits}` is not a port: it goes from 1 to 65535"))
    };
    match text.split_once('-') {
        None => port(text).map(|port| (port, port)),
        Some((low, high)) => match (port(low)?, port(high)?) {
            (low, high) if low <= high => Ok((low, high)),
            (low, high) => Err(format!("the range is empty: write {high}-{low}")),
        },
    }
}

/// Parses a decimal number of at most five digits, without sign.
fn decimal(digits: &str) -> Option<u32> {
    let fine = !digits.is_empty() && digits.len() <= 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
    fine.then(|| digits.parse().ok()).flatten()
}

/// Maximum length of the name of a zone, set or service.
pub(super) const NAME_MAX: usize = 63;
/// Maximum length of the name of a rule, in bytes.
pub(super) const RULE_NAME_MAX: usize = 255;

/// The reserved words of the language.
pub(super) const KEYWORDS: &[&str] = &[
    "zone",
    "set",
    "service",
    "timeout",
    "default",
    "ip-options",
    "accept",
    "drop",
    "reject",
    "from",
    "to",
    "any",
    "log",
    "tcp",
    "udp",
    "sctp",
    "icmp",
    "icmp6",
    "proto",
];

/// Whether the text has the form of the name of a zone, set or service. Keywords have it, too.
pub(super) fn is_name(text: &str) -> bool {
    text.len() <= NAME_MAX
        && text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && !text.ends_with('-')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
}

macro_rules! as_string {
    ($type:ident) => {
        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }

        impl TryFrom<String> for $type {
            type Error = String;

            fn try_from(text: String) -> Result<$type, String> {
                text.parse()
            }
        }
    };
}

as_string!(Address);
as_string!(Service);
as_string!(IpOption);

impl FromStr for IpOption {
    type Err = String;

    fn from_str(text: &str) -> Result<IpOption, String> {
        let named = IpOption::ALL.iter().copied().find(|option| option.name() == text);
        named.ok_or_else(|| format!("`{text}` is not an IPv4 option that can be allowed"))
    }
}

impl fmt::Display for IpOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        match text.strip_prefix('@') {
            Some(name) if is_name(name) => Ok(Address::Set(name.to_owned())),
            Some(name) => Err(format!("`{name}` is not a set's name")),
            None => text.parse().map(Address::Prefix),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if u32::from(self.length) == number(self.address).1 {
            write!(f, "{}", self.address)
        } else {
            write!(f, "{}/{}", self.address, self.length)
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Prefix(prefix) => prefix.fmt(f),
            Address::Set(name) => write!(f, "@{name}"),
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Service::Protocol(protocol @ (Protocol::TCP | Protocol::UDP | Protocol::SCTP)) => write!(f, "{protocol}"),
            Service::Protocol(protocol @ (Protocol::ICMP | Protocol::ICMPV6)) => write!(f, "{protocol}/echo"),
            Service::Protocol(Protocol(number)) => write!(f, "proto/{number}"),
            Service::Ports(protocol, low, high) if low == high => write!(f, "{protocol}/{low}"),
            Service::Ports(protocol, low, high) => write!(f, "{protocol}/{low}-{high}"),
            Service::Named(name) => f.write_str(name),
        }
    }
}

/// Writes a list as in the policy text.
fn join<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: &[T]) -> fmt::Result {
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            f.write_str(", ")?;
        }
        item.fmt(f)?;
    }
    Ok(())
}

impl<T: fmt::Display> fmt::Display for List<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            List::Any(_) => f.write_str("any"),
            List::Of(items) => join(f, items),
        }
    }
}

impl<T: fmt::Display> fmt::Display for Named<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = ", self.name)?;
        join(f, &self.members)
    }
}

impl fmt::Display for Default {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "default {}{}", self.action, if self.log { " log" } else { "" })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rule { action, name, from, to, source, destination, services, log } = self;
        write!(f, "{action} \"{name}\" from {from} to {to}: {source} -> {destination}")?;
        if services.items().is_some() {
            write!(f, " {services}")?;
        }
        f.write_str(if *log { " log" } else { "" })
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.zones.is_empty() {
            f.write_str("zone ")?;
            join(f, &self.zones)?;
            f.write_str("\n\n")?;
        }
        for set in &self.sets {
            writeln!(f, "set {set}")?;
        }
        for service in &self.services {
            writeln!(f, "service {service}")?;
        }
        if !self.sets.is_empty() || !self.services.is_empty() {
            f.write_str("\n")?;
        }
        if !self.timeouts.is_default() {
            write!(f, "timeout {}\n\n", self.timeouts)?;
        }
        writeln!(f, "{}", self.default)?;
        if !self.ip_options.is_empty() {
            f.write_str("ip-options ")?;
            join(f, &self.ip_options)?;
            f.write_str("\n")?;
        }
        if !self.rules.is_empty() {
            f.write_str("\n")?;
        }
        self.rules.iter().try_for_each(|rule| writeln!(f, "{rule}"))
    }
}

impl Policy {
    /// The declared zones, in order.
    #[must_use]
    pub fn zones(&self) -> &[String] {
        &self.zones
    }

    /// The sets.
    #[must_use]
    pub fn sets(&self) -> &[Named<Address>] {
        &self.sets
    }

    /// The services.
    #[must_use]
    pub fn services(&self) -> &[Named<Service>] {
        &self.services
    }

    /// The idle timeouts of sessions.
    #[must_use]
    pub fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// The action for connections that no rule matches.
    #[must_use]
    pub fn default_action(&self) -> Default {
        self.default
    }

    /// The IPv4 options that the policy allows.
    #[must_use]
    pub fn ip_options(&self) -> &[IpOption] {
        &self.ip_options
    }

    /// The rules; the first one is [`RuleId`] 1.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
}
