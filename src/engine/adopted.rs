//! An engine as the house sees it: objects taken over from Compose show our labels, read from our own registry, and objects given back to it do
//! not show those they carry. So everything above, which finds what is ours by label, treats the ones as ours until they are replaced and the
//! others as not ours. Deliberately absent: any change of its own; changes pass through.

use super::*;
use crate::gate::Permit;
use crate::model::adopted::{AdoptedObject, ObjectKind};
use crate::model::labels;
use futures_util::StreamExt;
use futures_util::future::try_join_all;
use futures_util::stream::select_all;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::watch;

/// Labels of ours begin so; a filter that names one finds adopted objects only through the registry.
const OURS: &str = "dockwarden.";

type Objects = BTreeMap<(ObjectKind, String), AdoptedObject>;

/// What was adopted, shared between the store that keeps it and the engine that shows it.
#[derive(Debug)]
pub struct Registry(watch::Sender<Arc<Objects>>);

impl Default for Registry {
    fn default() -> Self {
        Self(watch::channel(Arc::default()).0)
    }
}

impl Registry {
    /// Replaces what is known.
    pub fn set(&self, objects: Vec<AdoptedObject>) {
        let objects = objects.into_iter().map(|o| ((o.kind, o.id.clone()), o)).collect();
        self.0.send_replace(Arc::new(objects));
    }

    fn now(&self) -> Arc<Objects> {
        self.0.borrow().clone()
    }
}

/// An engine with a registry over it.
#[derive(Debug)]
pub struct Adopted {
    inner: Arc<dyn Engine>,
    registry: Arc<Registry>,
}

impl Adopted {
    /// Lays a registry over an engine.
    pub fn over(inner: Arc<dyn Engine>, registry: Arc<Registry>) -> Arc<Self> {
        Arc::new(Self { inner, registry })
    }

    /// Compose projects that hold adopted containers a filter may mean; empty when it cannot mean any.
    fn projects(known: &Objects, filter: &[String]) -> BTreeSet<String> {
        let of_stack = filter.iter().find_map(|f| f.strip_prefix(labels::STACK)?.strip_prefix('='));
        let containers = known.values().filter(|o| o.kind == ObjectKind::Container && !o.labels.is_empty());
        containers.map(|o| o.stack.to_string()).filter(|s| of_stack.is_none_or(|wanted| wanted == s)).collect()
    }
}

fn names_ours(filter: &[String]) -> bool {
    filter.iter().any(|f| f.starts_with(OURS))
}

/// Gives an object its labels of the registry; takes ours off one that was given back. Whether it was adopted.
fn dress(known: &Objects, kind: ObjectKind, id: &str, into: &mut BTreeMap<String, String>) -> bool {
    let Some(object) = known.get(&(kind, id.to_owned())) else { return false };
    if object.labels.is_empty() {
        into.retain(|key, _| !key.starts_with(OURS));
        return false;
    }
    into.extend(object.labels.iter().map(|(k, v)| (k.clone(), v.clone())));
    true
}

/// Whether labels satisfy a filter of `key` and `key=value`.
fn matches(have: &BTreeMap<String, String>, filter: &[String]) -> bool {
    filter.iter().all(|f| match f.split_once('=') {
        Some((key, value)) => have.get(key).is_some_and(|v| v == value),
        None => have.contains_key(f),
    })
}

