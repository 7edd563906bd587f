//! Whole networks of real kernels in one process: for the demo and for the end-to-end tests.
//!
//! [`Lab`] is a client, a server and some members between them, each in a network namespace of its own, made over
//! netlink and gone when it is dropped. A member is a process that runs the `palisade` executable; nothing here links the
//! daemon. [`traffic`] opens real TCP connections through it; [`RemoteNetwork`] adds a router and a host behind a side.
//! [`small::SmallLab`] is one router between two hosts, for tests of the datapath in the test's own process.
//!
//! It needs root, or a user namespace (see [`privilege`]); nothing is made outside of the namespaces.

pub mod addr;
pub mod clock;
pub mod counters;
pub mod drops;
pub mod frames;
pub mod guard;
pub mod http;
mod lab;
pub mod lateness;
pub mod member;
pub mod netlink;
pub mod netns;
pub mod packets;
pub mod privilege;
pub mod process;
pub mod program;
pub mod random;
pub mod remote_network;
pub mod router;
pub mod small;
pub mod traffic;
mod wait;

pub use self::addr::{SIDES, Side};
pub use self::lab::{Lab, MAX_MEMBERS, Options, Paths, no_address_detection};
pub use self::member::{Member, Mode};
pub use self::netlink::Flow;
pub use self::netns::{Netns, NsThread};
pub use self::process::{Process, Spawn};
pub use self::remote_network::RemoteNetwork;
pub use self::wait::{WAIT, wait_until};
