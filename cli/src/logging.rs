//! The log: to standard error, where systemd's journal and people find it.

use std::io;

use tracing_subscriber::EnvFilter;

use crate::args::{Global, LogFormat};
use crate::exit::{Exit, Failure};

/// Switches the log on; `default` is the filter if neither `--log` nor `RUST_LOG` says one.
///
/// # Errors
/// The filter cannot be read.
pub fn start(global: &Global, default: &str) -> Result<(), Failure> {
    let text = global.log.clone().or_else(|| std::env::var("RUST_LOG").ok()).unwrap_or_else(|| default.to_owned());
    let filter = EnvFilter::try_new(&text).map_err(|e| {
        let help = "write a level (error, warn, info, debug, trace) or TARGET=LEVEL,…: --log palisade_node=debug,info";
        Failure::new(Exit::Usage, format!("the log filter \"{text}\" cannot be read: {e}"), Some(help))
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // The lab starts several members in one process; the first one's log is everybody's.
    let _ = match global.log_format {
        LogFormat::Text => builder.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}
