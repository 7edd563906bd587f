//! Zones: uplinks that change while sessions are open, what would leave by no data interface, zones that no policy names, and
//! the registration of zones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use palisade_lab::guard::require_lab;
use palisade_lab::netlink::NextHop;
use palisade_lab::{Lab, Side, WAIT, wait_until};
use palisade_tests::ends::{Ends, arrived};
use palisade_tests::{OPEN_POLICY, members};
use serde_json::{Value, json};
use tokio::net::UdpSocket;

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-under-test");

const UDP_PORT: u16 = 7300;

const TWO_UPLINKS: &str = "\
zone outside, inside, isp2, leak
default drop
accept \"all\" from outside to inside, isp2: any -> any
";

const UNNAMED: &str = "default drop\naccept \"all\" from any to any: any -> any\n";

/// A further link between the only member and the server's host, and its zone at the member.
#[derive(Clone, Copy)]
struct Uplink {
    zone: &'static str,
    net: u8,
}

const ISP2: Uplink = Uplink { zone: "isp2", net: 2 };
const LEAK: Uplink = Uplink { zone: "leak", net: 3 };

impl Uplink {
    fn end(self, host: u8) -> IpAddr {
        IpAddr::from([10, 5, self.net, host])
    }

    fn interface(self) -> String {
        format!("eth-{}", self.zone)
    }

    async fn add(self, lab: &Lab) -> Result<()> {
        let (member, server) = (lab.member(1).netns(), lab.server());
        server.netlink().add_veth(self.zone, &self.interface(), member.file()).await?;
        for (netlink, name, host) in
            [(server.netlink(), self.zone.to_owned(), 1), (member.netlink(), self.interface(), 2)]
        {
            netlink.add_address(&name, self.end(host), 30).await?;
            netlink.up(&name).await?;
        }
        Ok(())
    }

    /// Leads the member's packets for the server over this link.
    async fn lead_there(self, lab: &Lab) -> Result<()> {
        let netlink = lab.member(1).netns().netlink();
        let hop = NextHop { via: self.end(1), ifindex: netlink.index(&self.interface()).await? };
        netlink.replace_route((Side::Server.v4(), 32), None, &[hop]).await
    }

    /// Leads the server's packets for the client over this link.
    async fn lead_back(self, lab: &Lab) -> Result<()> {
        let netlink = lab.server().netlink();
        let hop = NextHop { via: self.end(2), ifindex: netlink.index(self.zone).await? };
        netlink.replace_route((Side::Client.v4(), 32), None, &[hop]).await
    }
}

/// One member with two further links to the server's host.
async fn multihomed(policy: &str) -> Result<Lab> {
    let mut lab = Lab::with_cluster(members(1, BINARY), policy).await?;
    lab.member_mut(1).terminate(WAIT).await?;
    let mut config = String::new();
    for uplink in [ISP2, LEAK] {
        uplink.add(&lab).await?;
        config += &format!("\n[[interface]]\nname = \"{}\"\nzone = \"{}\"\n", uplink.interface(), uplink.zone);
    }
    lab.member(1).write_config(&config)?;
    lab.member_mut(1).start().await?;
    lab.member_mut(1).wait_ready(WAIT).await?;
    lab.wait_live(&[1]).await?;
    Ok(lab)
}

/// Both ends, with a session of each kind.
async fn ends(lab: &Lab) -> Result<Ends> {
    let mut ends = Ends::open(lab, UDP_PORT).await?;
    ends.assure().await?;
    ends.pass().await?;
    Ok(ends)
}

/// Sends datagrams, of which none may arrive, and waits until the member has dropped one of them for this reason.
async fn dropped(lab: &Lab, from: &UdpSocket, to: &UdpSocket, reason: &str) -> Result<()> {
    arrived(to).await;
    let label = format!("reason=\"{reason}\"");
    let count = async || lab.member(1).metric("palisade_packets_total", &[&label]).await;
    let before = count().await?;
    wait_until(reason, async || {
        from.send(b"must not pass").await?;
        Ok(count().await? > before)
    })
    .await?;
    assert_eq!(arrived(to).await, Vec::<String>::new(), "{reason}: datagrams pass");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_follow_a_change_of_the_uplink_and_stop_where_the_policy_says() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = multihomed(TWO_UPLINKS).await.unwrap();
    let result = change_uplinks(&lab).await;
    lab.or_keep(result).unwrap();
}

