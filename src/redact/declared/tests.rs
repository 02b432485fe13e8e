//! What is a secret, whose it is, and that none leaves.

use super::super::{arguments, envelope, line, reply};
use super::forms::{lower_escapes, percent};
use super::*;
use crate::redact::clean;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use proptest::prelude::*;
use serde_json::json;

fn stack(name: &str) -> StackName {
    StackName::new(name).expect("valid")
}

/// In an operator's file.
fn pair(key: &str, value: &str) {
    files(&stack("redact-tests"), [(&key.to_owned(), &value.to_owned())], None);
}

/// Of one call.
fn own(values: &[&str]) -> Arc<Own> {
    let own = Arc::<Own>::default();
    own.input(&json!({"variables": values.iter().enumerate().map(|(n, v)| (format!("A{n}_TOKEN"), *v)).collect::<BTreeMap<_, _>>()}));
    own
}

#[test]
fn which_values_are_secrets() {
    let cases = [
        ("DB_PASSWORD", "Hunter-2!", vec!["Hunter-2!"]),
        ("DB_PASSWORD_FILE", "/run/secrets/db", vec![]),
        ("TOKEN_URL", "https://login.example/x", vec![]),
        ("DATABASE_URL", "postgres://app:p4ss:w0rd@db:5432/x?y=@", vec!["p4ss:w0rd"]),
        ("GREETING", "Hunter-2!", vec![]),
    ];
    for (key, value, expected) in cases {
        assert_eq!(of_pair(key, value), expected, "{key}");
    }
    for (value, expected) in
        [("postgres", false), ("short", false), ("1234567", false), ("redacted", false), ("Postgres", true), ("12345678", true)]
    {
        assert_eq!(worth(value), expected, "{value}");
    }
}

#[test]
fn a_declared_secret_is_masked_in_every_form() {
    let secret = "zN9/+ q\"x~é-decl4red";
    pair("API_KEY", secret);
    let cases = [
        format!("it is {secret}."),
        format!("Basic {}", STANDARD.encode(format!("user:{secret}"))),
        format!("x {} y", URL_SAFE.encode(format!("{{\"a\":\"{secret}\"}}"))),
        format!("https://h/?k={}", percent(secret, &|c| c.is_ascii_alphanumeric())),
        json!({"log": secret}).to_string(),
    ];
    for text in cases {
        let masked = super::super::mask(&text);
        assert!(masked.contains(MASK) && !masked.contains("decl4red"), "{text} -> {masked}");
    }
    let mut value = json!({"a": [{secret: 1, "b": format!("x{secret}y")}]});
    reply(&mut value);
    assert_eq!(value, json!({"a": [{MASK: 1, "b": format!("x{MASK}y")}]}));
}

#[test]
fn what_one_call_declares_is_masked_in_that_call_alone() {
    let secret = "of-this-Call-only-7";
    let one = own(&[secret]);
    let text = format!("it is {secret}");
    assert_eq!(one.within(|| super::super::mask(&text)), format!("it is {MASK}"));
    assert_eq!(super::super::mask(&text), text, "nobody else's words go because of it");
    let other = own(&["another-Value-8"]);
    assert_eq!(one.within(|| other.within(|| super::super::mask(&text))), text);
}

/// Whoever declares the words by which others read, decide and go on hides none of them.
#[test]
fn the_words_ids_images_and_names_of_the_house_cannot_be_declared_away() {
    names(["shop-production"]);
    let id = "op-01k9zq3v5w8x7y6t4s2r1m0n9p";
    let words = [
        "pending_approval",
        "rolled_back",
        "needs_attention",
        "operation_id",
        "d_approv",
        "ghcr.io/evil/miner:1",
        "evil/miner:1",
        "shop-prod",
        "op-01k9zq",
        &id[8..20],
    ];
    let own = own(&words);
    let reply_of = json!({
        "state": "pending_approval", "operation_id": id, "stack": "shop-production", "images": {"web": "ghcr.io/evil/miner:1"},
        "diff": [{"path": "image", "from": "a:1", "to": "ghcr.io/evil/miner:1"}], "state2": ["rolled_back", "needs_attention"],
    });
    let mut value = reply_of.clone();
    own.within(|| reply(&mut value));
    assert_eq!(value, reply_of);
    let kept =
        own.within(|| arguments(&json!({"images": {"web": "ghcr.io/evil/miner:1"}, "note": "ghcr.io/evil/miner:1"}), &|_| "h".into()));
    assert_eq!(kept, json!({"images": {"web": "ghcr.io/evil/miner:1"}, "note": MASK}));
    // Under such a key a secret stays one.
    let hex = "4f9c0a7be1d2838a";
    let mut noted = json!({"image": hex, "images": {"web": hex}, "path": "image", "from": hex});
    super::tests::own(&[hex]).within(|| reply(&mut noted));
    assert_eq!(noted, json!({"image": MASK, "images": {"web": MASK}, "path": "image", "from": MASK}));
    // What only looks like a part of an id is a secret all the same.
    let secret = "0123456789abcdefghjkmnpqrs";
    assert_eq!(super::tests::own(&[secret]).within(|| super::super::mask(&format!("op-{secret}"))), format!("op-{MASK}"));
}

