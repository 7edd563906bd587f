//! The parser from tokens to statements: the grammar of `docs/policy.md`, with error recovery.
//!
//! After an error in a list member, the parser skips that member. After any other error it skips the rest of the statement.
//! A name that an invalid line declares counts as declared, so that one error does not cause others.

use std::fmt;
use std::ops::Range;

use super::error::{Problem, similar};
use super::foreign::{instead_of, instead_of_host};
use super::model::{Action, Address, Default, KEYWORDS, NAME_MAX, RULE_NAME_MAX, Service, is_name};
use super::token::{Spanned, Token, tokens};
use crate::level::Level;
use crate::parse::IpOption;
use crate::timeouts::{self, Timeout};

/// A value with its position in the text.
#[derive(Clone, Debug)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) span: Range<usize>,
}

/// A set or service as parsed.
pub(super) struct DraftNamed<T> {
    pub(super) name: Located<String>,
    pub(super) members: Vec<Located<T>>,
}

/// A rule as parsed; a list that is `None` is `any`.
pub(super) struct DraftRule {
    pub(super) action: Action,
    pub(super) name: Located<String>,
    pub(super) from: Option<Vec<Located<String>>>,
    pub(super) to: Option<Vec<Located<String>>>,
    pub(super) source: Located<Option<Vec<Located<Address>>>>,
    pub(super) destination: Located<Option<Vec<Located<Address>>>>,
    pub(super) services: Option<Vec<Located<Service>>>,
    pub(super) log: bool,
}

/// A policy as parsed, with names not yet resolved.
#[derive(std::default::Default)]
pub(super) struct Draft {
    pub(super) zones: Vec<Located<String>>,
    pub(super) sets: Vec<DraftNamed<Address>>,
    pub(super) services: Vec<DraftNamed<Service>>,
    /// Each timeout with its value in seconds.
    pub(super) timeouts: Vec<Located<(Timeout, u32)>>,
    pub(super) defaults: Vec<Located<Default>>,
    pub(super) ip_options: Vec<Located<IpOption>>,
    pub(super) rules: Vec<DraftRule>,
}

/// Parses a policy text in the language of a level, and adds its errors to `problems`.
pub(super) fn read(level: Level, text: &str, problems: &mut Vec<Problem>) -> Draft {
    let tokens = join_continued_lines(tokens(text, |problem| problems.push(problem)));
    let mut reader = Reader { level, tokens: &tokens, at: 0, problems, draft: Draft::default() };
    while reader.at < tokens.len() {
        if let Err(StatementSkipped) = reader.statement() {
            while !matches!(reader.peek(), Token::End) {
                reader.at += 1;
            }
        }
        reader.at += 1;
    }
    reader.draft
}

/// Joins a line that ends with a comma to the next one, unless the next one begins a new statement.
fn join_continued_lines(tokens: Vec<Spanned<'_>>) -> Vec<Spanned<'_>> {
    let mut out: Vec<Spanned<'_>> = Vec::with_capacity(tokens.len());
    let mut rest = tokens.into_iter().peekable();
    while let Some((token, span)) = rest.next() {
        let comma = matches!(out.last(), Some((Token::Comma, _)));
        let more = match rest.peek() {
            Some((Token::Word(word), _)) => !STATEMENTS.contains(word),
            Some(_) => true,
            None => false,
        };
        if !(token == Token::End && comma && more) {
            out.push((token, span));
        }
    }
    out
}

/// The keywords that begin a statement.
const STATEMENTS: &[&str] = &["zone", "set", "service", "timeout", "default", "ip-options", "accept", "drop", "reject"];

const EXAMPLE: &str = "a rule is: accept \"name\" from ZONE to ZONE: SOURCE -> DESTINATION SERVICE";

/// The rest of the statement cannot be parsed; the error is already reported.
struct StatementSkipped;

struct Reader<'t, 's, 'p> {
    /// Words that a later level adds are no keywords.
    #[cfg_attr(not(feature = "next-level"), expect(dead_code, reason = "level 1 is the first one"))]
    level: Level,
    tokens: &'t [Spanned<'s>],
    at: usize,
    problems: &'p mut Vec<Problem>,
    draft: Draft,
}

