//! nfnetlink messages as bytes: attributes, messages, batches (linux/netlink.h, linux/netfilter/nfnetlink.h). Pure: the
//! socket is in `socket.rs`.

/// The length of `struct nlmsghdr`, in bytes.
pub(crate) const HEADER: usize = 16;
/// The length of `struct nfgenmsg`, which follows it.
pub(crate) const GENERIC: usize = 4;

/// `NFNL_SUBSYS_NFTABLES`: the upper byte of a message's type.
const SUBSYSTEM: u16 = 10;
/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// `NLA_F_NESTED`, `NLA_TYPE_MASK`.
const NESTED: u16 = 1 << 15;
const KIND_MASK: u16 = 0x3fff;

/// `NLM_F_*`.
pub(crate) const REQUEST: u16 = 0x1;
pub(crate) const ACK: u16 = 0x4;
pub(crate) const DUMP: u16 = 0x300;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const APPEND: u16 = 0x800;

/// `NFPROTO_INET`: IPv4 and IPv6.
pub(crate) const INET: u8 = 1;

/// A list of attributes. Numbers are big-endian in nf_tables. An attribute has at most 65,531 bytes: longer lists are split
/// by their callers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Attributes {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Text, with the zero byte that ends it.
    pub(crate) fn text(self, kind: u16, value: &str) -> Attributes {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(crate) fn short(self, kind: u16, value: u16) -> Attributes {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn number(self, kind: u16, value: u32) -> Attributes {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn long(self, kind: u16, value: u64) -> Attributes {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn nested(self, kind: u16, inner: &Attributes) -> Attributes {
        self.bytes(kind | NESTED, &inner.0)
    }

    /// Several attributes, each with what is in it.
    pub(crate) fn list(self, kind: u16, items: impl IntoIterator<Item = Attributes>) -> Attributes {
        items.into_iter().fold(self, |list, item| list.nested(kind, &item))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// One request, without its sequence number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Message {
    /// `NFT_MSG_*`.
    pub(crate) kind: u16,
    /// `NFPROTO_*`.
    pub(crate) family: u8,
    /// `NLM_F_*`, beside [`REQUEST`].
    pub(crate) flags: u16,
    pub(crate) attributes: Attributes,
}

fn write(bytes: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, generic: [u8; GENERIC], attributes: &[u8]) {
    let length = u32::try_from(HEADER + GENERIC + attributes.len()).unwrap_or(u32::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((flags | REQUEST).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]); // the port id: the kernel's
    bytes.extend(generic);
    bytes.extend(attributes);
}

/// A single request, for questions.
pub(crate) fn request(message: &Message, sequence: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_message(&mut bytes, message, message.flags, sequence);
    bytes
}

fn write_message(bytes: &mut Vec<u8>, message: &Message, flags: u16, sequence: u32) {
    let kind = SUBSYSTEM << 8 | message.kind;
    write(bytes, kind, flags, sequence, [message.family, 0, 0, 0], message.attributes.as_bytes());
}

/// A transaction: all of it happens, or nothing. The sequence numbers are `first` for its begin, the next ones for the
/// messages, of which the last is acknowledged, and one more for its end.
pub(crate) fn batch(messages: &[Message], first: u32) -> Vec<u8> {
    let subsystem = SUBSYSTEM.to_be_bytes();
    let generic = [0, 0, subsystem[0], subsystem[1]];
    let mut bytes = Vec::new();
    write(&mut bytes, BATCH_BEGIN, 0, first, generic, &[]);
    let mut sequence = first;
    for (number, message) in messages.iter().enumerate() {
        sequence = sequence.wrapping_add(1);
        let acknowledge = if number + 1 == messages.len() { ACK } else { 0 };
        write_message(&mut bytes, message, message.flags | acknowledge, sequence);
    }
    write(&mut bytes, BATCH_END, 0, sequence.wrapping_add(1), generic, &[]);
    bytes
}

/// The attributes in `bytes`, up to the first one that is cut off.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & KIND_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of this kind.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

/// A 32-bit number.
pub(crate) fn number(bytes: &[u8], kind: u16) -> Option<u32> {
    find(bytes, kind)?.try_into().ok().map(u32::from_be_bytes)
}

/// A text, up to its zero byte.
pub(crate) fn text(bytes: &[u8], kind: u16) -> Option<String> {
    let value = find(bytes, kind)?;
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    Some(String::from_utf8_lossy(value.get(..end)?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Message {
        let attributes = Attributes::default().text(1, "abc").number(2, 7);
        Message { kind: 6, family: INET, flags: CREATE | APPEND, attributes }
    }

    #[test]
    fn wire_attributes_are_padded_and_can_be_read_back() {
        let inner = Attributes::default().short(1, 0x0102);
        let bytes = Attributes::default().text(1, "abcd").nested(4, &inner).long(5, 9);
        assert_eq!(bytes.as_bytes().len() % 4, 0);
        assert_eq!(bytes.as_bytes()[..12], [9, 0, 1, 0, b'a', b'b', b'c', b'd', 0, 0, 0, 0]);
        assert_eq!(text(bytes.as_bytes(), 1).as_deref(), Some("abcd"));
        let nested = find(bytes.as_bytes(), 4).unwrap();
        assert_eq!(find(nested, 1), Some(&[1u8, 2][..]), "numbers are big-endian");
        assert_eq!(find(bytes.as_bytes(), 5), Some(&9u64.to_be_bytes()[..]));
        assert_eq!(number(bytes.as_bytes(), 5), None, "a number of another length");
    }

    #[test]
    fn wire_attributes_end_where_they_are_cut_off() {
        let bytes = Attributes::default().number(1, 1).number(2, 2);
        for length in 0..bytes.as_bytes().len() {
            let cut = &bytes.as_bytes()[..length];
            assert_eq!(attributes(cut).count(), length / 8, "{length}");
        }
        assert_eq!(attributes(&[0; 8]).count(), 0, "a length of zero never ends");
    }

    #[test]
    fn wire_batch_numbers_its_messages_and_acknowledges_the_last() {
        let bytes = batch(&[message(), message()], u32::MAX - 1);
        let mut rest = bytes.as_slice();
        let mut seen = Vec::new();
        while let Some(length) = rest.first_chunk::<4>() {
            let length = u32::from_ne_bytes(*length) as usize;
            let short = |at: usize| u16::from_ne_bytes([rest[at], rest[at + 1]]);
            let sequence = u32::from_ne_bytes([rest[8], rest[9], rest[10], rest[11]]);
            seen.push((short(4), short(6), sequence, rest[16..20].to_vec()));
            rest = &rest[length.next_multiple_of(4)..];
        }
        let rule = 10 << 8 | 6;
        assert_eq!(
            seen,
            [
                (16, REQUEST, u32::MAX - 1, vec![0, 0, 0, 10]),
                (rule, REQUEST | CREATE | APPEND, u32::MAX, vec![INET, 0, 0, 0]),
                (rule, REQUEST | CREATE | APPEND | ACK, 0, vec![INET, 0, 0, 0]),
                (17, REQUEST, 1, vec![0, 0, 0, 10]),
            ]
        );
    }
}
