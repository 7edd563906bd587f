//! The fuzz target of the packet parser: `cargo +nightly fuzz run parse`
#![no_main]

#[path = "../targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::parse(data));
