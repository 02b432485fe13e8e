//! The port over bollard: one short method per call, each with its limit; "already so" answers become success where the port says so.
//! Only validated names reach bollard, which puts them into URLs unescaped.

use super::pull::split;
use super::stream::Lines;
use super::{ABOUT_KEPT, CHANGE, DockerEngine, MULTI_ENDPOINT, READ, REMOVE, START, TRANSFER, absent_is_none, body, create, show, stream};
use crate::engine::*;
use bollard::models::{ContainerUpdateBody, ExecConfig, NetworkConnectRequest, NetworkDisconnectRequest, VolumeCreateRequest};
use bollard::query_parameters::*;
use bollard::service::EventMessage;
use futures_util::StreamExt;
use std::collections::HashMap;
use std::time::Instant;
use tokio::io::AsyncWriteExt;

/// Added to a grace time for the engine's own work around a stop.
const STOP_SLACK: Duration = Duration::from_secs(30);
/// Pause between the two readings of a sample: long enough for a meaningful CPU figure.
const SAMPLE: Duration = Duration::from_millis(250);
/// Pause between looks at something the engine is about to finish.
const LOOK: Duration = Duration::from_millis(20);
/// Pause before the second look at an exec: mostly it ends within the first milliseconds. Later pauses double up to [`LOOK`].
const FIRST_LOOK: Duration = Duration::from_millis(2);
/// Events we act on; `exec_*` never, our own probes would wake us.
const ACTIONS: [&str; 7] = ["start", "die", "oom", "kill", "stop", "destroy", "health_status"];

fn label_filter(labels: &[String]) -> HashMap<String, Vec<String>> {
    if labels.is_empty() { HashMap::new() } else { HashMap::from([("label".to_owned(), labels.to_vec())]) }
}

/// Whole seconds, rounded up: the engine knows no smaller ones, and zero would mean kill.
fn seconds(grace: Duration) -> i32 {
    i32::try_from(grace.as_millis().div_ceil(1000)).unwrap_or(i32::MAX)
}

fn fine_if_gone(result: EngineResult<()>) -> EngineResult<()> {
    absent_is_none(result).map(|_| ())
}

fn refused_with(error: &EngineError, words: &str) -> bool {
    matches!(error, EngineError::Refused(t) | EngineError::Conflict(t) if t.contains(words))
}

impl DockerEngine {
    /// The network of an attachment, as the engine knows it.
    async fn resolve_network(&self, name: &str) -> EngineResult<NetworkInfo> {
        let valid = EngineName::new(name).map_err(|e| EngineError::Refused(e.to_string()))?;
        self.network(&valid).await?.ok_or_else(|| EngineError::NotFound { what: "network", detail: format!("network {name} not found") })
    }

    /// What belongs to a created container before it may start: further endpoints and files.
    async fn complete(&self, permit: &Permit, id: &EngineName, spec: &ContainerSpec, later: &[NetworkAttachment]) -> EngineResult<()> {
        for a in later {
            self.connect(permit, id, a).await?;
        }
        if spec.files.is_empty() {
            return Ok(());
        }
        let mut missing = Vec::new();
        for dir in create::parents(&spec.files) {
            let options = ContainerArchiveInfoOptions { path: dir.clone() };
            let there = self.call("path", READ, self.docker.get_container_archive_info(id.as_str(), Some(options))).await;
            if absent_is_none(there.map(|_| ()))?.is_none() {
                missing.push(dir);
            }
        }
        let tar = bytes::Bytes::from(create::files_tar(&spec.files, &missing)?);
        self.upload(permit, id, "/", futures_util::stream::iter([tar]).boxed()).await
    }

    /// Reads an exec's output to its end, keeping what fits.
    async fn drain(&self, started: bollard::exec::StartExecResults, spec: &ExecSpec, kept: &mut (Vec<u8>, bool)) -> EngineResult<()> {
        let bollard::exec::StartExecResults::Attached { mut output, .. } = started else { return Ok(()) };
        while let Some(frame) = output.next().await {
            let bytes = frame.map_err(|e| super::translate("exec", &self.endpoint, e))?.into_bytes();
            let fits = bytes.len().min(spec.max_output.saturating_sub(kept.0.len()));
            kept.0.extend_from_slice(&bytes[..fits]);
            kept.1 |= fits < bytes.len();
        }
        Ok(())
    }

