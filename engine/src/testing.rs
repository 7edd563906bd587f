//! What the unit tests have in common.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use crate::addr::Ip;
use crate::id::{Generation, MemberId, RuleId, SessionId, ZoneId};
use crate::session::{HalfOpen, HandshakeState, SynParams};
use crate::tuple::{Protocol, Tuple};

pub(crate) const CLIENT: Ip = Ip::V4([10, 0, 1, 2]);
pub(crate) const SERVER: Ip = Ip::V4([10, 0, 2, 3]);
pub(crate) const OUTSIDE: ZoneId = ZoneId(1);
pub(crate) const INSIDE: ZoneId = ZoneId(2);

pub(crate) fn tuple(port: u16) -> Tuple {
    Tuple { src: CLIENT, dst: SERVER, src_port: 1024 + port, dst_port: 80, protocol: Protocol::TCP }
}

pub(crate) fn end(isn: u32) -> SynParams {
    SynParams { isn, window: 64240, wscale: Some(7), sack: true }
}

pub(crate) fn half_open(original: Tuple, counter: u64) -> HalfOpen {
    HalfOpen {
        id: SessionId { member: MemberId(1), counter },
        original,
        reply: original.inverse(),
        ingress: OUTSIDE,
        egress: INSIDE,
        generation: Generation(1),
        rule: RuleId(1),
        supersedes: None,
        challenge: None,
        protocol: HandshakeState::Tcp { client: end(1000), server: None },
    }
}

pub(crate) const POLICY: &str = "zone outside, inside\n\ndefault drop\n\n\
    accept \"web\" from outside to inside: any -> any tcp/80\n\
    accept \"dns\" from outside to inside: any -> any udp/53\n\
    accept \"ping\" from outside to inside: any -> any icmp/echo\n\
    reject \"telnet\" from outside to inside: any -> any tcp/23\n";
