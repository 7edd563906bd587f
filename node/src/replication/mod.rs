//! Replication: one log for the law, streams for hints, and the proof of being current (DESIGN section 5).
//!
//! ```text
//!  worker ── Hint ──────> hints ───────── a stream per peer ─────────> service ──> Engine::hint
//!  worker ── Proposal ──> propose ─ local, or a stream to the leader ─> openraft ──> log ──> apply on every member
//!  admin ─── Command ───────┘                                             │
//!                                                      observed here: the proposal's answer
//! ```
//!
//! Tasks, all ended by [`Replication::shutdown`] or by dropping it: the member port's server; `propose`; `hints` with one
//! task per peer; `current`; `election`; `hand over`; `leadership` (who leads, who is a member); the leader's duties
//! (`membership`, `idle`, `compare`); `scrub`, `repair`; `tick`. `docs/replication.md` lists the queues between them with
//! their bounds.

pub(crate) mod service;
pub(crate) mod start;
mod status;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use openraft::Raft;
use openraft::async_runtime::WatchReceiver;
use palisade_engine::event::{Hint, Proposal};
use palisade_engine::replica::{Command, MemberChange, MemberInfo, Outcome, Replica, Role};
use palisade_engine::{Engine, MemberId, Time, Wake};
use palisade_proto::member::v1::admission_server::AdmissionServer;
use palisade_proto::member::v1::member_server::MemberServer;
use palisade_raft_store::{Auditor, Identity as StoreIdentity, StateMachine, StoreError, StoreMetrics, TypeConfig};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinHandle;
use tonic::service::interceptor::InterceptedService;

pub use crate::membership::change::{MembershipError, init, join};
pub use crate::membership::identity::{Identity, IdentityError};
pub use crate::membership::recover::{Lost, Plan, RecoverError, Recovered, Recovery};
pub use crate::membership::token::{Token, TokenError};
pub use crate::raft::handover::Candidacy;
pub use crate::raft::voters::Voters;
pub use crate::replication::status::{Member, RaftRole, Status};
pub use crate::replication_metrics::{Counter, Histogram, Outcomes, ReplicationMetrics};
pub use crate::sync::events::{SessionChange, SessionEvent};
pub use crate::sync::propose::ProposeError;

use crate::audit::{Audits, Desk};
use crate::membership::change::{Admitting, CHANGE, accepted, order};
use crate::membership::identity::Folder;
use crate::membership::leader::{Duties, Heard};
use crate::membership::{change, rolled_back, token};
#[cfg(test)]
use crate::peer::route;
use crate::peer::route::{Check, MOST_MESSAGE, Peers};
use crate::peer::transport;
use crate::raft::current::Current;
use crate::raft::election::{Election, Signs};
use crate::raft::handover::HandOver;
use crate::raft::network::Network;
use crate::raft::read_index::ReadIndex;
use crate::replication::service::{Following, Parts, Service, SharedWake};
use crate::replication::start::{Started, start_raft};
use crate::standing::StandingCell;
use crate::sync::events::{EVENTS, Events};
use crate::sync::hints::{Hints, Members, Reached};
use crate::sync::progress::{Ears, Telling};
use crate::sync::propose;
use crate::sync::propose::{Lead, Leader, Order, Proposer, Unanswered};
use crate::{audit, clock};

/// openraft with our types.
pub(crate) type PalisadeRaft = Raft<TypeConfig, StateMachine<Replica>>;

/// Commands of the administration that wait.
const ORDERS: usize = 256;
/// What hints led to and that waits to be sent on or proposed.
const FOLLOWING: usize = 4096;

/// Raft's times.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Between two heartbeats of the leader.
    pub heartbeat: Duration,
    /// A member keeps to its leader for so long after the last sign of it (openraft's lease); then it stands for election,
    /// the members one after the other. Three quarters of it are the time that a vote may take, which waits for a disk.
    pub election: Duration,
    /// A replication stream that gets no answer for so long is given up.
    pub answer: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            heartbeat: Duration::from_millis(40),
            election: Duration::from_millis(160),
            answer: Duration::from_secs(2),
        }
    }
}

