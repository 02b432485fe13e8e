//! The state of the fake engine: plain maps, their look-ups, and the images. What calls do to it is in `change` and `run`,
//! how it is shown in `objects`.

use super::{Behaviour, ENDPOINT, ExecScript, RunScript};
use crate::engine::{ContainerSpec, EngineError, EngineResult};
use crate::model::ids::{EngineName, ImageRef};
use crate::model::observed::*;
use crate::model::spec::{IpamPool, Restart};
use chrono::{DateTime, TimeDelta, Utc};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use tokio::sync::mpsc::UnboundedSender;

/// A subscriber of events: the labels it asked for and its end of the line.
pub(super) type Listener = (Vec<String>, UnboundedSender<EngineResult<EngineEvent>>);

/// Everything the fake engine holds.
#[derive(Default)]
pub(crate) struct World {
    pub containers: BTreeMap<EngineName, Container>,
    pub images: Vec<Image>,
    /// What tags name in the registry: reference -> digest.
    pub remote: BTreeMap<String, String>,
    /// What the registry has, `repo@digest`: also what no tag names any more.
    pub manifests: BTreeMap<String, Behaviour>,
    pub networks: BTreeMap<String, Network>,
    pub volumes: BTreeMap<String, Volume>,
    pub failures: BTreeMap<String, VecDeque<EngineError>>,
    /// Names of containers that cannot be looked at.
    pub silent: std::collections::BTreeSet<String>,
    pub calls: Vec<String>,
    pub graces: Vec<(String, std::time::Duration)>,
    pub violations: Vec<String>,
    pub history: Vec<EngineEvent>,
    pub listeners: Vec<Listener>,
    pub exec_script: Option<ExecScript>,
    pub run_script: Option<RunScript>,
    pub stats: Option<StatsSample>,
    pub occupied: BTreeSet<u16>,
    pub missing_paths: BTreeSet<String>,
    pub down: bool,
    pub connects_fail: bool,
    pub connect_failures: u64,
    counter: u64,
    clock: Option<DateTime<Utc>>,
}

/// An image with its behaviour.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub id: String,
    pub tags: Vec<String>,
    pub repo_digests: Vec<String>,
    pub behaviour: Behaviour,
    pub created: DateTime<Utc>,
}

/// A container.
#[derive(Debug, Clone)]
pub(crate) struct Container {
    pub id: EngineName,
    pub name: String,
    pub spec: ContainerSpec,
    pub image_id: String,
    pub behaviour: Behaviour,
    pub state: RunState,
    pub health: HealthState,
    pub exit_code: i64,
    pub oom_killed: bool,
    pub error: String,
    pub restart: Restart,
    pub restart_count: u64,
    pub created: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
    pub networks: BTreeMap<String, Endpoint>,
    pub mounts: Vec<MountInfo>,
    pub anonymous: BTreeSet<String>,
    pub bound: Vec<PublishedPort>,
    pub pid: i64,
    pub last_health_output: Option<String>,
    pub logs: Vec<LogLine>,
    pub files: BTreeMap<String, Vec<u8>>,
}

/// A container's end on a network.
#[derive(Debug, Clone, Default)]
pub(crate) struct Endpoint {
    pub aliases: Vec<String>,
    pub fixed: Option<String>,
    pub address: String,
}

/// A network.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    pub id: EngineName,
    pub driver: String,
    pub internal: bool,
    pub labels: BTreeMap<String, String>,
    pub options: BTreeMap<String, String>,
    pub ipv6: bool,
    pub attachable: bool,
    pub pools: Vec<IpamPool>,
    pub ipam_driver: String,
    pub number: u64,
    pub hosts: u64,
}

