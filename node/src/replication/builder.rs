//! Wires a member's subsystems: one function each.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use palisade_engine::replica::Replica;
use palisade_engine::{Engine, MemberId, Wake};
use palisade_engine::{Hint, Proposal};
use palisade_raft_store::{Auditor, LevelInForce, Planner, Snapshots, StoreMetrics, StoreOwner};
use tokio::sync::{Notify, broadcast, mpsc, watch};

use crate::affordable::UnaffordableError;
use crate::audit::comparison::Comparer;
use crate::audit::handler::AuditHandler;
use crate::audit::repair::Repairer;
use crate::audit::scrub::Scrubber;
use crate::audit::{self, Divergence};
use crate::grace::PeerGrace;
use crate::lease::Lease;
use crate::listen::Port;
use crate::membership::admission::Admission;
use crate::membership::identity::{DataDir, Identity, reserve_numbers};
use crate::membership::level::LevelRaiser;
use crate::membership::options::Options;
use crate::membership::presence::{PresencePoller, Roster};
use crate::membership::reconcile::Reconciler;
use crate::membership::register::Membership;
use crate::membership::rollback_check;
use crate::peer::addressing::AddressCheck;
use crate::peer::connections::{Members, Peers};
use crate::peer::transport;
use crate::policy::compiler::PolicyCompiler;
use crate::policy::enactor::Enactor;
use crate::policy::put::Put;
use crate::policy::reports::Reports;
use crate::raft::barrier::ReadBarrier;
use crate::raft::config::PalisadeRaft;
use crate::raft::contact::LastContact;
use crate::raft::election::{Election, LeaderContact};
use crate::raft::leadership::{self, Leadership};
use crate::raft::lease::LeaseRenewer;
use crate::raft::log_keeper::{CutBelow, LogKeeper};
use crate::raft::network::Network;
use crate::raft::priority::{ElectionPriority, PriorityInForce};
use crate::raft::quorum::QuorumContact;
use crate::raft::read_index::ReadIndex;
use crate::raft::receivers::SnapshotReceivers;
use crate::raft::requests::{AdminRequest, REQUEST_QUEUE};
use crate::raft::start::{RaftSetup, Started, start_raft};
use crate::raft::transfer::LeadershipTransfer;
use crate::raft::unreadable::{Refusals, UnreadableAlarm};
use crate::replication::Replication;
use crate::replication::error::OpenError;
use crate::replication::service::{MemberService, ServiceContext, serve};
use crate::replication::tasks::Tasks;
use crate::replication_metrics::ReplicationMetrics;
use crate::sync::event_sink::{EventSink, tick};
use crate::sync::events::{Events, SessionEvent, WATCHER_QUEUE};
use crate::sync::hints::{HintPublisher, Reachability};
use crate::sync::idle::IdleExpiry;
use crate::sync::liveness::PeerLiveness;
use crate::sync::progress::ProgressPublisher;
use crate::sync::proposals::{APPLIED_QUEUE, BatchApplied, PendingBatches, Proposer};
use crate::sync::streams;
use crate::sync::sweep::PolicySweep;
use crate::wake::SharedWake;

/// What a member takes from its workers, and gives them.
pub(crate) struct WorkerSide<W> {
    pub(crate) hints: mpsc::Receiver<Hint>,
    pub(crate) proposals: mpsc::Receiver<Proposal>,
    pub(crate) wake: W,
    pub(crate) lease: Arc<Lease>,
}

