//! Addressing: every RPC names cluster, caller and addressee, and a member refuses what is not addressed to it.

use std::str::FromStr;
use std::sync::Arc;

use palisade_engine::{Level, Levels, MemberId};
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::peer::error::ClusterIdError;
use crate::peer::transport::Peer;
use crate::replication_metrics::ReplicationMetrics;

const CLUSTER: &str = "palisade-cluster";
const FROM: &str = "palisade-from";
const TO: &str = "palisade-to";
/// The levels that the caller's program knows: `1-2`.
const LEVELS: &str = "palisade-levels";

/// The interceptor that writes cluster, caller and addressee into every request.
#[derive(Clone, Debug)]
pub(crate) struct AddressInterceptor {
    cluster: MetadataValue<Ascii>,
    from: MetadataValue<Ascii>,
    to: MetadataValue<Ascii>,
    levels: MetadataValue<Ascii>,
}

impl AddressInterceptor {
    pub(crate) fn new(cluster: MetadataValue<Ascii>, from: MemberId, to: MemberId) -> AddressInterceptor {
        let levels = levels_value(Levels::PROGRAM);
        AddressInterceptor { cluster, from: MetadataValue::from(from.0), to: MetadataValue::from(to.0), levels }
    }
}

/// A cluster's id as it stands in requests.
pub(crate) fn cluster_value(cluster: &str) -> Result<MetadataValue<Ascii>, ClusterIdError> {
    MetadataValue::from_str(cluster).map_err(|_| ClusterIdError(cluster.to_owned()))
}

impl Interceptor for AddressInterceptor {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        metadata.insert(CLUSTER, self.cluster.clone());
        metadata.insert(FROM, self.from.clone());
        metadata.insert(TO, self.to.clone());
        metadata.insert(LEVELS, self.levels.clone());
        Ok(request)
    }
}

/// The caller of a checked request, found in its extensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller(pub(crate) MemberId);

impl Caller {
    /// The caller of a request that went through [`AddressCheck`].
    pub(crate) fn from_request<T>(request: &Request<T>) -> Result<MemberId, Status> {
        let caller = request.extensions().get::<Caller>();
        caller.map(|caller| caller.0).ok_or_else(|| Status::internal("the request's addressee was not checked"))
    }
}

/// The interceptor that refuses requests that are not meant for this member of this cluster.
#[derive(Clone, Debug)]
pub(crate) struct AddressCheck {
    pub(crate) cluster: Arc<str>,
    pub(crate) me: MemberId,
    pub(crate) metrics: Arc<ReplicationMetrics>,
}

impl Interceptor for AddressCheck {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        self.checked(request).inspect_err(|status| {
            self.metrics.wrong_destination_requests.add(1);
            tracing::debug!(%status, "a request was refused");
        })
    }
}

impl AddressCheck {
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
        let levels = parse_levels(text(metadata, LEVELS)?)
            .ok_or_else(|| Status::failed_precondition(format!("`{LEVELS}` is no range of levels")))?;
        if levels.lowest > Levels::PROGRAM.highest || levels.highest < Levels::PROGRAM.lowest {
            return Err(Status::failed_precondition(format!(
                "the program of member {from} knows {levels}, that of member {} {}: they have none in common; update the older one",
                self.me,
                Levels::PROGRAM
            )));
        }
        if let Some(Peer::Member(peer)) = request.extensions().get::<Peer>().copied()
            && peer != from
        {
            return Err(Status::permission_denied(format!("member {peer} calls itself member {from}")));
        }
        request.extensions_mut().insert(Caller(from));
        Ok(request)
    }
}

fn levels_value(levels: Levels) -> MetadataValue<Ascii> {
    let text = format!("{}-{}", levels.lowest, levels.highest);
    // Digits and a dash are always valid.
    MetadataValue::from_str(&text).unwrap_or_else(|_| MetadataValue::from(0u64))
}

