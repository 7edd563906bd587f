//! The settings: what all members must do alike, and administrators change.
//!
//! A setting is a number with a key, bounds and a default. Settings are stored and hashed as pairs of tag and value, and those at
//! their default are left out: a setting that a later program adds changes neither the bytes nor the digest of a state that
//! does not have it. So a tag is never given again, and a default never changes.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Effects, InvalidReason, Outcome, StateMachine};
use crate::duration::{self, Unit};
use crate::id::MemberId;

/// Number of changes kept.
const MAX_SETTINGS_HISTORY: usize = 32;

/// Maximum number of values in one change: more than there are settings.
const MAX_CHANGED: usize = 64;

/// Maximum number of members that one change overrides.
const MAX_OVERRIDDEN: usize = 64;

/// Maximum length of an author's name in the record of a change, in bytes. What is longer is cut.
const MAX_AUTHOR_BYTES: usize = 256;

/// The units of a setting that is a time.
const UNITS: [Unit; 5] = [Unit::Millisecond, Unit::Second, Unit::Minute, Unit::Hour, Unit::Day];

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// A setting. The number is its tag. A change of a setting that a later level adds exists from that level on only:
/// `Command::level` says so.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum SettingKey {
    /// Maximum number of sessions. One more is refused when the log is applied.
    TableSessions = 1,
    /// Maximum number of half-open sessions on one member. The oldest make room.
    TableHalfOpen = 2,
    /// Maximum number of half-open sessions of one source.
    TableHalfOpenPerSource = 3,
    /// How long established sessions pass on a member whose lease is not renewed, in milliseconds.
    LeaseGrace = 4,
    /// How fast a connection may have gone on while no live member saw it, in bytes per second.
    TakeoverRate = 5,
    /// Maximum number of members that vote.
    MembersVoters = 6,
    /// How long a voter may be silent until a learner takes its place, in milliseconds.
    MembersReplaceAfter = 7,
    /// How long all members must be able to do a level until the leader raises to it, in milliseconds; 0: never by itself.
    LevelRaise = 8,
}

/// How a setting is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    Number,
    /// In milliseconds.
    Time,
    /// `manual`, or `after` a time.
    Raise,
}

/// What there is to know of a setting.
struct Spec {
    name: &'static str,
    form: Form,
    unit: &'static str,
    min: u64,
    max: u64,
    default: u64,
}

impl SettingKey {
    /// All settings, by tag.
    pub const ALL: [SettingKey; 8] = [
        SettingKey::TableSessions,
        SettingKey::TableHalfOpen,
        SettingKey::TableHalfOpenPerSource,
        SettingKey::LeaseGrace,
        SettingKey::TakeoverRate,
        SettingKey::MembersVoters,
        SettingKey::MembersReplaceAfter,
        SettingKey::LevelRaise,
    ];

    fn spec(self) -> Spec {
        let number = |name, unit, min, max, default| Spec { name, form: Form::Number, unit, min, max, default };
        let time = |name, min, max, default| Spec { name, form: Form::Time, unit: "", min, max, default };
        match self {
            SettingKey::TableSessions => number("table.sessions", "sessions", 1, 100_000_000, 1_000_000),
            SettingKey::TableHalfOpen => number("table.half_open", "sessions", 256, 10_000_000, 262_144),
            SettingKey::TableHalfOpenPerSource => {
                number("table.half_open_per_source", "sessions", 1, 10_000_000, 32_768)
            }
            // Not below the lease itself, which is valid for a second.
            SettingKey::LeaseGrace => time("lease.grace", SECOND, DAY, 5 * MINUTE),
            SettingKey::TakeoverRate => number("takeover.rate", "bytes/s", 0, 100_000_000_000, 1 << 30),
            // With more than nine every commit waits for five disks.
            SettingKey::MembersVoters => number("members.voters", "members", 1, 9, 5),
            // Longer than any restart of a daemon; a machine that boots takes some minutes.
            SettingKey::MembersReplaceAfter => time("members.replace_after", 5 * SECOND, 7 * DAY, 10 * MINUTE),
            SettingKey::LevelRaise => {
                Spec { name: "level.raise", form: Form::Raise, unit: "", min: MINUTE, max: 30 * DAY, default: 0 }
            }
        }
    }

