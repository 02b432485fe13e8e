//! The port itself on the fake: each method is one line to the world. Nothing is decided here.

use super::FakeEngine;
use super::world::{matches, no_container};
use crate::engine::*;
use crate::gate::Permit;
use futures_util::StreamExt;
use tokio::sync::mpsc::unbounded_channel;

#[async_trait]
impl Engine for FakeEngine {
    async fn info(&self) -> EngineResult<EngineInfo> {
        self.read("info", |_| {
            Ok(EngineInfo {
                version: "20.10.24".into(),
                api_version: "1.41".into(),
                id: "FAKE".into(),
                name: "fake".into(),
                cpus: 4,
                memory_bytes: 8 << 30,
                os: "linux".into(),
                arch: "amd64".into(),
                root_dir: "/var/lib/docker".into(),
                runtimes: vec!["runc".into()],
                swarm: false,
                log_driver: "json-file".into(),
            })
        })
    }

    async fn containers(&self, labels: &[String]) -> EngineResult<Vec<ContainerSummary>> {
        self.read("containers", |w| {
            let mut rows: Vec<_> = w.containers.values().filter(|c| matches(&c.spec.labels, labels)).map(|c| c.summary()).collect();
            // Newest first, as Docker lists them.
            rows.sort_by_key(|r| std::cmp::Reverse(r.created));
            Ok(rows)
        })
    }

    async fn container(&self, id: &EngineName) -> EngineResult<Option<ContainerDetail>> {
        self.read("container", |w| match w.find(id.as_str()) {
            Some(c) if w.silent.contains(&c.name) => Err(EngineError::Timeout { what: "inspect", after: Duration::from_secs(15) }),
            found => Ok(found.map(|c| c.detail())),
        })
    }

    async fn made_with(&self, id: &EngineName) -> EngineResult<Option<MadeWith>> {
        self.read("made_with", |w| Ok(w.find(id.as_str()).map(|c| c.made_with())))
    }

    async fn image(&self, image: &ImageRef) -> EngineResult<Option<ImageInfo>> {
        self.read("image", |w| Ok(w.image(image.as_str()).map(|i| i.info())))
    }

    async fn registry_digest(&self, image: &ImageRef) -> EngineResult<String> {
        self.read("registry_digest", |w| {
            w.published(image.as_str()).map(|d| d.split_once('@').map_or(String::new(), |(_, d)| d.to_owned()))
        })
    }

    async fn images(&self) -> EngineResult<Vec<ImageInfo>> {
        self.read("images", |w| Ok(w.images.iter().map(|i| i.info()).collect()))
    }

    async fn networks(&self, labels: &[String]) -> EngineResult<Vec<NetworkInfo>> {
        self.read("networks", |w| {
            let names = w.networks.iter().filter(|(_, n)| matches(&n.labels, labels)).map(|(name, _)| name);
            // A list does not tell who is attached, as Docker's does not.
            Ok(names.filter_map(|n| w.network_info(n)).map(|n| NetworkInfo { containers: Vec::new(), ..n }).collect())
        })
    }

    async fn network(&self, name: &EngineName) -> EngineResult<Option<NetworkInfo>> {
        self.read("network", |w| Ok(w.network_name(name.as_str()).and_then(|n| w.network_info(&n))))
    }

    async fn volumes(&self, labels: &[String]) -> EngineResult<Vec<VolumeInfo>> {
        self.read("volumes", |w| {
            let names = w.volumes.iter().filter(|(_, v)| matches(&v.labels, labels)).map(|(name, _)| name);
            Ok(names.filter_map(|n| w.volume_info(n)).collect())
        })
    }

    async fn volume(&self, name: &EngineName) -> EngineResult<Option<VolumeInfo>> {
        self.read("volume", |w| Ok(w.volume_info(name.as_str())))
    }