impl<'s> Reader<'_, 's, '_> {
    /// The next token; [`Token::End`] at the end.
    fn peek(&self) -> Token<'s> {
        self.tokens.get(self.at).map_or(Token::End, |(token, _)| *token)
    }

    /// The position of the next token.
    fn span(&self) -> Range<usize> {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(0..0, |(_, span)| span.clone())
    }

    /// The range from `start` to the end of the last consumed token.
    fn since(&self, start: usize) -> Range<usize> {
        let last = self.at.checked_sub(1).and_then(|at| self.tokens.get(at));
        start..last.map_or(start, |(_, span)| span.end.max(start))
    }

    /// Consumes the next token if it is `token`, and returns whether it was.
    fn take(&mut self, token: Token<'_>) -> bool {
        let is = self.peek() == token;
        self.at += usize::from(is);
        is
    }

    /// Reports that `what` was expected in place of the next token.
    fn expected(&mut self, what: impl fmt::Display) -> StatementSkipped {
        self.expected_with(what, None)
    }

    fn expected_with(&mut self, what: impl fmt::Display, help: Option<String>) -> StatementSkipped {
        let message = format!("expected {what}, found {}", self.peek());
        let problem = Problem::new(self.span(), message, format!("expected {what}"));
        let foreign = match self.peek() {
            Token::Word(word) => instead_of(word).map(str::to_owned),
            _ => None,
        };
        self.problems.push(Problem { help: foreign.or(help), ..problem });
        StatementSkipped
    }

    /// Consumes `token`, or reports that it was expected.
    fn expect_token(&mut self, token: Token<'_>, help: &str) -> Result<(), StatementSkipped> {
        if self.take(token) { Ok(()) } else { Err(self.expected_with(token, Some(help.to_owned()))) }
    }

    fn statement(&mut self) -> Result<(), StatementSkipped> {
        let start = self.span().start;
        match self.peek() {
            Token::End => return Ok(()),
            Token::Word("zone") => self.zone()?,
            Token::Word("set") => {
                let (name, members) = self.declaration("set", "web = 192.0.2.10, 2001:db8::10", Self::address)?;
                self.draft.sets.push(DraftNamed { name, members });
            }
            Token::Word("service") => {
                let (name, members) = self.declaration("service", "https = tcp/443, udp/443", Self::service)?;
                self.draft.services.push(DraftNamed { name, members });
            }
            Token::Word("timeout") => self.timeouts()?,
            Token::Word("default") => {
                self.at += 1;
                let Token::Word(word) = self.peek() else { return Err(self.expected("`drop`, `reject` or `accept`")) };
                let Some(action) = action(word) else { return Err(self.expected("`drop`, `reject` or `accept`")) };
                self.at += 1;
                let log = self.take(Token::Word("log"));
                let span = self.since(start);
                self.draft.defaults.push(Located { value: Default { action, log }, span });
            }
            Token::Word("ip-options") => {
                self.at += 1;
                let (options, end) = self.list(Self::ip_option);
                self.draft.ip_options.extend(options);
                end?;
            }
            #[cfg(feature = "next-level")]
            Token::Word("next-level") if self.level >= crate::replicated::next_level::NEXT => self.at += 1,
            Token::Word(word) => match action(word) {
                Some(action) => self.rule(action)?,
                None => {
                    let help =
                        similar(word, STATEMENTS.iter().copied()).map(|meant| format!("did you mean `{meant}`?"));
                    let what =
                        "`zone`, `set`, `service`, `timeout`, `default`, `ip-options`, `accept`, `drop` or `reject`";
                    return Err(self.expected_with(what, help));
                }
            },
            _ => return Err(self.expected_with("the start of a statement", Some(EXAMPLE.to_owned()))),
        }
        match self.peek() {
            Token::End => Ok(()),
            Token::Comma => Err(self.expected("nothing more on this line")),
            _ => Err(self.expected("`,` or the end of the line")),
        }
    }

    fn zone(&mut self) -> Result<(), StatementSkipped> {
        self.at += 1;
        loop {
            if let Some(zone) = self.name("a zone's name")? {
                self.draft.zones.push(zone);
            }
            if !self.take(Token::Comma) {
                return Ok(());
            }
        }
    }

    /// Parses `NAME TIME, …`.
    fn timeouts(&mut self) -> Result<(), StatementSkipped> {
        self.at += 1;
        let (read, end) = self.list(|reader| {
            let span = reader.span();
            let Token::Word(name) = reader.peek() else { return Err(reader.expected("a timeout's name")) };
            reader.at += 1;
            let timeout = Timeout::named(name);
            if timeout.is_none() {
                let meant = similar(name, Timeout::ALL.iter().map(|timeout| timeout.name()));
                let meant = meant.map(|meant| format!("did you mean {meant}? ")).unwrap_or_default();
                let problem = Problem::new(span.clone(), timeouts::unknown_timeout(name), "not a timeout");
                reader.problems.push(problem.help(format!("{meant}the timeouts are {}", timeouts::timeout_names())));
            }
            let time = reader.span();
            let Token::Word(word) = reader.peek() else { return Err(reader.expected("a time, as in 30s, 5m, 2h, 5d")) };
            reader.at += 1;
            match timeouts::parse_seconds(word) {
                Ok(seconds) => Ok(timeout.map(|timeout| Located { value: (timeout, seconds), span })),
                Err(message) => {
                    let problem = Problem::new(time, message, "expected a time");
                    reader.problems.push(problem.help("as in 30s, 5m, 2h, 5d"));
                    Ok(None)
                }
            }
        });
        self.draft.timeouts.extend(read);
        end
    }

    /// Parses `NAME = MEMBER, …`, the declaration of a set or service.
    fn declaration<T>(
        &mut self,
        what: &str,
        example: &str,
        member: impl FnMut(&mut Self) -> Result<Option<Located<T>>, StatementSkipped>,
    ) -> Result<(Located<String>, Vec<Located<T>>), StatementSkipped> {
        self.at += 1;
        if let Token::Set(name) = self.peek() {
            let problem = Problem::new(self.span(), "a set is declared without @", "remove the @");
            self.problems.push(problem.help(format!("write: set {name} = …")));
            return Err(StatementSkipped);
        }
        let start = self.span();
        let name = self.name(format_args!("a {what}'s name"))?.unwrap_or(Located { value: String::new(), span: start });
        // The name is declared even if its list is invalid.
        let list = match self.expect_token(Token::Equals, &format!("as in: {what} {example}")) {
            Ok(()) => self.list(member),
            Err(StatementSkipped) => (Vec::new(), Err(StatementSkipped)),
        };
        match list {
            (members, Ok(())) => Ok((name, members)),
            (members, Err(StatementSkipped)) => {
                self.skip_line();
                Ok((name, members))
            }
        }
    }

    /// Skips to the end of the line.
    fn skip_line(&mut self) {
        while !matches!(self.peek(), Token::End) {
            self.at += 1;
        }
    }

    /// Parses a declared name, a word that is not a keyword. Returns `None` if it is invalid, after reporting the error.
    fn name(&mut self, what: impl fmt::Display) -> Result<Option<Located<String>>, StatementSkipped> {
        let Token::Word(word) = self.peek() else { return Err(self.expected(what)) };
        let span = self.span();
        if KEYWORDS.contains(&word) {
            let problem = Problem::new(span, format!("expected {what}, found the keyword `{word}`"), "a keyword");
            self.problems.push(problem.help("keywords cannot be names"));
            return Err(StatementSkipped);
        }
        self.at += 1;
        if is_name(word) {
            return Ok(Some(Located { value: word.to_owned(), span }));
        }
        let help = format!(
            "a name begins with a letter or `_` and contains up to {NAME_MAX} letters, digits, `_`, `-` and `.`"
        );
        self.problems.push(Problem::new(span, format!("`{word}` cannot be a name"), "not a name").help(help));
        Ok(None)
    }

    /// Parses a list. Returns its valid members, and whether the whole list was parsed.
    fn list<T>(
        &mut self,
        mut member: impl FnMut(&mut Self) -> Result<Option<Located<T>>, StatementSkipped>,
    ) -> (Vec<Located<T>>, Result<(), StatementSkipped>) {
        let mut members = Vec::new();
        loop {
            if self.peek() == Token::Word("any") {
                let problem = Problem::new(self.span(), "`any` cannot be part of a list", "not in a list");
                self.problems.push(problem.help("remove `any`, or everything else"));
                return (members, Err(StatementSkipped));
            }
            match member(self) {
                Ok(found) => members.extend(found),
                Err(StatementSkipped) => return (members, Err(StatementSkipped)),
            }
            if !self.take(Token::Comma) {
                return (members, Ok(()));
            }
        }
    }

    /// Parses `any` or a list.
    fn any_or_list<T>(
        &mut self,
        member: impl FnMut(&mut Self) -> Result<Option<Located<T>>, StatementSkipped>,
    ) -> Result<Option<Vec<Located<T>>>, StatementSkipped> {
        if !self.take(Token::Word("any")) {
            let (members, end) = self.list(member);
            return end.map(|()| Some(members));
        }
        if self.peek() == Token::Comma {
            let problem = Problem::new(self.span(), "`any` cannot be part of a list", "no list after `any`");
            self.problems.push(problem.help("remove `any`, or everything else"));
            return Err(StatementSkipped);
        }
        Ok(None)
    }

    fn rule(&mut self, action: Action) -> Result<(), StatementSkipped> {
        self.at += 1;
        let span = self.span();
        let Token::Text(name) = self.peek() else {
            return Err(self.expected_with("the rule's name in double quotes", Some(EXAMPLE.to_owned())));
        };
        self.at += 1;
        if name.is_empty() || name.len() > RULE_NAME_MAX || name.chars().any(char::is_control) {
            let help = format!("a rule's name has 1 to {RULE_NAME_MAX} bytes and no control characters");
            self.problems.push(Problem::new(span.clone(), "invalid rule name", "not a name").help(help));
        }
        let name = Located { value: name.to_owned(), span };
        self.expect_token(Token::Word("from"), EXAMPLE)?;
        let from = self.any_or_list(|reader| reader.name("a zone's name"))?;
        self.expect_token(Token::Word("to"), EXAMPLE)?;
        let to = self.any_or_list(|reader| reader.name("a zone's name"))?;
        self.expect_token(Token::Colon, EXAMPLE)?;
        let source = self.addresses()?;
        self.expect_token(Token::Arrow, EXAMPLE)?;
        let destination = self.addresses()?;
        let services = match self.peek() {
            Token::End | Token::Word("log") => None,
            _ => self.any_or_list(Self::service)?,
        };
        let log = self.take(Token::Word("log"));
        self.draft.rules.push(DraftRule { action, name, from, to, source, destination, services, log });
        Ok(())
    }

    fn addresses(&mut self) -> Result<Located<Option<Vec<Located<Address>>>>, StatementSkipped> {
        let start = self.span().start;
        let value = self.any_or_list(Self::address)?;
        Ok(Located { value, span: self.since(start) })
    }

    /// Parses an address, a prefix or `@set`. Returns `None` if it is invalid, after reporting the error.
    fn address(&mut self) -> Result<Option<Located<Address>>, StatementSkipped> {
        const WHAT: &str = "an address, a prefix or @SET";
        let span = self.span();
        let foreign = match self.peek() {
            Token::Word(word) => instead_of_host(word),
            _ => None,
        };
        let read = match self.peek() {
            Token::Set(name) => format!("@{name}").parse(),
            Token::Word(word) if KEYWORDS.contains(&word) => return Err(self.expected(WHAT)),
            Token::Word(word) if instead_of(word).is_some() => return Err(self.expected(WHAT)),
            Token::Word(word) if foreign.is_some() => Err(format!("`{word}` is not an address")),
            Token::Word(word) if is_name(word) => {
                Err(format!("`{word}` is not an address: to name a set, write @{word}"))
            }
            Token::Word(word) => word.parse(),
            _ => return Err(self.expected(WHAT)),
        };
        self.at += 1;
        match read {
            Ok(value) => Ok(Some(Located { value, span })),
            Err(message) => {
                let problem = Problem::new(span, message, format!("expected {WHAT}"));
                let help = foreign.unwrap_or("as in 192.0.2.1, 192.0.2.0/24, 2001:db8::/32, @web");
                self.problems.push(problem.help(help));
                Ok(None)
            }
        }
    }

    /// Parses an IPv4 option. Returns `None` if it is invalid, after reporting the error.
    fn ip_option(&mut self) -> Result<Option<Located<IpOption>>, StatementSkipped> {
        const WHAT: &str = "an IPv4 option";
        let Token::Word(word) = self.peek() else { return Err(self.expected(WHAT)) };
        if KEYWORDS.contains(&word) {
            return Err(self.expected(WHAT));
        }
        let span = self.span();
        self.at += 1;
        match word.parse() {
            Ok(value) => Ok(Some(Located { value, span })),
            Err(message) => {
                let names = IpOption::ALL.iter().map(|option| option.name());
                let help = match similar(word, names.clone()) {
                    Some(meant) => format!("did you mean `{meant}`?"),
                    None => format!("write one of {}", names.collect::<Vec<_>>().join(", ")),
                };
                let problem = Problem::new(span, message, format!("expected {WHAT}"));
                self.problems.push(problem.help(help));
                Ok(None)
            }
        }
    }

    /// The help for a port without protocol, as in `tcp/22,3389`; the next token is the one after it.
    fn missing_protocol(&self, port: &str) -> Option<String> {
        if !port.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') {
            return None;
        }
        let before = self.at.checked_sub(3).and_then(|at| self.tokens.get(at));
        let protocol = match before {
            Some((Token::Word(word), _)) => word.split_once('/').map(|(protocol, _)| protocol),
            _ => None,
        };
        Some(format!("each port has its protocol: {}/{port}", protocol.unwrap_or("tcp")))
    }

    /// Parses a service. Returns `None` if it is invalid, after reporting the error.
    fn service(&mut self) -> Result<Option<Located<Service>>, StatementSkipped> {
        const WHAT: &str = "a service";
        let Token::Word(word) = self.peek() else { return Err(self.expected(WHAT)) };
        let protocol = matches!(word, "tcp" | "udp" | "sctp" | "icmp" | "icmp6" | "proto");
        if KEYWORDS.contains(&word) && !protocol {
            return Err(self.expected(WHAT));
        }
        let span = self.span();
        self.at += 1;
        match word.parse() {
            Ok(value) => Ok(Some(Located { value, span })),
            Err(message) => {
                let problem = Problem::new(span, message, format!("expected {WHAT}"));
                let example =
                    "as in tcp/443, tcp/1000-2000, udp/53, icmp/echo, icmp6/echo, proto/47, or a service's name";
                let help = self.missing_protocol(word).or_else(|| instead_of(word).map(str::to_owned));
                self.problems.push(problem.help(help.unwrap_or_else(|| example.to_owned())));
                Ok(None)
            }
        }
    }
}

fn action(word: &str) -> Option<Action> {
    match word {
        "accept" => Some(Action::Accept),
        "drop" => Some(Action::Drop),
        "reject" => Some(Action::Reject),
        _ => None,
    }
}
