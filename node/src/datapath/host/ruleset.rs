//! The nftables rules of other programs, as far as they decide what becomes of re-injected packets. Rules of the iptables
//! programs that write nftables are among them.

use std::io;

use crate::datapath::StartError;
use crate::datapath::gate::{Connection, TABLE, wire};

/// `NFT_MSG_GETCHAIN`, `NFT_MSG_GETRULE`, `NFT_MSG_GETFLOWTABLE`.
const GET_CHAIN: u16 = 4;
const GET_RULE: u16 = 7;
const GET_FLOWTABLE: u16 = 23;

/// `NFPROTO_*` of the families that IP packets pass.
const FAMILIES: [(u8, &str); 4] = [(1, "inet"), (2, "ip"), (10, "ip6"), (LEGACY, "")];
/// Not nftables, but iptables-legacy, whose table's name begins with its program's.
const LEGACY: u8 = u8::MAX;
/// `NF_INET_PRE_ROUTING`, `_FORWARD`, `_POST_ROUTING`: where re-injected packets pass.
const HOOKS: [u32; 3] = [0, 2, 4];

/// Jumps are followed to this depth; the kernel allows 16.
const MAX_JUMPS: usize = 16;

/// A chain's name, with its family and table.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Name {
    family: u8,
    table: String,
    chain: String,
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match FAMILIES.iter().find(|(number, _)| *number == self.family) {
            Some((_, family)) if self.family != LEGACY => write!(f, "{family} {} {}", self.table, self.chain),
            _ => write!(f, "{} {}", self.table, self.chain),
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Chain {
    name: Name,
    /// Of a base chain.
    hook: Option<u32>,
    /// `filter`, `nat`, `route`.
    kind: String,
    /// Whether its policy is drop.
    drops: bool,
}

/// What a rule does with what it applies to.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Action {
    Nothing,
    Accept,
    Drop,
    Jump(String),
    Goto(String),
    Return,
}

/// What a rule asks about a packet, as far as it is understood.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Condition {
    /// The incoming interface's name is this, or begins with it, or not.
    From { name: Vec<u8>, equal: bool },
    /// There is no route back to the source by the interface that the packet came from: so of nearly everything that is
    /// re-injected.
    NoRouteBack,
    /// Something else.
    Unknown,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Rule {
    chain: Name,
    conditions: Vec<Condition>,
    action: Action,
    /// Whether it changes addresses.
    translates: bool,
}

/// Others' rules.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Ruleset {
    chains: Vec<Chain>,
    rules: Vec<Rule>,
    /// The names of flowtables, each with a device.
    flowtables: Vec<(String, String)>,
}

/// What a register holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Loaded {
    IifName,
    /// IPv4 or IPv6: some of what is re-injected is either.
    Family,
    RouteBack,
    Other,
}

/// A 16-byte register as the first of its four small ones.
fn register(number: u32) -> u32 {
    if (1..=4).contains(&number) { 8 + (number - 1) * 4 } else { number }
}

/// Reads a rule's expressions one after another.
#[derive(Default)]
struct Reader {
    registers: Vec<(u32, Loaded)>,
    conditions: Vec<Condition>,
    action: Option<Action>,
    translates: bool,
}

impl Reader {
    fn load(&mut self, data: &[u8], what: Loaded) {
        // NFTA_*_DREG is the first attribute of those that load. Without it a packet's field is set.
        if let Some(to) = wire::number(data, 1).map(register) {
            self.registers.retain(|(r, _)| *r != to);
            self.registers.push((to, what));
        }
    }

    fn loaded(&self, number: Option<u32>) -> Loaded {
        let found = self.registers.iter().find(|(r, _)| number.map(register) == Some(*r));
        found.map_or(Loaded::Other, |(_, what)| *what)
    }

