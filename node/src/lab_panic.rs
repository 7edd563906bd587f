//! The death of a task or thread on purpose (`[lab] panic`): tests use it to show that none dies unseen.

use std::future::Future;
use std::sync::OnceLock;
use std::time::Duration;

/// How long the task or thread lives: the daemon has started by then.
const LIFE: Duration = Duration::from_secs(1);

static NAME: OnceLock<String> = OnceLock::new();

/// Names the task or thread that is to die.
pub(crate) fn set(name: &str) {
    tracing::warn!(name, "[lab] panic: a task or thread is going to die");
    drop(NAME.set(name.to_owned()));
}

fn is_named(name: &str) -> bool {
    NAME.get().is_some_and(|dies| dies == name)
}

/// Runs a task to its end, or its death.
pub(crate) async fn task<T>(name: &str, task: impl Future<Output = T>) -> T {
    if is_named(name) {
        tokio::select! {
            biased;
            ended = task => return ended,
                () = tokio::time::sleep(LIFE) => die(name),
        }
    }
    task.await
}

/// To be called at the begin of a thread, which dies here or lives on.
pub(crate) fn thread(name: &str) {
    if is_named(name) {
        std::thread::sleep(LIFE);
        die(name);
    }
}

#[expect(clippy::panic, reason = "on purpose")]
fn die(name: &str) -> ! {
    panic!("[lab] panic: {name} dies");
}
