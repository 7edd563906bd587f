//! The hold buffer: a bounded buffer of packets that wait for a commit, an apply or a hint.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use crate::time::Time;
use crate::verdict::{HoldClass, HoldKey, Reason};

/// Bounds of one worker's hold buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HoldLimits {
    /// The budget of [`HoldClass::Matched`].
    pub matched: HoldBudget,
    /// The budget of [`HoldClass::Unmatched`]. [`HoldClass::Fragment`] may use a quarter of it.
    pub unmatched: HoldBudget,
    /// The longest time that a packet waits, counted from its first hold.
    pub max_time: Duration,
}

/// The largest number of packets, and of their bytes, that may be held at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HoldBudget {
    /// Packets.
    pub packets: usize,
    /// Bytes.
    pub bytes: usize,
}

impl Default for HoldLimits {
    fn default() -> HoldLimits {
        HoldLimits {
            matched: HoldBudget { packets: 4096, bytes: 16 << 20 },
            unmatched: HoldBudget { packets: 512, bytes: 1 << 20 },
            max_time: Duration::from_millis(250),
        }
    }
}

/// Packets held now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HoldCounts {
    /// Those of [`HoldClass::Matched`].
    pub matched: usize,
    /// Those of [`HoldClass::Unmatched`] and [`HoldClass::Fragment`].
    pub unmatched: usize,
}

/// Fragments may use one part in this many of the unmatched budget.
const FRAGMENT_BUDGET_DIVISOR: usize = 4;

/// A buffer of packets of type `P`, in order for each key. `P` has what the worker needs to judge and inject the packet.
///
/// It never grows beyond its [`HoldLimits`]: what does not fit is refused, so that a flood cannot push out what already waits.
pub struct HoldBuffer<P> {
    limits: HoldLimits,
    queues: HashMap<HoldKey, VecDeque<HeldPacket<P>>>,
    /// The keys by the time of the first hold, which a packet keeps when it is held again.
    ages: BTreeMap<(Time, u64), HoldKey>,
    matched: HoldUsage,
    /// Fragments included.
    unmatched: HoldUsage,
    fragments: HoldUsage,
    /// Numbers packets, so that each age is unique.
    next: u64,
}

struct HeldPacket<P> {
    since: Time,
    number: u64,
    class: HoldClass,
    bytes: usize,
    packet: P,
}

#[derive(Clone, Copy, Default)]
struct HoldUsage {
    packets: usize,
    bytes: usize,
}

impl<P> HoldBuffer<P> {
    /// An empty buffer.
    #[must_use]
    pub fn new(limits: HoldLimits) -> Self {
        HoldBuffer {
            limits,
            queues: HashMap::new(),
            ages: BTreeMap::new(),
            matched: HoldUsage::default(),
            unmatched: HoldUsage::default(),
            fragments: HoldUsage::default(),
            next: 0,
        }
    }

    /// Holds a packet of `bytes` bytes that was first held at `since`.
    ///
    /// # Errors
    /// The packet back, and why it cannot be kept.
    pub fn hold(
        &mut self,
        since: Time,
        key: HoldKey,
        class: HoldClass,
        bytes: usize,
        packet: P,
    ) -> Result<(), (P, Reason)> {
        let HoldLimits { matched, unmatched, .. } = self.limits;
        let fits = match class {
            HoldClass::Matched => self.matched.has_room(bytes, matched),
            HoldClass::Unmatched => self.unmatched.has_room(bytes, unmatched),
            HoldClass::Fragment => {
                let share = HoldBudget {
                    packets: unmatched.packets.div_ceil(FRAGMENT_BUDGET_DIVISOR),
                    bytes: unmatched.bytes.div_ceil(FRAGMENT_BUDGET_DIVISOR),
                };
                self.unmatched.has_room(bytes, unmatched) && self.fragments.has_room(bytes, share)
            }
        };
        if !fits {
            return Err((packet, Reason::HoldFull));
        }
        self.budgets(class, |budget| {
            budget.packets += 1;
            budget.bytes += bytes;
        });
        let number = self.next;
        self.next += 1;
        self.ages.insert((since, number), key);
        self.queues.entry(key).or_default().push_back(HeldPacket { since, number, class, bytes, packet });
        Ok(())
    }