    fn expression(&mut self, name: &str, data: &[u8]) {
        match name {
            "meta" => self.load(
                data,
                match wire::number(data, 2) {
                    Some(6) => Loaded::IifName,
                    Some(1 | 15) => Loaded::Family,
                    _ => Loaded::Other,
                },
            ),
            "fib" => {
                // NFTA_FIB_F_SADDR and _IIF, NFT_FIB_RESULT_OIF and _OIFNAME.
                let back = wire::number(data, 3).is_some_and(|flags| flags & 9 == 9)
                    && matches!(wire::number(data, 2), Some(1 | 2));
                self.load(data, if back { Loaded::RouteBack } else { Loaded::Other });
            }
            "cmp" => self.compare(data),
            "immediate" => self.immediate(data),
            "reject" => self.action = Some(Action::Drop),
            "match" => match wire::text(data, 1).as_deref() {
                Some("comment") => {}
                // NFTA_MATCH_INFO begins with its flags, of which 8 is XT_RPFILTER_INVERT.
                Some("rpfilter") if wire::find(data, 3).and_then(<[u8]>::first).is_some_and(|flags| flags & 8 != 0) => {
                    self.conditions.push(Condition::NoRouteBack);
                }
                _ => self.conditions.push(Condition::Unknown),
            },
            "target" => match wire::text(data, 1).as_deref() {
                Some("REJECT") => self.action = Some(Action::Drop),
                Some("MASQUERADE" | "SNAT" | "DNAT" | "REDIRECT" | "NETMAP") => self.translates = true,
                _ => {}
            },
            "masq" | "nat" | "redir" => self.translates = true,
            "counter" | "log" | "notrack" | "objref" | "payload" | "ct" | "bitwise" | "byteorder" | "rt" | "exthdr" => {
                self.load(data, Loaded::Other);
            }
            _ => self.conditions.push(Condition::Unknown),
        }
    }

    fn compare(&mut self, data: &[u8]) {
        let equal = wire::number(data, 2) == Some(0);
        let unequal = wire::number(data, 2) == Some(1);
        let value = wire::find(data, 3).and_then(|v| wire::find(v, 1)).unwrap_or_default();
        match self.loaded(wire::number(data, 1)) {
            Loaded::IifName if equal || unequal => {
                self.conditions.push(Condition::From { name: value.to_vec(), equal });
            }
            Loaded::RouteBack if equal && value.iter().all(|b| *b == 0) => {
                self.conditions.push(Condition::NoRouteBack);
            }
            Loaded::Family => {}
            _ => self.conditions.push(Condition::Unknown),
        }
    }

    fn immediate(&mut self, data: &[u8]) {
        let Some(verdict) = wire::find(data, 2).and_then(|d| wire::find(d, 2)) else { return };
        let chain = || wire::text(verdict, 2).unwrap_or_default();
        self.action = match wire::number(verdict, 1).map(u32::cast_signed) {
            Some(0) => Some(Action::Drop),
            Some(1) => Some(Action::Accept),
            Some(-3) => Some(Action::Jump(chain())),
            Some(-4) => Some(Action::Goto(chain())),
            Some(-5) => Some(Action::Return),
            _ => None,
        };
    }
}

impl Rule {
    fn parse(family: u8, body: &[u8]) -> Option<Rule> {
        let chain = Name { family, table: wire::text(body, 1)?, chain: wire::text(body, 2)? };
        let mut reader = Reader::default();
        for (_, expression) in wire::attributes(wire::find(body, 4).unwrap_or_default()) {
            let name = wire::text(expression, 1).unwrap_or_default();
            reader.expression(&name, wire::find(expression, 2).unwrap_or_default());
        }
        let Reader { conditions, action, translates, .. } = reader;
        Some(Rule { chain, conditions, action: action.unwrap_or(Action::Nothing), translates })
    }

    /// Whether it applies to what comes from a device, whatever else is in the packet.
    fn applies(&self, device: &str) -> bool {
        self.conditions.iter().all(|condition| match condition {
            Condition::From { name, equal } => is_name(name, device) == *equal,
            Condition::NoRouteBack => true,
            Condition::Unknown => false,
        })
    }
}

