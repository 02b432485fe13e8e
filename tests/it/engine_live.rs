//! The Docker driver against the engine that runs here: what a pure test cannot know. Makes its own image FROM scratch, labels all it
//! makes with its own run, and takes it away again by name, also when a test fails.

use bytes::Bytes;
use chrono::Utc;
use dockwarden::engine::docker::DockerEngine;
use dockwarden::engine::*;
use dockwarden::gate::{self, CallFacts, Decision, Permit};
use dockwarden::model::ids::{CallId, EngineName, ImageRef};
use dockwarden::model::observed::*;
use dockwarden::model::spec::{Healthcheck, MountKind, NetworkSpec, Restart};
use dockwarden::model::verdict::Verdict;
use futures_util::StreamExt;
use std::collections::BTreeMap;
use std::future::Future;
use std::io::Read;
use std::time::Duration;

const LABEL: &str = "dockwarden.test";

fn permit() -> Permit {
    let facts = CallFacts {
        agent: "tester".into(),
        tool: "deploy".into(),
        mutates: true,
        preview: false,
        stack: None,
        environment: None,
        service: None,

        arguments: Default::default(),
        on_behalf: vec![],
    };
    let decision = Decision { verdict: Verdict::Allow, findings: Vec::new(), limits: Vec::new(), approval: None, hint: None };
    gate::permit(&CallId::new("call-1").unwrap(), &facts, &decision, Verdict::Allow, &[], false).unwrap()
}

fn name(s: &str) -> EngineName {
    EngineName::new(s).unwrap()
}

/// One test's engine, its run name and its image.
struct Ground {
    engine: DockerEngine,
    run: String,
    image: ImageRef,
}

impl Ground {
    fn labels(&self) -> BTreeMap<String, String> {
        BTreeMap::from([(LABEL.to_owned(), self.run.clone())])
    }

    fn filter(&self) -> Vec<String> {
        vec![format!("{LABEL}={}", self.run)]
    }

    fn name(&self, part: &str) -> EngineName {
        name(&format!("{}-{part}", self.run))
    }

    /// A container that sleeps until it is told to stop.
    fn spec(&self, part: &str) -> ContainerSpec {
        self.shell(part, "trap 'exit 7' TERM; echo out; echo err >&2; while :; do sleep 0.1; done")
    }

    fn shell(&self, part: &str, script: &str) -> ContainerSpec {
        let command = ["/bin/busybox", "sh", "-c", script].map(String::from).to_vec();
        ContainerSpec { command: Some(command), labels: self.labels(), ..ContainerSpec::new(self.name(part), self.image.clone()) }
    }

    async fn started(&self, spec: &ContainerSpec) -> EngineName {
        let id = self.engine.create_container(&permit(), spec).await.unwrap();
        self.engine.start(&permit(), &id).await.unwrap();
        id
    }

    async fn detail(&self, id: &EngineName) -> ContainerDetail {
        self.engine.container(id).await.unwrap().unwrap()
    }

    /// Runs a shell line and gives its exit code and output.
    async fn sh(&self, id: &EngineName, line: &str) -> (Option<i64>, String) {
        let command = ["/bin/busybox", "sh", "-c", line].map(String::from).to_vec();
        let spec = ExecSpec { command, user: None, env: vec!["GREETING=hi".into()], timeout: Duration::from_secs(20), max_output: 10_000 };
        let outcome = self.engine.exec(&permit(), id, &spec).await.unwrap();
        (outcome.exit_code, outcome.output)
    }

    async fn network(&self, part: &str) -> EngineName {
        let create = NetworkCreate { name: self.name(part), spec: NetworkSpec::default(), labels: self.labels() };
        self.engine.create_network(&permit(), &create).await.unwrap();
        self.name(part)
    }

    async fn clean(&self) {
        let p = permit();
        for c in self.engine.containers(&self.filter()).await.unwrap() {
            self.engine.remove_container(&p, &c.id, true).await.unwrap();
        }
        for n in self.engine.networks(&self.filter()).await.unwrap() {
            self.engine.remove_network(&p, &n.id).await.unwrap();
        }
        for v in self.engine.volumes(&self.filter()).await.unwrap() {
            self.engine.remove_volume(&p, &v.name).await.unwrap();
        }
        self.engine.remove_image(&p, &self.image).await.unwrap();
    }
}

