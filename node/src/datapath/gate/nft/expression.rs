//! The expressions of nf_tables rules that the gate uses, as attributes (linux/netfilter/nf_tables.h).

use super::wire::Attributes;

/// The first of the 32-bit registers, `NFT_REG32_00`. An IPv6 address or an interface's name takes four of them.
const REGISTER: u32 = 8;

/// An expression: its name and attributes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Expression {
    name: &'static str,
    data: Attributes,
}

impl Expression {
    /// As an element of a rule's list.
    pub(super) fn encode(&self) -> Attributes {
        // NFTA_EXPR_NAME, NFTA_EXPR_DATA.
        Attributes::default().text(1, self.name).nested(2, &self.data)
    }
}

/// What a packet's metadata are called, `NFT_META_*`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Meta {
    IifIndex = 4,
    OifIndex = 5,
    IifName = 6,
    OifName = 7,
    /// IPv4 or IPv6: one byte, `NFPROTO_*`.
    Family = 15,
    /// The transport protocol: one byte.
    Protocol = 16,
}

/// Where a header begins, `NFT_PAYLOAD_*_HEADER`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Header {
    Link = 0,
    Network = 1,
    Transport = 2,
}

/// What becomes of a packet, `NF_*`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Action {
    Drop = 0,
    Accept = 1,
}

/// Whether a comparison wants equality, `NFT_CMP_*` and `NFT_RANGE_*`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Is {
    Equal = 0,
    Unequal = 1,
}

/// NFTA_DATA_VALUE.
pub(super) fn value(bytes: &[u8]) -> Attributes {
    Attributes::default().bytes(1, bytes)
}

/// Loads metadata into the `offset`-th register.
pub(super) fn meta(key: Meta, offset: u32) -> Expression {
    let data = Attributes::default().number(1, REGISTER + offset).number(2, key as u32);
    Expression { name: "meta", data }
}

/// Loads bytes of the packet.
pub(super) fn payload(header: Header, offset: u32, length: u32) -> Expression {
    let data = Attributes::default().number(1, REGISTER).number(2, header as u32).number(3, offset).number(4, length);
    Expression { name: "payload", data }
}

/// Loads the type of the destination address: how the kernel would treat the packet (`RTN_*`, in host byte order).
pub(super) fn destination_type() -> Expression {
    // NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_DADDR.
    let data = Attributes::default().number(1, REGISTER).number(2, 3).number(3, 2);
    Expression { name: "fib", data }
}

/// Continues if the register begins with these bytes, or if not.
pub(super) fn compare(is: Is, bytes: &[u8]) -> Expression {
    let data = Attributes::default().number(1, REGISTER).number(2, is as u32).nested(3, &value(bytes));
    Expression { name: "cmp", data }
}

/// Continues if the register lies between two values, compared bytewise, or if not.
pub(super) fn between(is: Is, from: &[u8], to: &[u8]) -> Expression {
    let data =
        Attributes::default().number(1, REGISTER).number(2, is as u32).nested(3, &value(from)).nested(4, &value(to));
    Expression { name: "range", data }
}

/// Continues if the registers are an element of the set. `id` is its number in the same transaction.
pub(super) fn lookup(set: &str, id: u32) -> Expression {
    let data = Attributes::default().text(1, set).number(2, REGISTER).number(4, id);
    Expression { name: "lookup", data }
}

/// Continues while the rate, in packets a second, is not exceeded.
pub(super) fn limit(rate: u64, burst: u32) -> Expression {
    // NFT_LIMIT_PKTS, no flags.
    let data = Attributes::default().long(1, rate).long(2, 1).number(3, burst).number(4, 0).number(5, 0);
    Expression { name: "limit", data }
}

/// Copies the packet's beginning to an NFLOG group, each at once.
pub(super) fn log(group: u16, prefix: &str, length: u32) -> Expression {
    let data = Attributes::default().short(1, group).text(2, prefix).number(3, length).short(4, 1);
    Expression { name: "log", data }
}

/// Keeps conntrack from tracking the packet.
pub(super) fn notrack() -> Expression {
    Expression { name: "notrack", data: Attributes::default() }
}

/// Ends the chain.
pub(super) fn verdict(action: Action) -> Expression {
    // NFTA_DATA_VERDICT with NFTA_VERDICT_CODE, into NFT_REG_VERDICT.
    let code = Attributes::default().number(1, action as u32);
    let data = Attributes::default().number(1, 0).nested(2, &Attributes::default().nested(2, &code));
    Expression { name: "immediate", data }
}

#[cfg(test)]
mod tests {
    use super::super::wire::{find, number, text};
    use super::*;

    #[test]
    fn expression_is_a_name_with_attributes() {
        let bytes = meta(Meta::IifName, 1).encode();
        assert_eq!(text(bytes.as_bytes(), 1).as_deref(), Some("meta"));
        let data = find(bytes.as_bytes(), 2).unwrap();
        assert_eq!((number(data, 1), number(data, 2)), (Some(9), Some(6)));
    }

    #[test]
    fn verdict_is_in_a_nested_attribute() {
        let bytes = verdict(Action::Accept).encode();
        let data = find(bytes.as_bytes(), 2).unwrap();
        assert_eq!(number(data, 1), Some(0), "the verdict register");
        let code = find(find(data, 2).unwrap(), 2).unwrap();
        assert_eq!(number(code, 1), Some(1));
    }
}
