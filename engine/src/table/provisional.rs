//! What single segments said of their connections' numbers, where nobody alive knows these.
//!
//! A ring of fixed size per shard: where very many connections have lost all who knew them, the oldest words are forgotten,
//! and these connections wait for their next segments.

use std::time::Duration;

use crate::event::Word;
use crate::id::SessionId;
use crate::time::Time;
use crate::tuple::Direction;

/// Words per shard.
const RING: usize = 64;

/// Of each direction so many are kept, the newest: forged ones must not displace the true one before its answer comes.
const EACH: usize = 8;

/// A word is good for so long. An honest end answers what reaches it at once, or sends it again within seconds.
const LASTS: Duration = Duration::from_secs(10);

struct Entry {
    of: (SessionId, Direction),
    word: Word,
    said: Time,
}

/// The ring.
#[derive(Default)]
pub(crate) struct Words {
    entries: Vec<Entry>,
    next: usize,
}

impl Words {
    pub(crate) fn say(&mut self, id: SessionId, direction: Direction, word: Word, now: Time) {
        let entry = Entry { of: (id, direction), word, said: now - Duration::from_millis(word.age.into()) };
        let same = |e: &Entry| (e.of, e.word.end, e.word.ack) == (entry.of, word.end, word.ack);
        if let Some(known) = self.entries.iter_mut().find(|e| same(e)) {
            known.said = known.said.max(entry.said);
            return;
        }
        let of_it = |(_, e): &(usize, &Entry)| e.of == entry.of;
        let oldest = self.entries.iter().enumerate().filter(of_it).min_by_key(|(_, e)| e.said).map(|(place, _)| place);
        match oldest {
            Some(place) if self.entries.iter().filter(|e| e.of == entry.of).count() >= EACH => {
                if self.entries[place].said < entry.said {
                    self.entries[place] = entry;
                }
            }
            _ if self.entries.len() < RING => {
                self.entries.reserve_exact(RING - self.entries.len());
                self.entries.push(entry);
            }
            _ => {
                self.entries[self.next] = entry;
                self.next = (self.next + 1) % RING;
            }
        }
    }

    /// Those of both directions that are still good.
    pub(crate) fn of(&self, id: SessionId, now: Time) -> impl Iterator<Item = (Direction, Word)> {
        let good = move |e: &&Entry| e.of.0 == id && now.since(e.said) < LASTS;
        self.entries.iter().filter(good).map(move |e| {
            let age = u32::try_from(now.since(e.said).as_millis()).unwrap_or(u32::MAX);
            (e.of.1, Word { age, ..e.word })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::MemberId;

    const S: Duration = Duration::from_secs(1);

    fn id(counter: u64) -> SessionId {
        SessionId { member: MemberId(1), counter }
    }

    fn word(end: u32, age: u32) -> Word {
        Word { end, ack: 7, age }
    }

    fn ends(words: &Words, id: SessionId, now: Time) -> Vec<(Direction, u32, u32)> {
        let mut ends: Vec<_> = words.of(id, now).map(|(direction, word)| (direction, word.end, word.age)).collect();
        ends.sort_unstable_by_key(|(direction, end, _)| (*direction == Direction::Reply, *end));
        ends
    }

    #[test]
    fn the_newest_of_each_direction_last_for_some_seconds() {
        use Direction::{Original, Reply};
        let mut words = Words::default();
        let now = Time::ZERO + 100 * S;
        words.say(id(1), Original, word(5, 0), now);
        words.say(id(1), Original, word(5, 500), now);
        words.say(id(1), Reply, word(6, 500), now);
        words.say(id(2), Reply, word(9, 0), now);
        assert_eq!(ends(&words, id(1), now + S), [(Original, 5, 1000), (Reply, 6, 1500)]);
        assert_eq!(ends(&words, id(1), now + LASTS - S / 2), [(Original, 5, 9500)]);
        for n in 10..100 {
            words.say(id(1), Original, word(n, 0), now + S * n / 100);
        }
        let left: Vec<u32> = ends(&words, id(1), now + S).iter().map(|(_, end, _)| *end).collect();
        assert_eq!(left, [92, 93, 94, 95, 96, 97, 98, 99, 6]);
        words.say(id(1), Original, word(1, 9000), now + S);
        assert_eq!(ends(&words, id(1), now + S)[0].1, 92, "an old one displaces no newer ones");
        assert_eq!(ends(&words, id(3), now), []);
    }

    #[test]
    fn the_oldest_makes_room() {
        let mut words = Words::default();
        for n in 0..=RING as u64 {
            words.say(id(n), Direction::Original, word(1, 0), Time(1));
        }
        assert_eq!(ends(&words, id(0), Time(1)), []);
        assert_eq!(ends(&words, id(1), Time(1)).len(), 1);
        assert_eq!(words.entries.len(), RING);
    }
}