/// Whether a name as a rule has it is that of the device: up to its zero byte, else of all devices that begin so.
fn is_name(name: &[u8], device: &str) -> bool {
    match name.iter().position(|b| *b == 0) {
        Some(end) => name.get(..end) == Some(device.as_bytes()),
        None => device.as_bytes().starts_with(name),
    }
}

impl Chain {
    fn parse(family: u8, body: &[u8]) -> Option<Chain> {
        let name = Name { family, table: wire::text(body, 1)?, chain: wire::text(body, 3)? };
        let hook = wire::find(body, 4).and_then(|hook| wire::number(hook, 1));
        let drops = wire::number(body, 5) == Some(0);
        Some(Chain { name, hook, kind: wire::text(body, 7).unwrap_or_default(), drops })
    }
}

/// What a chain does with a packet.
enum Outcome<'a> {
    Accepted,
    /// By this rule of it, or by its policy.
    Dropped(Option<&'a Rule>),
    Continues,
}

impl Ruleset {
    /// What is in the kernel, without the gate's own table; empty where there is no nf_tables.
    pub(crate) fn read() -> io::Result<Ruleset> {
        let mut connection = match Connection::open().and_then(|mut c| c.generation().map(|_| c)) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT)) => {
                return Ok(Ruleset::default());
            }
            other => other?,
        };
        let all = wire::Attributes::default();
        let chains = connection.dump(GET_CHAIN, 0, &all)?;
        let rules = connection.dump(GET_RULE, 0, &all)?;
        let flowtables = connection.dump(GET_FLOWTABLE, 0, &all)?;
        let mut set = Ruleset {
            chains: chains.iter().filter_map(|c| Chain::parse(c.family, &c.body)).collect(),
            rules: rules.iter().filter_map(|r| Rule::parse(r.family, &r.body)).collect(),
            flowtables: flowtables.iter().flat_map(|f| flowtable(&f.body)).collect(),
        };
        set.chains.retain(|chain| chain.name.table != TABLE);
        set.rules.retain(|rule| rule.chain.table != TABLE);
        Ok(set)
    }

    /// What drops everything that comes from one of our devices.
    pub(crate) fn obstacle(&self, devices: &[String]) -> Option<StartError> {
        let ip = |chain: &&Chain| FAMILIES.iter().any(|(family, _)| *family == chain.name.family);
        let bases = self.chains.iter().filter(ip).filter(|c| c.hook.is_some_and(|hook| HOOKS.contains(&hook)));
        bases.filter(|chain| chain.kind != "nat").find_map(|base| {
            devices.iter().find_map(|device| {
                let rule = match self.walk(&base.name, device, 0) {
                    Outcome::Dropped(rule) => rule,
                    Outcome::Continues if base.drops => None,
                    Outcome::Continues | Outcome::Accepted => return None,
                };
                let device = device.clone();
                let chain = rule.map_or(&base.name, |rule| &rule.chain).to_string();
                Some(match rule {
                    Some(rule) if rule.conditions.contains(&Condition::NoRouteBack) => {
                        StartError::ReversePathRule { chain }
                    }
                    _ => StartError::ForwardChain { chain: format!("chain {chain}"), device },
                })
            })
        })
    }

    fn walk(&self, chain: &Name, device: &str, depth: usize) -> Outcome<'_> {
        if depth > MAX_JUMPS {
            return Outcome::Continues;
        }
        for rule in self.rules.iter().filter(|rule| rule.chain == *chain && rule.applies(device)) {
            let to = |name: &String| Name { chain: name.clone(), ..chain.clone() };
            match &rule.action {
                Action::Nothing => {}
                Action::Accept => return Outcome::Accepted,
                Action::Drop => return Outcome::Dropped(Some(rule)),
                Action::Return => return Outcome::Continues,
                Action::Goto(name) => return self.walk(&to(name), device, depth + 1),
                Action::Jump(name) => match self.walk(&to(name), device, depth + 1) {
                    Outcome::Continues => {}
                    decided => return decided,
                },
            }
        }
        Outcome::Continues
    }

    /// A flowtable on one of these interfaces.
    pub(crate) fn flowtable(&self, interfaces: &[&str]) -> Option<StartError> {
        let (name, interface) = self.flowtables.iter().find(|(_, device)| interfaces.contains(&device.as_str()))?;
        Some(StartError::Flowtable { name: name.clone(), interface: interface.clone() })
    }

    /// The tables that translate addresses.
    pub(crate) fn translators(&self) -> Vec<String> {
        let mut tables: Vec<String> = self
            .rules
            .iter()
            .filter(|rule| rule.translates)
            .map(|rule| rule.chain.to_string().rsplit_once(' ').map_or_else(String::new, |(t, _)| t.to_owned()))
            .collect();
        tables.sort_unstable();
        tables.dedup();
        tables
    }
}

