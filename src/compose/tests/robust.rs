//! Whatever the text: bounded, refused with a place, never a panic; and what is accepted means the same when its canonical form is read again.

use super::*;
use serde_json::{Value, json};

fn read_text(text: &str) -> Result<Loaded, LoadErrors> {
    read(&LoadInput {
        name: StackName::new("shop").unwrap(),
        project_dir: "/srv/shop",
        sources: vec![Source { path: "compose.yaml".into(), text: text.into() }],
        variables: &BTreeMap::from([("SET".to_owned(), "value".to_owned())]),
        profiles: &["on".to_owned()],
        files: &Memory(BTreeMap::from([("f.env", "A=1\n")])),
        quotas: &Quotas::default(),
    })
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        prop::sample::select(vec![
            "",
            "a",
            "80",
            "80:80",
            "1g",
            "5s",
            "./x:/x",
            "data:/d:ro",
            "${SET}",
            "${U:-d}",
            "$$",
            "true",
            "host",
            "A=1",
            "f.env",
            "b",
            "service:b",
            "1.5",
            "always",
            "10.0.0.1",
            "x=y=z",
            "/run",
            "no",
            "-1",
            "127.0.0.1:1-3:1-3/udp",
            "all",
            "~/h:/h",
            "a b 'c d'",
        ])
        .prop_map(|t| json!(t)),
        prop::sample::select(vec![
            json!(null),
            json!(true),
            json!(0),
            json!(1),
            json!(80),
            json!(1.5),
            json!(-1),
            json!(1e10),
            json!({}),
            json!([])
        ]),
    ]
}

fn tree() -> impl Strategy<Value = Value> {
    let keys = vec![
        "a",
        "b",
        "A",
        "image",
        "target",
        "source",
        "type",
        "published",
        "test",
        "interval",
        "retries",
        "limits",
        "memory",
        "cpus",
        "condition",
        "path",
        "context",
        "options",
        "driver",
        "x-y",
        "count",
        "capabilities",
        "required",
        "name",
        "external",
        "file",
        "nofile",
        "soft",
        "hard",
        "replicas",
        "resources",
        "aliases",
        "action",
        "command",
        "default",
    ];
    scalar().prop_recursive(3, 12, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::btree_map(prop::sample::select(keys.clone()), inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
        ]
    })
}

/// Values that fit, so that many files are accepted.
fn fitting() -> impl Strategy<Value = (&'static str, Value)> {
    prop::sample::select(vec![
        ("ports", json!(["80:80", "9-11", {"target": 5, "published": "6", "name": "n"}])),
        ("volumes", json!(["data:/d", "./x:/x:ro,z", "/anon", {"type": "tmpfs", "target": "/t", "tmpfs": {"size": "1m"}}])),
        ("environment", json!({"A": null, "B": 1.5, "C": "$$x", "D": "${SET}"})),
        ("environment", json!(["A", "B=1"])),
        ("env_file", json!("f.env")),
        ("command", json!("sh -c 'a b'")),
        ("entrypoint", json!([])),
        ("healthcheck", json!({"test": "x", "interval": "90s", "retries": 3})),
        ("healthcheck", json!({"disable": true, "test": ["CMD", "x"]})),
        ("deploy", json!({"replicas": 2, "resources": {"limits": {"cpus": "0.1", "memory": "64m"}}, "update_config": {"delay": "5s"}})),
        ("depends_on", json!(["b"])),
        ("links", json!(["b:x"])),
        ("network_mode", json!("service:b")),
        ("ulimits", json!({"nofile": 5, "nproc": {"soft": 1, "hard": 2}})),
        ("tmpfs", json!("/run:size=1m")),
        ("gpus", json!("all")),
        ("build", json!({"context": ".", "args": ["A=1", "B"], "ssh": ["default", "k=./key"], "extra_hosts": {"a": "1.1.1.1"}})),
        ("labels", json!(["a", "b=c"])),
        ("configs", json!(["c"])),
        ("secrets", json!([{"source": "s", "mode": 256}])),
        ("extra_hosts", json!(["a:1.1.1.1", "b=::1"])),
        ("devices", json!(["/dev/a", {"source": "/dev/b", "target": "/dev/c"}])),
        ("logging", json!({"driver": "local", "options": {"a": 1}})),
        ("develop", json!({"watch": [{"path": "x", "action": "sync", "target": "/y"}]})),
        ("post_start", json!([{"command": "a b"}])),
        ("mem_limit", json!("1g")),
        ("cpus", json!(0.3)),
        ("restart", json!("on-failure:3")),
        ("profiles", json!(["on"])),
        ("x-any", json!({"a": [1]})),
        ("stop_grace_period", json!("1m")),
        ("init", json!("yes")),
        ("shm_size", json!("64m")),
        ("extends", json!("b")),
        ("volumes_from", json!(["b"])),
        ("annotations", json!({"k": 5})),
        ("networks", json!({"n": {"aliases": ["q"], "priority": 5}, "default": {}})),
    ])
}