async fn change_uplinks(lab: &Lab) -> Result<()> {
    let mut ends = ends(lab).await?;
    // The client's packets by the new uplink first, then the answers.
    ISP2.lead_there(lab).await?;
    ends.pass().await?;
    ISP2.lead_back(lab).await?;
    ends.pass().await?;
    let sessions = lab.member(1).cli(&["session", "list", "-o", "json"]).await?;
    LEAK.lead_there(lab).await?;
    dropped(lab, &ends.client, &ends.server, "policy").await?;
    ISP2.lead_there(lab).await?;
    ends.pass().await?;
    let ids = |text: &str| -> Vec<Value> {
        let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["id"].clone();
        let mut ids: Vec<Value> = text.lines().map(id).collect();
        assert!(ids.len() >= 2 && ids.iter().all(Value::is_string), "{text}");
        ids.sort_by_key(Value::to_string);
        ids
    };
    let after = lab.member(1).cli(&["session", "list", "-o", "json"]).await?;
    assert_eq!(ids(&after), ids(&sessions), "they are the same sessions");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_to_any_does_not_lead_out_of_the_cluster_interface() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = Lab::with_cluster(members(1, BINARY), "default drop\naccept \"all\" from any to any: any -> any\n")
        .await
        .unwrap();
    let result = to_the_cluster(&lab).await;
    lab.or_keep(result).unwrap();
}

async fn to_the_cluster(lab: &Lab) -> Result<()> {
    let (to, netlink) = (IpAddr::from([10, 9, 0, 254]), lab.client().netlink());
    let hop = NextHop { via: Side::Client.link(1, 2)[0].0, ifindex: netlink.index("fw1").await? };
    netlink.replace_route((to, 32), None, &[hop]).await?;
    let there = lab.fabric().run(UdpSocket::bind(SocketAddr::new(to, UDP_PORT))).await??;
    let client = lab.client().run(UdpSocket::bind(SocketAddr::new(Side::Client.v4(), 0))).await??;
    client.connect(SocketAddr::new(to, UDP_PORT)).await?;
    dropped(lab, &client, &there, "no_data_interface").await
}

#[tokio::test(flavor = "multi_thread")]
async fn zones_that_no_policy_names_differ_and_get_named_without_a_loss() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = multihomed(UNNAMED).await.unwrap();
    let result = name_zones(&lab).await;
    lab.or_keep(result).unwrap();
}

async fn name_zones(lab: &Lab) -> Result<()> {
    let known: Value = serde_json::from_str(&lab.member(1).cli(&["cluster", "members", "-o", "json"]).await?)?;
    assert_eq!(known[0]["zones"], json!(["inside", "isp2", "leak", "outside"]));
    let mut ends = ends(lab).await?;
    lab.apply_policy(1, OPEN_POLICY).await?;
    ends.pass().await?;
    lab.apply_policy(1, UNNAMED).await?;
    ends.pass().await?;

    // The server's address comes in by another zone than the one that the route leads to.
    ISP2.lead_back(lab).await?;
    let server = lab.server().run(UdpSocket::bind(SocketAddr::new(Side::Server.v4(), 0))).await??;
    let client = lab.client().run(UdpSocket::bind(SocketAddr::new(Side::Client.v4(), 0))).await??;
    server.connect(client.local_addr()?).await?;
    dropped(lab, &server, &client, "antispoof").await?;
    dropped(lab, &ends.server, &ends.client, "wrong_zone").await
}

#[tokio::test(flavor = "multi_thread")]
async fn start_without_a_quorum_with_a_new_zone_ends_nothing() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = Lab::with_cluster(members(2, BINARY), OPEN_POLICY).await.unwrap();
    let result = new_zone_without_quorum(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn new_zone_without_quorum(lab: &mut Lab) -> Result<()> {
    palisade_tests::wait_voters(lab, 1, 2).await?;
    for number in [1, 2] {
        lab.member_mut(number).kill().await?;
    }
    ISP2.add(lab).await?;
    lab.member(1).write_config("\n[[interface]]\nname = \"eth-isp2\"\nzone = \"isp2\"\n")?;
    lab.member_mut(1).start().await?;
    lab.member_mut(1).wait_up(WAIT).await?;
    wait_until("the reason why it is not ready", async || {
        let (status, reasons) = lab.member(1).http("/readyz").await?;
        Ok(status == 503 && reasons.contains("the zone isp2 is not registered"))
    })
    .await?;
    lab.member_mut(2).start().await?;
    for number in [1, 2] {
        lab.member_mut(number).wait_ready(WAIT).await?;
    }
    let known: Value = serde_json::from_str(&lab.member(2).cli(&["cluster", "members", "-o", "json"]).await?)?;
    assert_eq!(known[0]["zones"], json!(["inside", "isp2", "outside"]));
    lab.wait_live(&[1, 2]).await?;
    Ok(())
}
