//! `--wait`: how long a command that needs a quorum waits for one.

use std::time::Duration;

use super::time::{self, millis};

/// The longest wait; the daemon waits no longer either.
const MAX_WAIT: Duration = Duration::from_secs(600);

/// The option of all commands that ask the cluster.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub struct Wait {
    /// Wait up to this long for a quorum if there is none now; without it the command is refused at once. At most 10m.
    #[arg(long, value_name = "TIME", value_parser = time::up_to(MAX_WAIT))]
    pub wait: Option<Duration>,
}

impl Wait {
    /// Milliseconds, as admin.proto has them.
    pub(super) fn millis(self) -> u64 {
        self.wait.map_or(0, millis)
    }

    /// The time for a request that takes `time` once there is a quorum.
    pub(super) fn with(self, time: Duration) -> Duration {
        time + self.wait.unwrap_or_default()
    }
}
