//! The compiler: one policy at a time, on a thread of its own.

use std::sync::Arc;
use std::time::Duration;

use palisade_engine::{CompileRefusal, CompiledPolicy, Engine, PolicyTask};
use tokio::sync::{Notify, oneshot};

use crate::clock;
use crate::policy::memory;
use crate::replication_metrics::ReplicationMetrics;

/// How often it looks for policies that are not used any longer, and for one to compile that nobody announced.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// After this time a policy is tried again that was refused for lack of memory.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// The task that compiles policies.
pub(crate) struct PolicyCompiler {
    pub(crate) engine: Arc<Engine>,
    /// Notified when there may be another policy.
    pub(crate) changed: Arc<Notify>,
    pub(crate) metrics: Arc<ReplicationMetrics>,
}

impl PolicyCompiler {
    pub(crate) async fn run(self) {
        let mut refused = clock::now();
        loop {
            if let Some(task) = self.engine.policy_to_compile() {
                self.compile(Arc::new(task)).await;
                refused = clock::now();
                continue;
            }
            // On expiry it looks again, whatever was announced.
            drop(tokio::time::timeout(IDLE_INTERVAL, self.changed.notified()).await);
            if clock::now().since(refused) >= RETRY_DELAY {
                refused = clock::now();
                self.engine.retry_policies();
            }
            self.free().await;
        }
    }

    async fn compile(&self, task: Arc<PolicyTask>) {
        let begin = clock::now();
        let (hash, is_in_force) = (task.hash(), task.is_in_force());
        let result = compiled(self.engine.clone(), task.clone()).await;
        let took = clock::now().since(begin);
        self.metrics.policy_compile_time.set(took);
        match &result {
            Ok(_) => {
                self.metrics.policies_compiled.compiled.inc();
                tracing::info!(%hash, is_in_force, ?took, "a policy was compiled");
            }
            Err(refusal) => {
                self.metrics.policies_compiled.refused.inc();
                tracing::warn!(%hash, is_in_force, %refusal, "a policy was not compiled");
            }
        }
        self.engine.policy_compiled(&task, result);
    }

    /// Frees policies that are not used any longer: not here, where others wait.
    async fn free(&self) {
        #[cfg(feature = "simulation")]
        if crate::simulation::host().is_some() {
            self.engine.free_policies();
            return;
        }
        if self.engine.has_unused_policies() {
            let engine = self.engine.clone();
            // It ends early only with the runtime.
            drop(tokio::task::spawn_blocking(move || engine.free_policies()).await);
        }
    }
}

/// Compiles on another thread.
async fn compiled(engine: Arc<Engine>, task: Arc<PolicyTask>) -> Result<CompiledPolicy, CompileRefusal> {
    #[cfg(feature = "simulation")]
    if crate::simulation::host().is_some() {
        // There are no threads in a simulation, but what a slow one leads to: up to half a second.
        let [byte] = crate::random::random::<1>().unwrap_or_default();
        tokio::time::sleep(Duration::from_millis(2) * u32::from(byte)).await;
        return task.compile(None);
    }
    let (done, result) = oneshot::channel();
    let work = move || {
        // What the policy before the last one took is not needed twice.
        engine.free_policies();
        // Fails only if the member stops.
        drop(done.send(task.compile(memory::available())));
    };
    let thread = std::thread::Builder::new().name("policy-compiler".to_owned()).spawn(work);
    if let Err(error) = thread {
        tracing::error!(%error, "the compiler's thread cannot be started");
        return Err(CompileRefusal::Crashed);
    }
    // It goes away without a result if it panics.
    result.await.unwrap_or(Err(CompileRefusal::Crashed))
}
