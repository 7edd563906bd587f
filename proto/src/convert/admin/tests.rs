use super::*;
use palisade_engine::{PerDirection, Traffic, ZoneId, ZonePair};

fn info() -> SessionInfo {
    let original = Tuple {
        src: Ip::V4([192, 0, 2, 7]),
        dst: Ip::V4([203, 0, 113, 10]),
        src_port: 40000,
        dst_port: 443,
        protocol: Protocol::TCP,
    };
    SessionInfo {
        id: SessionId { member: MemberId(2), counter: 0x1_0000_0003 },
        original,
        reply: original.inverse(),
        zones: ZonePair { ingress: ZoneId(1), egress: ZoneId(2) },
        rule: (Generation(4), RuleId(3)),
        state: "ESTABLISHED",
        half_open: false,
        idle: Duration::from_millis(1500),
        timeout: Duration::from_secs(3600),
        traffic: PerDirection {
            original: Traffic { packets: 10, bytes: 1000 },
            reply: Traffic { packets: 9, bytes: 9000 },
        },
    }
}

fn zones() -> Vec<String> {
    ["", "outside", "dmz"].map(str::to_owned).to_vec()
}

#[test]
fn a_session_survives_the_wire() {
    let session = Session::new(&info(), &zones(), "public web");
    assert_eq!((session.ingress.as_str(), session.egress.as_str()), ("outside", "dmz"));
    assert_eq!(Session::try_from(v1::Session::from(session.clone())), Ok(session));
}

#[test]
fn each_bad_field_has_its_error() {
    let good = v1::Session::from(Session::new(&info(), &zones(), "public web"));
    let without_id = v1::Session { id: None, ..good.clone() };
    assert_eq!(Session::try_from(without_id), Err(AdminError::Missing("session.id")));
    let tuple = v1::Tuple { src: vec![1, 2, 3].into(), ..good.original.clone().unwrap() };
    assert_eq!(Tuple::try_from(tuple), Err(AdminError::Address(3)));
    let tuple = v1::Tuple { dst_port: 65_536, ..good.original.clone().unwrap() };
    assert_eq!(Tuple::try_from(tuple), Err(AdminError::Port(65_536)));
    let tuple = v1::Tuple { protocol: 256, ..good.original.unwrap() };
    assert_eq!(Tuple::try_from(tuple), Err(AdminError::Protocol(256)));
    let prefix = v1::Prefix { address: vec![10, 0, 0, 0].into(), length: 33 };
    assert_eq!(Prefix::try_from(prefix), Err(AdminError::PrefixLength { most: 32, found: 33 }));
}

#[test]
fn filters_match_as_conntrack_does() {
    let matches = |f: SessionFilter| f.matches(&info(), &zones());
    let none = SessionFilter::default;
    assert!(matches(none()) && none().is_empty());
    assert!(matches(SessionFilter { src: Some("192.0.2.0/24".parse().unwrap()), ..none() }));
    assert!(!matches(SessionFilter { src: Some("192.0.3.0/24".parse().unwrap()), ..none() }));
    assert!(!matches(SessionFilter { src: Some("::/0".parse().unwrap()), ..none() }));
    assert!(matches(SessionFilter { dst: Some("0.0.0.0/0".parse().unwrap()), ..none() }));
    assert!(matches(SessionFilter { state: Some("established".into()), ..none() }));
    assert!(matches(SessionFilter { zone: Some("dmz".into()), dst_port: Some(443), ..none() }));
    assert!(!matches(SessionFilter { zone: Some("dmz".into()), dst_port: Some(80), ..none() }));
    assert!(!matches(SessionFilter { zone: Some(String::new()), ..none() }));
    assert!(!matches(SessionFilter { protocol: Some(Protocol::UDP), ..none() }));
    assert!(!matches(SessionFilter { src_port: Some(1), ..none() }));
}

#[test]
fn prefixes_are_read_or_refused() {
    for good in ["10.0.0.0/8", "10.1.2.3", "2001:db8::/32", "::1", "::/0"] {
        assert!(good.parse::<Prefix>().is_ok(), "{good}");
    }
    for bad in ["", "10.0.0.0/33", "10.0.0/8", "::/129", "a/b", "10.0.0.0/"] {
        assert!(bad.parse::<Prefix>().is_err(), "{bad}");
    }
    let filter = SessionFilter { src: Some("2001:db8::/32".parse().unwrap()), src_port: Some(9), ..Default::default() };
    assert_eq!(SessionFilter::try_from(v1::SessionFilter::from(filter.clone())), Ok(filter));
}