#[async_trait]
impl Engine for Adopted {
    async fn info(&self) -> EngineResult<EngineInfo> {
        self.inner.info().await
    }
    async fn about(&self) -> EngineResult<EngineInfo> {
        self.inner.about().await
    }
    async fn containers(&self, filter: &[String]) -> EngineResult<Vec<ContainerSummary>> {
        let known = self.registry.now();
        if known.is_empty() {
            return self.inner.containers(filter).await;
        }
        let projects = if names_ours(filter) { Self::projects(&known, filter) } else { BTreeSet::new() };
        let projects: Vec<[String; 1]> = projects.iter().map(|p| [labels::filter(labels::COMPOSE_PROJECT, p)]).collect();
        let adopted = try_join_all(projects.iter().map(|p| self.inner.containers(p)));
        let (found, adopted) = futures_util::future::try_join(self.inner.containers(filter), adopted).await?;
        let mut seen = BTreeSet::new();
        let mut all: Vec<ContainerSummary> = found.into_iter().chain(adopted.into_iter().flatten()).collect();
        all.retain_mut(|c| {
            dress(&known, ObjectKind::Container, c.id.as_str(), &mut c.labels);
            matches(&c.labels, filter) && seen.insert(c.id.clone())
        });
        Ok(all)
    }
    async fn container(&self, id: &EngineName) -> EngineResult<Option<ContainerDetail>> {
        let mut found = self.inner.container(id).await?;
        if let Some(c) = &mut found {
            dress(&self.registry.now(), ObjectKind::Container, c.id.as_str(), &mut c.labels);
        }
        Ok(found)
    }
    async fn made_with(&self, id: &EngineName) -> EngineResult<Option<MadeWith>> {
        self.inner.made_with(id).await
    }
    async fn image(&self, image: &ImageRef) -> EngineResult<Option<ImageInfo>> {
        self.inner.image(image).await
    }
    async fn registry_digest(&self, image: &ImageRef) -> EngineResult<String> {
        self.inner.registry_digest(image).await
    }
    async fn images(&self) -> EngineResult<Vec<ImageInfo>> {
        self.inner.images().await
    }
    async fn networks(&self, filter: &[String]) -> EngineResult<Vec<NetworkInfo>> {
        let known = self.registry.now();
        if known.is_empty() {
            return self.inner.networks(filter).await;
        }
        // There are few networks and volumes on an engine: one list of all is cheaper than one a stack.
        let all: &[String] = &[];
        let mut found = self.inner.networks(if names_ours(filter) { all } else { filter }).await?;
        for n in &mut found {
            dress(&known, ObjectKind::Network, &n.name, &mut n.labels);
        }
        found.retain(|n| matches(&n.labels, filter));
        Ok(found)
    }
    async fn network(&self, name: &EngineName) -> EngineResult<Option<NetworkInfo>> {
        let mut found = self.inner.network(name).await?;
        if let Some(n) = &mut found {
            dress(&self.registry.now(), ObjectKind::Network, &n.name, &mut n.labels);
        }
        Ok(found)
    }
    async fn volumes(&self, filter: &[String]) -> EngineResult<Vec<VolumeInfo>> {
        let known = self.registry.now();
        if known.is_empty() {
            return self.inner.volumes(filter).await;
        }
        let all: &[String] = &[];
        let mut found = self.inner.volumes(if names_ours(filter) { all } else { filter }).await?;
        for v in &mut found {
            dress(&known, ObjectKind::Volume, v.name.as_str(), &mut v.labels);
        }
        found.retain(|v| matches(&v.labels, filter));
        Ok(found)
    }
    async fn volume(&self, name: &EngineName) -> EngineResult<Option<VolumeInfo>> {
        let mut found = self.inner.volume(name).await?;
        if let Some(v) = &mut found {
            dress(&self.registry.now(), ObjectKind::Volume, v.name.as_str(), &mut v.labels);
        }
        Ok(found)
    }
    async fn logs(&self, id: &EngineName, query: &LogQuery) -> EngineResult<Vec<LogLine>> {
        self.inner.logs(id, query).await
    }
    async fn stats(&self, id: &EngineName) -> EngineResult<StatsSample> {
        self.inner.stats(id).await
    }
    async fn events(&self, filter: &[String], since: Option<DateTime<Utc>>) -> EngineResult<BoxStream<'static, EngineResult<EngineEvent>>> {
        let mut changed = self.registry.0.subscribe();
        let known = changed.borrow_and_update().clone();
        let projects = if names_ours(filter) { Self::projects(&known, filter) } else { BTreeSet::new() };
        let of_projects = projects.iter().map(|p| (vec![labels::filter(labels::COMPOSE_PROJECT, p)], true));
        let mut streams = vec![];
        for (asked, only_adopted) in std::iter::once((filter.to_vec(), false)).chain(of_projects) {
            let (known, filter) = (known.clone(), filter.to_vec());
            let dressed = move |item: EngineResult<EngineEvent>| match item {
                Ok(mut event) => {
                    let adopted = dress(&known, ObjectKind::Container, event.container.as_str(), &mut event.labels);
                    ((adopted || !only_adopted) && matches(&event.labels, &filter)).then_some(Ok(event))
                }
                Err(e) => Some(Err(e)),
            };
            streams.push(self.inner.events(&asked, since).await?.filter_map(move |item| std::future::ready(dressed(item))).boxed());
        }
        // Ends when another stack is adopted or given back: who follows opens it again and gets that one too.
        let end = async move {
            if changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        Ok(select_all(streams).take_until(Box::pin(end)).boxed())
    }
    async fn download(&self, id: &EngineName, path: &str) -> EngineResult<BoxStream<'static, EngineResult<bytes::Bytes>>> {
        self.inner.download(id, path).await
    }
    async fn pull(
        &self,
        permit: &Permit,
        image: &ImageRef,
        platform: Option<&str>,
        progress: &(dyn Fn(String) + Send + Sync),
    ) -> EngineResult<()> {
        self.inner.pull(permit, image, platform, progress).await
    }
    async fn tag(&self, permit: &Permit, image: &ImageRef, target: &ImageRef) -> EngineResult<()> {
        self.inner.tag(permit, image, target).await
    }
    async fn remove_image(&self, permit: &Permit, image: &ImageRef) -> EngineResult<()> {
        self.inner.remove_image(permit, image).await
    }
    async fn create_container(&self, permit: &Permit, spec: &ContainerSpec) -> EngineResult<EngineName> {
        self.inner.create_container(permit, spec).await
    }
    async fn start(&self, permit: &Permit, id: &EngineName) -> EngineResult<()> {
        self.inner.start(permit, id).await
    }
    async fn stop(&self, permit: &Permit, id: &EngineName, grace: Duration) -> EngineResult<()> {
        self.inner.stop(permit, id, grace).await
    }
    async fn restart(&self, permit: &Permit, id: &EngineName, grace: Duration) -> EngineResult<()> {
        self.inner.restart(permit, id, grace).await
    }
    async fn pause(&self, permit: &Permit, id: &EngineName, paused: bool) -> EngineResult<()> {
        self.inner.pause(permit, id, paused).await
    }
    async fn remove_container(&self, permit: &Permit, id: &EngineName, volumes: bool) -> EngineResult<()> {
        self.inner.remove_container(permit, id, volumes).await
    }
    async fn rename(&self, permit: &Permit, id: &EngineName, name: &EngineName) -> EngineResult<()> {
        self.inner.rename(permit, id, name).await
    }
    async fn set_restart(&self, permit: &Permit, id: &EngineName, restart: Restart) -> EngineResult<()> {
        self.inner.set_restart(permit, id, restart).await
    }
    async fn exec(&self, permit: &Permit, id: &EngineName, spec: &ExecSpec) -> EngineResult<ExecOutcome> {
        self.inner.exec(permit, id, spec).await
    }
    async fn exec_into(&self, permit: &Permit, id: &EngineName, spec: &ExecSpec, out: &mut ExecSink<'_>) -> EngineResult<ExecOutcome> {
        self.inner.exec_into(permit, id, spec, out).await
    }
    async fn create_network(&self, permit: &Permit, spec: &NetworkCreate) -> EngineResult<EngineName> {
        self.inner.create_network(permit, spec).await
    }
    async fn connect(&self, permit: &Permit, id: &EngineName, attachment: &NetworkAttachment) -> EngineResult<()> {
        self.inner.connect(permit, id, attachment).await
    }
    async fn disconnect(&self, permit: &Permit, id: &EngineName, network: &EngineName) -> EngineResult<()> {
        self.inner.disconnect(permit, id, network).await
    }
    async fn remove_network(&self, permit: &Permit, name: &EngineName) -> EngineResult<()> {
        self.inner.remove_network(permit, name).await
    }
    async fn create_volume(&self, permit: &Permit, spec: &VolumeCreate) -> EngineResult<()> {
        self.inner.create_volume(permit, spec).await
    }
    async fn remove_volume(&self, permit: &Permit, name: &EngineName) -> EngineResult<()> {
        self.inner.remove_volume(permit, name).await
    }
    async fn upload(&self, permit: &Permit, id: &EngineName, path: &str, tar: BoxStream<'static, bytes::Bytes>) -> EngineResult<()> {
        self.inner.upload(permit, id, path, tar).await
    }
    async fn import_image(&self, permit: &Permit, tag: &ImageRef, tar: bytes::Bytes) -> EngineResult<String> {
        self.inner.import_image(permit, tag, tar).await
    }
    async fn prune(&self, permit: &Permit, what: PruneKind) -> EngineResult<u64> {
        self.inner.prune(permit, what).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fake::{Behaviour, FakeEngine};
    use crate::gate;
    use crate::model::ids::StackName;

    fn permit() -> Permit {
        gate::test_permit("adopt", None)
    }

    async fn made(engine: &FakeEngine, name: &str, labels: &[(&str, &str)]) -> EngineName {
        let mut spec = ContainerSpec::new(EngineName::new(name).unwrap(), ImageRef::new("web:1").unwrap());
        spec.labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        engine.create_container(&permit(), &spec).await.unwrap()
    }

    fn object(id: &EngineName, labels: &[(&str, &str)]) -> AdoptedObject {
        AdoptedObject {
            kind: ObjectKind::Container,
            id: id.to_string(),
            stack: StackName::new("shop").unwrap(),
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        }
    }

    #[tokio::test]
    async fn adopted_containers_are_found_by_our_labels_and_given_back_ones_are_not() {
        let (fake, registry) = (Arc::new(FakeEngine::new()), Arc::new(Registry::default()));
        fake.add_image("web:1", Behaviour::healthy());
        let compose = (labels::COMPOSE_PROJECT, "shop");
        let ours = [(labels::INSTANCE, "me"), (labels::STACK, "shop")];
        let adopted = made(&fake, "shop-web-1", &[compose]).await;
        let given_back = made(&fake, "shop-db-1", &[compose, ours[0], ours[1]]).await;
        let other = made(&fake, "shop-other-1", &[compose]).await;
        let native = made(&fake, "shop-own-1", &[ours[0], ours[1]]).await;
        let engine = Adopted::over(fake.clone(), registry.clone());
        let filter = [labels::filter(labels::INSTANCE, "me"), labels::filter(labels::STACK, "shop")];
        let names = async |filter: &[String]| {
            let mut names: Vec<String> = engine.containers(filter).await.unwrap().into_iter().map(|c| c.name).collect();
            names.sort();
            names
        };
        assert_eq!(names(&filter).await, ["shop-db-1", "shop-own-1"], "without a registry labels are all there is");
        registry.set(vec![object(&adopted, &ours), object(&given_back, &[])]);
        assert_eq!(names(&filter).await, ["shop-own-1", "shop-web-1"]);
        assert_eq!(names(&[labels::filter(labels::INSTANCE, "another")]).await, Vec::<String>::new());
        assert_eq!(names(&[]).await.len(), 4, "nothing is hidden from a look at everything");
        let label = async |id: &EngineName| engine.container(id).await.unwrap().unwrap().labels.get(labels::INSTANCE).cloned();
        assert_eq!(label(&adopted).await, Some("me".into()));
        assert_eq!((label(&given_back).await, label(&other).await), (None, None));
        assert_eq!(label(&native).await, Some("me".into()));
    }

    #[tokio::test]
    async fn events_of_adopted_containers_come_once_and_the_stream_ends_when_another_is_adopted() {
        let (fake, registry) = (Arc::new(FakeEngine::new()), Arc::new(Registry::default()));
        fake.add_image("web:1", Behaviour::healthy());
        let compose = (labels::COMPOSE_PROJECT, "shop");
        let ours = [(labels::INSTANCE, "me"), (labels::STACK, "shop")];
        let adopted = made(&fake, "shop-web-1", &[compose]).await;
        // One that we made carries both kinds of labels and matches both streams.
        let native = made(&fake, "shop-own-1", &[compose, ours[0], ours[1]]).await;
        let stranger = made(&fake, "shop-x-1", &[compose]).await;
        registry.set(vec![object(&adopted, &ours)]);
        let engine = Adopted::over(fake.clone(), registry.clone());
        let filter = [labels::filter(labels::INSTANCE, "me")];
        let mut events = engine.events(&filter, None).await.unwrap();
        for id in [&adopted, &native, &stranger] {
            engine.start(&permit(), id).await.unwrap();
        }
        let seen: Vec<EngineEvent> = events.by_ref().take(2).map(|e| e.unwrap()).collect().await;
        let mut started: Vec<&EngineName> = seen.iter().map(|e| &e.container).collect();
        started.sort();
        let mut expected = vec![&adopted, &native];
        expected.sort();
        assert_eq!(started, expected);
        // Whoever follows opens it again from the last event on; what lies between is not lost.
        registry.set(vec![object(&adopted, &ours), object(&stranger, &ours)]);
        assert!(events.next().await.is_none());
        assert!(seen.iter().all(|e| e.labels.get(labels::STACK).is_some_and(|s| s == "shop")));
    }
}
