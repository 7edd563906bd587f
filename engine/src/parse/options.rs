//! IPv4 options (RFC 791 section 3.1): their structure, and which of them a packet has.
//!
//! A malformed list is INVALID whatever the policy says. Which options of a well-formed list may pass, the active policy
//! decides. RFC 7126 (BCP 186) section 4 has the purpose and the risks of each option.

use serde::{Deserialize, Serialize};

use crate::verdict::Reason;

/// A set of IPv4 options. `End of list` and `no operation` do not count: every packet may have them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct IpOptions(u16);

macro_rules! options {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $label:literal;)*) => {
        /// An IPv4 option that a policy can allow, with its IANA number.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        #[repr(u8)]
        pub enum IpOption {
            $($(#[$doc])* $name = $number,)*
        }

        impl IpOption {
            /// All options.
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
    /// The option with this number, if a policy can allow it.
    fn numbered(number: u8) -> Option<IpOption> {
        IpOption::ALL.iter().copied().find(|&option| option as u8 == number)
    }

    /// Whether the option sends the packet to another address than its destination.
    #[must_use]
    pub fn is_source_route(self) -> bool {
        matches!(self, IpOption::LooseSourceRoute | IpOption::StrictSourceRoute)
    }

    /// Whether `option`, its number and length included, is well-formed. A pointer counts from 1, and points beyond the option
    /// when that is full (RFC 791 section 3.1).
    fn is_well_formed(self, option: &[u8]) -> bool {
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

    /// Whether a packet may have the option more than once.
    fn may_repeat(self) -> bool {
        matches!(self, IpOption::ExtendedSecurity | IpOption::RouterAlert)
    }

    /// The option's bit, in the order of [`IpOption::ALL`].
    fn bit(self) -> u16 {
        IpOption::ALL.iter().position(|&option| option == self).map_or(0, |at| 1 << at)
    }
}

impl IpOptions {
    /// No option.
    pub const NONE: IpOptions = IpOptions(0);
    /// The bit of options that no policy can allow: obsolete, experimental, or unknown.
    const OTHER: u16 = 1 << 15;

    /// Reads a header's options.
    ///
    /// # Errors
    /// [`Reason::Malformed`]: an impossible length or pointer, a repeated option, data behind the end of the list.
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
                        Some(known) if !known.is_well_formed(option) => return Err(Reason::Malformed),
                        Some(known) if found.has(known) && !known.may_repeat() => return Err(Reason::Malformed),
                        Some(known) => known.bit(),
                        None => IpOptions::OTHER,
                    };
                    found.0 |= bit;
                }
            }
        }
        Ok(found)
    }

    /// Whether there are no options.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether the set contains `option`.
    #[must_use]
    pub fn has(self, option: IpOption) -> bool {
        self.0 & option.bit() != 0
    }

    /// Whether the set contains all of `other`.
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