    /// Reads an exec to its end: its standard output into `out`, of its error output what fits.
    async fn pour(
        &self,
        started: bollard::exec::StartExecResults,
        spec: &ExecSpec,
        out: &mut ExecSink<'_>,
        kept: &mut (Vec<u8>, bool),
    ) -> EngineResult<()> {
        let bollard::exec::StartExecResults::Attached { mut output, .. } = started else { return Ok(()) };
        let failed = |e: std::io::Error| EngineError::Protocol(format!("the output of the command could not be written: {e}"));
        while let Some(frame) = output.next().await {
            match frame.map_err(|e| super::translate("exec", &self.endpoint, e))? {
                bollard::container::LogOutput::StdErr { message } => {
                    let fits = message.len().min(spec.max_output.saturating_sub(kept.0.len()));
                    kept.0.extend_from_slice(&message[..fits]);
                    kept.1 |= fits < message.len();
                }
                other => out.write_all(&other.into_bytes()).await.map_err(failed)?,
            }
        }
        out.flush().await.map_err(failed)
    }

    /// Runs a command; its standard output goes to `out` where there is one.
    async fn run_exec(&self, id: &EngineName, spec: &ExecSpec, out: Option<&mut ExecSink<'_>>) -> EngineResult<ExecOutcome> {
        let config = ExecConfig {
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            cmd: Some(spec.command.clone()),
            env: Some(spec.env.clone()),
            user: spec.user.clone(),
            ..ExecConfig::default()
        };
        body::exec(&config, spec)?;
        let exec = self.call("container", READ, self.docker.create_exec(id.as_str(), config)).await?.id;
        let mut kept = (Vec::new(), false);
        let run = async {
            let started = self.docker.start_exec(&exec, None).await.map_err(|e| super::translate("exec", &self.endpoint, e))?;
            match out {
                None => self.drain(started, spec, &mut kept).await?,
                Some(out) => self.pour(started, spec, out, &mut kept).await?,
            }
            self.exec_code(&exec).await
        };
        let exit_code = match tokio::time::timeout(spec.timeout, run).await {
            Ok(code) => code?,
            Err(_) => None,
        };
        Ok(ExecOutcome { exit_code, output: String::from_utf8_lossy(&kept.0).into_owned(), truncated: kept.1 })
    }

    /// The exit code of an exec whose output has ended; the engine notes it a moment later.
    async fn exec_code(&self, exec: &str) -> EngineResult<Option<i64>> {
        let mut pause = FIRST_LOOK;
        loop {
            let state = self.call("exec", READ, self.docker.inspect_exec(exec)).await?;
            if state.running != Some(true) {
                return Ok(state.exit_code);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK);
        }
    }
}

#[async_trait]
impl Engine for DockerEngine {
    async fn info(&self) -> EngineResult<EngineInfo> {
        self.api().await?;
        let (info, version) =
            tokio::try_join!(self.call("engine", READ, self.docker.info()), self.call("engine", READ, self.docker.version()))?;
        Ok(show::engine(info, version))
    }

    async fn about(&self) -> EngineResult<EngineInfo> {
        if let Some((at, info)) = self.about.lock().await.as_ref()
            && at.elapsed() < ABOUT_KEPT
        {
            return Ok(info.clone());
        }
        // Not under the lock: of those who ask an engine that hangs, each would wait for all before it.
        let info = self.info().await?;
        *self.about.lock().await = Some((Instant::now(), info.clone()));
        Ok(info)
    }

    async fn containers(&self, labels: &[String]) -> EngineResult<Vec<ContainerSummary>> {
        let options = ListContainersOptions { all: true, filters: Some(label_filter(labels)), ..ListContainersOptions::default() };
        let rows = self.call("container", READ, self.docker.list_containers(Some(options))).await?;
        rows.into_iter().map(show::summary).collect()
    }

    async fn container(&self, id: &EngineName) -> EngineResult<Option<ContainerDetail>> {
        let found = absent_is_none(self.call("container", READ, self.docker.inspect_container(id.as_str(), None)).await)?;
        found.map(show::detail).transpose()
    }

    async fn made_with(&self, id: &EngineName) -> EngineResult<Option<MadeWith>> {
        Ok(absent_is_none(self.call("container", READ, self.docker.inspect_container(id.as_str(), None)).await)?.map(show::made_with))
    }

    async fn image(&self, image: &ImageRef) -> EngineResult<Option<ImageInfo>> {
        Ok(absent_is_none(self.call("image", READ, self.docker.inspect_image(image.as_str())).await)?.map(show::image))
    }

    async fn registry_digest(&self, image: &ImageRef) -> EngineResult<String> {
        self.ask_registry(image).await
    }

    async fn images(&self) -> EngineResult<Vec<ImageInfo>> {
        let rows = self.call("image", READ, self.docker.list_images(Some(ListImagesOptions::default()))).await?;
        Ok(rows.into_iter().map(show::image_row).collect())
    }

