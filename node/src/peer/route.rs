//! Who speaks to whom: every RPC names cluster, sender and addressee, and whoever is not exactly the addressee refuses.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;

use palisade_engine::MemberId;
use palisade_proto::member::v1::member_client::MemberClient;
use parking_lot::Mutex;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::peer::transport;
use crate::replication_metrics::ReplicationMetrics;

const CLUSTER: &str = "palisade-cluster";
const FROM: &str = "palisade-from";
const TO: &str = "palisade-to";

/// Most bytes of one message. The largest are appends: many entries, or a policy.
pub(crate) const MOST_MESSAGE: usize = 16 << 20;

/// A client of one member.
pub(crate) type Client = MemberClient<InterceptedService<Channel, Stamp>>;

/// Puts cluster, sender and addressee on every request.
#[derive(Clone, Debug)]
pub(crate) struct Stamp {
    cluster: MetadataValue<Ascii>,
    from: MetadataValue<Ascii>,
    to: MetadataValue<Ascii>,
}

impl Interceptor for Stamp {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        metadata.insert(CLUSTER, self.cluster.clone());
        metadata.insert(FROM, self.from.clone());
        metadata.insert(TO, self.to.clone());
        Ok(request)
    }
}

/// The sender of a checked request, found in its extensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sender(pub(crate) MemberId);

impl Sender {
    /// The sender of a request that went through [`Check`].
    pub(crate) fn of<T>(request: &Request<T>) -> Result<MemberId, Status> {
        let sender = request.extensions().get::<Sender>();
        sender.map(|s| s.0).ok_or_else(|| Status::internal("the request's addressee was not checked"))
    }
}

/// Lets only requests pass that are meant for this member of this cluster.
#[derive(Clone, Debug)]
pub(crate) struct Check {
    pub(crate) cluster: Arc<str>,
    pub(crate) me: MemberId,
    pub(crate) metrics: Arc<ReplicationMetrics>,
}

impl Interceptor for Check {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        self.checked(request).inspect_err(|status| {
            self.metrics.misaddressed.add(1);
            tracing::debug!(%status, "a request was refused");
        })
    }
}

impl Check {
    fn checked(&self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata();
        let cluster = text(metadata, CLUSTER)?;
        if cluster != &*self.cluster {
            return Err(Status::failed_precondition(format!(
                "this is a member of cluster {}, not of {cluster}",
                self.cluster
            )));
        }
        let to = member(metadata, TO)?;
        if to != self.me {
            return Err(Status::failed_precondition(format!("this is member {}, not member {to}", self.me)));
        }
        let from = member(metadata, FROM)?;
        if from == self.me {
            return Err(Status::failed_precondition(format!(
                "another machine calls itself member {from}, as this one"
            )));
        }
        request.extensions_mut().insert(Sender(from));
        Ok(request)
    }
}

fn text<'a>(metadata: &'a MetadataMap, key: &'static str) -> Result<&'a str, Status> {
    let value = metadata.get(key).and_then(|v| v.to_str().ok());
    value.ok_or_else(|| Status::failed_precondition(format!("the request does not name its `{key}`")))
}

fn member(metadata: &MetadataMap, key: &'static str) -> Result<MemberId, Status> {
    let id = u64::from_str(text(metadata, key)?);
    id.map(MemberId).map_err(|_| Status::failed_precondition(format!("`{key}` is no member's number")))
}

/// What a connection is for. Each purpose has a connection of its own, so that one kind of traffic can not hold up
/// another.
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
    /// Proposals and questions.
    Control,
}

/// The connections to the other members, made when needed.
#[derive(Clone, Debug)]
pub(crate) struct Peers {
    cluster: MetadataValue<Ascii>,
    me: MemberId,
    channels: Arc<Mutex<Channels>>,
}

type Channels = HashMap<(MemberId, Lane), (String, Channel)>;

impl Peers {
    pub(crate) fn new(cluster: &str, me: MemberId) -> Result<Peers, Status> {
        let cluster = MetadataValue::from_str(cluster).map_err(|_| Status::internal("a cluster id is hexadecimal"))?;
        Ok(Peers { cluster, me, channels: Arc::default() })
    }

    /// A client of member `to` at `address`. Fails only if that is no address.
    pub(crate) fn client(&self, to: MemberId, address: &str, lane: Lane) -> Result<Client, Status> {
        let mut channels = self.channels.lock();
        let channel = match channels.get(&(to, lane)) {
            Some((known, channel)) if known == address => channel.clone(),
            _ => {
                let channel = transport::channel(address)
                    .map_err(|e| Status::unavailable(format!("`{address}` is no address of a member: {e}")))?;
                channels.insert((to, lane), (address.to_owned(), channel.clone()));
                channel
            }
        };
        drop(channels);
        let stamp = Stamp {
            cluster: self.cluster.clone(),
            from: MetadataValue::from(self.me.0),
            to: MetadataValue::from(to.0),
        };
        Ok(MemberClient::with_interceptor(channel, stamp)
            .max_decoding_message_size(MOST_MESSAGE)
            .max_encoding_message_size(MOST_MESSAGE))
    }

    /// Forgets the connections to members that are not in `members` any longer.
    pub(crate) fn keep(&self, members: impl Fn(MemberId) -> bool) {
        self.channels.lock().retain(|(id, _), _| members(*id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamped(cluster: &str, from: u64, to: u64) -> Request<()> {
        let mut stamp = Stamp {
            cluster: MetadataValue::from_str(cluster).unwrap(),
            from: MetadataValue::from(from),
            to: MetadataValue::from(to),
        };
        stamp.call(Request::new(())).unwrap()
    }

    #[test]
    fn only_the_addressee_takes_a_request() {
        let mut check = Check { cluster: "c1".into(), me: MemberId(2), metrics: Arc::default() };
        let request = check.call(stamped("c1", 1, 2)).unwrap();
        assert_eq!(Sender::of(&request).unwrap(), MemberId(1));

        let code = |r: Result<Request<()>, Status>| r.unwrap_err().code();
        assert_eq!(code(check.call(stamped("c2", 1, 2))), tonic::Code::FailedPrecondition);
        assert_eq!(code(check.call(stamped("c1", 1, 3))), tonic::Code::FailedPrecondition);
        assert_eq!(code(check.call(stamped("c1", 2, 2))), tonic::Code::FailedPrecondition);
        assert_eq!(code(check.call(Request::new(()))), tonic::Code::FailedPrecondition);
        assert_eq!(check.metrics.misaddressed.get(), 4);
    }

    #[test]
    fn an_unchecked_request_has_no_sender() {
        assert_eq!(Sender::of(&stamped("c1", 1, 2)).unwrap_err().code(), tonic::Code::Internal);
    }
}
