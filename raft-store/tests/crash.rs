//! Nothing acknowledged is lost: kill −9 and power cuts while a child process writes.
//!
//! The child is this very test binary. It appends, votes, truncates, builds snapshots and purges, and says on a pipe
//! what was acknowledged (after the acknowledgement) and what it is about to remove (before it does). The parent kills
//! it, or copies the disk under it, opens what is left and compares.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::collections::{BTreeMap, VecDeque};
use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use common::{Map, append, clock, entry, log_id, open, setup, vote};
use openraft::RaftSnapshotBuilder;
use openraft::storage::{RaftLogReader, RaftLogStorage, RaftStateMachine};
use palisade_raft_store::{Barrier, DiskBarrier, Entry, LogStore, Options, StateMachine, Store, StoreError, flush};
use parking_lot::Mutex;

const CHILD_DIR: &str = "PALISADE_STORE_CHILD";
const CHILD_BARRIER: &str = "PALISADE_STORE_BARRIER";
const CHILD_SEED: &str = "PALISADE_STORE_SEED";
const MARK: &str = "@@ ";

/// Small and good enough: splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// sled's flush without the fdatasync: what a power cut must show to be not enough.
struct Broken;

impl Barrier for Broken {
    fn wait(&mut self, db: &sled::Db) -> io::Result<()> {
        flush(db)
    }
}