    /// Takes out all packets of a key, oldest first, each with the time when it was first held.
    pub fn release(&mut self, key: HoldKey, each: &mut dyn FnMut(Time, P)) {
        for held in self.queues.remove(&key).unwrap_or_default() {
            self.ages.remove(&(held.since, held.number));
            self.free(held.class, held.bytes);
            each(held.since, held.packet);
        }
    }

    /// Takes out all packets, oldest first, each with the time when it was first held.
    pub fn release_all(&mut self, each: &mut dyn FnMut(Time, P)) {
        while let Some(((since, number), key)) = self.ages.pop_first() {
            if let Some((_, packet)) = self.take(key, number) {
                each(since, packet);
            }
        }
    }

    /// Takes out all expired packets, each with the time when it was first held and its budget.
    pub fn expire(&mut self, now: Time, each: &mut dyn FnMut(Time, HoldClass, P)) {
        while let Some(age) = self.ages.first_entry() {
            if now < age.key().0 + self.limits.max_time {
                return;
            }
            let ((since, number), key) = age.remove_entry();
            if let Some((class, packet)) = self.take(key, number) {
                each(since, class, packet);
            }
        }
    }

    /// Takes out the packet with this number, whose age the caller has removed.
    fn take(&mut self, key: HoldKey, number: u64) -> Option<(HoldClass, P)> {
        let queue = self.queues.get_mut(&key)?;
        let held = queue.iter().position(|h| h.number == number).and_then(|at| queue.remove(at));
        if queue.is_empty() {
            self.queues.remove(&key);
        }
        let held = held?;
        self.free(held.class, held.bytes);
        Some((held.class, held.packet))
    }

    /// When [`HoldBuffer::expire`] has something to do next.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        self.ages.first_key_value().map(|((since, _), _)| *since + self.limits.max_time)
    }

    /// Packets held now.
    #[must_use]
    pub fn counts(&self) -> HoldCounts {
        HoldCounts { matched: self.matched.packets, unmatched: self.unmatched.packets }
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ages.is_empty()
    }

    fn free(&mut self, class: HoldClass, bytes: usize) {
        self.budgets(class, |budget| {
            budget.packets -= 1;
            budget.bytes -= bytes;
        });
    }

    /// Applies `each` to every budget that a class uses.
    fn budgets(&mut self, class: HoldClass, each: impl Fn(&mut HoldUsage)) {
        match class {
            HoldClass::Matched => each(&mut self.matched),
            HoldClass::Unmatched => each(&mut self.unmatched),
            HoldClass::Fragment => {
                each(&mut self.unmatched);
                each(&mut self.fragments);
            }
        }
    }
}

