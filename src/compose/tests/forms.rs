//! Forms that a file may be written in, and what each means: beside the reference's output, or as the part of the canonical form it becomes.

use super::*;
use serde_json::{Value, json};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/compose/everything");

struct Dir;
impl Files for Dir {
    fn read(&self, path: &str) -> Result<Option<String>, ReadError> {
        Ok(std::fs::read_to_string(format!("{DATA}/{path}")).ok())
    }
}

fn everything() -> Loaded {
    let variables = BTreeMap::new();
    load_all(&LoadInput {
        name: StackName::new("shop").unwrap(),
        project_dir: "/srv/shop",
        sources: vec![Source { path: "compose.yaml".into(), text: Dir.read("compose.yaml").unwrap().unwrap() }],
        variables: &variables,
        profiles: &[],
        files: &Dir,
        quotas: &Quotas::default(),
    })
    .unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn every_key_of_compose_has_the_form_that_compose_gives_it() {
    let expected: Value = serde_json::from_str(&Dir.read("expected.json").unwrap().unwrap()).unwrap();
    let ours = canonical(&everything().spec);
    for key in ["name", "services", "networks", "volumes", "configs", "secrets", "x-common", "x-flags"] {
        match (ours.get(key), expected.get(key)) {
            (Some(Value::Object(a)), Some(Value::Object(b))) => {
                assert_eq!(a.keys().collect::<std::collections::BTreeSet<_>>(), b.keys().collect(), "{key}");
                for (name, object) in a {
                    assert_eq!(object, &b[name], "{key}.{name}");
                }
            }
            (a, b) => assert_eq!(a, b, "{key}"),
        }
    }
    for (name, service) in ours["services"].as_object().unwrap() {
        assert!(service.as_object().unwrap().keys().is_sorted(), "{name}: {service}");
    }
}

#[test]
fn what_is_kept_and_not_carried_out_is_named_by_path() {
    let notes: std::collections::BTreeSet<String> = everything().spec.unsupported.into_iter().map(|u| u.path).collect();
    let expected = [
        "configs.from_file",
        "secrets.key",
        "secrets.token",
        "services.job.build",
        "services.job.build.additional_contexts",
        "services.job.build.secrets",
        "services.side.build",
        "services.web.attach",
        "services.web.deploy.endpoint_mode",
        "services.web.deploy.labels",
        "services.web.deploy.placement",
        "services.web.deploy.restart_policy.delay",
        "services.web.deploy.restart_policy.window",
        "services.web.deploy.rollback_config",
        "services.web.deploy.update_config",
        "services.web.develop",
        "services.web.isolation",
        "services.web.post_start",
        "services.web.pre_stop",
    ];
    assert_eq!(notes.iter().map(String::as_str).filter(|n| !n.contains("environment")).collect::<Vec<_>>(), expected);
}

fn canon(texts: &[&str], files: &[(&'static str, &'static str)]) -> Value {
    canonical(&run(texts, files, &[], &[]).unwrap_or_else(|e| panic!("{e}")))
}

/// The canonical value of one key of service `a`.
fn key(body: &str, key: &str) -> Value {
    canon(&[&format!("services:\n  a:\n    image: a\n    {body}\n  b: {{image: b}}\n")], &[])["services"]["a"][key].clone()
}

#[test]
fn short_and_long_forms_are_one() {
    for (body, name, expected) in [
        ("build: ./x", "build", json!({"context": "/srv/shop/x", "dockerfile": "Dockerfile"})),
        ("build: {context: ., dockerfile_inline: FROM x}", "build", json!({"context": "/srv/shop", "dockerfile_inline": "FROM x"})),
        ("depends_on: [b]", "depends_on", json!({"b": {"condition": "service_started", "required": true}})),
        ("links: [\"b:x\"]", "depends_on", json!({"b": {"condition": "service_started", "restart": true, "required": true}})),
        ("network_mode: 'service:b'", "depends_on", json!({"b": {"condition": "service_started", "restart": true, "required": true}})),
        ("volumes_from: ['b:ro']", "depends_on", json!({"b": {"condition": "service_started", "required": true}})),
        ("ulimits: {nofile: 5, nproc: {soft: 1, hard: 2}}", "ulimits", json!({"nofile": 5, "nproc": {"soft": 1, "hard": 2}})),
        ("ulimits: {nofile: '5'}", "ulimits", json!({"nofile": 5})),
        ("gpus: all", "gpus", json!([{"count": -1}])),
        ("extra_hosts: {x: 1.1.1.1, y: ['::1', 2.2.2.2]}", "extra_hosts", json!(["x=1.1.1.1", "y=2.2.2.2", "y=::1"])),
        ("sysctls: [a=1]", "sysctls", json!({"a": "1"})),
        ("labels: {a: null, b: 1.50, c: 0440, d: 1e10}", "labels", json!({"a": "", "b": "1.5", "c": "288", "d": "1e+10"})),
        ("init: 'yes'", "init", json!(true)),
        ("scale: '2'", "scale", json!(2)),
        ("stop_grace_period: 90s", "stop_grace_period", json!("1m30s")),
        ("shm_size: 64m", "shm_size", json!("67108864")),
        ("tmpfs: /run", "tmpfs", json!(["/run"])),
        ("env_file: []", "env_file", Value::Null),
        ("pull_policy: if_not_present", "pull_policy", json!("missing")),
        ("healthcheck: {disable: true}", "healthcheck", json!({"disable": true})),
        ("healthcheck: {test: run it}", "healthcheck", json!({"test": ["CMD-SHELL", "run it"]})),
        ("command: ''", "command", json!([])),
        ("entrypoint: a 'b c'", "entrypoint", json!(["a", "b c"])),
        ("environment: ['A=$$x', B]", "environment", json!({"A": "$$x", "B": null})),
        ("networks: {}", "networks", json!({"default": null})),
        ("post_start: [{command: a b, environment: [X]}]", "post_start", json!([{"command": ["a", "b"], "environment": {"X": null}}])),
        ("blkio_config: {weight: 5}", "blkio_config", json!({"weight": 5})),
        ("dns: ''", "dns", Value::Null),
    ] {
        assert_eq!(key(body, name), expected, "{body}");
    }
}

#[test]
fn values_that_compose_refuses_are_refused_with_path_and_line() {
    for (body, path) in [
        ("privileged: '${UNSET}'", "privileged"),
        ("healthcheck: {retries: ''}", "healthcheck.retries"),
        ("healthcheck: {interval: 5}", "healthcheck.interval"),
        ("healthcheck: {interval: 1d}", "healthcheck.interval"),
        ("restart: false", "restart"),
        ("environment: null", "environment"),
        ("environment: {A: [1]}", "environment.A"),
        ("command: [1]", "command[0]"),
        ("ports: [{target: '80-82'}]", "ports[0].target"),
        ("ports: [{target: 80, foo: 1}]", "ports[0].foo"),
        ("volumes: [{source: x, target: /x}]", "volumes[0]"),
        ("volumes: [{type: bind, source: ., target: /x, bind: {selinux: q}}]", "volumes[0].bind.selinux"),
        ("security_opt: [x, x]", "security_opt[1]"),
        ("pull_policy: sometimes", "pull_policy"),
        ("cpu_percent: 150", "cpu_percent"),
        ("deploy: {replicas: many}", "deploy.replicas"),
        ("deploy: {resources: {limits: {memory: lots}}}", "deploy.resources.limits.memory"),
        ("deploy: {resources: {reservations: {devices: [{count: 1}]}}}", "deploy.resources.reservations.devices[0]"),
        ("gpus: [{count: 1, device_ids: [x]}]", "gpus[0]"),
        ("develop: {watch: [{path: x, action: sync}]}", "develop.watch[0]"),
        ("mem_limit: plenty", "mem_limit"),
        ("pids_limit: 1\n    deploy: {resources: {limits: {pids: 2}}}", "pids_limit"),
        ("extra_hosts: [nowhere]", "extra_hosts[0]"),
        ("depends_on: {b: {restart: true}}", "depends_on.b"),
        ("network_mode: host\n    networks: [default]", "networks"),
    ] {
        let found = errors(&format!("services:\n  b: {{image: b}}\n  a:\n    image: a\n    {body}\n"));
        let path = format!("services.a.{path}: ");
        assert!(found.iter().any(|e| e.contains(&path) && e.starts_with("compose.yaml:")), "{body}: {found:?}");
    }
}

#[test]
fn unknown_services_are_named_as_compose_names_them() {
    for (body, path) in [
        ("network_mode: 'service:z'", "network_mode"),
        ("ipc: 'service:z'", "ipc"),
        ("volumes_from: [z]", "volumes_from[0]"),
        ("links: [z]", "links[0]"),
        ("depends_on: [z]", "depends_on.z"),
    ] {
        let found = run(&[&format!("services:\n  a:\n    image: a\n    {body}\n")], &[], &[], &[]).unwrap_err().0;
        assert_eq!(found.len(), 1, "{body}: {found:?}");
        let got = (found[0].path.as_deref(), found[0].message.as_str(), found[0].rule);
        assert_eq!(got, (Some(format!("services.a.{path}").as_str()), "service \"a\" depends on undefined service \"z\"", None), "{body}");
    }
}

#[test]
fn references_nest_and_their_words_are_always_checked() {
    let text = |value: &str| format!("services:\n  a:\n    image: a\n    environment:\n      K: '{value}'\n");
    let load = |value: &str| run(&[&text(value)], &[], &[("SET", "s")], &[]);
    for (value, expected) in [
        ("${A:-${B:-${SET}}}", "s"),
        ("${SET:+${A-x}$$}", "x$"),
        ("${A:-{\"a\":1}}", "{\"a\":1}"),
        ("${A:-a:-b}", "a:-b"),
        ("$${A} $$$SET", "${A} $s"),
    ] {
        let spec = load(value).unwrap_or_else(|e| panic!("{value}: {e}"));
        assert_eq!(svc(&spec, "a").environment["K"].as_deref(), Some(expected), "{value}");
    }
    for value in ["${A:-${B:?why}}", "${SET:-${B:?why}}"] {
        let refused = load(value).unwrap_err().0;
        let found = (refused[0].path.as_deref(), refused[0].line, refused[0].message.as_str());
        assert_eq!(found, (Some("services.a.environment.K"), Some(5), "required variable B is missing a value: why"), "{value}");
    }
    assert!(["${A:-x", "${A!}", "${1}", "${}"].iter().all(|v| load(v).is_err()));
}

#[test]
fn env_files_are_read_as_compose_reads_them() {
    let declared = BTreeMap::from([("D".to_owned(), "d".to_owned())]);
    for (text, expected) in [
        ("A=1\nB = 2\nC=a b # c\nD2=a#b\n", json!({"A": "1", "B": "2", "C": "a b", "D2": "a#b"})),
        ("A=\"x\" # y\nB='x'#\nC=\nE= \n", json!({"A": "x", "B": "x", "C": "", "E": ""})),
        ("A=\"a\\\"b\\tc\\\\d\\$x\"\nB='a\\'b\\n'\n", json!({"A": "a\"b\tc\\d$x", "B": "a'b\\n"})),
        ("K: v\nL=\"two\nlines\"\nM=${K:-x}-$D\nN='$K'\n", json!({"K": "v", "L": "two\nlines", "M": "v-d", "N": "$K"})),
        ("export A=1\nD\nNOPE\nB=\"x\" C=\"y\"\n", json!({"A": "1", "D": "d", "B": "x", "C": "y"})),
        ("\u{feff}A=1\r\nB=2\r\n\n# c\n", json!({"A": "1", "B": "2"})),
        ("A=\"\\a\\x\\0101\"\n", json!({"A": "\u{7}\\xA"})),
    ] {
        let got = dotenv::parse(text, &declared, true).unwrap_or_else(|e| panic!("{text:?}: {e:?}"));
        assert_eq!(json!(got), expected, "{text:?}");
    }
    for (text, line) in [("A=1\nB C=2\n", 2), ("\n\nA=\"open\n", 3), ("A=${B\n", 1), ("A=${B:?no}\n", 1), ("=x\n", 1)] {
        assert_eq!(dotenv::parse(text, &declared, true).map_err(|e| e.line), Err(line), "{text:?}");
    }
    assert_eq!(dotenv::parse("A=\"$D\" # x\n", &declared, false).unwrap()["A"], "\"$D\" # x");
}

#[test]
fn later_env_files_see_earlier_ones_and_the_file_wins() {
    let files = [("one.env", "A=1\nB=one\n"), ("two.env", "B=two\nC=$A\n"), ("labels", "x=1\ny=2\n")];
    let text = "services:\n  a:\n    image: a\n    env_file: [one.env, {path: two.env, required: true}, {path: no.env, required: false}]\n    environment: {A: own}\n    label_file: labels\n    labels: {y: own}\n";
    let a = svc(&run(&[text], &files, &[], &[]).unwrap(), "a");
    assert_eq!(a.environment, env(&[("A", Some("own")), ("B", Some("two")), ("C", Some("1"))]));
    assert_eq!(a.labels, BTreeMap::from([("x".to_owned(), "1".to_owned()), ("y".to_owned(), "own".to_owned())]));
    let missing = errors("services:\n  a:\n    image: a\n    label_file: [no]\n");
    assert_eq!(missing, ["compose.yaml:4: services.a.label_file[0]: label file no not found (create it)"]);
}

#[test]
fn merge_keys_work_in_every_position() {
    let text = "x-env: &env {A: x, B: x}\nx-hc: &hc {interval: 5s, retries: 2}\nx-svc: &svc {image: a, healthcheck: {<<: *hc, retries: 3}}\nx-dep: &dep {b: {condition: service_started}}\nservices:\n  a:\n    <<: *svc\n    environment: {<<: *env, B: own}\n    labels:\n      <<: [{l: 1}, {l: 2, m: 3}]\n    depends_on:\n      <<: *dep\n    logging:\n      options:\n        <<: {max-size: 1m}\n  b: {<<: *svc, image: b}\nvolumes:\n  v:\n    <<: {name: vee}\n";
    let got = canon(&[text], &[]);
    let a = &got["services"]["a"];
    assert_eq!(a["environment"], json!({"A": "x", "B": "own"}));
    assert_eq!(a["healthcheck"], json!({"interval": "5s", "retries": 3}));
    assert_eq!(a["labels"], json!({"l": "1", "m": "3"}));
    assert_eq!(a["depends_on"], json!({"b": {"condition": "service_started", "required": true}}));
    assert_eq!(a["logging"], json!({"options": {"max-size": "1m"}}));
    assert_eq!(got["services"]["b"]["image"], "b");
    assert!(errors("services:\n  a: {<<: text, image: a}\n")[0].contains("`<<` needs a mapping or a list of mappings"));
}

#[test]
fn an_override_merges_key_by_key() {
    let base = "services:\n  a:\n    image: a\n    command: [x]\n    environment: {A: 1, B: 2}\n    labels: [l=1]\n    ports: [\"80:80\", \"81:81\"]\n    volumes: [\"data:/v\", \"./b:/b\"]\n    expose: [\"1\"]\n    dns: 1.1.1.1\n    logging: {driver: json-file, options: {a: 1}}\n    healthcheck: {test: [CMD, a], retries: 3}\n    ulimits: {nofile: 1}\n    deploy: {labels: {a: 1}, resources: {limits: {memory: 1g}}}\n    depends_on: [b]\n    networks: [n]\n    build: .\n    devices: [\"/dev/a:/dev/x\"]\n    security_opt: [one]\n    user: u\n  b: {image: b}\nnetworks: {n: {labels: {a: 1}, ipam: {config: [{subnet: 10.0.0.0/8}]}}}\nvolumes: {data: {}, other: {}}\n";
    for (over, name, expected) in [
        ("command: [y]", "command", json!(["y"])),
        ("command: null", "command", Value::Null),
        ("environment: [A=9, C]", "environment", json!({"A": "9", "B": "2", "C": null})),
        ("environment: !reset {}", "environment", Value::Null),
        ("environment: !override {Z: 1}", "environment", json!({"Z": "1"})),
        ("labels: {l: 2, m: 3}", "labels", json!({"l": "2", "m": "3"})),
        ("ports: !override [\"90\"]", "ports", json!([{"mode": "ingress", "target": 90, "protocol": "tcp"}])),
        ("ports: !reset []", "ports", Value::Null),
        ("expose: [\"1\", \"2\"]", "expose", json!(["1", "2"])),
        ("dns: [1.1.1.1, 8.8.8.8]", "dns", json!(["1.1.1.1", "8.8.8.8"])),
        ("logging: {options: {b: 2}}", "logging", json!({"driver": "json-file", "options": {"a": "1", "b": "2"}})),
        ("logging: {driver: syslog}", "logging", json!({"driver": "syslog"})),
        ("healthcheck: {test: [CMD, b]}", "healthcheck", json!({"test": ["CMD", "b"], "retries": 3})),
        ("ulimits: {nofile: {soft: 5, hard: 6}}", "ulimits", json!({"nofile": {"soft": 5, "hard": 6}})),
        ("depends_on: {b: {condition: service_healthy}}", "depends_on", json!({"b": {"condition": "service_healthy", "required": true}})),
        ("networks: {n: {aliases: [z]}}", "networks", json!({"n": {"aliases": ["z"]}})),
        ("build: {target: t}", "build", json!({"context": "/srv/shop", "dockerfile": "Dockerfile", "target": "t"})),
        ("devices: [\"/dev/b:/dev/x:r\"]", "devices", json!([{"source": "/dev/b", "target": "/dev/x", "permissions": "r"}])),
        ("security_opt: [two]", "security_opt", json!(["one", "two"])),
        ("user: !reset null", "user", Value::Null),
    ] {
        let text = format!("services:\n  a:\n    {over}\n");
        assert_eq!(canon(&[base, &text], &[])["services"]["a"][name], expected, "{over}");
    }
    let volumes = canon(&[base, "services: {a: {volumes: [\"other:/v\", \"./c:/c\"]}}\n"], &[])["services"]["a"]["volumes"].clone();
    let targets: Vec<_> = volumes.as_array().unwrap().iter().map(|v| (v["source"].clone(), v["target"].clone())).collect();
    assert_eq!(json!(targets), json!([["other", "/v"], ["/srv/shop/b", "/b"], ["/srv/shop/c", "/c"]]));
    let whole = canon(&[base, "services: {b: !reset null}\n", "services: {a: !override {image: only}}\n"], &[]);
    assert_eq!(whole["services"], json!({"a": {"command": null, "entrypoint": null, "image": "only", "networks": {"default": null}}}));
    let refused = run(&[base, "services: {a: {ports: {a: 1}}}\n"], &[], &[], &[]).unwrap_err().0;
    assert_eq!(refused[0].path.as_deref(), Some("services.a.ports"));
}

#[test]
fn extends_follows_files_and_clears_what_is_reset() {
    let files = [
        (
            "d/b.yaml",
            "services:\n  b:\n    extends: {file: ../c.yaml, service: c}\n    user: u\n    build: {target: t}\n    ports: [\"80:80\"]\n",
        ),
        ("c.yaml", "services:\n  c:\n    image: c\n    volumes: [\"./q:/q\"]\n    ports: [\"90:90\"]\n    environment: {A: 1}\n"),
    ];
    let text = "services:\n  a:\n    extends: {file: d/b.yaml, service: b}\n    ports: !reset []\n    environment: !override {B: 2}\n";
    let a = canon(&[text], &files)["services"]["a"].clone();
    assert_eq!(a["volumes"][0]["source"], "/srv/shop/q");
    assert_eq!((&a["user"], &a["image"], a.get("ports")), (&json!("u"), &json!("c"), None));
    assert_eq!(a["environment"], json!({"B": "2"}));
    let refused = |text: &str| run(&[text], &files, &[], &[]).unwrap_err().0[0].to_string();
    let nowhere = "services:\n  a:\n    extends: {file: nope.yaml, service: b}\n";
    assert!(refused(nowhere).starts_with("compose.yaml:3: services.a.extends: file nope.yaml not found"), "{}", refused(nowhere));
    let unnamed = "services:\n  a:\n    extends: {file: c.yaml, service: z}\n";
    assert!(refused(unnamed).starts_with("compose.yaml:3: services.a.extends: file c.yaml has no service \"z\""), "{}", refused(unnamed));
}

#[test]
fn include_has_its_own_place_and_variables() {
    let files = [
        (
            "d/c.yaml",
            "services:\n  b:\n    image: \"b:${TAG}\"\n    environment: [TAG]\n    build: {target: t}\n    volumes: [\"./x:/x\"]\nvolumes:\n  dev: {driver: local, driver_opts: {type: none, o: bind, device: ./dev}}\n",
        ),
        ("d/.env", "TAG=8\n"),
        ("x.env", "TAG=9\n"),
        ("y.env", "MORE=$TAG-$LATE\n"),
        ("z.env", "TAG=10\nLATE=1\n"),
        ("other.yaml", "services: {b: {environment: {EXTRA: 1}}}\n"),
        ("a.yaml", "services: {a: {image: else}}\n"),
    ];
    let got = canon(&["include: [d/c.yaml]\nservices: {a: {image: a, volumes: [\"dev:/d\"]}}\n"], &files);
    let b = &got["services"]["b"];
    assert_eq!((&b["image"], &b["environment"]), (&json!("b:8"), &json!({"TAG": "8"})));
    assert_eq!((&b["volumes"][0]["source"], &b["build"]["context"]), (&json!("/srv/shop/d/x"), &json!("/srv/shop/d")));
    assert_eq!(got["volumes"]["dev"]["driver_opts"]["device"], "/srv/shop/d/dev");
    let long = "include: [{path: [d/c.yaml, other.yaml], env_file: x.env, project_directory: e}]\nservices: {a: {image: a}}\n";
    let b = canon(&[long], &files)["services"]["b"].clone();
    assert_eq!((&b["image"], &b["environment"]), (&json!("b:9"), &json!({"TAG": "9", "EXTRA": "1"})));
    assert_eq!(b["volumes"][0]["source"], "/srv/shop/e/x");
    let several = "include: [{path: d/c.yaml, env_file: [x.env, y.env, z.env]}]\nservices: {a: {image: a}}\n";
    let spec = run(&[several], &files, &[], &[]).unwrap();
    assert_eq!(spec.services["b"].image.as_ref().map(ToString::to_string).as_deref(), Some("b:10"), "a later file counts");
    let more = "include: [{path: m.yaml, env_file: [x.env, y.env, z.env]}]\nservices: {a: {image: a}}\n";
    let files = [files.as_slice(), &[("m.yaml", "services: {m: {image: \"m:${MORE}\"}}\n")]].concat();
    let spec = run(&[more], &files, &[], &[]).unwrap();
    assert_eq!(spec.services["m"].image.as_ref().map(ToString::to_string).as_deref(), Some("m:9-"), "and sees what came before alone");
    let conflict = run(&["include: [a.yaml]\nservices: {a: {image: a}}\n"], &files, &[], &[]).unwrap_err().0;
    assert_eq!(
        conflict[0].to_string(),
        "compose.yaml:1: include[0]: services.a is defined here and in the included file (rename one of them)"
    );
    assert!(run(&["include: [a.yaml]\nservices: {a: {image: else}}\n"], &files, &[], &[]).is_ok());
}

#[test]
fn two_limits_that_differ_are_refused_as_compose_does_or_named_in_the_plan() {
    for (limits, used) in [
        ("cpus: 1\n    deploy: {resources: {limits: {cpus: 2}}}", (Some(2_000_000_000), None)),
        ("mem_limit: 1g\n    deploy: {resources: {limits: {cpus: '1'}}}", (Some(1_000_000_000), Some(1 << 30))),
    ] {
        let text = format!("services:\n  a:\n    image: a\n    {limits}\n");
        let spec = ok(&text);
        let resources = svc(&spec, "a").resources;
        assert_eq!((resources.nano_cpus, resources.memory), used, "{limits}");
        assert!(spec.unsupported.iter().any(|u| u.reason.contains("differ; Compose refuses this")), "{limits}");
        let input = LoadInput {
            name: StackName::new("shop").unwrap(),
            project_dir: "/srv/shop",
            sources: vec![Source { path: "compose.yaml".into(), text }],
            variables: &BTreeMap::new(),
            profiles: &[],
            files: &Memory(BTreeMap::new()),
            quotas: &Quotas::default(),
        };
        assert_eq!(read(&input).unwrap_err().0.len(), 1, "{limits}");
    }
}

#[test]
fn reading_asks_less_than_deploying() {
    for text in [
        "services:\n  a: {image: a, ports: [\"80:80\"]}\n  b: {image: b, ports: [\"80:80\"]}\n",
        "services:\n  a: {image: a, container_name: c}\n  b: {image: b, container_name: c}\n",
        "name: other\nservices:\n  a: {image: a}\n",
        "services:\n  a: {image: 'no image'}\n",
        "services:\n  a: {image: a, volumes: ['~/x:/x']}\n",
        "services:\n  a: {image: a, restart: sometimes}\n",
    ] {
        assert!(run(&[text], &[], &[], &[]).is_err(), "{text}");
        let input = LoadInput {
            name: StackName::new("shop").unwrap(),
            project_dir: "/srv/shop",
            sources: vec![Source { path: "compose.yaml".into(), text: text.into() }],
            variables: &BTreeMap::new(),
            profiles: &[],
            files: &Memory(BTreeMap::new()),
            quotas: &Quotas::default(),
        };
        assert!(read(&input).is_ok(), "{text}");
    }
}

#[test]
fn subnets_that_overlap_are_refused_before_an_engine_is_asked() {
    let text = |subnets: [&str; 2]| {
        let network = |(i, s): (usize, &&str)| format!("  n{i}: {{ipam: {{config: [{{subnet: \"{s}\"}}]}}}}\n");
        format!("services:\n  a: {{image: a}}\nnetworks:\n{}", subnets.iter().enumerate().map(network).collect::<String>())
    };
    for (subnets, refused) in [
        (["10.0.0.0/8", "10.1.0.0/16"], true),
        (["10.0.0.0/8", "11.0.0.0/8"], false),
        (["fd00::/64", "fd00::1:0/112"], true),
        (["10.0.0.0/8", "fd00::/8"], false),
        (["10.0.0.0/40", "11.0.0.0/8"], true),
        (["somewhere", "11.0.0.0/8"], true),
    ] {
        let found = run(&[&text(subnets)], &[], &[], &[]);
        assert_eq!(found.is_err(), refused, "{subnets:?}: {found:?}");
    }
    let found = errors(&text(["10.0.0.0/8", "10.1.0.0/16"]));
    let expected = "compose.yaml:5: networks.n1.ipam.config[0].subnet: 10.1.0.0/16 overlaps the subnet of networks.n0.ipam.config[0] (choose another one)";
    assert_eq!(found, [expected]);
}

#[test]
fn configs_and_secrets_come_from_files_variables_and_the_text() {
    let files = [("f", "from file")];
    let text = "services:\n  a:\n    image: a\n    configs: [c, {source: e, target: /e, mode: 0400}]\n    secrets: [s, {source: v, target: vee}]\nconfigs:\n  c: {content: \"${SET}$$\"}\n  e: {environment: SET}\nsecrets:\n  s: {file: ./f}\n  v: {environment: SET}\n  x: {external: true, name: there}\n";
    let spec = run(&[text], &files, &[("SET", "value")], &[]).unwrap_or_else(|e| panic!("{e}"));
    let contents = |m: &BTreeMap<String, FileObject>| m.iter().map(|(k, o)| (k.clone(), o.content.clone())).collect::<Vec<_>>();
    assert_eq!(json!(contents(&spec.configs)), json!([["c", "value$"], ["e", "value"]]));
    assert_eq!(json!(contents(&spec.secrets)), json!([["s", "from file"], ["v", "value"], ["x", null]]));
    let got = canonical(&spec);
    assert_eq!(got["configs"], json!({"c": {"name": "shop_c", "content": "value$$"}, "e": {"name": "shop_e", "environment": "SET"}}));
    assert_eq!(got["secrets"], json!({"s": {"name": "shop_s", "file": "/srv/shop/f"}, "v": {"name": "shop_v", "environment": "SET"}}));
    let a = &got["services"]["a"];
    assert_eq!(a["configs"], json!([{"source": "c"}, {"source": "e", "target": "/e", "mode": 256}]));
    assert_eq!(a["secrets"], json!([{"source": "s", "target": "/run/secrets/s"}, {"source": "v", "target": "vee"}]));
    for object in ["{}", "{file: a, environment: b}", "null"] {
        let found = errors(&format!("services:\n  a: {{image: a, secrets: [s]}}\nsecrets:\n  s: {object}\n"));
        assert!(found[0].contains(" secrets.s: "), "{object}: {found:?}");
    }
}
