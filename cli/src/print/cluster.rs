//! What `palisade cluster` prints.

use std::io::{self, Write};

use palisade_proto::admin::v1;
use serde::Serialize;

use super::drain::Draining;
use super::health::{self, readiness};
use super::level::{self, Capabilities};
use super::{Table, answer, date, many};
use crate::args::Output;
use crate::exit::Failure;

#[derive(Serialize)]
struct Joined<'a> {
    cluster: &'a str,
    member: u64,
}

/// After `init`.
///
/// # Errors
/// Standard output cannot be written.
pub fn initialised(output: Output, answered: &v1::InitResponse) -> Result<(), Failure> {
    answer(
        output,
        || Joined { cluster: &answered.cluster, member: answered.member },
        |out| {
            writeln!(out, "cluster {} made, this is member {}", answered.cluster, answered.member)?;
            writeln!(
                out,
                "next: `palisade cluster token` here, then `palisade cluster join TOKEN` on the other machines"
            )
        },
    )
}

/// After `join`.
///
/// # Errors
/// Standard output cannot be written.
pub fn joined(output: Output, answered: &v1::JoinResponse) -> Result<(), Failure> {
    answer(
        output,
        || JoinedAs {
            joined: Joined { cluster: &answered.cluster, member: answered.member },
            voter: answered.voter,
            voters: answered.voters,
        },
        |out| {
            writeln!(out, "joined cluster {} as member {}", answered.cluster, answered.member)?;
            match answered.voter {
                true => writeln!(out, "it votes: the cluster has {}", many(answered.voters.into(), "voter")),
                false => writeln!(
                    out,
                    "it is a learner: it stores and forwards, but does not count for a majority ({}; see `palisade cluster members`)",
                    many(answered.voters.into(), "voter")
                ),
            }
        },
    )
}

#[derive(Serialize)]
struct JoinedAs<'a> {
    #[serde(flatten)]
    joined: Joined<'a>,
    voter: bool,
    voters: u32,
}

#[derive(Serialize)]
struct Token<'a> {
    token: &'a str,
    expires: String,
    expires_unix_ms: u64,
}

/// After `token`: for people the token alone, so that `$(palisade cluster token)` is one.
///
/// # Errors
/// Standard output cannot be written.
pub fn token(output: Output, answered: &v1::TokenResponse) -> Result<(), Failure> {
    let expires_unix_ms = answered.expires_unix_ms;
    let json = || Token { token: &answered.token, expires: date(expires_unix_ms), expires_unix_ms };
    answer(output, json, |out| writeln!(out, "{}", answered.token))
}

#[derive(Serialize)]
struct Done {
    done: bool,
}

/// After `leave`.
///
/// # Errors
/// Standard output cannot be written.
pub fn left(output: Output) -> Result<(), Failure> {
    answer(
        output,
        || Done { done: true },
        |out| writeln!(out, "left the cluster; this machine forwards nothing until it joins again: the gate stays"),
    )
}

/// After `remove`.
///
/// # Errors
/// Standard output cannot be written.
pub fn removed(output: Output, name: &str, member: u64) -> Result<(), Failure> {
    answer(
        output,
        || Done { done: true },
        |out| writeln!(out, "{name} (member {member}) removed; its id is never used again"),
    )
}

#[derive(Serialize)]
struct Member<'a> {
    id: u64,
    name: &'a str,
    address: &'a str,
    role: &'static str,
    voter: bool,
    /// The same while the voters change.
    suffrage: &'static str,
    leader: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    lag: Option<u64>,
    reachable: bool,
    draining: bool,
    lease_valid: bool,
    removed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    cannot_read: Option<&'a str>,
    joining: bool,
    zones: &'a [String],
    /// `None`: it has not started since it joined.
    capabilities: Option<Capabilities<'a>>,
}

