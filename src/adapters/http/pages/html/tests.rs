//! Whatever an agent, an image or a file says, it arrives on the page as text.

use super::*;
use crate::model::ids::{ApprovalId, CallId, StackName};
use serde_json::json;

const HOSTILE: &str =
    "</title></style><script>alert(1)</script><img src=x onerror=alert(1)>\"'><form action=//evil>&lt;\u{202e}\u{1b}[31m\u{200b}";

fn approval(state: ApprovalState) -> Approval {
    Approval {
        id: ApprovalId::new("ap-1").unwrap(),
        on_behalf: vec![],
        agent: HOSTILE.into(),
        tool: HOSTILE.into(),
        stack: Some(StackName::new("shop").unwrap()),
        environment: Some(HOSTILE.into()),
        plan: None,
        digest: HOSTILE.into(),
        input: json!({}),
        call: CallId::new("call-1").unwrap(),
        reason: Some(HOSTILE.into()),
        state,
        needed: 2,
        approved_by: vec![HOSTILE.into()],
        denied_by: Some(HOSTILE.into()),
        operation: None,
        at_terminal: false,
        by_client: false,
        created_at: DateTime::UNIX_EPOCH,
        expires_at: DateTime::UNIX_EPOCH + chrono::TimeDelta::minutes(30),
    }
}

fn shown_of(approval: &Approval, arguments: &serde_json::Value) -> Shown {
    Shown::of(approval, None, arguments, viewer().now)
}

fn viewer() -> Viewer<'static> {
    Viewer { host: HOSTILE, operator: HOSTILE, logout: HOSTILE, now: DateTime::UNIX_EPOCH + chrono::TimeDelta::minutes(3) }
}

/// Tags a page of these names may have; what a hostile text would open is not among them, or stands there as often as the page itself opens it.
fn tags(html: &str) -> Vec<&str> {
    html.split('<').skip(1).map(|t| t.split(|c: char| !(c.is_ascii_alphanumeric() || c == '/' || c == '!')).next().unwrap_or("")).collect()
}

#[test]
fn hostile_text_is_only_ever_text() {
    let text = || HOSTILE.to_owned();
    let finding = Said { verdict: Verdict::Warn, rule: text(), place: text(), because: text() };
    let line = Line { path: text(), from: Some(text()), to: Some(text()) };
    let part = Part { name: text(), action: text(), how: text(), lines: vec![line] };
    let approval = approval(ApprovalState::Pending);
    let mut shown = shown_of(&approval, &json!({ HOSTILE: HOSTILE }));
    shown.findings = Some(vec![finding.clone()]);
    let d = Details { approval: &approval, shown: &shown, confirm: Some(HOSTILE), csrf: HOSTILE, problem: Some(HOSTILE) };
    let mut fragment = Page(String::new());
    change(&mut fragment, &part);
    findings(&mut fragment, &[finding]);
    let pages = [
        details(&viewer(), &d),
        list(&viewer(), std::slice::from_ref(&approval)),
        login(HOSTILE, Some(HOSTILE), Some(HOSTILE)),
        problem(HOSTILE, HOSTILE, HOSTILE, HOSTILE),
        fragment.0,
    ];
    for page in pages {
        for never in ["script", "img", "/script"] {
            assert!(!tags(&page).contains(&never), "{never}: {page}");
        }
        assert!(tags(&page).iter().filter(|t| **t == "/title").count() <= 1, "{page}");
        assert!(!page.contains(['\u{202e}', '\u{1b}', '\u{200b}']), "{page}");
        assert!(!page.contains("onerror=alert(1)>") && page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "{page}");
        // No attribute was left: a quote of the text is never a quote of the markup.
        assert!(!page.contains("\"'>") && page.contains("&quot;&#39;&gt;"), "{page}");
    }
}

