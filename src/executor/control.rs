//! Fronts as the engine sees them: their image, made of our own binary; their container; and the commands sent to a running one. What is decided
//! about them lies in `front`.

use super::run::{Fail, Run};
use super::{Executor, names, render};
use crate::engine::{ContainerSpec, EngineError, EngineMount, ExecSpec, NetworkAttachment};
use crate::model::front::{Command, DIR, MAX_ROUTES, ROUTES_FILE, Reply, Routes, SETTLE, SOCKET, Status};
use crate::model::ids::{EngineName, ImageRef, ServiceName};
use crate::model::labels;
use crate::model::observed::RunState;
use crate::model::spec::{Logging, MountKind};
use crate::planner::front::{fronting, hash};
use chrono::Utc;
use futures_util::StreamExt;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Repository of the images fronts are made of; the tag is a hash of the binary.
const REPOSITORY: &str = "dockwarden/front";
/// The binary inside.
const BINARY: &str = "/dockwarden";
/// Nobody: it needs no right but its own directory's.
const UID: u32 = 65534;
/// Bounds of a front's container: 4096 sessions of 32 KiB and what the kernel needs for them; name look-ups use threads.
const MEMORY: u64 = 512 << 20;
const PIDS: i64 = 1024;
/// Time for a command in a running front, beyond what it waits itself.
const COMMAND: Duration = Duration::from_secs(10);
/// A command that applies routes waits so long for sessions on what left them: most requests have ended by then, and no second command is needed.
const SETTLE_FOR: Duration = Duration::from_millis(300);
/// Pause between looks at a front that starts.
pub(super) const LOOK: Duration = Duration::from_millis(30);

impl Executor {
    /// Tag of the image of our own binary.
    pub(super) async fn front_tag(&self) -> Result<ImageRef, Fail> {
        let tag = self.front_tag.get_or_try_init(|| async {
            let path = self.front_binary.clone();
            let hashed = tokio::task::spawn_blocking(move || sum(&path)).await.expect("hashing does not panic");
            let sum = hashed.map_err(|e| Fail::Refused(format!("our own binary cannot be read: {e}")))?;
            ImageRef::new(format!("{REPOSITORY}:{sum}")).map_err(|e| Fail::Refused(e.to_string()))
        });
        tag.await.cloned()
    }
}

fn sum(path: &Path) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    let mut file = std::fs::File::open(path)?;
    std::io::copy(&mut file, &mut HashWriter(&mut hash))?;
    Ok(hash.finalize().iter().take(6).map(|b| format!("{b:02x}")).collect())
}

struct HashWriter<'a>(&'a mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// An image of nothing but the binary and the directory of the routes, which the engine copies to a new volume with its owner.
fn image_tar(binary: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(binary)?;
    let size = file.metadata()?.len();
    let mut tar = tar::Builder::new(Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 4096));
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(size);
    header.set_entry_type(tar::EntryType::Regular);
    tar.append_data(&mut header, BINARY.trim_start_matches('/'), &mut file)?;
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o700);
    header.set_uid(UID.into());
    header.set_gid(UID.into());
    header.set_size(0);
    header.set_entry_type(tar::EntryType::Directory);
    tar.append_data(&mut header, format!("{}/", DIR.trim_start_matches('/')), std::io::empty())?;
    tar.into_inner()
}

fn routes_tar(routes: &Routes) -> std::io::Result<Vec<u8>> {
    let text = serde_json::to_string(routes)?;
    let mut tar = tar::Builder::new(vec![]);
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o600);
    header.set_uid(UID.into());
    header.set_gid(UID.into());
    header.set_size(text.len() as u64);
    header.set_entry_type(tar::EntryType::Regular);
    tar.append_data(&mut header, ROUTES_FILE, text.as_bytes())?;
    tar.into_inner()
}

/// Later than any before, but for a clock that was set back; a front tells then which revision it has.
fn revision() -> u64 {
    u64::try_from(Utc::now().timestamp_micros()).unwrap_or(1)
}

impl Run {
    /// Makes the image of fronts where the engine lacks it.
    pub(super) async fn front_image(&self, image: &ImageRef) -> Result<Value, Fail> {
        if self.exec.engine.image(image).await?.is_some() {
            return Ok(Value::Null);
        }
        let engine = self.exec.engine.about().await?;
        let ours = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        if engine.arch != ours || engine.os != "linux" {
            let (os, arch) = (engine.os, engine.arch);
            return Err(Fail::Refused(format!(
                "fronts run this binary, which is for linux/{ours}; the engine runs {os}/{arch}: leave out x-dockwarden.strategy there"
            )));
        }
        self.say("bringing our own binary to the engine as the image of fronts".into());
        let binary = self.exec.front_binary.clone();
        let tar = tokio::task::spawn_blocking(move || image_tar(&binary)).await.expect("packing does not panic");
        let tar = tar.map_err(|e| Fail::Refused(format!("our own binary cannot be packed: {e}")))?;
        self.exec.engine.import_image(&self.permit, image, tar.into()).await?;
        Ok(Value::Null)
    }

