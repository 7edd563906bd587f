//! Real programs in the lab's namespaces, each with configuration and files in a folder of its own.

pub mod dns;
pub mod h2load;
pub mod iperf3;
pub mod nginx;
pub mod ping;
pub mod postgres;
pub mod prometheus;
pub mod rsync;
pub mod traceroute;
pub mod wrk;
