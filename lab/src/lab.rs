//! A client and a server host, each its own router, with a link to each member, over which it balances by the layer-4 hash
//! (see [`addr`] for the picture).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use palisade_engine::Role;
use parking_lot::Mutex;
use serde_json::Value;
use tempfile::TempDir;

use crate::addr::{self, SIDES, Side};
use crate::member::{Member, Mode};
use crate::netlink::{Flow, NextHop};
use crate::netns::Netns;
use crate::router::{RoutedNetwork, Router, Target};
use crate::wait::WAIT;

/// More do not fit on a screen, nor on two cores.
pub const MAX_MEMBERS: usize = 8;

/// How to set up a lab.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many members to begin with.
    pub members: usize,
    /// The `palisade` executable.
    pub binary: PathBuf,
    /// What stands in the middle.
    pub mode: Mode,
}

/// A network of two hosts and some members between them. Fields are dropped in order: what uses a namespace first.
#[derive(Debug)]
pub struct Lab {
    routers: [Router; 2],
    members: Vec<Member>,
    hosts: [Netns; 2],
    fabric: Netns,
    /// Which member an interface of a host leads to.
    links: Arc<Mutex<HashMap<(usize, u32), usize>>>,
    options: Options,
    dir: Option<TempDir>,
    path: PathBuf,
}

