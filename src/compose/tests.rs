//! Tests of the loader: small files of our own and arbitrary text; `corpus` compares real files with what Docker Compose makes of them.

use super::*;
use crate::model::ids::{ImageRef, ServiceName};
use crate::model::spec::written::{Bytes, MountSections, Written};
use crate::model::spec::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

mod corpus;
mod delivered;
mod forms;
mod robust;

struct Memory(BTreeMap<&'static str, &'static str>);
impl Files for Memory {
    fn read(&self, path: &str) -> Result<Option<String>, ReadError> {
        if path.starts_with("../") {
            return Err(ReadError::Outside("outside of the project directory".into()));
        }
        Ok(self.0.get(path).map(|t| (*t).to_owned()))
    }
}

fn run(
    texts: &[&str],
    files: &[(&'static str, &'static str)],
    variables: &[(&str, &str)],
    profiles: &[&str],
) -> Result<StackSpec, LoadErrors> {
    let names = ["compose.yaml", "compose.override.yaml", "third.yaml"];
    let sources = texts.iter().zip(names).map(|(t, n)| Source { path: n.into(), text: (*t).into() }).collect();
    let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let profiles: Vec<String> = profiles.iter().map(|p| (*p).to_owned()).collect();
    let files = Memory(files.iter().copied().collect());
    load(&LoadInput {
        name: StackName::new("shop").unwrap(),
        project_dir: "/srv/shop",
        sources,
        variables: &variables,
        profiles: &profiles,
        files: &files,
        quotas: &Quotas::default(),
    })
}

fn ok(text: &str) -> StackSpec {
    run(&[text], &[], &[], &[]).unwrap_or_else(|e| panic!("{e}"))
}
fn errors(text: &str) -> Vec<String> {
    run(&[text], &[], &[], &[]).expect_err("must be refused").0.iter().map(ToString::to_string).collect()
}
fn svc(spec: &StackSpec, name: &str) -> ServiceSpec {
    spec.services[&ServiceName::new(name).unwrap()].clone()
}
fn env(pairs: &[(&str, Option<&str>)]) -> BTreeMap<String, Option<String>> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), v.map(str::to_owned))).collect()
}

#[test]
fn an_ordinary_file_becomes_the_whole_spec() {
    let spec = ok(
        "services:\n  web:\n    image: nginx:1.27\n    command: sh -c 'exec nginx'\n    ports: [\"127.0.0.1:8080:80\"]\n    volumes: [\"./html:/html:ro\", data:/data]\n    environment: {A: 1, B: true, C: }\n    restart: unless-stopped\n    mem_limit: 64m\nvolumes:\n  data:\n",
    );
    let mount = |kind, source: &str, target: &str, read_only, create_host_path, path: &str| MountSpec {
        source: Some(source.into()),
        read_only,
        create_host_path,
        ..MountSpec::new(kind, target, path)
    };
    let web = ServiceSpec {
        active: true,
        image: Some(ImageRef::new("nginx:1.27").unwrap()),
        command: Some(vec!["sh".into(), "-c".into(), "exec nginx".into()]),
        environment: env(&[("A", Some("1")), ("B", Some("true")), ("C", None)]),
        ports: vec![PortSpec {
            target: 80,
            published: Some("8080".into()),
            host_ip: Some("127.0.0.1".into()),
            protocol: "tcp".into(),
            mode: "ingress".into(),
            name: None,
            app_protocol: None,
            path: "services.web.ports[0]".into(),
        }],
        mounts: vec![
            mount(MountKind::Bind, "/srv/shop/html", "/html", true, true, "services.web.volumes[0]"),
            mount(MountKind::Volume, "data", "/data", false, false, "services.web.volumes[1]"),
        ],
        networks: BTreeMap::from([("default".into(), ServiceNetwork::default())]),
        restart: Restart::UnlessStopped,
        replicas: 1,
        resources: Resources { memory: Some(64 << 20), ..Resources::default() },
        written: Written {
            restart: Some("unless-stopped".into()),
            mem_limit: Some(Bytes(64 << 20)),
            mounts: vec![
                MountSections { bind: true, ..MountSections::default() },
                MountSections { volume: true, ..MountSections::default() },
            ],
            ..Written::default()
        },
        ..ServiceSpec::default()
    };
    let expected = StackSpec {
        services: BTreeMap::from([(ServiceName::new("web").unwrap(), web)]),
        networks: BTreeMap::from([("default".into(), NetworkSpec { name: "shop_default".into(), ..NetworkSpec::default() })]),
        volumes: BTreeMap::from([("data".into(), VolumeSpec { name: "shop_data".into(), ..VolumeSpec::default() })]),
        ..StackSpec::new(StackName::new("shop").unwrap())
    };
    assert_eq!(spec, expected);
}

