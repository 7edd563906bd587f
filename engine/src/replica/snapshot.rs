//! Snapshots: exact at one index, made while `apply` goes on, and read back with suspicion.
//!
//! # Making
//!
//! `begin` copies the small parts of the state. The sessions are copied shard by shard by the writer's thread; an `apply`
//! that is about to touch a shard that is not yet copied copies it first. Both do so under the shard's lock, so that
//! each shard is copied once, in the state that it had at `begin`.
//!
//! # Format
//!
//! The magic, then chunks: a kind (1 byte), the length of the content (4 bytes, little endian), its CRC-32 (4 bytes,
//! over kind, length and content), the content (`postcard`).
//!
//! | kind | content | how many |
//! |---|---|---|
//! | 1 | cluster, members, tokens, zones, next member id, generation | one, first |
//! | 2 | a policy | up to 32, oldest first |
//! | 3 | a proposer's outcomes from a number on | any |
//! | 4 | removed ids, after so many forgotten ones | any, in order |
//! | 5 | sessions | any |
//! | 6 | how often sessions of the chunk before were refreshed, if any was | any |
//! | 7 | how often members resumed, if any did | one |
//! | 9 | number of sessions, digest | one, last |

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::apply::{invalid, record_digest, session_digest};
use super::window::{REMEMBERED, Removed, WIDTH, Window, Windows};
use super::{Outcome, Replica, RestoreError, Settings, register, resumes_digest};
use crate::active_policy::ActivePolicy;
use crate::cluster_state::{ClusterState, MemberInfo, PolicyRecord};
use crate::engine::Engine;
use crate::id::{Generation, MemberId, SessionId};
use crate::session::{CloseCause, Establish};
use crate::table::session::{Session, SessionFlag};
use crate::table::{SHARDS, Shard, Table};
use crate::time::{Stamp17ms, Time};
use crate::types::Wake;
use crate::verdict::HoldKey;
use crate::worker_set::WorkerSet;

/// Format version 1.
const MAGIC: &[u8; 8] = b"PALSNAP1";

/// Longest content of a chunk: a policy text and its record fit.
const CHUNK: u32 = (register::POLICY_TEXT as u32) + (1 << 20);

/// Records per chunk.
const SESSIONS: usize = 256;
const OUTCOMES: usize = 1024;
const IDS: usize = 4096;

mod kind {
    pub(super) const SETTINGS: u8 = 1;
    pub(super) const POLICY: u8 = 2;
    pub(super) const OUTCOMES: u8 = 3;
    pub(super) const REMOVED: u8 = 4;
    pub(super) const SESSIONS: u8 = 5;
    pub(super) const REFRESHES: u8 = 6;
    pub(super) const RESUMES: u8 = 7;
    pub(super) const END: u8 = 9;
}

/// A session's replicated part.
type Record = (Establish, Option<CloseCause>);

/// The same, and how often it was refreshed.
type Kept = (Record, u16);

#[derive(Serialize, Deserialize)]
struct SettingsRecord {
    cluster_id: String,
    members: BTreeMap<MemberId, MemberInfo>,
    tokens: Vec<(Vec<u8>, u64)>,
    zones: Vec<String>,
    next_member: u64,
    generation: Generation,
}

#[derive(Serialize, Deserialize)]
struct PolicyText {
    generation: Generation,
    text: String,
    author: String,
    unix_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct Outcomes {
    proposer: MemberId,
    floor: u64,
    first: u64,
    outcomes: Vec<Option<Outcome>>,
}

#[derive(Serialize, Deserialize)]
struct End {
    sessions: u64,
    digest: u64,
}

/// Shards that `apply` copied ahead of the writer.
pub(super) struct Copies {
    number: u64,
    shards: Vec<Mutex<Vec<Kept>>>,
    over: AtomicBool,
}

/// A snapshot in the making: exact at the index at which it was begun, though `apply` goes on.
pub struct SnapshotJob {
    engine: Arc<Engine>,
    settings: Settings,
    windows: Windows,
    removed: Removed,
    sessions: usize,
    digest: u64,
    resumes: u64,
    copies: Arc<Copies>,
}

impl Drop for SnapshotJob {
    fn drop(&mut self) {
        // From now on `apply` copies nothing for it.
        self.copies.over.store(true, Ordering::Release);
    }
}

fn records(shard: &Shard) -> Vec<Kept> {
    shard.sessions.iter().map(|s| ((s.establish(), s.closed), s.refreshes)).collect()
}

impl Replica {
    pub(super) fn begin(&mut self) -> SnapshotJob {
        if let Some(before) = self.copies.take() {
            before.over.store(true, Ordering::Release);
        }
        self.snapshots += 1;
        let copies = Arc::new(Copies {
            number: self.snapshots,
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            over: AtomicBool::new(false),
        });
        self.copies = Some(copies.clone());
        SnapshotJob {
            engine: self.engine.clone(),
            settings: self.settings.clone(),
            windows: self.windows.clone(),
            removed: self.removed.clone(),
            sessions: self.sessions,
            digest: self.digest(),
            resumes: self.resumes,
            copies,
        }
    }