proptest! {
    #[test]
    fn any_tree_below_any_key_is_read_or_refused_with_a_place(
        key in prop::sample::select(vec!["ports", "volumes", "command", "environment", "tmpfs", "healthcheck", "devices", "ulimits", "deploy",
            "networks", "depends_on", "extra_hosts", "configs", "secrets", "env_file", "build", "logging", "expose", "restart", "image",
            "extends", "gpus", "develop", "post_start", "blkio_config", "label_file", "sysctls", "labels", "dns", "network_mode", "mem_limit",
            "cpus", "scale", "init", "privileged", "links", "volumes_from", "credential_spec", "storage_opt", "annotations", "pids_limit"]),
        value in tree(),
        top in prop::sample::select(vec!["x-a", "networks", "volumes", "configs", "secrets", "name", "include", "services"]),
        other in tree(),
    ) {
        let mut file = json!({"services": {"a": {"image": "a"}, "b": {"image": "b"}}});
        file["services"]["a"][key] = value;
        if top != "services" {
            file[top] = other.clone();
        }
        match read_text(&file.to_string()) {
            Ok(loaded) => {
                let once = canonical(&loaded.spec);
                prop_assert!(once.is_object());
            }
            Err(errors) => {
                prop_assert!(!errors.0.is_empty());
                prop_assert!(errors.0.iter().all(|e| e.path.is_some() || e.line.is_some()), "{errors}");
            }
        }
        let _ = run(&[&json!({"services": {"a": {"image": "a"}}}).to_string(), &file.to_string()], &[], &[], &[]);
        let _ = read_text(&json!({"services": {"a": other}}).to_string());
    }

    #[test]
    fn the_canonical_form_read_again_is_the_canonical_form(keys in prop::collection::vec(fitting(), 0..7)) {
        let mut file = json!({
            "services": {"a": {"image": "a"}, "b": {"image": "b", "volumes": ["data:/d"]}},
            "networks": {"n": {"ipam": {"config": [{"subnet": "10.0.0.0/8"}]}, "labels": ["a=b"]}},
            "volumes": {"data": {"driver": "local", "driver_opts": {"a": 1}}},
            "configs": {"c": {"content": "$$x ${SET}"}},
            "secrets": {"s": {"file": "./f"}},
            "x-top": {"list": [], "deep": [{"v": 1.5}]},
        });
        for (key, value) in keys {
            file["services"]["a"][key] = value;
        }
        let Ok(loaded) = read_text(&file.to_string()) else { return Ok(()) };
        let once = canonical(&loaded.spec);
        let again = read_text(&once.to_string()).map_err(|e| TestCaseError::fail(format!("{e}\n{once:#}")))?;
        prop_assert_eq!(canonical(&again.spec), once);
    }

    #[test]
    fn interpolation_never_panics_and_never_grows_without_bound(text in "[$\\{\\}:?+\\-A-Ca-z\" \n]{0,60}") {
        let value = "v".repeat(100);
        let lookup = |name: &str| (name == "A").then(|| value.clone());
        let mut unset = Vec::new();
        if let Ok(done) = interpolate::text(&text, &lookup, &mut unset) {
            prop_assert!(done.len() <= text.len() * 100);
        }
        prop_assert!(unset.iter().all(|n| n != "A"));
    }

    #[test]
    fn text_without_a_dollar_is_left_alone(text in "[^$]{0,80}") {
        prop_assert_eq!(interpolate::text(&text, &|_| None, &mut Vec::new()), Ok(text.clone()));
        prop_assert_eq!(interpolate::text(&text.replace('a', "$$"), &|_| None, &mut Vec::new()), Ok(text.replace('a', "$")));
    }

    #[test]
    fn env_files_never_panic(text in "[A-C=:'\"\\\\#$\\{\\} \n\r\t-]{0,80}") {
        let _ = dotenv::parse(&text, &BTreeMap::new(), true);
        let _ = dotenv::parse(&text, &BTreeMap::new(), false);
    }
}

