//! A witness in this process, over its real socket, log and store: it needs no privileges.

use std::path::Path;

use hyper_util::rt::TokioIo;
use palisade_proto::admin::v1::admin_client::AdminClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use super::*;
use crate::config::Config;
use crate::node::Node;

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn config(dir: &Path) -> Config {
    let text = format!(
        "name = \"w1\"\nrole = \"witness\"\ndata_dir = {:?}\n[cluster]\nlisten = \"127.0.0.1:{}\"\n\
         [admin]\nsocket = {:?}\n[http]\nlisten = \"127.0.0.1:{}\"\n",
        dir.join("data"),
        free_port(),
        dir.join("admin.sock"),
        free_port(),
    );
    Config::parse("node.toml", &text).unwrap()
}

async fn client(path: &Path) -> AdminClient<Channel> {
    for _ in 0..500 {
        let path = path.to_owned();
        let open = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        if let Ok(channel) = Endpoint::from_static("http://admin.invalid").connect_with_connector(open).await {
            return AdminClient::new(channel);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the admin socket is not there");
}

/// Everything below a folder that others than its owner may read, write or enter.
fn open_to_others(folder: &Path) -> Vec<std::path::PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let is_open = |path: &Path| std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o077 != 0;
    let mut found: Vec<_> = is_open(folder).then(|| folder.to_owned()).into_iter().collect();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(open_to_others(&path)),
            false => found.extend(is_open(&path).then_some(path)),
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn data_folder_is_closed_to_other_users_and_watches_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let (socket, data) = (config.admin.socket.clone(), config.data_dir.clone());
    // As somebody may have made it by hand.
    std::fs::create_dir(&data).unwrap();
    std::fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let node = tokio::spawn(Node::run(config));
    let mut admin = client(&socket).await;
    admin.init(v1::InitRequest::default()).await.unwrap();
    assert_eq!(open_to_others(&data), Vec::<std::path::PathBuf>::new());

    let mut watches = Vec::new();
    for n in 0..crate::limits::MAX_WATCHES {
        // Several connections: each has room for few requests at once.
        if n % 8 == 0 {
            admin = client(&socket).await;
        }
        watches.push(admin.session_watch(v1::SessionWatchRequest::default()).await.unwrap());
    }
    let mut admin = client(&socket).await;
    let refused = admin.session_watch(v1::SessionWatchRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    drop(watches);
    // Every watch ends with its reader.
    let mut again = admin.session_watch(v1::SessionWatchRequest::default()).await;
    while again.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
        again = admin.session_watch(v1::SessionWatchRequest::default()).await;
    }
    node.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_made_and_administrated_over_its_socket() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let socket = config.admin.socket.clone();
    let node = tokio::spawn(Node::run(config.clone()));
    let mut admin = client(&socket).await;

    // Outside: what needs a cluster is refused, with what to do.
    let health = admin.health(v1::HealthRequest {}).await.unwrap().into_inner().health.unwrap();
    assert_eq!(health.reasons, ["this machine is in no cluster"]);
    let refused = admin.token(v1::TokenRequest { valid_ms: 1000, wait_ms: 0 }).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.metadata().get_bin(HELP).is_some(), "{refused:?}");

    let made = admin.init(v1::InitRequest::default()).await.unwrap().into_inner();
    assert_eq!(made.member, 1);
    assert_eq!(admin.init(v1::InitRequest::default()).await.unwrap_err().code(), Code::FailedPrecondition);
    let status = admin.status(v1::StatusRequest {}).await.unwrap().into_inner();
    let membership = status.membership.unwrap();
    assert_eq!((membership.cluster, membership.leader, membership.members.len()), (made.cluster, 1, 1));
    assert!(status.health.unwrap().ready);
    assert!(status.datapath.is_none(), "a witness has none");

    // A policy: wrong, right, again, on a wrong base.
    let apply = |text: &str, base| v1::PolicyApplyRequest {
        name: "p".into(),
        text: text.into(),
        author: "alice".into(),
        base,
        wait_ms: 0,
        without: Vec::new(),
    };
    let wrong = admin.policy_apply(apply("accept nonsense", None)).await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
    let text = "zone a, b\ndefault drop\naccept \"x\" from a to b: any -> any tcp/80\n";
    let applied = admin.policy_apply(apply(text, None)).await.unwrap().into_inner();
    assert_eq!((applied.generation, applied.unchanged), (1, false));
    assert!(admin.policy_apply(apply(text, None)).await.unwrap().into_inner().unchanged);
    assert_eq!(admin.policy_apply(apply(text, Some(0))).await.unwrap_err().code(), Code::Aborted);
    let last_log = async |admin: &mut AdminClient<Channel>| {
        let status = admin.status(v1::StatusRequest {}).await.unwrap().into_inner();
        status.membership.unwrap().last_log
    };
    let before = last_log(&mut admin).await;
    for _ in 0..3 {
        admin.policy_history(v1::PolicyHistoryRequest { barrier: true, wait_ms: 0 }).await.unwrap();
    }
    assert_eq!(last_log(&mut admin).await, before, "a barrier read adds nothing to the log");
    let show = v1::PolicyShowRequest { generation: None, barrier: true, wait_ms: 0 };
    let shown = admin.policy_show(show).await.unwrap().into_inner();
    assert!(shown.text.contains("tcp/80"), "{}", shown.text);
    assert!(shown.policy.unwrap().author.starts_with("alice"));
    let missing =
        admin.policy_show(v1::PolicyShowRequest { generation: Some(7), barrier: false, wait_ms: 0 }).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);

    // The leader has compared all members.
    let mut audited_index = 0;
    for _ in 0..100 {
        if audited_index > 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let status = admin.status(v1::StatusRequest {}).await.unwrap().into_inner();
        audited_index = status.membership.unwrap().audited_index;
    }
    assert!(audited_index > 0);

    // Sessions: none, but all the ways are there.
    let mut list = admin.session_list(v1::SessionListRequest::default()).await.unwrap().into_inner();
    assert!(list.message().await.unwrap().is_none());
    let count = admin.session_count(v1::SessionCountRequest::default()).await.unwrap().into_inner();
    assert_eq!((count.sessions, count.half_open), (0, 0));
    let id = Some(v1::SessionId { member: 1, counter: 1 });
    assert_eq!(admin.session_show(v1::SessionShowRequest { id }).await.unwrap_err().code(), Code::NotFound);
    let all = v1::SessionKillRequest { ids: Vec::new(), filter: Some(v1::SessionFilter::default()), wait_ms: 0 };
    assert_eq!(admin.session_kill(all).await.unwrap().into_inner().killed, 0);
    let mut leaving = admin.leave(v1::LeaveRequest { timeout_ms: 0, wait_ms: 0 }).await.unwrap().into_inner();
    assert_eq!(leaving.message().await.unwrap_err().code(), Code::FailedPrecondition);

    // Drained: not ready, though nobody else could lead; and back again.
    let mut draining = admin.drain(v1::DrainRequest { timeout_ms: 5000 }).await.unwrap().into_inner();
    let mut last = None;
    while let Some(answer) = draining.message().await.unwrap() {
        last = Some(answer);
    }
    let last = last.unwrap();
    assert!(last.done && last.draining.is_some_and(|d| d.quiet && !d.leader), "{last:?}");
    let health = admin.health(v1::HealthRequest {}).await.unwrap().into_inner().health.unwrap();
    assert!(!health.ready && health.reasons[0].contains("palisade undrain"), "{health:?}");
    assert!(admin.undrain(v1::UndrainRequest {}).await.unwrap().into_inner().was_drained);
    assert!(!admin.undrain(v1::UndrainRequest {}).await.unwrap().into_inner().was_drained);

    // What a scrape would get, all parts of a witness together.
    let text = scrape(config.http.listen).await;
    crate::metrics::check(text.split_once("\r\n\r\n").unwrap().1);
    for metric in ["palisade_ready 1", "palisade_raft_role{role=\"leader\"} 1", "palisade_policy_generation 1"] {
        assert!(text.contains(metric), "{metric} is missing in {text}");
    }
    node.abort();
}

async fn scrape(to: std::net::SocketAddr) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(to).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}