    /// Its name, as in `palisade cluster settings set`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.spec().name
    }

    /// What its number counts; empty for times.
    #[must_use]
    pub fn unit(self) -> &'static str {
        self.spec().unit
    }

    /// The setting with this tag.
    #[must_use]
    pub fn from_tag(tag: u16) -> Option<SettingKey> {
        SettingKey::ALL.into_iter().find(|key| key.tag() == tag)
    }

    /// Its tag.
    #[must_use]
    pub const fn tag(self) -> u16 {
        self as u16
    }

    /// Its default.
    #[must_use]
    pub fn default(self) -> u64 {
        self.spec().default
    }

    fn allows(self, value: u64) -> bool {
        let Spec { form, min, max, .. } = self.spec();
        (min..=max).contains(&value) || (form == Form::Raise && value == 0)
    }

    /// A value as people write it.
    #[must_use]
    pub fn text(self, value: u64) -> String {
        match (self.spec().form, value) {
            (Form::Number, value) => value.to_string(),
            (Form::Time, value) => time_text(value),
            (Form::Raise, 0) => "manual".to_owned(),
            (Form::Raise, value) => format!("after {}", time_text(value)),
        }
    }

    /// The values that it can have, as people write them.
    #[must_use]
    pub fn expected(self) -> String {
        let Spec { form, unit, min, max, .. } = self.spec();
        match form {
            Form::Number => format!("a number from {min} to {max} ({unit})"),
            Form::Time => format!("a time from {} to {}, such as 90s, 10m, 1h", time_text(min), time_text(max)),
            Form::Raise => {
                format!("`manual`, or `after` and a time from {} to {}", time_text(min), time_text(max))
            }
        }
    }

    fn parse(self, text: &str) -> Option<u64> {
        let time = |text: &str| {
            duration::parse(text.trim(), &UNITS).ok().and_then(|time| u64::try_from(time.as_millis()).ok())
        };
        let value = match self.spec().form {
            Form::Number => text.replace('_', "").parse().ok(),
            Form::Time => time(text),
            Form::Raise if text == "manual" => Some(0),
            // 0 is `manual`, so it is no time here.
            Form::Raise => time(text.strip_prefix("after").unwrap_or(text)).filter(|time| *time > 0),
        };
        value.filter(|value| self.allows(*value))
    }
}

/// A time in milliseconds, in the largest unit that is exact.
fn time_text(ms: u64) -> String {
    let units = [(DAY, "d"), (HOUR, "h"), (MINUTE, "m"), (SECOND, "s")];
    match units.into_iter().find(|(unit, _)| ms >= *unit && ms.is_multiple_of(*unit)) {
        Some((unit, symbol)) => format!("{}{symbol}", ms / unit),
        None => format!("{ms}ms"),
    }
}

/// The names of all settings, for errors.
fn names() -> String {
    SettingKey::ALL.map(SettingKey::name).join(", ")
}

/// Why a text is no assignment of a setting.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AssignmentError {
    /// There is no `=`.
    #[error("`{0}` is no KEY=VALUE")]
    Syntax(String),
    /// There is no such setting.
    #[error("there is no setting `{}`; the settings are {}", .0, names())]
    Unknown(String),
    /// The value is not one of those that the setting can have.
    #[error("{}: expected {}, found `{found}`", .key.name(), .key.expected())]
    Value {
        /// The setting.
        key: SettingKey,
        /// The text.
        found: String,
    },
    /// A setting has two values.
    #[error("{} is there twice", .0.name())]
    Twice(SettingKey),
}

/// A setting and its new value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Assignment {
    /// The setting.
    pub key: SettingKey,
    /// Its value: a number, or a time in milliseconds.
    pub value: u64,
}

impl Assignment {
    /// Reads `KEY=VALUE`.
    ///
    /// # Errors
    /// [`AssignmentError`]
    pub fn parse(text: &str) -> Result<Assignment, AssignmentError> {
        let (name, value) = text.split_once('=').ok_or_else(|| AssignmentError::Syntax(text.to_owned()))?;
        let (name, value) = (name.trim(), value.trim());
        let key = SettingKey::ALL.into_iter().find(|key| key.name() == name);
        let key = key.ok_or_else(|| AssignmentError::Unknown(name.to_owned()))?;
        let value = key.parse(value).ok_or_else(|| AssignmentError::Value { key, found: value.to_owned() })?;
        Ok(Assignment { key, value })
    }

