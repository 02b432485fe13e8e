//! Directories of the host whose restored copy takes their place in a release: restored and compared while everything runs, exchanged while nobody writes
//! them, then the services that mount them are made anew like those of any other release. What was live is kept beside. Deliberately absent: removing it.

use super::came_back;
use crate::executor::acts::Act;
use crate::executor::backup::acts::{DataAct, EXCHANGE, RESTORE};
use crate::executor::backup::exchange::{self, Exchange};
use crate::executor::backup::keep::PRE_RESTORE;
use crate::executor::backup::reach;
use crate::executor::backup::{Directory, Quiesce, SnapshotState, Writer, writers};
use crate::executor::restore;
use crate::executor::run::{Halt, Run, failed};
use crate::model::ids::ServiceName;
use crate::model::observed::ContainerDetail;
use crate::model::operation::Phase;
use crate::model::plan::{Action, PlannedExchange, Strategy};
use crate::planner::Observed;
use crate::store::kept::KeptRecord;
use chrono::Utc;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Keys of the steps that hold and resume containers which mount an exchanged directory and are not this release's to replace.
pub(in crate::executor) const HOLD: &str = "hold-directories";
pub(in crate::executor) const RESUME: &str = "resume-directories";

fn directory(planned: &PlannedExchange) -> Directory {
    Directory { host: planned.host.clone(), here: Some(planned.here.clone()), real: planned.real.clone() }
}

impl Run {
    /// The whole way of all of them; nothing where they have changed places already.
    pub(super) async fn exchange_directories(&self) -> Result<(), Halt> {
        let todo: Vec<&PlannedExchange> = self.plan.data.exchange.iter().filter(|e| !self.exchanged(e)).collect();
        if todo.is_empty() {
            return Ok(());
        }
        // A registry takes its time, or says no: not while what is to be exchanged is stopped.
        self.pull_images().await?;
        let mut staged = vec![];
        for planned in &todo {
            staged.push(self.stage(planned).await?);
        }
        let _calm = self.calm().await?;
        let observed = self.observe().await?;
        let (mine, others) = self.users(&todo, &observed).await?;
        // Looked at before anything is stopped: what cannot be exchanged is refused without a gap.
        let mut exchanges = vec![];
        for (planned, staged) in todo.iter().zip(&staged) {
            let kept = restore::kept_beside(&planned.here, self.operation_id());
            exchanges.push(Exchange::of(&planned.here, staged, kept, others.clone()).map_err(|e| failed(e.to_string()))?);
        }
        let quiesce = Quiesce::Stop;
        if !others.is_empty() {
            self.say(format!("stopping {} containers that are not replaced", others.len()));
            let act = DataAct::Hold { writers: others.clone(), quiesce };
            self.step(Phase::Snapshot, HOLD.to_owned(), Act::Data { data: act }).await?;
        }
        for (service, container) in &mine {
            self.quiet(service, container, &observed).await?;
        }
        for planned in &todo {
            match self.before_exchange(planned).await {
                Err(Halt::Interrupted(why)) => {
                    self.let_go(&others, quiesce).await;
                    return Err(Halt::Interrupted(why));
                }
                other => other?,
            }
        }
        for exchange in exchanges {
            self.say(format!("exchanging {} and {}", exchange.live.display(), exchange.staged.display()));
            self.data_step_to_its_end(DataAct::Exchange { exchange }).await?;
        }
        if !others.is_empty() {
            let act = DataAct::Resume { writers: others.clone(), quiesce };
            self.step(Phase::Snapshot, RESUME.to_owned(), Act::Data { data: act }).await?;
            self.say("waiting until those who use it beside the stack are well on it".to_owned());
            self.data_step(DataAct::Prove { users: others }).await?;
        }
        Ok(())
    }

    fn exchanged(&self, planned: &PlannedExchange) -> bool {
        let journal = self.journal.lock().expect("no panic while held");
        journal.get(&format!("{EXCHANGE}{}", planned.here.display())).is_some_and(|s| s.done.is_some())
    }

    async fn stage(&self, planned: &PlannedExchange) -> Result<PathBuf, Halt> {
        let snapshot = self.snapshot_of(&planned.snapshot_id).await?;
        let place = directory(planned);
        let into = restore::beside(&place, &snapshot, self.operation_id()).map_err(|e| failed(e.to_string()))?;
        reach::unmoved(self.exec.around(), &place).await.map_err(|e| failed(e.to_string()))?;
        self.say(format!("restoring {} bytes of {} into {}", snapshot.bytes, snapshot.volume, into.display()));
        came_back(self.data_step(DataAct::RestoreDirectory { snapshot, into: into.clone(), path: None }).await?)?;
        Ok(into)
    }

