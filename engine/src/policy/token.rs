//! The tokenizer of the policy language.

use std::fmt;
use std::ops::Range;

use winnow::combinator::{alt, delimited, dispatch, fail, peek, preceded, repeat};
use winnow::error::EmptyError;
use winnow::prelude::*;
use winnow::stream::LocatingSlice;
use winnow::token::{any, take, take_till, take_while};

use super::error::Problem;

/// A token of a policy text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Token<'s> {
    /// A keyword, name, address, prefix or service.
    Word(&'s str),
    /// `"text"`.
    Text(&'s str),
    /// `@name`.
    Set(&'s str),
    /// `,`
    Comma,
    /// `:`
    Colon,
    /// `->`
    Arrow,
    /// `=`
    Equals,
    /// The end of a line.
    End,
}

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Token::Word(word) => write!(f, "`{word}`"),
            Token::Text(text) => write!(f, "\"{text}\""),
            Token::Set(name) => write!(f, "`@{name}`"),
            Token::Comma => f.write_str("`,`"),
            Token::Colon => f.write_str("`:`"),
            Token::Arrow => f.write_str("`->`"),
            Token::Equals => f.write_str("`=`"),
            Token::End => f.write_str("the end of the line"),
        }
    }
}

/// A token with its position.
pub(super) type Spanned<'s> = (Token<'s>, Range<usize>);

type Input<'s> = LocatingSlice<&'s str>;
type Result<T> = winnow::Result<T, EmptyError>;

/// All tokens of a text, the last one a [`Token::End`]. Invalid characters are reported to `problem` and skipped.
pub(super) fn tokens<'s>(text: &'s str, mut problem: impl FnMut(Problem)) -> Vec<Spanned<'s>> {
    let mut input = Input::new(text);
    let mut tokens: Vec<Spanned<'s>> = Vec::new();
    // `skip_blank` cannot fail.
    while skip_blank(&mut input).is_ok() && !input.is_empty() {
        let before = input;
        if let Ok(spanned) = token.with_span().parse_next(&mut input) {
            tokens.push(spanned);
            continue;
        }
        input = before;
        let (wrong, span) = match invalid_token.with_span().parse_next(&mut input) {
            Ok(found) => found,
            Err(EmptyError) => break,
        };
        problem(if wrong.starts_with('"') {
            Problem::new(span, "the name is not terminated", "starts here")
                .help("a rule's name ends with \" on the same line")
        } else {
            Problem::new(span, format!("unexpected `{}`", wrong.escape_debug()), "not expected")
        });
    }
    tokens.push((Token::End, text.len()..text.len()));
    tokens
}

/// Skips blanks and comments.
fn skip_blank(input: &mut Input<'_>) -> Result<()> {
    let blanks = take_while(1.., [' ', '\t', '\r']);
    let comment = ('#', take_till(0.., '\n')).take();
    repeat(0.., alt((blanks, comment))).parse_next(input)
}

fn token<'s>(input: &mut Input<'s>) -> Result<Token<'s>> {
    dispatch! { peek(any);
        '\n' => any.value(Token::End),
        ',' => any.value(Token::Comma),
        '=' => any.value(Token::Equals),
        '"' => delimited('"', take_till(0.., ['"', '\n']), '"').map(Token::Text),
        '@' => preceded('@', word).map(Token::Set),
        '-' => "->".value(Token::Arrow),
        ':' => alt((word.map(Token::Word), ':'.value(Token::Colon))),
        _ => word.map(Token::Word),
    }
    .parse_next(input)
}

fn word<'s>(input: &mut Input<'s>) -> Result<&'s str> {
    match word_length(input) {
        0 => fail.parse_next(input),
        length => take(length).parse_next(input),
    }
}

/// The length of the word at the beginning of `text`, in bytes; all its characters are ASCII.
///
/// A colon belongs to an IPv6 address; elsewhere it ends the zones of a rule. A hyphen joins the parts of a name or a range;
/// elsewhere it begins an arrow.
fn word_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let part =
        |at: usize| bytes.get(at).is_some_and(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.'));
    let mut length = 0;
    let mut groups = true;
    while let Some(&byte) = bytes.get(length) {
        match byte {
            // A colon belongs to an address only after a group of hexadecimal digits.
            b':' if !groups => break,
            b':' if bytes.get(length + 1) == Some(&b':') => length += 2,
            b':' if length > 0 && part(length + 1) => length += 1,
            b':' => break,
            b'-' if part(length + 1) && length > 0 => length += 1,
            b'/' if length > 0 => length += 1,
            _ if part(length) => {
                groups &= byte.is_ascii_hexdigit() || byte == b'.';
                length += 1;
            }
            _ => break,
        }
    }
    length
}

/// Input that begins no token: an unterminated name up to the end of its line, or one character.
fn invalid_token<'s>(input: &mut Input<'s>) -> Result<&'s str> {
    alt((('"', take_till(0.., '\n')).take(), take(1usize))).parse_next(input)
}
