//! Metrics of the process and the build.
//!
//! The names are our own, not the `process_…` of client libraries, so that all of Palisade's metrics have one prefix.

use std::fs;

use nix::unistd::{SysconfVar, sysconf};
use palisade_metrics::MetricFamilies;

/// Adds them.
pub(crate) fn collect(families: &mut MetricFamilies) {
    families.gauges("palisade_build_info", "Version of the running program; always 1.", |samples| {
        samples.with("version", env!("CARGO_PKG_VERSION")).integer(1);
    });
    let Some(stat) = Stat::read() else { return };
    families.counters("palisade_process_cpu_seconds_total", "CPU time of the process, user and system.", |samples| {
        samples.float(stat.cpu_seconds);
    });
    families.gauge("palisade_process_resident_memory_bytes", "Memory of the process in RAM.", stat.resident);
    families.gauge("palisade_process_virtual_memory_bytes", "Address space of the process.", stat.virtual_size);
    families.gauge("palisade_process_threads", "Threads of the process.", stat.threads);
    if let Ok(fds) = fs::read_dir("/proc/self/fd") {
        families.gauge("palisade_process_open_fds", "Open file descriptors of the process.", fds.count() as u64);
    }
}

struct Stat {
    cpu_seconds: f64,
    resident: u64,
    virtual_size: u64,
    threads: u64,
}

impl Stat {
    fn read() -> Option<Stat> {
        let conf = |var| sysconf(var).ok().flatten().and_then(|n| u64::try_from(n).ok());
        Stat::parse(
            &fs::read_to_string("/proc/self/stat").ok()?,
            conf(SysconfVar::CLK_TCK)?,
            conf(SysconfVar::PAGE_SIZE)?,
        )
    }

    /// proc_pid_stat(5). The name in parentheses may contain anything, so fields count from the last parenthesis.
    fn parse(text: &str, ticks: u64, page: u64) -> Option<Stat> {
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        // The first field here is number 3 (state) there.
        let field = |n: usize| fields.get(n - 3)?.parse::<u64>().ok();
        Some(Stat {
            cpu_seconds: (field(14)? + field(15)?) as f64 / ticks.max(1) as f64,
            threads: field(20)?,
            virtual_size: field(23)?,
            resident: field(24)?.checked_mul(page)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_parentheses_in_the_process_name_is_parsed() {
        let text = "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 150 50 13 14 15 16 7 0 100 8192 3 9";
        let stat = Stat::parse(text, 100, 4096).unwrap();
        assert!((stat.cpu_seconds - 2.0).abs() < 1e-9);
        assert_eq!((stat.threads, stat.virtual_size, stat.resident), (7, 8192, 3 * 4096));
        assert!(Stat::parse("42 (x) S 1", 100, 4096).is_none());
    }

    #[test]
    fn stat_of_this_process_is_read() {
        let stat = Stat::read().unwrap();
        assert!(stat.resident > 0 && stat.threads > 0 && stat.virtual_size >= stat.resident);
    }
}