#[test]
fn every_form_of_interpolation() {
    let variables = BTreeMap::from([("V".to_owned(), "x".to_owned()), ("E".to_owned(), String::new())]);
    let lookup = |name: &str| variables.get(name).cloned();
    let mut unset = Vec::new();
    for (input, expected) in [
        ("$V-${V}", Ok("x-x")),
        ("$$V", Ok("$V")),
        ("${U:-d}${U-d}", Ok("dd")),
        ("${E:-d}[${E-d}]", Ok("d[]")),
        ("${V:+a}${U:+a}${E+b}", Ok("ab")),
        ("${U:-${E:-${V}}}", Ok("x")),
        ("${U:-{\"a\":1}}", Ok("{\"a\":1}")),
        ("[${U}]", Ok("[]")),
        ("${U:?say $V}", Err("required variable U is missing a value: say x")),
        ("${U?}", Err("required variable U is missing a value")),
        ("a$", Ok("a$")),
        ("$(date +%s) $1", Ok("$(date +%s) $1")),
        ("${V", Err("invalid interpolation in \"${V\"; write $$ for a literal $")),
        ("${}", Err("invalid interpolation in \"${}\"; write $$ for a literal $")),
    ] {
        assert_eq!(interpolate::text(input, &lookup, &mut unset), expected.map(str::to_owned).map_err(str::to_owned), "{input}");
    }
    assert_eq!(unset, ["U"]);
}

#[test]
fn an_unset_variable_is_a_note() {
    let spec = ok("services:\n  a:\n    image: a\n    environment:\n      K: \"${NOPE}\"\n");
    assert_eq!(
        spec.unsupported,
        [Unsupported { path: "services.a.environment.K".into(), reason: "variable NOPE is not set; an empty text is used".into() }]
    );
}

#[test]
fn errors_name_path_line_and_the_way_out() {
    for (text, expected) in [
        ("services:\n  a:\n    image: a\n    port: [80]\n", "compose.yaml:4: services.a.port: unknown key `port` (did you mean `ports`?)"),
        (
            "services:\n  a:\n    image: a\n    volumes:\n      - dat:/x\nvolumes:\n  data:\n",
            "compose.yaml:5: services.a.volumes[0]: undefined volume \"dat\" (did you mean `data`?)",
        ),
        (
            "name: other\nservices:\n  a: {image: a}\n",
            "compose.yaml:1: name: the file is for \"other\", not for stack \"shop\" (remove `name:`, or deploy it as stack \"other\")",
        ),
        (
            "services:\n  a:\n    restart: always\n",
            "compose.yaml:2: services.a: the service has neither an image nor a build (add `image:`)",
        ),
        (
            "services:\n  a: {image: a, depends_on: [b]}\n  b: {image: b, depends_on: [a]}\n",
            "compose.yaml:2: services.a.depends_on: services wait for each other: a -> b -> a (remove one dependency)",
        ),
        (
            "services:\n  a:\n    image: a\n    image: b\n",
            "compose.yaml:3: services.a: duplicate key \"image\" at line 3 column 5 (mend the YAML at this place)",
        ),
        (
            "services:\n  a:\n    image: a\n    ports: [\"80:80\"]\n  b:\n    image: b\n    ports: [\"80:8080\"]\n",
            "compose.yaml:7: services.b.ports[0]: host port 80/tcp is published twice, also by services.a.ports[0] (publish another host port)",
        ),
        (
            "services:\n  a:\n    image: a\n    volumes: [\"~/x:/x\"]\n",
            "compose.yaml:4: services.a.volumes[0]: \"~/x\" means a home directory, and the supervisor has none of yours (write the absolute path)",
        ),
    ] {
        assert_eq!(errors(text), [expected], "{text}");
    }
}

