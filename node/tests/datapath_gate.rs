//! What must not pass does not: a dead, stopped or refused daemon, foreign frames, interfaces that come later.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test; the lab that it shares has more than it uses"
)]

mod datapath_member;

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use datapath_member::{Fixed, PROGRAMS, Running, arrives, start, two_interfaces};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use palisade_engine::parse::build;
use palisade_engine::{Protocol, Reason, Tuple};
use palisade_lab::guard::can_run;
use palisade_lab::small::{BlockingNetns, SOON, SmallLab, eventually, run};
use palisade_node::datapath::{Gate, Listener, Nft, Options, StartError};

const NEVER: Duration = Duration::from_millis(300);

/// Not a test of its own: the daemon's part in a process that can be stopped and killed.
#[test]
fn child_datapath() {
    if std::env::var_os("PALISADE_LAB_CHILD").is_none() {
        return;
    }
    let _running = Running::start(two_interfaces(), Fixed::forward()).unwrap();
    std::thread::sleep(Duration::from_secs(1200));
}

/// Not a test of its own: a start in a user namespace, where there is no `/dev/net/tun` for us.
#[test]
fn child_in_a_user_namespace() {
    if std::env::var_os("PALISADE_LAB_USER").is_none() {
        return;
    }
    run("ip link add f0 type veth peer name f1");
    for interface in ["lo", "f0", "f1"] {
        run(&format!("ip link set {interface} up"));
    }
    run("sysctl -qw net.ipv6.conf.all.forwarding=1");
    let options = Options { workers: 2, ..two_interfaces() };
    let running = Running::start(options, Fixed::forward()).unwrap_or_else(|e| panic!("{e:?}"));
    let status = running.datapath.status();
    assert_eq!(status.mode, "raw/veth");
    assert!(status.gate.rules && running.datapath.healthy(), "{status:?}");
    running.datapath.stop();
    assert!(!run("ip link").contains("palisade"), "a veth pair stays behind");
}

