//! The connections to the other members.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use palisade_engine::{Engine, MemberId, MemberInfo};
use palisade_proto::member::v1::member_client::MemberClient;
use parking_lot::Mutex;
use tonic::Status;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use crate::peer::addressing::{AddressInterceptor, cluster_value};
use crate::peer::error::ClusterIdError;
use crate::peer::transport::{self, Connector, Peer};

/// The largest message, in bytes. The largest messages are appends: many entries, or a policy.
pub(crate) const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// A client of one member.
pub(crate) type Client = MemberClient<InterceptedService<Channel, AddressInterceptor>>;

/// The members of openraft's membership, by id.
pub(crate) type Members = BTreeMap<MemberId, MemberInfo>;

/// The purpose of a connection. Each purpose has a connection of its own, so that one kind of traffic cannot delay another.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Lane {
    /// Appends and votes.
    Raft,
    /// Heartbeats: they must not wait behind large appends.
    Heartbeat,
    /// Snapshots.
    Snapshot,
    /// Hints.
    Hints,
    /// Progress of live sessions.
    Progress,
    /// The connection log.
    ConnectionLog,
    /// Proposals, and unary questions.
    Control,
}

/// The connections to the other members, made when needed.
///
/// The register, as this member has applied it, is the book of addresses. A member that is not in it yet has the address that its
/// caller knows, from openraft's membership: a server takes part in votes about servers whose registration it has not applied.
#[derive(Clone)]
pub(crate) struct Peers {
    cluster: MetadataValue<Ascii>,
    me: MemberId,
    connector: Arc<dyn Connector>,
    register: Arc<OnceLock<Arc<Engine>>>,
    channels: Arc<Mutex<Channels>>,
}

type Channels = HashMap<(MemberId, Lane), (String, Channel)>;

impl Peers {
    pub(crate) fn new(cluster: &str, me: MemberId) -> Result<Peers, ClusterIdError> {
        Ok(Peers {
            cluster: cluster_value(cluster)?,
            me,
            connector: transport::connector(),
            register: Arc::default(),
            channels: Arc::default(),
        })
    }

    /// Takes addresses from the register that this engine knows, from now on.
    pub(crate) fn follow_register(&self, engine: Arc<Engine>) {
        // Set once, at the start.
        let _ = self.register.set(engine);
    }

    fn registered(&self, member: MemberId) -> Option<String> {
        let cluster = self.register.get()?.cluster_state();
        Some(cluster.members.get(&member)?.address.clone())
    }

    /// This member.
    pub(crate) fn me(&self) -> MemberId {
        self.me
    }

    /// A client of member `to`, at its address in the register, or else at `address`. Fails only if that is no address. A client
    /// stays with the address that it has: who goes on for long asks again after an error.
    pub(crate) fn client(&self, to: MemberId, address: &str, lane: Lane) -> Result<Client, Status> {
        let registered = self.registered(to);
        self.client_at(to, registered.as_deref().unwrap_or(address), lane)
    }

    /// A client of member `to` at `address`, whatever the register says. Fails only if that is no address.
    pub(crate) fn client_at(&self, to: MemberId, address: &str, lane: Lane) -> Result<Client, Status> {
        let mut channels = self.channels.lock();
        let channel = match channels.get(&(to, lane)) {
            Some((known, channel)) if known == address => channel.clone(),
            _ => {
                let channel = transport::channel(self.connector.clone(), Peer::Member(to), address)
                    .map_err(|e| Status::unavailable(format!("`{address}` is no address of a member: {e}")))?;
                channels.insert((to, lane), (address.to_owned(), channel.clone()));
                channel
            }
        };
        drop(channels);
        let interceptor = AddressInterceptor::new(self.cluster.clone(), self.me, to);
        Ok(MemberClient::with_interceptor(channel, interceptor)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }

    /// Forgets the connections to members that are not in `members` any longer.
    pub(crate) fn keep(&self, members: impl Fn(MemberId) -> bool) {
        self.channels.lock().retain(|(id, _), _| members(*id));
    }
}