    /// Who mounts the directories: containers this release replaces, as far as they write, and all others. A reader that is replaced sees the directory it
    /// was started on to its end.
    async fn users(
        &self,
        todo: &[&PlannedExchange],
        observed: &Observed,
    ) -> Result<(Vec<(ServiceName, ContainerDetail)>, Vec<Writer>), Halt> {
        let replaced: Vec<(ServiceName, ContainerDetail)> = self
            .changes()
            .filter(|c| c.action == Action::Update)
            .flat_map(|c| self.old_ones(observed, &c.service).into_iter().map(|o| (c.service.clone(), o)))
            .collect();
        let around = self.exec.around();
        let hosts: Vec<String> = todo.iter().map(|e| directory(e).bound().to_owned()).collect();
        let writing = writers(around, &[], &hosts).await.map_err(|e| failed(e.to_string()))?;
        let mut others: Vec<Writer> = vec![];
        for host in &hosts {
            for user in exchange::users(around, host).await.map_err(|e| failed(e.to_string()))? {
                if !replaced.iter().any(|(_, c)| c.id == user.id) && !others.contains(&user) {
                    others.push(user);
                }
            }
        }
        let mine = replaced.into_iter().filter(|(_, c)| writing.iter().any(|w| w.id == c.id)).collect();
        Ok((mine, others))
    }

    /// Stops a container that is replaced after the exchange; behind a front its clients wait.
    async fn quiet(&self, service: &ServiceName, container: &ContainerDetail, observed: &Observed) -> Result<(), Halt> {
        if self.changes().any(|c| c.service == *service && c.strategy == Strategy::Hold) {
            self.hold_connections(Phase::Snapshot, service, observed).await?;
        }
        self.retire_sharers(service, observed).await?;
        self.retire(Phase::Snapshot, service, container).await
    }

    async fn before_exchange(&self, planned: &PlannedExchange) -> Result<(), Halt> {
        self.say(format!("snapshot of {} before its data is another", planned.host));
        let (release, tags) = (self.plan.from_release, vec![PRE_RESTORE.to_owned()]);
        let done = self.data_step(DataAct::Directory { directory: directory(planned), release, tags }).await?;
        if done["snapshot"]["state"] == SnapshotState::Complete.as_str() {
            return Ok(());
        }
        Err(failed(format!(
            "the snapshot of {} before the restore is partial ({} files could not be read, which `backup` of it names): let the supervisor read them",
            planned.host, done["unreadable_count"]
        )))
    }

    /// Whether a step brought data to services whose new containers stay although the release does not: it is not taken from below them.
    pub(in crate::executor) fn brought_for(&self, key: &str, keep: &BTreeSet<String>) -> bool {
        let kept = |s: &ServiceName| keep.contains(s.as_str());
        let beside = |e: &PlannedExchange| {
            let name = e.here.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            e.here.with_file_name(format!("{name}-restored-")).display().to_string()
        };
        let exchange =
            |e: &PlannedExchange| key == format!("{EXCHANGE}{}", e.here.display()) || key.starts_with(&format!("{RESTORE}{}", beside(e)));
        let uses = |volume: &str| {
            let specs = self.plan.desired.services.iter().filter(|(n, _)| kept(n)).flat_map(|(_, s)| &s.mounts);
            specs.filter_map(|m| m.source.as_deref()).filter_map(|k| self.plan.desired.volumes.get(k)).any(|v| v.name == volume)
        };
        let data = &self.plan.data;
        data.exchange.iter().any(|e| exchange(e) && e.services.iter().any(kept))
            || data
                .restore
                .iter()
                .any(|r| key == format!("{RESTORE}{}", r.into) && (r.service.as_ref().is_some_and(kept) || uses(r.into.as_str())))
    }

    /// What the release has taken the place of.
    pub(in crate::executor) fn data_kept(&self) -> Vec<KeptRecord> {
        let record = |place: String, source: &str, snapshot: &str| KeptRecord {
            place,
            source: source.to_owned(),
            stack: self.plan.stack.clone(),
            release: self.plan.to_release,
            operation: self.operation_id().clone(),
            snapshot_id: snapshot.to_owned(),
            since: Utc::now(),
            covered: None,
        };
        let volumes = self.plan.data.restore.iter().map(|r| record(r.live.clone(), &r.source, &r.snapshot_id));
        let directories = self.plan.data.exchange.iter().map(|e| {
            let kept = restore::kept_beside(&e.here, self.operation_id());
            record(kept.display().to_string(), &e.host, &e.snapshot_id)
        });
        volumes.chain(directories).collect()
    }

    /// Where the data is that a release with restored data took the place of, in words.
    pub(in crate::executor) fn data_left(&self) -> Option<String> {
        let volumes =
            self.plan.data.restore.iter().map(|r| format!("the data before is kept in volume {} ({} is used now)", r.live, r.into));
        let directories = self.plan.data.exchange.iter().map(|e| {
            let kept = restore::kept_beside(&e.here, self.operation_id());
            format!("{} holds the restored data; what it held before is kept in {}", e.host, kept.display())
        });
        let left: Vec<String> = volumes.chain(directories).collect();
        (!left.is_empty()).then(|| left.join("; "))
    }
}
