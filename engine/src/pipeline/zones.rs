//! The zones of a packet that belongs to a session: judged by the policy in force and this member's own routes.
//!
//! A session's replicated zones are those of the packet that opened it, at the member that saw it. Another member may have
//! another uplink, and routes change. So each packet is judged by the zones that it has here: where it came in, and where the
//! kernel would send it. It passes if the policy accepts the session's first packet between these zones.
//!
//! ```text
//!                     client's zone                          server's zone
//!   original packet   where it came in                       this member's route to the server
//!   reply             this member's route to the client      where it came in
//! ```
//!
//! A packet that comes in elsewhere than its session was opened for is checked as the source of a new session would be
//! ([`Context::antispoof`]). The result is remembered in the session until the policy or a route changes; nothing of it is
//! replicated. A packet that does not pass does not keep its session alive.

use super::RoutesNeeded;
use crate::engine::Engine;
use crate::id::{ZoneId, ZonePair};
use crate::parse::{Kind, Packet};
use crate::policy::Action;
use crate::table::half_open::HalfOpenEntry;
use crate::table::session::{Passed, Session};
use crate::tuple::{Direction, Tuple};
use crate::types::Context;
use crate::verdict::Reason;

/// This member's routes for one packet.
#[derive(Clone, Copy)]
pub(super) struct PacketRoutes {
    /// The zone that it leaves to. `None`: there is no route.
    egress: Option<ZoneId>,
    /// Whether packets to its source may leave to where it came in, if that was asked.
    is_genuine: Option<bool>,
}

impl PacketRoutes {
    /// Asks the kernel. This may take long: no lock may be held.
    pub(super) fn ask(packet: &Packet, needed: RoutesNeeded, context: &mut Context<'_>) -> PacketRoutes {
        // An ICMP error comes from any router on the way to where the quoted packet went.
        let source = match &packet.kind {
            Kind::IcmpError(quoted) => quoted.tuple.dst,
            _ => packet.tuple.src,
        };
        PacketRoutes {
            egress: context.routes.zone(packet.tuple.dst),
            is_genuine: needed.source.then(|| context.routes.may_lead_to(source, context.ingress)),
        }
    }
}

/// What a packet's zones are compared with.
struct Opening<'a> {
    /// The client's first packet.
    original: &'a Tuple,
    /// Its zones where it was judged.
    zones: ZonePair,
    /// Whether the policy in force is known to accept it between these zones.
    accepted: bool,
}

/// Whether the kernel sends this packet to the zone, as far as it is known: it was asked once for the session, and may decide by
/// what nobody can ask for.
fn leaves_by(context: &Context<'_>, egress: ZoneId) -> bool {
    context.routes.observed_egress().is_none_or(|observed| observed == egress)
}

/// The reason of a packet that is dropped where a rule rejects: nobody is told.
pub(super) fn in_silence(reason: Reason) -> Reason {
    if reason == Reason::PolicyReject { Reason::Policy } else { reason }
}

impl Engine {
    /// Judges the zones of a packet of an established session.
    pub(super) fn judge_zones(
        &self,
        session: &mut Session,
        direction: Direction,
        context: &Context<'_>,
        routes: Option<&PacketRoutes>,
    ) -> Result<Result<(), Reason>, RoutesNeeded> {
        let passes = self.passes(context);
        let egress = session.local.egress[direction];
        if session.passed_before(direction, &passes) && leaves_by(context, egress) {
            context.routes.set_egress(egress);
            return Ok(Ok(()));
        }
        let opening = Opening {
            original: session.original(),
            zones: session.replicated().zones(),
            accepted: session.replicated().generation() == passes.generation,
        };
        let judged = self.judge_opening(&opening, direction, context, routes)?;
        if let Ok(egress) = judged {
            session.remember_passed(direction, &passes);
            session.local.egress[direction] = egress;
            context.routes.set_egress(egress);
        }
        Ok(judged.map(drop))
    }

    /// Judges the zones of a packet of a half-open session.
    pub(super) fn judge_half_open_zones(
        &self,
        half: &mut HalfOpenEntry,
        direction: Direction,
        context: &Context<'_>,
        routes: Option<&PacketRoutes>,
    ) -> Result<Result<(), Reason>, RoutesNeeded> {
        let passes = self.passes(context);
        if half.passed[direction] == Some(passes) && leaves_by(context, half.egress[direction]) {
            return Ok(Ok(()));
        }
        let open = &half.open;
        let zones = ZonePair { ingress: open.ingress, egress: open.egress };
        // Where the policy has changed, the zones of its opening are judged again when its next step is taken.
        let opening = Opening { original: &open.original, zones, accepted: true };
        let judged = self.judge_opening(&opening, direction, context, routes)?.map_err(in_silence);
        if let Ok(egress) = judged {
            half.passed[direction] = Some(passes);
            half.egress[direction] = egress;
        }
        Ok(judged.map(drop))
    }

    /// What a packet passes by, if it passes.
    fn passes(&self, context: &Context<'_>) -> Passed {
        Passed {
            generation: self.generation(),
            topology: context.routes.topology(),
            ingress: context.ingress,
            antispoof: context.antispoof,
        }
    }

    /// The zone that the packet leaves to, if it passes.
    fn judge_opening(
        &self,
        opening: &Opening<'_>,
        direction: Direction,
        context: &Context<'_>,
        routes: Option<&PacketRoutes>,
    ) -> Result<Result<ZoneId, Reason>, RoutesNeeded> {
        let ingress = context.ingress;
        let expected = match direction {
            Direction::Original => opening.zones.ingress,
            Direction::Reply => opening.zones.egress,
        };
        let elsewhere = ingress != expected;
        if ingress == ZoneId::UNKNOWN {
            return Ok(Err(if elsewhere { Reason::WrongZone } else { Reason::NoDataInterface }));
        }
        let needed = RoutesNeeded { source: elsewhere && context.antispoof };
        let routes = routes.ok_or(needed)?;
        if needed.source && !routes.is_genuine.ok_or(needed)? {
            return Ok(Err(Reason::WrongZone));
        }
        let egress = match routes.egress {
            None => return Ok(Err(Reason::NoRoute)),
            Some(ZoneId::UNKNOWN) => return Ok(Err(Reason::NoDataInterface)),
            Some(egress) => egress,
        };
        let zones = match direction {
            Direction::Original => ZonePair { ingress, egress },
            Direction::Reply => ZonePair { ingress: egress, egress: ingress },
        };
        if opening.accepted && zones == opening.zones {
            return Ok(Ok(egress));
        }
        Ok(match self.active_policy().decide(zones.ingress, zones.egress, opening.original).action {
            Action::Accept => Ok(egress),
            Action::Drop | Action::Reject if elsewhere => Err(Reason::WrongZone),
            Action::Drop => Err(Reason::Policy),
            Action::Reject => Err(Reason::PolicyReject),
        })
    }
}