    /// Reads several `KEY=VALUE`, each key once.
    ///
    /// # Errors
    /// [`AssignmentError`]
    pub fn parse_all<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Vec<Assignment>, AssignmentError> {
        let mut all: Vec<Assignment> = Vec::new();
        for text in texts {
            let new = Assignment::parse(text)?;
            if all.iter().any(|old| old.key == new.key) {
                return Err(AssignmentError::Twice(new.key));
            }
            all.push(new);
        }
        Ok(all)
    }
}

impl fmt::Display for Assignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key.name(), self.key.text(self.value))
    }
}

/// When the leader raises the level that is in force.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LevelRaise {
    /// By an administrator's command only.
    Manual,
    /// Once all members have been able to do the next level for this long.
    After(Duration),
}

/// The values of all settings.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// Those that differ from their defaults, by tag. Only known tags.
    changed: BTreeMap<u16, u64>,
}

impl Settings {
    /// The value of a setting: a number, or a time in milliseconds.
    #[must_use]
    pub fn get(&self, key: SettingKey) -> u64 {
        self.changed.get(&key.tag()).copied().unwrap_or(key.default())
    }

    /// These settings with another value of one.
    #[must_use]
    pub fn with(mut self, key: SettingKey, value: u64) -> Settings {
        match value == key.default() {
            true => self.changed.remove(&key.tag()),
            false => self.changed.insert(key.tag(), value),
        };
        self
    }

    /// All settings with their values, by tag.
    pub fn iter(&self) -> impl Iterator<Item = Assignment> + '_ {
        SettingKey::ALL.into_iter().map(|key| Assignment { key, value: self.get(key) })
    }

    fn count(&self, key: SettingKey) -> usize {
        usize::try_from(self.get(key)).unwrap_or(usize::MAX)
    }

    /// Maximum number of sessions.
    #[must_use]
    pub fn max_sessions(&self) -> usize {
        self.count(SettingKey::TableSessions)
    }

    /// Maximum number of half-open sessions on one member.
    #[must_use]
    pub fn max_half_open(&self) -> usize {
        self.count(SettingKey::TableHalfOpen)
    }

    /// Maximum number of half-open sessions of one source: an IPv4 address, or an IPv6 network of 64 bits.
    #[must_use]
    pub fn max_half_open_per_source(&self) -> u32 {
        u32::try_from(self.get(SettingKey::TableHalfOpenPerSource)).unwrap_or(u32::MAX)
    }

    /// How long established sessions pass on a member whose lease is not renewed.
    #[must_use]
    pub fn grace(&self) -> Duration {
        Duration::from_millis(self.get(SettingKey::LeaseGrace))
    }

    /// How fast a connection may have gone on while no live member saw it, in bytes per second.
    #[must_use]
    pub fn takeover_rate(&self) -> u64 {
        self.get(SettingKey::TakeoverRate)
    }

    /// Maximum number of members that vote.
    #[must_use]
    pub fn max_voters(&self) -> usize {
        self.count(SettingKey::MembersVoters)
    }

    /// How long a voter may be silent until a learner takes its place.
    #[must_use]
    pub fn replace_after(&self) -> Duration {
        Duration::from_millis(self.get(SettingKey::MembersReplaceAfter))
    }

    /// When the leader raises the level.
    #[must_use]
    pub fn level_raise(&self) -> LevelRaise {
        match self.get(SettingKey::LevelRaise) {
            0 => LevelRaise::Manual,
            ms => LevelRaise::After(Duration::from_millis(ms)),
        }
    }

    /// The number of sessions that a member must afford: each of its two tables may have as many.
    #[must_use]
    pub fn affordable_sessions(&self) -> u64 {
        self.get(SettingKey::TableSessions).max(self.get(SettingKey::TableHalfOpen))
    }
}

/// The settings in force, and how they came about.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SettingsRecord {
    /// How often they were changed. A change names the one that it was made for.
    pub revision: u64,
    /// Their values.
    pub values: Settings,
    /// The largest [`Settings::grace`] that has been in force, the present one included: a member that was cut off then may
    /// still go by it.
    pub largest_grace: Duration,
    /// The last changes, at most 32, oldest first.
    pub history: Vec<Arc<SettingsRevision>>,
}