/// Starts the member that the data folder belongs to.
pub(crate) async fn open<W>(options: Options, workers: WorkerSide<W>) -> Result<Replication, OpenError>
where
    W: Wake + Clone + Send + Sync + 'static,
{
    let data_dir = Arc::new(DataDir::lock(&options.data_dir)?);
    let mut identity = data_dir.identity()?.ok_or_else(|| OpenError::no_member(&data_dir))?;
    data_dir.start(&mut identity)?;
    let metrics = Arc::<ReplicationMetrics>::default();
    let port = Port {
        table: "cluster",
        address: options.listen,
        interfaces: options.interfaces.clone(),
        // No program of this machine but the member itself speaks to other members, and it does not call itself.
        own_programs: false,
        second_lock: options.second_lock.clone(),
    };
    let acceptor = transport::bind(port, metrics.clone())?;
    let applied = AppliedBatches::new();
    let wake = Box::new(workers.wake.clone());
    let core = Core::start(&options, &data_dir, &identity, &applied, workers.lease.clone(), wake, metrics).await?;

    let mut tasks = Tasks::new();
    let (requests, request_queue) = mpsc::channel(REQUEST_QUEUE);
    let (sink, hint_queue, proposal_queue) = EventSink::new(options.connection_log.clone(), core.metrics.clone());
    let raft = RaftSide::start(&core, &options, &requests, &mut tasks);
    let peer_liveness = PeerLiveness::default();
    let sources =
        Sources { hints: workers.hints, proposals: workers.proposals, hint_queue, proposal_queue, request_queue };
    let events = applied.events.clone();
    let compiler = PolicyCompiler {
        engine: core.engine.clone(),
        changed: applied.policy_changed.clone(),
        metrics: core.metrics.clone(),
    };
    tasks.spawn("policy compiler", compiler.run());
    let reachability = start_sync(&core, &options, &raft, sources, applied, data_dir.clone(), &mut tasks);
    let grace = PeerGrace::new(core.engine.clone());
    let (roster, removed) = start_presence(&core, grace.clone(), &raft, &mut tasks);
    start_liveness(&core, &peer_liveness, grace.clone(), SharedWake::copy(&workers.wake), &mut tasks);
    start_leader_tasks(&core, grace.clone(), &raft, &requests, &mut tasks);
    tasks.spawn("tick", tick(core.engine.clone(), sink.clone()));
    let divergences = start_audit(&core, &raft, &mut tasks);

    #[cfg(test)]
    let foreign = crate::raft::unreadable::ForeignEntries::default();
    let service = MemberService::new(ServiceContext {
        raft: core.raft.clone(),
        read_index: raft.read_index.clone(),
        engine: core.engine.clone(),
        snapshots: core.snapshots.clone(),
        wake: SharedWake::copy(&workers.wake),
        metrics: core.metrics.clone(),
        leadership: raft.leadership.clone(),
        sink,
        admission: core.admission(&raft, &requests),
        contact: raft.contact.clone(),
        policy_reports: raft.policy_reports.clone(),
        peer_liveness,
        leader_contact: raft.leader_contact.clone(),
        audit: core.audit_handler(divergences),
        lease: core.lease.clone(),
        priority: raft.priority.subscribe(),
        connection_log: options.connection_log.clone(),
        alarm: core.alarm.clone(),
        #[cfg(test)]
        foreign: foreign.clone(),
        stop: tasks.stopped(),
    });
    let check = AddressCheck { cluster: core.cluster.clone(), me: core.me, metrics: core.metrics.clone() };
    let server = tasks.spawn_server("member port", serve(acceptor, service, check, tasks.stopped()));
    let put = Put {
        me: core.me,
        engine: core.engine.clone(),
        peers: core.peers.clone(),
        leadership: raft.leadership.clone(),
        requests: requests.clone(),
        reports: raft.policy_reports.clone(),
    };
    Ok(Replication {
        put,
        membership: core.membership(identity, data_dir, &raft, &requests),
        raft: core.raft,
        engine: core.engine,
        auditor: core.auditor,
        metrics: core.metrics,
        alarm: core.alarm,
        #[cfg(test)]
        foreign,
        refusals: core.refusals,
        store: core.store,
        lease: core.lease,
        grace,
        requests,
        barrier: raft.barrier,
        events,
        reachability,
        roster,
        removed,
        quorum: raft.quorum,
        transfer: raft.transfer,
        priority: raft.priority,
        server: parking_lot::Mutex::new(Some(server)),
        tasks,
    })
}

/// The queues of the store's reports of applied batches.
struct AppliedBatches {
    reports: mpsc::Sender<BatchApplied>,
    report_queue: mpsc::Receiver<BatchApplied>,
    pending: PendingBatches,
    events: broadcast::Sender<Arc<SessionEvent>>,
    /// Notified when there may be another policy to compile.
    policy_changed: Arc<Notify>,
}

impl AppliedBatches {
    fn new() -> AppliedBatches {
        let (reports, report_queue) = mpsc::channel(APPLIED_QUEUE);
        let (events, _) = broadcast::channel(WATCHER_QUEUE);
        let (pending, policy_changed) = Default::default();
        AppliedBatches { reports, report_queue, pending, events, policy_changed }
    }

    fn observer(
        &self,
        identity: &Identity,
        options: &Options,
        metrics: Arc<ReplicationMetrics>,
        alarm: UnreadableAlarm,
    ) -> Arc<Events> {
        Arc::new(Events {
            me: identity.member,
            start: identity.starts,
            reports: self.reports.clone(),
            pending: self.pending.clone(),
            watchers: self.events.clone(),
            connection_log: options.connection_log.clone(),
            policy_changed: self.policy_changed.clone(),
            metrics,
            alarm,
        })
    }
}