    async fn networks(&self, labels: &[String]) -> EngineResult<Vec<NetworkInfo>> {
        let options = ListNetworksOptions { filters: Some(label_filter(labels)) };
        let rows = self.call("network", READ, self.docker.list_networks(Some(options))).await?;
        rows.into_iter().map(show::network_row).collect()
    }

    async fn network(&self, name: &EngineName) -> EngineResult<Option<NetworkInfo>> {
        let found = absent_is_none(self.call("network", READ, self.docker.inspect_network(name.as_str(), None)).await)?;
        found.map(show::network).transpose()
    }

    async fn volumes(&self, labels: &[String]) -> EngineResult<Vec<VolumeInfo>> {
        let options = ListVolumesOptions { filters: Some(label_filter(labels)) };
        let list = self.call("volume", READ, self.docker.list_volumes(Some(options))).await?;
        let mut volumes: Vec<VolumeInfo> = list
            .volumes
            .unwrap_or_default()
            .into_iter()
            // Plugins may make volumes with names that no call of ours could carry; they are not ours.
            .filter(|v| EngineName::new(v.name.as_str()).is_ok())
            .map(show::volume)
            .collect::<EngineResult<_>>()?;
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    async fn volume(&self, name: &EngineName) -> EngineResult<Option<VolumeInfo>> {
        let found = absent_is_none(self.call("volume", READ, self.docker.inspect_volume(name.as_str())).await)?;
        found.map(show::volume).transpose()
    }

    async fn logs(&self, id: &EngineName, query: &LogQuery) -> EngineResult<Vec<LogLine>> {
        let options = LogsOptions {
            stdout: true,
            stderr: true,
            timestamps: true,
            since: query.since.map_or(0, |t| i32::try_from(t.timestamp()).unwrap_or(i32::MAX)),
            tail: query.tail.map_or_else(|| "all".to_owned(), |n| n.to_string()),
            ..LogsOptions::default()
        };
        let mut frames = self.docker.logs(id.as_str(), Some(options)).boxed();
        let mut lines = Lines::default();
        while let Some(frame) = stream::next(&mut frames, "container", &self.endpoint).await {
            if !lines.push(frame?, query.max_bytes) {
                break;
            }
        }
        Ok(lines.finish(query))
    }

    async fn stats(&self, id: &EngineName) -> EngineResult<StatsSample> {
        let reading = || async {
            let mut answers = self.docker.stats(id.as_str(), Some(StatsOptions { stream: false, one_shot: true })).boxed();
            let answer = stream::next(&mut answers, "container", &self.endpoint).await;
            answer.unwrap_or_else(|| Err(EngineError::Protocol("statistics without content".into())))
        };
        let first = reading().await?;
        tokio::time::sleep(SAMPLE).await;
        Ok(show::stats(&first, reading().await?))
    }

    async fn events(&self, labels: &[String], since: Option<DateTime<Utc>>) -> EngineResult<BoxStream<'static, EngineResult<EngineEvent>>> {
        // bollard subscribes at the first poll. Starting from the engine's own present makes "from now on" mean the time of this call.
        let since = match since {
            Some(t) => format!("{}.{:09}", t.timestamp(), t.timestamp_subsec_nanos()),
            None => {
                let now = self.call("engine", READ, self.docker.info()).await?.system_time;
                let now = now.as_deref().and_then(|t| DateTime::parse_from_rfc3339(t).ok());
                let now = now.ok_or_else(|| EngineError::Protocol("the engine does not tell its time".into()))?;
                format!("{}.{:09}", now.timestamp(), now.timestamp_subsec_nanos())
            }
        };
        let mut filters = label_filter(labels);
        filters.insert("type".into(), vec!["container".into()]);
        filters.insert("event".into(), ACTIONS.map(String::from).to_vec());
        let options = EventsOptions { since: Some(since), until: None, filters: Some(filters) };
        let endpoint = self.endpoint.clone();
        let translated = move |item: Result<EventMessage, bollard::errors::Error>| match item {
            Ok(message) => show::event(message).map(Ok),
            Err(e) => Some(Err(super::translate("events", &endpoint, e))),
        };
        Ok(self.docker.events(Some(options)).filter_map(move |item| std::future::ready(translated(item))).boxed())
    }