#[test]
fn a_flood_of_declared_values_displaces_nobody_elses() {
    let mut known = Known::default();
    let value = |n: usize| format!("{n:060}");
    known.of.insert((Vouched::Files, stack("billing")), vec!["of-the-0perator".into()]);
    known.of.insert((Vouched::Release, stack("billing")), vec!["of-a-Release-1".into()]);
    // As much as any of the flood: what was let run by a person is not what goes.
    let mut production: Vec<String> = (0..1000).map(|n| format!("pr0duction-{n:049}")).collect();
    bounded(&mut production, MOST_OF_ONE);
    known.of.insert((Vouched::Watched, stack("billing")), production.clone());
    for s in 0..20 {
        let mut flood: Vec<String> = (0..1000).map(|n| value(s * 1000 + n)).collect();
        bounded(&mut flood, MOST_OF_ONE);
        assert!(flood.len() <= MOST_OF_ONE.0 && flood.iter().map(String::len).sum::<usize>() <= MOST_OF_ONE.1);
        known.of.insert((Vouched::Release, stack(&format!("flood-{s}"))), flood);
    }
    fits(&mut known);
    let all: Vec<&String> = known.of.values().flatten().collect();
    assert!(all.len() <= MOST_OF_ALL.0 && all.iter().map(|v| v.len()).sum::<usize>() <= MOST_OF_ALL.1);
    assert!(all.iter().any(|v| *v == "of-the-0perator") && all.iter().any(|v| *v == "of-a-Release-1"), "who has few keeps them");
    assert_eq!(known.of[&(Vouched::Watched, stack("billing"))], production);
    let many: Vec<String> = (0..3000).map(value).collect();
    let own = own(&many.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(own.corpus.load().as_ref().is_some_and(|c| c.values.len() <= MOST_OF_ONE.0), "a call's own filter is bounded, too");
}

proptest! {
    /// No declared secret ever leaves: not through a reply, an envelope, a line, an audit argument or the log, in whatever text it stands.
    #[test]
    fn no_declared_secret_ever_leaves(
        secret in "[ -~\u{e9}\n\u{200b}]{6,40}", before in "[ -~]{0,20}", after in "[ -~]{0,20}", form in 0..5usize, whose in 0..2usize
    ) {
        prop_assume!(worth(&secret) && worth(clean(&secret).trim()));
        let own = own(&[&secret]);
        if whose == 0 {
            pair("SECRET", &secret);
        }
        let carried = match form {
            0 => secret.clone(),
            1 => STANDARD.encode(&secret),
            2 => URL_SAFE.encode(format!("{before}{secret}{after}")),
            3 => percent(&secret, &|c| c.is_ascii_alphanumeric() || "-_.~".contains(c)),
            _ => lower_escapes(&percent(&secret, &|c| c.is_ascii_alphanumeric() || "-_.~".contains(c))),
        };
        let text = format!("{before} {carried} {after}");
        let leave = || {
            let mut value = json!({"deep": [{"text": text, text.as_str(): "k"}]});
            reply(&mut value);
            let hash = |_: &str| "h".to_owned();
            [
                value.to_string(),
                envelope("logs", &text, 10_000).text,
                line(&text, 10_000),
                arguments(&json!({"note": text, "deep": {"note": text}}), &hash).to_string(),
                super::super::mask(&text),
            ]
        };
        let leaves = if whose == 0 { leave() } else { own.within(leave) };
        for out in leaves {
            prop_assert!(!out.contains(&carried), "{out:?} has {carried:?}");
            prop_assert!(!out.contains(&secret) && !out.contains(&clean(&secret)), "{out:?} has {secret:?}");
        }
    }
}
