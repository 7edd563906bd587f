//! The fuzz target of the packet pipeline: `cargo +nightly fuzz run pipeline`
#![no_main]

#[path = "../targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::pipeline(data));