    async fn logs(&self, id: &EngineName, query: &LogQuery) -> EngineResult<Vec<LogLine>> {
        self.read("logs", |w| {
            let c = w.find(id.as_str()).ok_or_else(|| no_container(id.as_str()))?;
            let within: Vec<&LogLine> = c.logs.iter().filter(|l| query.since.is_none_or(|s| l.at >= s)).collect();
            let tail = &within[within.len().saturating_sub(query.tail.unwrap_or(usize::MAX))..];
            let mut left = query.max_bytes;
            let fits = tail.iter().take_while(|l| left.checked_sub(l.text.len()).inspect(|rest| left = *rest).is_some());
            Ok(fits.map(|l| (*l).clone()).collect())
        })
    }

    async fn stats(&self, id: &EngineName) -> EngineResult<StatsSample> {
        self.read("stats", |w| {
            let c = w.find(id.as_str()).ok_or_else(|| no_container(id.as_str()))?;
            if !c.is_up() {
                return Err(EngineError::Conflict(format!("Container {} is not running", c.name)));
            }
            Ok(w.stats.clone().unwrap_or(StatsSample {
                cpu_percent: 1.0,
                memory_bytes: 10 << 20,
                memory_limit_bytes: c.spec.memory.unwrap_or(8 << 30),
                net_rx_bytes: 0,
                net_tx_bytes: 0,
                block_read_bytes: 0,
                block_write_bytes: 0,
                pids: 1,
            }))
        })
    }

