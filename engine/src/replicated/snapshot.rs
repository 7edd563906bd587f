//! Snapshots: exact at one index, made while commands are applied, and read back with suspicion.
//!
//! # Format
//!
//! The magic, the level at which it is written (2 bytes, little endian: that in force), then chunks: a kind (1 byte), the
//! length of the content (4 bytes, little endian), its CRC-32 (4 bytes, over kind, length and content), the content (a base
//! and extensions, or records: [`crate::encoding`]).
//!
//! | kind | content | how many |
//! |---|---|---|
//! | 1 | cluster id, members, joins under way, join tokens, zones, the members' zones, level in force, the members' capabilities, next member id, generation, resume epoch | one, first |
//! | 2 | a policy | up to 32, oldest first |
//! | 3 | a proposer's outcomes from a serial number on | any |
//! | 4 | ids of removed sessions, and how many older ones were dropped | any, in order |
//! | 5 | sessions, each a record | any |
//! | 6 | settings, largest grace so far, last changes | one, second |
//! | 7 | the candidate | one, if there is one |
//! | 9 | number of sessions, digest | one, last |
//!
//! A chunk whose kind has the bit [`kind::OPTIONAL`] may be skipped by a program that does not know the kind. Any other unknown
//! kind is a refusal, and so is an unknown level: what a program does not know of the state, it cannot apply commands to.
//!
//! # Reading
//!
//! [`read`] parses the chunks into [`Parsed`], and validates that as a whole. Only then does anything change.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io::{self, Read, Write};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::apply::invalid;
use super::dedup::{DedupTable, MAX_OUTSTANDING, MAX_TOMBSTONES, ProposerSession, Tombstones};
#[cfg(feature = "next-level")]
use super::next_level;
use super::policies;
use super::settings::{SettingsChunk, SettingsRecord};
use super::{Effects, Outcome, Register, Replicated, RestoredSessions, SessionRecord, StateMachine};
use crate::cluster_state::{Candidate, ClusterState, JoinRequest, MemberInfo, PolicyRecord};
#[cfg(feature = "next-level")]
use crate::encoding::ExtensionWriter;
use crate::encoding::{DecodeError, Extensible, read_content, read_level, read_record, write_content, write_record};
use crate::id::{Generation, MemberId, SessionId};
use crate::level::{Capabilities, Level, UnknownLevel};
use crate::policy::PolicyHash;

/// The last digit is the version of the format.
const MAGIC: &[u8; 8] = b"PALSNAP5";

/// Maximum length of a chunk's content: a policy with its record fits.
const MAX_CHUNK_BYTES: u32 = (policies::MAX_POLICY_BYTES as u32) + (1 << 20);

const SESSIONS_PER_CHUNK: usize = 256;
const OUTCOMES_PER_CHUNK: usize = 1024;
const TOMBSTONES_PER_CHUNK: usize = 4096;

mod kind {
    pub(super) const REGISTER: u8 = 1;
    pub(super) const POLICY: u8 = 2;
    pub(super) const OUTCOMES: u8 = 3;
    pub(super) const TOMBSTONES: u8 = 4;
    pub(super) const SESSIONS: u8 = 5;
    pub(super) const SETTINGS: u8 = 6;
    pub(super) const CANDIDATE: u8 = 7;
    pub(super) const END: u8 = 9;

    /// The bit of a kind without which the state is whole.
    pub(super) const OPTIONAL: u8 = 0x80;
}

#[derive(Serialize, Deserialize)]
struct RegisterRecord {
    cluster_id: String,
    members: BTreeMap<MemberId, MemberInfo>,
    joining: BTreeMap<MemberId, JoinRequest>,
    tokens: Vec<(Vec<u8>, u64)>,
    zones: Vec<String>,
    member_zones: BTreeMap<MemberId, Vec<String>>,
    level: Level,
    capabilities: BTreeMap<MemberId, Capabilities>,
    next_member: u64,
    generation: Generation,
    resume_epoch: u64,
    #[cfg(feature = "next-level")]
    #[serde(skip)]
    note: u64,
}

#[derive(Serialize, Deserialize)]
struct PolicyText {
    generation: Generation,
    text: String,
    author: String,
    unix_ms: u64,
    zones: Vec<String>,
    without: Vec<MemberId>,
}

