//! Snapshots of an established connection, which members exchange.

use std::time::Duration;

use super::{DirectionState, EdgeJump, SEQ_COMPARABLE, Track, seq_diff};
use crate::event::{EndpointSnapshot, TcpSnapshot, UnconfirmedEdge};
use crate::time::{Stamp17ms, Time};
use crate::tuple::{Direction, PerDirection};

impl DirectionState {
    /// Merges what another member knows. If the two are too far apart to be compared, the later confirmation wins.
    fn merge_snapshot(&mut self, theirs: &EndpointSnapshot, now: Time) {
        let confirmed_at =
            theirs.age_ms.map_or(Stamp17ms::NEVER, |age| Stamp17ms::new(now - Duration::from_millis(age.into())));
        let is_later = confirmed_at.is_after(self.confirmed_at);
        let distance = seq_diff(theirs.seq_end, self.seq_end);
        if (1..=SEQ_COMPARABLE).contains(&distance) || (is_later && distance.abs() > SEQ_COMPARABLE) {
            self.seq_end = theirs.seq_end;
        }
        self.clamp_to_seq_end();
        if (0..=SEQ_COMPARABLE).contains(&seq_diff(theirs.window_end, self.seq_end))
            && seq_diff(theirs.window_end, self.window_end) > 0
        {
            self.window_end = theirs.window_end;
        }
        if (0..=SEQ_COMPARABLE).contains(&seq_diff(self.seq_end, theirs.snd_una))
            && seq_diff(theirs.snd_una, self.snd_una) > 0
        {
            self.snd_una = theirs.snd_una;
        }
        self.max_window = self.max_window.max(theirs.max_window);
        if is_later {
            self.confirmed_at = confirmed_at;
        }
    }
}

impl Track {
    /// What this member knows of the connection. `live`: whether packets of it passed here lately.
    pub(crate) fn snapshot(&self, now: Time, live: bool) -> TcpSnapshot {
        let jump = self.jump();
        let unconfirmed =
            jump.map(|jump| UnconfirmedEdge { of: jump.of, by: jump.by, seq_end: self.directions[jump.of].seq_end });
        TcpSnapshot {
            endpoints: PerDirection {
                original: self.endpoint_snapshot(Direction::Original, jump, now),
                reply: self.endpoint_snapshot(Direction::Reply, jump, now),
            },
            unconfirmed,
            live,
            history_incomplete: self.history_incomplete,
        }
    }

    fn endpoint_snapshot(&self, of: Direction, jump: Option<EdgeJump>, now: Time) -> EndpointSnapshot {
        let direction = &self.directions[of];
        // What is not confirmed here must not become the knowledge of other members.
        let before_jump = jump.filter(|jump| jump.of == of).map(|jump| jump.before());
        let age = if self.history_incomplete { None } else { direction.confirmed_at.age(now) };
        EndpointSnapshot {
            seq_end: before_jump.unwrap_or(direction.seq_end),
            snd_una: before_jump.unwrap_or(direction.snd_una),
            window_end: before_jump.unwrap_or(direction.window_end),
            max_window: direction.max_window,
            age_ms: age.map(|age| u32::try_from(age.as_millis()).unwrap_or(u32::MAX)),
            fin_end: direction.fin(),
        }
    }

    /// Merges what another member knows of the connection.
    pub(crate) fn merge_snapshot(&mut self, snapshot: &TcpSnapshot, now: Time) {
        for of in [Direction::Original, Direction::Reply] {
            let (ours, theirs) = (&mut self.directions[of], &snapshot.endpoints[of]);
            ours.merge_snapshot(theirs, now);
            if let Some(fin) = theirs.fin_end
                && !ours.fin_known
                && seq_diff(fin, ours.seq_end) >= 0
            {
                ours.fin_end = fin;
                ours.fin_known = true;
            }
        }
        // The snapshot of a member with a complete history has what this member may have missed.
        self.history_incomplete &=
            snapshot.history_incomplete || snapshot.endpoints.iter().any(|end| end.age_ms.is_none());
        // The peer's `seq_end` leaves out what is unconfirmed there, so its unconfirmed one counts separately.
        let confirms = |jump: EdgeJump| {
            let by_unconfirmed =
                snapshot.unconfirmed.is_some_and(|edge| jump.is_confirmed(edge.of, edge.seq_end, edge.by));
            by_unconfirmed || jump.is_reached(jump.of, snapshot.endpoints[jump.of].seq_end)
        };
        if self.jump().is_some_and(confirms) {
            self.clear_jump();
        }
    }
}
