//! The demo's script: traffic, and then everything goes wrong.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use palisade_engine::Time;
use palisade_node::clock;
use tokio::time::sleep;

use super::Args;
use super::dashboard::Dashboard;
use super::report::{Observed, Report, Step};
use palisade_lab::counters::syn_retransmits;
use palisade_lab::traffic::{POLICY, Traffic};
use palisade_lab::{Lab, Mode, SIDES, Side};

/// Connections that stay from the beginning to the end.
const LONG_LIVED_CONNECTIONS: usize = 240;

/// A lost SYN is sent again after a second (RFC 6298), so what a failover cost is known this long after.
const RETRANSMIT_WINDOW: Duration = Duration::from_millis(1500);

/// How long a restarted or new member may take until it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) async fn run(args: &Args) -> Result<Report> {
    let dashboard = Dashboard::new();
    dashboard
        .say(&format!("{} members, a client side and a server side: network namespaces, links, routes", args.members));
    let mut lab = Lab::with_cluster(args.lab()?, POLICY).await?;
    let report = drive(args, &mut lab, &dashboard).await;
    let report = lab.or_keep(report)?;
    if report.verdict == super::Verdict::Fail {
        let dir = lab.keep_dir();
        dashboard.say(&format!("configuration and logs are in {}", dir.display()));
    }
    if args.keep {
        keep(&lab, &report).await?;
    }
    Ok(report)
}

async fn drive(args: &Args, lab: &mut Lab, dashboard: &Arc<Dashboard>) -> Result<Report> {
    for member in lab.members() {
        dashboard.member(member.number(), "forwarding");
    }
    let leader = lab.wait_leader().await?;
    dashboard.leader(lab.member(leader).name());
    dashboard.say(&format!("the cluster stands, {} leads; traffic begins", lab.member(leader).name()));

    let before = syn_retransmits(lab.client()).await?;
    let began = clock::now();
    let traffic = Arc::new(Traffic::start(lab, LONG_LIVED_CONNECTIONS).await?);
    let view = tokio::spawn(Arc::clone(dashboard).show(Arc::clone(&traffic)));
    let mut script = Script {
        lab,
        dashboard,
        began,
        length: Duration::from_secs(args.seconds),
        observed: Observed { members: args.members, ..Observed::default() },
    };
    if let Err(e) = script.play().await {
        // Not the end: the report tells what became of the connections meanwhile.
        script.observed.problems.push(format!("{e:#}"));
    }
    let mut observed = script.observed;
    traffic.finish().await;
    view.abort();
    dashboard.close();
    observed.seconds = clock::now().since(began).as_secs_f64();
    observed.syn_retransmits = syn_retransmits(lab.client()).await?.saturating_sub(before);
    for member in lab.members_mut() {
        if let Err(e) = member.check() {
            observed.problems.push(format!("{e:#}"));
        }
    }
    if lab.mode() != Mode::Baseline {
        match commits(lab).await {
            Ok(count) => observed.commits = Some(count),
            Err(e) => observed.problems.push(format!("{e:#}")),
        }
    }
    Ok(Report::new(lab.mode(), traffic.counts(), observed))
}

/// Commands that the log has committed, as the member counts that has applied most of it without a restart.
async fn commits(lab: &Lab) -> Result<u64> {
    let mut most = None;
    for member in lab.members().iter().filter(|m| m.is_running()) {
        let count = member.metric("palisade_applied_commands_total", &[]).await?;
        let count = count.max(0.0) as u64;
        most = most.max(Some(count));
    }
    most.context("no member runs that could tell the commits")
}

struct Script<'a> {
    lab: &'a mut Lab,
    dashboard: &'a Dashboard,
    began: Time,
    length: Duration,
    observed: Observed,
}

