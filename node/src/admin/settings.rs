//! The settings' part of the administration.

use palisade_engine::replica::{
    Assignment, Command, InvalidReason, Outcome, SettingKey, SettingsChange, SettingsRefusal, SettingsRevision,
};
use palisade_engine::{ClusterState, MemberId};
use palisade_proto::admin::v1;
use tonic::{Code, Status};

use super::{COMMAND, Service, refuse, require_lease, unconfirmed, unexpected};

/// Reads `KEY=VALUE` texts.
pub(super) fn parse(texts: &[String]) -> Result<Vec<Assignment>, Status> {
    Assignment::parse_all(texts.iter().map(String::as_str)).map_err(|error| {
        let help = "`palisade cluster settings show` lists the settings with their values";
        refuse(Code::InvalidArgument, error.to_string(), help)
    })
}

/// A request as the audit log has it.
pub(super) fn describe(r: &v1::SettingsSetRequest) -> String {
    let mut what = format!("cluster settings set {}", r.settings.join(" "));
    r.without.iter().for_each(|name| what.push_str(&format!(" --without {name}")));
    what.escape_debug().to_string()
}

fn name(cluster: &ClusterState, id: MemberId) -> String {
    cluster.members.get(&id).map_or_else(|| id.to_string(), |info| info.name.clone())
}

fn revision(cluster: &ClusterState, r: &SettingsRevision) -> v1::SettingsRevision {
    let text = |(tag, value): &(u16, u64)| match SettingKey::from_tag(*tag) {
        Some(key) => Assignment { key, value: *value }.to_string(),
        None => format!("{tag}={value}"),
    };
    v1::SettingsRevision {
        revision: r.revision,
        author: r.author.clone(),
        unix_ms: r.unix_ms,
        changes: r.values.iter().map(text).collect(),
        without: r.without.iter().map(|id| name(cluster, *id)).collect(),
    }
}

/// Why the log has refused a change, with the names of members instead of their ids.
fn refused(cluster: &ClusterState, refusal: SettingsRefusal) -> Status {
    match refusal {
        SettingsRefusal::Base(_) => {
            let help = "see what changed with `palisade cluster settings show`, then try again";
            refuse(Code::Aborted, refusal.to_string(), help)
        }
        SettingsRefusal::Unaffordable { member, affords, needed } => {
            let name = name(cluster, member);
            let bytes = crate::affordable::bytes_for(needed);
            let help = format!(
                "set `limits.memory` in the node.toml of {name} to {bytes} or more and restart it; or override it: `--without {name}`: it stops then, and does not start until it affords them"
            );
            let message = format!("{name} affords {affords} sessions, and {needed} are needed");
            refuse(Code::FailedPrecondition, message, &help)
        }
        SettingsRefusal::Unregistered(member) => {
            let name = name(cluster, member);
            let help =
                format!("start it; or override it: `--without {name}`: if it does not afford them, it does not start");
            refuse(Code::FailedPrecondition, format!("{name} has not said yet how many sessions it affords"), &help)
        }
        SettingsRefusal::Occupied { .. } => {
            let help = "wait until there are fewer, or end some: `palisade session kill`";
            refuse(Code::FailedPrecondition, refusal.to_string(), help)
        }
        SettingsRefusal::SourceShare { .. } => {
            refuse(Code::InvalidArgument, refusal.to_string(), "set both in one command")
        }
        SettingsRefusal::Size | SettingsRefusal::Key(_) | SettingsRefusal::Value(..) => {
            Status::invalid_argument(refusal.to_string())
        }
    }
}

impl Service {
    pub(super) async fn show_settings(&self, r: v1::SettingsShowRequest) -> Result<v1::SettingsShowResponse, Status> {
        let member = self.member_at(r.barrier, r.wait_ms).await?;
        let cluster = member.engine.cluster_state();
        let setting = |Assignment { key, value }: Assignment| v1::Setting {
            key: key.name().to_owned(),
            value: key.text(value),
            default: key.text(key.default()),
            number: value,
            unit: key.unit().to_owned(),
        };
        let affords = |(id, info): (&MemberId, &palisade_engine::MemberInfo)| v1::MemberAffords {
            name: info.name.clone(),
            sessions: cluster.capabilities.get(id).map(|registered| registered.max_sessions),
        };
        let settings = &cluster.settings;
        Ok(v1::SettingsShowResponse {
            revision: settings.revision,
            settings: settings.values.iter().map(setting).collect(),
            history: settings.history.iter().map(|r| revision(&cluster, r)).collect(),
            members: cluster.members.iter().map(affords).collect(),
        })
    }

    pub(super) async fn set_settings(
        &self,
        r: v1::SettingsSetRequest,
        user: &str,
    ) -> Result<v1::SettingsSetResponse, Status> {
        let assignments = parse(&r.settings)?;
        let member = self.member()?;
        require_lease(&member, r.wait_ms).await?;
        let cluster = member.engine.cluster_state();
        let mut without = Vec::new();
        for name in &r.without {
            let no_member = || {
                refuse(Code::NotFound, format!("no member is named `{name}`"), "`palisade cluster members` lists them")
            };
            without.push(cluster.member_named(name).ok_or_else(no_member)?);
        }
        let settings = &cluster.settings;
        let base = r.base.unwrap_or(settings.revision);
        let same = |a: &Assignment| settings.values.get(a.key) == a.value;
        if base == settings.revision && !assignments.is_empty() && assignments.iter().all(same) {
            return Ok(v1::SettingsSetResponse { revision: base, unchanged: true, stopping: Vec::new() });
        }
        let change = SettingsChange::new(base, &assignments, without.clone(), user.to_owned());
        let command = Command::Settings(Box::new(change));
        match member.replication.command(command, COMMAND).await.map_err(|e| unconfirmed(&e))? {
            Outcome::Accepted => {}
            Outcome::Invalid(InvalidReason::Settings(refusal)) => return Err(refused(&cluster, refusal)),
            other => return Err(unexpected(other)),
        }
        let now = member.engine.cluster_state();
        let needed = now.settings.values.affordable_sessions();
        let short =
            |id: &&MemberId| now.capabilities.get(*id).is_none_or(|registered| registered.max_sessions < needed);
        let stopping = without.iter().filter(short).map(|id| name(&now, *id)).collect();
        Ok(v1::SettingsSetResponse { revision: base + 1, unchanged: false, stopping })
    }
}