fn parse_levels(text: &str) -> Option<Levels> {
    let (lowest, highest) = text.split_once('-')?;
    Some(Levels { lowest: Level(lowest.parse().ok()?), highest: Level(highest.parse().ok()?) })
}

fn text<'a>(metadata: &'a MetadataMap, key: &'static str) -> Result<&'a str, Status> {
    let value = metadata.get(key).and_then(|v| v.to_str().ok());
    value.ok_or_else(|| Status::failed_precondition(format!("the request does not name its `{key}`")))
}

fn member(metadata: &MetadataMap, key: &'static str) -> Result<MemberId, Status> {
    let id = u64::from_str(text(metadata, key)?);
    id.map(MemberId).map_err(|_| Status::failed_precondition(format!("`{key}` is no member id")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamped(cluster: &str, from: u64, to: u64) -> Request<()> {
        let mut stamp = AddressInterceptor {
            cluster: MetadataValue::from_str(cluster).unwrap(),
            from: MetadataValue::from(from),
            to: MetadataValue::from(to),
            levels: levels_value(Levels::PROGRAM),
        };
        stamp.call(Request::new(())).unwrap()
    }

    #[test]
    fn request_is_taken_by_its_addressee_only() {
        let mut check = AddressCheck { cluster: "c1".into(), me: MemberId(2), metrics: Arc::default() };
        let request = check.call(stamped("c1", 1, 2)).unwrap();
        assert_eq!(Caller::from_request(&request).unwrap(), MemberId(1));

        let code = |r: Result<Request<()>, Status>| r.unwrap_err().code();
        assert_eq!(code(check.call(stamped("c2", 1, 2))), tonic::Code::FailedPrecondition);
        assert_eq!(code(check.call(stamped("c1", 1, 3))), tonic::Code::FailedPrecondition);
        assert_eq!(code(check.call(stamped("c1", 2, 2))), tonic::Code::FailedPrecondition);
        assert_eq!(code(check.call(Request::new(()))), tonic::Code::FailedPrecondition);
        assert_eq!(check.metrics.wrong_destination_requests.get(), 4);
    }

    #[test]
    fn request_in_the_name_of_another_member_than_the_peer_is_refused() {
        let mut check = AddressCheck { cluster: "c1".into(), me: MemberId(2), metrics: Arc::default() };
        let mut request_from = |peer| {
            let mut request = stamped("c1", 1, 2);
            request.extensions_mut().insert(peer);
            check.call(request).map(drop).map_err(|status| status.code())
        };
        assert_eq!(request_from(Peer::Unknown), Ok(()));
        assert_eq!(request_from(Peer::Member(MemberId(1))), Ok(()));
        assert_eq!(request_from(Peer::Member(MemberId(3))), Err(tonic::Code::PermissionDenied));
    }

    #[test]
    fn member_without_a_level_in_common_is_refused() {
        let mut check = AddressCheck { cluster: "c1".into(), me: MemberId(2), metrics: Arc::default() };
        let mut request_of = |levels: &'static str| {
            let mut request = stamped("c1", 1, 2);
            request.metadata_mut().insert(LEVELS, MetadataValue::from_static(levels));
            check.call(request).map(drop).map_err(|status| status.message().to_owned())
        };
        let (lowest, highest) = (Level::LOWEST.0, Level::HIGHEST.0);
        assert_eq!(lowest, 1, "the ranges below are about this");
        assert_eq!(request_of("1-1"), Ok(()));
        assert_eq!(request_of("1-60000"), Ok(()));
        assert!(highest < 60_000);
        let refused = request_of("60000-60001").unwrap_err();
        assert!(refused.contains("levels 60000 to 60001") && refused.contains("none in common"), "{refused}");
        for garbage in ["", "1", "1-", "-1", "1-x", "1-65536"] {
            assert!(request_of(garbage).is_err(), "{garbage}");
        }
    }

    #[test]
    fn request_without_address_check_has_no_caller() {
        assert_eq!(Caller::from_request(&stamped("c1", 1, 2)).unwrap_err().code(), tonic::Code::Internal);
    }
}
