//! Palisade's one executable, as a library: the lab uses its parts too.

pub mod demo;
pub mod lab;
