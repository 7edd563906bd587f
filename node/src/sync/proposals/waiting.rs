//! The commands that wait for a batch. Those in the background (expiries, revocations by a policy) are behind all others:
//! nobody waits for a packet because of them.

use std::collections::VecDeque;

use palisade_engine::Time;
use palisade_engine::replica::Command;

use super::{MAX_BATCH_BYTES, MAX_BATCH_COMMANDS};
use crate::raft::requests::{Precedence, Reply};

/// How many batches in a row may leave out the background. Then one of its commands goes first.
const MAX_PASSED_OVER: u32 = 3;

/// A command that waits for a batch.
pub(super) struct PendingCommand {
    pub(super) command: Command,
    pub(super) queued: Time,
    pub(super) deadline: Time,
    pub(super) reply: Option<Reply>,
}

/// The queues. Their bound is the caller's business.
#[derive(Default)]
pub(super) struct WaitingCommands {
    ordinary: VecDeque<PendingCommand>,
    background: VecDeque<PendingCommand>,
    /// Number of batches that left out the background.
    passed_over: u32,
}

/// The commands of a batch.
#[derive(Default)]
struct Taken {
    commands: Vec<PendingCommand>,
    bytes: usize,
}

impl WaitingCommands {
    pub(super) fn len(&self) -> usize {
        self.ordinary.len() + self.background.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn push(&mut self, command: PendingCommand, precedence: Precedence) {
        match precedence {
            Precedence::Ordinary => self.ordinary.push_back(command),
            Precedence::Background => self.background.push_back(command),
        }
    }

    /// The last ordinary command.
    pub(super) fn last_mut(&mut self) -> Option<&mut PendingCommand> {
        self.ordinary.back_mut()
    }

    /// The deadlines of the first ones.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = Time> {
        [&self.ordinary, &self.background].into_iter().filter_map(|queue| queue.front().map(|c| c.deadline))
    }

    /// Takes a first command whose deadline has passed.
    pub(super) fn pop_late(&mut self, now: Time) -> Option<PendingCommand> {
        [&mut self.ordinary, &mut self.background]
            .into_iter()
            .find_map(|queue| queue.pop_front_if(|command| command.deadline <= now))
    }

    /// Takes the commands of the next batch: at most [`MAX_BATCH_COMMANDS`] of [`MAX_BATCH_BYTES`], but one at least.
    pub(super) fn take_batch(&mut self) -> Vec<PendingCommand> {
        let mut taken = Taken::default();
        let waiting = self.background.len();
        if self.passed_over >= MAX_PASSED_OVER {
            taken.fill(&mut self.background, 1);
        }
        taken.fill(&mut self.ordinary, MAX_BATCH_COMMANDS);
        taken.fill(&mut self.background, MAX_BATCH_COMMANDS);
        let left_out = waiting > 0 && self.background.len() == waiting;
        self.passed_over = if left_out { self.passed_over + 1 } else { 0 };
        taken.commands
    }

    /// All that wait.
    pub(super) fn into_commands(self) -> impl Iterator<Item = PendingCommand> {
        self.ordinary.into_iter().chain(self.background)
    }
}

impl Taken {
    /// Takes up to `max` commands from a queue, as far as they fit.
    fn fill(&mut self, queue: &mut VecDeque<PendingCommand>, max: usize) {
        for _ in 0..max {
            let Some(bytes) = queue.front().map(|next| self.bytes + next.command.size().encoded) else { return };
            let full = self.commands.len() >= MAX_BATCH_COMMANDS || bytes > MAX_BATCH_BYTES;
            if full && !self.commands.is_empty() {
                return;
            }
            self.bytes = bytes;
            self.commands.extend(queue.pop_front());
        }
    }
}
