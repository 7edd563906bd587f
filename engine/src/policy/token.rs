//! The tokenizer of the policy language.

use std::fmt;
use std::ops::Range;

use winnow::combinator::{alt, delimited, dispatch, fail, opt, peek, preceded, repeat};
use winnow::error::EmptyError;
use winnow::prelude::*;
use winnow::stream::LocatingSlice;
use winnow::token::{any, take, take_till, take_while};

use super::error::Problem;
use super::foreign::NO_NEGATION;

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
    let mut braces = Braces::default();
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
        if wrong.starts_with(['{', '}']) {
            let (found, ports) = braces.found(wrong, span, &mut tokens);
            found.into_iter().for_each(&mut problem);
            if ports && skip_ports.parse_next(&mut input).is_ok() {
                braces = Braces::default();
            }
            continue;
        }
        problem(if wrong.starts_with('"') {
            Problem::new(span, "the name is not terminated", "starts here")
                .help("a rule's name ends with \" on the same line")
        } else {
            let found = Problem::new(span, format!("unexpected `{}`", wrong.escape_debug()), "not expected");
            if wrong == "!" { found.help(NO_NEGATION) } else { found }
        });
    }
    tokens.push((Token::End, text.len()..text.len()));
    tokens
}

/// Braces, in which other languages put lists: one error for a pair of them.
#[derive(Default)]
struct Braces {
    open: bool,
}

impl Braces {
    /// Handles a brace, which is skipped. Returns whether ports follow, as in `tcp/{80, 443}`: then the word before it becomes a
    /// service, and they are skipped, too, so that nothing else is wrong.
    fn found(&mut self, brace: &str, span: Range<usize>, tokens: &mut [Spanned<'_>]) -> (Option<Problem>, bool) {
        let opens = brace == "{";
        let closes_another = !opens && self.open;
        self.open = opens;
        if closes_another {
            return (None, false);
        }
        let mut ports = false;
        let mut help = "a list has no braces: its members are separated by commas".to_owned();
        if let Some((Token::Word(word), before)) = tokens.last_mut()
            && before.end == span.start
            && let Some(protocol) = word.strip_suffix('/')
        {
            (*word, ports) = (protocol, true);
            help = format!("a list has no braces, and each port its protocol: {protocol}/80, {protocol}/443");
        }
        (Some(Problem::new(span, format!("unexpected `{brace}`"), "not expected").help(help)), ports)
    }
}

/// Skips what is in braces, to the end of the line at most.
fn skip_ports(input: &mut Input<'_>) -> Result<()> {
    (take_till(0.., ['}', '\n']), opt('}')).void().parse_next(input)
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
