//! The fuzz target of the policy parser: `cargo +nightly fuzz run policy`
#![no_main]

#[path = "../targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::policy(data));
