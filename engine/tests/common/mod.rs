//! The common parts of tests, benches and fuzz targets: the engine of one member, with commands applied as from the log.
#![allow(dead_code, unreachable_pub, clippy::panic, reason = "each of them uses some of it, and fails by panicking")]

use std::sync::Arc;

use palisade_engine::replica::{Applied, Assignment, Batch, Command, Outcome, PolicyChange, Replica, SettingsChange};
use palisade_engine::{
    Config, Engine, Establish, Event, Generation, HandshakeState, MemberId, RuleId, SessionId, SynParams, Time, Tuple,
    ZoneId,
};

/// One member with its replica.
pub struct Member {
    pub engine: Arc<Engine>,
    pub replica: Replica,
    pub events: Vec<Event>,
    pub now: Time,
    next: u64,
}

impl Member {
    /// A member of a new cluster, without a policy.
    pub fn new(config: Config) -> Member {
        let engine = Engine::new(config);
        let replica = Replica::new(engine.clone());
        Member { engine, replica, events: Vec::with_capacity(1024), now: Time(1), next: 0 }
    }

    /// A member with an active policy.
    pub fn with_policy(config: Config, text: String) -> Member {
        let mut member = Member::new(config);
        assert_eq!(member.policy(0, text), Outcome::Policy(Generation(1)));
        member
    }

    /// Puts the policy after generation `base` in force, in its two steps.
    pub fn policy(&mut self, base: u64, text: String) -> Outcome {
        let change = PolicyChange::new(Generation(base), text, String::new());
        let enact = Command::Enact(Box::new(change.enactment()));
        assert_eq!(self.apply(vec![Command::Policy(Box::new(change))]), [Outcome::Accepted]);
        self.engine.compile_policies();
        self.apply(vec![enact]).remove(0)
    }

    /// A member with these settings and an active policy.
    pub fn with_settings(settings: &[&str], text: String) -> Member {
        let mut member = Member::new(Config::new(MemberId(1), 1, 5));
        member.accept(vec![settings_change(0, settings)]);
        assert_eq!(member.policy(0, text), Outcome::Policy(Generation(1)));
        member
    }

    /// Applies commands, as if they came from the log.
    pub fn apply(&mut self, commands: Vec<Command>) -> Vec<Outcome> {
        let first = self.next;
        self.next += commands.len() as u64;
        let batch =
            Batch { proposer: MemberId(1), first_serial: first, lowest_outstanding: first, unix_ms: 0, commands };
        Applied::outcomes(&self.replica.apply(self.now, &batch, &mut ()))
    }

    /// Applies commands that must all be accepted.
    pub fn accept(&mut self, commands: Vec<Command>) {
        let outcomes = self.apply(commands);
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Accepted), "{outcomes:?}");
    }
}

/// The command that changes settings.
pub fn settings_change(base: u64, settings: &[&str]) -> Command {
    let values = Assignment::parse_all(settings.iter().copied()).unwrap_or_else(|e| panic!("{e}"));
    Command::Settings(Box::new(SettingsChange::new(base, &values, Vec::new(), String::new())))
}

/// The command that establishes session `n` from zone 1 to zone 2, under the first policy.
pub fn established(n: u32, original: Tuple) -> Command {
    let end = |isn| SynParams { isn, window: 64240, wscale: Some(7), sack: true };
    Command::Establish(Box::new(Establish {
        id: SessionId { member: MemberId(1), counter: u64::from(n) },
        original,
        reply: original.inverse(),
        ingress: ZoneId(1),
        egress: ZoneId(2),
        generation: Generation(1),
        rule: RuleId(1),
        supersedes: None,
        #[cfg(feature = "next-level")]
        tag: 0,
        protocol: HandshakeState::Tcp { client: end(99), server: Some(end(199)) },
    }))
}