impl Script<'_> {
    async fn play(&mut self) -> Result<()> {
        self.until(0.20).await;
        let dead = self.kill_leader().await?;
        self.until(0.40).await;
        self.restart(dead).await?;
        self.until(0.55).await;
        let new = self.join().await?;
        self.until(0.75).await;
        self.leave(new).await?;
        self.until(1.0).await;
        Ok(())
    }

    /// Waits for a point of the script, as a share of its length.
    async fn until(&self, share: f64) {
        let at = self.began + self.length.mul_f64(share);
        sleep(at.since(clock::now())).await;
    }

    fn done(&mut self, what: String, since: Time) {
        let took_ms = u64::try_from(clock::now().since(since).as_millis()).unwrap_or(u64::MAX);
        self.dashboard.say(&format!("{what}: {took_ms} ms"));
        self.observed.steps.push(Step { what, took_ms });
    }

    fn running(&self) -> Vec<usize> {
        self.lab.members().iter().filter(|m| m.is_running()).map(|m| m.number()).collect()
    }

    async fn kill_leader(&mut self) -> Result<usize> {
        let leader = self.lab.wait_leader().await?;
        let name = self.lab.member(leader).name().to_owned();
        let before = syn_retransmits(self.lab.client()).await?;
        self.dashboard.say(&format!("SIGKILL to {name}, the leader"));
        let killed = clock::now();
        self.lab.member_mut(leader).kill().await?;
        self.dashboard.member(leader, "dead");
        self.dashboard.leader("");
        self.lab.wait_live(&self.running()).await?;
        self.observed.reroute_ms = self.reroute_ms(leader, killed);
        self.done(format!("the routers have taken {name} out"), killed);
        let next = self.lab.wait_leader().await?;
        let next = self.lab.member(next).name().to_owned();
        self.dashboard.leader(&next);
        self.done(format!("{next} leads"), killed);
        sleep((killed + RETRANSMIT_WINDOW).since(clock::now())).await;
        self.observed.syn_retransmits_failover = syn_retransmits(self.lab.client()).await?.saturating_sub(before);
        Ok(leader)
    }

    /// When the later of the two routers had its new routes.
    fn reroute_ms(&self, number: usize, killed: Time) -> Option<u64> {
        let mut latest = 0;
        for side in SIDES {
            let changes = self.lab.router(side).changes();
            let out = changes.iter().find(|c| c.number == number && !c.live && c.at >= killed)?;
            latest = latest.max(u64::try_from(out.at.since(killed).as_millis()).ok()?);
        }
        Some(latest)
    }

    async fn restart(&mut self, number: usize) -> Result<()> {
        let name = self.lab.member(number).name().to_owned();
        self.dashboard.say(&format!("{name} is started again"));
        let since = clock::now();
        let member = self.lab.member_mut(number);
        member.start().await?;
        self.dashboard.member(number, "catching up");
        self.lab.member_mut(number).wait_ready(READY_TIMEOUT).await?;
        self.lab.wait_live(&self.running()).await?;
        self.dashboard.member(number, "forwarding");
        self.done(format!("{name} has caught up by itself and forwards"), since);
        Ok(())
    }

    async fn join(&mut self) -> Result<usize> {
        let since = clock::now();
        let number = self.lab.add_member().await?;
        let name = self.lab.member(number).name().to_owned();
        self.dashboard.say(&format!("{name} joins"));
        self.dashboard.member(number, "joining");
        let member = self.lab.member_mut(number);
        member.start().await?;
        member.wait_up(READY_TIMEOUT).await?;
        self.lab.join(number).await?;
        self.lab.wait_live(&self.running()).await?;
        self.dashboard.member(number, "forwarding");
        self.done(format!("{name} has joined and forwards"), since);
        Ok(number)
    }

    async fn leave(&mut self, new: usize) -> Result<()> {
        let leader = self.lab.wait_leader().await?;
        let Some(number) = self.running().into_iter().find(|n| *n != leader && *n != new) else {
            bail!("nobody is there who could leave");
        };
        let name = self.lab.member(number).name().to_owned();
        self.dashboard.say(&format!("{name} leaves"));
        self.dashboard.member(number, "leaving");
        let since = clock::now();
        self.lab.leave(number).await?;
        self.lab.wait_live(&self.running()).await?;
        self.dashboard.member(number, "has left");
        let leader = self.lab.wait_leader().await?;
        self.dashboard.leader(self.lab.member(leader).name());
        self.done(format!("{name} has left"), since);
        Ok(())
    }
}

/// Leaves everything as it is until Ctrl-C, which ends the whole run.
async fn keep(lab: &Lab, report: &Report) -> Result<()> {
    eprintln!("{report}\nThe cluster stays up until Ctrl-C. In another terminal, with the same rights:\n");
    let user = if nix::unistd::getuid().is_root() && std::fs::read_to_string("/proc/self/uid_map").is_ok_and(whole) {
        String::new()
    } else {
        format!("--target {} --user --preserve-credentials ", std::process::id())
    };
    let exe = std::env::current_exe().context("the path of this executable")?;
    for side in SIDES {
        let host = lab.host(side);
        eprintln!("  nsenter {user}--net={}   # {}, {} and {}", host.path(), host.name(), side.v4(), side.v6());
    }
    for member in lab.members().iter().filter(|m| m.is_running()) {
        eprintln!(
            "  nsenter {user}--net={}   # {}, log {}",
            member.netns().path(),
            member.name(),
            member.log().display()
        );
    }
    if let Some(member) = lab.members().iter().find(|m| m.is_running()) {
        eprintln!("  {} cluster status --socket {}", exe.display(), member.socket().display());
    }
    eprintln!(
        "\nThe policy lets {} reach tcp/{} at {}.",
        Side::Client.v4(),
        palisade_lab::traffic::ECHO_PORT,
        Side::Server.v4()
    );
    tokio::signal::ctrl_c().await.context("Ctrl-C")
}

/// Whether this is the map of the machine's own user namespace.
fn whole(map: String) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}
