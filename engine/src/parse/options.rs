//! IPv4 options (RFC 791 section 3.1): their structure, and which of them a packet has.
//!
//! A list that contradicts itself is INVALID whatever the policy says. What a sound list has in it is told apart, and
//! judged by the policy in force: RFC 7126 (BCP 186) section 4 says of each option what it is for and what it costs.

use serde::{Deserialize, Serialize};

use crate::verdict::Reason;

/// A set of IPv4 options, `end of list` and `no operation` aside, which every packet may have.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct IpOptions(u16);

macro_rules! options {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $label:literal;)*) => {
        /// An IPv4 option that a policy can let through, by its number as IANA lists it.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        #[repr(u8)]
        pub enum IpOption {
            $($(#[$doc])* $name = $number,)*
        }

        impl IpOption {
            /// All of them.
            pub const ALL: &'static [IpOption] = &[$(IpOption::$name,)*];

            /// Its name in policies.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(IpOption::$name => $label,)*
                }
            }
        }
    };
}

options! {
    /// Record route (RFC 791).
    RecordRoute = 7, "record-route";
    /// Quick-Start (RFC 4782).
    QuickStart = 25, "quick-start";
    /// Internet timestamp (RFC 781).
    Timestamp = 68, "timestamp";
    /// Basic security (RFC 1108).
    Security = 130, "security";
    /// Loose source and record route (RFC 791).
    LooseSourceRoute = 131, "lsrr";
    /// Extended security (RFC 1108).
    ExtendedSecurity = 133, "extended-security";
    /// Commercial security (FIPS 188).
    Cipso = 134, "cipso";
    /// Strict source and record route (RFC 791).
    StrictSourceRoute = 137, "ssrr";
    /// Router alert (RFC 2113).
    RouterAlert = 148, "router-alert";
}

impl IpOption {
    /// The one with this number, unless no policy can let it through.
    fn numbered(number: u8) -> Option<IpOption> {
        IpOption::ALL.iter().copied().find(|&option| option as u8 == number)
    }

    /// Does it lead the packet to somewhere else than its destination address says?
    #[must_use]
    pub fn is_source_route(self) -> bool {
        matches!(self, IpOption::LooseSourceRoute | IpOption::StrictSourceRoute)
    }

    /// Can it look like this? `option` is all of it, its number and length too. A pointer counts from 1 and is beyond the
    /// option when that is full (RFC 791 section 3.1).
    fn is_sound(self, option: &[u8]) -> bool {
        let pointer = option.get(2).copied();
        match self {
            IpOption::RecordRoute | IpOption::LooseSourceRoute | IpOption::StrictSourceRoute => {
                option.len() % 4 == 3 && pointer.is_some_and(|p| p >= 4 && p.is_multiple_of(4))
            }
            IpOption::Timestamp => {
                // Flags: timestamps alone, with addresses, with addresses that the sender has put in.
                let known = option.get(3).is_some_and(|byte| matches!(byte & 0x0f, 0 | 1 | 3));
                known && option.len().is_multiple_of(4) && pointer.is_some_and(|p| p >= 5 && p % 4 == 1)
            }
            IpOption::RouterAlert => option.len() == 4,
            IpOption::QuickStart => option.len() == 8,
            IpOption::Security | IpOption::ExtendedSecurity => option.len() >= 3,
            IpOption::Cipso => option.len() >= 6,
        }
    }

    /// May a packet have it more than once?
    fn repeats(self) -> bool {
        matches!(self, IpOption::ExtendedSecurity | IpOption::RouterAlert)
    }

    /// Its bit, in the order of [`IpOption::ALL`].
    fn bit(self) -> u16 {
        IpOption::ALL.iter().position(|&option| option == self).map_or(0, |at| 1 << at)
    }
}

impl IpOptions {
    /// No option.
    pub const NONE: IpOptions = IpOptions(0);
    /// One that no policy can let through: obsolete, experimental, or not known.
    const OTHER: u16 = 1 << 15;

    /// Reads a header's options.
    ///
    /// # Errors
    /// [`Reason::Malformed`]: a length or pointer that can not be, an option twice, data behind the end of the list.
    pub(super) fn read(mut rest: &[u8]) -> Result<IpOptions, Reason> {
        let mut found = IpOptions::NONE;
        while let Some((&number, after)) = rest.split_first() {
            match number {
                // End of list: what follows is padding, and must be zero.
                0 if after.iter().all(|&byte| byte == 0) => break,
                0 => return Err(Reason::Malformed),
                1 => rest = after,
                _ => {
                    let length = usize::from(*after.first().ok_or(Reason::Malformed)?);
                    let (option, following) = rest.split_at_checked(length).ok_or(Reason::Malformed)?;
                    rest = following;
                    let bit = match IpOption::numbered(number) {
                        _ if length < 2 => return Err(Reason::Malformed),
                        Some(known) if !known.is_sound(option) => return Err(Reason::Malformed),
                        Some(known) if found.has(known) && !known.repeats() => return Err(Reason::Malformed),
                        Some(known) => known.bit(),
                        None => IpOptions::OTHER,
                    };
                    found.0 |= bit;
                }
            }
        }
        Ok(found)
    }

    /// Has it none?
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Is one of them in it?
    #[must_use]
    pub fn has(self, option: IpOption) -> bool {
        self.0 & option.bit() != 0
    }

    /// Are all of `other` in it?
    #[must_use]
    pub fn covers(self, other: IpOptions) -> bool {
        other.0 & !self.0 == 0
    }
}

impl FromIterator<IpOption> for IpOptions {
    fn from_iter<I: IntoIterator<Item = IpOption>>(options: I) -> IpOptions {
        IpOptions(options.into_iter().fold(0, |bits, option| bits | option.bit()))
    }
}
