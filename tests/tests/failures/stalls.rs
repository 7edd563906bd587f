//! SIGSTOP: a member that hangs counts as lost, and nobody waits for it.

use anyhow::Result;
use palisade_lab::Lab;
use palisade_lab::guard::require_lab;
use palisade_tests::load::Load;
use palisade_tests::members;
use palisade_tests::scenario::stop::hang;
use palisade_tests::scenario::{share, without};

use super::{BINARY, POLICY, SERVER};

const NEW: usize = 1000;

#[tokio::test(flavor = "multi_thread")]
async fn stopped_member_keeps_no_connection_waiting() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = Lab::with_cluster(members(3, BINARY), POLICY).await.unwrap();
    let result = follower_then_leader(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn follower_then_leader(lab: &mut Lab) -> Result<()> {
    let mut load = Load::start(lab, SERVER, share(100)).await?;
    load.open(share(NEW));
    load.open_more(share(NEW) as u64).await?;
    load.fit(lab).await?;
    let leader = lab.wait_leader().await?;
    for number in [without(leader)[0], leader] {
        // Everything comes to its end while the member hangs.
        let out = hang(lab, &load, number, 2 * share(NEW) as u64).await?;
        eprintln!("fw{number} stopped; the routers moved after {out:?}");
        load.is_whole()?;
    }
    load.open_more(share(NEW) as u64).await?;
    load.finish().await?;
    eprintln!("{}", load.summary());
    load.is_whole()
}