impl Timing {
    /// The time that a vote may take.
    fn vote(&self) -> Duration {
        self.election * 3 / 4
    }
}

/// What a member's replication needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// The data folder.
    pub data_dir: PathBuf,
    /// The member's name.
    pub name: String,
    /// Where it listens for the other members.
    pub listen: SocketAddr,
    /// Where they reach it: `host:port`.
    pub advertise: String,
    /// What it does.
    pub role: Role,
    /// The engine's sizes; `member`, `start` and `seed` are put in by [`Replication::open`].
    pub engine: palisade_engine::Config,
    /// Raft's times.
    pub timing: Timing,
    /// How much of the log is kept.
    pub log: LogSize,
    /// How many vote.
    pub voters: Voters,
    /// What the telling of live sessions' progress may take to each other member, in bytes a second.
    pub progress_rate: u64,
}

/// How much of the log is kept.
#[derive(Clone, Copy, Debug)]
pub struct LogSize {
    /// Entries between two snapshots.
    pub snapshot_every: u64,
    /// Entries that stay behind a snapshot, for members that are a little behind: they need no snapshot then.
    pub keep: u64,
}

impl Default for LogSize {
    fn default() -> LogSize {
        LogSize { snapshot_every: 8192, keep: 8192 }
    }
}

impl Options {
    pub(crate) fn info(&self) -> MemberInfo {
        MemberInfo { name: self.name.clone(), address: self.advertise.clone(), role: self.role }
    }
}

/// Why a member's replication could not be started.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The data folder.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It is no member yet.
    #[error(
        "this machine is no member of a cluster yet: `palisade cluster init` makes one, `palisade cluster join` joins one"
    )]
    NotMember,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store is not the one that belongs to the identity.
    #[error(
        "the log of member {0} is gone, though it has voted under that id: move the data folder away, join again under \
         a new id (`palisade cluster join`), and remove the old member (`palisade cluster remove`)"
    )]
    LostLog(MemberId),
    /// It forgot what it has promised.
    #[error(
        "the data folder of member {member} is older than what that member has acknowledged: its log ends at entry {here}, \
         but it once had entry {there}. Was it restored from a backup? Move it away, join again under a new id \
         (`palisade cluster join`), and remove the old member (`palisade cluster remove`)"
    )]
    RolledBack {
        /// The member.
        member: MemberId,
        /// The last entry that is here.
        here: u64,
        /// One that the leader knows to have been here.
        there: u64,
    },
    /// The member port.
    #[error("can not listen for the other members on {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
    /// openraft.
    #[error("Raft did not start: {0}")]
    Raft(String),
    /// The times make no sense.
    #[error("Raft's times are wrong: {0}")]
    Timing(String),
}

/// A running member's replication.
pub struct Replication {
    pub(crate) identity: Identity,
    pub(crate) folder: Folder,
    pub(crate) raft: PalisadeRaft,
    pub(crate) engine: Arc<Engine>,
    auditor: Auditor<Replica>,
    metrics: Arc<ReplicationMetrics>,
    store: StoreMetrics,
    standing: Arc<StandingCell>,
    orders: mpsc::Sender<Order>,
    events: broadcast::Sender<Arc<SessionEvent>>,
    pub(crate) lead: watch::Receiver<Lead>,
    pub(crate) peers: Peers,
    reached: Reached,
    handover: HandOver,
    candidacy: watch::Sender<Candidacy>,
    stop: watch::Sender<bool>,
    ended: watch::Sender<Option<&'static str>>,
    server: parking_lot::Mutex<Option<JoinHandle<()>>>,
    tasks: Vec<JoinHandle<()>>,
}

/// Notices when a task ends that should not.
struct Watched {
    stop: watch::Receiver<bool>,
    ended: watch::Sender<Option<&'static str>>,
}