impl Lab {
    /// Makes the network. No daemon runs yet.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn new(options: Options) -> Result<Lab> {
        if !(1..=MAX_MEMBERS).contains(&options.members) {
            bail!("{} members: the lab has room for 1 to {MAX_MEMBERS}", options.members);
        }
        // Both ends of every connection are in this process.
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
        let dir = tempfile::Builder::new().prefix("palisade-").tempdir().context("a folder for the lab")?;
        let path = dir.path().to_owned();
        let fabric = Netns::new("fabric").await?;
        fabric.netlink().add_bridge("bridge").await?;
        fabric.netlink().up("bridge").await?;
        fabric.netlink().add_address("bridge", addr::fabric(254), 24).await?;
        let hosts = [host(Side::Client).await?, host(Side::Server).await?];
        let routers = [router(&hosts[0], Side::Client)?, router(&hosts[1], Side::Server)?];
        let count = options.members;
        let mut lab =
            Lab { routers, members: Vec::new(), hosts, fabric, links: Arc::default(), options, dir: Some(dir), path };
        for _ in 0..count {
            lab.add_member().await?;
        }
        Ok(lab)
    }

    /// Makes a lab, starts all members, and forms a cluster of them under `policy`.
    ///
    /// # Errors
    /// What did not work.
    pub async fn with_cluster(options: Options, policy: &str) -> Result<Lab> {
        let mut lab = Lab::new(options).await?;
        let formed = lab.form(policy).await;
        lab.or_keep(formed)?;
        Ok(lab)
    }

    /// As [`Lab::with_cluster`], with more lines at the end of each member's `node.toml`.
    ///
    /// # Errors
    /// What did not work.
    pub async fn with_config(options: Options, policy: &str, extra: impl Fn(&Member) -> String) -> Result<Lab> {
        let mut lab = Lab::new(options).await?;
        for member in &lab.members {
            member.write_config(&extra(member))?;
        }
        let formed = lab.form(policy).await;
        lab.or_keep(formed)?;
        Ok(lab)
    }

    async fn form(&mut self, policy: &str) -> Result<()> {
        for member in &mut self.members {
            member.start().await?;
        }
        if self.options.mode == Mode::Baseline {
            return self.wait_live(&self.numbers()).await;
        }
        for member in &mut self.members {
            member.wait_up(WAIT).await?;
        }
        self.members[0].cli(&["cluster", "init"]).await?;
        self.members[0].wait_ready(WAIT).await?;
        self.apply_policy(1, policy).await?;
        for number in self.numbers().into_iter().skip(1) {
            self.join(number).await?;
        }
        self.wait_live(&self.numbers()).await
    }

    /// Adds a member to the network. Its daemon does not run yet. Returns its number.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn add_member(&mut self) -> Result<usize> {
        let number = self.add_machine(Role::Firewall).await?;
        self.add_links(number).await?;
        Ok(number)
    }

    /// Adds a witness: it is on the members' own network only. Its daemon does not run yet. Returns its number.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn add_witness(&mut self) -> Result<usize> {
        self.add_machine(Role::Witness).await
    }

    async fn add_machine(&mut self, role: Role) -> Result<usize> {
        let number = self.members.len() + 1;
        if number > MAX_MEMBERS {
            bail!("the lab has room for {MAX_MEMBERS} members");
        }
        let netns = Netns::new(&format!("fw{number}")).await?;
        let member = Member::new(number, role, self.options.mode, netns, &self.options.binary, &self.path)?;
        member.prepare().await?;
        let netlink = member.netns().netlink();
        no_address_detection(member.netns()).await?;

        let port = format!("fw{number}");
        self.fabric.netlink().add_veth(&port, "eth-fabric", member.netns().file()).await?;
        self.fabric.netlink().enslave(&port, "bridge").await?;
        self.fabric.netlink().up(&port).await?;
        netlink.add_address("eth-fabric", addr::fabric(number), 24).await?;
        netlink.up("eth-fabric").await?;
        self.members.push(member);
        Ok(number)
    }

    /// Links a machine to both hosts, and has their routers watch it.
    async fn add_links(&mut self, number: usize) -> Result<()> {
        let port = format!("fw{number}");
        let member = &self.members[number - 1];
        let netlink = member.netns().netlink();
        for (side, host) in SIDES.into_iter().zip(&self.hosts) {
            host.netlink().add_veth(&port, side.interface(), member.netns().file()).await?;
            for (end, interface, host_part) in [(host.netlink(), &*port, 1), (netlink, side.interface(), 2)] {
                for (address, prefix) in side.link(number, host_part) {
                    end.add_address(interface, address, prefix).await?;
                }
                end.up(interface).await?;
            }
        }
        member.add_routes().await?;
        for ((side, host), router) in SIDES.into_iter().zip(&self.hosts).zip(&mut self.routers) {
            let ifindex = host.netlink().index(&port).await?;
            self.links.lock().insert((side as usize, ifindex), number);
            let hops = side.link(number, 2).map(|(via, _)| NextHop { via, ifindex });
            router.add(Target { number, readyz: member.readyz(side), hops }).await;
        }
        Ok(())
    }

    /// The host, and router, on one side.
    #[must_use]
    pub fn host(&self, side: Side) -> &Netns {
        &self.hosts[side as usize]
    }

    /// The client's host.
    #[must_use]
    pub fn client(&self) -> &Netns {
        self.host(Side::Client)
    }

    /// The server's host.
    #[must_use]
    pub fn server(&self) -> &Netns {
        self.host(Side::Server)
    }

    /// The members' own network, from where all of them can be reached.
    #[must_use]
    pub fn fabric(&self) -> &Netns {
        &self.fabric
    }

    /// The router on one side.
    #[must_use]
    pub fn router(&self, side: Side) -> &Router {
        &self.routers[side as usize]
    }

    /// Both routers stop, or begin again, to follow what the members say.
    pub fn freeze_routes(&self, frozen: bool) {
        for router in &self.routers {
            router.freeze(frozen);
        }
    }

    /// The folder with everybody's files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.path
    }

    /// Leaves the folder in place when the lab is gone.
    pub fn keep_dir(&mut self) -> PathBuf {
        if let Some(dir) = self.dir.take() {
            return dir.keep();
        }
        self.path.clone()
    }

    /// Passes a result on; on failure the files are kept and named in the error.
    ///
    /// # Errors
    /// The one that was passed in.
    pub fn or_keep<T>(&mut self, result: Result<T>) -> Result<T> {
        result.map_err(|e| {
            let dir = self.keep_dir();
            anyhow!("{e:#}\nConfiguration and logs are in {}", dir.display())
        })
    }

    /// What stands in the middle.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.options.mode
    }

    /// All members, whether they run or not.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// All members, whether they run or not.
    pub fn members_mut(&mut self) -> &mut [Member] {
        &mut self.members
    }

    fn numbers(&self) -> Vec<usize> {
        (1..=self.members.len()).collect()
    }

    /// A member by its number.
    ///
    /// # Panics
    /// There is no such member: a mistake in the test.
    #[must_use]
    pub fn member(&self, number: usize) -> &Member {
        &self.members[number - 1]
    }

    /// A member by its number.
    ///
    /// # Panics
    /// There is no such member: a mistake in the test.
    pub fn member_mut(&mut self, number: usize) -> &mut Member {
        &mut self.members[number - 1]
    }

    /// Waits until both routers send traffic to exactly these members.
    ///
    /// # Errors
    /// They do not within the limit.
    pub async fn wait_live(&self, numbers: &[usize]) -> Result<()> {
        let mut wanted = numbers.to_vec();
        wanted.sort_unstable();
        let end = tokio::time::Instant::now() + WAIT;
        loop {
            let mut live = Vec::new();
            for router in &self.routers {
                let mut set = router.live().await;
                set.sort_unstable();
                live.push(set);
            }
            if live.iter().all(|set| *set == wanted) {
                return Ok(());
            }
            if tokio::time::Instant::now() > end {
                bail!("the routers send traffic to {live:?}, not to {wanted:?}, after {WAIT:?}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Has a running, fresh member join the cluster, and waits until it is ready.
    ///
    /// # Errors
    /// No other member runs, or it does not become ready.
    pub async fn join(&mut self, number: usize) -> Result<()> {
        if self.options.mode != Mode::Baseline {
            let inviter = self.members.iter().find(|m| m.is_running() && m.number() != number);
            let token = inviter.context("nobody to join")?.cli(&["cluster", "token"]).await?;
            self.member(number).cli(&["cluster", "join", token.trim()]).await?;
        }
        self.member_mut(number).wait_ready(WAIT).await
    }

    /// Has a member leave the cluster, waits until the routers have seen it, and ends its daemon.
    ///
    /// # Errors
    /// It could not.
    pub async fn leave(&mut self, number: usize) -> Result<()> {
        if self.options.mode == Mode::Baseline {
            self.member_mut(number).withdraw();
        } else {
            self.member(number).cli(&["cluster", "leave"]).await?;
        }
        let staying = |n: &usize| *n != number && self.member(*n).is_running();
        let staying: Vec<usize> = self.numbers().into_iter().filter(staying).collect();
        self.wait_live(&staying).await?;
        self.member_mut(number).terminate(WAIT).await
    }

    /// Applies a policy by way of a member.
    ///
    /// # Errors
    /// It was refused.
    pub async fn apply_policy(&self, number: usize, text: &str) -> Result<()> {
        if self.options.mode == Mode::Baseline {
            return Ok(());
        }
        let path = self.path.join("policy");
        std::fs::write(&path, text)?;
        self.member(number).cli(&["policy", "apply", &path.to_string_lossy()]).await?;
        Ok(())
    }

    /// The number of the member that leads, as one that runs says.
    ///
    /// # Errors
    /// Nobody leads, or nobody answers.
    pub async fn leader(&self) -> Result<usize> {
        if self.options.mode == Mode::Baseline {
            // Nobody leads; so that the script has somebody to kill, the first that runs.
            return self.members.iter().find(|m| m.is_running()).map(Member::number).context("nobody runs");
        }
        let mut problem = anyhow!("nobody runs");
        for member in self.members.iter().filter(|m| m.is_running()) {
            match member.status().await.and_then(|status| leader_of(&status)) {
                Ok(name) => {
                    let leader = self.members.iter().find(|m| m.name() == name);
                    return leader.map(Member::number).with_context(|| format!("{name} leads, who is not of this lab"));
                }
                Err(e) => problem = e,
            }
        }
        Err(problem)
    }

    /// As [`Lab::leader`], waiting for an election to end.
    ///
    /// # Errors
    /// Nobody leads within the limit.
    pub async fn wait_leader(&self) -> Result<usize> {
        let end = tokio::time::Instant::now() + WAIT;
        loop {
            match self.leader().await {
                Ok(number) if self.member(number).is_running() => return Ok(number),
                Err(e) if tokio::time::Instant::now() > end => return Err(e),
                _ if tokio::time::Instant::now() > end => bail!("a member that is dead still leads"),
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// The members that a connection's two directions go through just now; `flow` is the client's direction.
    ///
    /// # Errors
    /// A side has no route.
    pub async fn path(&self, flow: Flow) -> Result<[usize; 2]> {
        self.paths().of(flow).await
    }

    /// What [`Lab::path`] needs, to take elsewhere.
    #[must_use]
    pub fn paths(&self) -> Paths {
        Paths { hosts: self.hosts.clone(), links: Arc::clone(&self.links) }
    }

    /// Sends a signal to every running daemon.
    ///
    /// # Errors
    /// One has gone.
    pub fn signal_all(&mut self, signal: Signal) -> Result<()> {
        self.members.iter_mut().filter(|m| m.is_running()).try_for_each(|m| m.signal(signal))
    }
}

/// Finds out which members connections go through.
#[derive(Clone, Debug)]
pub struct Paths {
    hosts: [Netns; 2],
    links: Arc<Mutex<HashMap<(usize, u32), usize>>>,
}

impl Paths {
    /// As [`Lab::path`].
    ///
    /// # Errors
    /// A side has no route.
    pub async fn of(&self, flow: Flow) -> Result<[usize; 2]> {
        Ok([self.member(0, flow).await?, self.member(1, flow.reversed()).await?])
    }

    /// The member through which packets of `flow` leave one side just now; they come from there.
    ///
    /// # Errors
    /// That side has no route.
    pub async fn from(&self, side: Side, flow: Flow) -> Result<usize> {
        self.member(side as usize, flow).await
    }

    async fn member(&self, side: usize, flow: Flow) -> Result<usize> {
        let ifindex = self.hosts[side].netlink().egress(flow).await?;
        let number = self.links.lock().get(&(side, ifindex)).copied();
        number.with_context(|| format!("{flow:?} leaves by interface {ifindex}, which leads to no member"))
    }
}

/// The leader's name, in the answer of `palisade cluster status -o json`.
fn leader_of(status: &Value) -> Result<String> {
    let id = status.pointer("/cluster/leader").filter(|id| id.is_u64());
    let members = status.pointer("/cluster/members").and_then(Value::as_array);
    let leader = id.zip(members).and_then(|(id, members)| members.iter().find(|m| m.get("id") == Some(id)));
    let name = leader.and_then(|m| m.get("name")).and_then(Value::as_str);
    name.map(str::to_owned).with_context(|| format!("no leader in {status}"))
}

async fn host(side: Side) -> Result<Netns> {
    let netns = Netns::new(side.name()).await?;
    no_address_detection(&netns).await?;
    for (key, value) in [
        // Layer 4: each connection its own way.
        ("net/ipv4/fib_multipath_hash_policy", "1"),
        ("net/ipv6/fib_multipath_hash_policy", "1"),
        // Packets that come back via another link than they would be sent on are the purpose of the lab.
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        ("net/ipv4/ip_local_port_range", "1024 65535"),
    ] {
        netns.sysctl(key, value).await?;
    }
    for (key, value) in [
        ("net/core/somaxconn", "4096"),
        ("net/ipv4/tcp_max_syn_backlog", "8192"),
        ("net/ipv4/tcp_tw_reuse", "1"),
        ("net/ipv4/tcp_no_metrics_save", "1"),
        // The lab measures the firewall, not what some distribution's default does on a link of 50 µs.
        ("net/ipv4/tcp_congestion_control", "cubic"),
    ] {
        netns.sysctl_if_any(key, value).await;
    }
    for (address, prefix) in side.hosts().into_iter().zip([32, 128]) {
        netns.netlink().add_address("lo", address, prefix).await?;
    }
    Ok(netns)
}

/// IPv6 addresses are usable at once; there is nobody to collide with.
///
/// # Errors
/// The kernel has no IPv6.
pub async fn no_address_detection(netns: &Netns) -> Result<()> {
    netns.sysctl("net/ipv6/conf/all/accept_dad", "0").await?;
    netns.sysctl("net/ipv6/conf/default/accept_dad", "0").await
}

fn router(netns: &Netns, side: Side) -> Result<Router> {
    let networks = side.opposite().networks();
    let sources = side.hosts();
    let networks = [0, 1].map(|family| RoutedNetwork { network: networks[family], source: sources[family] });
    Router::new(netns, networks, side as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leader_is_found_in_the_status() {
        let members = serde_json::json!([{"id": 1, "name": "fw1"}, {"id": 4, "name": "fw3"}]);
        let status =
            |leader: Value| serde_json::json!({"name": "fw1", "cluster": {"leader": leader, "members": members}});
        assert_eq!(leader_of(&status(4.into())).unwrap(), "fw3");
        assert!(leader_of(&status(Value::Null)).is_err());
        assert!(leader_of(&status(9.into())).is_err());
        assert!(leader_of(&serde_json::json!({"cluster": null})).is_err());
    }
}