/// A root file system with a static busybox, as a tar.
fn busybox() -> Bytes {
    let mut tar = tar::Builder::new(Vec::new());
    let mut put = |path: &str, kind: tar::EntryType, mode: u32, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, content).unwrap();
    };
    put("bin/", tar::EntryType::Directory, 0o755, &[]);
    put("tmp/", tar::EntryType::Directory, 0o1777, &[]);
    put("bin/busybox", tar::EntryType::Regular, 0o755, &std::fs::read("/usr/bin/busybox").expect("Debian's static busybox"));
    put("bin/sh", tar::EntryType::Regular, 0o755, &std::fs::read("/usr/bin/busybox").expect("Debian's static busybox"));
    Bytes::from(tar.into_inner().unwrap())
}

/// Runs a test on its own ground and cleans up whatever happens in it.
async fn on_ground<F: Future<Output = ()> + Send + 'static>(what: &str, test: impl FnOnce(std::sync::Arc<Ground>) -> F) {
    let engine = DockerEngine::connect(None).unwrap();
    let run = format!("dwt-{what}-{}", std::process::id());
    let image = ImageRef::new(format!("{run}:1")).unwrap();
    let id = engine.import_image(&permit(), &image, busybox()).await.unwrap();
    assert!(id.starts_with("sha256:"), "{id}");
    let ground = std::sync::Arc::new(Ground { engine, run, image });
    let result = tokio::spawn(test(ground.clone())).await;
    ground.clean().await;
    if let Err(panic) = result {
        std::panic::resume_unwind(panic.into_panic());
    }
}

#[tokio::test]
async fn networks_and_aliases() {
    on_ground("net", |g| async move {
        let (one, two) = (g.network("one").await, g.network("two").await);
        let again = NetworkCreate { name: one.clone(), spec: NetworkSpec::default(), labels: g.labels() };
        assert!(matches!(g.engine.create_network(&permit(), &again).await, Err(EngineError::Conflict(_))), "a second network of one name");
        let attach =
            |n: &EngineName, alias: &str| NetworkAttachment { network: n.to_string(), aliases: vec![alias.into()], ..Default::default() };
        let mut web = g.spec("web");
        web.networks = vec![attach(&one, "web"), attach(&two, "web-two")];
        let web = g.started(&web).await;
        let mut client = g.spec("client");
        client.networks = vec![attach(&one, "client")];
        let client = g.started(&client).await;
        let d = g.detail(&web).await;
        assert_eq!(d.networks, BTreeMap::from([(one.to_string(), vec!["web".to_owned()]), (two.to_string(), vec!["web-two".to_owned()])]));
        let (code, output) = g.sh(&client, "busybox nslookup web 127.0.0.11").await;
        assert!(code == Some(0) && output.contains(&d.addresses[one.as_str()]), "{code:?} {output}");
        g.engine.connect(&permit(), &client, &attach(&two, "late")).await.unwrap();
        g.engine.connect(&permit(), &client, &attach(&two, "late")).await.unwrap();
        assert_eq!(g.sh(&web, "busybox nslookup late 127.0.0.11").await.0, Some(0));
        assert!(matches!(g.engine.remove_network(&permit(), &two).await, Err(EngineError::Refused(_))), "endpoints are active");
        for _ in 0..2 {
            g.engine.disconnect(&permit(), &client, &two).await.unwrap();
        }
        g.engine.disconnect(&permit(), &web, &two).await.unwrap();
        for _ in 0..2 {
            g.engine.remove_network(&permit(), &two).await.unwrap();
        }
        g.engine.disconnect(&permit(), &web, &two).await.unwrap();
        let mut lost = g.spec("lost");
        lost.networks = vec![attach(&g.name("none"), "x")];
        let error = g.engine.create_container(&permit(), &lost).await.unwrap_err();
        assert!(matches!(error, EngineError::NotFound { what: "network", .. }), "{error}");
        assert_eq!(g.engine.network(&one).await.unwrap().unwrap().containers.len(), 2);
    })
    .await;
}

