//! `/metrics`, `/healthz` and `/readyz`.
//!
//! Anybody who reaches the port may send anything: requests are small, connections few and short, and nothing that
//! arrives here can hold up the rest of the daemon. Only GET and HEAD of three paths exist, and no request has a body.
//!
//! - `/healthz`: the process lives and no thread of it is stuck. For the one who restarts processes.
//! - `/readyz`: how much traffic this member should be given. For routers and load balancers; a witness: it takes part.
//! - `/metrics`: for Prometheus, as OpenMetrics if it asks for that, else as its older text format.

mod places;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tower::Service;

use palisade_engine::Time;
use palisade_metrics::{MetricFamilies, MetricGroup};

use crate::listen::{self, Connection, ListenError, Listener, Port, SecondLock};
use crate::metrics::exposition;
use crate::readiness::{Grade, Readiness};
use crate::{clock, config};
use places::{Places, Source, Taken};

pub(crate) use places::HttpMetrics;

/// A client that has not sent its request's head by then is cut off.
const HEAD: Duration = Duration::from_secs(5);
/// Longest life of a connection: probes open a new one then.
const LIFE: Duration = Duration::from_secs(300);
/// Largest request head. curl's and Prometheus's have some hundred bytes.
const HEAD_BYTES: usize = 8192;

/// Age up to which a sheet of metrics answers further scrapers.
const SHEET_AGE: Duration = Duration::from_secs(1);
/// Time after a failed accept.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the daemon answers.
pub(crate) trait HttpState: Send + Sync + 'static {
    /// All metrics.
    fn metrics(&self) -> MetricFamilies;
    /// Which threads are stuck; empty: none.
    fn stuck(&self) -> Vec<String>;
    /// How much traffic this member should be given.
    fn readiness(&self) -> Readiness;
}

/// The open port.
pub(crate) struct Server {
    listener: Listener,
    places: Arc<Places>,
}

impl Server {
    /// Opens the port.
    pub(crate) fn bind(config: &config::Http, second_lock: SecondLock) -> Result<Server, ListenError> {
        let places = Arc::<Places>::default();
        let dropped = listen::counting(places.clone(), |places: &Places| &places.metrics.dropped);
        let port = Port {
            table: "http",
            address: config.listen,
            interfaces: config.interfaces.clone(),
            // Monitoring on the machine itself, and people who are logged in there.
            own_programs: true,
            second_lock,
        };
        Ok(Server { listener: Listener::bind(port, dropped)?, places })
    }

    /// The address.
    #[cfg(test)]
    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves forever. Cancel-safe: dropping the future closes the port and its connections.
    pub(crate) async fn serve(self, state: Arc<dyn HttpState>) -> Infallible {
        let Server { listener, places } = self;
        let router = router(Arc::new(Pages { state, places: places.clone(), sheets: Default::default() }));
        let mut connections = tokio::task::JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(e) => {
                    // Out of descriptors, or the peer was gone already: neither may end the service or spin.
                    tracing::debug!("accept on the HTTP port: {e}");
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                    continue;
                }
            };
            let local = stream.local_addr().ok().map(|local| local.ip());
            // Without a place the newcomer is refused at once; a queue would only make all of them late.
            let Some(place) = places.take(Source::new(peer.ip(), local), clock::now()) else { continue };
            connections.spawn(connection(stream, peer, router.clone(), Arc::new(place)));
        }
    }
}

/// What is known of the one who asks.
#[derive(Clone, Copy)]
struct Caller {
    /// A program of this machine.
    own: bool,
}

