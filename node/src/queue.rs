//! The bounded queues of hints between the packet path and the other members: what they take when they fill.

use palisade_engine::Hint;
use palisade_engine::packet_loop::QueueRoom;
use tokio::sync::mpsc::Sender;

/// The room in a queue.
pub(crate) fn room<T>(queue: &Sender<T>) -> QueueRoom {
    QueueRoom { free: queue.capacity(), capacity: queue.max_capacity() }
}

/// Puts a hint into a queue, in whatever form, without waiting. Whether there was room, which depends on the hint's priority.
pub(crate) fn offer<T>(queue: &Sender<T>, low_priority: bool, item: T) -> bool {
    room(queue).admits(low_priority) && queue.try_send(item).is_ok()
}

/// As [`offer`], of the hint itself.
pub(crate) fn offer_hint(queue: &Sender<Hint>, hint: Hint) -> bool {
    offer(queue, hint.is_low_priority(), hint)
}

#[cfg(test)]
mod tests {
    use palisade_engine::{FragmentKey, Ip, MemberId, Protocol, SessionId, ZoneId};

    use super::*;

    #[test]
    fn hint_queue_keeps_half_for_high_priority() {
        let (src, dst) = (Ip::V4([10, 0, 0, 1]), Ip::V4([10, 0, 0, 2]));
        let datagram = FragmentKey { src, dst, protocol: Protocol::UDP, id: 7, ingress: ZoneId(1) };
        let fragments = [Hint::FirstFragment { datagram, end: 1480, egress: ZoneId(2) }, Hint::FragmentQuery(datagram)];
        let abort = Hint::Abort(SessionId { member: MemberId(1), counter: 1 });
        let (queue, _kept) = tokio::sync::mpsc::channel(8);
        let taken = (0..100).filter(|n| offer_hint(&queue, fragments[n % 2].clone())).count();
        assert_eq!(taken, 4);
        assert_eq!((0..100).filter(|_| offer_hint(&queue, abort.clone())).count(), 4);
        assert!(!offer_hint(&queue, fragments[0].clone()));
    }
}