impl SettingsRecord {
    /// The settings of a new cluster.
    pub(super) fn new() -> SettingsRecord {
        let values = Settings::default();
        SettingsRecord { largest_grace: values.grace(), values, revision: 0, history: Vec::new() }
    }
}

/// A change that was made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SettingsRevision {
    /// Its number, from 1.
    pub revision: u64,
    /// The new values, by tag.
    pub values: Vec<(u16, u64)>,
    /// The members that were overridden: they may not afford the new values.
    pub without: Vec<MemberId>,
    /// Who made it.
    pub author: String,
    /// When, by the proposer's wall clock (Unix milliseconds).
    pub unix_ms: u64,
}

/// A change of settings.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SettingsChange {
    /// The revision that it was made for. If another one is in force, nothing changes ([`SettingsRefusal::Base`]).
    pub base: u64,
    /// The new values, by tag.
    pub values: Vec<(u16, u64)>,
    /// Members that need not afford the new values: one that does not stops, and does not start until it does.
    pub without: Vec<MemberId>,
    /// Who makes it, for the record.
    pub author: String,
}

impl SettingsChange {
    /// A change of some settings.
    #[must_use]
    pub fn new(base: u64, assignments: &[Assignment], without: Vec<MemberId>, author: String) -> SettingsChange {
        let values = assignments.iter().map(|assignment| (assignment.key.tag(), assignment.value)).collect();
        SettingsChange { base, values, without, author }
    }

    /// Its approximate length in bytes.
    pub(super) fn len(&self) -> usize {
        12 * self.values.len() + 10 * self.without.len() + self.author.len()
    }
}

/// Why a change of settings was refused. A code: its text is not part of the state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum SettingsRefusal {
    /// Another revision is in force: somebody else changed the settings.
    #[error("revision {0} of the settings is in force: somebody else changed them")]
    Base(u64),
    /// It has no value, or too many.
    #[error(
        "a change of settings must have from 1 to {MAX_CHANGED} values, and override at most {MAX_OVERRIDDEN} members"
    )]
    Size,
    /// There is no setting with this tag, or two values for it.
    #[error("there is no setting with the number {0}, or it is there twice")]
    Key(u16),
    /// The setting cannot have this value.
    #[error("{} cannot be {}", SettingKey::from_tag(*.0).map_or("it", SettingKey::name), .1)]
    Value(u16, u64),
    /// One source could take the whole table of half-open sessions.
    #[error(
        "table.half_open_per_source ({per_source}) cannot be above table.half_open ({all}): one source could take the whole table"
    )]
    SourceShare {
        /// The one.
        per_source: u64,
        /// The other.
        all: u64,
    },
    /// There are more sessions than the table would have room for.
    #[error("there are {sessions} sessions now, more than table.sessions={wanted} would allow")]
    Occupied {
        /// The number of sessions.
        sessions: u64,
        /// The new maximum.
        wanted: u64,
    },
    /// This member affords fewer sessions.
    #[error("member {member} affords {affords} sessions (limits.memory in its node.toml), and {needed} are needed")]
    Unaffordable {
        /// The member.
        member: MemberId,
        /// The sessions that it affords.
        affords: u64,
        /// The sessions that a table would have.
        needed: u64,
    },
    /// This member has not registered yet what it affords.
    #[error("member {0} has not said yet how many sessions it affords")]
    Unregistered(MemberId),
}

/// Checks the values of a change, and applies them to `old`.
fn apply(old: &Settings, values: &[(u16, u64)]) -> Result<Settings, SettingsRefusal> {
    let mut new = old.clone();
    for (n, (tag, value)) in values.iter().enumerate() {
        let key = SettingKey::from_tag(*tag).ok_or(SettingsRefusal::Key(*tag))?;
        if values.iter().take(n).any(|(other, _)| other == tag) {
            return Err(SettingsRefusal::Key(*tag));
        }
        if !key.allows(*value) {
            return Err(SettingsRefusal::Value(*tag, *value));
        }
        new = new.with(key, *value);
    }
    let (per_source, all) = (new.get(SettingKey::TableHalfOpenPerSource), new.get(SettingKey::TableHalfOpen));
    if per_source > all {
        return Err(SettingsRefusal::SourceShare { per_source, all });
    }
    Ok(new)
}

