//! Deduplication: a batch proposed again, at any time and any number of times, has no effect.

use proptest::prelude::*;

use super::*;

fn command() -> impl Strategy<Value = Command> {
    let establish = (0_u64..12, 0_u16..4, prop::option::of(0_u64..12)).prop_map(|(counter, port, supersedes)| {
        add(Establish { supersedes: supersedes.map(id), ..establish(counter, port) })
    });
    prop_oneof![
        6 => establish,
        3 => (0_u64..12).prop_map(close),
        1 => prop::collection::vec((0_u64..12).prop_map(id), 0..3).prop_map(Command::Expire),
        1 => prop::collection::vec((0_u64..12).prop_map(id), 0..3).prop_map(Command::Refresh),
        1 => (1_u64..3, prop::collection::vec((0_u64..12).prop_map(id), 0..3)).prop_map(|(generation, sessions)| {
            Command::RevokeForbidden(ForbiddenSessions { generation: Generation(generation), sessions })
        }),
        1 => (1_u64..3).prop_map(|base| {
            Command::Policy(Box::new(PolicyChange::new(Generation(base), POLICY.to_owned(), "me".to_owned())))
        }),
        1 => (0_u64..2, prop::collection::vec(((0_u64..12).prop_map(id), 0_u16..2), 0..3))
            .prop_map(|(resume_epoch, sessions)| Command::ExpireIdle(ExpireIdle { resume_epoch, sessions })),
        1 => Just(Command::Resume),
    ]
}

proptest! {
    #[test]
    fn dedup_duplicate_batches_have_no_effect(
        batches in prop::collection::vec(prop::collection::vec(command(), 1..4), 1..20),
        copies in prop::collection::vec((0_usize..20, 0_usize..20), 0..40),
    ) {
        let start = |b: &Fixture| b.next;
        let (mut once, mut often) = (Fixture::new(), Fixture::new());
        // As from a proposer without a reply yet: the lowest outstanding serial stays the same.
        let floor = start(&once);
        let mut first = floor;
        let numbered: Vec<Batch> = batches
            .into_iter()
            .map(|commands| {
                let batch = batch(first, floor, commands);
                first += batch.commands.len() as u64;
                batch
            })
            .collect();
        for (at, batch) in numbered.iter().enumerate() {
            let outcomes = once.replica.apply(NOW, batch, &mut NoWaiters);
            prop_assert_eq!(&often.replica.apply(NOW, batch, &mut NoWaiters), &outcomes);
            for &(after, which) in &copies {
                if after == at && which <= at {
                    let copies = often.replica.apply(NOW, &numbered[which], &mut NoWaiters);
                    prop_assert!(copies.iter().all(|copy| !copy.changed));
                }
            }
            prop_assert_eq!(once.replica.digest(), often.replica.digest());
        }
        prop_assert_eq!(once.sessions(), often.sessions());
    }

    #[test]
    fn replica_digest_equals_sum_over_sessions(commands in prop::collection::vec(command(), 1..60)) {
        let mut b = Fixture::new();
        for command in commands {
            b.one(command);
        }
        let mut sum = 0_u64;
        for number in b.replica.engine.table.numbers() {
            for session in b.replica.engine.table.shard(number).sessions.iter() {
                sum = sum.wrapping_add(session.replicated().digest());
            }
        }
        prop_assert_eq!(sum, b.replica.state.sessions_digest());
    }
}