    /// To be called, with the shard locked, before its sessions change.
    pub(super) fn copy_for_snapshot(&self, hash: u64, shard: &mut Shard) {
        let Some(copies) = self.copies.as_ref().filter(|c| !c.over.load(Ordering::Acquire)) else { return };
        if shard.copied != copies.number {
            shard.copied = copies.number;
            *copies.shards[usize::from(Table::number(hash))].lock() = records(shard);
        }
    }
}

fn put(to: &mut dyn Write, kind: u8, content: &impl Serialize) -> io::Result<()> {
    let content = postcard::to_stdvec(content).map_err(io::Error::other)?;
    let length = u32::try_from(content.len()).ok().filter(|n| *n <= CHUNK);
    let length = length.ok_or_else(|| io::Error::other("a chunk is too long"))?.to_le_bytes();
    to.write_all(&[kind])?;
    to.write_all(&length)?;
    to.write_all(&sum(kind, length, &content).to_le_bytes())?;
    to.write_all(&content)
}

fn sum(kind: u8, length: [u8; 4], content: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&[kind]);
    crc.update(&length);
    crc.update(content);
    crc.finalize()
}

impl SnapshotJob {
    /// Writes the snapshot, shard by shard; runs on another thread than `apply`.
    ///
    /// # Errors
    /// The writer's, or [`io::ErrorKind::Interrupted`] if another snapshot was begun.
    pub fn write(self, to: &mut dyn Write) -> io::Result<()> {
        to.write_all(MAGIC)?;
        let cluster = &self.settings.cluster;
        let settings = SettingsRecord {
            cluster_id: cluster.cluster_id.clone(),
            members: cluster.members.clone(),
            tokens: cluster.tokens.clone(),
            zones: cluster.zones.clone(),
            next_member: self.settings.next_member,
            generation: self.settings.generation,
        };
        put(to, kind::SETTINGS, &settings)?;
        for p in &cluster.policies {
            let PolicyRecord { generation, text, author, unix_ms } = PolicyRecord::clone(p);
            put(to, kind::POLICY, &PolicyText { generation, text, author, unix_ms })?;
        }
        for (&proposer, window) in &self.windows.windows {
            let all: Vec<_> = window.outcomes.iter().cloned().collect();
            // A proposer without outcomes has a floor all the same.
            let chunks = all.chunks(OUTCOMES).chain(all.is_empty().then_some(&[][..]));
            for (chunk, first) in chunks.zip((window.floor..).step_by(OUTCOMES)) {
                let outcomes = Outcomes { proposer, floor: window.floor, first, outcomes: chunk.to_vec() };
                put(to, kind::OUTCOMES, &outcomes)?;
            }
        }
        let removed: Vec<SessionId> = self.removed.iter().collect();
        for chunk in removed.chunks(IDS) {
            put(to, kind::REMOVED, &(self.removed.before(), chunk))?;
        }
        for number in self.engine.table.numbers() {
            let kept = self.shard(number)?;
            for chunk in kept.chunks(SESSIONS) {
                let records: Vec<&Record> = chunk.iter().map(|(record, _)| record).collect();
                put(to, kind::SESSIONS, &records)?;
                let refreshes: Vec<(SessionId, u16)> =
                    chunk.iter().filter(|(_, n)| *n > 0).map(|((e, _), n)| (e.id, *n)).collect();
                if !refreshes.is_empty() {
                    put(to, kind::REFRESHES, &refreshes)?;
                }
            }
        }
        if self.resumes > 0 {
            put(to, kind::RESUMES, &self.resumes)?;
        }
        put(to, kind::END, &End { sessions: self.sessions as u64, digest: self.digest })
    }

    fn shard(&self, number: u8) -> io::Result<Vec<Kept>> {
        let mut shard = self.engine.table.shard(number);
        if self.copies.over.load(Ordering::Acquire) {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "another snapshot was begun"));
        }
        if shard.copied == self.copies.number {
            return Ok(std::mem::take(&mut *self.copies.shards[usize::from(number)].lock()));
        }
        shard.copied = self.copies.number;
        Ok(records(&shard))
    }
}

