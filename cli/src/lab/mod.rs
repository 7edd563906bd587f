//! The lab: network namespaces, links, routes and routers, made over netlink.
