//! Conversion of what the command line and its member say to each other.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use palisade_engine::{
    Generation, Ip, LeaseState, MemberId, PerDirection, Protocol, Role, RuleId, SessionId, SessionInfo, Traffic, Tuple,
};

use crate::admin::v1;

/// An administrative message that does not hold what it should.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AdminError {
    /// A field that must be there is not.
    #[error("the field `{0}` is missing")]
    Missing(&'static str),
    /// An address has neither 4 nor 16 bytes.
    #[error("an address has 4 or 16 bytes, not {0}")]
    Address(usize),
    /// A prefix is longer than its address.
    #[error("a prefix of this address has at most {most} bits, not {found}")]
    PrefixLength {
        /// The address's bits.
        most: u32,
        /// What was said.
        found: u32,
    },
    /// A port above 65535.
    #[error("a port is at most 65535, not {0}")]
    Port(u32),
    /// A protocol above 255.
    #[error("an IP protocol is at most 255, not {0}")]
    Protocol(u32),
    /// A number that stands for nothing that this version knows.
    #[error("unknown value {value} of `{field}`: the other side is of another version")]
    Unknown {
        /// The field.
        field: &'static str,
        /// Its value.
        value: i32,
    },
}

/// A session as an administrator sees it: [`SessionInfo`] with names instead of numbers, able to travel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// Client to server.
    pub original: Tuple,
    /// Server to client.
    pub reply: Tuple,
    /// The zone that the original direction comes from.
    pub ingress: String,
    /// The zone that it leaves to.
    pub egress: String,
    /// The policy that allowed it.
    pub generation: Generation,
    /// The rule that allowed it.
    pub rule: RuleId,
    /// Its name; empty if its policy is not in the history any longer.
    pub rule_name: String,
    /// The protocol's state as conntrack(8) names it.
    pub state: String,
    /// Not yet in the log.
    pub half_open: bool,
    /// Time since the answering member saw a packet of it.
    pub idle: Duration,
    /// Time until it ends if no packet comes.
    pub timeout: Duration,
    /// What all members forwarded, as far as the answering member knows.
    pub traffic: PerDirection<Traffic>,
}

impl Session {
    /// From the engine's view; `zones` are the zone names by number, `rule_name` the name of its rule.
    #[must_use]
    pub fn new(info: &SessionInfo, zones: &[String], rule_name: &str) -> Session {
        let zone = |id: palisade_engine::ZoneId| match zones.get(usize::from(id.0)) {
            Some(name) if !name.is_empty() && id != palisade_engine::ZoneId::UNKNOWN => name.clone(),
            _ => "-".to_owned(),
        };
        Session {
            id: info.id,
            original: info.original,
            reply: info.reply,
            ingress: zone(info.zones.ingress),
            egress: zone(info.zones.egress),
            generation: info.rule.0,
            rule: info.rule.1,
            rule_name: rule_name.to_owned(),
            state: info.state.to_owned(),
            half_open: info.half_open,
            idle: info.idle,
            timeout: info.timeout,
            traffic: info.traffic,
        }
    }
}

/// Which sessions are meant. As conntrack(8): everything that is given must match; addresses and ports are those of the
/// original direction.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SessionFilter {
    /// The protocol.
    pub protocol: Option<Protocol>,
    /// The client's address.
    pub src: Option<Prefix>,
    /// The server's address.
    pub dst: Option<Prefix>,
    /// The client's port.
    pub src_port: Option<u16>,
    /// The server's port.
    pub dst_port: Option<u16>,
    /// The state, in any case.
    pub state: Option<String>,
    /// The zone of either side.
    pub zone: Option<String>,
}

impl SessionFilter {
    /// Does it match everything?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == SessionFilter::default()
    }

    /// Is the session meant? `zones` are the zone names by number. Does not allocate: it is asked for every session.
    #[must_use]
    pub fn matches(&self, info: &SessionInfo, zones: &[String]) -> bool {
        let zone = |id: palisade_engine::ZoneId| zones.get(usize::from(id.0)).map(String::as_str);
        self.protocol.is_none_or(|p| p == info.original.protocol)
            && self.src.is_none_or(|p| p.contains(info.original.src))
            && self.dst.is_none_or(|p| p.contains(info.original.dst))
            && self.src_port.is_none_or(|p| p == info.original.src_port)
            && self.dst_port.is_none_or(|p| p == info.original.dst_port)
            && self.state.as_ref().is_none_or(|s| s.eq_ignore_ascii_case(info.state))
            && self
                .zone
                .as_deref()
                .is_none_or(|z| zone(info.zones.ingress) == Some(z) || zone(info.zones.egress) == Some(z))
    }
}