#[test]
fn large_deep_and_double_documents_are_refused_in_time() {
    let started = std::time::Instant::now();
    let many = format!("services:\n{}", "  a: {image: a}\n".repeat(70_000));
    let wide: String = (0..40_000).map(|i| format!("  s{i}: {{image: a, environment: {{A: b}}}}\n")).collect();
    for (text, rule) in [
        (many, "yaml."),
        (format!("services:\n{wide}"), "yaml.bomb"),
        ("x".repeat(1 << 20), "yaml."),
        (format!("services: {{a: {{image: a, x-a: {}1{}}}}}", "[".repeat(80), "]".repeat(80)), "yaml.bomb"),
        ("services: {a: {image: a}}\n---\nservices: {b: {image: b}}\n".into(), "yaml.ambiguous"),
        ("services: {a: {image: a}, a: {image: b}}\n".into(), "yaml.ambiguous"),
        ("services: [a]\n".into(), "yaml.invalid"),
        ("services: {a: [image]}\n".into(), "yaml.invalid"),
        ("services: {a: {image: {name: a}}}\n".into(), "yaml.invalid"),
        ("services: {1: {image: a}}\n".into(), "yaml.invalid"),
        ("services: {a: {image: !unknown a}}\n".into(), "yaml.invalid"),
    ] {
        let errors = read_text(&text).expect_err("refused").0;
        let rules: Vec<_> = errors.iter().filter_map(|e| e.rule).collect();
        assert!(rules.iter().any(|r| r.starts_with(rule)), "{:.60}: {rules:?}", text);
    }
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

/// Services of one text, `n` of them.
fn many(n: usize, body: &str) -> String {
    let services: String = (0..n).map(|i| format!("  s{i}: {{image: a, {body}}}\n")).collect();
    format!("services:\n{services}")
}

#[test]
fn a_few_words_that_stand_for_very_much_are_refused_before_it_is_made() {
    let large: &'static str =
        Box::leak(format!("services:\n  base:\n    image: b\n    labels: {{x: \"{}\"}}\n", "x".repeat(200_000)).into_boxed_str());
    let env: &'static str = Box::leak((0..30_000).map(|i| format!("KEY{i}=1\n")).collect::<String>().into_boxed_str());
    let files = Memory(BTreeMap::from([("large.yaml", large), ("large.env", env)]));
    let configs: String = (0..500).map(|i| format!("  c{i}: {{file: large.env}}\n")).collect();
    let cases = [
        ("ports", many(200, "ports: [\"1-65535\"]")),
        ("extends", many(500, "extends: {file: large.yaml, service: base}")),
        ("env_file", many(500, "env_file: large.env")),
        ("label_file", many(500, "label_file: large.env")),
        ("configs", format!("services: {{a: {{image: a}}}}\nconfigs:\n{configs}")),
    ];
    for (what, text) in cases {
        let errors = read(&LoadInput {
            name: StackName::new("shop").unwrap(),
            project_dir: "/srv/shop",
            sources: vec![Source { path: "compose.yaml".into(), text }],
            variables: &BTreeMap::new(),
            profiles: &[],
            files: &files,
            quotas: &Quotas::default(),
        });
        let errors = errors.expect_err(what).0;
        assert_eq!(errors.iter().filter(|e| e.rule == Some("yaml.bomb")).count(), 1, "{what}: {errors:?}");
    }
    assert!(read_text(&many(1, "ports: [\"1-65535\"]")).is_ok(), "the whole range fits once");
}