#[tokio::test]
async fn life_of_a_container() {
    on_ground("life", |g| async move {
        let mut events = g.engine.events(&g.filter(), None).await.unwrap();
        let mut spec = g.spec("a");
        spec.restart = Restart::UnlessStopped;
        spec.files = vec![InjectedFile { path: "/run/secrets/key".into(), content: b"k1".to_vec(), mode: 0o400, uid: 5, gid: 6 }];
        spec.files.push(InjectedFile { path: "/tmp/note".into(), ..spec.files[0].clone() });
        let id = g.started(&spec).await;
        assert!(matches!(g.engine.create_container(&permit(), &spec).await, Err(EngineError::Conflict(_))));
        g.engine.start(&permit(), &id).await.unwrap();
        let look = "busybox cat /run/secrets/key; busybox stat -c ' %a %u %g' /run/secrets/key; busybox stat -c '%a' /run/secrets /tmp";
        assert_eq!(g.sh(&id, look).await, (Some(0), "k1 400 5 6\n755\n1777\n".into()));
        assert_eq!(g.sh(&id, "echo $GREETING; exit 3").await, (Some(3), "hi\n".into()));
        let rows = g.engine.containers(&g.filter()).await.unwrap();
        assert_eq!((rows.len(), &rows[0].id, rows[0].name.as_str(), rows[0].state), (1, &id, g.name("a").as_str(), RunState::Running));
        let d = g.detail(&id).await;
        assert_eq!((d.restart_policy.as_str(), d.state, d.labels), ("unless-stopped", RunState::Running, g.labels()));
        g.engine.set_restart(&permit(), &id, Restart::No).await.unwrap();
        g.engine.rename(&permit(), &id, &g.name("b")).await.unwrap();
        for paused in [true, true, false, false] {
            g.engine.pause(&permit(), &id, paused).await.unwrap();
        }
        for _ in 0..2 {
            g.engine.stop(&permit(), &id, Duration::from_secs(10)).await.unwrap();
        }
        let d = g.detail(&id).await;
        assert_eq!((d.name.as_str(), d.restart_policy.as_str(), d.state, d.exit_code), (g.name("b").as_str(), "no", RunState::Exited, 7));
        assert!(matches!(g.engine.pause(&permit(), &id, true).await, Err(EngineError::Conflict(_) | EngineError::Refused(_))));
        g.engine.restart(&permit(), &id, Duration::from_secs(1)).await.unwrap();
        for _ in 0..2 {
            g.engine.remove_container(&permit(), &id, true).await.unwrap();
        }
        assert_eq!(g.engine.container(&id).await.unwrap(), None);
        let mut seen = Vec::new();
        while seen.last().is_none_or(|a| a != "destroy") {
            let event = tokio::time::timeout(Duration::from_secs(60), events.next()).await.expect("an event in time").unwrap().unwrap();
            assert_eq!((&event.container, &event.labels), (&id, &g.labels()));
            seen.push(event.action);
        }
        // An engine of API 1.41 says `stop` after `die`, one of 1.45 before it.
        let stop = seen.iter().position(|a| a == "stop").unwrap();
        assert!(matches!(stop, 2 | 3), "{seen:?}");
        seen.remove(stop);
        assert_eq!(seen, ["start", "kill", "die", "start", "kill", "die", "destroy"]);
    })
    .await;
}