    /// Makes a front's container with its first routes.
    pub(super) async fn create_front(
        &self,
        service: &ServiceName,
        image: &ImageRef,
        name: &EngineName,
        routes: &Routes,
    ) -> Result<Value, Fail> {
        let id = match self.made_before(name, true).await? {
            Some(id) => id,
            None => {
                let spec = self.front_spec(service, image, name)?;
                self.judge(crate::gate::request::assert_container(
                    &spec,
                    &self.exec.request_facts(&self.plan, Some(service)).fronting(image.as_str(), format!("{UID}:{UID}")),
                ))?;
                self.exec.engine.create_container(&self.permit, &spec).await?
            }
        };
        self.put_routes(&id, routes).await?;
        Ok(json!({ "id": id }))
    }

    fn front_spec(&self, service: &ServiceName, image: &ImageRef, name: &EngineName) -> Result<ContainerSpec, Fail> {
        let stack = &self.plan.desired;
        let missing = || Fail::Refused(format!("the release has no service {service} behind a front"));
        let front = fronting(stack, service).ok_or_else(missing)?;
        let digest = |bytes: &[u8]| self.exec.store.keyed_digest(bytes);
        let mut own = names::base(self.exec.store.instance(), &stack.name, self.operation_id());
        own.extend([
            (labels::SERVICE.to_owned(), service.to_string()),
            (labels::RELEASE.to_owned(), self.plan.to_release.to_string()),
            (labels::ROLE.to_owned(), labels::ROLE_FRONT.to_owned()),
            (labels::SPEC.to_owned(), hash(stack, service, &digest).ok_or_else(missing)?),
        ]);
        let mut command = vec!["front".to_owned()];
        command.extend(front.targets.iter().flat_map(|t| ["--listen".to_owned(), t.to_string()]));
        let networks = self.front_attachments(service)?;
        let log = BTreeMap::from([("max-size".to_owned(), "1m".to_owned()), ("max-file".to_owned(), "2".to_owned())]);
        Ok(ContainerSpec {
            entrypoint: Some(vec![BINARY.to_owned()]),
            command: Some(command),
            // The engine's resolver passes names of stopped containers on to the host's: its silence must not keep a thread for long.
            env: vec!["RES_OPTIONS=timeout:1 attempts:1".to_owned()],
            labels: own,
            user: Some(format!("{UID}:{UID}")),
            ports: front.published.iter().map(|p| render::port(p, 1)).collect(),
            // Lives and goes with the container.
            mounts: vec![EngineMount::new(MountKind::Volume, DIR.to_owned())],
            networks,
            memory: Some(MEMORY),
            pids: Some(PIDS),
            cap_drop: vec!["ALL".to_owned()],
            security_opt: vec!["no-new-privileges".to_owned()],
            read_only: true,
            logging: Some(Logging { driver: "json-file".to_owned(), options: log }),
            ..ContainerSpec::new(name.clone(), image.clone())
        })
    }

    /// How a front stands on its service's networks: under the service's name and fixed addresses.
    pub(super) fn front_attachments(&self, service: &ServiceName) -> Result<Vec<NetworkAttachment>, Fail> {
        let stack = &self.plan.desired;
        let spec = stack.services.get(service).ok_or_else(|| Fail::Refused(format!("the release has no service {service}")))?;
        let all = spec.networks.iter().map(|(key, n)| NetworkAttachment {
            network: stack.networks.get(key).map_or_else(|| key.clone(), |s| s.name.clone()),
            aliases: std::iter::once(service.to_string()).chain(n.aliases.iter().cloned()).collect(),
            ipv4_address: n.ipv4_address.clone(),
            ipv6_address: n.ipv6_address.clone(),
            link_local_ips: n.link_local_ips.clone(),
            mac_address: n.mac_address.clone(),
            driver_opts: n.driver_opts.clone(),
            links: vec![],
        });
        Ok(all.collect())
    }

    /// Puts routes beside a front that does not run.
    async fn put_routes(&self, id: &EngineName, routes: &Routes) -> Result<(), Fail> {
        let routes = Routes { revision: revision(), ..routes.clone() };
        let tar = routes_tar(&routes).map_err(|e| Fail::Refused(format!("packing routes: {e}")))?;
        let stream = futures_util::stream::iter([bytes::Bytes::from(tar)]).boxed();
        Ok(self.exec.engine.upload(&self.permit, id, DIR, stream).await?)
    }

