//! Whose plans may bring commands of hooks and backups, and at whose word those of backups run: `hooks` of the agent's manifest, beside the policy's
//! `hook.command`. Deliberately absent: what the commands are (`plan::probes` names each), and running them.

use super::Rulebook;
use super::load::HOUSE_AGENTS;
use crate::model::agent::{Agent, Tier};
use crate::model::ids::AgentName;
use crate::model::spec::StackSpec;
use crate::model::verdict::{Finding, Verdict};

const RULE: &str = "hook.command";

impl Agent {
    /// What its manifest says of hooks, else its tier. The house's own agents repeat what others brought.
    pub fn hooks(&self) -> Verdict {
        self.hooks.unwrap_or(match self.tier {
            _ if HOUSE_AGENTS.contains(&self.name.as_str()) => Verdict::Allow,
            Tier::Tier3WriteElevated => Verdict::Allow,
            Tier::Tier2WriteLimited => Verdict::Approval,
            Tier::Tier1Read | Tier::Tier4Policy => Verdict::Deny,
        })
    }
}

/// The strictest word on hooks among an agent and those it works for, and whose it is. Who has no manifest may bring none.
fn strictest<'a>(book: &'a Rulebook, agent: &'a str, on_behalf: impl IntoIterator<Item = &'a str>) -> (Verdict, &'a str) {
    let word = |name: &'a str| (book.agents.get(name).map_or(Verdict::Deny, |a| a.hooks()), name);
    on_behalf.into_iter().map(word).fold(word(agent), |most, next| if next.0 > most.0 { next } else { most })
}

fn because(verdict: Verdict, name: &str) -> String {
    let word =
        if verdict == Verdict::Deny { "no commands of hooks or backups" } else { "commands of hooks or backups only with an approval" };
    format!("agent {name} may bring {word}: `hooks` of its manifest, or its tier")
}

/// What the manifests say of the commands a plan would bring; empty where it brings none, or they allow them.
pub fn findings(spec: &StackSpec, book: &Rulebook, agent: &str, on_behalf: &[AgentName]) -> Vec<Finding> {
    let (verdict, name) = strictest(book, agent, on_behalf.iter().map(AgentName::as_str));
    if verdict < Verdict::Approval {
        return vec![];
    }
    let stack = &spec.settings.hooks;
    let of_stack = stack.pre.iter().chain(&stack.post).next().map(|h| (h.service.as_str(), "x-dockwarden.hooks"));
    let of_services = spec.services.iter().flat_map(|(service, s)| {
        let hooks = !s.settings.hooks.pre.is_empty() || !s.settings.hooks.post.is_empty();
        let backup =
            s.settings.backup.as_ref().is_some_and(|b| !b.pre.is_empty() || !b.post.is_empty() || b.stdout.is_some() || b.verify.is_some());
        let found = [hooks.then_some("x-dockwarden.hooks"), backup.then_some("x-dockwarden.backup")];
        found.into_iter().flatten().map(move |path| (service.as_str(), path))
    });
    let finding = |(service, path): (&str, &str)| Finding {
        rule: RULE.into(),
        verdict,
        service: Some(service.into()),
        path: Some(path.into()),
        because: because(verdict, name),
    };
    of_stack.into_iter().chain(of_services).map(finding).collect()
}