impl fmt::Display for SessionFilter {
    /// As the command line has it. Texts are escaped: they come from a caller, and go into the log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("--proto", self.protocol.map(|p| p.to_string())),
            ("--src", self.src.map(|p| p.to_string())),
            ("--dst", self.dst.map(|p| p.to_string())),
            ("--sport", self.src_port.map(|p| p.to_string())),
            ("--dport", self.dst_port.map(|p| p.to_string())),
            ("--state", self.state.as_deref().map(|s| s.escape_debug().to_string())),
            ("--zone", self.zone.as_deref().map(|z| z.escape_debug().to_string())),
        ];
        let given: Vec<String> =
            parts.into_iter().filter_map(|(key, value)| Some(format!("{key} {}", value?))).collect();
        f.write_str(&given.join(" "))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// An address or a network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prefix {
    address: IpAddr,
    length: u32,
}

/// A text that is no address or network.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected an address or network such as 192.0.2.1, 192.0.2.0/24 or 2001:db8::/32")]
pub struct PrefixError;

impl Prefix {
    /// A network; bits of the address behind `length` are ignored.
    ///
    /// # Errors
    /// `length` is more than the address has.
    pub fn new(address: IpAddr, length: u32) -> Result<Prefix, AdminError> {
        let most = if address.is_ipv4() { 32 } else { 128 };
        if length <= most {
            Ok(Prefix { address, length })
        } else {
            Err(AdminError::PrefixLength { most, found: length })
        }
    }

    /// Is the address in it?
    #[must_use]
    pub fn contains(&self, ip: Ip) -> bool {
        match (self.address, IpAddr::from(ip)) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                let differ = u32::from(net) ^ u32::from(ip);
                differ.checked_shr(32 - self.length).unwrap_or(0) == 0
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => {
                let differ = u128::from(net) ^ u128::from(ip);
                differ.checked_shr(128 - self.length).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl std::str::FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(s: &str) -> Result<Prefix, PrefixError> {
        let (address, length) = match s.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (s, None),
        };
        let address: IpAddr = address.parse().map_err(|_| PrefixError)?;
        let length = match length {
            Some(length) => length.parse().map_err(|_| PrefixError)?,
            None if address.is_ipv4() => 32,
            None => 128,
        };
        Prefix::new(address, length).map_err(|_| PrefixError)
    }
}

fn address(bytes: &[u8]) -> Result<IpAddr, AdminError> {
    if let Ok(b) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(b));
    }
    <[u8; 16]>::try_from(bytes).map(IpAddr::from).map_err(|_| AdminError::Address(bytes.len()))
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

fn port(port: u32) -> Result<u16, AdminError> {
    u16::try_from(port).map_err(|_| AdminError::Port(port))
}

