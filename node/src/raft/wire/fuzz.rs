//! Every decoder of Raft's messages, fed with mutations of valid ones.

#[path = "../../../../engine/tests/common/fuzzing.rs"]
mod fuzzing;

use palisade_engine::replica::{Batch, Command};
use palisade_engine::{Levels, Role};
use prost::Message;

use self::fuzzing::fuzz;
use super::*;

/// What a decoder may allocate whatever it is given: serde reserves at most 1 MiB for a length that is only claimed, and lists may
/// be in a list.
const BASE_BYTES: i64 = (2 << 20) + (1 << 18);

fn id(index: u64) -> LogIdOf<TypeConfig> {
    LogIdOf::<TypeConfig> { leader_id: Leader::new(3, MemberId(2)), index }
}

fn vote() -> VoteOf<TypeConfig> {
    openraft::Vote { leader_id: Leader::new(u64::MAX, MemberId(2)), committed: true }
}

fn membership() -> Membership<MemberId, MemberInfo> {
    let info = |name: &str, role| MemberInfo { name: name.to_owned(), address: format!("{name}:7946"), role };
    let nodes = BTreeMap::from([(MemberId(1), info("fw1", Role::Firewall)), (MemberId(2), info("w", Role::Witness))]);
    let voters = |ids: &[u64]| ids.iter().copied().map(MemberId).collect::<BTreeSet<_>>();
    Membership::new(vec![voters(&[1]), voters(&[1, 2])], nodes).unwrap()
}

fn appends() -> Vec<AppendEntriesRequest<TypeConfig>> {
    let batch = |n: u64| Batch {
        proposer: MemberId(2),
        first_serial: n,
        lowest_outstanding: 0,
        unix_ms: 1 << 40,
        commands: vec![Command::Resume; n as usize],
    };
    let entry = |index, payload| EntryOf::<TypeConfig>::new(id(index), payload);
    let request = |entries: Vec<_>, previous: Option<u64>| AppendEntriesRequest {
        vote: vote(),
        prev_log_id: previous.map(id),
        entries,
        leader_commit: previous.map(id),
    };
    vec![
        request(Vec::new(), None),
        request(vec![entry(0, EntryPayload::Membership(membership())), entry(1, EntryPayload::Blank)], None),
        request((8..16).map(|n| entry(n, EntryPayload::Normal(batch(n)))).collect(), Some(7)),
    ]
}

fn decoded<T: Message + Default, R>(bytes: &[u8], read: impl Fn(T) -> Result<R, WireError>) -> bool {
    let Ok(message) = T::decode(bytes) else { return false };
    read(message).inspect_err(|error| assert!(!error.to_string().is_empty())).is_ok()
}

#[test]
fn decoder_of_appends_survives_mutations() {
    let values: Vec<_> =
        appends().iter().map(|append| append_out(append, Level::FIRST).unwrap().encode_to_vec()).collect();
    fuzz("appends", &values, |bytes| {
        decoded(bytes, |append: wire::AppendRequest| {
            let read = append_in(append)?;
            // openraft asserts this.
            let mut last = read.prev_log_id;
            for entry in &read.entries {
                assert_eq!(entry.log_id.index, last.map_or(0, |last| last.index + 1));
                last = Some(entry.log_id);
            }
            Ok(read)
        })
    });
}

#[test]
fn decoders_of_answers_and_votes_survive_mutations() {
    let answers = [
        Ok(Some(id(7))),
        Ok(None),
        Err(StreamAppendError::Conflict(id(u64::MAX))),
        Err(StreamAppendError::HigherVote(vote())),
    ];
    let values: Vec<_> = answers.iter().map(|answer| appended_out(answer).encode_to_vec()).collect();
    fuzz("answers to appends", &values, |bytes| decoded(bytes, appended_in));

    let mut request = VoteRequest::<TypeConfig>::new(vote(), Some(id(7)));
    request.leadership_transfer = true;
    let values = [vote_request_out(&request), vote_request_out(&VoteRequest::new(vote(), None))];
    let values = values.map(|request| request.encode_to_vec());
    fuzz("requests for votes", &values, |bytes| decoded(bytes, vote_request_in));

    let values = [true, false].map(|granted| VoteResponse::<TypeConfig>::new(vote(), Some(id(7)), granted));
    let values = values.map(|response| vote_response_out(&response).encode_to_vec());
    fuzz("votes", &values, |bytes| decoded(bytes, vote_response_in));

    let transfer = TransferLeaderRequest::<TypeConfig>::new(vote(), MemberId(3), Some(id(7)));
    let values = [transfer_out(&transfer).encode_to_vec()];
    fuzz("transfers", &values, |bytes| decoded(bytes, transfer_in));
    let values = [
        transferred_out(&Ok(())),
        transferred_out(&Err(TransferLeaderError::VoteChanged { expected: vote(), actual: vote() })),
        transferred_out(&Err(TransferLeaderError::LogNotFlushed { expected: None, actual: Some(id(1)) })),
    ];
    let values = values.map(|response| response.encode_to_vec());
    fuzz("answers to transfers", &values, |bytes| decoded(bytes, |response| transferred_in(response, &transfer)));
}

#[test]
fn decoder_of_requests_to_join_survives_mutations() {
    let info = MemberInfo { name: "fw2".to_owned(), address: "192.0.2.1:7946".to_owned(), role: Role::Firewall };
    let request = wire::JoinRequest {
        secret: vec![7; 32].into(),
        member: Some(wire::MemberInfo::from(&info)),
        request: vec![9; 16].into(),
        levels: Some(Levels::PROGRAM.into()),
        affordable_sessions: 1 << 20,
    };
    fuzz("requests to join", &[request.encode_to_vec()], |bytes| {
        decoded(bytes, |request: wire::JoinRequest| {
            let levels = Levels::from(need(request.levels, "levels")?);
            // Whatever they are, asking is safe.
            let _ = levels.contains(Level::FIRST);
            Ok(MemberInfo::try_from(need(request.member, "member")?)?)
        })
    });
}

/// What admins write, or copy from a terminal.
#[test]
fn readers_of_tokens_and_configurations_survive_mutations() {
    let addresses = vec!["192.0.2.1:7946".to_owned(), "[2001:db8::1]:7946".to_owned()];
    let token = crate::membership::token::Token::new("c0ffee".repeat(5), addresses, [7; 32]).to_string();
    let read = |bytes: &[u8]| String::from_utf8_lossy(bytes).parse::<crate::membership::token::Token>().is_ok();
    fuzz("tokens", &[token.into_bytes()], read);
    let examples = [
        include_str!("../../../../deploy/examples/fw1.toml"),
        include_str!("../../../../deploy/examples/witness.toml"),
    ];
    fuzz("configurations", &examples.map(|text| text.as_bytes().to_vec()), |bytes| {
        let read = crate::config::Config::parse("node.toml", &String::from_utf8_lossy(bytes));
        read.inspect_err(|error| assert!(!error.to_string().is_empty())).is_ok()
    });
}
