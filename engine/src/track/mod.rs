//! Connection tracking by protocol.
//!
//! - [`tcp`]: sequence windows, FIN, RST, TIME_WAIT;
//! - [`generic`], for all other protocols: time and direction only.

pub(crate) mod generic;
pub(crate) mod tcp;

/// The state of a session, half-open ones included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    SynSent,
    SynRecv,
    Established,
    FinWait,
    CloseWait,
    LastAck,
    TimeWait,
    Close,
    Unreplied,
    Replied,
    Assured,
}

impl State {
    /// All states, in the order of their numbers.
    pub(crate) const ALL: [State; 11] = [
        State::SynSent,
        State::SynRecv,
        State::Established,
        State::FinWait,
        State::CloseWait,
        State::LastAck,
        State::TimeWait,
        State::Close,
        State::Unreplied,
        State::Replied,
        State::Assured,
    ];

    /// The name, as in conntrack(8).
    pub(crate) const fn name(self) -> &'static str {
        match self {
            State::SynSent => "SYN_SENT",
            State::SynRecv => "SYN_RECV",
            State::Established => "ESTABLISHED",
            State::FinWait => "FIN_WAIT",
            State::CloseWait => "CLOSE_WAIT",
            State::LastAck => "LAST_ACK",
            State::TimeWait => "TIME_WAIT",
            State::Close => "CLOSE",
            State::Unreplied => "UNREPLIED",
            State::Replied => "REPLIED",
            State::Assured => "ASSURED",
        }
    }
}
