//! The replicated part of a session: what all members have in common.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::digest::{Kind, extensible_element};
use crate::encoding::Extensible;
#[cfg(feature = "next-level")]
use crate::encoding::{DecodeError, ExtensionWriter};
use crate::id::{Generation, MemberId, RuleId, SessionId, ZoneId, ZonePair};
#[cfg(feature = "next-level")]
use crate::replicated::next_level;
use crate::session::{CloseCause, EndCause, EndedSession, Establish, HandshakeState, SynParams};
use crate::traffic::Traffic;
use crate::tuple::{Direction, PerDirection, Tuple};

/// The replicated part of a session, equal on all members at equal index.
///
/// Only this module's parent, which applies commands, can make or change one. Everybody else reads.
#[derive(Clone, Debug)]
pub(crate) struct Replicated {
    member: Packed48,
    counter: Packed,
    original: Tuple,
    generation: Packed48,
    rule: RuleId,
    ingress: ZoneId,
    egress: ZoneId,
    closed: Option<CloseCause>,
    activity_epoch: u16,
    opened: WallTenths,
    handshake: CompactHandshake,
    #[cfg(feature = "next-level")]
    tag: u32,
}

/// A time on the wall clock, in tenths of a second since 1970, modulo 2^32: it wraps every 13 years.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct WallTenths(u32);

impl WallTenths {
    pub(crate) fn from_unix_ms(unix_ms: u64) -> WallTenths {
        WallTenths((unix_ms / 100) as u32)
    }

    /// The time since `earlier`, at most six years; zero if `earlier` is later, because clocks of members differ.
    pub(crate) fn since(self, earlier: WallTenths) -> Duration {
        let tenths = self.0.wrapping_sub(earlier.0) as i32;
        Duration::from_millis(u64::try_from(tenths).unwrap_or(0) * 100)
    }
}

/// A `u64` in the alignment of a `u32`: a session has no room for padding.
#[derive(Clone, Copy, Debug)]
struct Packed([u32; 2]);

impl Packed {
    fn new(value: u64) -> Packed {
        Packed([value as u32, (value >> 32) as u32])
    }

    fn get(self) -> u64 {
        u64::from(self.0[0]) | u64::from(self.0[1]) << 32
    }
}

/// A number that counts from 1 by single steps, of members and policies, in six bytes.
#[derive(Clone, Copy, Debug)]
struct Packed48([u16; 3]);

impl Packed48 {
    fn new(value: u64) -> Packed48 {
        Packed48([value as u16, (value >> 16) as u16, (value >> 32) as u16])
    }

    fn get(self) -> u64 {
        let [low, middle, high] = self.0.map(u64::from);
        low | middle << 16 | high << 32
    }
}

/// [`HandshakeState`] of an established session, in less space.
#[derive(Clone, Copy, Debug)]
enum CompactHandshake {
    Tcp([CompactSyn; 2]),
    Generic { replied: bool },
}

/// [`SynParams`], in less space.
#[derive(Clone, Copy, Debug)]
struct CompactSyn {
    isn: u32,
    window: u16,
    /// [`CompactSyn::UNSCALED`]: there is none.
    wscale: u8,
    sack: bool,
}

impl CompactSyn {
    const UNSCALED: u8 = u8::MAX;

    fn new(syn: &SynParams) -> CompactSyn {
        CompactSyn {
            isn: syn.isn,
            window: syn.window,
            wscale: syn.wscale.unwrap_or(CompactSyn::UNSCALED),
            sack: syn.sack,
        }
    }

    fn params(&self) -> SynParams {
        let wscale = (self.wscale != CompactSyn::UNSCALED).then_some(self.wscale);
        SynParams { isn: self.isn, window: self.window, wscale, sack: self.sack }
    }
}

impl CompactHandshake {
    fn new(state: &HandshakeState) -> CompactHandshake {
        match state {
            HandshakeState::Tcp { client, server: Some(server) } => {
                CompactHandshake::Tcp([CompactSyn::new(client), CompactSyn::new(server)])
            }
            // Without a server it is never established.
            HandshakeState::Tcp { client, server: None } => CompactHandshake::Tcp([CompactSyn::new(client); 2]),
            HandshakeState::Generic { replied } => CompactHandshake::Generic { replied: *replied },
        }
    }
}

/// [`Replicated`] as snapshots keep it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct SessionRecord {
    pub(super) establish: Establish,
    pub(super) closed: Option<CloseCause>,
    pub(super) activity_epoch: u16,
    pub(super) opened: WallTenths,
}

impl SessionRecord {
    /// The session's part of the digest.
    pub(super) fn digest(&self) -> u64 {
        extensible_element(Kind::Session, self)
    }
}

impl Extensible for SessionRecord {
    #[cfg(feature = "next-level")]
    fn write_extensions(&self, to: &mut ExtensionWriter<'_>) -> Result<(), postcard::Error> {
        next_level::write_tag(self.establish.tag, to)
    }

    #[cfg(feature = "next-level")]
    fn read_extension(&mut self, tag: u32, value: &[u8]) -> Result<bool, DecodeError> {
        next_level::read_tag(&mut self.establish.tag, tag, value)
    }
}