fn protocol(number: u32) -> Result<Protocol, AdminError> {
    u8::try_from(number).map(Protocol).map_err(|_| AdminError::Protocol(number))
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

impl From<Prefix> for v1::Prefix {
    fn from(p: Prefix) -> v1::Prefix {
        v1::Prefix { address: octets(p.address).into(), length: p.length }
    }
}

impl TryFrom<v1::Prefix> for Prefix {
    type Error = AdminError;

    fn try_from(p: v1::Prefix) -> Result<Prefix, AdminError> {
        Prefix::new(address(&p.address)?, p.length)
    }
}

impl From<SessionFilter> for v1::SessionFilter {
    fn from(f: SessionFilter) -> v1::SessionFilter {
        v1::SessionFilter {
            protocol: f.protocol.map(|p| u32::from(p.0)),
            src: f.src.map(Into::into),
            dst: f.dst.map(Into::into),
            src_port: f.src_port.map(u32::from),
            dst_port: f.dst_port.map(u32::from),
            state: f.state,
            zone: f.zone,
        }
    }
}

impl TryFrom<v1::SessionFilter> for SessionFilter {
    type Error = AdminError;

    fn try_from(f: v1::SessionFilter) -> Result<SessionFilter, AdminError> {
        Ok(SessionFilter {
            protocol: f.protocol.map(protocol).transpose()?,
            src: f.src.map(TryInto::try_into).transpose()?,
            dst: f.dst.map(TryInto::try_into).transpose()?,
            src_port: f.src_port.map(port).transpose()?,
            dst_port: f.dst_port.map(port).transpose()?,
            state: f.state,
            zone: f.zone,
        })
    }
}

impl From<SessionId> for v1::SessionId {
    fn from(id: SessionId) -> v1::SessionId {
        v1::SessionId { member: id.member.0, counter: id.counter }
    }
}

impl From<v1::SessionId> for SessionId {
    fn from(id: v1::SessionId) -> SessionId {
        SessionId { member: MemberId(id.member), counter: id.counter }
    }
}

impl From<Tuple> for v1::Tuple {
    fn from(t: Tuple) -> v1::Tuple {
        v1::Tuple {
            src: octets(t.src.into()).into(),
            dst: octets(t.dst.into()).into(),
            src_port: t.src_port.into(),
            dst_port: t.dst_port.into(),
            protocol: t.protocol.0.into(),
        }
    }
}

impl TryFrom<v1::Tuple> for Tuple {
    type Error = AdminError;

    fn try_from(t: v1::Tuple) -> Result<Tuple, AdminError> {
        Ok(Tuple {
            src: address(&t.src)?.into(),
            dst: address(&t.dst)?.into(),
            src_port: port(t.src_port)?,
            dst_port: port(t.dst_port)?,
            protocol: protocol(t.protocol)?,
        })
    }
}

impl From<Session> for v1::Session {
    fn from(s: Session) -> v1::Session {
        let traffic = |t: Traffic| Some(v1::Traffic { packets: t.packets, bytes: t.bytes });
        v1::Session {
            id: Some(s.id.into()),
            original: Some(s.original.into()),
            reply: Some(s.reply.into()),
            ingress: s.ingress,
            egress: s.egress,
            generation: s.generation.0,
            rule: s.rule.0,
            rule_name: s.rule_name,
            state: s.state,
            half_open: s.half_open,
            idle_ms: millis(s.idle),
            timeout_ms: millis(s.timeout),
            original_traffic: traffic(s.traffic.original),
            reply_traffic: traffic(s.traffic.reply),
        }
    }
}

impl TryFrom<v1::Session> for Session {
    type Error = AdminError;

    fn try_from(s: v1::Session) -> Result<Session, AdminError> {
        let traffic =
            |t: Option<v1::Traffic>| t.map_or(Traffic::default(), |t| Traffic { packets: t.packets, bytes: t.bytes });
        Ok(Session {
            id: s.id.ok_or(AdminError::Missing("session.id"))?.into(),
            original: s.original.ok_or(AdminError::Missing("session.original"))?.try_into()?,
            reply: s.reply.ok_or(AdminError::Missing("session.reply"))?.try_into()?,
            ingress: s.ingress,
            egress: s.egress,
            generation: Generation(s.generation),
            rule: RuleId(s.rule),
            rule_name: s.rule_name,
            state: s.state,
            half_open: s.half_open,
            idle: Duration::from_millis(s.idle_ms),
            timeout: Duration::from_millis(s.timeout_ms),
            traffic: PerDirection { original: traffic(s.original_traffic), reply: traffic(s.reply_traffic) },
        })
    }
}

impl From<Role> for v1::Role {
    fn from(r: Role) -> v1::Role {
        match r {
            Role::Firewall => v1::Role::Firewall,
            Role::Witness => v1::Role::Witness,
        }
    }
}

impl TryFrom<v1::Role> for Role {
    type Error = AdminError;

    fn try_from(r: v1::Role) -> Result<Role, AdminError> {
        match r {
            v1::Role::Firewall => Ok(Role::Firewall),
            v1::Role::Witness => Ok(Role::Witness),
            v1::Role::Unspecified => Err(AdminError::Missing("role")),
        }
    }
}

impl From<LeaseState> for v1::LeaseState {
    fn from(s: LeaseState) -> v1::LeaseState {
        match s {
            LeaseState::Valid => v1::LeaseState::Valid,
            LeaseState::Grace => v1::LeaseState::Grace,
            LeaseState::Expired => v1::LeaseState::Expired,
        }
    }
}

impl TryFrom<v1::LeaseState> for LeaseState {
    type Error = AdminError;

    fn try_from(s: v1::LeaseState) -> Result<LeaseState, AdminError> {
        match s {
            v1::LeaseState::Valid => Ok(LeaseState::Valid),
            v1::LeaseState::Grace => Ok(LeaseState::Grace),
            v1::LeaseState::Expired => Ok(LeaseState::Expired),
            v1::LeaseState::Unspecified => Err(AdminError::Missing("lease")),
        }
    }
}

#[cfg(test)]
mod tests;
