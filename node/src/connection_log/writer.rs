//! The thread that makes records of what it is told, and passes them to the outputs and followers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use palisade_engine::{
    ConnectionDecision, EndCause, EndedSession, Engine, Generation, LoggedDecision, RuleId, SessionId, Time, Tuple,
    ZoneId, ZonePair,
};

use super::output::OutputQueue;
use super::record::{Connection, ConnectionEvent, End, Record};
use super::rules::LoggedRules;
use super::{Input, Shared};
use crate::clock;

/// How long the end of a connection waits for what the other members report of its traffic, which they do ten times a second.
const TRAFFIC_DELAY: Duration = Duration::from_millis(500);
/// Maximum number of ends that wait. Above it the oldest is written at once.
const MAX_WAITING_ENDS: usize = 8192;
/// Interval at which the writer looks for ends that are due, and for events that were left out.
const TURN_INTERVAL: Duration = Duration::from_millis(250);
/// Interval at which it says how many events were left out.
const LEFT_OUT_INTERVAL: Duration = Duration::from_secs(1);

/// The writer.
pub(super) struct Writer {
    member: Arc<str>,
    inputs: Receiver<Input>,
    shared: Arc<Shared>,
    engine: Arc<Engine>,
    rules: LoggedRules,
    outputs: Vec<OutputQueue>,
    /// Ends, with the time at which they are written.
    ends: VecDeque<(Time, EndedSession, u64)>,
    left_out_at: Time,
}

/// A connection that a record is about.
struct Subject {
    id: Option<SessionId>,
    tuple: Tuple,
    zones: ZonePair,
    rule: (Generation, RuleId),
    unix_ms: u64,
}

impl Writer {
    pub(super) fn new(
        member: &str,
        inputs: Receiver<Input>,
        shared: Arc<Shared>,
        engine: Arc<Engine>,
        outputs: Vec<OutputQueue>,
    ) -> Writer {
        let rules = LoggedRules::new(engine.clone());
        let (ends, left_out_at) = (VecDeque::new(), clock::now());
        Writer { member: member.into(), inputs, shared, engine, rules, outputs, ends, left_out_at }
    }