#[derive(Serialize, Deserialize)]
struct CandidateText {
    base: Generation,
    hash: PolicyHash,
    text: String,
    author: String,
    unix_ms: u64,
    zones: Vec<String>,
    overridden: Vec<MemberId>,
}

#[derive(Serialize, Deserialize)]
struct Outcomes {
    proposer: MemberId,
    lowest_outstanding: u64,
    first_serial: u64,
    outcomes: Vec<Option<Outcome>>,
}

#[derive(Serialize, Deserialize)]
struct Removed {
    dropped: u64,
    ids: Vec<SessionId>,
}

impl Extensible for RegisterRecord {
    #[cfg(feature = "next-level")]
    fn write_extensions(&self, to: &mut ExtensionWriter<'_>) -> Result<(), postcard::Error> {
        next_level::write_note(self.note, to)
    }

    #[cfg(feature = "next-level")]
    fn read_extension(&mut self, tag: u32, value: &[u8]) -> Result<bool, DecodeError> {
        next_level::read_note(&mut self.note, tag, value)
    }
}

impl Extensible for PolicyText {}
impl Extensible for CandidateText {}
impl Extensible for Outcomes {}
impl Extensible for Removed {}
impl Extensible for End {}
impl Extensible for SettingsChunk {}

#[derive(Serialize, Deserialize)]
struct End {
    sessions: u64,
    digest: u64,
}

/// Why a snapshot was refused. The state is then as before.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It could not be read.
    #[error("the snapshot cannot be read")]
    Io(#[from] io::Error),
    /// It is not what it should be.
    #[error("the snapshot is damaged: {0}")]
    Damaged(String),
    /// It was written at a level that this program does not know.
    #[error("the snapshot cannot be read: {0}; a program that knows this level is needed")]
    Level(UnknownLevel),
    /// A part of it is unknown to this program, and the state is not whole without it.
    #[error("the snapshot has a part of the unknown kind {0}: a program that knows it is needed")]
    Kind(u8),
    /// A member with these settings must afford more sessions than this one does.
    #[error("the cluster's settings ask for room for {needed} sessions, and this member affords {affords}")]
    Unaffordable {
        /// Number of sessions that a table may have.
        needed: u64,
        /// Number of sessions that this member affords.
        affords: u64,
    },
}

impl From<DecodeError> for RestoreError {
    fn from(error: DecodeError) -> RestoreError {
        match error {
            DecodeError::Level(level) => RestoreError::Level(level),
            other => RestoreError::Damaged(other.to_string()),
        }
    }
}

fn damaged(why: impl Into<String>) -> RestoreError {
    RestoreError::Damaged(why.into())
}

/// The state as it is at one index, without the sessions themselves.
pub(crate) struct SnapshotContent {
    register: Register,
    dedup: DedupTable,
    tombstones: Tombstones,
    sessions: usize,
    digest: u64,
    resume_epoch: u64,
}

fn checksum(kind: u8, length: [u8; 4], content: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&[kind]);
    crc.update(&length);
    crc.update(content);
    crc.finalize()
}

fn write_chunk(to: &mut dyn Write, kind: u8, content: &impl Extensible) -> io::Result<()> {
    let mut bytes = Vec::new();
    write_content(&mut bytes, content).map_err(io::Error::other)?;
    write_bytes(to, kind, &bytes)
}

fn write_bytes(to: &mut dyn Write, kind: u8, content: &[u8]) -> io::Result<()> {
    let length = u32::try_from(content.len()).ok().filter(|n| *n <= MAX_CHUNK_BYTES);
    let length = length.ok_or_else(|| io::Error::other("a chunk is too long"))?.to_le_bytes();
    to.write_all(&[kind])?;
    to.write_all(&length)?;
    to.write_all(&checksum(kind, length, content).to_le_bytes())?;
    to.write_all(content)
}