impl HoldUsage {
    fn has_room(self, bytes: usize, budget: HoldBudget) -> bool {
        self.packets < budget.packets && bytes <= budget.bytes.saturating_sub(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use HoldClass::{Matched, Unmatched};

    const MS: Duration = Duration::from_millis(1);

    /// Budgets as (packets, bytes).
    fn limits(matched: (usize, usize), unmatched: (usize, usize)) -> HoldLimits {
        let budget = |(packets, bytes)| HoldBudget { packets, bytes };
        HoldLimits { matched: budget(matched), unmatched: budget(unmatched), max_time: 250 * MS }
    }

    fn held(matched: usize, unmatched: usize) -> HoldCounts {
        HoldCounts { matched, unmatched }
    }

    fn buffer() -> HoldBuffer<u32> {
        HoldBuffer::new(limits((3, 1000), (1, 100)))
    }

    fn released(buffer: &mut HoldBuffer<u32>, key: u64) -> Vec<u32> {
        let mut all = Vec::new();
        buffer.release(HoldKey(key), &mut |_, p| all.push(p));
        all
    }

    #[test]
    fn hold_buffer_keeps_order_and_first_time_per_key() {
        let mut b = buffer();
        let t = Time::ZERO + MS;
        b.hold(t + MS, HoldKey(1), Matched, 10, 1).unwrap();
        b.hold(t, HoldKey(1), Matched, 10, 2).unwrap();
        b.hold(t, HoldKey(2), Matched, 10, 3).unwrap();
        let mut all = Vec::new();
        b.release(HoldKey(1), &mut |since, p| all.push((since, p)));
        assert_eq!(all, [(t + MS, 1), (t, 2)]);
        assert_eq!(b.counts(), held(1, 0));
        assert!(released(&mut b, 1).is_empty());
        assert_eq!(released(&mut b, 2), [3]);
        assert!(b.is_empty());
        assert_eq!(b.deadline(), None);
    }

    #[test]
    fn hold_buffer_refuses_what_does_not_fit() {
        let mut b = buffer();
        b.hold(Time(1), HoldKey(1), Unmatched, 100, 1).unwrap();
        assert_eq!(b.hold(Time(1), HoldKey(1), Unmatched, 1, 2), Err((2, Reason::HoldFull)));
        b.hold(Time(1), HoldKey(1), Matched, 999, 3).unwrap();
        assert_eq!(b.hold(Time(1), HoldKey(1), Matched, 2, 4), Err((4, Reason::HoldFull)));
        b.hold(Time(1), HoldKey(1), Matched, 1, 5).unwrap();
        assert_eq!(b.counts(), held(2, 1));
        assert_eq!(released(&mut b, 1), [1, 3, 5]);
        b.hold(Time(1), HoldKey(1), Unmatched, 100, 6).unwrap();
    }

    #[test]
    fn hold_buffer_gives_fragments_a_quarter_of_the_unmatched() {
        use HoldClass::Fragment;
        let mut b = HoldBuffer::new(limits((1, 100), (8, 800)));
        b.hold(Time(1), HoldKey(1), Fragment, 150, 1).unwrap();
        assert_eq!(b.hold(Time(1), HoldKey(1), Fragment, 51, 2), Err((2, Reason::HoldFull)), "a quarter of the bytes");
        b.hold(Time(1), HoldKey(2), Fragment, 50, 3).unwrap();
        assert_eq!(b.hold(Time(1), HoldKey(1), Fragment, 0, 4), Err((4, Reason::HoldFull)), "a quarter of the packets");
        for n in 0..6 {
            b.hold(Time(1), HoldKey(3), Unmatched, 100, 10 + n).unwrap();
        }
        assert_eq!(b.hold(Time(1), HoldKey(3), Unmatched, 0, 5), Err((5, Reason::HoldFull)));
        assert_eq!(b.counts(), held(0, 8));
        assert_eq!(released(&mut b, 1), [1]);
        assert_eq!(released(&mut b, 3).len(), 6);
        b.hold(Time(1), HoldKey(2), Fragment, 150, 6).unwrap();
        assert_eq!(released(&mut b, 2), [3, 6]);
        assert_eq!(b.counts(), held(0, 0));
    }

    #[test]
    fn hold_buffer_expires_by_the_first_hold() {
        let mut b = buffer();
        let t = Time::ZERO + MS;
        b.hold(t + 10 * MS, HoldKey(1), Matched, 1, 1).unwrap();
        b.hold(t, HoldKey(1), Matched, 1, 2).unwrap();
        assert_eq!(b.deadline(), Some(t + 250 * MS));
        let mut over = Vec::new();
        b.expire(t + 249 * MS, &mut |_, _, p| over.push(p));
        assert!(over.is_empty());
        b.expire(t + 250 * MS, &mut |_, _, p| over.push(p));
        assert_eq!(over, [2]);
        assert_eq!(b.deadline(), Some(t + 260 * MS));
        b.expire(t + 300 * MS, &mut |_, _, p| over.push(p));
        assert_eq!(over, [2, 1]);
        assert_eq!(b.counts(), held(0, 0));
    }
}
