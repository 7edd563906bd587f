//! How much memory this process can still take, as the kernel says: limits of the process, its control groups, the machine.

use std::fs;
use std::path::Path;

/// The memory that is available, in bytes; `None` if nothing is known.
pub(crate) fn available() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let left = |limit: &str, used: &str| Some(soft_limit(&limits, limit)?.saturating_sub(kib(&status, used)?));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let machine = kib(&meminfo, "MemAvailable:");
    [left("Max data size", "VmData:"), left("Max address space", "VmSize:"), control_group(&groups), machine]
        .into_iter()
        .flatten()
        .min()
}

/// A line `NAME soft hard unit` of /proc/self/limits; `None`: unlimited.
fn soft_limit(limits: &str, name: &str) -> Option<u64> {
    limits.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// A line `NAME number kB`, in bytes.
fn kib(text: &str, name: &str) -> Option<u64> {
    let number = text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?;
    number.parse::<u64>().ok()?.checked_mul(1024)
}

/// What is left in the control group of version 2 and those above it.
fn control_group(groups: &str) -> Option<u64> {
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = Path::new("/sys/fs/cgroup");
    let own = root.join(own);
    let number = |dir: &Path, file: &str| fs::read_to_string(dir.join(file)).ok()?.trim().parse::<u64>().ok();
    let left = |dir: &Path| Some(number(dir, "memory.max")?.saturating_sub(number(dir, "memory.current")?));
    own.ancestors().take_while(|dir| dir.starts_with(root)).filter_map(left).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_follows_the_limits() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max data size             268435456            unlimited            bytes     \n\
                      Max address space         unlimited            unlimited            bytes     \n";
        assert_eq!(soft_limit(limits, "Max data size"), Some(1 << 28));
        assert_eq!(soft_limit(limits, "Max address space"), None);
        assert_eq!(kib("VmPeak:\t  10 kB\nVmData:\t    2048 kB\n", "VmData:"), Some(2 << 20));
        assert_eq!(kib("VmData: 99999999999999999999 kB", "VmData:"), None);
        assert_eq!(control_group("1:name=systemd:/x\n"), None);
        assert!(available().is_some_and(|bytes| bytes > 0), "this machine has some");
    }
}
