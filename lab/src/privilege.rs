//! What the lab may do, and how it gets there without being root.

use std::fs;

use anyhow::{Result, bail};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

/// How the lab may make namespaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privilege {
    /// As root of the machine.
    Root,
    /// As root of a user namespace of its own.
    UserNamespace,
}

/// Becomes able to make network namespaces. Must be called before any thread was started: the kernel lets only a process
/// with one thread enter a user namespace.
///
/// # Errors
/// The kernel does not allow it; the message says which setting forbids it.
pub fn acquire() -> Result<Privilege> {
    if geteuid().is_root() && has_capability(CAP_SYS_ADMIN) && has_capability(CAP_NET_ADMIN) {
        return Ok(Privilege::Root);
    }
    let (uid, gid) = (geteuid(), getegid());
    if let Err(e) = unshare(CloneFlags::CLONE_NEWUSER) {
        bail!("not root, and a user namespace is not to be had ({e}).\n{}", remedy());
    }
    let map = |file: &str, text: String| fs::write(file, text);
    // user_namespaces(7): groups cannot be dropped any more before an unprivileged process may map its group.
    let mapped = map("/proc/self/setgroups", "deny".to_owned())
        .and_then(|()| map("/proc/self/uid_map", format!("0 {uid} 1")))
        .and_then(|()| map("/proc/self/gid_map", format!("0 {gid} 1")));
    if let Err(e) = mapped {
        bail!("a user namespace was made, but the user cannot be mapped into it ({e}).\n{}", remedy());
    }
    Ok(Privilege::UserNamespace)
}

/// include/uapi/linux/capability.h.
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;

fn has_capability(number: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|set| set >> number & 1 == 1)
}

/// What to change, by what the kernel shows.
fn remedy() -> String {
    let is = |path: &str, bad: &str| fs::read_to_string(path).is_ok_and(|value| value.trim() == bad);
    let mut lines = Vec::new();
    if is("/proc/sys/user/max_user_namespaces", "0") {
        lines.push("  sysctl user.max_user_namespaces=10000              (it is 0)");
    }
    if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        lines.push("  sysctl kernel.unprivileged_userns_clone=1           (it is 0)");
    }
    if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        lines.push("  sysctl kernel.apparmor_restrict_unprivileged_userns=0   (it is 1)");
    }
    if lines.is_empty() {
        lines.push(
            "  In a container: grant CAP_SYS_ADMIN and CAP_NET_ADMIN, or a seccomp profile that allows unshare(2).",
        );
    }
    format!("Run as root, or let the administrator allow unprivileged user namespaces:\n{}", lines.join("\n"))
}
