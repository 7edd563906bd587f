//! Join tokens: what a new machine needs to be admitted, as one word to copy.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

const TOKEN_PREFIX: &str = "palisade-join-";
const TOKEN_VERSION: u8 = 1;
/// Base 32 (RFC 4648 section 6), in lower case and without padding.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// Bytes of the checksum.
const CHECKSUM_BYTES: usize = 4;

/// A join token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    version: u8,
    /// The cluster's id.
    pub cluster: String,
    /// Addresses of members, `address:port`.
    pub addresses: Vec<String>,
    /// The credential. The cluster stores only its digest.
    secret: [u8; 32],
    /// The fingerprint of the cluster's CA, once there is one.
    pub ca: Option<[u8; 32]>,
}

/// Why a text is no join token.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, miette::Diagnostic)]
pub enum TokenError {
    /// Its prefix.
    #[error("a join token begins with `{TOKEN_PREFIX}`")]
    #[diagnostic(help("create one with `palisade cluster token` on a member"))]
    Prefix,
    /// Its checksum.
    #[error("the join token is damaged")]
    #[diagnostic(help("was it copied completely?"))]
    Damaged,
    /// Its version.
    #[error("the join token has version {0}, this program knows {TOKEN_VERSION}")]
    #[diagnostic(help("install the same release on all members"))]
    Version(u8),
}

impl Token {
    /// A new token with this secret.
    #[must_use]
    pub fn new(cluster: String, addresses: Vec<String>, secret: [u8; 32]) -> Token {
        Token { version: TOKEN_VERSION, cluster, addresses, secret, ca: None }
    }

    /// The credential.
    #[must_use]
    pub fn secret(&self) -> &[u8] {
        &self.secret
    }
}

/// The digest of a secret that the cluster stores. One round is enough: the secret has 256 random bits.
#[must_use]
pub(crate) fn digest(secret: &[u8]) -> Vec<u8> {
    Sha256::digest(secret).to_vec()
}

// Not derived: a secret must not be logged.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("cluster", &self.cluster)
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = postcard::to_stdvec(self).map_err(|_| fmt::Error)?;
        let check = Sha256::digest(&bytes);
        bytes.extend_from_slice(check.get(..CHECKSUM_BYTES).unwrap_or_default());
        f.write_str(TOKEN_PREFIX)?;
        f.write_str(&encode(&bytes))
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Token, TokenError> {
        let body = text.trim().strip_prefix(TOKEN_PREFIX).ok_or(TokenError::Prefix)?;
        let bytes = decode(body).ok_or(TokenError::Damaged)?;
        let (content, check) = bytes
            .len()
            .checked_sub(CHECKSUM_BYTES)
            .and_then(|n| bytes.split_at_checked(n))
            .ok_or(TokenError::Damaged)?;
        if Sha256::digest(content).get(..CHECKSUM_BYTES) != Some(check) {
            return Err(TokenError::Damaged);
        }
        match content.first() {
            Some(&TOKEN_VERSION) => postcard::from_bytes(content).map_err(|_| TokenError::Damaged),
            Some(&version) => Err(TokenError::Version(version)),
            None => Err(TokenError::Damaged),
        }
    }
}

fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 8 / 5 + 1);
    let (mut have, mut bits) = (0_u32, 0);
    for byte in bytes {
        have = (have << 8) | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            text.push(digit(have >> bits));
        }
    }
    if bits > 0 {
        text.push(digit(have << (5 - bits)));
    }
    text
}

fn digit(value: u32) -> char {
    char::from(ALPHABET[(value & 31) as usize])
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 5 / 8);
    let (mut have, mut bits) = (0_u32, 0);
    for letter in text.bytes() {
        let value = ALPHABET.iter().position(|a| *a == letter.to_ascii_lowercase())?;
        have = (have << 5) | u32::try_from(value).ok()?;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push(((have >> bits) & 0xff) as u8);
        }
    }
    // The remaining bits are padding, and zero.
    (bits < 5 && have & ((1 << bits) - 1) == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token::new("c0ffee".repeat(5), vec!["192.0.2.1:7946".to_owned(), "[2001:db8::1]:7946".to_owned()], [7; 32])
    }

    #[test]
    fn token_is_one_word() {
        let text = token().to_string();
        assert!(text.starts_with(TOKEN_PREFIX));
        assert!(text.bytes().all(|b| b == b'-' || b.is_ascii_lowercase() || b.is_ascii_digit()), "{text}");
        assert_eq!(text.parse::<Token>().unwrap(), token());
        assert_eq!(format!("  {text}\n").parse::<Token>().unwrap(), token());
    }

    #[test]
    fn token_with_a_wrong_letter_is_damaged() {
        let text = token().to_string();
        for place in TOKEN_PREFIX.len()..text.len() {
            let mut wrong = text.clone().into_bytes();
            wrong[place] = if wrong[place] == b'a' { b'b' } else { b'a' };
            assert!(String::from_utf8(wrong).unwrap().parse::<Token>().is_err(), "at {place}");
            assert!(text[..place].parse::<Token>().is_err(), "cut at {place}");
        }
    }

    #[test]
    fn token_is_told_from_other_text() {
        assert_eq!("hello".parse::<Token>(), Err(TokenError::Prefix));
        assert_eq!("palisade-join-".parse::<Token>(), Err(TokenError::Damaged));
        assert_eq!("palisade-join-1!".parse::<Token>(), Err(TokenError::Damaged));
        let old = Token { version: 9, ..token() }.to_string();
        assert_eq!(old.parse::<Token>(), Err(TokenError::Version(9)));
    }

    #[test]
    fn token_digest_is_sha_256() {
        // FIPS 180-2, appendix B.1.
        let hex: String = digest(b"abc").iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn token_secret_is_not_logged() {
        assert!(!format!("{:?}", token()).contains("7, 7"), "{:?}", token());
    }
}
