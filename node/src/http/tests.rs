use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

struct Fake(Readiness);

impl HttpState for Fake {
    fn metrics(&self) -> MetricFamilies {
        let mut families = MetricFamilies::default();
        families.counter("palisade_x_total", "Something that is counted", 3);
        families
    }

    fn stuck(&self) -> Vec<String> {
        Vec::new()
    }

    fn readiness(&self) -> Readiness {
        self.0.clone()
    }
}

async fn start(grade: Grade, reasons: &[&str]) -> SocketAddr {
    let config = config::Http { listen: "127.0.0.1:0".parse().unwrap(), interfaces: Vec::new() };
    let server = Server::bind(&config, SecondLock::default()).unwrap();
    let address = server.local_addr().unwrap();
    let state = Fake(Readiness { grade, reasons: reasons.iter().map(ToString::to_string).collect() });
    tokio::spawn(server.serve(Arc::new(state)));
    address
}

async fn ask(to: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    // The server may refuse before everything was written.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

async fn get(to: SocketAddr, path: &str) -> String {
    ask(to, format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await
}

#[tokio::test]
async fn pages_answer() {
    let to = start(Grade::Full, &[]).await;
    assert!(get(to, "/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(get(to, "/healthz").await.contains("{\"healthy\":true,\"reasons\":[]}"));
    let metrics = get(to, "/metrics").await;
    assert!(metrics.contains("text/plain; version=0.0.4"), "{metrics}");
    assert!(metrics.contains("# TYPE palisade_x_total counter\npalisade_x_total 3\n"), "{metrics}");
    assert!(metrics.contains("palisade_http_connections{class=\"known\"} 1\n"), "{metrics}");
    let accept = "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text;version=1.0.0,*/*;q=0.1\r\nConnection: close\r\n\r\n";
    let metrics = ask(to, accept.as_bytes()).await;
    assert!(metrics.contains("application/openmetrics-text") && metrics.ends_with("# EOF\n"), "{metrics}");
    assert!(get(to, "/etc/passwd").await.starts_with("HTTP/1.1 404"));
}

/// Counts how often metrics are made.
#[derive(Default)]
struct Counting(std::sync::atomic::AtomicU64);

impl HttpState for Counting {
    fn metrics(&self) -> MetricFamilies {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        MetricFamilies::default()
    }

    fn stuck(&self) -> Vec<String> {
        Vec::new()
    }

    fn readiness(&self) -> Readiness {
        Readiness { grade: Grade::Full, reasons: Vec::new() }
    }
}

#[tokio::test]
async fn scrapers_share_one_sheet_a_second() {
    let state = Arc::<Counting>::default();
    let made = || state.0.load(std::sync::atomic::Ordering::SeqCst);
    let pages = Arc::new(Pages { state: state.clone(), places: Default::default(), sheets: Default::default() });
    for open in [false, true] {
        let (first, since) = (made(), clock::now());
        for _ in 0..300 {
            assert!(pages.clone().sheet(open, Caller { own: false }).await.is_some());
        }
        let (sheets, took) = (made() - first, clock::now().since(since));
        // The first, and one more for each second that is over.
        assert!((1..=1 + took.as_secs()).contains(&sheets), "{sheets} sheets in {took:?}");
    }
    let before = made();
    for n in 1..=3 {
        assert!(pages.clone().sheet(false, Caller { own: true }).await.is_some());
        assert_eq!(made(), before + n, "a program of this machine gets new ones");
    }
}

#[tokio::test]
async fn readiness_is_told_by_grade_and_with_its_reasons() {
    for (grade, new, established) in
        [(Grade::Full, "200", "200"), (Grade::Fallback, "503", "200"), (Grade::Withdraw, "503", "503")]
    {
        let to = start(grade, &["this member has no valid lease"]).await;
        for (path, code) in [("/readyz", new), ("/readyz?for=established", established), ("/readyz?for=x", "400")] {
            let answer = get(to, path).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{grade:?} {path}: {answer}");
            let why = format!("\"grade\":\"{}\"", grade.name());
            assert!(code == "400" || answer.contains(&why) && answer.contains("no valid lease"), "{answer}");
        }
        assert!(get(to, "/healthz").await.starts_with("HTTP/1.1 200"), "not ready is not unhealthy");
    }
}

#[tokio::test]
async fn garbage_does_no_harm() {
    let to = start(Grade::Full, &[]).await;
    let mut long = b"GET /metrics HTTP/1.1\r\n".to_vec();
    long.extend(std::iter::repeat_n(b'a', 100_000));
    let bodies = "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n";
    let chunked = "GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n";
    for bytes in
        [&[0_u8; 4096][..], b"\r\n\r\n\r\n", b"\x16\x03\x01\x02\x00", &long, bodies.as_bytes(), chunked.as_bytes()]
    {
        let answer = ask(to, bytes).await;
        assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert!(get(to, "/readyz").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn silent_connections_do_not_lock_others_out() {
    let to = start(Grade::Full, &[]).await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(to).await.unwrap());
        assert!(get(to, "/readyz").await.starts_with("HTTP/1.1 200"), "after {} silent connections", silent.len());
    }
}

#[tokio::test]
async fn connection_with_an_unfinished_request_is_the_one_that_makes_room() {
    let to = start(Grade::Full, &[]).await;
    let mut half = TcpStream::connect(to).await.unwrap();
    half.write_all(b"GET /readyz HTTP/1.1\r\n").await.unwrap();
    for _ in 0..places::KNOWN.share {
        assert!(get(to, "/readyz").await.starts_with("HTTP/1.1 200"));
    }
    let _silent: Vec<TcpStream> = futures::future::join_all((0..places::KNOWN.share).map(|_| TcpStream::connect(to)))
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let mut rest = Vec::new();
    let _ = half.read_to_end(&mut rest).await;
    assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
}