/// A snapshot, read and checked but not yet in force.
struct Content {
    settings: Settings,
    active_policy: ActivePolicy,
    windows: Windows,
    removed: Removed,
    sessions: Vec<Kept>,
    resumes: u64,
    digest: u64,
}

fn damaged(why: impl Into<String>) -> RestoreError {
    RestoreError::Damaged(why.into())
}

/// The next chunk. Memory grows with what is really there, not with what the length claims.
fn chunk(from: &mut dyn Read) -> Result<(u8, Vec<u8>), RestoreError> {
    let mut head = [0; 9];
    from.read_exact(&mut head)?;
    let [kind, l0, l1, l2, l3, c0, c1, c2, c3] = head;
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    if length > CHUNK {
        return Err(damaged(format!("a chunk of {length} bytes")));
    }
    let mut content = Vec::new();
    from.take(u64::from(length)).read_to_end(&mut content)?;
    if content.len() as u64 != u64::from(length) {
        return Err(damaged("it ends within a chunk"));
    }
    if sum(kind, [l0, l1, l2, l3], &content) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Err(damaged("a chunk's checksum is wrong"));
    }
    Ok((kind, content))
}

fn decode<T: DeserializeOwned>(content: &[u8]) -> Result<T, RestoreError> {
    match postcard::take_from_bytes(content) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(damaged("a chunk is longer than its content")),
        Err(e) => Err(damaged(e.to_string())),
    }
}

fn read(from: &mut dyn Read, most: usize) -> Result<Content, RestoreError> {
    let mut magic = [0; 8];
    from.read_exact(&mut magic)?;
    if magic != *MAGIC {
        return Err(damaged("it is not a snapshot of this format"));
    }
    let (first, content) = chunk(from)?;
    if first != kind::SETTINGS {
        return Err(damaged("it does not begin with the settings"));
    }
    let record: SettingsRecord = decode(&content)?;
    let cluster = ClusterState {
        cluster_id: record.cluster_id,
        members: record.members,
        tokens: record.tokens,
        zones: record.zones,
        policies: Vec::new(),
    };
    let mut settings = Settings { cluster, generation: record.generation, next_member: record.next_member };
    let mut windows: BTreeMap<MemberId, Window> = BTreeMap::new();
    let (mut before, mut removed) = (0, Vec::new());
    let mut sessions: Vec<Record> = Vec::new();
    let (mut refreshes, mut resumes) = (HashMap::new(), 0);
    let end: End = loop {
        let (kind, content) = chunk(from)?;
        match kind {
            kind::POLICY => {
                let PolicyText { generation, text, author, unix_ms } = decode(&content)?;
                settings.cluster.policies.push(Arc::new(PolicyRecord { generation, text, author, unix_ms }));
            }
            kind::OUTCOMES => {
                let part: Outcomes = decode(&content)?;
                let window = windows
                    .entry(part.proposer)
                    .or_insert_with(|| Window { floor: part.floor, outcomes: VecDeque::new() });
                let next = window.floor.checked_add(window.outcomes.len() as u64);
                if window.floor != part.floor || next != Some(part.first) {
                    return Err(damaged("outcomes are missing"));
                }
                window.outcomes.extend(part.outcomes);
                if window.outcomes.len() as u64 > WIDTH {
                    return Err(damaged("too many outcomes"));
                }
            }
            kind::REMOVED => {
                let (at, ids): (u64, Vec<SessionId>) = decode(&content)?;
                before = at;
                removed.extend(ids);
                if removed.len() > REMEMBERED {
                    return Err(damaged("too many removed ids"));
                }
            }
            kind::SESSIONS => {
                sessions.extend(decode::<Vec<Record>>(&content)?);
                if sessions.len() > most {
                    return Err(damaged(format!("more than {most} sessions")));
                }
            }
            kind::REFRESHES => {
                refreshes.extend(decode::<Vec<(SessionId, u16)>>(&content)?);
                if refreshes.len() > sessions.len() {
                    return Err(damaged("refreshes of sessions that are not there"));
                }
            }
            kind::RESUMES => resumes = decode(&content)?,
            kind::END => break decode(&content)?,
            other => return Err(damaged(format!("an unknown chunk {other}"))),
        }
    };
    if end.sessions != sessions.len() as u64 {
        return Err(damaged("sessions are missing"));
    }
    let (mut ids, mut tuples) = (HashSet::new(), HashSet::new());
    for (establish, _) in &sessions {
        if let Some(why) = invalid(establish) {
            return Err(damaged(why));
        }
        let tuple = establish.original.min(establish.reply);
        if !ids.insert(establish.id) || !tuples.insert(tuple) {
            return Err(damaged("a session is there twice"));
        }
    }
    let rules = match settings.cluster.policies.last() {
        None if settings.generation == Generation(0) => None,
        Some(p) if p.generation == settings.generation => {
            let before = settings.cluster.zones.clone();
            let mut zones = before.clone();
            let rules = register::compile(&p.text, &mut zones).map_err(damaged)?;
            if zones != before {
                return Err(damaged("zones are missing"));
            }
            Some(rules)
        }
        _ => return Err(damaged("the policy in force is missing")),
    };
    let active_policy = register::active_policy(settings.generation, rules, &settings.cluster.zones);
    let windows = Windows::rebuild(windows);
    let removed = Removed::rebuild(before, removed);
    let kept = |record: Record| {
        let refreshes = refreshes.get(&record.0.id).copied().unwrap_or(0);
        (record, refreshes)
    };
    let sessions = sessions.into_iter().map(kept).collect();
    Ok(Content { settings, active_policy, windows, removed, sessions, resumes, digest: end.digest })
}

