//! What is everyday does not look like an error in the log.

use std::io;

use parking_lot::Mutex;
use tracing_subscriber::fmt::MakeWriter;

use super::*;
use crate::raft::handle::RaftHandle;

/// A log in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock())).unwrap()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;

    fn make_writer(&'a self) -> Log {
        self.clone()
    }
}

/// Polls a question to Raft once, which sends it, and drops it before Raft answers, as the server does when the caller of an
/// RPC has gone.
async fn ask_and_go<T>(question: impl Future<Output = T>) {
    let mut question = std::pin::pin!(question);
    assert!(futures::poll!(&mut question).is_pending());
}

// One thread: Raft cannot answer before the question is dropped, and all of the log comes here.
#[tokio::test]
async fn caller_that_goes_away_leaves_no_error_in_the_log() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::ERROR).with_writer(log.clone()).finish();
    let _default = tracing::subscriber::set_default(subscriber);
    let mut node = Node::new("fw1");
    init(&node.options).await.unwrap();
    node.start().await;
    until("it has a valid lease", || node.has_valid_lease()).await;
    let raft = node.run().replication.raft.clone();
    log.take();

    ask_and_go(raft.read_state(|state| *state.vote_ref())).await;
    raft.read_state(|_| ()).await.unwrap();
    assert_eq!(log.take(), "");
    // Why this is not left to openraft. Once this fails, its own function will do.
    ask_and_go(raft.with_raft_state(|state| *state.vote_ref())).await;
    raft.read_state(|_| ()).await.unwrap();
    assert!(log.take().contains("to-Raft tx send error"));
    node.stop().await;
}