impl StateMachine {
    pub(super) fn change_settings(&mut self, change: &SettingsChange, unix_ms: u64, effects: &mut Effects) -> Outcome {
        match self.checked_settings(change) {
            Ok(values) => self.adopt_settings(values, change, unix_ms),
            Err(refusal) => return Outcome::Invalid(InvalidReason::Settings(refusal)),
        }
        self.register_changed(effects);
        Outcome::Accepted
    }

    /// Checks a change against the state, and returns the settings that it leads to.
    fn checked_settings(&self, change: &SettingsChange) -> Result<Settings, SettingsRefusal> {
        let settings = &self.register.cluster.settings;
        if change.base != settings.revision {
            return Err(SettingsRefusal::Base(settings.revision));
        }
        if !(1..=MAX_CHANGED).contains(&change.values.len()) || change.without.len() > MAX_OVERRIDDEN {
            return Err(SettingsRefusal::Size);
        }
        let values = apply(&settings.values, &change.values)?;
        // The state never has more sessions than the setting says, so a member that affords the setting affords the state.
        if self.sessions > values.max_sessions() {
            let (sessions, wanted) = (self.sessions as u64, values.get(SettingKey::TableSessions));
            return Err(SettingsRefusal::Occupied { sessions, wanted });
        }
        self.check_affordable(&settings.values, &values, &change.without)?;
        Ok(values)
    }

    /// Whether all members afford the new settings, except those that are overridden. Settings that ask for no more than the
    /// present ones are not checked: a member that does not afford these is no reason against less.
    fn check_affordable(&self, old: &Settings, new: &Settings, without: &[MemberId]) -> Result<(), SettingsRefusal> {
        let needed = new.affordable_sessions();
        if needed <= old.affordable_sessions() {
            return Ok(());
        }
        let cluster = &self.register.cluster;
        for &member in cluster.members.keys().filter(|id| !without.contains(id)) {
            let registered = cluster.capabilities.get(&member).ok_or(SettingsRefusal::Unregistered(member))?;
            let affords = registered.max_sessions;
            if affords < needed {
                return Err(SettingsRefusal::Unaffordable { member, affords, needed });
            }
        }
        Ok(())
    }

    fn adopt_settings(&mut self, values: Settings, change: &SettingsChange, unix_ms: u64) {
        let cluster = &mut self.register.cluster;
        let settings = &mut cluster.settings;
        settings.revision += 1;
        // A member that never was cannot go by an earlier grace.
        let alone = cluster.next_member <= 2;
        settings.largest_grace = if alone { values.grace() } else { settings.largest_grace.max(values.grace()) };
        settings.values = values;
        let mut author = change.author.clone();
        author.truncate(author.floor_char_boundary(MAX_AUTHOR_BYTES));
        settings.history.push(Arc::new(SettingsRevision {
            revision: settings.revision,
            values: change.values.clone(),
            without: change.without.clone(),
            author,
            unix_ms,
        }));
        let old = settings.history.len().saturating_sub(MAX_SETTINGS_HISTORY);
        settings.history.drain(..old);
    }
}

/// The settings in a snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct SettingsChunk {
    revision: u64,
    values: Vec<(u16, u64)>,
    largest_grace_ms: u64,
    history: Vec<SettingsRevision>,
}

impl From<&SettingsRecord> for SettingsChunk {
    fn from(record: &SettingsRecord) -> SettingsChunk {
        SettingsChunk {
            revision: record.revision,
            values: record.values.changed.iter().map(|(tag, value)| (*tag, *value)).collect(),
            largest_grace_ms: u64::try_from(record.largest_grace.as_millis()).unwrap_or(u64::MAX),
            history: record.history.iter().map(|revision| SettingsRevision::clone(revision)).collect(),
        }
    }
}

impl SettingsChunk {
    /// The record, if it is one that changes lead to.
    pub(super) fn record(self) -> Result<SettingsRecord, SettingsRefusal> {
        if self.values.len() > MAX_CHANGED || self.history.len() > MAX_SETTINGS_HISTORY {
            return Err(SettingsRefusal::Size);
        }
        Ok(SettingsRecord {
            revision: self.revision,
            values: apply(&Settings::default(), &self.values)?,
            largest_grace: Duration::from_millis(self.largest_grace_ms),
            history: self.history.into_iter().map(Arc::new).collect(),
        })
    }
}