/// A volume.
#[derive(Debug, Clone)]
pub(crate) struct Volume {
    pub driver: String,
    pub labels: BTreeMap<String, String>,
    pub options: BTreeMap<String, String>,
    pub created: DateTime<Utc>,
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Container {
    /// Whether it holds ports, addresses and volumes: running or paused.
    pub fn is_up(&self) -> bool {
        matches!(self.state, RunState::Running | RunState::Paused)
    }

    /// The health check in force: the container's own, else the image's; `NONE` takes it away.
    pub fn health_test(&self) -> Option<Vec<String>> {
        let own = self.spec.healthcheck.as_ref().map(|h| h.test.clone()).filter(|t| !t.is_empty());
        own.or_else(|| self.behaviour.health_test.clone()).filter(|t| t.first().is_some_and(|w| w != "NONE"))
    }
}

/// `repo` becomes `repo:latest`; references with a tag, a digest or an id stay.
pub(super) fn with_tag(reference: &str) -> String {
    let last = reference.rsplit('/').next().unwrap_or(reference);
    if reference.contains('@') || reference.starts_with("sha256:") || last.contains(':') {
        reference.to_owned()
    } else {
        format!("{reference}:latest")
    }
}

/// Whether `labels` satisfies every filter, `key=value` or `key`.
pub(super) fn matches(labels: &BTreeMap<String, String>, filters: &[String]) -> bool {
    filters.iter().all(|f| match f.split_once('=') {
        Some((k, v)) => labels.get(k).is_some_and(|have| have == v),
        None => labels.contains_key(f),
    })
}

/// The engine's answer to an unknown container.
pub(super) fn no_container(id: &str) -> EngineError {
    EngineError::NotFound { what: "container", detail: format!("No such container: {id}") }
}

impl World {
    /// Refuses while down, and where the script asked for a failure.
    pub fn admit(&mut self, method: &str) -> EngineResult<()> {
        if self.down {
            return Err(EngineError::Unreachable { endpoint: ENDPOINT.into(), detail: "connection refused (scripted)".into() });
        }
        match self.failures.get_mut(method).and_then(VecDeque::pop_front) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Now, later than any moment it gave before, so that events order.
    pub fn now(&mut self) -> DateTime<Utc> {
        let now = Utc::now();
        let now = match self.clock {
            Some(last) if last >= now => last + TimeDelta::nanoseconds(1000),
            _ => now,
        };
        self.clock = Some(now);
        now
    }

    /// The next number of a sequence shared by everything.
    pub fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// A 64-digit id that depends only on the order of calls.
    pub fn new_id(&mut self, kind: &str) -> EngineName {
        let n = self.next();
        EngineName::new(hex(&format!("{kind}#{n}"))).expect("hexadecimal digits make a name")
    }

    /// A container by full id, name, or a unique beginning of its id.
    pub fn find(&self, id: &str) -> Option<&Container> {
        let by_name = || self.containers.values().find(|c| c.name == id);
        let by_prefix = || {
            let mut hits = self.containers.values().filter(|c| id.len() >= 4 && c.id.as_str().starts_with(id));
            hits.next().filter(|_| hits.next().is_none())
        };
        self.containers.get(id).or_else(by_name).or_else(by_prefix)
    }

    /// As [`Self::find`], to change it; the engine's error when there is none.
    pub fn find_mut(&mut self, id: &str) -> EngineResult<&mut Container> {
        let key = self.find(id).map(|c| c.id.clone()).ok_or_else(|| no_container(id))?;
        Ok(self.containers.get_mut(&key).expect("its key was just read"))
    }

    /// The name of a container given by id, for transcripts; anything else as it is.
    pub fn display(&self, subject: &str) -> String {
        let (first, rest) = subject.split_once(' ').map_or((subject, None), |(a, b)| (a, Some(b)));
        let name = self.containers.get(first).map_or(first, |c| c.name.as_str());
        let name = self.networks.iter().find(|(_, n)| n.id.as_str() == name).map_or(name, |(n, _)| n.as_str());
        rest.map_or_else(|| name.to_owned(), |rest| format!("{name} {}", self.display(rest)))
    }

    /// A network's name by name or id.
    pub fn network_name(&self, name_or_id: &str) -> Option<String> {
        if self.networks.contains_key(name_or_id) {
            return Some(name_or_id.to_owned());
        }
        self.networks.iter().find(|(_, n)| n.id.as_str() == name_or_id).map(|(name, _)| name.clone())
    }

    /// An image by id, tag or repo digest.
    pub fn image(&self, reference: &str) -> Option<&Image> {
        let tagged = with_tag(reference);
        let hits = |i: &&Image| i.id == reference || i.tags.contains(&tagged) || i.repo_digests.iter().any(|d| d == reference);
        self.images.iter().find(hits)
    }

    /// Puts an image into the registry under a tag; equal behaviour is equal content.
    pub fn publish(&mut self, reference: &str, behaviour: Behaviour) -> String {
        let tag = with_tag(reference);
        let digest = format!("sha256:{}", hex(&format!("{behaviour:?}")));
        self.manifests.insert(format!("{}@{digest}", repository(&tag)), behaviour);
        self.remote.insert(tag, digest.clone());
        digest
    }

    /// `repo@digest` of what a reference names in the registry.
    pub fn published(&self, reference: &str) -> EngineResult<String> {
        let tag = with_tag(reference);
        let named = match tag.split_once('@') {
            // A reference with both means its digest.
            Some((named, digest)) => Some(format!("{}@{digest}", repository(named))),
            None => self.remote.get(&tag).map(|digest| format!("{}@{digest}", repository(&tag))),
        };
        named.filter(|n| self.manifests.contains_key(n)).ok_or_else(|| EngineError::NotFound {
            what: "image",
            detail: format!("manifest for {tag} not found: manifest unknown: manifest unknown"),
        })
    }

    /// Makes an image and moves the tag to it; `digest` (`repo@sha256:...`) of one that was pulled.
    pub fn add_image(&mut self, reference: &str, behaviour: Behaviour, digest: Option<String>) -> String {
        let tag = with_tag(ImageRef::new(reference).expect("the reference of a scripted image must be valid").as_str());
        let id = format!("sha256:{}", self.new_id(&tag));
        let repo_digests = digest.into_iter().collect();
        let created = self.now();
        self.images.push(Image { id: id.clone(), tags: Vec::new(), repo_digests, behaviour, created });
        if !tag.contains('@') {
            self.move_tag(&id, &tag);
        }
        id
    }

    /// Takes `tag` from whichever image has it and gives it to `id`.
    pub fn move_tag(&mut self, id: &str, tag: &str) {
        for image in &mut self.images {
            image.tags.retain(|t| t != tag);
            if image.id == id {
                image.tags.push(tag.to_owned());
            }
        }
    }
}

/// The repository part of a tagged reference.
fn repository(tag: &str) -> &str {
    match tag.rsplit_once(':') {
        Some((repo, last)) if !last.contains('/') => repo,
        _ => tag,
    }
}

/// SHA-256 in hexadecimal.
fn hex(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}