#[test]
fn user_namespace_without_privileges_gets_the_veth_pair() {
    if !can_run("an_unprivileged_user_namespace", &[PROGRAMS, &["setpriv", "unshare"]].concat()) {
        return;
    }
    let unprivileged = "--reuid=65534 --regid=65534 --clear-groups unshare -Urnm --mount-proc --fork --pid";
    let command = |program: &str, arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(unprivileged.split(' ')).arg(program).args(arguments).env("PALISADE_LAB_USER", "1");
        command.output().unwrap()
    };
    if !command("true", &[]).status.success() {
        eprintln!("SKIPPED: an_unprivileged_user_namespace: this kernel allows none");
        return;
    }
    let program = std::env::current_exe().unwrap();
    let output = command(program.to_str().unwrap(), &["--exact", "child_in_a_user_namespace", "--nocapture"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

struct Process(Child);

impl Process {
    fn start(member: &BlockingNetns) -> Process {
        let program = std::env::current_exe().unwrap();
        let mut command = Command::new(program);
        command.args(["--exact", "child_datapath"]).env("PALISADE_LAB_CHILD", "1").stdout(Stdio::null());
        // A child begins in the namespace of the thread that forks it.
        Process(member.call(move || command.spawn().unwrap()))
    }

    /// Are all of its threads stopped? (The signal takes a moment.)
    fn stopped(&self) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.0.id())).unwrap();
        tasks
            .map(|t| std::fs::read_to_string(t.unwrap().path().join("stat")).unwrap())
            .all(|stat| stat.contains(") T "))
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn killed_daemon_forwards_nothing_and_a_restarted_one_again() {
    if !can_run("a_killed_daemon", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    assert!(lab.passes(false, SOON), "before Palisade, the kernel forwards");
    let process = Process::start(&lab.member);
    eventually("the gate", || lab.member.ip("rule").contains("blackhole"));
    eventually("it forwards", || lab.passes(false, NEVER));
    process.signal(Signal::SIGKILL);
    drop(process);
    for v6 in [false, true] {
        assert!(!lab.passes(v6, NEVER), "v6 {v6}: the kernel forwards for a dead daemon");
    }
    assert!(
        lab.answers(&lab.client, "10.1.0.1") && lab.answers(&lab.client, "fd00:1::1"),
        "the machine itself is mute"
    );
    assert!(lab.answers(&lab.client, "10.2.0.1"), "its far address is its own too");
    assert!(lab.answers(&lab.member, "10.2.0.2"), "the machine's own output is cut off");
    let again = Process::start(&lab.member);
    eventually("it forwards again", || lab.passes(false, NEVER) && lab.passes(true, NEVER));
    drop(again);
    // Each lock holds alone.
    delete_table(&lab);
    assert!(!lab.passes(false, NEVER) && !lab.passes(true, NEVER), "the policy rules alone");
    let guard = lab.member.call(|| Gate::new("palisade0", &[]).install().unwrap());
    assert!(guard.nft.is_ok());
    for family in ["-4", "-6"] {
        lab.member.ip(&format!("{family} rule del pref 2"));
    }
    assert!(!lab.passes(false, NEVER) && !lab.passes(true, NEVER), "the nftables table alone");
    // Only the operator's command opens the machine.
    remove_gate(&lab);
    assert!(lab.passes(false, SOON) && lab.passes(true, SOON));
    assert!(!lab.member.ip("rule").contains("nop"));
}

#[test]
fn stopped_daemon_forwards_nothing_stale_when_it_goes_on() {
    if !can_run("a_stopped_daemon", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    let process = Process::start(&lab.member);
    eventually("the gate", || lab.member.ip("rule").contains("blackhole"));
    eventually("it forwards", || lab.passes(false, NEVER));
    process.signal(Signal::SIGSTOP);
    eventually("all of its threads stand", || process.stopped());
    let receiver = lab.listen(false, 7000, Duration::from_millis(600));
    lab.client.call(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        for _ in 0..100 {
            socket.send_to(b"old", "10.2.0.2:7000").unwrap();
        }
    });
    assert!(receiver.recv(&mut [0; 8]).is_err(), "a stopped daemon forwards");
    process.signal(Signal::SIGCONT);
    assert!(receiver.recv(&mut [0; 8]).is_err(), "what it had captured before it was stopped comes out late");
    drop(receiver);
    assert!(lab.passes(false, SOON), "and fresh packets must pass again");
}

fn udp(destination: [u8; 4]) -> Vec<u8> {
    let ip = |b: [u8; 4]| IpAddr::V4(Ipv4Addr::from(b)).into();
    let (src, dst) = (ip([10, 1, 0, 2]), ip(destination));
    build::udp(&Tuple { src, dst, src_port: 7000, dst_port: 7000, protocol: Protocol::UDP }, b"frame").unwrap()
}

#[test]
fn frames_that_are_not_for_this_router_are_not_forwarded() {
    if !can_run("frames_that_are_not_for_this_router", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    let judge = Fixed::forward();
    let running = start(&lab, two_interfaces(), &judge).unwrap();
    assert!(lab.passes(false, SOON));
    // Promiscuous, so that foreign frames come as far as the sockets.
    lab.member.ip("link set f0 promisc on");
    let own = lab.member.mac("f0");
    let mut sender = lab.client.wire("c0");
    let receiver = lab.listen(false, 7000, NEVER);
    let mut send = |mac: [u8; 6], tag: &[u8]| {
        let mut frame = mac.to_vec();
        frame.extend([2, 0, 0, 0, 0, 9]);
        frame.extend(tag);
        frame.extend([8, 0]);
        frame.extend(udp([10, 2, 0, 2]));
        sender.send(&frame).unwrap();
        receiver.recv(&mut [0; 64]).is_ok()
    };
    let foreign = || running.datapath.metrics().dropped(Reason::NotForUs);
    assert!(arrives(|| send(own, &[]), &receiver), "the same frame, but addressed to the router, must pass");
    let cases: [(&str, [u8; 6], &[u8]); 5] = [
        ("a foreign MAC address", [2, 0, 0, 0, 0, 7], &[]),
        ("a broadcast", [0xff; 6], &[]),
        ("a multicast", [1, 0, 0x5e, 1, 2, 3], &[]),
        ("a VLAN tag", own, &[0x81, 0, 0, 5]),
        ("two VLAN tags", own, &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6]),
    ];
    for (what, mac, tag) in cases {
        assert!(!send(mac, tag), "{what} is forwarded");
    }
    assert!(foreign() >= 3, "{}", foreign());
    assert!(arrives(|| send(own, &[]), &receiver), "and again");

    // What routers say to each other on a link is the machine's own traffic: no drop, or the figure would always rise.
    let local = || running.datapath.metrics().workers.iter().map(|w| w.local_packets.get()).sum::<u64>();
    for (what, mac, to) in [
        ("OSPF", [1, 0, 0x5e, 0, 0, 5], [224, 0, 0, 5]),
        ("VRRP", [1, 0, 0x5e, 0, 0, 18], [224, 0, 0, 18]),
        ("DHCP", [0xff; 6], [255; 4]),
    ] {
        let (before, dropped) = (local(), foreign());
        let mut frame = mac.to_vec();
        frame.extend([2, 0, 0, 0, 0, 9, 8, 0]);
        frame.extend(udp(to));
        sender.send(&frame).unwrap();
        eventually(what, || local() > before);
        assert_eq!(foreign(), dropped, "{what} counts as dropped");
    }
}

#[test]
fn local_traffic_of_the_machine_is_left_alone() {
    if !can_run("the_machines_own_traffic", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    let judge = Fixed::forward();
    judge.say(1);
    let running = start(&lab, two_interfaces(), &judge).unwrap();
    let metrics = running.datapath.metrics();
    eventually("it captures", || {
        assert!(!lab.passes(false, Duration::from_millis(20)), "a dropped packet passes");
        metrics.dropped(Reason::Policy) >= 1
    });
    for (from, to) in
        [(&lab.client, "10.1.0.1"), (&lab.client, "fd00:1::1"), (&lab.member, "10.2.0.2"), (&lab.member, "fd00:2::2")]
    {
        assert!(lab.answers(from, to), "{to}");
    }
    // An address that is added later is the machine's too.
    lab.member.ip("addr add 10.1.0.77/32 dev f0");
    eventually("the new address answers", || lab.answers(&lab.client, "10.1.0.77"));
    eventually("they are counted", || metrics.total(|worker| worker.local_packets.get()) >= 4);
    assert!(!lab.passes(false, NEVER), "a dropped packet passes");
}

#[test]
fn gate_does_not_cut_the_machine_off_where_local_is_behind_it() {
    if !can_run("gate_does_not_cut_the_machine_off_where_local_is_behind_it", &[PROGRAMS, &["ping"]].concat()) {
        return;
    }
    let lab = SmallLab::new();
    // As where VRFs are used.
    lab.member.exec("ip rule add pref 100 lookup local");
    lab.member.exec("ip rule del pref 0");
    let reached = || lab.client.try_exec("ping -c 1 -W 2 10.1.0.1").is_ok();
    assert!(reached() && lab.passes(false, SOON));
    let installed = lab.member.call(|| Gate::new("palisade0", &[]).install().unwrap());
    assert!(installed.problems.iter().any(|problem| problem.contains("ip rule add pref 0 lookup local")));
    assert!(reached(), "the machine is cut off");
    assert!(!lab.passes(false, NEVER) && !lab.passes(true, NEVER), "the second lock does not hold alone");
}

#[test]
fn interface_that_appears_later_is_gated_and_one_that_returns_is_captured_again() {
    if !can_run("an_interface_that_appears_later", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    let judge = Fixed::forward();
    let running = start(&lab, two_interfaces(), &judge).unwrap();
    assert!(lab.passes(false, SOON));
    // A second way from the client, which Palisade knows nothing of.
    let member = &lab.member.path();
    lab.client.ip(&format!("link add c1 type veth peer name later netns {member}"));
    lab.client.ip("addr add 10.3.0.2/24 dev c1");
    lab.client.ip("link set c1 up");
    lab.member.ip("addr add 10.3.0.1/24 dev later");
    lab.member.ip("link set later up");
    lab.client.ip("route add 10.2.0.2/32 via 10.3.0.1");
    assert!(lab.answers(&lab.client, "10.3.0.1"));
    assert!(!lab.passes(false, NEVER), "an unknown interface is a way around");
    lab.member.ip("link set later down");
    lab.member.ip("link set later name f9");
    lab.member.ip("link set f9 up");
    assert!(!lab.passes(false, NEVER), "a renamed one is");
    lab.client.ip("link del c1");
    assert!(lab.passes(false, SOON));
    // f0 goes and comes back as another device of that name.
    lab.client.ip("link del c0");
    eventually("its loss is noticed", || running.datapath.status().interfaces[0].index == 0);
    lab.client.ip(&format!("link add c0 type veth peer name f0 netns {member}"));
    lab.client.ip("addr add 10.1.0.2/24 dev c0");
    lab.client.ip("link set c0 up");
    lab.client.ip("route add default via 10.1.0.1");
    lab.member.ip("addr add 10.1.0.1/24 dev f0");
    lab.member.ip("link set f0 up");
    eventually("it forwards again", || lab.passes(false, NEVER));
    assert_eq!(running.datapath.metrics().watcher.captures_reopened.get(), 1);
}

#[test]
fn watcher_restores_what_somebody_removes() {
    if !can_run("the_watcher_restores", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    let judge = Fixed::forward();
    // As on a kernel before 6.9, where everybody can change the table.
    let gate = Some(Gate::without_owner("palisade0", &[]));
    let running = start(&lab, Options { gate, ..two_interfaces() }, &judge).unwrap();
    let restored = || running.datapath.metrics().watcher.gate_restored.get();
    assert_eq!(running.datapath.status().gate.nft, Nft::Installed);
    assert_eq!(running.datapath.status().warnings, Vec::<String>::new());
    for (count, family) in [(1, "-4"), (2, "-6")] {
        lab.member.ip(&format!("{family} rule del pref 2"));
        eventually("the rule is back", || lab.member.ip(&format!("{family} rule")).contains("blackhole"));
        eventually("it is counted", || restored() == count);
    }
    lab.member.exec("nft flush ruleset");
    eventually("the table is back", || lab.member.exec("nft list ruleset").contains("fib daddr type"));
    lab.member.exec("nft insert rule inet palisade_gate prerouting accept");
    eventually("the rule that undid it is gone", || {
        !lab.member.exec("nft list ruleset").contains("\t\taccept\n\t\tiifname")
    });
    lab.member.exec("sysctl -qw net.ipv4.conf.palisade0.accept_local=0");
    lab.member.exec("sysctl -qw net.ipv4.conf.palisade0.forwarding=0");
    eventually("the setting is back", || {
        lab.member.exec("sysctl -n net.ipv4.conf.palisade0.accept_local").trim() == "1"
    });
    assert!(running.datapath.healthy());
    lab.member.exec("sysctl -qw net.ipv4.conf.all.rp_filter=2");
    eventually("rp_filter is noticed", || !running.datapath.healthy());
    assert!(running.datapath.status().warnings[0].contains("rp_filter"));
    lab.member.exec("sysctl -qw net.ipv4.conf.all.rp_filter=0");
    eventually("it is well again", || running.datapath.healthy());
    eventually("it forwards", || lab.passes(false, NEVER));
    // A rule that leads around the gate cannot be removed for the operator, but it is not healthy.
    lab.member.ip("rule add pref 1 lookup main");
    eventually("the way around is noticed", || !running.datapath.healthy());
    lab.member.ip("rule del pref 1 lookup main");
    eventually("it is well once more", || running.datapath.healthy());
    // Where the kernel puts a rule for which nobody has named a place.
    lab.member.ip("rule add from 192.0.2.0/24 lookup main");
    let remedy = |warning: &String| warning.contains("at priority 0 leads around") && warning.contains("`pref 1000`");
    eventually("so is a rule without a priority", || running.datapath.status().warnings.iter().any(remedy));
}

#[test]
fn table_of_the_gate_is_left_alone_by_other_programs() {
    if !can_run("the_table_of_the_gate", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    let running = start(&lab, two_interfaces(), &Fixed::forward()).unwrap();
    let listing = || lab.member.exec("nft list ruleset");
    let before = listing();
    assert!(before.contains("notrack") && before.contains("log prefix"), "{before}");
    if lab.member.try_exec("nft insert rule inet palisade_gate prerouting accept").is_ok() {
        eprintln!("SKIPPED: the_table_of_the_gate: a kernel without persistent owners of tables (before 6.9)");
        return;
    }
    lab.member.exec("nft flush ruleset");
    assert!(lab.member.try_exec("nft delete table inet palisade_gate").is_err(), "somebody else deletes it");
    assert_eq!(listing(), before, "a flush of others took the table");
    assert!(lab.passes(false, SOON));
    assert_eq!(running.datapath.metrics().watcher.gate_restored.get(), 0);
    // It outlives its owner, and belongs to the next one.
    running.datapath.stop();
    for family in ["-4", "-6"] {
        lab.member.ip(&format!("{family} rule del pref 2"));
    }
    assert!(!lab.passes(false, NEVER) && !lab.passes(true, NEVER), "the table is gone with its owner");
    let again = start(&lab, two_interfaces(), &Fixed::forward()).unwrap();
    assert!(lab.passes(false, SOON) && lab.passes(true, SOON));
    assert!(lab.member.try_exec("nft delete table inet palisade_gate").is_err(), "it was not adopted");
    // Two daemons cannot have it.
    let second = lab.member.call(|| Gate::new("palisade0", &[]).install().unwrap());
    assert!(second.nft.unwrap_err().to_string().contains("another process"));
    drop(again);
    // One that does not get it is not fit for traffic until it has it.
    let owner = Gate::new("palisade0", &[]);
    let install = owner.clone();
    eventually("it is owned", || {
        let gate = install.clone();
        lab.member.call(move || gate.install().unwrap().nft.is_ok())
    });
    drop(install);
    let late = start(&lab, two_interfaces(), &Fixed::forward()).unwrap();
    let lacks = || late.datapath.conditions().iter().any(|c| c.to_string().contains("another process owns it"));
    assert!(lacks());
    drop(owner);
    eventually("the table is its own", || !lacks());
    assert!(lab.passes(false, SOON) && lab.passes(true, SOON));
}

#[test]
fn listener_is_reached_from_its_interfaces_only() {
    if !can_run("a_listener", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    lab.member.ip("addr add 10.7.0.1/32 dev lo");
    let gate = Gate::new("palisade0", &[]);
    let running = start(&lab, Options { gate: Some(gate.clone()), ..two_interfaces() }, &Fixed::forward()).unwrap();
    let index = |name: &str| {
        let line = lab.member.ip(&format!("-o link show {name}"));
        line.split(':').next().unwrap().trim().parse::<u32>().unwrap()
    };
    let connects = |from: &BlockingNetns, to: &str| {
        let to: std::net::SocketAddr = to.parse().unwrap();
        from.call(move || std::net::TcpStream::connect_timeout(&to, NEVER)).is_ok()
    };
    let addresses = ["10.1.0.1", "10.7.0.1", "fd00:1::1"];
    let _servers = lab.member.call(|| std::net::TcpListener::bind("[::]:7946").unwrap());
    let place = |ip: &str| std::net::SocketAddr::new(ip.parse().unwrap(), 7946).to_string();
    // On a fresh link, neighbour discovery takes its time.
    let reaches = |from: &BlockingNetns, to: &str| (0..60).any(|_| connects(from, &place(to)));
    for address in addresses {
        assert!(reaches(&lab.client, address) && reaches(&lab.server, address), "{address}");
    }
    let only = |interfaces: &[u32]| {
        let listener = |address: &&str| Listener {
            address: address.parse().unwrap(),
            port: 7946,
            interfaces: interfaces.to_vec(),
        };
        addresses.iter().map(listener).collect::<Vec<_>>()
    };
    let any = [Listener { address: "::".parse().unwrap(), port: 7946, interfaces: vec![index("f1")] }];
    for listeners in [only(&[index("f1")]), any.to_vec()] {
        gate.set_listeners(&listeners).unwrap();
        for address in addresses {
            assert!(!connects(&lab.client, &place(address)), "{address} from outside");
            assert!(reaches(&lab.server, address), "{address} from inside");
            assert!(reaches(&lab.member, address), "{address} from the machine itself");
        }
        assert!(lab.answers(&lab.client, "10.1.0.1"), "another port");
    }
    gate.set_listeners(&only(&[index("f0"), index("f1")])).unwrap();
    assert!(reaches(&lab.client, "10.7.0.1"), "changed live");
    assert!(running.datapath.healthy() && running.datapath.metrics().watcher.gate_restored.get() == 0);
}

/// One start check: how it is provoked, undone, and what its remedy must name.
type Case = (&'static str, fn(&StartError) -> bool, &'static str, &'static str);

#[test]
fn start_checks_refuse_with_their_remedy() {
    if !can_run("each_start_check", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    let cases: Vec<Case> = vec![
        (
            "ip rule add pref 5 lookup local; ip rule del pref 0",
            |e| matches!(e, StartError::LocalRule { .. }),
            "ip rule add pref 0 lookup local; ip rule del pref 5",
            "ip rule add pref 0 lookup local",
        ),
        (
            "ip -6 rule add pref 1 lookup main",
            |e| matches!(e, StartError::ForeignRule { priority: 1, .. }),
            "ip -6 rule del pref 1",
            "pref 1",
        ),
        (
            "sysctl -qw net.ipv4.conf.all.rp_filter=2",
            |e| matches!(e, StartError::RpFilter { all: 2, .. }),
            "sysctl -qw net.ipv4.conf.all.rp_filter=0",
            "manage_rp_filter",
        ),
        (
            "sysctl -qw net.ipv6.conf.all.forwarding=0",
            |e| matches!(e, StartError::Forwarding { .. }),
            "sysctl -qw net.ipv6.conf.all.forwarding=1",
            "sysctl -w net.ipv6.conf.all.forwarding=1",
        ),
        (
            "sysctl -qw net.ipv4.conf.f0.bc_forwarding=1",
            |e| matches!(e, StartError::Forwards { .. }),
            "sysctl -qw net.ipv4.conf.f0.bc_forwarding=0",
            "net.ipv4.conf.f0.bc_forwarding=0",
        ),
        (
            "nft add table ip filter; nft add chain ip filter FORWARD {type filter hook forward priority 0;policy drop;}",
            |e| matches!(e, StartError::ForwardChain { .. }),
            "nft insert rule ip filter FORWARD iifname palisade* counter accept",
            "iptables -I FORWARD -i palisade+",
        ),
        (
            "ip link add palisade00002 type veth peer name other",
            |e| matches!(e, StartError::DeviceInUse { .. }),
            "ip link del palisade00002",
            "ip link del palisade00002",
        ),
    ];
    let script = |lines: &str| {
        for line in lines.split("; ") {
            lab.member.exec(line);
        }
    };
    for (provoke, expected, undo, remedy) in cases {
        script(provoke);
        let error =
            start(&lab, two_interfaces(), &Fixed::forward()).err().unwrap_or_else(|| panic!("{provoke}: it starts"));
        assert!(expected(&error), "{provoke}: {error:?}");
        let help = miette::Diagnostic::help(&error).expect("a remedy").to_string();
        assert!(help.contains(remedy), "{provoke}: {help}");
        script(undo);
        let running =
            start(&lab, two_interfaces(), &Fixed::forward()).unwrap_or_else(|e| panic!("after {undo}: {e:?}"));
        running.datapath.stop();
        remove_gate(&lab);
    }
    assert!(!lab.member.ip("link").contains("palisade"), "a device stays behind");
}

/// Removes the gate once nobody owns its table. A program that another test is starting has this process' sockets until it
/// runs, the owner's among them.
fn remove_gate(lab: &SmallLab) {
    eventually("the gate can be removed", || lab.member.call(|| Gate::remove().is_ok()));
}

/// Deletes the gate's table, as [`remove_gate`].
fn delete_table(lab: &SmallLab) {
    let delete = "nft delete table inet palisade_gate";
    eventually("the table can be deleted", || lab.member.try_exec(delete).is_ok());
}

/// Starts a datapath that must be refused, and gives the error and its remedy.
fn refused(lab: &SmallLab, what: &str) -> (StartError, String) {
    let error = start(lab, two_interfaces(), &Fixed::forward()).err().unwrap_or_else(|| panic!("{what}: it starts"));
    let help = miette::Diagnostic::help(&error).expect("a remedy").to_string();
    (error, help)
}

/// A multicast routing daemon's hold on the kernel: `mc_forwarding` is read-only for everybody else. `None`: this kernel
/// has no multicast routing.
#[allow(unsafe_code, reason = "no crate here has this socket option")]
fn multicast_router(v6: bool) -> Option<OwnedFd> {
    let (family, protocol, level) = match v6 {
        false => (libc::AF_INET, libc::IPPROTO_IGMP, libc::IPPROTO_IP),
        true => (libc::AF_INET6, libc::IPPROTO_ICMPV6, libc::IPPROTO_IPV6),
    };
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
    assert!(fd >= 0, "a raw socket");
    // SAFETY: a fresh descriptor that nobody else has.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let (init, one) = (200 /* MRT_INIT, MRT6_INIT */, 1i32);
    // SAFETY: the pointer is to four readable bytes that outlive the call.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, init, (&raw const one).cast(), 4) };
    match std::io::Error::last_os_error() {
        _ if done == 0 => Some(socket),
        error if error.raw_os_error() == Some(libc::ENOPROTOOPT) => None,
        error => panic!("a multicast router: {error}"),
    }
}

#[test]
fn multicast_router_refuses_the_start() {
    if !can_run("a_multicast_router_refuses_the_start", PROGRAMS) {
        return;
    }
    for v6 in [false, true] {
        let lab = SmallLab::new();
        let Some(router) = lab.member.call(move || multicast_router(v6)) else {
            eprintln!("SKIPPED: a_multicast_router_refuses_the_start: a kernel without multicast routing, v6 {v6}");
            continue;
        };
        let (error, help) = refused(&lab, "a multicast router");
        assert!(matches!(error, StartError::Forwards { what: "multicast", .. }), "{error:?}");
        let family = if v6 { "ipv6" } else { "ipv4" };
        assert!(help.contains("multicast routing daemon") && help.contains(&format!("net.{family}.conf")), "{help}");
        drop(router);
        start(&lab, two_interfaces(), &Fixed::forward()).unwrap_or_else(|e| panic!("without it: {e:?}"));
    }
}

#[test]
fn forward_chains_of_the_iptables_programs_refuse_the_start() {
    if !can_run("forward_chains_of_the_iptables_programs", PROGRAMS) {
        return;
    }
    for program in ["iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"] {
        let lab = SmallLab::new();
        let provoked = lab.member.try_exec(&format!("{program} -P FORWARD DROP"));
        if let Err(reason) = provoked {
            eprintln!("SKIPPED: forward_chains_of_the_iptables_programs: {program}: {reason}");
            continue;
        }
        let (error, help) = refused(&lab, program);
        assert!(matches!(error, StartError::ForwardChain { .. }), "{program}: {error:?}");
        assert!(help.contains("-I FORWARD -i palisade+ -j ACCEPT"), "{program}: {help}");
        lab.member.exec(&format!("{program} -I FORWARD -i palisade+ -j ACCEPT"));
        let running = start(&lab, two_interfaces(), &Fixed::forward()).unwrap_or_else(|e| panic!("{program}: {e:?}"));
        assert!(lab.passes(program.starts_with("ip6"), SOON), "{program}: the remedy does not help");
        drop(running);
    }
}

#[test]
fn forward_chain_that_comes_later_is_noticed() {
    if !can_run("a_forward_chain_that_comes_later", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    let running = start(&lab, two_interfaces(), &Fixed::forward()).unwrap();
    assert!(lab.passes(false, SOON) && running.datapath.healthy());
    lab.member.exec("nft add table inet late");
    lab.member.exec("nft add chain inet late fw {type filter hook forward priority 10;policy accept;}");
    lab.member.exec("nft add rule inet late fw counter reject");
    eventually("it is noticed", || !running.datapath.healthy());
    let warnings = running.datapath.status().warnings;
    assert!(warnings.iter().any(|w| w.contains("inet late fw") && w.contains("nft insert rule")), "{warnings:?}");
}

/// Two conditions of the start are the daemon's own device's, so it sets them right instead of refusing; only where it may
/// not is the start refused.
#[test]
fn settings_of_our_own_device_are_repaired_or_refuse_the_start() {
    if !can_run("what_concerns_our_own_device", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    lab.member.exec("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.default.disable_ipv6=1");
    let running = start(&lab, two_interfaces(), &Fixed::forward()).unwrap();
    let value = |name: &str| lab.member.exec(&format!("sysctl -n {name}")).trim().to_owned();
    assert_eq!(value("net.ipv4.conf.palisade0.forwarding"), "1");
    assert_eq!(value("net.ipv6.conf.palisade0.disable_ipv6"), "0");
    assert!(lab.passes(false, SOON) && lab.passes(true, SOON));
    // As the watcher does when somebody undoes it.
    lab.member.exec("sysctl -qw net.ipv4.ip_forward=1");
    lab.member.exec("sysctl -qw net.ipv4.ip_forward=0");
    eventually("forwarding is back", || value("net.ipv4.conf.palisade0.forwarding") == "1");
    running.datapath.stop();
    let error = lab.member.call(|| {
        // A mount namespace of this thread alone, where the settings cannot be written.
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        run("mount --make-rprivate /");
        run("mount -t proc proc /proc");
        run("mount --bind /proc/sys /proc/sys");
        run("mount -o remount,bind,ro /proc/sys");
        Running::start(two_interfaces(), Fixed::forward()).err()
    });
    let error = error.expect("it starts although it can set nothing");
    assert!(matches!(error, StartError::Setting { .. }), "{error:?}");
    assert!(miette::Diagnostic::help(&error).unwrap().to_string().contains("/proc/sys/net"));
    assert!(!lab.passes(false, NEVER), "a refused start leaves the machine open");
}

#[test]
fn exemption_that_is_no_longer_configured_is_closed() {
    if !can_run("an_exemption_that_is_no_longer_configured", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    let exempt = Options { bypass_interfaces: vec!["f0".to_owned()], ..two_interfaces() };
    let install = |options: &Options| {
        let gate = Gate::new("palisade0", &options.bypass_interfaces);
        lab.member.call(move || gate.install().unwrap());
    };
    install(&exempt);
    assert!(lab.passes(false, SOON) && lab.passes(true, SOON), "the exemption does not work");
    install(&two_interfaces());
    assert!(!lab.member.ip("rule").contains("f0") && !lab.member.ip("-6 rule").contains("f0"));
    delete_table(&lab);
    assert!(!lab.passes(false, NEVER) && !lab.passes(true, NEVER), "the old exemption still stands");
}

#[test]
fn interface_that_was_in_another_namespace_is_captured_again() {
    if !can_run("an_interface_that_was_in_another_namespace", PROGRAMS) {
        return;
    }
    let (lab, elsewhere) = (SmallLab::new(), BlockingNetns::new("e"));
    let running = start(&lab, Options { workers: 2, ..two_interfaces() }, &Fixed::forward()).unwrap();
    assert!(lab.passes(false, SOON));
    let index = running.datapath.status().interfaces[0].index;
    for round in 1..=3 {
        lab.member.ip(&format!("link set f0 netns {}", elsewhere.path()));
        elsewhere.ip(&format!("link set f0 netns {}", lab.member.path()));
        lab.member.ip("addr add 10.1.0.1/24 dev f0");
        lab.member.ip("link set f0 up");
        eventually("it forwards again", || lab.passes(false, NEVER));
        assert_eq!(running.datapath.status().interfaces[0].index, index, "the case was to be that of an old index");
        assert!(running.datapath.metrics().watcher.captures_reopened.get() >= round);
    }
    // Down and up again is no loss of sockets.
    let before = running.datapath.metrics().watcher.captures_reopened.get();
    lab.member.ip("link set f0 down");
    lab.member.ip("link set f0 up");
    eventually("it forwards again", || lab.passes(false, NEVER));
    assert_eq!(running.datapath.metrics().watcher.captures_reopened.get(), before);
    eventually("it is well", || running.datapath.healthy());
}

#[test]
fn thread_that_dies_is_noticed_and_nothing_passes() {
    if !can_run("a_thread_that_dies", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    let judge = Fixed::forward();
    let running = start(&lab, two_interfaces(), &judge).unwrap();
    assert!(lab.passes(false, SOON));
    assert_eq!(running.datapath.dead_thread(), None);
    judge.say(5);
    assert!(!lab.passes(false, NEVER));
    eventually("its death is noticed", || running.datapath.dead_thread().as_deref() == Some("packets-0"));
    assert!(!running.datapath.healthy());
    assert!(running.datapath.status().warnings.iter().any(|w| w.contains("packets-0 died")));
    judge.say(0);
    assert!(!lab.passes(false, NEVER), "the kernel forwards for a dead worker");
    running.datapath.stop();
}

#[test]
fn rp_filter_is_pushed_down_where_that_was_allowed() {
    if !can_run("rp_filter_is_pushed_down", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    lab.member
        .exec("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.f1.rp_filter=2 net.ipv6.conf.all.forwarding=0");
    let options = Options { manage_rp_filter: true, manage_forwarding: true, ..two_interfaces() };
    let running = start(&lab, options, &Fixed::forward()).unwrap();
    let value = |of: &str| lab.member.exec(&format!("sysctl -n net.ipv4.conf.{of}.rp_filter")).trim().to_owned();
    assert_eq!(["all", "palisade0", "f0", "f1", "default"].map(value), ["0", "0", "1", "2", "1"]);
    assert!(lab.passes(false, SOON) && lab.passes(true, SOON));
    drop(running);
}