/// What all subsystems share.
struct Core {
    me: MemberId,
    /// The number of this start.
    start: u32,
    cluster: Arc<str>,
    peers: Peers,
    raft: PalisadeRaft,
    engine: Arc<Engine>,
    snapshots: Snapshots,
    auditor: Auditor<Replica>,
    planner: Planner<Replica>,
    cut: CutBelow,
    store: StoreMetrics,
    lease: Arc<Lease>,
    metrics: Arc<ReplicationMetrics>,
    /// At which this member writes.
    level: LevelInForce,
    /// Raised when this member cannot read what it is to store or to apply.
    alarm: UnreadableAlarm,
    /// What other members cannot read.
    refusals: Refusals,
}

impl Core {
    /// Opens the store, replays it and starts Raft on it. The member does not take part in the cluster yet.
    async fn start(
        options: &Options,
        data_dir: &DataDir,
        identity: &Identity,
        applied: &AppliedBatches,
        lease: Arc<Lease>,
        wake: Box<dyn Wake + Send>,
        metrics: Arc<ReplicationMetrics>,
    ) -> Result<Core, OpenError> {
        let me = identity.member;
        let peers = Peers::new(&identity.cluster, me)?;
        let cut = CutBelow::default();
        let (alarm, refusals) = (UnreadableAlarm::default(), Refusals::default());
        let setup = RaftSetup {
            timing: &options.timing,
            disk: options.log.disk.clone(),
            engine: &options.engine,
            store: data_dir.store(identity),
            owner: StoreOwner { cluster: identity.cluster.clone(), member: me },
            start: identity.starts,
            network: Network {
                me,
                peers: peers.clone(),
                response_timeout: options.timing.response_timeout,
                receivers: SnapshotReceivers::default(),
                cut: cut.clone(),
                metrics: metrics.clone(),
                level: LevelInForce::default(),
                refusals: refusals.clone(),
            },
            wake,
            observer: applied.observer(identity, options, metrics.clone(), alarm.clone()),
        };
        let Started { raft, engine, snapshots, auditor, planner, store, level } = start_raft(setup).await?;
        lease.follow(engine.grace());
        // The member port answers no request yet: this member must not ask for votes either.
        raft.runtime_config().elect(false);
        if let Err(error) = UnaffordableError::check(&engine) {
            // Its result says nothing that the error does not.
            drop(raft.shutdown().await);
            return Err(error.into());
        }
        if let Err(error) = rollback_check::check(&raft, &peers).await {
            // Its result says nothing that the error does not.
            drop(raft.shutdown().await);
            return Err(error.into());
        }
        let cluster = identity.cluster.as_str().into();
        Ok(Core {
            me,
            start: identity.starts,
            cluster,
            peers,
            raft,
            engine,
            snapshots,
            auditor,
            planner,
            cut,
            store,
            lease,
            metrics,
            level,
            alarm,
            refusals,
        })
    }

    fn admission(&self, raft: &RaftSide, requests: &mpsc::Sender<AdminRequest>) -> Admission {
        Admission {
            cluster: self.cluster.clone(),
            raft: self.raft.clone(),
            read_index: raft.read_index.clone(),
            engine: self.engine.clone(),
            requests: requests.clone(),
        }
    }

    fn audit_handler(&self, divergences: mpsc::Sender<Divergence>) -> AuditHandler {
        AuditHandler { raft: self.raft.clone(), auditor: self.auditor.clone(), lease: self.lease.clone(), divergences }
    }

    fn membership(
        &self,
        identity: Identity,
        data_dir: Arc<DataDir>,
        raft: &RaftSide,
        requests: &mpsc::Sender<AdminRequest>,
    ) -> Membership {
        Membership {
            identity,
            data_dir,
            raft: self.raft.clone(),
            engine: self.engine.clone(),
            requests: requests.clone(),
            leadership: raft.leadership.clone(),
            peers: self.peers.clone(),
            transfer: raft.transfer.clone(),
        }
    }
}

/// What the tasks of Raft share with the other subsystems.
struct RaftSide {
    leadership: watch::Receiver<Leadership>,
    members: watch::Receiver<Members>,
    read_index: ReadIndex,
    barrier: ReadBarrier,
    contact: LastContact,
    policy_reports: Reports,
    leader_contact: LeaderContact,
    transfer: LeadershipTransfer,
    priority: watch::Sender<ElectionPriority>,
    quorum: QuorumContact,
}