impl Watched {
    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        let alarm = Alarm { name, stop: self.stop.clone(), ended: self.ended.clone() };
        tokio::spawn(async move {
            // Dropped with the task, also when it panics.
            let _alarm = alarm;
            task.await;
        })
    }
}

struct Alarm {
    name: &'static str,
    stop: watch::Receiver<bool>,
    ended: watch::Sender<Option<&'static str>>,
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if !*self.stop.borrow() {
            self.ended.send_replace(Some(self.name));
        }
    }
}

impl Drop for Replication {
    fn drop(&mut self) {
        self.halt();
        if let Some(server) = self.server.lock().take() {
            server.abort();
        }
        // Connections of other members may hold Raft for a while: it must not go on, and lead, without us.
        let raft = self.raft.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { drop(raft.shutdown().await) });
        }
    }
}

impl Replication {
    /// Starts the member that the data folder belongs to: counts the start, opens the store, replays it, opens the member
    /// port and takes part in the cluster. The member becomes current by itself once it has caught up.
    ///
    /// # Errors
    /// [`OpenError`]
    pub async fn open<W>(
        options: Options,
        hints: mpsc::Receiver<Hint>,
        proposals: mpsc::Receiver<Proposal>,
        wake: W,
        standing: Arc<StandingCell>,
    ) -> Result<Replication, OpenError>
    where
        W: Wake + Clone + Send + Sync + 'static,
    {
        let folder = Folder::lock(&options.data_dir)?;
        let mut identity = folder.identity()?.ok_or(OpenError::NotMember)?;
        folder.start(&mut identity)?;
        let me = identity.member;
        let metrics = Arc::<ReplicationMetrics>::default();
        let incoming = transport::listen(options.listen, metrics.clone()).await;
        let incoming = incoming.map_err(|e| OpenError::Listen(options.listen, e))?;
        let peers = Peers::new(&identity.cluster, me).map_err(|s| OpenError::Raft(s.to_string()))?;
        let (answer_tx, answer_rx) = mpsc::channel(propose::ANSWERS);
        let unanswered = Unanswered::default();
        let (events, _) = broadcast::channel(EVENTS);
        let observer = Events {
            me,
            answers: answer_tx,
            unanswered: unanswered.clone(),
            watchers: events.clone(),
            metrics: metrics.clone(),
        };
        let network = Network { me, peers: peers.clone(), answer: options.timing.answer, metrics: metrics.clone() };
        let wakes: Box<dyn Wake + Send> = Box::new(wake.clone());
        let store_dir = folder.store(&identity);
        let owner = StoreIdentity { cluster: identity.cluster.clone(), member: me };
        let Started { raft, engine, snapshots, auditor, store } =
            start_raft(&options, store_dir, owner, identity.starts, network, wakes, Arc::new(observer)).await?;
        // It answers nobody yet, and must not ask for votes either.
        raft.runtime_config().elect(false);
        if let Err(error) = rolled_back::check(&raft, &peers, me).await {
            // What it returns says nothing that the error does not.
            drop(raft.shutdown().await);
            return Err(error);
        }

        let (lead_tx, lead) = watch::channel(Lead::default());
        let (members_tx, members) = watch::channel(Members::new());
        let told_members = members.clone();
        let (orders, order_rx) = mpsc::channel(ORDERS);
        let (hint_answers, hint_answer_rx) = mpsc::channel(FOLLOWING);
        let (hinted, hinted_rx) = mpsc::channel(FOLLOWING);
        let following = Following { answers: hint_answers, hinted, metrics: metrics.clone() };
        let (stop, stopped) = watch::channel(false);
        let reached = Reached::default();
        let (candidacy, candidate) = watch::channel(Candidacy::default());
        let heard = Heard::default();
        let ears = Ears::default();
        let signs = Signs::default();
        let (ended, _) = watch::channel(None);
        let watched = Watched { stop: stopped.clone(), ended: ended.clone() };

        let (differences, difference_rx) = audit::differences();
        let audits = Arc::new(Audits {
            me,
            raft: raft.clone(),
            engine: engine.clone(),
            auditor: auditor.clone(),
            snapshots: snapshots.clone(),
            peers: peers.clone(),
            lead: lead.clone(),
            standing: standing.clone(),
            metrics: metrics.clone(),
            differences,
        });
        let read_index = ReadIndex { me, raft: raft.clone(), peers: peers.clone() };
        let service = Service(Arc::new(Parts {
            raft: raft.clone(),
            read_index: read_index.clone(),
            engine: engine.clone(),
            snapshots,
            wake: SharedWake::copy(&wake),
            metrics: metrics.clone(),
            lead: lead.clone(),
            following: following.clone(),
            admitting: Admitting { cluster: identity.cluster.as_str().into(), orders: orders.clone() },
            heard: heard.clone(),
            ears: ears.clone(),
            signs: signs.clone(),
            desk: Desk::new(&audits),
            stop: stopped.clone(),
        }));
        let check = Check { cluster: identity.cluster.as_str().into(), me, metrics: metrics.clone() };
        let server = watched.spawn("member port", serve(incoming, service, check, stopped));

        let proposer = Proposer {
            me,
            start: identity.starts,
            raft: raft.clone(),
            peers: peers.clone(),
            lead: lead.clone(),
            standing: standing.clone(),
            metrics: metrics.clone(),
            proposals,
            hinted: hinted_rx,
            orders: order_rx,
            answers: answer_rx,
            unanswered,
        };
        let hints = Hints {
            me,
            peers: peers.clone(),
            engine: engine.clone(),
            metrics: metrics.clone(),
            reached: reached.clone(),
            hints,
            answers: hint_answer_rx,
            members,
        };
        let telling = Telling {
            me,
            peers: peers.clone(),
            engine: engine.clone(),
            metrics: metrics.clone(),
            members: told_members,
            rate: options.progress_rate,
        };
        let watch = ears.watch(me, engine.clone(), SharedWake::copy(&wake), metrics.clone(), standing.cut_off_limit());
        let current = Current {
            me,
            raft: raft.clone(),
            read_index,
            peers: peers.clone(),
            lead: lead.clone(),
            standing: standing.clone(),
            orders: orders.clone(),
            candidacy: candidate.clone(),
            metrics: metrics.clone(),
        };
        let handover = HandOver { me, raft: raft.clone(), heard: heard.clone(), candidacy: candidate.clone() };
        let election = Election {
            me,
            raft: raft.clone(),
            signs,
            lease: options.timing.election,
            vote: options.timing.vote(),
            candidacy: candidate,
        };
        let duties = Arc::new(Duties {
            me,
            raft: raft.clone(),
            engine: engine.clone(),
            peers: peers.clone(),
            orders: orders.clone(),
            auditor: auditor.clone(),
            heard,
            cut_off_limit: standing.cut_off_limit(),
            voters: options.voters,
        });
        let tasks = vec![
            watched.spawn("leadership", leadership(raft.clone(), lead_tx, members_tx, peers.clone(), metrics.clone())),
            watched.spawn("propose", proposer.run()),
            watched.spawn("hints", hints.run()),
            watched.spawn("progress", telling.run()),
            watched.spawn("silence", watch),
            watched.spawn("current", current.run()),
            watched.spawn("election", election.run()),
            watched.spawn("hand over", handover.clone().run()),
            watched.spawn("membership", duties.clone().membership()),
            watched.spawn("idle", duties.idle()),
            watched.spawn("compare", audits.clone().compare()),
            watched.spawn("scrub", audits.clone().scrub()),
            watched.spawn("repair", audits.repair(difference_rx)),
            watched.spawn("tick", tick(engine.clone(), following)),
        ];
        let server = parking_lot::Mutex::new(Some(server));
        Ok(Replication {
            identity,
            folder,
            raft,
            engine,
            auditor,
            metrics,
            store,
            standing,
            orders,
            events,
            lead,
            peers,
            reached,
            handover,
            candidacy,
            stop,
            ended,
            server,
            tasks,
        })
    }