impl Replica {
    pub(super) fn replace(&mut self, now: Time, from: &mut dyn Read, wake: &mut dyn Wake) -> Result<(), RestoreError> {
        let new = read(from, self.engine.config.max_sessions)?;
        let digest = new
            .sessions
            .iter()
            .fold(0_u64, |sum, ((e, closed), refreshes)| sum.wrapping_add(record_digest(e, *closed, *refreshes)));
        let settings_digest = new.settings.digest();
        let resumes = resumes_digest(new.resumes);
        let parts = [digest, settings_digest, new.windows.digest(), new.removed.digest(), resumes];
        if parts.into_iter().fold(0, u64::wrapping_add) != new.digest {
            return Err(damaged("the digest is wrong"));
        }

        // Nothing can fail from here on.
        if let Some(copies) = self.copies.take() {
            copies.over.store(true, Ordering::Release);
        }
        let engine = self.engine.clone();
        let table = &engine.table;
        let mut by_shard: Vec<Vec<(u64, Kept)>> = (0..SHARDS).map(|_| Vec::new()).collect();
        self.sessions = new.sessions.len();
        for kept in new.sessions {
            let hash = table.hash(&kept.0.0.original);
            by_shard[usize::from(Table::number(hash))].push((hash, kept));
        }
        engine.activate(new.active_policy);
        for (number, records) in table.numbers().zip(by_shard) {
            let mut wakes: Vec<(u64, WorkerSet)>;
            {
                let mut shard = table.shard(number);
                wakes = shard.queries.take_all().collect();
                replace_shard(&engine, now, number, &mut shard, records, &mut wakes);
            }
            for (hash, workers) in wakes.into_iter().filter(|(_, workers)| !workers.is_empty()) {
                wake.wake(workers, HoldKey(hash));
            }
        }
        self.digest = digest;
        self.windows = new.windows;
        self.removed = new.removed;
        self.settings = new.settings;
        self.settings_changed();
        self.resumes = new.resumes;
        engine.resumed(self.resumes);
        Ok(())
    }
}

/// Replaces a shard's sessions. What this member saw of a session that stays, stays too; so do half-open sessions, but
/// for those that are established now.
fn replace_shard(
    engine: &Engine,
    now: Time,
    number: u8,
    shard: &mut Shard,
    records: Vec<(u64, Kept)>,
    wakes: &mut Vec<(u64, WorkerSet)>,
) {
    let (table, timeouts) = (&engine.table, engine.timeouts());
    let mut old: HashMap<SessionId, Session> = table.drain(shard, number).into_iter().map(|s| (s.id, s)).collect();
    shard.finished.clear();
    shard.digest = 0;
    for (hash, ((establish, closed), refreshes)) in records {
        let mut session =
            match old.remove(&establish.id).filter(|s| s.establish() == Establish { supersedes: None, ..establish }) {
                Some(known) => known,
                None => Session::new(&establish, now, None),
            };
        if session.closed != closed || session.refreshes != refreshes {
            session.closed = closed;
            session.refreshes = refreshes;
            session.flags.set(SessionFlag::Expiring, false);
            session.seen = Stamp17ms::rounded_up(now);
        }
        let half_open: Vec<u32> = shard.half_open.lookup(hash, &establish.original).collect();
        for slot in half_open {
            match shard.half_open.get(slot) {
                Some(half) if half.open.id == establish.id => {
                    wakes.push((hash, half.waiters));
                    table.remove_half_open(shard, slot);
                }
                _ => session.flags.set(SessionFlag::Contested, true),
            }
        }
        shard.digest = shard.digest.wrapping_add(session_digest(&session));
        table.insert(shard, hash, session, now, &timeouts);
    }
}