/// A table of iptables-legacy, from what its program lists with `-S`.
pub(crate) fn legacy(table: &str, listing: &str) -> Ruleset {
    let mut set = Ruleset::default();
    let name = |chain: &str| Name { family: LEGACY, table: table.to_owned(), chain: chain.to_owned() };
    for line in listing.lines() {
        let words = words(line);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["-P", chain, policy] => {
                let hook = match *chain {
                    "PREROUTING" => Some(0),
                    "FORWARD" => Some(2),
                    "POSTROUTING" => Some(4),
                    _ => None,
                };
                let drops = *policy == "DROP";
                set.chains.push(Chain { name: name(chain), hook, kind: "filter".to_owned(), drops });
            }
            ["-A", chain, rest @ ..] => {
                let (conditions, action) = legacy_rule(rest);
                set.rules.push(Rule { chain: name(chain), conditions, action, translates: false });
            }
            _ => {}
        }
    }
    set
}

/// What is behind `-A CHAIN`.
fn legacy_rule(mut words: &[&str]) -> (Vec<Condition>, Action) {
    let mut conditions = Vec::new();
    let mut action = Action::Nothing;
    loop {
        words = match words {
            [] => return (conditions, action),
            ["!", "-i", name, rest @ ..] => {
                conditions.push(Condition::From { name: pattern(name), equal: false });
                rest
            }
            ["-i", name, rest @ ..] => {
                conditions.push(Condition::From { name: pattern(name), equal: true });
                rest
            }
            ["-m", "comment", "--comment", _, rest @ ..] => rest,
            ["-m", "rpfilter", rest @ ..] => {
                let inverted = rest.contains(&"--invert");
                conditions.push(if inverted { Condition::NoRouteBack } else { Condition::Unknown });
                rest
            }
            ["--invert" | "--loose" | "--validmark" | "--accept-local", rest @ ..] => rest,
            ["-j", target, ..] => {
                action = match *target {
                    "ACCEPT" => Action::Accept,
                    "DROP" | "REJECT" => Action::Drop,
                    "RETURN" => Action::Return,
                    chain => Action::Jump(chain.to_owned()),
                };
                return (conditions, action);
            }
            ["-g", chain, ..] => return (conditions, Action::Goto((*chain).to_owned())),
            [_, rest @ ..] => {
                conditions.push(Condition::Unknown);
                rest
            }
        };
    }
}

/// An interface's name with its zero byte; without it, where a plus sign stands for the rest.
fn pattern(name: &str) -> Vec<u8> {
    match name.strip_suffix('+') {
        Some(beginning) => beginning.as_bytes().to_vec(),
        None => [name.as_bytes(), &[0]].concat(),
    }
}