    /// Waits until the replication has ended by itself, and says why: a disk that fails, a defect. The member can not go
    /// on then, only start anew. `None` when it is shut down.
    pub fn failed(&self) -> impl Future<Output = Option<String>> + Send + use<> {
        let (raft, mut ended, mut stop) = (self.raft.clone(), self.ended.subscribe(), self.stop.subscribe());
        async move {
            let wait = raft.wait(None);
            let end = wait.metrics(|m| m.running_state.is_err(), "Raft has ended");
            let why = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return None,
                ended = ended.wait_for(Option::is_some) => match ended {
                    Ok(name) => format!("its task `{}` ended", name.unwrap_or_default()),
                    Err(_) => return None,
                },
                end = end => match end {
                    Ok(metrics) => match metrics.running_state {
                        Ok(()) => "Raft ended".to_owned(),
                        Err(fatal) => fatal.to_string(),
                    },
                    Err(error) => error.to_string(),
                },
            };
            // A task may see the end before the flag is seen here.
            (!*stop.borrow()).then_some(why)
        }
    }

    /// Who this member is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The engine: for the workers and the administration.
    #[must_use]
    pub fn engine(&self) -> Arc<Engine> {
        self.engine.clone()
    }

    /// What the replication has counted.
    #[must_use]
    pub fn metrics(&self) -> Arc<ReplicationMetrics> {
        self.metrics.clone()
    }

    /// What the store has counted: flushes and their times.
    #[must_use]
    pub fn store_metrics(&self) -> StoreMetrics {
        self.store.clone()
    }

    /// The digest of this member's state at a log index, if it is still known: equal on all members. Of the last 4096
    /// indices, and of every 4096th before them.
    #[must_use]
    pub fn digest_at(&self, index: u64) -> Option<u64> {
        self.auditor.digest_at(index)
    }

    /// The changes of sessions from now on, in the order of the log. A watcher that is too slow loses some and is told so.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<SessionEvent>> {
        self.events.subscribe()
    }

    /// How the member and its cluster are now.
    #[must_use]
    pub fn status(&self) -> Status {
        let metrics = self.raft.metrics().borrow_watched().clone();
        status::status(&self.identity, &metrics, &self.engine.view(), &self.reached, self.standing.at(clock::now()))
    }

    /// Has a command committed and applied here, and returns what that did: committed is not accepted.
    ///
    /// # Errors
    /// [`ProposeError`]; the command may still be carried out.
    pub async fn command(&self, command: Command, timeout: Duration) -> Result<Outcome, ProposeError> {
        order(&self.orders, command, timeout).await
    }

    /// Makes a join token that is good for `ttl`.
    ///
    /// # Errors
    /// [`MembershipError`]
    pub async fn token(&self, ttl: Duration) -> Result<String, MembershipError> {
        let secret = change::random::<32>()?;
        let ttl = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let change = MemberChange::Token {
            secret_digest: token::digest(&secret),
            expires_unix_ms: clock::unix_ms().saturating_add(ttl),
        };
        accepted(self.command(Command::Member(change), CHANGE).await?)?;
        let view = self.engine.view();
        let (mine, others): (Vec<_>, Vec<_>) = view.members.iter().partition(|(id, _)| **id == self.identity.member);
        let addresses = mine.into_iter().chain(others).map(|(_, info)| info.address.clone()).take(4).collect();
        Ok(Token::new(self.identity.cluster.clone(), addresses, secret).to_string())
    }

    /// Hands the lead over, to `to` or to the voter that is most up to date. Does nothing if this member does not lead
    /// and no one is named.
    ///
    /// # Errors
    /// [`MembershipError`]
    pub async fn transfer_leadership(&self, to: Option<MemberId>) -> Result<(), MembershipError> {
        self.handover.to(to).await
    }

    /// Says how much this member wants the lead. One that it does not want, it gives away as soon as it can.
    pub fn set_candidacy(&self, candidacy: Candidacy) {
        self.candidacy.send_replace(candidacy);
    }

    /// Does this member lead, though others could?
    #[must_use]
    pub fn holds_lead(&self) -> bool {
        self.handover.leads() && self.handover.has_peers()
    }

    fn halt(&self) {
        // Fails only when nobody listens any longer.
        let _ = self.stop.send(true);
        for task in &self.tasks {
            task.abort();
        }
    }

    /// Stops taking part. Established sessions of this machine are the workers' business.
    pub async fn shutdown(&self) {
        self.halt();
        let server = self.server.lock().take();
        if let Some(mut server) = server
            && tokio::time::timeout(Duration::from_secs(2), &mut server).await.is_err()
        {
            server.abort();
        }
        // Its result is only whether its task could be joined. A disk that hangs must not keep the process.
        if tokio::time::timeout(Duration::from_secs(3), self.raft.shutdown()).await.is_err() {
            tracing::warn!("Raft did not stop in time");
        }
    }
}

