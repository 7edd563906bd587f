//! Scrubbing: the check of the session table against its digest.

use std::sync::atomic::{AtomicBool, AtomicUsize};

use super::*;

fn sound(b: &Fixture) -> bool {
    (0..=u8::MAX).all(|part| b.replica.engine.scrub(part))
}

/// A replica after establishments, closes, supersessions, expiries and a refresh.
fn after_many_commands() -> Fixture {
    let mut b = Fixture::new();
    for n in 0..600 {
        b.one(add(establish(n, n as u16)));
        assert!(n % 50 != 0 || sound(&b), "after {n} sessions");
    }
    for n in 0..300 {
        b.one(close(n));
    }
    for n in 0..100 {
        let next = Establish { supersedes: Some(id(n)), ..establish(1000 + n, n as u16) };
        assert_eq!(b.one(add(next)), Outcome::Accepted);
    }
    b.one(Command::Expire((200..400).map(id).collect()));
    b.one(Command::Refresh((400..500).map(id).collect()));
    b.one(Command::Resume);
    b
}

#[test]
fn scrub_passes_after_commands_and_restore() {
    let mut b = after_many_commands();
    assert!(sound(&b));
    let mut bytes = Vec::new();
    b.replica.begin_snapshot().write(&mut bytes).unwrap();
    let mut again = Fixture::new();
    again.one(add(establish(9999, 9)));
    again.replica.restore(NOW, &mut &bytes[..], &mut NoWaiters).unwrap();
    assert!(sound(&again));
    assert_eq!(again.replica.digest(), b.replica.digest());
}

#[test]
fn scrub_finds_damage_even_after_session_end_and_snapshot_repairs_it() {
    let mut good = after_many_commands();
    let mut b = after_many_commands();
    let digest = b.replica.digest();
    assert!(b.replica.engine.damage(id(550)));
    assert!(!b.replica.engine.damage(id(250)), "the session does not exist");
    assert_eq!(b.replica.digest(), digest, "the digest alone does not detect it");
    let wrong = (0..=u8::MAX).filter(|part| !b.replica.engine.scrub(*part)).count();
    assert_eq!(wrong, 1);
    b.one(Command::Revoke(vec![id(550)]));
    assert!(!sound(&b));
    let mut bytes = Vec::new();
    good.replica.begin_snapshot().write(&mut bytes).unwrap();
    b.replica.restore(NOW, &mut &bytes[..], &mut NoWaiters).unwrap();
    assert!(sound(&b));
    assert_eq!(b.replica.digest(), digest);
}

#[test]
fn scrub_passes_while_commands_are_applied_and_finds_damage() {
    let mut b = Fixture::new();
    for n in 0..20_000 {
        b.one(add(establish(n, n as u16)));
    }
    let engine: Arc<Engine> = b.replica.engine.clone();
    let (stop, scrubs) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let scrubber = {
        let (stop, scrubs) = (stop.clone(), scrubs.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                assert!((0..=u8::MAX).all(|part| engine.scrub(part)));
                scrubs.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let mut next = 20_000;
    // As long as it takes to scrub the table three times.
    while scrubs.load(Ordering::Relaxed) < 3 && !scrubber.is_finished() {
        let old = next % 20_000;
        b.one(close(old));
        b.one(add(Establish { supersedes: Some(id(old)), ..establish(next, old as u16) }));
        b.one(Command::Refresh(vec![id(next)]));
        if next % 3 == 0 {
            b.one(Command::Revoke(vec![id(next)]));
        }
        next += 1;
    }
    stop.store(true, Ordering::Relaxed);
    scrubber.join().unwrap();
    assert!(sound(&b));
    let last = (20_000..next).rev().find(|n| n % 3 != 0).unwrap();
    assert!(b.replica.engine.damage(id(last)));
    assert!(!sound(&b));
}

#[test]
fn listing_has_every_session_once() {
    let mut b = Fixture::new();
    // More than one piece in each shard.
    for n in 0..40_000 {
        b.one(add(establish(n, n as u16)));
    }
    for n in (0..40_000).step_by(7) {
        b.one(Command::Revoke(vec![id(n)]));
    }
    let mut listed = Vec::new();
    b.replica.engine.sessions(NOW, &mut |info| {
        listed.push(info.id);
        true
    });
    listed.sort_unstable();
    let expected: Vec<_> = (0..40_000).filter(|n| n % 7 > 0).map(id).collect();
    assert_eq!(listed, expected);
}