async fn connection(stream: Connection, peer: SocketAddr, router: Router, place: Arc<Taken>) {
    let (caller, busy) = (Caller { own: place.is_own() }, place.clone());
    let service = tower::service_fn(move |mut request: Request<_>| {
        request.extensions_mut().insert(caller);
        let (mut router, busy) = (router.clone(), busy.clone());
        async move {
            busy.set_busy(true, clock::now());
            let response = router.call(request).await;
            busy.set_busy(false, clock::now());
            response
        }
    });
    let service = hyper_util::service::TowerToHyperService::new(service);
    let mut builder = auto::Builder::new(hyper_util::rt::TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(HEAD_BYTES).keep_alive(true);
    let serving = tokio::time::timeout(LIFE, builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        () = place.displaced() => tracing::debug!(%peer, "HTTP connection: closed to make room"),
        served = serving => if let Ok(Err(e)) = served {
            tracing::debug!(%peer, "HTTP connection: {e}");
        }
    }
}

/// What the handlers share.
struct Pages {
    state: Arc<dyn HttpState>,
    places: Arc<Places>,
    /// The last sheet of each format. The lock is held while a sheet is made, so that all who wait for it share it.
    sheets: [tokio::sync::Mutex<Option<Sheet>>; 2],
}

/// Metrics as text.
#[derive(Clone)]
struct Sheet {
    made: Time,
    text: Bytes,
}

fn router(pages: Arc<Pages>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n") })
        .layer(axum::middleware::from_fn(refuse_bodies))
        .with_state(pages)
}

async fn refuse_bodies(request: Request<Body>, next: axum::middleware::Next) -> Response {
    let length = request.headers().get(header::CONTENT_LENGTH);
    if length.is_some_and(|l| l != "0") || request.headers().contains_key(header::TRANSFER_ENCODING) {
        let close = [(header::CONNECTION, HeaderValue::from_static("close"))];
        return (StatusCode::PAYLOAD_TOO_LARGE, close, "requests have no body here\n").into_response();
    }
    next.run(request).await
}

async fn metrics(
    State(pages): State<Arc<Pages>>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> Response {
    let accept = request.headers().get(header::ACCEPT).and_then(|a| a.to_str().ok()).unwrap_or_default();
    let open = accept.contains("application/openmetrics-text");
    let kind = HeaderValue::from_static(if open { OPENMETRICS } else { TEXT });
    match pages.sheet(open, caller).await {
        Some(text) => ([(header::CONTENT_TYPE, kind)], text).into_response(),
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

impl Pages {
    /// The metrics, at most [`SHEET_AGE`] old; this machine's own programs get new ones. `None`: they could not be made.
    async fn sheet(self: Arc<Pages>, open: bool, caller: Caller) -> Option<Bytes> {
        let mut last = self.sheets[usize::from(open)].lock().await;
        if let Some(sheet) = &*last
            && !caller.own
            && clock::now().since(sheet.made) < SHEET_AGE
        {
            return Some(sheet.text.clone());
        }
        let pages = self.clone();
        let made = clock::now();
        // Encoding some hundred lines and reading /proc may take a millisecond: not on a runtime thread.
        let text = tokio::task::spawn_blocking(move || {
            let mut families = pages.state.metrics();
            HttpMetrics::collect(&[&pages.places.metrics], &mut families);
            if open { exposition::openmetrics(families) } else { exposition::text(families) }
        });
        let text = Bytes::from(text.await.ok()?);
        *last = Some(Sheet { made, text: text.clone() });
        Some(text)
    }
}

async fn healthz(State(pages): State<Arc<Pages>>) -> Response {
    let reasons = pages.state.stuck();
    answer(reasons.is_empty(), &serde_json::json!({ "healthy": reasons.is_empty(), "reasons": reasons }))
}

/// 200 for `full`; with `?for=established` for `fallback` too. The body says the grade and why.
async fn readyz(State(pages): State<Arc<Pages>>, request: Request<Body>) -> Response {
    let enough = match request.uri().query() {
        None => Grade::Full,
        Some("for=established") => Grade::Fallback,
        Some(_) => return (StatusCode::BAD_REQUEST, "there are /readyz and /readyz?for=established\n").into_response(),
    };
    let Readiness { grade, reasons } = pages.state.readiness();
    let body = serde_json::json!({ "ready": grade == Grade::Full, "grade": grade.name(), "reasons": reasons });
    answer(grade >= enough, &body)
}

fn answer(good: bool, body: &serde_json::Value) -> Response {
    let code = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let kind = HeaderValue::from_static("application/json");
    (code, [(header::CONTENT_TYPE, kind)], format!("{body}\n")).into_response()
}

#[cfg(test)]
mod tests;
