//! The numbers that a member gives do not repeat, however many it gives in one start.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_ids_do_not_repeat_after_a_start_that_used_up_its_numbers() {
    let mut node = Node::new("fw1");
    init(&node.options).await.unwrap();
    node.start().await;
    let engine = node.run().engine();
    // More than two and a half times what a start has.
    engine.skip_session_numbers(5 << 39);
    let given = engine.next_session_number();
    let identity = node.options.data_dir.join("identity.toml");
    until("the starts are counted whose numbers are used", || {
        std::fs::read_to_string(&identity).unwrap().contains("starts = 4\n")
    })
    .await;
    drop(engine);
    node.stop().await;
    node.start().await;
    assert_eq!(node.run().identity().starts, 5);
    assert!(node.run().engine().next_session_number() > given);
    // It takes part as before: the numbers of its commands go on as well.
    until("it has a valid lease", || node.has_valid_lease()).await;
    assert_eq!(node.run().command(command(1), LONG).await, Ok(Outcome::Accepted));
    node.stop().await;
}
