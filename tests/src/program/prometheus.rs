//! Prometheus and its promtool.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use palisade_lab::addr;
use palisade_lab::{Lab, Process, Spawn, WAIT};
use tokio::time::{Instant, sleep};

use palisade_lab::program::{path, run, wait_port};

const PORT: u16 = 9090;

/// Has promtool judge a text of metrics.
///
/// # Errors
/// It complains.
pub async fn check(lab: &Lab, metrics: &str) -> Result<()> {
    let file = lab.dir().join("metrics");
    std::fs::write(&file, metrics)?;
    let script = "exec \"$0\" check metrics < \"$1\"";
    let promtool = path("promtool")?.display().to_string();
    let args = ["-c", script, &promtool, &file.display().to_string()];
    let said = run(lab.fabric(), lab.dir(), WAIT, "sh", &args).await?;
    // It lints with exit code 0 in some versions.
    if said.trim().is_empty() { Ok(()) } else { bail!("promtool says:\n{said}") }
}

/// Starts a Prometheus beside the members that scrapes each of them every second.
///
/// # Errors
/// It does not start.
pub async fn start(lab: &Lab) -> Result<Process> {
    let dir = lab.dir().join("prometheus");
    std::fs::create_dir_all(&dir)?;
    let targets: Vec<String> = lab.members().iter().map(|m| format!("'{}'", addr::http(m.number()))).collect();
    let config = format!(
        "global:\n  scrape_interval: 1s\nscrape_configs:\n  - job_name: palisade\n    static_configs:\n      \
         - targets: [{}]\n",
        targets.join(", ")
    );
    let file = dir.join("prometheus.yml");
    std::fs::write(&file, config)?;
    let spawn = Spawn::new(path("prometheus")?, dir.join("log"))
        .arg(format!("--config.file={}", file.display()))
        .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
        .arg(format!("--web.listen-address=0.0.0.0:{PORT}"));
    let mut process = lab.fabric().start(spawn).await?;
    wait_port(lab.fabric(), &mut process, PORT).await.context("prometheus")?;
    Ok(process)
}

/// Asks it, again and again, until `query` has exactly `series` results and all are `value`.
///
/// # Errors
/// That does not come true within [`WAIT`].
pub async fn wait_query(lab: &Lab, query: &str, series: usize, value: &str) -> Result<()> {
    let end = Instant::now() + WAIT;
    let url = format!("http://127.0.0.1:{PORT}");
    loop {
        let args = ["query", "instant", &url, query];
        let said = run(lab.fabric(), lab.dir(), WAIT, "promtool", &args).await;
        // One line each: `up{instance="…"} => 1 @[…]`.
        let said = said.unwrap_or_else(|e| format!("{e:#}"));
        let good = said.lines().filter(|l| l.contains(&format!("=> {value} @"))).count();
        if good == series && said.trim().lines().count() == series {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("{query} has not become {value} in {series} series; promtool says:\n{said}");
        }
        sleep(Duration::from_millis(500)).await;
    }
}