impl<'a> Member<'a> {
    fn new(m: &'a v1::Member) -> Member<'a> {
        let (id, name, address) = (m.id, m.name.as_str(), m.address.as_str());
        Member {
            id,
            name,
            address,
            role: role(m.role()),
            voter: m.voter,
            suffrage: suffrage(m),
            leader: m.leader,
            lag: m.lag,
            reachable: m.reachable,
            draining: m.draining,
            lease_valid: m.lease_valid,
            removed: m.removed,
            cannot_read: m.cannot_read.as_deref(),
            joining: m.joining,
            zones: &m.zones,
            capabilities: m.capabilities.as_ref().map(Into::into),
        }
    }
}

fn role(role: v1::Role) -> &'static str {
    match role {
        v1::Role::Firewall => "firewall",
        v1::Role::Witness => "witness",
        v1::Role::Unspecified => "unknown",
    }
}

fn suffrage(m: &v1::Member) -> &'static str {
    match m.suffrage() {
        v1::Suffrage::Learner => "learner",
        v1::Suffrage::Voter => "voter",
        v1::Suffrage::BecomingVoter => "becoming voter",
        v1::Suffrage::BecomingLearner => "becoming learner",
        v1::Suffrage::Unspecified => "unknown",
    }
}

fn raft_role(role: v1::RaftRole) -> &'static str {
    match role {
        v1::RaftRole::Leader => "leader",
        v1::RaftRole::Follower => "follower",
        v1::RaftRole::Candidate => "candidate",
        v1::RaftRole::Learner => "learner",
        v1::RaftRole::Stopped => "stopped",
        v1::RaftRole::Unspecified => "unknown",
    }
}

fn lease(as_of: &v1::AsOf) -> &'static str {
    match as_of.lease() {
        v1::LeaseState::Valid => "valid",
        v1::LeaseState::Grace => "grace",
        v1::LeaseState::Expired => "expired",
        v1::LeaseState::Unspecified => "unknown",
    }
}

fn table(members: &[v1::Member], me: u64) -> Table {
    let mut table = Table::new(&["ID", "NAME", "ADDRESS", "ROLE", "RAFT", "LAG", "ZONES", "PROGRAM", "LEVELS", ""]);
    for m in members {
        let raft = if m.leader { "leader" } else { suffrage(m) };
        let lag = m.lag.map_or("-".to_owned(), |l| l.to_string());
        let notes = [
            (m.id == me, "this"),
            (m.id != me && !m.reachable, "not reachable"),
            (m.cannot_read.is_some(), "cannot read the log"),
            (m.joining, "joining"),
            (m.removed, "removed, and counted until the voters have changed"),
            (m.draining, "draining"),
            (m.id != me && m.reachable && !m.lease_valid && !m.joining, "no valid lease"),
        ];
        let notes: Vec<&str> = notes.into_iter().filter_map(|(is, note)| is.then_some(note)).collect();
        let [program, levels] = level::cells(m);
        table.row([
            m.id.to_string(),
            m.name.clone(),
            m.address.clone(),
            role(m.role()).into(),
            raft.into(),
            lag,
            if m.zones.is_empty() { "-".to_owned() } else { m.zones.join(",") },
            program,
            levels,
            notes.join(", "),
        ]);
    }
    table
}

#[derive(Serialize)]
struct Updated<'a> {
    updated: bool,
    member: u64,
    name: &'a str,
    address: &'a str,
}

/// A member that has another name or another address.
///
/// # Errors
/// Standard output cannot be written.
pub fn updated(output: Output, answer: &v1::UpdateResponse) -> Result<(), Failure> {
    let v1::UpdateResponse { member, name, address } = answer;
    super::answer(
        output,
        || Updated { updated: true, member: *member, name, address },
        |out| writeln!(out, "member {member} is {name} at {address} now"),
    )
}

/// The list of members.
///
/// # Errors
/// Standard output cannot be written.
pub fn members(output: Output, membership: &v1::Membership) -> Result<(), Failure> {
    let json = || membership.members.iter().map(Member::new).collect::<Vec<_>>();
    answer(output, json, |out| {
        table(&membership.members, membership.id).write(out)?;
        let quorum = membership.quorum.unwrap_or_default();
        if !quorum.held {
            writeln!(out, "\n{}", no_quorum(&quorum))?;
        } else if quorum.changing {
            writeln!(
                out,
                "\nthe voters change: until that is done, a majority of the old and one of the new ones is needed"
            )?;
        }
        Ok(())
    })
}

