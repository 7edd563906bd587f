//! A meter of how late this machine is: what a test asks before it blames the code for a timer of the design that was missed.
//!
//! A hold lasts 250 ms and a lease 1 s whatever the machine does meanwhile. Where the processors or the disk are busy with other
//! things, packets are dropped and leaders change although nothing is wrong. A test may excuse that only with what was measured
//! here in the same seconds.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use palisade_engine::Time;

use crate::clock;

/// Between two looks at the clock, and between two writes to the disk.
const CPU_INTERVAL: Duration = Duration::from_millis(2);
const DISK_INTERVAL: Duration = Duration::from_millis(50);

/// A busy machine: for this share of the time some thread was ready to run and had no processor.
const BUSY_SHARE: f64 = 0.5;

/// A step that is late by more than this share of a timer excuses that the timer was missed: several steps lie in its way.
const STEPS: u32 = 4;

#[derive(Debug, Default)]
struct Worst {
    cpu: AtomicU64,
    disk: AtomicU64,
    stop: AtomicBool,
}

/// Two threads that measure until this is dropped.
#[derive(Debug)]
pub struct Lateness {
    worst: Arc<Worst>,
    since: Time,
    /// Time, in µs, that some thread waited for a processor, when the measuring began. `None`: this kernel does not tell.
    waited: Option<u64>,
}

impl Lateness {
    /// Begins to measure: how late a sleeping thread wakes up, and how long `fdatasync` of a small file in `dir` takes.
    ///
    /// # Errors
    /// There can be no file, or no thread.
    pub fn watch(dir: &Path) -> Result<Lateness> {
        let worst = Arc::<Worst>::default();
        let mut file = tempfile::tempfile_in(dir).context("a file to measure the disk with")?;
        let (cpu, disk) = (Arc::clone(&worst), Arc::clone(&worst));
        thread::Builder::new().name("late-cpu".to_owned()).spawn(move || {
            while !cpu.stop.load(Ordering::Relaxed) {
                let begun = clock::now();
                thread::sleep(CPU_INTERVAL);
                note(&cpu.cpu, clock::now().since(begun).saturating_sub(CPU_INTERVAL));
            }
        })?;
        thread::Builder::new().name("late-disk".to_owned()).spawn(move || {
            while !disk.stop.load(Ordering::Relaxed) {
                let begun = clock::now();
                if write(&mut file).is_err() {
                    return;
                }
                note(&disk.disk, clock::now().since(begun));
                thread::sleep(DISK_INTERVAL);
            }
        })?;
        Ok(Lateness { worst, since: clock::now(), waited: waited() })
    }

    /// Forgets what was measured until now.
    pub fn reset(&mut self) {
        self.worst.cpu.store(0, Ordering::Relaxed);
        self.worst.disk.store(0, Ordering::Relaxed);
        (self.since, self.waited) = (clock::now(), waited());
    }

    /// The longest delay of a single step since the measuring began: of a thread, or of a write.
    #[must_use]
    pub fn longest(&self) -> Duration {
        let [cpu, disk] = [&self.worst.cpu, &self.worst.disk].map(|w| Duration::from_nanos(w.load(Ordering::Relaxed)));
        cpu.max(disk)
    }

    /// The share of the time in which some thread of this machine was ready to run and had no processor.
    #[must_use]
    pub fn busy_share(&self) -> f64 {
        let elapsed = clock::now().since(self.since).as_secs_f64();
        match (self.waited, waited()) {
            (Some(before), Some(now)) if elapsed > 0.0 => now.saturating_sub(before) as f64 / 1e6 / elapsed,
            _ => 0.0,
        }
    }

    /// Whether the machine was late enough to miss a timer of this length: then how late, in words.
    #[must_use]
    pub fn excuses(&self, timer: Duration) -> Option<String> {
        let (longest, busy) = (self.longest(), self.busy_share());
        let late = longest >= timer / STEPS || busy >= BUSY_SHARE;
        late.then(|| {
            format!("the machine was late by up to {longest:?} a step, and busy for {:.0} % of the time", busy * 100.0)
        })
    }
}

impl Drop for Lateness {
    fn drop(&mut self) {
        self.worst.stop.store(true, Ordering::Relaxed);
    }
}

fn note(worst: &AtomicU64, late: Duration) {
    worst.fetch_max(u64::try_from(late.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

fn write(file: &mut File) -> std::io::Result<()> {
    file.write_all(b"late?")?;
    file.sync_data()
}

/// Pressure stall information (Documentation/accounting/psi.rst): "some avg10=… avg60=… avg300=… total=µs".
fn waited() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/pressure/cpu").ok()?;
    text.lines().find(|l| l.starts_with("some"))?.rsplit_once("total=")?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lateness_excuses_only_what_was_measured() {
        let mut late = Lateness::watch(&std::env::temp_dir()).unwrap();
        note(&late.worst.cpu, Duration::from_secs(10));
        assert!(late.longest() >= Duration::from_secs(10));
        assert!(late.excuses(Duration::from_secs(40)).is_some());
        late.reset();
        assert!(late.longest() < Duration::from_secs(10));
        let hours = Duration::from_secs(100 * 3600);
        assert!(late.excuses(hours).is_none() || late.busy_share() >= BUSY_SHARE);
    }
}
