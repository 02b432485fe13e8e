//! Whether there are as many operators as the rules want words of: an approval that nobody can give is a denial that looks like a wait. Deliberately absent:
//! who the operators are.

use super::{CLIENT, Rulebook};
use crate::model::policy::RuleLevel;
use crate::model::verdict::Verdict;

/// Named in a sentence; what is more is counted.
const NAMED: usize = 5;

/// Something that asks for more operators than there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// `AGENT/RULE`, or `environments.NAME`.
    pub what: String,
    /// How many different operators it asks for.
    pub needed: u32,
}

/// Everything that so many operators can never approve, the hardest first.
pub fn shortages(book: &Rulebook, operators: usize) -> Vec<Shortage> {
    let environments = book.policy.environments.iter().filter_map(|(name, e)| {
        let asks = e.distinct_approver || e.mutations == Some(RuleLevel::Approval);
        asks.then(|| Shortage { what: format!("environments.{name}"), needed: book.policy.least_approvals(Some(name)) })
    });
    let rules = book.agents.values().flat_map(|a| a.rules.iter().map(move |r| (a, r)));
    let rules = rules.filter(|(_, r)| r.effect == Verdict::Approval).filter_map(|(agent, r)| {
        let needed = r.approvals.unwrap_or(1).max(1);
        let client = needed == 1 && r.channels.iter().any(|c| c == CLIENT);
        (!client).then(|| Shortage { what: format!("{}/{}", agent.name, r.id), needed })
    });
    let mut all: Vec<Shortage> = environments.chain(rules).filter(|s| s.needed as usize > operators).collect();
    all.sort_by(|a, b| b.needed.cmp(&a.needed).then_with(|| a.what.cmp(&b.what)));
    all
}

/// The same in a sentence; `None` when there are enough.
pub fn in_words(shortages: &[Shortage], operators: usize) -> Option<String> {
    let most = shortages.first()?.needed;
    let named: Vec<String> = shortages.iter().take(NAMED).map(|s| format!("{} ({})", s.what, s.needed)).collect();
    let more = match shortages.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let there = match operators {
        0 => "there is no operator".to_owned(),
        1 => "there is one operator".to_owned(),
        n => format!("there are {n} operators"),
    };
    Some(format!("{there}, and approvals take up to {most} different ones: {}{more} can never be approved", named.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_too_few_operators_can_never_approve_is_named() {
        let grants = "{tier: tier_3_write_elevated, rules: [{id: free, effect: allow, tools: [deploy], because: x}, \
                      {id: one, effect: approval, tools: [deploy], stacks: [one], because: x}, \
                      {id: client, effect: approval, tools: [deploy], stacks: [two], channels: [client], because: x}, \
                      {id: three, effect: approval, tools: [deploy], stacks: [three], approvals: 3, channels: [client], because: x}]}";
        let policy = "[environments.development]\n[environments.staging]\n[environments.production]\nmutations = \"approval\"\n[environments.bank]\ndistinct_approver = true\n";
        let book = crate::gate::call::tests::book("deploy", grants, policy);
        let of = |operators| -> Vec<(String, u32)> {
            let all = shortages(&book, operators).into_iter().filter(|s| !s.what.starts_with("warden/"));
            all.map(|s| (s.what, s.needed)).collect()
        };
        let row = |what: &str, needed| (what.to_owned(), needed);
        assert_eq!(of(0), [row("tester/three", 3), row("environments.bank", 2), row("environments.production", 1), row("tester/one", 1)]);
        assert_eq!(of(1), [row("tester/three", 3), row("environments.bank", 2)]);
        assert_eq!(of(2), [row("tester/three", 3)]);
        assert_eq!(of(3), []);
        let said = in_words(&shortages(&book, 1), 1).expect("too few");
        assert_eq!(
            said,
            "there is one operator, and approvals take up to 3 different ones: tester/three (3), environments.bank (2) can never be approved"
        );
        assert_eq!(in_words(&[], 3), None);
    }
}
