//! Read-only checks before anything is touched, each with an id, all reported at once: `plan` shows them, an operation fails on those that do not
//! hold. What cannot be measured from here is `unknown`, never guessed. Deliberately absent: what the file's loader and the gate refuse by themselves.

mod host;
mod network;
mod service;

use super::Executor;
use super::run::{Halt, Run, failed};
use crate::engine::EngineError;
use crate::model::ids::{EngineName, ImageRef, ServiceName};
use crate::model::labels;
use crate::model::observed::{ContainerSummary, EngineInfo, ImageInfo, NetworkInfo, VolumeInfo};
use crate::model::plan::{Action, Change, Plan, PlanKind};
use crate::model::preflight::{Check, Passed};
use crate::model::release::Release;
use crate::model::spec::ServiceSpec;
use crate::planner;
use futures_util::{StreamExt, stream};
use std::collections::BTreeMap;

/// Registries asked at once; each answers or is given up within seconds.
const LOOKS: usize = 8;

/// Fails with every check that does not hold.
pub(super) async fn check(run: &Run) -> Result<(), Halt> {
    let phase = run.operation().phase;
    let report = run.asking(phase, || run.exec.preflight(&run.plan)).await?;
    for c in report.iter().filter(|c| matches!(c.ok, Passed::Warn | Passed::Unknown)) {
        tracing::info!(operation = %run.operation_id(), check = %c.id, ok = ?c.ok, message = %c.message, "preflight");
    }
    let problems: Vec<String> = report.iter().filter(|c| c.ok == Passed::No).map(|c| format!("{}: {}", c.id, c.message)).collect();
    if problems.is_empty() { Ok(()) } else { Err(failed(format!("preflight: {}", problems.join("; ")))) }
}

/// What a report is made from: one reading of the engine.
struct Facts<'a> {
    plan: &'a Plan,
    instance: &'a str,
    local: bool,
    about: EngineInfo,
    containers: Vec<ContainerSummary>,
    networks: Vec<NetworkInfo>,
    volumes: Vec<VolumeInfo>,
    /// Images of the plan that are on the engine, by service.
    images: BTreeMap<ServiceName, ImageInfo>,
    /// What the registries said of those that are not; absent where they were not asked.
    registry: BTreeMap<ServiceName, Result<(), EngineError>>,
    current: Option<Release>,
}

/// Collects lines; several of one id are one check in several words.
#[derive(Default)]
struct Report {
    lines: Vec<Check>,
}

impl Report {
    fn add(&mut self, id: &str, ok: Passed, message: impl Into<String>) {
        self.lines.push(Check { id: id.into(), ok, message: message.into() });
    }
    /// The problems of one check, or one line that says that there are none.
    fn all(&mut self, id: &str, bad: Passed, problems: Vec<String>, good: impl Into<String>) {
        if problems.is_empty() {
            self.add(id, Passed::Yes, good);
        }
        for problem in problems {
            self.add(id, bad, problem);
        }
    }
}

impl Facts<'_> {
    /// Services that get a new container.
    fn renewed(&self) -> impl Iterator<Item = (&Change, &ServiceSpec)> {
        let made = |c: &&Change| matches!(c.action, Action::Create | Action::Update | Action::Scale);
        self.plan.changes.iter().filter(made).filter_map(|c| Some((c, self.plan.desired.services.get(&c.service)?)))
    }
    fn ours(&self, labels: &BTreeMap<String, String>) -> bool {
        labels.get(labels::INSTANCE).is_some_and(|i| i == self.instance)
            && labels.get(labels::STACK).is_some_and(|s| *s == self.plan.stack.to_string())
    }
}