impl RaftSide {
    /// Starts what this program adds to openraft: elections, transfer of leadership, renewal of the lease.
    fn start(core: &Core, options: &Options, requests: &mpsc::Sender<AdminRequest>, tasks: &mut Tasks) -> RaftSide {
        let Core { me, raft, .. } = core;
        let me = *me;
        let (leadership_sender, leadership) = watch::channel(Leadership::default());
        let (members_sender, members) = watch::channel(Members::new());
        let (priority, asked) = watch::channel(ElectionPriority::default());
        let (in_force, priority_in_force) = watch::channel(ElectionPriority::default());
        let own = options.info();
        let in_force = PriorityInForce { me, own, members: members.clone(), asked, in_force };
        let quorum = QuorumContact::default();
        let (contact, leader_contact) = (LastContact::default(), LeaderContact::default());
        let read_index = ReadIndex { me, raft: raft.clone(), peers: core.peers.clone() };
        let barrier = ReadBarrier {
            me,
            raft: raft.clone(),
            engine: core.engine.clone(),
            read_index: read_index.clone(),
            peers: core.peers.clone(),
            leadership: leadership.clone(),
            priority: priority_in_force.clone(),
            quorum: quorum.clone(),
        };
        let renewer = LeaseRenewer {
            me,
            capabilities: options.capabilities(),
            barrier: barrier.clone(),
            leadership: leadership.clone(),
            lease: core.lease.clone(),
            engine: core.engine.clone(),
            requests: requests.clone(),
            metrics: core.metrics.clone(),
        };
        let transfer = LeadershipTransfer {
            me,
            raft: raft.clone(),
            contact: contact.clone(),
            priority: priority_in_force.clone(),
        };
        let election = Election {
            me,
            raft: raft.clone(),
            leader_contact: leader_contact.clone(),
            lease: options.timing.election,
            vote: options.timing.vote(),
            priority: priority_in_force,
        };
        let follow = leadership::follow(
            raft.clone(),
            leadership_sender,
            members_sender,
            core.peers.clone(),
            core.metrics.clone(),
        );
        let keeper = LogKeeper {
            raft: raft.clone(),
            planner: core.planner.clone(),
            limits: options.log.limits,
            cut: core.cut.clone(),
        };
        tasks.spawn("leadership", follow);
        tasks.spawn("log", keeper.run());
        tasks.spawn("election priority", in_force.run());
        tasks.spawn("lease", renewer.run());
        tasks.spawn("election", election.run());
        tasks.spawn("leadership transfer", transfer.clone().run());
        let policy_reports = Reports::default();
        RaftSide {
            leadership,
            members,
            read_index,
            barrier,
            contact,
            policy_reports,
            leader_contact,
            transfer,
            priority,
            quorum,
        }
    }
}

/// Where hints and proposals come from.
struct Sources {
    /// From the workers.
    hints: mpsc::Receiver<Hint>,
    proposals: mpsc::Receiver<Proposal>,
    /// From what no packet causes.
    hint_queue: mpsc::Receiver<Hint>,
    proposal_queue: mpsc::Receiver<Proposal>,
    /// From administrators and tasks.
    request_queue: mpsc::Receiver<AdminRequest>,
}

/// Starts the tasks that keep peers informed of sessions. Returns which peers are reached.
fn start_sync(
    core: &Core,
    options: &Options,
    raft: &RaftSide,
    sources: Sources,
    applied: AppliedBatches,
    data_dir: Arc<DataDir>,
    tasks: &mut Tasks,
) -> Reachability {
    let next_command = Arc::<AtomicU64>::default();
    let reachability = Reachability::default();
    let proposer = Proposer {
        me: core.me,
        start: core.start,
        raft: core.raft.clone(),
        peers: core.peers.clone(),
        leadership: raft.leadership.clone(),
        lease: core.lease.clone(),
        metrics: core.metrics.clone(),
        level: core.level.clone(),
        proposals: sources.proposals,
        follow_up_proposals: sources.proposal_queue,
        requests: sources.request_queue,
        applied: applied.report_queue,
        pending: applied.pending,
        next_number: next_command.clone(),
    };
    let hints = HintPublisher {
        peers: core.peers.clone(),
        engine: core.engine.clone(),
        metrics: core.metrics.clone(),
        reachability: reachability.clone(),
        level: core.level.clone(),
        hints: Some(sources.hints),
        replies: Some(sources.hint_queue),
    };
    let (peers, engine, metrics) = (core.peers.clone(), core.engine.clone(), core.metrics.clone());
    let progress = ProgressPublisher::new(peers, engine, metrics, core.level.clone(), options.progress_rate);
    let engine = core.engine.clone();
    let next_number = move || engine.next_session_number().max(next_command.load(Ordering::Relaxed));
    tasks.spawn("numbers", reserve_numbers(data_dir, core.start, next_number));
    tasks.spawn("proposals", proposer.run());
    tasks.spawn("hints", streams::run(hints, core.me, raft.members.clone()));
    tasks.spawn("progress", streams::run(progress, core.me, raft.members.clone()));
    reachability
}