fn say(line: &str) {
    let mut out = io::stdout().lock();
    // One write, so that a kill leaves whole lines.
    out.write_all(format!("{MARK}{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// Not a test by itself: what the other tests run as a child process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the child of the other tests"]
async fn child() {
    let Ok(dir) = env::var(CHILD_DIR) else { return };
    let broken = env::var(CHILD_BARRIER).as_deref() == Ok("broken");
    let seed = env::var(CHILD_SEED).unwrap().parse().unwrap();
    let store = Store::open_with(Path::new(&dir), Options::new(clock()), |db| {
        Ok(if broken { Box::new(Broken) } else { Box::new(DiskBarrier::new(db)?) as Box<dyn Barrier> })
    });
    let (log, machine) = store.unwrap().into_parts(setup()).unwrap();
    Writer { log, machine, random: Random(seed), flying: VecDeque::new(), snapshots: !broken }.run().await;
}

struct Writer {
    log: LogStore,
    machine: StateMachine<Map>,
    random: Random,
    flying: VecDeque<tokio::task::JoinHandle<()>>,
    snapshots: bool,
}

impl Writer {
    async fn run(mut self) {
        let mut reader = self.log.get_log_reader().await;
        let mut term = reader.read_vote().await.unwrap().map_or(1, |vote| vote.leader_id.term);
        let mut next = self.log.get_log_state().await.unwrap().last_log_id.map_or(1, |id| id.index + 1);
        say("open");
        loop {
            match self.random.below(40) {
                0 | 1 => {
                    term += 1;
                    self.log.save_vote(&vote(term)).await.unwrap();
                    say(&format!("vote {term}"));
                }
                2 => {
                    self.land().await;
                    let applied = self.machine.last_applied().map_or(0, |id| id.index);
                    let keep = (next - 1).saturating_sub(self.random.below(5)).max(applied);
                    if let Some(last) = reader.try_get_log_entries(keep..keep + 1).await.unwrap().first() {
                        say(&format!("cut {keep}"));
                        self.log.truncate_after(Some(last.log_id)).await.unwrap();
                        next = keep + 1;
                        term += 1;
                        self.log.save_vote(&vote(term)).await.unwrap();
                        say(&format!("vote {term}"));
                    }
                }
                // Syncing a snapshot's file and folder also commits what the file system knows of the database, and so
                // would hide that the database itself is not synced.
                3 if self.snapshots => {
                    self.land().await;
                    self.snapshot(&mut reader, next).await;
                }
                _ => {
                    let count = 1 + self.random.below(16);
                    let entries: Vec<Entry> = (next..next + count)
                        .map(|index| {
                            let bytes = if self.random.below(50) == 0 { 20_000 } else { self.random.below(1500) };
                            entry(term, index, usize::try_from(bytes).unwrap())
                        })
                        .collect();
                    let durable = append(&mut self.log, entries).await;
                    let line = format!("ack {term} {next} {}", next + count - 1);
                    self.flying.push_back(tokio::spawn(async move {
                        durable.await.unwrap();
                        say(&line);
                    }));
                    next += count;
                    if self.flying.len() > 8 {
                        self.flying.pop_front().unwrap().await.unwrap();
                    }
                }
            }
        }
    }

    async fn land(&mut self) {
        for flying in self.flying.drain(..) {
            flying.await.unwrap();
        }
    }

    /// Applies everything, builds a snapshot, and purges most of what it covers.
    async fn snapshot(&mut self, reader: &mut palisade_raft_store::LogReader, next: u64) {
        let from = self.machine.last_applied().map_or(1, |id| id.index + 1);
        let entries = reader.try_get_log_entries(from..next).await.unwrap();
        let Some(last) = entries.last().map(|entry| entry.log_id) else { return };
        self.log.save_committed(Some(last)).await.unwrap();
        let entries = entries.into_iter().map(|entry| Ok((entry, None)));
        self.machine.apply(futures::stream::iter(entries)).await.unwrap();
        let Some(mut builder) = self.machine.try_create_snapshot_builder(false).await else { return };
        let built = builder.build_snapshot().await.unwrap();
        assert_eq!(built.meta.last_log_id, Some(last));
        let upto = last.index.saturating_sub(self.random.below(60));
        if let Some(entry) = reader.try_get_log_entries(upto..upto + 1).await.unwrap().first() {
            say(&format!("purge {upto}"));
            self.log.purge(entry.log_id).await.unwrap();
        }
    }
}

/// What the child has promised.
#[derive(Clone, Default, Debug)]
struct Promises {
    opened: bool,
    /// Terms of the entries that must be there.
    entries: BTreeMap<u64, u64>,
    vote: u64,
    acks: u64,
    cuts: u64,
    purges: u64,
    lines: u64,
}

impl Promises {
    fn hear(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        self.lines += 1;
        match words[0] {
            "open" => self.opened = true,
            "ack" => {
                self.acks += 1;
                self.entries.extend((number(2)..=number(3)).map(|index| (index, number(1))));
            }
            "vote" => self.vote = number(1),
            "cut" => {
                self.cuts += 1;
                self.entries.split_off(&(number(1) + 1));
            }
            "purge" => {
                self.purges += 1;
                self.entries = self.entries.split_off(&(number(1) + 1));
            }
            other => panic!("the child said `{other}`"),
        }
    }

    /// What of it is not kept in `dir`: empty if all is well.
    async fn broken(&self, dir: &Path) -> Vec<String> {
        let mut broken = Vec::new();
        let (mut log, machine) = match open(dir) {
            Ok(parts) => parts,
            Err(error) => return vec![error.to_string()],
        };
        let mut reader = log.get_log_reader().await;
        let found = reader.read_vote().await.unwrap().map_or(0, |vote| vote.leader_id.term);
        if found < self.vote {
            broken.push(format!("vote {} was acknowledged, {found} is there", self.vote));
        }
        let state = log.get_log_state().await.unwrap();
        let purged = state.last_purged_log_id.map_or(0, |id| id.index);
        let entries = match reader.try_get_log_entries(purged + 1..).await {
            Ok(entries) => entries,
            Err(error) => return vec![error.to_string()],
        };
        for (found, index) in entries.iter().zip(purged + 1..) {
            assert_eq!(found.log_id.index, index);
        }
        let found: BTreeMap<u64, &Entry> = entries.iter().map(|entry| (entry.log_id.index, entry)).collect();
        for (index, term) in &self.entries {
            match found.get(index) {
                Some(found) if found.log_id == log_id(*term, *index) => {
                    assert!(found.payload.to_string().contains(&format!("from {index}")), "{}", found.payload);
                }
                Some(found) => broken.push(format!("entry {index} of term {term} is now {}", found.log_id)),
                None => broken.push(format!("entry {index} of term {term} is lost")),
            }
        }
        let applied = machine.last_applied().map_or(0, |id| id.index);
        assert!(applied >= purged, "{applied} {purged}");
        let batches = machine.inspector().look(|map, _| map.batches.len() as u64);
        assert_eq!(batches, applied, "a snapshot holds what was applied, no more and no less");
        broken
    }
}

/// One test at a time: a process that another test forks holds this one's locks until it has executed its program.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

struct Running {
    child: Child,
    promises: Arc<Mutex<Promises>>,
    listener: Option<thread::JoinHandle<()>>,
}

impl Running {
    fn start(dir: &Path, seed: u64, barrier: &str, promises: Promises) -> Running {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env(CHILD_DIR, dir)
            .env(CHILD_SEED, seed.to_string())
            .env(CHILD_BARRIER, barrier)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let promises = Arc::new(Mutex::new(Promises { opened: false, ..promises }));
        let shared = Arc::clone(&promises);
        let listener = thread::spawn(move || {
            for line in lines {
                let line = line.unwrap();
                if let Some((_, line)) = line.split_once(MARK) {
                    shared.lock().hear(line);
                }
            }
        });
        let running = Running { child, promises, listener: Some(listener) };
        for _ in 0..24_000 {
            if running.promises.lock().opened {
                return running;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("the child does not start");
    }

    /// Waits until the child has acknowledged this many more appends.
    fn acknowledged(&self, more: u64) {
        let wanted = self.promises.lock().acks + more;
        for _ in 0..24_000 {
            if self.promises.lock().acks >= wanted {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("the child does nothing");
    }

    /// SIGSTOP, until every thread has stopped and all that was said has been heard.
    fn stop(&self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-STOP", &pid]).status().unwrap().success());
        let stopped = || {
            std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().all(|task| {
                let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
                stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
            })
        };
        while !stopped() {
            thread::sleep(Duration::from_millis(1));
        }
        let mut heard = u64::MAX;
        while heard != self.promises.lock().lines {
            heard = self.promises.lock().lines;
            thread::sleep(Duration::from_millis(30));
        }
    }

    /// SIGKILL; what it had said until then.
    fn kill(mut self) -> Promises {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.listener.take().unwrap().join().unwrap();
        self.promises.lock().clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn rounds() -> u64 {
    env::var("PALISADE_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(20)
}

fn seed() -> u64 {
    let seed = env::var("PALISADE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) << 20);
    eprintln!("repeat with PALISADE_SEED={seed}");
    seed
}

fn report(what: &str, promises: &Promises) {
    let Promises { acks, cuts, purges, vote, .. } = promises;
    eprintln!("{what}: {acks} appends acknowledged, {cuts} truncations, {purges} purges, vote {vote}; nothing lost");
    assert!(*acks > 20 && *vote > 0, "the child did next to nothing: {promises:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn crash_by_kill_nine_loses_nothing() {
    let _turn = TURN.lock().await;
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("data");
    let seed = seed();
    let mut random = Random(seed);
    let mut promises = Promises::default();
    for round in 0..rounds() {
        let running = Running::start(&dir, seed + round, "disk", promises);
        running.acknowledged(2);
        thread::sleep(Duration::from_millis(random.below(300)));
        promises = running.kill();
        let broken = promises.broken(&dir).await;
        assert!(broken.is_empty(), "round {round}: {broken:#?}");
    }
    report("kill -9", &promises);
}

/// A file system in a file, mounted by a loop device. Unmounted when dropped.
struct Disk {
    mount: PathBuf,
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(args).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

impl Disk {
    fn format(image: &Path) -> Result<(), String> {
        let image = image.to_str().unwrap();
        run("truncate", &["-s", "256M", image])?;
        run("mkfs.ext4", &["-q", "-F", image])
    }

    /// With a long commit interval: the file system writes only what it is told to, until it is told to.
    fn mount(image: &Path, mount: &Path) -> Result<Disk, String> {
        std::fs::create_dir_all(mount).map_err(|error| error.to_string())?;
        run("mount", &["-o", "loop,noatime,commit=300", image.to_str().unwrap(), mount.to_str().unwrap()])?;
        Ok(Disk { mount: mount.to_owned() })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = run("umount", &[self.mount.to_str().unwrap()]) {
            eprintln!("{error}");
        }
    }
}

/// Cuts the power under the child: what the disk has at this moment, without what the child's kernel only has in memory.
///
/// The child is stopped while the image is copied. So the copy is of one moment, as a power cut is; a copy of a disk
/// that is being written would mix moments, which no file system has to survive.
fn cut(running: Running, image: &Path, copy: &Path) -> Promises {
    running.stop();
    let promises = running.promises.lock().clone();
    run("cp", &["--sparse=always", image.to_str().unwrap(), copy.to_str().unwrap()]).unwrap();
    running.kill();
    promises
}

/// Why there can be no loop device, if so.
fn lab(dir: &Path) -> Result<(), String> {
    let image = dir.join("try");
    Disk::format(&image)?;
    Disk::mount(&image, &dir.join("mnt")).map(drop)?;
    std::fs::remove_file(image).map_err(|error| error.to_string())
}

fn skipped(dir: &Path) -> bool {
    let Err(why) = lab(dir) else { return false };
    assert!(env::var("PALISADE_REQUIRE_LAB").as_deref() != Ok("1"), "no loop device: {why}");
    eprintln!("SKIPPED: no loop device (needs root; Debian: apt-get install e2fsprogs mount): {why}");
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn crash_by_power_cut_loses_nothing() {
    let _turn = TURN.lock().await;
    let dir = tempfile::tempdir().unwrap();
    if skipped(dir.path()) {
        return;
    }
    let seed = seed();
    let mut random = Random(seed);
    let mut promises = Promises::default();
    let mut image = dir.path().join("disk-start");
    Disk::format(&image).unwrap();
    for round in 0..rounds() {
        // Every round goes on with what the last power cut has left.
        let copy = dir.path().join(format!("disk-{round}"));
        {
            let disk = Disk::mount(&image, &dir.path().join("before")).unwrap();
            let running = Running::start(&disk.mount.join("data"), seed + round, "disk", promises);
            running.acknowledged(2);
            thread::sleep(Duration::from_millis(random.below(500)));
            promises = cut(running, &image, &copy);
        }
        std::fs::remove_file(&image).unwrap();
        image = copy;
        let disk = Disk::mount(&image, &dir.path().join("after")).unwrap();
        let broken = promises.broken(&disk.mount.join("data")).await;
        assert!(broken.is_empty(), "round {round}: {broken:#?}");
    }
    report("power cuts", &promises);
}

/// The test above can fail: without the fdatasync it does.
#[tokio::test(flavor = "multi_thread")]
async fn crash_by_power_cut_shows_a_missing_fdatasync() {
    let _turn = TURN.lock().await;
    let dir = tempfile::tempdir().unwrap();
    if skipped(dir.path()) {
        return;
    }
    let seed = seed();
    // The kernel may have written it by itself meanwhile, the more so on a slow machine.
    for round in 0..20 {
        let (image, copy) = (dir.path().join(format!("image-{round}")), dir.path().join(format!("copy-{round}")));
        Disk::format(&image).unwrap();
        let promises = {
            let disk = Disk::mount(&image, &dir.path().join("before")).unwrap();
            let running = Running::start(&disk.mount.join("data"), seed + round, "broken", Promises::default());
            running.acknowledged(20);
            thread::sleep(Duration::from_millis(300));
            cut(running, &image, &copy)
        };
        let disk = Disk::mount(&copy, &dir.path().join("after")).unwrap();
        let broken = promises.broken(&disk.mount.join("data")).await;
        if !broken.is_empty() {
            eprintln!("without fdatasync: {} ({} such)", broken[0], broken.len());
            return;
        }
    }
    panic!("without fdatasync nothing was lost: this test does not test anything");
}

#[test]
fn crash_test_counts_promises() {
    let mut promises = Promises::default();
    for line in ["open", "ack 1 1 3", "vote 2", "cut 2", "ack 2 3 4", "purge 1"] {
        promises.hear(line);
    }
    assert_eq!(promises.entries, BTreeMap::from([(2, 1), (3, 2), (4, 2)]));
    assert_eq!(promises.vote, 2);
}

#[tokio::test]
async fn crash_test_notices_a_broken_promise() {
    let _turn = TURN.lock().await;
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("data");
    drop(open(&dir).unwrap());
    let mut promises = Promises::default();
    promises.hear("ack 1 1 3");
    promises.hear("vote 7");
    assert_eq!(promises.broken(&dir).await.len(), 4);
    let open = Store::open(&dir, Options::new(clock())).unwrap();
    assert!(matches!(Store::open(&dir, Options::new(clock())), Err(StoreError::Locked { .. })));
    drop(open);
}