/// A line's words; what is in quotes is one.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match (c, words.last_mut()) {
            ('"', _) => quoted = !quoted,
            (' ', Some(last)) if !quoted => {
                if !last.is_empty() {
                    words.push(String::new());
                }
            }
            (c, Some(last)) => last.push(c),
            (_, None) => {}
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// A flowtable's name, with each of its devices.
fn flowtable(body: &[u8]) -> Vec<(String, String)> {
    let name = format!("{} {}", wire::text(body, 1).unwrap_or_default(), wire::text(body, 2).unwrap_or_default());
    // NFTA_FLOWTABLE_HOOK, in it NFTA_FLOWTABLE_HOOK_DEVS, in it NFTA_DEVICE_NAME.
    let devices = wire::find(body, 3).and_then(|hook| wire::find(hook, 3)).unwrap_or_default();
    let text = |value: &[u8]| String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
    wire::attributes(devices).map(|(_, device)| (name.clone(), text(device))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(chain: &str) -> Name {
        Name { family: 2, table: "filter".to_owned(), chain: chain.to_owned() }
    }

    fn base(drops: bool) -> Chain {
        Chain { name: name("FORWARD"), hook: Some(2), kind: "filter".to_owned(), drops }
    }

    fn rule(chain: &str, conditions: &[Condition], action: Action) -> Rule {
        Rule { chain: name(chain), conditions: conditions.to_vec(), action, translates: false }
    }

    fn from(text: &[u8], equal: bool) -> Condition {
        Condition::From { name: text.to_vec(), equal }
    }

    fn obstacle(drops: bool, rules: &[Rule]) -> Option<String> {
        let set = Ruleset { chains: vec![base(drops)], rules: rules.to_vec(), flowtables: Vec::new() };
        set.obstacle(&["palisade0".to_owned(), "palisade00001".to_owned()]).map(|error| error.to_string())
    }

    #[test]
    fn ruleset_that_drops_is_found_unless_it_accepts_all_devices() {
        assert!(obstacle(true, &[]).unwrap().contains("ip filter FORWARD"));
        assert_eq!(obstacle(false, &[]), None);
        let accept = |condition| rule("FORWARD", &[condition], Action::Accept);
        assert_eq!(obstacle(true, &[accept(from(b"palisade", true))]), None, "by a wildcard");
        assert!(obstacle(true, &[accept(from(b"palisade0\0", true))]).is_some(), "only one of them");
        assert!(obstacle(true, &[accept(from(b"palisade", false))]).is_some());
        let narrower = [from(b"palisade", true), Condition::Unknown];
        assert!(obstacle(true, &[rule("FORWARD", &narrower, Action::Accept)]).is_some());
        // As firewalld does it: with a last rule for everything.
        assert!(obstacle(false, &[rule("FORWARD", &[], Action::Drop)]).is_some());
        assert_eq!(obstacle(false, &[rule("FORWARD", &[Condition::Unknown], Action::Drop)]), None);
        assert_eq!(obstacle(false, &[accept(from(b"palisade", true)), rule("FORWARD", &[], Action::Drop)]), None);
    }

    #[test]
    fn ruleset_is_followed_through_jumps() {
        // As Docker does it: an operator's rules are in DOCKER-USER.
        let jump = rule("FORWARD", &[], Action::Jump("DOCKER-USER".to_owned()));
        assert!(obstacle(true, std::slice::from_ref(&jump)).is_some());
        let accept = rule("DOCKER-USER", &[from(b"palisade", true)], Action::Accept);
        assert_eq!(obstacle(true, &[jump.clone(), accept]), None);
        let back = rule("DOCKER-USER", &[], Action::Return);
        assert!(obstacle(true, &[jump.clone(), back.clone(), rule("DOCKER-USER", &[], Action::Accept)]).is_some());
        let last = rule("FORWARD", &[], Action::Goto("DOCKER-USER".to_owned()));
        assert_eq!(obstacle(false, &[last.clone(), rule("FORWARD", &[], Action::Drop)]), None, "never comes back");
        assert!(obstacle(false, &[last, rule("DOCKER-USER", &[], Action::Drop)]).is_some());
        let around = rule("FORWARD", &[], Action::Jump("FORWARD".to_owned()));
        assert_eq!(obstacle(false, &[around]), None, "a loop, which the kernel would refuse, ends");
    }

    #[test]
    fn ruleset_with_a_reverse_path_filter_is_named_as_such() {
        let filter = rule("FORWARD", &[Condition::NoRouteBack], Action::Drop);
        assert!(obstacle(false, std::slice::from_ref(&filter)).unwrap().contains("reverse path"));
        let exempt = rule("FORWARD", &[from(b"palisade", true)], Action::Return);
        assert_eq!(obstacle(false, &[exempt, filter]), None);
    }

    #[test]
    fn ruleset_of_iptables_legacy_is_followed_too() {
        let devices = ["palisade0".to_owned()];
        let obstacle = |listing: &str| legacy("filter", listing).obstacle(&devices).map(|error| error.to_string());
        let docker = "-P INPUT DROP\n-P FORWARD DROP\n-N DOCKER-USER\n-A FORWARD -j DOCKER-USER\n";
        assert!(obstacle(docker).unwrap().contains("chain filter FORWARD"));
        assert_eq!(obstacle("-P FORWARD ACCEPT\n-P INPUT DROP\n"), None);
        for accepts in [
            "-A FORWARD -i palisade0 -j ACCEPT",
            "-A FORWARD -i palisade+ -j ACCEPT",
            "-A DOCKER-USER -i palisade+ -m comment --comment \"for Palisade\" -j ACCEPT",
            "-A DOCKER-USER ! -i eth0 -j ACCEPT",
        ] {
            assert_eq!(obstacle(&format!("{docker}{accepts}\n")), None, "{accepts}");
        }
        for narrower in
            ["-A FORWARD -i palisade1 -j ACCEPT", "-A FORWARD -i palisade+ -p tcp -j ACCEPT", "-A FORWARD -j RETURN"]
        {
            assert!(obstacle(&format!("{docker}{narrower}\n")).is_some(), "{narrower}");
        }
        let filter = "-P PREROUTING ACCEPT\n-A PREROUTING -m rpfilter --loose --invert -j DROP\n";
        assert!(obstacle(filter).unwrap().contains("reverse path"));
    }

    #[test]
    fn rule_is_read_from_its_expressions() {
        use wire::Attributes;
        let empty = Attributes::default;
        let expression = |name: &str, data: Attributes| empty().text(1, name).nested(2, &data);
        let value = |bytes: &[u8]| empty().bytes(1, bytes);
        let drop = expression("immediate", empty().number(1, 0).nested(2, &empty().nested(2, &empty().number(1, 0))));
        let parse = |expressions: Vec<Attributes>| {
            let body = empty().text(1, "t").text(2, "c").nested(4, &empty().list(1, expressions));
            Rule::parse(1, body.as_bytes()).unwrap()
        };
        // meta nfproto ipv6 fib saddr . mark . iif oif missing drop
        let firewalld = parse(vec![
            expression("meta", empty().number(1, 1).number(2, 15)),
            expression("cmp", empty().number(1, 1).number(2, 0).nested(3, &value(&[10]))),
            expression("fib", empty().number(1, 8).number(2, 1).number(3, 1 | 4 | 8)),
            expression("cmp", empty().number(1, 1).number(2, 0).nested(3, &value(&[0; 4]))),
            drop.clone(),
        ]);
        assert_eq!((firewalld.conditions, firewalld.action), (vec![Condition::NoRouteBack], Action::Drop));
        // iifname "palisade*" counter accept, and: ct state invalid drop
        let from_us = parse(vec![
            expression("meta", empty().number(1, 8).number(2, 6)),
            expression("cmp", empty().number(1, 8).number(2, 0).nested(3, &value(b"palisade"))),
            expression("counter", empty()),
            drop.clone(),
        ]);
        assert!(from_us.applies("palisade0") && !from_us.applies("eth0"));
        let invalid = parse(vec![
            expression("ct", empty().number(1, 8).number(2, 0)),
            expression("cmp", empty().number(1, 8).number(2, 1).nested(3, &value(&[0; 4]))),
            drop.clone(),
        ]);
        assert!(!invalid.applies("palisade0"), "of some packets only");
        assert!(!parse(vec![expression("quota", empty()), drop]).applies("palisade0"), "an unknown expression");
        assert_eq!(Rule::parse(1, &[0; 3]), None);
    }
}
