//! Addressing: every RPC names cluster, caller and addressee, and a member refuses what is not addressed to it.

use std::str::FromStr;
use std::sync::Arc;

use palisade_engine::MemberId;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::peer::error::ClusterIdError;
use crate::peer::transport::Peer;
use crate::replication_metrics::ReplicationMetrics;

const CLUSTER: &str = "palisade-cluster";
const FROM: &str = "palisade-from";
const TO: &str = "palisade-to";

/// The interceptor that writes cluster, caller and addressee into every request.
#[derive(Clone, Debug)]
pub(crate) struct AddressInterceptor {
    cluster: MetadataValue<Ascii>,
    from: MetadataValue<Ascii>,
    to: MetadataValue<Ascii>,
}

impl AddressInterceptor {
    pub(crate) fn new(cluster: MetadataValue<Ascii>, from: MemberId, to: MemberId) -> AddressInterceptor {
        AddressInterceptor { cluster, from: MetadataValue::from(from.0), to: MetadataValue::from(to.0) }
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
        if let Some(Peer::Member(peer)) = request.extensions().get::<Peer>().copied()
            && peer != from
        {
            return Err(Status::permission_denied(format!("member {peer} calls itself member {from}")));
        }
        request.extensions_mut().insert(Caller(from));
        Ok(request)
    }
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
    fn request_without_address_check_has_no_caller() {
        assert_eq!(Caller::from_request(&stamped("c1", 1, 2)).unwrap_err().code(), tonic::Code::Internal);
    }
}