#[test]
fn hostile_text_is_refused_quickly() {
    let bomb = {
        let mut t = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for i in 1..12 {
            let refs = vec![format!("*a{}", i - 1); 10].join(",");
            t.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
        }
        t
    };
    let started = std::time::Instant::now();
    for text in [
        bomb,
        "[".repeat(200_000),
        "{a: ".repeat(50_000),
        "- ".repeat(100_000),
        "a: \"${A:-".repeat(20_000),
        format!("a: \"{}\"", "${A:-".repeat(20_000)),
        "x".repeat(300_000),
        "a: 1\n---\nb: 2\n".to_owned(),
        "a: *nope\n".to_owned(),
        "? [a]\n: b\n".to_owned(),
        String::new(),
        "5".to_owned(),
    ] {
        assert!(run(&[&text], &[], &[], &[]).is_err(), "{}", &text[..text.len().min(60)]);
    }
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
}

#[test]
fn merge_keys_are_resolved_and_what_is_written_wins() {
    let spec = ok(
        "x-a: &a {image: one, environment: {K: a}}\nx-b: &b {image: two, user: \"1\"}\nservices:\n  s:\n    <<: [*a, *b]\n    environment:\n      <<: {X: y}\n      K: z\n",
    );
    let s = svc(&spec, "s");
    assert_eq!(
        (s.image.unwrap().as_str().to_owned(), s.user, s.environment),
        ("one".into(), Some("1".into()), env(&[("K", Some("z")), ("X", Some("y"))]))
    );
}

#[test]
fn overrides_merge_by_compose_rules() {
    let base = "services:\n  a:\n    image: a\n    command: [x]\n    ports: [\"80:80\", \"81:81\"]\n    environment: [A=1, B=2]\n    volumes: [\"v:/v\"]\n    dns: [1.1.1.1]\n    user: u\nvolumes:\n  v:\n  w:\n";
    let over = "services:\n  a:\n    command: [y, z]\n    ports: !override [\"90:90\"]\n    environment: {B: 3}\n    volumes: [\"w:/v\"]\n    dns: 8.8.8.8\n    user: !reset null\n";
    let spec = run(&[base, over], &[], &[], &[]).unwrap_or_else(|e| panic!("{e}"));
    let a = svc(&spec, "a");
    assert_eq!(a.command, Some(vec!["y".into(), "z".into()]));
    assert_eq!(a.ports.iter().map(|p| p.target).collect::<Vec<_>>(), [90]);
    assert_eq!(a.environment, env(&[("A", Some("1")), ("B", Some("3"))]));
    assert_eq!(a.mounts.iter().map(|m| m.source.clone().unwrap()).collect::<Vec<_>>(), ["w"]);
    assert_eq!(a.dns, ["1.1.1.1", "8.8.8.8"]);
    assert_eq!(a.user, None);
}

#[test]
fn extends_and_include_move_relative_paths() {
    let files = [
        (
            "common/base.yaml",
            "services:\n  base:\n    image: base\n    env_file: base.env\n    volumes: [\"./d:/d\"]\n    environment: {K: base, L: base}\n",
        ),
        ("common/base.env", "FROM_FILE=yes # comment\n"),
        ("sub/compose.yaml", "include: [deep/compose.yaml]\nservices:\n  inc:\n    image: inc\n    volumes: [\"./e:/e\"]\n"),
        ("sub/deep/compose.yaml", "services:\n  deep:\n    image: deep\n    volumes: [\"../f:/f\"]\nsecrets:\n  s:\n    file: ./s.txt\n"),
        ("sub/deep/s.txt", "hidden"),
    ];
    let text = "include:\n  - sub/compose.yaml\nservices:\n  web:\n    extends: {file: common/base.yaml, service: base}\n    environment: {K: own}\n  twin:\n    extends: web\n";
    let spec = run(&[text], &files, &[], &[]).unwrap_or_else(|e| panic!("{e}"));
    let sources = |name| svc(&spec, name).mounts.into_iter().map(|m| m.source.unwrap()).collect::<Vec<_>>();
    assert_eq!(sources("web"), ["/srv/shop/common/d"]);
    assert_eq!(sources("inc"), ["/srv/shop/sub/e"]);
    assert_eq!(sources("deep"), ["/srv/shop/sub/f"]);
    assert_eq!(svc(&spec, "twin").environment, env(&[("FROM_FILE", Some("yes")), ("K", Some("own")), ("L", Some("base"))]));
    let secret = FileObject {
        name: "shop_s".into(),
        external: false,
        file: Some("/srv/shop/sub/deep/s.txt".into()),
        content: Some("hidden".into()),
        digest: None,
        environment: None,
        labels: BTreeMap::new(),
        driver: None,
        driver_opts: BTreeMap::new(),
        template_driver: None,
    };
    assert_eq!(spec.secrets, BTreeMap::from([("s".to_owned(), secret)]));
}

