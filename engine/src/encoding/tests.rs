use serde::Deserialize;

use super::*;
use crate::id::{MemberId, SessionId};
use crate::replicated::{Batch, Command};

/// A value as a later level knows it.
#[derive(PartialEq, Debug, Serialize, Deserialize)]
struct Later {
    base: u64,
    #[serde(skip)]
    added: u32,
}

impl Extensible for Later {
    fn write_extensions(&self, to: &mut ExtensionWriter<'_>) -> Result<(), postcard::Error> {
        if self.added == 0 {
            return Ok(());
        }
        to.field(3, &self.added)
    }

    fn read_extension(&mut self, tag: u32, value: &[u8]) -> Result<bool, DecodeError> {
        if tag == 3 {
            self.added = read_field(value)?;
        }
        Ok(tag == 3)
    }
}

/// The same value as the level before knows it.
#[derive(PartialEq, Debug, Serialize, Deserialize)]
struct Earlier {
    base: u64,
}

impl Extensible for Earlier {}

fn record(value: &impl Extensible) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_record(&mut bytes, value).unwrap();
    bytes
}

#[test]
fn extension_is_read_back_and_left_out_where_it_is_the_default() {
    let with = record(&Later { base: 300, added: 7 });
    assert_eq!(read_record::<Later>(&with), Ok((Later { base: 300, added: 7 }, &[][..])));
    let without = record(&Later { base: 300, added: 0 });
    assert_eq!(without, record(&Earlier { base: 300 }), "bytes that do not use it are those of before");
    assert_eq!(read_record::<Earlier>(&with), Err(DecodeError::Tag(3)), "never skipped");
    for cut in 0..with.len() {
        assert!(read_record::<Later>(&with[..cut]).is_err(), "cut at {cut}");
    }
}

fn batch() -> Batch {
    let ids =
        vec![SessionId { member: MemberId(2), counter: 77 }, SessionId { member: MemberId(300), counter: u64::MAX }];
    let commands = vec![Command::Resume, Command::Revoke(ids), Command::Level(Level(2))];
    Batch { proposer: MemberId(1), first_serial: 5, lowest_outstanding: 4, unix_ms: 1 << 40, commands }
}

#[test]
fn batch_carries_its_level_in_front() {
    let bytes = batch().encode(Level::FIRST).unwrap();
    assert_eq!(bytes[..2], [1, 0]);
    assert_eq!(Batch::level_of(&bytes), Ok(Level::FIRST));
    assert_eq!(Batch::decode(&bytes), Ok(batch()));
    let unknown = Level::HIGHEST.next();
    let refused = UnknownLevel { level: unknown, lowest: Level::LOWEST, highest: Level::HIGHEST };
    assert_eq!(batch().encode(unknown), Err(EncodeError::Level(refused)));
    // What follows is of no matter: it may be anything.
    let later = [&unknown.0.to_le_bytes()[..], b"whatever"].concat();
    assert_eq!(Batch::decode(&later), Err(DecodeError::Level(refused)));
    assert_eq!(Batch::level_of(&later), Err(DecodeError::Level(refused)));
    assert_eq!(Batch::decode(&[0, 0]), Err(DecodeError::Level(UnknownLevel { level: Level(0), ..refused })));
}

#[test]
fn batch_with_an_unknown_command_is_refused_as_a_whole() {
    let one = Batch { commands: vec![Command::Resume], ..batch() }.encode(Level::FIRST).unwrap();
    assert_eq!(one[one.len() - 2..], [1, 8], "the record of a command without content");
    let mut unknown = one.clone();
    *unknown.last_mut().unwrap() = 99;
    assert!(matches!(Batch::decode(&unknown), Err(DecodeError::Value(_))));
    let mut longer = one.clone();
    longer.push(0);
    assert_eq!(Batch::decode(&longer), Err(DecodeError::Long));
    // A field that this program does not know: tag 5, one byte.
    let mut extended = one[..one.len() - 2].to_vec();
    extended.extend([4, 8, 5, 1, 0]);
    assert_eq!(Batch::decode(&extended), Err(DecodeError::Tag(5)));
    for cut in 0..one.len() {
        assert!(Batch::decode(&one[..cut]).is_err(), "cut at {cut}");
    }
}