#[tokio::test]
async fn health_logs_and_stats() {
    on_ground("watch", |g| async move {
        let mut spec = g.spec("a");
        let test = ["CMD", "/bin/busybox", "test", "-e", "/tmp/ok"].map(String::from).to_vec();
        spec.healthcheck = Some(Healthcheck {
            test: test.clone(),
            interval_ms: Some(200),
            timeout_ms: Some(2000),
            retries: Some(1),
            ..Healthcheck::default()
        });
        let before = Utc::now();
        let mut events = g.engine.events(&g.filter(), Some(before)).await.unwrap();
        let id = g.started(&spec).await;
        let mut health = Vec::new();
        while health.len() < 2 {
            let event = tokio::time::timeout(Duration::from_secs(60), events.next()).await.expect("an event in time").unwrap().unwrap();
            if let Some(state) = event.action.strip_prefix("health_status: ") {
                health.push(state.to_owned());
                g.sh(&id, "busybox touch /tmp/ok").await;
            }
        }
        assert_eq!(health, ["unhealthy", "healthy"]);
        let d = g.detail(&id).await;
        assert_eq!((d.health, d.health_test), (HealthState::Healthy, Some(test)));
        assert_eq!(g.engine.containers(&g.filter()).await.unwrap()[0].health, HealthState::Healthy);
        let query = LogQuery { tail: None, since: None, max_bytes: 1000 };
        let lines = g.engine.logs(&id, &query).await.unwrap();
        let mut texts: Vec<_> = lines.iter().map(|l| (l.text.as_str(), l.stderr)).collect();
        texts.sort_unstable();
        assert_eq!(texts, [("err", true), ("out", false)]);
        assert!(lines.iter().all(|l| l.at >= before), "{lines:?}");
        let sample = g.engine.stats(&id).await.unwrap();
        assert!(sample.memory_bytes > 0 && sample.memory_limit_bytes > sample.memory_bytes && sample.pids >= 1, "{sample:?}");
        let mut tty = g.shell("tty", "echo one; echo two; while :; do sleep 0.1; done");
        tty.tty = true;
        let tty = g.started(&tty).await;
        g.sh(&tty, "until busybox pidof sleep; do :; done").await;
        let lines = g.engine.logs(&tty, &LogQuery { tail: Some(1), ..query }).await.unwrap();
        assert_eq!(lines.iter().map(|l| l.text.as_str()).collect::<Vec<_>>(), ["two"]);
    })
    .await;
}

#[tokio::test]
async fn archives_volumes_and_execs_within_bounds() {
    on_ground("data", |g| async move {
        let volume = VolumeCreate { name: g.name("data"), driver: None, driver_opts: BTreeMap::new(), labels: g.labels() };
        for _ in 0..2 {
            g.engine.create_volume(&permit(), &volume).await.unwrap();
        }
        let mount = |kind, source: &str| EngineMount { source: Some(source.to_owned()), ..EngineMount::new(kind, "/data".into()) };
        let mut spec = g.spec("a");
        spec.mounts = vec![mount(MountKind::Volume, g.name("data").as_str())];
        let id = g.started(&spec).await;
        assert!(matches!(g.engine.remove_volume(&permit(), &g.name("data")).await, Err(EngineError::Conflict(_))));
        let mut tar = tar::Builder::new(Vec::new());
        let content = vec![b'x'; 300_000];
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, "f", content.as_slice()).unwrap();
        let chunks: Vec<Bytes> = tar.into_inner().unwrap().chunks(7000).map(Bytes::copy_from_slice).collect();
        g.engine.upload(&permit(), &id, "/data", futures_util::stream::iter(chunks).boxed()).await.unwrap();
        assert_eq!(g.sh(&id, "busybox wc -c < /data/f").await, (Some(0), "300000\n".into()));
        let chunks: Vec<Bytes> = g.engine.download(&id, "/data").await.unwrap().map(|c| c.unwrap()).collect().await;
        let mut back = Vec::new();
        let bytes = chunks.concat();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let entry = archive.entries().unwrap().map(Result::unwrap).find(|e| e.path().unwrap().ends_with("data/f"));
        entry.unwrap().read_to_end(&mut back).unwrap();
        assert!(back == content, "the file comes back as it went");
        assert!(matches!(g.engine.download(&id, "/none").await.err(), Some(EngineError::NotFound { what: "path" | "container", .. })));
        let line = |script: &str, timeout: u64| ExecSpec {
            command: ["/bin/busybox", "sh", "-c", script].map(String::from).to_vec(),
            user: Some("5".into()),
            env: vec![],
            timeout: Duration::from_millis(timeout),
            max_output: 4,
        };
        let outcome = g.engine.exec(&permit(), &id, &line("echo 1234567", 20_000)).await.unwrap();
        assert_eq!(outcome, ExecOutcome { exit_code: Some(0), output: "1234".into(), truncated: true });
        let outcome = g.engine.exec(&permit(), &id, &line("sleep 30", 300)).await.unwrap();
        assert_eq!(outcome, ExecOutcome { exit_code: None, output: String::new(), truncated: false });
        let outcome = g.engine.exec(&permit(), &id, &ExecSpec { command: vec!["/none".into()], ..line("", 20_000) }).await;
        assert!(matches!(&outcome, Ok(o) if matches!(o.exit_code, Some(126 | 127))), "{outcome:?}");
        let mut bad = g.spec("bad");
        bad.mounts = vec![mount(MountKind::Bind, "/nonexistent/of/this/test")];
        let error = g.engine.create_container(&permit(), &bad).await.unwrap_err();
        assert!(matches!(&error, EngineError::Refused(t) if t.contains("bind source path does not exist")), "{error}");
        assert!(!std::path::Path::new("/nonexistent").exists(), "host paths are never made");
    })
    .await;
}