#[test]
fn a_circle_of_extends_or_include_ends() {
    let circle = errors("services:\n  a: {extends: b}\n  b: {extends: a}\n");
    assert_eq!(
        circle[0],
        "compose.yaml:2: services.a.extends: `extends` goes round in a circle: compose.yaml:a -> compose.yaml:b -> compose.yaml:a (break the circle)"
    );
    let refused = run(&["include: [me.yaml]\n"], &[("me.yaml", "include: [me.yaml]\nservices: {a: {image: a}}\n")], &[], &[]).unwrap_err();
    assert_eq!(refused.0[0].message, "files are included deeper than 16 levels");
}

#[test]
fn profiles_decide_what_is_active() {
    let text = "services:\n  a: {image: a}\n  b: {image: b, profiles: [debug], volumes: [\"nope:/x\"]}\n";
    let spec = ok(text);
    assert_eq!((svc(&spec, "a").active, svc(&spec, "b").active), (true, false));
    assert!(run(&[text], &[], &[], &["debug"]).is_err());
    assert_eq!(
        errors("services:\n  a: {image: a, depends_on: [b]}\n  b: {image: b, profiles: [x]}\n"),
        [
            "compose.yaml:2: services.a.depends_on.b: service \"a\" depends on service \"b\", which is not active (activate one of its profiles, or write `required: false`)"
        ]
    );
}

#[test]
fn port_ranges_expand_to_one_entry_per_port() {
    let spec = ok(
        "services:\n  a:\n    image: a\n    ports: [\"8000-8002:80-82/udp\", \"[::1]:9000:90\", 70, \"9100-9110:91\", {target: 60, published: 6000}]\n",
    );
    let got: Vec<_> = svc(&spec, "a").ports.into_iter().map(|p| (p.target, p.published, p.host_ip, p.protocol)).collect();
    let port = |t, p: Option<&str>, ip: Option<&str>, proto: &str| (t, p.map(str::to_owned), ip.map(str::to_owned), proto.to_owned());
    assert_eq!(
        got,
        [
            port(80, Some("8000"), None, "udp"),
            port(81, Some("8001"), None, "udp"),
            port(82, Some("8002"), None, "udp"),
            port(90, Some("9000"), Some("::1"), "tcp"),
            port(70, None, None, "tcp"),
            port(91, Some("9100-9110"), None, "tcp"),
            port(60, Some("6000"), None, "tcp"),
        ]
    );
    for bad in ["99999:80", "80:", "1-3:1-2", "80:80/xyz", "300.1.1.1:80:80", "0"] {
        assert_eq!(errors(&format!("services:\n  a:\n    image: a\n    ports:\n      - \"{bad}\"\n")).len(), 1, "{bad}");
    }
}

#[test]
fn durations_and_sizes() {
    assert_eq!(["1m30s", "500ms", "1.5s", "0", "1h"].map(units::duration_ms), [Ok(90_000), Ok(500), Ok(1500), Ok(0), Ok(3_600_000)]);
    assert!(["", "5", "5x", "s", "999999h"].iter().all(|t| units::duration_ms(t).is_err()));
    assert_eq!(["512m", "1gb", "64MiB", "10", "1.5k"].map(units::bytes), [Ok(512 << 20), Ok(1 << 30), Ok(64 << 20), Ok(10), Ok(1536)]);
    assert!(["", "x", "1zb", "-1"].iter().all(|t| units::bytes(t).is_err()));
}