impl Executor {
    /// Judges a plan against the engine and its host as they are now. Changes nothing. Empty for what makes no new release.
    ///
    /// # Errors
    /// The engine's; a report is whole or not made.
    pub async fn preflight(&self, plan: &Plan) -> Result<Vec<Check>, EngineError> {
        if !matches!(plan.kind, PlanKind::Deploy | PlanKind::Rollback | PlanKind::Scale) {
            return Ok(vec![]);
        }
        let engine = &*self.engine;
        let (about, containers, networks, volumes) =
            tokio::try_join!(engine.about(), engine.containers(&[]), engine.networks(&[]), engine.volumes(&[]))?;
        let known_ids = plan.images.iter().filter_map(|(s, i)| Some((s, ImageRef::new(i.id.as_deref()?).ok()?)));
        let looks = known_ids.map(|(service, id)| async move { Ok::<_, EngineError>((service.clone(), engine.image(&id).await?)) });
        let found = futures_util::future::try_join_all(looks).await?;
        let images: BTreeMap<_, _> = found.into_iter().filter_map(|(service, image)| Some((service, image?))).collect();
        let registry = self.pullable(plan).await;
        let known = |e: crate::store::StoreError| tracing::warn!(error = %e, "a preflight check could not read our own state");
        let current = match plan.from_release {
            Some(number) => self.store.release(&plan.stack, number).await.map_err(known).unwrap_or_default(),
            None => None,
        };
        let facts = Facts {
            plan,
            instance: self.store.instance(),
            local: self.is_local(),
            about,
            containers,
            networks,
            volumes,
            images,
            registry,
            current,
        };
        let mut report = Report::default();
        text(&facts, &mut report);
        service::images(&facts, &mut report);
        host::all(&facts, &mut report);
        network::all(&facts, self.probes_host_ports(), &mut report);
        volumes_there(&facts, &mut report);
        claim(&facts, &mut report);
        service::all(&facts, &mut report);
        self.rollback_possible(&facts, &mut report).await?;
        self.backup_made(&facts, &mut report).await;
        Ok(report.lines)
    }

    /// What the registries say of the images that are to be pulled, by the digest the plan names where it names one. A registry the policy does not allow
    /// is not asked: a plan is free, and must not have the engine call on whatever host it names.
    async fn pullable(&self, plan: &Plan) -> BTreeMap<ServiceName, Result<(), EngineError>> {
        let foreign = |s: &ServiceName| {
            plan.findings
                .iter()
                .any(|f| f.service.as_deref() == Some(s.as_str()) && matches!(f.rule.as_str(), "image.unlisted" | "image.malformed"))
        };
        let absent = plan.images.iter().filter(|(service, identity)| identity.id.is_none() && !foreign(service));
        let looks: Vec<_> = absent
            .map(|(service, identity)| async move {
                let exact = identity.repo_digest.as_deref().and_then(|d| ImageRef::new(d).ok());
                let told = self.engine.registry_digest(exact.as_ref().unwrap_or(&identity.reference)).await;
                (service.clone(), told.map(|_| ()))
            })
            .collect();
        stream::iter(looks).buffer_unordered(LOOKS).collect().await
    }

    /// Whether what runs could be made again once it is gone. The way back within the operation does not need it: its containers are kept.
    async fn rollback_possible(&self, facts: &Facts<'_>, report: &mut Report) -> Result<(), EngineError> {
        const ID: &str = "rollback.possible";
        let Some(current) = &facts.current else {
            report.add(ID, Passed::Yes, "a first release: a failure removes it again");
            return Ok(());
        };
        let active = |s: &ServiceName| current.spec.services.get(s).is_some_and(|s| s.active);
        let only_here = current.images.iter().filter(|(s, i)| active(s) && i.repo_digest.is_none());
        let looks = only_here.map(|(service, identity)| async move {
            let here = match identity.id.as_deref().map(ImageRef::new) {
                // Looked at already: most services keep their image.
                Some(Ok(id)) if facts.images.values().any(|i| i.id == id.as_str()) => true,
                Some(Ok(id)) => self.engine.image(&id).await?.is_some(),
                Some(Err(_)) | None => false,
            };
            Ok::<_, EngineError>((!here).then_some(service))
        });
        let looked = futures_util::future::try_join_all(looks).await?;
        let mut gone: Vec<String> = looked
            .into_iter()
            .flatten()
            .map(|service| format!("the image of service {service} in release {} is gone and has no registry digest", current.number))
            .collect();
        for (service, why) in &facts.plan.migrates {
            gone.push(format!("service {service} changes data ({why}): once its new version was well, nothing automatic goes back"));
        }
        report.all(ID, Passed::Warn, gone, format!("release {} can be made again", current.number));
        Ok(())
    }