    // Tests read what they caused; a bounded channel would make the fake wait for its reader.
    #[allow(clippy::disallowed_methods)]
    async fn events(&self, labels: &[String], since: Option<DateTime<Utc>>) -> EngineResult<BoxStream<'static, EngineResult<EngineEvent>>> {
        let mut w = self.lock();
        w.admit("events")?;
        let (to, from) = unbounded_channel();
        if let Some(since) = since {
            for e in w.history.iter().filter(|e| e.at >= since && matches(&e.labels, labels)) {
                to.send(Ok(e.clone())).expect("the receiver is still here");
            }
        }
        w.listeners.push((labels.to_vec(), to));
        Ok(futures_util::stream::unfold(from, |mut from| async move { from.recv().await.map(|e| (e, from)) }).boxed())
    }

    async fn download(&self, id: &EngineName, path: &str) -> EngineResult<BoxStream<'static, EngineResult<bytes::Bytes>>> {
        let tar = self.read("download", |w| w.download(id.as_str(), path))?;
        Ok(futures_util::stream::iter([Ok(tar)]).boxed())
    }

    async fn pull(
        &self,
        _: &Permit,
        image: &ImageRef,
        _platform: Option<&str>,
        progress: &(dyn Fn(String) + Send + Sync),
    ) -> EngineResult<()> {
        let _under_way = self.pulls.pass().await;
        self.change("pull", image.as_str(), |w| w.pull(image))?;
        progress(format!("Status: Downloaded newer image for {image}"));
        Ok(())
    }

    async fn tag(&self, _: &Permit, image: &ImageRef, target: &ImageRef) -> EngineResult<()> {
        self.change("tag", target.as_str(), |w| w.tag(image.as_str(), target.as_str()))
    }

    async fn remove_image(&self, _: &Permit, image: &ImageRef) -> EngineResult<()> {
        self.change("remove_image", image.as_str(), |w| w.remove_image(image.as_str()))
    }

    async fn create_container(&self, _: &Permit, spec: &ContainerSpec) -> EngineResult<EngineName> {
        self.change("create_container", spec.name.as_str(), |w| w.create_container(spec))
    }

    async fn start(&self, _: &Permit, id: &EngineName) -> EngineResult<()> {
        self.change("start", id.as_str(), |w| w.start(id.as_str()))
    }

    async fn stop(&self, _: &Permit, id: &EngineName, grace: Duration) -> EngineResult<()> {
        self.change("stop", id.as_str(), |w| {
            let name = w.display(id.as_str());
            w.graces.push((name, grace));
            w.stop(id.as_str())
        })
    }

    async fn restart(&self, _: &Permit, id: &EngineName, _grace: Duration) -> EngineResult<()> {
        self.change("restart", id.as_str(), |w| {
            w.stop(id.as_str())?;
            w.start(id.as_str())
        })
    }

    async fn pause(&self, _: &Permit, id: &EngineName, paused: bool) -> EngineResult<()> {
        self.change("pause", &format!("{id} {paused}"), |w| w.pause(id.as_str(), paused))
    }

    async fn remove_container(&self, _: &Permit, id: &EngineName, volumes: bool) -> EngineResult<()> {
        self.change("remove_container", id.as_str(), |w| {
            w.remove_container(id.as_str(), volumes);
            Ok(())
        })
    }

    async fn rename(&self, _: &Permit, id: &EngineName, name: &EngineName) -> EngineResult<()> {
        self.change("rename", &format!("{id} {name}"), |w| w.rename(id.as_str(), name.as_str()))
    }

    async fn set_restart(&self, _: &Permit, id: &EngineName, restart: Restart) -> EngineResult<()> {
        self.change("set_restart", &format!("{id} {restart:?}"), |w| {
            w.find_mut(id.as_str())?.restart = restart;
            Ok(())
        })
    }

    async fn exec(&self, _: &Permit, id: &EngineName, spec: &ExecSpec) -> EngineResult<ExecOutcome> {
        self.change("exec", id.as_str(), |w| w.exec(id.as_str(), spec))
    }

    async fn exec_into(&self, _: &Permit, id: &EngineName, spec: &ExecSpec, out: &mut ExecSink<'_>) -> EngineResult<ExecOutcome> {
        use tokio::io::AsyncWriteExt;
        let done = self.change("exec", id.as_str(), |w| w.exec(id.as_str(), spec))?;
        // A command that fails says why; one that does not gives its output.
        if done.exit_code != Some(0) {
            return Ok(done);
        }
        out.write_all(done.output.as_bytes()).await.map_err(|e| EngineError::Protocol(e.to_string()))?;
        Ok(ExecOutcome { output: String::new(), ..done })
    }

    async fn create_network(&self, _: &Permit, spec: &NetworkCreate) -> EngineResult<EngineName> {
        self.change("create_network", spec.name.as_str(), |w| w.create_network(spec))
    }

    async fn connect(&self, _: &Permit, id: &EngineName, attachment: &NetworkAttachment) -> EngineResult<()> {
        self.change("connect", &format!("{id} {}", attachment.network), |w| w.connect(id.as_str(), attachment))
    }

    async fn disconnect(&self, _: &Permit, id: &EngineName, network: &EngineName) -> EngineResult<()> {
        self.change("disconnect", &format!("{id} {network}"), |w| w.disconnect(id.as_str(), network.as_str()))
    }

    async fn remove_network(&self, _: &Permit, name: &EngineName) -> EngineResult<()> {
        self.change("remove_network", name.as_str(), |w| w.remove_network(name.as_str()))
    }

    async fn create_volume(&self, _: &Permit, spec: &VolumeCreate) -> EngineResult<()> {
        self.change("create_volume", spec.name.as_str(), |w| w.create_volume(spec))
    }

    async fn remove_volume(&self, _: &Permit, name: &EngineName) -> EngineResult<()> {
        self.change("remove_volume", name.as_str(), |w| w.remove_volume(name.as_str()))
    }

    async fn upload(&self, _: &Permit, id: &EngineName, path: &str, tar: BoxStream<'static, bytes::Bytes>) -> EngineResult<()> {
        let archive: Vec<u8> = tar.collect::<Vec<_>>().await.concat();
        self.change("upload", &format!("{id} {path}"), |w| w.upload(id.as_str(), path, &archive))
    }

    async fn import_image(&self, _: &Permit, tag: &ImageRef, _tar: bytes::Bytes) -> EngineResult<String> {
        self.change("import_image", tag.as_str(), |w| Ok(w.import_image(tag)))
    }

    async fn prune(&self, _: &Permit, what: PruneKind) -> EngineResult<u64> {
        self.change("prune", &format!("{what:?}"), |w| match what {
            PruneKind::DanglingImages => Ok(w.prune_images()),
            PruneKind::BuildCache => Ok(0),
        })
    }
}