#[test]
fn env_files_as_compose_reads_them() {
    let declared = BTreeMap::from([("D".to_owned(), "declared".to_owned())]);
    let text = "# c\nA=1\nexport B = two # c\nC='$A'\nE=\"x\\ny ${A}\"\nF=\"l1\nl2\"\nG=${D}-$A\nD=file\nBARE\nH=a$b!$\nI=#x\n";
    let got = dotenv(text, ".env", &declared).unwrap();
    let pairs = [
        ("A", "1"),
        ("B", "two"),
        ("C", "$A"),
        ("D", "file"),
        ("E", "x\ny 1"),
        ("F", "l1\nl2"),
        ("G", "declared-1"),
        ("H", "a!$"),
        ("I", "#x"),
    ];
    assert_eq!(got, pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect());
    assert_eq!(
        dotenv("A=1\nB=\"x", "b.env", &declared).unwrap_err().to_string(),
        "b.env:2: the quoted value of B is not closed (write KEY=value, one per line)"
    );
    let doubling: String = (0..64).map(|i| format!("A{}=$A{i}$A{i}\n", i + 1)).collect();
    assert!(dotenv(&format!("A0=xxxxxxxx\n{doubling}"), ".env", &declared).is_err());
}

#[test]
fn settings_of_ours_are_closed() {
    let spec = ok("x-dockwarden: {monitor_s: 5}\nservices:\n  a: {image: a, x-dockwarden: {concurrent: true}, x-other: 1}\n");
    assert_eq!((spec.settings.monitor_s, svc(&spec, "a").settings.concurrent), (Some(5), true));
    assert!(
        errors("services:\n  a:\n    image: a\n    x-dockwarden: {concurent: true}\n")[0]
            .starts_with("compose.yaml:4: services.a.x-dockwarden: unknown field `concurent`")
    );
    let spec = ok("services:\n  a: {image: a, volumes: ['v:/d']}\nvolumes:\n  v: {x-dockwarden: {backup: {enable: false}}, x-other: 1}\n");
    assert_eq!(spec.volumes["v"].backup().enable, Some(false));
    assert!(
        errors("services:\n  a: {image: a}\nvolumes:\n  v:\n    x-dockwarden: {backup: {stdout: pg_dump}}\n")[0]
            .starts_with("compose.yaml:5: volumes.v.x-dockwarden: backup: pre, post, stdout and verify belong")
    );
    let endless = errors("services:\n  a:\n    image: a\n    x-dockwarden: {start_timeout_s: 86401}\n");
    assert!(endless[0].contains("services.a.x-dockwarden.start_timeout_s: 86401 s are more than a day"), "{endless:?}");
}

#[test]
fn what_has_no_effect_or_no_meaning_is_said() {
    let one = |body: &str| errors(&format!("services:\n  a:\n    image: a\n{body}"));
    for (body, path) in [
        ("    ulimits: [nofile]\n", "services.a.ulimits"),
        ("    deploy: {resources: {reservations: {devices: {driver: nvidia}}}}\n", "services.a.deploy.resources.reservations.devices"),
        ("networks:\n  n: {ipam: {config: {subnet: 10.0.0.0/8}}}\n", "networks.n.ipam.config"),
        ("    volumes: [{type: tmpfs, target: /t, tmpfs: {mode: 99999}}]\n", "services.a.volumes[0].tmpfs.mode"),
        ("    volumes: [{type: tmpfs, target: /t, tmpfs: {mode: rwx}}]\n", "services.a.volumes[0].tmpfs.mode"),
        ("    configs: [{source: c, mode: -1}]\nconfigs:\n  c: {content: x}\n", "services.a.configs[0].mode"),
    ] {
        let found = one(body);
        assert_eq!(found.len(), 1, "{body}: {found:?}");
        assert!(found[0].contains(&format!(" {path}: ")), "{body}: {found:?}");
    }
    let spec = ok("services:\n  a: {image: a, secrets: [s]}\nsecrets:\n  s: {content: x, driver_opts: {k: v}}\n");
    let note =
        Unsupported { path: "secrets.s.driver_opts".into(), reason: "driver_opts have no effect: contents are delivered as files".into() };
    assert_eq!(spec.unsupported, [note]);
}