#[tokio::test]
async fn ports_images_and_what_is_refused() {
    on_ground("port", |g| async move {
        let port = |host: Option<u16>| PortBinding {
            host_ip: "127.0.0.1".into(),
            host_port: host.map(|p| p.to_string()),
            container_port: 80,
            protocol: "tcp".into(),
        };
        let mut one = g.spec("one");
        one.ports = vec![port(None)];
        let one = g.started(&one).await;
        let chosen = g.detail(&one).await.ports[0].host_port;
        let mut two = g.spec("two");
        two.ports = vec![port(Some(chosen))];
        let two = g.engine.create_container(&permit(), &two).await.unwrap();
        let error = g.engine.start(&permit(), &two).await.unwrap_err();
        assert!(matches!(&error, EngineError::Refused(t) if t.contains("port is already allocated")), "{error}");
        let wanted = PublishedPort { host_ip: "127.0.0.1".into(), host_port: chosen, container_port: 80, protocol: "tcp".into() };
        assert_eq!(g.detail(&two).await.ports, [wanted]);

        let target = ImageRef::new(format!("dockwarden/{}/web:r1", g.run)).unwrap();
        g.engine.tag(&permit(), &g.image, &target).await.unwrap();
        let image = g.engine.image(&target).await.unwrap().unwrap();
        assert!(image.tags.contains(&target.to_string()) && image.arch == g.engine.info().await.unwrap().arch, "{image:?}");
        assert!(g.engine.images().await.unwrap().iter().any(|i| i.id == image.id));
        g.engine.remove_image(&permit(), &target).await.unwrap();
        assert_eq!(g.engine.image(&target).await.unwrap(), None);
        let mut lost = g.spec("lost");
        lost.image = ImageRef::new("sha256:0000000000000000000000000000000000000000000000000000000000000000").unwrap();
        let error = g.engine.create_container(&permit(), &lost).await.unwrap_err();
        assert!(matches!(error, EngineError::NotFound { what: "image", .. }), "{error}");
        let mut half = g.spec("half");
        half.files = vec![InjectedFile { path: "/etc/x".into(), content: vec![], mode: 0o400, uid: 0, gid: 0 }];
        half.read_only = true;
        assert!(g.engine.create_container(&permit(), &half).await.is_err(), "files cannot go into a read-only root");
        assert_eq!(g.engine.container(&g.name("half")).await.unwrap(), None, "and nothing half-made is left");
    })
    .await;
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_unreachable() {
    let error = DockerEngine::connect(Some("unix:///nonexistent/engine.sock")).unwrap_err();
    assert!(matches!(error, EngineError::Unreachable { .. }), "{error}");
    let engine = DockerEngine::connect(Some("tcp://127.0.0.1:1")).unwrap();
    let error = engine.info().await.unwrap_err();
    assert!(matches!(&error, EngineError::Unreachable { endpoint, .. } if endpoint == "tcp://127.0.0.1:1"), "{error}");
    for bad in ["x/kill?signal=KILL&", "../x", "", "a b", "x#y", "x%2f"] {
        assert!(EngineName::new(bad).is_err(), "{bad:?} must not become a name an engine could be asked about");
    }
}
