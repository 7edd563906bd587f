//! The way to a member: gRPC over its unix socket.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use palisade_proto::admin::v1::admin_client::AdminClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::args::Global;
use crate::exit::{Exit, Failure, chain};

/// How long a command waits for a member that has a quorum.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// A member's administration.
pub type Client = AdminClient<Channel>;

/// Connects.
///
/// # Errors
/// Nobody answers at that socket, with the probable reason.
pub async fn connect(socket: &Path) -> Result<Client, Failure> {
    let path = socket.to_owned();
    // The address is never looked at: the connector below always goes to the socket.
    let channel = Endpoint::from_static("http://palisade.invalid")
        .connect_timeout(Duration::from_secs(5))
        .connect_with_connector(tower::service_fn(move |_: Uri| open(path.clone())))
        .await
        .map_err(|e| unreachable_socket(socket, &e))?;
    // A listing of millions of sessions comes in parts; 64 MiB is far above each.
    Ok(AdminClient::new(channel).max_decoding_message_size(64 << 20))
}

async fn open(path: PathBuf) -> io::Result<TokioIo<UnixStream>> {
    Ok(TokioIo::new(UnixStream::connect(path).await?))
}

fn unreachable_socket(socket: &Path, e: &tonic::transport::Error) -> Failure {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(e);
    let mut kind = None;
    while let Some(c) = cause {
        kind = kind.or_else(|| c.downcast_ref::<io::Error>().map(io::Error::kind));
        cause = c.source();
    }
    let message = format!("no member answers at {}", socket.display());
    match kind {
        Some(io::ErrorKind::PermissionDenied) => Failure::new(
            Exit::Refused,
            format!("{message}: permission denied"),
            Some("run this as root, or as a member of the group `palisade` (log in again after joining it)"),
        ),
        Some(io::ErrorKind::NotFound) => Failure::new(
            Exit::Unreachable,
            format!("{message}: there is no such socket"),
            Some(
                "is the daemon running (`palisade node`, `systemctl status palisade`)? If its node.toml has another [admin] socket: --socket PATH or PALISADE_SOCKET",
            ),
        ),
        Some(io::ErrorKind::ConnectionRefused) => Failure::new(
            Exit::Unreachable,
            format!("{message}: the socket is there, but no daemon listens"),
            Some("start it (`palisade node`, `systemctl start palisade`); its log says why it stopped"),
        ),
        _ => Failure::new(Exit::Unreachable, format!("{message}: {}", chain(e)), None),
    }
}

/// Runs a client's future to its end.
///
/// # Errors
/// The future's, or the runtime could not be made.
pub fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

/// Connects to the member, and runs a command against it.
///
/// # Errors
/// Nobody answers, or the command's.
pub fn with_member(
    global: &Global,
    run: impl AsyncFnOnce(Client) -> Result<ExitCode, Failure>,
) -> Result<ExitCode, Failure> {
    block_on(async { run(connect(&global.socket).await?).await })
}

/// Bounds an RPC that needs a quorum.
#[must_use]
pub fn within<T>(time: Duration, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(time);
    request
}