    /// Whether the data that an update touches was saved within a day.
    async fn backup_made(&self, facts: &Facts<'_>, report: &mut Report) {
        const ID: &str = "backup.made";
        let touched = |c: &Change, s: &ServiceSpec| c.action == Action::Update && s.single_writer();
        let services: Vec<&ServiceName> = facts.renewed().filter(|(c, s)| touched(c, s)).map(|(c, _)| &c.service).collect();
        if services.is_empty() {
            return report.add(ID, Passed::Yes, "no service with data is replaced");
        }
        let named = |services: &[&ServiceName]| services.iter().map(|s| s.as_str()).collect::<Vec<_>>().join(", ");
        let (first, services): (Vec<_>, Vec<_>) = services.into_iter().partition(|s| facts.plan.data.services.contains(*s));
        if !first.is_empty() {
            report.add(ID, Passed::Yes, format!("{}: this plan snapshots its data first", named(&first)));
        }
        if services.is_empty() {
            return;
        }
        let names = named(&services);
        match self.store.backups(Some(&facts.plan.stack), None, 1).await {
            Ok(found) => match found.first() {
                Some(b) if chrono::Utc::now() - b.at < chrono::TimeDelta::hours(24) => {
                    report.add(ID, Passed::Yes, format!("{names}: last backup {}", b.at.format("%Y-%m-%d %H:%M UTC")))
                }
                Some(b) => report.add(
                    ID,
                    Passed::Warn,
                    format!("{names}: the last backup is of {}; call `backup` first", b.at.format("%Y-%m-%d %H:%M UTC")),
                ),
                None => report.add(ID, Passed::Warn, format!("{names}: the stack has no backup; call `backup` first")),
            },
            Err(e) => report.add(ID, Passed::Unknown, format!("the records of backups cannot be read: {e}")),
        }
    }
}

/// What the loader found: a plan exists, so the file loads and its dependencies have an order.
fn text(facts: &Facts<'_>, report: &mut Report) {
    let unset = |u: &&crate::model::spec::Unsupported| u.reason.starts_with("variable ") && u.reason.contains(" is not set");
    let notes = &facts.plan.desired.unsupported;
    let variables: Vec<String> = notes.iter().filter(unset).map(|u| format!("{}: {}", u.path, u.reason)).collect();
    let ignored = notes.len() - variables.len();
    let good = if ignored == 0 { "the file loads".to_owned() } else { format!("the file loads; {ignored} keys in it have no effect here") };
    report.add("file.syntax", Passed::Yes, good);
    report.all("file.variables", Passed::Warn, variables, "all variables are set");
    match planner::levels::levels(&facts.plan.desired) {
        Ok(levels) => report.add("depends.order", Passed::Yes, format!("{} levels, no cycle", levels.len())),
        Err(e) => report.add("depends.order", Passed::No, e.to_string()),
    }
}

fn volumes_there(facts: &Facts<'_>, report: &mut Report) {
    let there = |name: &str| facts.volumes.iter().any(|v| v.name.as_str() == name);
    let missing = facts.plan.desired.volumes.values().filter(|v| v.external && !there(&v.name));
    let problems = missing.map(|v| format!("volume {} does not exist; create it or correct its name", v.name)).collect();
    report.all("volume.external", Passed::No, problems, "external volumes exist");
    let other_driver = facts.plan.desired.volumes.values().filter(|v| !v.external).filter_map(|v| {
        let found = facts.volumes.iter().find(|f| f.name.as_str() == v.name)?;
        let wanted = v.driver.as_deref().unwrap_or("local");
        let differs = v.driver_opts.iter().find(|(key, value)| found.options.get(*key) != Some(value));
        match differs {
            _ if found.driver != wanted => {
                Some(format!("volume {} exists with driver {}, the file says {wanted}; rename one of them", v.name, found.driver))
            }
            Some((key, _)) => Some(format!(
                "volume {} exists with another driver option {key} than the file's: a volume is not changed in place; give it another name, or the file \
                 the option it was made with",
                v.name
            )),
            None => None,
        }
    });
    report.all("volume.driver", Passed::No, other_driver.collect(), "volumes are as the file says, or are made");
}

fn claim(facts: &Facts<'_>, report: &mut Report) {
    let name: EngineName = super::names::claim(&facts.plan.stack);
    let held = facts.containers.iter().find(|c| c.name == name.as_str()).and_then(|c| c.labels.get(labels::INSTANCE));
    match held {
        Some(i) if i != facts.instance => report.add(
            "stack.claim",
            Passed::No,
            format!("the stack is claimed on this engine by another supervisor (instance {i}); remove container {name} if that supervisor is gone for good"),
        ),
        Some(_) | None => report.add("stack.claim", Passed::Yes, "no other supervisor claims the stack"),
    }
}