/// The state of a cluster without quorum, as the daemon words it.
fn no_quorum(quorum: &v1::Quorum) -> String {
    let size = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    palisade_node::replication::explain_quorum(&palisade_node::replication::Quorum {
        held: quorum.held,
        voters: size(quorum.voters),
        answering: size(quorum.answering),
        changing: quorum.changing,
    })
}

#[derive(Serialize)]
struct Status<'a> {
    name: &'a str,
    version: &'a str,
    role: &'static str,
    ready: bool,
    readiness: &'static str,
    reasons: &'a [String],
    /// Why no member runs: `no_cluster`, `starting`, `removed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    outside: Option<&'static str>,
    /// The cluster that removed this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    removed_from: Option<&'a str>,
    /// The leader's name, if one is known that a majority follows.
    leader: Option<&'a str>,
    cluster: Option<Cluster<'a>>,
    datapath: Option<Datapath<'a>>,
    /// Why and how far traffic is turned away.
    #[serde(skip_serializing_if = "Option::is_none")]
    draining: Option<Draining>,
}

#[derive(Serialize)]
struct Cluster<'a> {
    id: &'a str,
    member: u64,
    lease: &'static str,
    raft_role: &'static str,
    term: u64,
    quorum: Quorum,
    leader: Option<u64>,
    last_log: u64,
    applied: u64,
    /// The level in force.
    level: u32,
    /// The highest level that every member knows.
    possible_level: u32,
    policy: u64,
    sessions: u64,
    half_open: u64,
    /// On the leader: the newest entry at which all members' states were found equal.
    audited_index: Option<u64>,
    /// This member's state was found wrong, and is being repaired.
    suspect: bool,
    members: Vec<Member<'a>>,
}

#[derive(Serialize)]
struct Quorum {
    held: bool,
    voters: u32,
    answering: u32,
    changing: bool,
}

impl From<v1::Quorum> for Quorum {
    fn from(q: v1::Quorum) -> Quorum {
        Quorum { held: q.held, voters: q.voters, answering: q.answering, changing: q.changing }
    }
}

#[derive(Serialize)]
struct Datapath<'a> {
    mode: &'a str,
    gate: &'a str,
    workers: u32,
    interfaces: Vec<Interface<'a>>,
    warnings: &'a [String],
}

#[derive(Serialize)]
struct Interface<'a> {
    name: &'a str,
    zone: &'a str,
    zone_known: bool,
    up: bool,
}

