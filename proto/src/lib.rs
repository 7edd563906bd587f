//! Palisade's wire formats, and their conversion to and from the engine's types.
//!
//! `proto/` holds the `.proto` files; [`member`] and [`admin`] what was generated from them; [`convert`] turns messages
//! into the engine's types (`TryFrom`, one error variant per missing or bad field) and back.

pub mod convert;

pub use prost::Message;

/// Between members: Raft, hints, proposals, membership.
pub mod member {
    /// Version 1.
    #[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
    pub mod v1 {
        tonic::include_proto!("palisade.member.v1");
    }
}

/// Between the command line and its member.
pub mod admin {
    /// Version 1.
    #[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
    pub mod v1 {
        tonic::include_proto!("palisade.admin.v1");
    }
}
