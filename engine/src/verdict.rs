//! Verdicts, and the closed list of drop reasons.

/// What happens to a packet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Verdict {
    /// Re-inject it.
    Forward,
    /// Discard it silently.
    Drop(Reason),
    /// Discard it and answer: TCP with a RST, everything else with ICMP "administratively prohibited" (RFC 1812 section
    /// 5.2.7.1, RFC 4443 section 3.1).
    Reject(Reason),
    /// Hold it, within bounds, until the key is woken. Then judge it again.
    Hold(HoldKey, HoldClass),
}

impl Verdict {
    /// The budget of a packet that is to be held.
    #[must_use]
    pub fn held(self) -> Option<HoldClass> {
        match self {
            Verdict::Hold(_, class) => Some(class),
            _ => None,
        }
    }
}

/// What a held packet waits for: the hash of its tuple, equal in both directions, or of a fragment's [`FragmentKey`](crate::FragmentKey).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct HoldKey(pub u64);

/// The budget of a held packet. A flood of one class never displaces the classes before it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum HoldClass {
    /// It matches a half-open session and awaits its commit, apply or a hint.
    Matched,
    /// It matches nothing that this member knows. The hint may still be in flight. A small budget.
    Unmatched,
    /// It is a fragment whose first fragment is not known here. A quarter of the unmatched budget.
    Fragment,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $label:literal,)*) => {
        /// Why a packet was not forwarded. The list is closed; its labels are the metric's and the trace's text.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            /// The label: stable, `snake_case`.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self {
                    $(Reason::$name => $label,)*
                }
            }
        }
    };
}

reasons! {
    /// Shorter than its headers say, or than its headers need.
    Truncated = "truncated",
    /// A header contradicts itself or a specification.
    Malformed = "malformed",
    /// A wrong IP, TCP, UDP, SCTP or ICMP checksum.
    BadChecksum = "bad_checksum",
    /// An IPv4 option that the policy does not let through, or an IPv6 extension header or option that never passes.
    IpOption = "ip_option",
    /// A source or destination that is never valid on a wire or across a router (loopback, link-local, multicast …).
    Martian = "martian",
    /// The route to the source address does not lead to the interface where the packet arrived.
    Antispoof = "antispoof",
    /// A fragment whose first one was dropped, or that overlaps, or is too small.
    Fragment = "fragment",
    /// The kernel has no route to the destination.
    NoRoute = "no_route",
    /// The route leads out of an interface that is no data interface (management, cluster, loopback), or the packet came in
    /// by one: the interface has no zone.
    NoDataInterface = "no_data_interface",
    /// It was allowed to leave by a zone in which this member has no interface.
    EgressMismatch = "egress_mismatch",
    /// A rule, or the default action, says drop.
    Policy = "policy",
    /// A rule says reject.
    PolicyReject = "policy_reject",
    /// No session, no half-open session, and not a packet that opens one.
    NoSession = "no_session",
    /// TCP: flags that cannot occur together or in this state.
    TcpFlags = "tcp_flags",
    /// TCP: sequence or acknowledgement number outside the window.
    TcpWindow = "tcp_window",
    /// TCP: a RST that does not name the exact next sequence number.
    TcpRst = "tcp_rst",
    /// An ICMP error about a packet that no session sent.
    IcmpUnrelated = "icmp_unrelated",
    /// An ICMP type that routers do not forward (redirects, router discovery, neighbour discovery).
    IcmpType = "icmp_type",
    /// It arrived from a zone that this direction of its session does not come from, and that the policy, or the route to its
    /// source, does not allow either.
    WrongZone = "wrong_zone",
    /// The half-open table, or the source's share of it, is full.
    HalfOpenFull = "half_open_full",
    /// The session table is full.
    TableFull = "table_full",
    /// The log refused the session: another one has its tuple.
    Conflict = "conflict",
    /// The hold buffer, or this packet's budget in it, is full.
    HoldFull = "hold_full",
    /// It was held, and what it waited for did not arrive in time.
    HoldExpired = "hold_expired",
    /// The lease of this member is in its grace period: nothing new is admitted.
    LeaseGrace = "lease_grace",
    /// The lease of this member has expired: nothing passes.
    LeaseExpired = "lease_expired",
    /// It was captured too long ago (a stall).
    Stale = "stale",
    /// The frame was not for this router (foreign MAC, VLAN tag, a broadcast or multicast that is not of its link only).
    NotForUs = "not_for_us",
    /// It could not be re-injected.
    InjectFailed = "inject_failed",
}