/// Judges a command of a backup that an agent has made, at the moment it would run: its manifest, or that of those it works for, may forbid what the
/// policy allows.
pub fn may_run<'a>(book: &'a Rulebook, agent: &'a str, on_behalf: impl IntoIterator<Item = &'a str>) -> Option<Finding> {
    let (verdict, name) = strictest(book, agent, on_behalf);
    let denied = verdict == Verdict::Deny;
    denied.then(|| Finding { rule: RULE.into(), verdict, service: None, path: None, because: because(verdict, name) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools;

    fn book(agents: &[(&str, &str)]) -> Rulebook {
        let text = |(name, grants): &(&str, &str)| {
            (format!("{name}.md"), format!("---\nname: {name}\ndescription: Test.\ntools: deploy\ndockwarden: {grants}\n---\n"))
        };
        Rulebook::build(agents.iter().map(text).collect(), "", &tools::gate_facts()).unwrap_or_else(|p| panic!("{p:?}"))
    }

    fn spec(settings: serde_json::Value, stack: serde_json::Value) -> StackSpec {
        let web = serde_json::json!({"active": true, "image": "hello:1", "replicas": 1, "restart": "no", "settings": settings});
        let all = serde_json::json!({"name": "shop", "services": {"web": web}, "networks": {}, "volumes": {}, "configs": {}, "secrets": {}, "settings": stack});
        serde_json::from_value(all).expect("a stack")
    }

    #[test]
    fn a_manifest_decides_who_brings_commands_and_who_works_for_somebody_asks_both() {
        let book = book(&[
            ("wide", "{tier: tier_3_write_elevated}"),
            ("none", "{tier: tier_3_write_elevated, hooks: deny}"),
            ("asks", "{tier: tier_3_write_elevated, hooks: approval}"),
            ("limited", "{tier: tier_2_write_limited}"),
            ("reader", "{tier: tier_1_read}"),
            ("trusted", "{tier: tier_2_write_limited, hooks: allow}"),
        ]);
        let hook = serde_json::json!({"run": ["migrate"], "timeout_s": 5});
        let none = || serde_json::json!({});
        let before = spec(serde_json::json!({"hooks": {"pre": [hook]}}), none());
        let word = |agent: &str, chain: &[&str], spec: &StackSpec| {
            let chain: Vec<AgentName> = chain.iter().map(|n| AgentName::new(*n).expect("valid")).collect();
            findings(spec, &book, agent, &chain).into_iter().map(|f| (f.verdict, f.path.unwrap_or_default(), f.because)).collect::<Vec<_>>()
        };
        let only = |agent, chain: &[&str]| word(agent, chain, &before).first().map_or(Verdict::Allow, |f| f.0);
        assert_eq!((only("wide", &[]), only("trusted", &[])), (Verdict::Allow, Verdict::Allow));
        assert_eq!((only("asks", &[]), only("limited", &[])), (Verdict::Approval, Verdict::Approval));
        assert_eq!((only("none", &[]), only("reader", &[]), only("nobody", &[])), (Verdict::Deny, Verdict::Deny, Verdict::Deny));
        assert_eq!((only("wide", &["limited"]), only("asks", &["wide", "none"])), (Verdict::Approval, Verdict::Deny));
        let why = &word("wide", &["none"], &before)[0].2;
        assert!(why.starts_with("agent none may bring no commands"), "{why}");

        // Wherever a command stands; a stack without one brings none.
        assert_eq!(word("none", &[], &spec(none(), none())), vec![]);
        let places = |spec: &StackSpec| word("none", &[], spec).into_iter().map(|f| f.1).collect::<Vec<_>>();
        for what in ["pre", "post"] {
            assert_eq!(places(&spec(serde_json::json!({"hooks": {what: [hook]}}), none())), ["x-dockwarden.hooks"], "{what}");
            assert_eq!(places(&spec(serde_json::json!({"backup": {what: [hook]}}), none())), ["x-dockwarden.backup"], "{what}");
            let of_stack = serde_json::json!({"hooks": {what: [{"service": "web", "hook": hook}]}});
            assert_eq!(places(&spec(none(), of_stack)), ["x-dockwarden.hooks"], "{what} of the stack");
        }
        for what in ["stdout", "verify"] {
            assert_eq!(places(&spec(serde_json::json!({"backup": {what: ["dump"]}}), none())), ["x-dockwarden.backup"], "{what}");
        }

        // At the moment one of a backup would run, an approval was given long ago or is not asked for any more.
        assert!(may_run(&book, "limited", []).is_none() && may_run(&book, "wide", ["limited"]).is_none());
        assert_eq!(["none", "nobody"].map(|name| may_run(&book, name, []).map(|f| f.verdict)), [Some(Verdict::Deny), Some(Verdict::Deny)]);
        let why = may_run(&book, "wide", ["trusted", "none"]).map(|f| f.because).unwrap_or_default();
        assert!(why.starts_with("agent none may bring no commands"), "who hands work on needs the right, too: {why}");
    }

    #[test]
    fn no_other_word_is_taken_and_what_a_manifest_says_of_hooks_is_part_of_the_policys_version() {
        let text = |hooks: &str| {
            vec![(
                "a.md".to_owned(),
                format!("---\nname: a\ndescription: T.\ntools: deploy\ndockwarden: {{tier: tier_3_write_elevated{hooks}}}\n---\n"),
            )]
        };
        let build = |hooks: &str| Rulebook::build(text(hooks), "", &tools::gate_facts());
        let problems = build(", hooks: warn").expect_err("warn says nothing");
        assert!(problems.iter().any(|p| p.problem.contains("hooks")), "{problems:?}");
        let version = |hooks: &str| build(hooks).expect("sound").version_for_chain("a", &[]).expect("known");
        assert_ne!(version(""), version(", hooks: deny"));
    }
}