    /// Writes until the log is stopped.
    pub(super) fn run(mut self) {
        loop {
            match self.inputs.recv_timeout(TURN_INTERVAL) {
                Ok(input) => self.take(input),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            // A stopped log is written to its end, but new events do not keep it from stopping.
            if self.shared.stop.load(Ordering::Relaxed) {
                break;
            }
            self.turn(clock::now());
        }
        for _ in 0..super::QUEUE {
            let Ok(input) = self.inputs.try_recv() else { break };
            self.take(input);
        }
        while let Some((_, session, unix_ms)) = self.ends.pop_front() {
            self.ended(&session, unix_ms);
        }
    }

    /// Does what is due.
    fn turn(&mut self, now: Time) {
        while let Some((_, session, unix_ms)) = self.ends.pop_front_if(|(due, ..)| *due <= now) {
            self.ended(&session, unix_ms);
        }
        if now.since(self.left_out_at) < LEFT_OUT_INTERVAL {
            return;
        }
        self.left_out_at = now;
        if let Some(any) = self.rules.any_logged() {
            self.shared.wanted.store(any, Ordering::Relaxed);
        }
        let mut left_out = Vec::new();
        self.shared.limits.take_left_out(&mut |rule, count| left_out.push((rule, count)));
        for (rule, left_out) in left_out {
            let generation = self.engine.generation();
            let name = self.rules.name(generation, rule);
            self.publish(Record {
                unix_ms: clock::unix_ms(),
                member: self.member.clone(),
                event: ConnectionEvent::Limited,
                rule: name.unwrap_or_else(|| "".into()),
                generation: generation.0,
                connection: None,
                left_out,
            });
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Decided { at, decision } => self.decided(at, &decision),
            Input::Opened { id, tuple, zones, rule, unix_ms } => {
                let subject = Subject { id: Some(id), tuple, zones, rule, unix_ms };
                self.session_event(ConnectionEvent::Opened, &subject, None);
            }
            Input::Ended { at, session, unix_ms } => {
                if self.ends.len() >= MAX_WAITING_ENDS
                    && let Some((_, oldest, unix_ms)) = self.ends.pop_front()
                {
                    self.ended(&oldest, unix_ms);
                }
                self.ends.push_back((at + TRAFFIC_DELAY, session, unix_ms));
            }
        }
    }

    fn decided(&mut self, at: Time, decision: &LoggedDecision) {
        let LoggedDecision { tuple, zones, generation, rule, decision } = *decision;
        let age = u64::try_from(clock::now().since(at).as_millis()).unwrap_or(u64::MAX);
        let unix_ms = clock::unix_ms().saturating_sub(age);
        let (event, id, verdict, reason, end) = match decision {
            ConnectionDecision::Opened(id) => (ConnectionEvent::Opened, Some(id), "accept", "", None),
            ConnectionDecision::Unestablished(id) => {
                let end = End { cause: EndCause::Idle, duration_ms: None, traffic: None };
                (ConnectionEvent::Closed, Some(id), "accept", "", Some(end))
            }
            ConnectionDecision::Dropped(reason) => (ConnectionEvent::Denied, None, "drop", reason.label(), None),
            ConnectionDecision::Rejected(reason) => (ConnectionEvent::Denied, None, "reject", reason.label(), None),
        };
        // Of a policy that is forgotten already, or whose rule says no `log`: the packet path does not know for old ones.
        let Some(name) = self.rules.name(generation, rule) else { return };
        let subject = Subject { id, tuple, zones, rule: (generation, rule), unix_ms };
        let connection = self.connection(&subject, verdict, reason, end);
        self.record(event, &subject, name, connection);
    }

    /// Writes the end of a session, with its traffic as it is known by now.
    fn ended(&mut self, session: &EndedSession, unix_ms: u64) {
        let EndedSession { id, original, zones, rule, duration, cause, traffic } = *session;
        let in_table = || self.engine.session(clock::now(), id).map(|info| info.traffic);
        let traffic = traffic.or_else(in_table);
        let duration_ms = Some(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
        let subject = Subject { id: Some(id), tuple: original, zones, rule, unix_ms };
        self.session_event(ConnectionEvent::Closed, &subject, Some(End { cause, duration_ms, traffic }));
    }

    /// Writes what happened to a session, if its rule is logged.
    fn session_event(&mut self, event: ConnectionEvent, subject: &Subject, end: Option<End>) {
        let (generation, rule) = subject.rule;
        let Some(name) = self.rules.name(generation, rule) else { return };
        if !self.shared.limits.take(rule, clock::now()) {
            return self.shared.metrics.limited.inc();
        }
        let connection = self.connection(subject, "accept", "", end);
        self.record(event, subject, name, connection);
    }

    fn connection(
        &self,
        subject: &Subject,
        verdict: &'static str,
        reason: &'static str,
        end: Option<End>,
    ) -> Connection {
        let cluster = self.engine.cluster_state();
        let zone = |id: ZoneId| cluster.zones.get(usize::from(id.0)).map_or("", String::as_str).into();
        Connection {
            session: subject.id,
            ingress: zone(subject.zones.ingress),
            egress: zone(subject.zones.egress),
            tuple: subject.tuple,
            verdict,
            reason,
            end,
        }
    }

    fn record(&mut self, event: ConnectionEvent, subject: &Subject, rule: Arc<str>, connection: Connection) {
        let left_out = self.shared.limits.left_out(subject.rule.1);
        self.publish(Record {
            unix_ms: subject.unix_ms,
            member: self.member.clone(),
            event,
            rule,
            generation: subject.rule.0.0,
            connection: Some(connection),
            left_out,
        });
    }

    fn publish(&self, record: Record) {
        let events = &self.shared.metrics.events;
        match record.event {
            ConnectionEvent::Opened => events.opened.inc(),
            ConnectionEvent::Denied => events.denied.inc(),
            ConnectionEvent::Closed => events.closed.inc(),
            ConnectionEvent::Limited => {}
        }
        let record = Arc::new(record);
        for output in &self.outputs {
            output.send(&record, &self.shared.metrics);
        }
        // Fails only if nobody follows.
        let _ = self.shared.followers.send(record);
    }
}