    /// Sends a command to a running front and reads its answer: over its socket where that can be reached from here, else by a process of its own in
    /// the front's container, which takes ten times as long.
    pub(super) async fn ask_front(&self, id: &EngineName, command: &Command) -> Result<Reply, EngineError> {
        if let Some(reply) = self.at_its_socket(id, command).await {
            return Ok(reply);
        }
        let mut words = vec![BINARY.to_owned(), "front".to_owned()];
        let mut timeout = COMMAND;
        let mut env = vec![];
        match command {
            Command::Apply(routes) => {
                words.extend(["--apply".to_owned(), serde_json::to_string(routes).expect("routes are plain data")]);
                // A variable, not an option: a front of an older version must take its routes as well.
                env.push(format!("{SETTLE}={}", SETTLE_FOR.as_millis()));
                timeout += SETTLE_FOR;
            }
            Command::Status => words.push("--status".to_owned()),
            Command::Drained { backends, within_ms } => {
                timeout += Duration::from_millis(*within_ms);
                let names: Vec<&str> = backends.iter().map(EngineName::as_str).collect();
                let names = if names.is_empty() { "-".to_owned() } else { names.join(",") };
                words.extend(["--drained".to_owned(), names, "--within-ms".to_owned(), within_ms.to_string()]);
            }
        }
        let run = ExecSpec { command: words, user: None, env, timeout, max_output: 2 * MAX_ROUTES };
        let outcome = self.exec.engine.exec(&self.permit, id, &run).await?;
        if outcome.exit_code.is_none() {
            return Err(EngineError::Timeout { what: "a command in a front", after: timeout });
        }
        let reply = outcome.output.lines().find_map(|l| serde_json::from_str(l).ok());
        reply.ok_or_else(|| EngineError::Protocol(format!("the front answered: {}", crate::redact::line(&outcome.output, 300))))
    }

    /// The answer of a front's own socket. None where that cannot be reached, or gives no answer: what the engine then says decides.
    async fn at_its_socket(&self, id: &EngineName, command: &Command) -> Option<Reply> {
        let door = self.exec.front_door.as_ref().filter(|_| self.exec.is_local())?;
        let front = self.exec.engine.container(id).await.ok()??;
        let volume = front.mounts.iter().find(|m| m.target == DIR && m.name.is_some())?;
        if front.state != RunState::Running {
            return None;
        }
        let reply = door(Path::new(&volume.source).join(SOCKET), command.clone(), SETTLE_FOR, UID).await;
        reply.inspect_err(|why| tracing::debug!(front = %id, why, "the front is asked through the engine")).ok()
    }

    /// Puts routes in force; safe to repeat. A front that does not run finds them when it starts. The sessions still open on what left the routes.
    pub(super) async fn route(&self, front: &EngineName, routes: &Routes) -> Result<u64, Fail> {
        let mut routes = Routes { revision: revision(), ..routes.clone() };
        for _ in 0..2 {
            match self.ask_front(front, &Command::Apply(routes.clone())).await {
                Ok(Reply::Ok(status)) => return Ok(status.open()),
                // Our clock was set back.
                Ok(Reply::Stale { revision }) => routes.revision = revision + 1,
                Ok(Reply::Error(why)) => return Err(Fail::Refused(format!("the front refused its routes: {why}"))),
                // The engine's word for a container that does not run.
                Err(EngineError::Conflict(_)) => return self.put_routes(front, &routes).await.map(|()| 0),
                Err(e) => return Err(e.into()),
            }
        }
        Err(Fail::Refused("another supervisor changes the same front's routes".into()))
    }

    /// Waits for sessions to end; the state afterwards.
    pub(super) async fn drained(&self, front: &EngineName, backends: Vec<EngineName>, within_ms: u64) -> Result<Status, EngineError> {
        match self.ask_front(front, &Command::Drained { backends, within_ms }).await? {
            Reply::Ok(status) => Ok(status),
            other => Err(EngineError::Protocol(format!("the front answered {other:?}"))),
        }
    }

    /// Routes as before; then sessions on what fails now may end within their bound. A front that is gone routes nothing.
    pub(super) async fn route_back(&self, front: &EngineName, from: &Routes, to: &Routes) -> Result<(), Fail> {
        match self.route(front, from).await {
            Ok(_) => {}
            Err(Fail::Engine(EngineError::NotFound { .. })) => return Ok(()),
            Err(e) => return Err(e),
        }
        let leaving: Vec<EngineName> = to.serving().into_iter().filter(|b| !from.serving().contains(b)).cloned().collect();
        if !leaving.is_empty()
            && let Err(e) = self.drained(front, leaving, from.limits.drain_ms).await
        {
            tracing::warn!(operation = %self.operation_id(), error = %e, "open sessions are cut");
        }
        Ok(())
    }
}