    async fn download(&self, id: &EngineName, path: &str) -> EngineResult<BoxStream<'static, EngineResult<bytes::Bytes>>> {
        let options = DownloadFromContainerOptions { path: path.to_owned() };
        stream::bytes(self.docker.download_from_container(id.as_str(), Some(options)).boxed(), "path", self.endpoint.clone()).await
    }

    async fn pull(
        &self,
        _: &Permit,
        image: &ImageRef,
        platform: Option<&str>,
        progress: &(dyn Fn(String) + Send + Sync),
    ) -> EngineResult<()> {
        self.pull_image(image, platform, progress).await
    }

    async fn tag(&self, _: &Permit, image: &ImageRef, target: &ImageRef) -> EngineResult<()> {
        let (repository, tag) = split(target);
        let options = TagImageOptions { repo: Some(repository.to_owned()), tag: tag.map(str::to_owned) };
        self.call("image", CHANGE, self.docker.tag_image(image.as_str(), Some(options))).await
    }

    async fn remove_image(&self, _: &Permit, image: &ImageRef) -> EngineResult<()> {
        self.call("image", REMOVE, self.docker.remove_image(image.as_str(), None::<RemoveImageOptions>, None)).await.map(|_| ())
    }

    async fn create_container(&self, permit: &Permit, spec: &ContainerSpec) -> EngineResult<EngineName> {
        let api = self.api().await?;
        for a in &spec.networks {
            // The engine would create the container and refuse its start; a missing network is better known before.
            self.resolve_network(&a.network).await?;
        }
        let made = create::container(spec, api)?;
        body::container(&made, spec)?;
        let platform = spec.extras.platform.clone().unwrap_or_default();
        let options = CreateContainerOptions { name: Some(spec.name.as_str().to_owned()), platform };
        let made = self.call("image", START, self.docker.create_container(Some(options), made)).await?;
        let id = show::id(Some(made.id))?;
        let later = if api >= MULTI_ENDPOINT { &[] } else { spec.networks.get(1..).unwrap_or_default() };
        if let Err(error) = self.complete(permit, &id, spec, later).await {
            // A container without its files or networks must not be found by anyone. What is worth telling is why.
            return match self.remove_container(permit, &id, true).await {
                Ok(()) => Err(error),
                Err(left) => Err(EngineError::Refused(format!("{error}; and the half-made container {} is left: {left}", spec.name))),
            };
        }
        Ok(id)
    }

    async fn start(&self, _: &Permit, id: &EngineName) -> EngineResult<()> {
        self.call("container", START, self.docker.start_container(id.as_str(), None)).await
    }

    async fn stop(&self, _: &Permit, id: &EngineName, grace: Duration) -> EngineResult<()> {
        let options = StopContainerOptions { t: Some(seconds(grace)), ..StopContainerOptions::default() };
        self.call("container", grace + STOP_SLACK, self.docker.stop_container(id.as_str(), Some(options))).await
    }

    async fn restart(&self, _: &Permit, id: &EngineName, grace: Duration) -> EngineResult<()> {
        let options = RestartContainerOptions { t: Some(seconds(grace)), ..RestartContainerOptions::default() };
        self.call("container", grace + START, self.docker.restart_container(id.as_str(), Some(options))).await
    }

    async fn pause(&self, _: &Permit, id: &EngineName, paused: bool) -> EngineResult<()> {
        let (result, already) = if paused {
            (self.call("container", CHANGE, self.docker.pause_container(id.as_str())).await, RunState::Paused)
        } else {
            (self.call("container", CHANGE, self.docker.unpause_container(id.as_str())).await, RunState::Running)
        };
        match result {
            Err(error @ (EngineError::Conflict(_) | EngineError::Refused(_))) => match self.container(id).await? {
                Some(c) if c.state == already => Ok(()),
                _ => Err(error),
            },
            other => other,
        }
    }

    async fn remove_container(&self, _: &Permit, id: &EngineName, volumes: bool) -> EngineResult<()> {
        let options = RemoveContainerOptions { v: volumes, force: true, link: false };
        match fine_if_gone(self.call("container", REMOVE, self.docker.remove_container(id.as_str(), Some(options))).await) {
            // Someone else is at it: done when it is gone.
            Err(error) if refused_with(&error, "already in progress") => {
                let gone = async {
                    while self.container(id).await?.is_some() {
                        tokio::time::sleep(LOOK).await;
                    }
                    Ok(())
                };
                tokio::time::timeout(CHANGE, gone).await.unwrap_or(Err(error))
            }
            other => other,
        }
    }

    async fn rename(&self, _: &Permit, id: &EngineName, name: &EngineName) -> EngineResult<()> {
        let options = RenameContainerOptions { name: name.as_str().to_owned() };
        self.call("container", CHANGE, self.docker.rename_container(id.as_str(), options)).await
    }

    async fn set_restart(&self, _: &Permit, id: &EngineName, restart: Restart) -> EngineResult<()> {
        let body = ContainerUpdateBody { restart_policy: Some(create::restart(restart)), ..ContainerUpdateBody::default() };
        self.call("container", CHANGE, self.docker.update_container(id.as_str(), body)).await
    }

    async fn exec(&self, _: &Permit, id: &EngineName, spec: &ExecSpec) -> EngineResult<ExecOutcome> {
        self.run_exec(id, spec, None).await
    }

    async fn exec_into(&self, _: &Permit, id: &EngineName, spec: &ExecSpec, out: &mut ExecSink<'_>) -> EngineResult<ExecOutcome> {
        self.run_exec(id, spec, Some(out)).await
    }

    async fn create_network(&self, _: &Permit, spec: &NetworkCreate) -> EngineResult<EngineName> {
        let request = create::network(spec);
        body::network(&request, spec)?;
        show::id(Some(self.call("network", CHANGE, self.docker.create_network(request)).await?.id))
    }

    async fn connect(&self, _: &Permit, id: &EngineName, attachment: &NetworkAttachment) -> EngineResult<()> {
        let network = self.resolve_network(&attachment.network).await?;
        let endpoint = create::endpoint(attachment);
        body::endpoint(&endpoint, attachment)?;
        let request = NetworkConnectRequest { container: id.as_str().to_owned(), endpoint_config: Some(endpoint) };
        match self.call("container", CHANGE, self.docker.connect_network(network.id.as_str(), request)).await {
            Err(error) if refused_with(&error, "already exists in network") || refused_with(&error, "already attached to network") => {
                Ok(())
            }
            other => other,
        }
    }

    async fn disconnect(&self, _: &Permit, id: &EngineName, network: &EngineName) -> EngineResult<()> {
        let request = NetworkDisconnectRequest { container: id.as_str().to_owned(), force: Some(false) };
        match self.call("container", CHANGE, self.docker.disconnect_network(network.as_str(), request)).await {
            Err(EngineError::NotFound { what: "network", .. }) => Ok(()),
            Err(error) if refused_with(&error, "is not connected to") => Ok(()),
            other => other,
        }
    }

    async fn remove_network(&self, _: &Permit, name: &EngineName) -> EngineResult<()> {
        fine_if_gone(self.call("network", CHANGE, self.docker.remove_network(name.as_str())).await)
    }

    async fn create_volume(&self, _: &Permit, spec: &VolumeCreate) -> EngineResult<()> {
        let request = VolumeCreateRequest {
            name: Some(spec.name.as_str().to_owned()),
            driver: Some(spec.driver.clone().unwrap_or_else(|| "local".into())),
            driver_opts: Some(create::map(&spec.driver_opts)),
            labels: Some(create::map(&spec.labels)),
            cluster_volume_spec: None,
        };
        body::volume(&request, spec)?;
        self.call("volume", CHANGE, self.docker.create_volume(request)).await.map(|_| ())
    }

    async fn remove_volume(&self, _: &Permit, name: &EngineName) -> EngineResult<()> {
        fine_if_gone(self.call("volume", REMOVE, self.docker.remove_volume(name.as_str(), None::<RemoveVolumeOptions>)).await)
    }

    async fn upload(&self, _: &Permit, id: &EngineName, path: &str, tar: BoxStream<'static, bytes::Bytes>) -> EngineResult<()> {
        let options = UploadToContainerOptions { path: path.to_owned(), ..UploadToContainerOptions::default() };
        self.call("path", TRANSFER, self.docker.upload_to_container(id.as_str(), Some(options), bollard::body_stream(tar))).await
    }

    async fn import_image(&self, _: &Permit, tag: &ImageRef, tar: bytes::Bytes) -> EngineResult<String> {
        self.import(tag, tar).await
    }

    async fn prune(&self, _: &Permit, what: PruneKind) -> EngineResult<u64> {
        let freed = match what {
            PruneKind::DanglingImages => {
                let filters = HashMap::from([("dangling".to_owned(), vec!["true".to_owned()])]);
                let options = PruneImagesOptions { filters: Some(filters) };
                self.call("image", REMOVE, self.docker.prune_images(Some(options))).await?.space_reclaimed
            }
            PruneKind::BuildCache => {
                self.call("build cache", REMOVE, self.docker.prune_build(None::<PruneBuildOptions>)).await?.space_reclaimed
            }
        };
        Ok(freed.and_then(|b| u64::try_from(b).ok()).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grace_below_a_second_is_not_a_kill() {
        assert_eq!([0, 1, 1000, 1001].map(|ms| seconds(Duration::from_millis(ms))), [0, 1, 1, 2]);
    }
}