impl SnapshotContent {
    /// Writes the snapshot. `next` adds the next sessions to the list, as they were at the same index, and returns whether there
    /// are more.
    pub(crate) fn write(
        &self,
        to: &mut dyn Write,
        next: &mut dyn FnMut(&mut Vec<Replicated>) -> io::Result<bool>,
    ) -> io::Result<()> {
        to.write_all(MAGIC)?;
        to.write_all(&self.register.cluster.level.0.to_le_bytes())?;
        self.write_register(to)?;
        self.write_dedup(to)?;
        let (mut sessions, mut more, mut records) = (Vec::with_capacity(2 * SESSIONS_PER_CHUNK), true, Vec::new());
        while more {
            more = next(&mut sessions)?;
            while sessions.len() >= SESSIONS_PER_CHUNK || !more && !sessions.is_empty() {
                records.clear();
                for session in sessions.drain(..sessions.len().min(SESSIONS_PER_CHUNK)) {
                    write_record(&mut records, &session.record()).map_err(io::Error::other)?;
                }
                write_bytes(to, kind::SESSIONS, &records)?;
            }
        }
        write_chunk(to, kind::END, &End { sessions: self.sessions as u64, digest: self.digest })
    }

    fn write_register(&self, to: &mut dyn Write) -> io::Result<()> {
        let cluster = &self.register.cluster;
        let register = RegisterRecord {
            cluster_id: cluster.cluster_id.clone(),
            members: cluster.members.clone(),
            joining: cluster.joining.clone(),
            tokens: cluster.tokens.clone(),
            zones: cluster.zones.clone(),
            member_zones: cluster.member_zones.clone(),
            level: cluster.level,
            capabilities: cluster.capabilities.clone(),
            next_member: cluster.next_member,
            generation: self.register.generation,
            resume_epoch: self.resume_epoch,
            #[cfg(feature = "next-level")]
            note: cluster.note,
        };
        write_chunk(to, kind::REGISTER, &register)?;
        write_chunk(to, kind::SETTINGS, &SettingsChunk::from(&cluster.settings))?;
        for policy in &cluster.policies {
            let PolicyRecord { generation, hash: _, text, author, unix_ms, zones, without } =
                PolicyRecord::clone(policy);
            let text = String::from(&*text);
            write_chunk(to, kind::POLICY, &PolicyText { generation, text, author, unix_ms, zones, without })?;
        }
        if let Some(candidate) = &cluster.candidate {
            let Candidate { base, hash, text, author, unix_ms, zones, overridden } = Candidate::clone(candidate);
            let text = String::from(&*text);
            let candidate = CandidateText { base, hash, text, author, unix_ms, zones, overridden };
            write_chunk(to, kind::CANDIDATE, &candidate)?;
        }
        Ok(())
    }

    fn write_dedup(&self, to: &mut dyn Write) -> io::Result<()> {
        for (&proposer, session) in &self.dedup.proposers {
            let lowest_outstanding = session.lowest_outstanding;
            let all: Vec<_> = session.outcomes.iter().cloned().collect();
            // Even a proposer without outcomes has a lowest outstanding serial number.
            let chunks = all.chunks(OUTCOMES_PER_CHUNK).chain(all.is_empty().then_some(&[][..]));
            for (chunk, first_serial) in chunks.zip((lowest_outstanding..).step_by(OUTCOMES_PER_CHUNK)) {
                let outcomes = Outcomes { proposer, lowest_outstanding, first_serial, outcomes: chunk.to_vec() };
                write_chunk(to, kind::OUTCOMES, &outcomes)?;
            }
        }
        let removed: Vec<SessionId> = self.tombstones.iter().collect();
        for chunk in removed.chunks(TOMBSTONES_PER_CHUNK) {
            let removed = Removed { dropped: self.tombstones.before(), ids: chunk.to_vec() };
            write_chunk(to, kind::TOMBSTONES, &removed)?;
        }
        Ok(())
    }
}

/// The next chunk. Memory grows with what is really there, not with what the length claims.
fn read_chunk(from: &mut dyn Read) -> Result<(u8, Vec<u8>), RestoreError> {
    let mut head = [0; 9];
    from.read_exact(&mut head)?;
    let [kind, l0, l1, l2, l3, c0, c1, c2, c3] = head;
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    if length > MAX_CHUNK_BYTES {
        return Err(damaged(format!("it has a chunk of {length} bytes")));
    }
    let mut content = Vec::new();
    from.take(u64::from(length)).read_to_end(&mut content)?;
    if content.len() as u64 != u64::from(length) {
        return Err(damaged("it ends within a chunk"));
    }
    if checksum(kind, [l0, l1, l2, l3], &content) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Err(damaged("the checksum of a chunk is wrong"));
    }
    Ok((kind, content))
}