#[test]
fn refusals_name_the_rule_they_break() {
    let rules = |text: &str| {
        let errors = run(&[text], &[], &[], &[]).expect_err("refused").0;
        errors.into_iter().map(|e| e.rule).collect::<Vec<_>>()
    };
    let service = |body: &str| rules(&format!("services:\n  a:\n    image: a\n{body}"));
    assert_eq!(rules("a: 1\n---\nb: 2\n"), [Some("yaml.ambiguous")]);
    assert_eq!(rules("a: 1\na: 2\n"), [Some("yaml.ambiguous")]);
    assert_eq!(rules("a: [\n"), [Some("yaml.invalid")]);
    assert_eq!(rules(&format!("x-a: {}{}\n", "[".repeat(100), "]".repeat(100))), [Some("yaml.bomb")]);
    assert_eq!(rules(&"[".repeat(100_000)), [Some("yaml.bomb")]);
    assert_eq!(service("    privilegd: true\n"), [Some("yaml.invalid")]);
    assert_eq!(service("    env_file: ../x\n"), [Some("path.traversal")]);
    assert_eq!(service("    env_file: missing\n"), [None]);
    assert_eq!(service("    volumes: ['~/x:/x']\n"), [Some("bind.outside")]);
    assert_eq!(service("    extends: {service: b, file: ../x.yaml}\n"), [Some("path.traversal")]);
    assert_eq!(service("include: ['https://evil.example/x.git']\n"), [Some("include.remote")]);
    assert_eq!(service("include: [{path: 'oci://evil.example/x'}]\n"), [Some("include.remote")]);
    assert_eq!(service("name: billing\n"), [Some("project.name")]);
    assert_eq!(rules("services:\n  a: {image: 'a b'}\n"), [Some("image.malformed")]);
}

#[test]
fn a_bind_of_a_volume_is_relative_to_the_project() {
    let spec = ok("services:\n  a: {image: a, volumes: ['v:/v']}\nvolumes:\n  v: {driver_opts: {type: none, o: bind, device: ./data}}\n");
    assert_eq!(spec.volumes["v"].driver_opts["device"], "/srv/shop/data");
}

#[test]
fn brackets_in_quoted_text_are_no_nesting() {
    let script: String = (0..700).map(|i| format!("      echo \"\\\\033[0;3{}m\"\n", i % 8)).collect();
    let spec = ok(&format!("services:\n  a:\n    image: a\n    entrypoint:\n    - |\n{script}"));
    assert_eq!(svc(&spec, "a").entrypoint.as_ref().map(Vec::len), Some(1));
}

#[test]
fn the_text_tells_which_variables_it_uses_and_what_it_wrote_itself() {
    let variables = BTreeMap::from([("PW".to_owned(), "hunter2".to_owned())]);
    let text = "services:\n  a:\n    image: a\n    env_file: e\n    environment:\n      A: ${PW}\n      B: x-${PW}-y\n      C: \"literal ${NO:-d}\"\n      PW:\n";
    let input = LoadInput {
        name: StackName::new("shop").unwrap(),
        project_dir: "/srv/shop",
        sources: vec![Source { path: "compose.yaml".into(), text: text.into() }],
        variables: &variables,
        profiles: &[],
        files: &Memory(BTreeMap::from([("e", "C=from file\nD=1\n")])),
        quotas: &Quotas::default(),
    };
    let loaded = load_all(&input).unwrap();
    let places = [("NO", "services.a.environment.C"), ("PW", "services.a.environment.A")];
    assert_eq!(loaded.references, places.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect());
    let literals = [("A", ""), ("B", "x--y"), ("D", ""), ("PW", "")];
    assert_eq!(loaded.env_from_files, literals.iter().map(|(k, v)| (("a".to_owned(), (*k).to_owned()), (*v).to_owned())).collect());
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,200}") {
        let mut unset = Vec::new();
        let _ = interpolate::text(&text, &|_| None, &mut unset);
        let _ = dotenv(&text, ".env", &BTreeMap::new());
        let _ = run(&[&text], &[], &[], &[]);
    }

    #[test]
    fn arbitrary_values_of_known_keys_never_panic(
        key in prop::sample::select(vec!["ports", "volumes", "command", "environment", "tmpfs", "healthcheck", "devices", "ulimits", "deploy",
            "networks", "depends_on", "extra_hosts", "configs", "secrets", "env_file", "build", "logging", "expose", "restart", "image", "extends"]),
        value in "[-a-z0-9:/.$\\{\\}\\[\\], ~!*&#'\"]{0,40}",
    ) {
        let one = format!("services:\n  a:\n    image: a\n    {key}: {value}\n");
        let list = format!("services:\n  a:\n    image: a\n    {key}:\n      - {value}\n      - {value}\n");
        let _ = run(&[&one, &list], &[], &[], &[]);
        let _ = run(&[&list], &[], &[], &[]);
    }
}