async fn serve(
    incoming: BoxStream<'static, std::io::Result<transport::Stream>>,
    service: Service,
    check: Check,
    mut stop: watch::Receiver<bool>,
) {
    let member = MemberServer::new(service.clone())
        .max_decoding_message_size(MOST_MESSAGE)
        .max_encoding_message_size(MOST_MESSAGE);
    let served = transport::server()
        .add_service(InterceptedService::new(member, check))
        .add_service(AdmissionServer::new(service))
        .serve_with_incoming_shutdown(incoming, async move {
            // An error means that the replication is gone: stopped as well.
            let _ = stop.wait_for(|stop| *stop).await;
        })
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the member port was closed");
    }
}

/// Follows who leads and who is a member.
async fn leadership(
    raft: PalisadeRaft,
    lead: watch::Sender<Lead>,
    members: watch::Sender<Members>,
    peers: Peers,
    metrics: Arc<ReplicationMetrics>,
) {
    let mut seen = raft.server_metrics();
    loop {
        let now = seen.borrow_and_update().clone();
        let nodes: Members = now.membership_config.nodes().map(|(id, info)| (*id, info.clone())).collect();
        let leader = now.current_leader.and_then(|id| Some(Leader { id, address: nodes.get(&id)?.address.clone() }));
        let new = Lead { term: now.vote.leader_id.term, leader };
        lead.send_if_modified(|old| {
            let changed = *old != new;
            if changed {
                tracing::info!(term = new.term, leader = ?new.leader, "the lead changed");
                metrics.leader_changes.add(1);
                *old = new;
            }
            changed
        });
        members.send_if_modified(|old| {
            let changed = *old != nodes;
            if changed {
                peers.keep(|id| nodes.contains_key(&id));
                *old = nodes;
            }
            changed
        });
        if seen.changed().await.is_err() {
            return;
        }
    }
}

/// Until `time`; without one, for ever.
pub(crate) async fn until(time: Option<Time>) {
    match time {
        Some(time) => tokio::time::sleep(time.since(clock::now())).await,
        None => std::future::pending().await,
    }
}

/// How often what packets wait for is looked at, and every how many times everything else.
const ASK_EVERY: Duration = Duration::from_millis(5);
const TICK: u32 = 20;

async fn tick(engine: Arc<Engine>, following: Following) {
    let mut events = Vec::new();
    let mut every = tokio::time::interval(ASK_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for number in (0..TICK).cycle() {
        every.tick().await;
        engine.send_queries(clock::now(), &mut events);
        if number == 0 {
            engine.tick(clock::now(), &mut events);
        }
        following.pass_on(&mut events);
    }
}