/// The content of a snapshot's chunks, each valid by itself.
struct Parsed<S> {
    register: Register,
    resume_epoch: u64,
    proposers: BTreeMap<MemberId, ProposerSession>,
    dropped_tombstones: u64,
    tombstones: Vec<SessionId>,
    sessions: S,
}

impl<S: RestoredSessions> Parsed<S> {
    fn new(record: RegisterRecord, settings: SettingsRecord, sessions: S) -> Parsed<S> {
        let cluster = ClusterState {
            cluster_id: record.cluster_id,
            members: record.members,
            joining: record.joining,
            next_member: record.next_member,
            tokens: record.tokens,
            zones: record.zones,
            member_zones: record.member_zones,
            level: record.level,
            capabilities: record.capabilities,
            settings,
            policies: Vec::new(),
            candidate: None,
            #[cfg(feature = "next-level")]
            note: record.note,
        };
        Parsed {
            register: Register { cluster, generation: record.generation },
            resume_epoch: record.resume_epoch,
            proposers: BTreeMap::new(),
            dropped_tombstones: 0,
            tombstones: Vec::new(),
            sessions,
        }
    }

    /// Adds a chunk that is neither the first one nor the last one.
    fn add(&mut self, kind: u8, content: &[u8]) -> Result<(), RestoreError> {
        match kind {
            kind::POLICY => {
                let PolicyText { generation, text, author, unix_ms, zones, without } = read_content(content)?;
                let hash = PolicyHash::of(&text);
                let record = PolicyRecord { generation, hash, text: text.into(), author, unix_ms, zones, without };
                self.register.cluster.policies.push(Arc::new(record));
            }
            kind::CANDIDATE => {
                let CandidateText { base, hash, text, author, unix_ms, zones, overridden } = read_content(content)?;
                let candidate = Candidate { base, hash, text: text.into(), author, unix_ms, zones, overridden };
                if self.register.cluster.candidate.replace(Arc::new(candidate)).is_some() {
                    return Err(damaged("it has two candidates"));
                }
            }
            kind::OUTCOMES => self.add_outcomes(read_content(content)?)?,
            kind::TOMBSTONES => {
                let Removed { dropped, ids } = read_content(content)?;
                self.dropped_tombstones = dropped;
                self.tombstones.extend(ids);
                if self.tombstones.len() > MAX_TOMBSTONES {
                    return Err(damaged("it has too many ids of removed sessions"));
                }
            }
            kind::SESSIONS => {
                let mut rest = content;
                while !rest.is_empty() {
                    let (session, after) = read_record::<SessionRecord>(rest)?;
                    self.add_session(&session)?;
                    rest = after;
                }
            }
            other if other & kind::OPTIONAL != 0 => {}
            other => return Err(RestoreError::Kind(other)),
        }
        Ok(())
    }

    fn add_session(&mut self, record: &SessionRecord) -> Result<(), RestoreError> {
        if let Some(why) = invalid(&record.establish) {
            return Err(damaged(why.to_string()));
        }
        let max_sessions = self.register.cluster.settings.values.max_sessions();
        if self.sessions.len() >= max_sessions {
            return Err(damaged(format!("it has more than {max_sessions} sessions")));
        }
        if !self.sessions.add(Replicated::restored(record)) {
            return Err(damaged("a session is there twice"));
        }
        Ok(())
    }

    fn add_outcomes(&mut self, part: Outcomes) -> Result<(), RestoreError> {
        let Outcomes { proposer, lowest_outstanding, first_serial, outcomes } = part;
        let session = self
            .proposers
            .entry(proposer)
            .or_insert_with(|| ProposerSession { lowest_outstanding, outcomes: VecDeque::new() });
        let next = session.lowest_outstanding.checked_add(session.outcomes.len() as u64);
        if session.lowest_outstanding != lowest_outstanding || next != Some(first_serial) {
            return Err(damaged("outcomes are missing"));
        }
        session.outcomes.extend(outcomes);
        if session.outcomes.len() as u64 > MAX_OUTSTANDING {
            return Err(damaged("it has too many outcomes"));
        }
        Ok(())
    }

