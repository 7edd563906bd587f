//! The commands: one file per noun.

pub mod audit;
pub mod cluster;
pub mod completions;
pub mod config;
pub mod drain;
pub mod gate;
pub mod health;
pub mod log;
pub mod man;
pub mod node;
pub mod policy;
pub mod session;
pub mod settings;
mod time;
mod wait;