impl<'a> Status<'a> {
    fn new(s: &'a v1::StatusResponse) -> Status<'a> {
        let health = s.health.as_ref();
        Status {
            name: &s.name,
            version: &s.version,
            role: role(s.role()),
            ready: health.is_some_and(|h| h.ready),
            readiness: readiness(health.map_or(v1::Readiness::Unspecified, v1::Health::readiness)),
            reasons: health.map_or(&[], |h| &h.reasons),
            outside: match s.outside() {
                v1::Outside::NoCluster => Some("no_cluster"),
                v1::Outside::Starting => Some("starting"),
                v1::Outside::Removed => Some("removed"),
                v1::Outside::Unspecified => None,
            },
            removed_from: (!s.removed_from.is_empty()).then_some(s.removed_from.as_str()),
            leader: s
                .membership
                .as_ref()
                .and_then(|m| m.members.iter().find(|o| o.id == m.leader))
                .map(|m| m.name.as_str()),
            cluster: s.membership.as_ref().map(|m| {
                let as_of = m.as_of.unwrap_or_default();
                Cluster {
                    id: &m.cluster,
                    member: m.id,
                    lease: lease(&as_of),
                    raft_role: raft_role(m.raft_role()),
                    term: m.term,
                    quorum: m.quorum.unwrap_or_default().into(),
                    leader: (m.leader != 0).then_some(m.leader),
                    last_log: m.last_log,
                    applied: as_of.applied,
                    level: m.level,
                    possible_level: m.possible_level,
                    policy: m.generation,
                    sessions: m.sessions,
                    half_open: m.half_open,
                    audited_index: (m.audited_index != 0).then_some(m.audited_index),
                    suspect: m.suspect,
                    members: m.members.iter().map(Member::new).collect(),
                }
            }),
            datapath: s.datapath.as_ref().map(|d| Datapath {
                mode: &d.mode,
                gate: &d.gate,
                workers: d.workers,
                interfaces: d
                    .interfaces
                    .iter()
                    .map(|i| Interface { name: &i.name, zone: &i.zone, zone_known: i.zone_known, up: i.up })
                    .collect(),
                warnings: &d.warnings,
            }),
            draining: s.draining.as_ref().map(Draining::from),
        }
    }
}

/// How the member is, and how it sees the cluster.
///
/// # Errors
/// Standard output cannot be written.
pub fn status(output: Output, answered: &v1::StatusResponse) -> Result<(), Failure> {
    answer(output, || Status::new(answered), |out| status_text(out, answered))
}

fn status_text(out: &mut dyn Write, answered: &v1::StatusResponse) -> io::Result<()> {
    let s = Status::new(answered);
    writeln!(out, "member    {} ({}, version {})", s.name, s.role, s.version)?;
    let state = answered.health.as_ref().map_or("not ready", health::state);
    let reasons = if s.reasons.is_empty() { String::new() } else { format!(": {}", s.reasons.join("; ")) };
    writeln!(out, "health    {state}{reasons}")?;
    if let Some(d) = &s.draining {
        writeln!(out, "draining  {}", d.line())?;
    }
    match &s.cluster {
        None => match (answered.outside(), s.removed_from) {
            (v1::Outside::Starting, _) => writeln!(out, "cluster   this member is starting: it reads its log")?,
            (_, Some(cluster)) => writeln!(
                out,
                "cluster   REMOVED from {cluster}, where it was member {}; to come back as a new one: `palisade cluster join TOKEN`",
                answered.removed_member
            )?,
            _ => writeln!(out, "cluster   none: `palisade cluster init` or `palisade cluster join TOKEN`")?,
        },
        Some(c) => {
            let quorum = answered.membership.as_ref().and_then(|m| m.quorum).unwrap_or_default();
            let leader = c.leader.map_or_else(
                || no_quorum(&quorum),
                |l| match c.members.iter().find(|m| m.id == l) {
                    Some(m) => format!("leader {}", m.name),
                    None => format!("leader {l}"),
                },
            );
            writeln!(out, "cluster   {} (member {}, lease {})", c.id, c.member, c.lease)?;
            writeln!(
                out,
                "raft      {}, term {}, {leader}, log {}, applied {}",
                c.raft_role, c.term, c.last_log, c.applied
            )?;
            let note =
                answered.membership.as_ref().and_then(level::note).map_or_else(String::new, |n| format!("; {n}"));
            writeln!(out, "level     {}{note}", c.level)?;
            writeln!(out, "policy    generation {}", c.policy)?;
            writeln!(out, "sessions  {} ({} half-open)", c.sessions, c.half_open)?;
            if c.suspect {
                writeln!(out, "audit     THE STATE OF THIS MEMBER IS WRONG: it is being repaired from the leader's")?;
            } else if let Some(index) = c.audited_index {
                writeln!(out, "audit     the states of all members were equal at entry {index}")?;
            }
        }
    }
    if let Some(d) = &s.datapath {
        writeln!(out, "datapath  {}, {} workers, gate: {}", d.mode, d.workers, d.gate)?;
        for i in &d.interfaces {
            let down = if i.up { "" } else { ", DOWN" };
            let note = if i.zone_known { "" } else { " (no policy names this zone: only rules with `any` match it)" };
            writeln!(out, "          {} in zone {}{down}{note}", i.name, i.zone)?;
        }
        for warning in d.warnings {
            writeln!(out, "warning   {warning}")?;
        }
    }
    if let Some(m) = &answered.membership {
        writeln!(out)?;
        table(&m.members, m.id).write(out)?;
    }
    Ok(())
}