#[test]
fn a_pending_approval_offers_both_words_and_a_settled_one_none() {
    let shown = |state, operator: &'static str, agent: &str| {
        let approval = Approval { agent: agent.into(), approved_by: vec!["bob".into()], ..approval(state) };
        let shown = shown_of(&approval, &json!({}));
        let d = Details { approval: &approval, shown: &shown, confirm: None, csrf: "t", problem: None };
        let viewer = Viewer { operator, ..viewer() };
        details(&viewer, &d)
    };
    let pending = shown(ApprovalState::Pending, "ann", "deployer");
    assert!(pending.contains("value=\"approve\"") && pending.contains("value=\"reject\"") && pending.contains("1 of 2: bob"));
    assert!(pending.contains("27 min left"), "{pending}");
    assert!(shown(ApprovalState::Pending, "bob", "deployer").contains("You have approved this"));
    let own = shown(ApprovalState::Pending, "ann", "ann");
    assert!(!own.contains("value=\"approve\"") && own.contains("Who asked cannot approve"));
    let waits = shown(ApprovalState::Approved, "ann", "deployer");
    assert!(waits.contains("Start it now") && waits.contains("value=\"revoke\"") && !waits.contains("Approve and start"), "{waits}");
    assert!(!shown(ApprovalState::Approved, "ann", "ann").contains("Start it now"), "who asked does not start it");
    for state in [ApprovalState::Denied, ApprovalState::Expired, ApprovalState::Used, ApprovalState::Stale] {
        assert!(!shown(state, "ann", "deployer").contains("<button class=\"yes\""), "{state:?}");
    }
}

#[test]
fn what_may_be_ones_own_call_is_approved_by_typing_its_name_and_rejected_without() {
    let approval = Approval { agent: "deployer".into(), ..approval(ApprovalState::Pending) };
    let page = |confirm| {
        let shown = shown_of(&approval, &json!({}));
        details(&viewer(), &Details { approval: &approval, shown: &shown, confirm, csrf: "t", problem: None })
    };
    let own = page(Some("shop"));
    assert!(own.contains("type <strong>shop</strong>") && own.contains("name=\"confirm\" required"), "{own}");
    assert!(own.contains("value=\"reject\" formnovalidate"), "{own}");
    assert!(!page(None).contains("name=\"confirm\""));
}

#[test]
fn what_was_approved_and_waits_to_start_is_listed_with_what_waits() {
    let listed = list(&viewer(), &[approval(ApprovalState::Approved)]);
    assert!(!listed.contains("Nothing waits") && !listed.contains("Settled lately"), "{listed}");
}

#[test]
fn the_policy_allows_the_style_of_the_page_and_nothing_else() {
    let page = login("h", None, None);
    let style = page.split("<style>").nth(1).and_then(|s| s.split("</style>").next()).expect("a style");
    let hash = BASE64_STANDARD.encode(Sha256::digest(style.as_bytes()));
    assert_eq!(
        *POLICY,
        format!("default-src 'none'; style-src 'sha256-{hash}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
    );
}

#[test]
fn a_long_text_is_cut_and_says_so() {
    let mut out = String::new();
    escape(&mut out, &"<".repeat(MAX_TEXT + 1));
    assert!(out.ends_with("&lt; [cut]") && out.len() == MAX_TEXT * 4 + 6);
}

#[test]
fn the_page_says_what_the_other_doors_say() {
    let long = format!("{}; EVIL", "a ".repeat(3_000));
    let approval = Approval { agent: "deployer".into(), tool: "deploy".into(), ..approval(ApprovalState::Pending) };
    let mut shown = shown_of(&approval, &json!({"compose": "a: 1\nb: 2", "data": "copy"}));
    let line = Line { path: "command[2]".into(), from: None, to: Some(long) };
    shown.parts =
        vec![Part { name: "web".into(), action: "update".into(), how: "by handover; expected loss: 0.2 s".into(), lines: vec![line] }];
    shown.findings = Some(vec![Said { verdict: Verdict::Warn, rule: "a.rule".into(), place: "web".into(), because: "of it".into() }]);
    let page = details(&viewer(), &Details { approval: &approval, shown: &shown, confirm: None, csrf: "t", problem: None });
    let text = shown.text();
    let said = |part: &str| {
        let mut escaped = String::new();
        escape(&mut escaped, part);
        assert!(page.contains(&escaped), "{part} is not on the page");
        assert!(text.contains(&redact::clean(part)), "{part} is not in the text");
    };
    said(&shown.title);
    for (name, value) in &shown.facts {
        // The state stands beside the title, without its name.
        if *name != "State" {
            said(name);
        }
        said(value);
    }
    said(shown.reason.as_deref().expect("a reason"));
    for part in &shown.parts {
        [&part.name, &part.action, &part.how].into_iter().for_each(|text| said(text));
        part.lines.iter().flat_map(|l| [Some(&l.path), l.from.as_ref(), l.to.as_ref()]).flatten().for_each(|text| said(text));
    }
    shown.findings.iter().flatten().for_each(|f| [&f.rule, &f.place, &f.because].into_iter().for_each(|text| said(text)));
    for (key, value) in &shown.call {
        said(key);
        said(value);
    }
}