/// Starts asking the others how they are. Returns who answers, and what becomes true when this member was removed.
fn start_presence(
    core: &Core,
    grace: PeerGrace,
    raft: &RaftSide,
    tasks: &mut Tasks,
) -> (Roster, watch::Receiver<bool>) {
    let roster = Roster::default();
    let (removed, was_removed) = watch::channel(false);
    let poller = PresencePoller {
        me: core.me,
        engine: core.engine.clone(),
        peers: core.peers.clone(),
        members: raft.members.clone(),
        roster: roster.clone(),
        grace,
        removed,
    };
    tasks.spawn("presence", poller.run());
    (roster, was_removed)
}

/// Starts the failure detector.
fn start_liveness(
    core: &Core,
    liveness: &PeerLiveness,
    grace: PeerGrace,
    wake: Box<dyn SharedWake>,
    tasks: &mut Tasks,
) {
    let (engine, metrics) = (core.engine.clone(), core.metrics.clone());
    tasks.spawn("failure detector", liveness.clone().run_failure_detector(core.me, engine, wake, metrics, grace));
}

/// Starts what the leader does besides leading.
fn start_leader_tasks(
    core: &Core,
    grace: PeerGrace,
    raft: &RaftSide,
    requests: &mpsc::Sender<AdminRequest>,
    tasks: &mut Tasks,
) {
    let reconciler =
        Reconciler { me: core.me, raft: core.raft.clone(), engine: core.engine.clone(), contact: raft.contact.clone() };
    let idle = IdleExpiry {
        raft: core.raft.clone(),
        engine: core.engine.clone(),
        peers: core.peers.clone(),
        requests: requests.clone(),
        auditor: core.auditor.clone(),
        contact: raft.contact.clone(),
        grace,
    };
    let enactor = Enactor {
        me: core.me,
        raft: core.raft.clone(),
        engine: core.engine.clone(),
        reports: raft.policy_reports.clone(),
        contact: raft.contact.clone(),
        requests: requests.clone(),
        transfer: raft.transfer.clone(),
        metrics: core.metrics.clone(),
    };
    tasks.spawn("policy enactor", enactor.run());
    let sweep = PolicySweep {
        me: core.me,
        engine: core.engine.clone(),
        leadership: raft.leadership.clone(),
        requests: requests.clone(),
        metrics: core.metrics.clone(),
    };
    let (raft, engine) = (core.raft.clone(), core.engine.clone());
    tasks.spawn("level", LevelRaiser { raft, engine, requests: requests.clone() }.run());
    tasks.spawn("membership", reconciler.run());
    tasks.spawn("policy sweep", sweep.run());
    tasks.spawn("idle expiry", idle.run());
}

/// Starts comparing, scrubbing and repairing. Returns the queue of divergences that others report.
fn start_audit(core: &Core, raft: &RaftSide, tasks: &mut Tasks) -> mpsc::Sender<Divergence> {
    let (divergences, divergence_queue) = audit::divergences();
    let comparer = Comparer {
        me: core.me,
        raft: core.raft.clone(),
        engine: core.engine.clone(),
        auditor: core.auditor.clone(),
        peers: core.peers.clone(),
        metrics: core.metrics.clone(),
        divergences: divergences.clone(),
    };
    let scrubber =
        Scrubber { engine: core.engine.clone(), metrics: core.metrics.clone(), divergences: divergences.clone() };
    let repairer = Repairer {
        me: core.me,
        raft: core.raft.clone(),
        engine: core.engine.clone(),
        auditor: core.auditor.clone(),
        snapshots: core.snapshots.clone(),
        peers: core.peers.clone(),
        leadership: raft.leadership.clone(),
        transfer: raft.transfer.clone(),
        lease: core.lease.clone(),
        metrics: core.metrics.clone(),
        divergences: divergence_queue,
    };
    tasks.spawn("comparison", comparer.run());
    tasks.spawn("scrub", scrubber.run());
    tasks.spawn("repair", repairer.run());
    divergences
}