    fn validate(self, end: &End) -> Result<Restored<S>, RestoreError> {
        if end.sessions != self.sessions.len() as u64 {
            return Err(damaged("sessions are missing"));
        }
        validate_policies(&self.register)?;
        let state = StateMachine {
            sessions: self.sessions.len(),
            sessions_digest: self.sessions.digest(),
            register_digest: self.register.digest(),
            register: self.register,
            dedup: DedupTable::rebuild(self.proposers),
            tombstones: Tombstones::rebuild(self.dropped_tombstones, self.tombstones),
            resume_epoch: self.resume_epoch,
        };
        if state.digest() != end.digest {
            return Err(damaged("the digest is wrong"));
        }
        Ok(Restored { state, sessions: self.sessions })
    }
}

/// That the policy in force is there, and every zone of a policy has its number. Compiling comes later, beside all this.
fn validate_policies(register: &Register) -> Result<(), RestoreError> {
    let cluster = &register.cluster;
    let last = cluster.policies.last().map_or(Generation(0), |policy| policy.generation);
    if last != register.generation {
        return Err(damaged("the active policy is missing"));
    }
    if cluster.candidate.as_ref().is_some_and(|candidate| candidate.base != register.generation) {
        return Err(damaged("the candidate is not for the active policy"));
    }
    let zones: HashSet<&str> = cluster.zones.iter().map(String::as_str).collect();
    let by_policies = cluster.policies.iter().flat_map(|policy| &policy.zones);
    let named = by_policies.chain(cluster.candidate.iter().flat_map(|candidate| &candidate.zones));
    if named.into_iter().any(|name| name.is_empty() || !zones.contains(name.as_str())) {
        return Err(damaged("zones are missing"));
    }
    Ok(())
}

/// A snapshot that was read and validated, but is not the state yet.
pub(crate) struct Restored<S> {
    state: StateMachine,
    pub(crate) sessions: S,
}

impl<S> Restored<S> {
    pub(crate) fn cluster_state(&self) -> &ClusterState {
        self.state.cluster_state()
    }

    pub(crate) fn generation(&self) -> Generation {
        self.state.register.generation
    }
}

/// Reads a snapshot, with its sessions into `sessions`. It may have as many as its settings say. One whose settings ask for room
/// for more than `affords` sessions is refused before any is read.
pub(crate) fn read<S: RestoredSessions>(
    from: &mut dyn Read,
    affords: u64,
    sessions: S,
) -> Result<Restored<S>, RestoreError> {
    let (mut magic, mut level) = ([0; 8], [0; 2]);
    from.read_exact(&mut magic)?;
    if magic != *MAGIC {
        return Err(damaged("it is not a snapshot of this format"));
    }
    from.read_exact(&mut level)?;
    let (level, _) = read_level(&level)?;
    let (first, content) = read_chunk(from)?;
    if first != kind::REGISTER {
        return Err(damaged("it does not begin with the register"));
    }
    let register: RegisterRecord = read_content(&content)?;
    if register.level != level {
        return Err(damaged("it was not written at the level in force"));
    }
    let (second, content) = read_chunk(from)?;
    if second != kind::SETTINGS {
        return Err(damaged("the settings are not behind the register"));
    }
    let settings = read_content::<SettingsChunk>(&content)?.record().map_err(|e| damaged(e.to_string()))?;
    let needed = settings.values.affordable_sessions();
    if needed > affords {
        return Err(RestoreError::Unaffordable { needed, affords });
    }
    let mut parsed = Parsed::new(register, settings, sessions);
    loop {
        let (kind, content) = read_chunk(from)?;
        if kind == kind::END {
            return parsed.validate(&read_content(&content)?);
        }
        parsed.add(kind, &content)?;
    }
}

impl StateMachine {
    /// The state as it is now, for a snapshot.
    pub(crate) fn snapshot(&self) -> SnapshotContent {
        SnapshotContent {
            register: self.register.clone(),
            dedup: self.dedup.clone(),
            tombstones: self.tombstones.list(),
            sessions: self.sessions,
            digest: self.digest(),
            resume_epoch: self.resume_epoch,
        }
    }

    /// Replaces the state by that of a snapshot. The caller has put the snapshot's sessions into the store.
    pub(crate) fn install<S>(&mut self, restored: Restored<S>) -> Effects {
        *self = restored.state;
        Effects {
            cluster_state: Some(Box::new(self.register.cluster.clone())),
            resume_epoch: Some(self.resume_epoch),
            ..Effects::default()
        }
    }
}
