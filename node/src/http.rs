//! `/metrics`, `/healthz` and `/readyz`.
//!
//! Anybody who reaches the port may send anything: requests are small, connections few and short, and nothing that
//! arrives here can hold up the rest of the daemon. Only GET and HEAD of three paths exist, and no request has a body.
//!
//! - `/healthz`: the process lives and no thread of it is stuck. For the one who restarts processes.
//! - `/readyz`: this member may be given traffic. For routers and load balancers; a witness: it takes part.
//! - `/metrics`: for Prometheus, as OpenMetrics if it asks for that, else as its older text format.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tower::Service;

use palisade_metrics::MetricFamilies;

use crate::metrics::exposition;

/// Most connections at once. A scraper, two routers' probes and a few people need ten.
const CONNECTIONS: usize = 64;
/// A client that has not sent its request's head by then is cut off.
const HEAD: Duration = Duration::from_secs(5);
/// Longest life of a connection: probes open a new one then.
const LIFE: Duration = Duration::from_secs(300);
/// Largest request head. curl's and Prometheus's have some hundred bytes.
const HEAD_BYTES: usize = 8192;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the daemon answers.
pub(crate) trait HttpState: Send + Sync + 'static {
    /// All metrics.
    fn metrics(&self) -> MetricFamilies;
    /// Which threads are stuck; empty: none.
    fn stuck(&self) -> Vec<String>;
    /// Why this member is not ready; empty: it is.
    fn not_ready(&self) -> Vec<String>;
}

/// Serves forever. Cancel-safe: dropping the future closes the port and its connections.
pub(crate) async fn serve(listener: TcpListener, state: Arc<dyn HttpState>) -> Infallible {
    let router = router(state);
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                // Out of descriptors, or the peer was gone already: neither may end the service or spin.
                tracing::debug!("accept on the HTTP port: {e}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Above the limit the newcomer is refused at once; a queue would only make all of them late.
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
        let router = router.clone();
        connections.spawn(async move {
            connection(stream, peer, router).await;
            drop(slot);
        });
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, router: Router) {
    let service =
        hyper_util::service::TowerToHyperService::new(tower::service_fn(move |request| router.clone().call(request)));
    let mut builder = auto::Builder::new(hyper_util::rt::TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(HEAD_BYTES).keep_alive(true);
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(e)) = tokio::time::timeout(LIFE, serving).await {
        tracing::debug!(%peer, "HTTP connection: {e}");
    }
}

fn router(state: Arc<dyn HttpState>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n") })
        .layer(axum::middleware::from_fn(refuse_bodies))
        .with_state(state)
}

async fn refuse_bodies(request: Request<Body>, next: axum::middleware::Next) -> Response {
    let length = request.headers().get(header::CONTENT_LENGTH);
    if length.is_some_and(|l| l != "0") || request.headers().contains_key(header::TRANSFER_ENCODING) {
        let close = [(header::CONNECTION, HeaderValue::from_static("close"))];
        return (StatusCode::PAYLOAD_TOO_LARGE, close, "requests have no body here\n").into_response();
    }
    next.run(request).await
}

async fn metrics(State(state): State<Arc<dyn HttpState>>, request: Request<Body>) -> Response {
    let accept = request.headers().get(header::ACCEPT).and_then(|a| a.to_str().ok()).unwrap_or_default();
    let open = accept.contains("application/openmetrics-text");
    // Encoding some hundred lines and reading /proc may take a millisecond: not on a runtime thread.
    let text = tokio::task::spawn_blocking(move || match open {
        true => (OPENMETRICS, exposition::openmetrics(state.metrics())),
        false => (TEXT, exposition::text(state.metrics())),
    });
    match text.await {
        Ok((kind, text)) => ([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn healthz(State(state): State<Arc<dyn HttpState>>) -> Response {
    verdict("healthy", &state.stuck())
}

async fn readyz(State(state): State<Arc<dyn HttpState>>) -> Response {
    verdict("ready", &state.not_ready())
}

fn verdict(good: &str, reasons: &[String]) -> Response {
    let code = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::json!({ good: reasons.is_empty(), "reasons": reasons });
    let kind = HeaderValue::from_static("application/json");
    (code, [(header::CONTENT_TYPE, kind)], format!("{body}\n")).into_response()
}

#[cfg(test)]
mod tests;