impl Replicated {
    pub(super) fn new(establish: &Establish, opened: WallTenths) -> Replicated {
        Replicated::restored(&SessionRecord { establish: *establish, closed: None, activity_epoch: 0, opened })
    }

    pub(super) fn restored(record: &SessionRecord) -> Replicated {
        let Establish { id, original, ingress, egress, generation, rule, protocol, .. } = record.establish;
        Replicated {
            member: Packed48::new(id.member.0),
            counter: Packed::new(id.counter),
            original,
            generation: Packed48::new(generation.0),
            rule,
            ingress,
            egress,
            closed: record.closed,
            activity_epoch: record.activity_epoch,
            opened: record.opened,
            handshake: CompactHandshake::new(&protocol),
            #[cfg(feature = "next-level")]
            tag: record.establish.tag,
        }
    }

    #[cfg(feature = "next-level")]
    pub(crate) fn tag(&self) -> u32 {
        self.tag
    }

    pub(super) fn close(&mut self, cause: CloseCause) {
        self.closed = Some(cause);
    }

    /// The session as it ends now.
    pub(crate) fn ended(
        &self,
        now: WallTenths,
        cause: EndCause,
        traffic: Option<PerDirection<Traffic>>,
    ) -> EndedSession {
        EndedSession {
            id: self.id(),
            original: self.original,
            zones: self.zones(),
            rule: (self.generation(), self.rule),
            duration: now.since(self.opened),
            cause,
            traffic,
        }
    }

    /// Begins the next activity epoch.
    pub(super) fn refresh(&mut self) {
        // No command lasts for 65,536 idle probes, which take a second each at least.
        self.activity_epoch = self.activity_epoch.wrapping_add(1);
    }

    pub(crate) fn id(&self) -> SessionId {
        SessionId { member: MemberId(self.member.get()), counter: self.counter.get() }
    }

    /// Client to server.
    pub(crate) fn original(&self) -> &Tuple {
        &self.original
    }

    /// Server to client. It is the inverse until there is address translation.
    pub(crate) fn reply(&self) -> Tuple {
        self.original.inverse()
    }

    /// The policy generation that allowed it.
    pub(crate) fn generation(&self) -> Generation {
        Generation(self.generation.get())
    }

    /// The rule that allowed it.
    pub(crate) fn rule(&self) -> RuleId {
        self.rule
    }

    /// Where packets of a direction come from.
    pub(crate) fn zone(&self, direction: Direction) -> ZoneId {
        match direction {
            Direction::Original => self.ingress,
            Direction::Reply => self.egress,
        }
    }

    pub(crate) fn zones(&self) -> ZonePair {
        ZonePair { ingress: self.ingress, egress: self.egress }
    }

    pub(crate) fn closed(&self) -> Option<CloseCause> {
        self.closed
    }

    pub(crate) fn is_open(&self) -> bool {
        self.closed.is_none()
    }

    /// How many times a [`Refresh`](crate::replicated::Command::Refresh) has kept it alive.
    pub(crate) fn activity_epoch(&self) -> u16 {
        self.activity_epoch
    }

    pub(crate) fn handshake_state(&self) -> HandshakeState {
        match &self.handshake {
            CompactHandshake::Tcp([client, server]) => {
                HandshakeState::Tcp { client: client.params(), server: Some(server.params()) }
            }
            CompactHandshake::Generic { replied } => HandshakeState::Generic { replied: *replied },
        }
    }

    /// The SYN parameters of a TCP connection's client and server.
    pub(crate) fn syn_params(&self) -> Option<PerDirection<SynParams>> {
        match &self.handshake {
            CompactHandshake::Tcp([client, server]) => {
                Some(PerDirection { original: client.params(), reply: server.params() })
            }
            CompactHandshake::Generic { .. } => None,
        }
    }

    /// What a snapshot keeps of it.
    pub(crate) fn record(&self) -> SessionRecord {
        let establish = Establish {
            id: self.id(),
            original: self.original,
            reply: self.reply(),
            ingress: self.ingress,
            egress: self.egress,
            generation: self.generation(),
            rule: self.rule,
            supersedes: None,
            protocol: self.handshake_state(),
            #[cfg(feature = "next-level")]
            tag: self.tag,
        };
        SessionRecord { establish, closed: self.closed, activity_epoch: self.activity_epoch, opened: self.opened }
    }

    /// Its part of the digest.
    pub(crate) fn digest(&self) -> u64 {
        self.record().digest()
    }

    /// Whether it is the same establishment, however it went on.
    pub(crate) fn is_same_establishment(&self, other: &Replicated) -> bool {
        self.record().establish == other.record().establish
    }

    /// Whether it is open or closed as the other one is, in the same activity epoch.
    pub(crate) fn is_as_far_as(&self, other: &Replicated) -> bool {
        (self.closed, self.activity_epoch) == (other.closed, other.activity_epoch)
    }

    /// Changes the rule as failing memory would.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn damage(&mut self) {
        self.rule.0 ^= 1;
    }
}
