//! How much a member wants to lead.

/// A member's priority in elections.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ElectionPriority {
    /// The same as any other member's.
    #[default]
    Normal,
    /// Drained: it campaigns only if no other member can lead.
    LastResort,
    /// It leaves or stops: it never campaigns, and rather leaves leadership to drained members.
    Never,
}
