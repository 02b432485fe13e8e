//! The incident of a service from its first sign to its recovery: opened with evidence, one line per action, closed when it stays well.

use crate::call::House;
use crate::call::diagnose::{self, Ailment};
use crate::executor::probe::{self, ProbeError};
use crate::model::ids::{IncidentId, ServiceName, StackName};
use crate::model::incident::{Cause, Incident, Taken};
use crate::model::release::Release;
use crate::store::StoreResult;
use chrono::{DateTime, Utc};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::Mutex;

/// Services that may have an open incident; not read yet when absent.
type Open = Option<BTreeSet<(StackName, ServiceName)>>;

/// Keeps incidents; clones share one lock, since the loop and the actions it started write the same record.
#[derive(Debug, Clone)]
pub(super) struct Incidents {
    house: Arc<House>,
    /// Services that may have an open incident: a look at a healthy stack must not read the store for each of its services.
    open: Arc<Mutex<Open>>,
}

impl Incidents {
    pub(super) fn new(house: Arc<House>) -> Self {
        Self { house, open: Arc::new(Mutex::new(None)) }
    }

    /// The services with an open incident, read once.
    async fn known<'a>(&self, open: &'a mut Open) -> StoreResult<&'a mut BTreeSet<(StackName, ServiceName)>> {
        if open.is_none() {
            *open = Some(self.house.store.services_with_incidents().await?.into_iter().collect());
        }
        Ok(open.get_or_insert_default())
    }

    /// A service is not well: opens its incident, or notes a relapse in the open one.
    pub(super) async fn sign(&self, stack: &StackName, release: &Release, patient: &Ailment, now: DateTime<Utc>) -> StoreResult<()> {
        let mut guard = self.open.lock().await;
        let open = self.known(&mut guard).await?;
        let store = &self.house.store;
        let key = (stack.clone(), patient.service.clone());
        if open.contains(&key)
            && let Some(mut incident) = store.open_incident(stack, &patient.service).await?
        {
            if incident.recovered_at.take().is_some() {
                return store.put_incident(&incident).await;
            }
            return Ok(());
        }
        let id =
            IncidentId::new(format!("inc-{}", ulid::Ulid::generate().to_string().to_ascii_lowercase())).expect("a ulid is alphanumeric");
        let error = ProbeError::Failed { reason: patient.reason.clone(), output: patient.error.clone() };
        let evidence = async {
            match &patient.container {
                Some(container) => vec![probe::evidence(&*self.house.engine, container, patient.service.as_str(), &error).await],
                None => vec![],
            }
        };
        // The act waits for it: what can be asked at once is.
        let (evidence, changes) = tokio::join!(evidence, diagnose::changes(&self.house, stack, now));
        // A log often names what the exit code only hints at.
        let hinted = evidence.iter().flat_map(|e| e.logs.iter().rev().take(20)).find_map(|line| diagnose::cause_of_error(line));
        let cause =
            if matches!(patient.cause, Cause::Crashed | Cause::Unhealthy) { hinted.unwrap_or(patient.cause) } else { patient.cause };
        let changes = changes.unwrap_or_else(|e| vec![format!("(could not be read: {})", e.message)]);
        let incident = Incident {
            id,
            stack: stack.clone(),
            service: patient.service.clone(),
            release: release.number,
            opened_at: now,
            closed_at: None,
            recovered_at: None,
            cause,
            reason: patient.reason.clone(),
            evidence,
            changes,
            actions: vec![],
            quarantined: false,
            ended: None,
        };
        store.put_incident(&incident).await?;
        open.insert(key);
        Ok(())
    }

    async fn change(
        &self,
        stack: &StackName,
        service: &ServiceName,
        change: impl FnOnce(&mut Incident),
    ) -> StoreResult<Option<IncidentId>> {
        let _one = self.open.lock().await;
        let Some(mut incident) = self.house.store.open_incident(stack, service).await? else { return Ok(None) };
        change(&mut incident);
        self.house.store.put_incident(&incident).await?;
        Ok(Some(incident.id))
    }

    /// An action begins.
    pub(super) async fn took(&self, stack: &StackName, service: &ServiceName, act: &str, now: DateTime<Utc>) -> StoreResult<()> {
        let taken = Taken { at: now, act: act.to_owned(), outcome: None };
        self.change(stack, service, |i| i.actions.push(taken)).await.map(|_| ())
    }

    /// The last action ended.
    pub(super) async fn outcome(&self, stack: &StackName, service: &ServiceName, outcome: String) -> StoreResult<()> {
        let write = |i: &mut Incident| {
            if let Some(last) = i.actions.iter_mut().rev().find(|a| a.outcome.is_none()) {
                last.outcome = Some(outcome);
            }
        };
        self.change(stack, service, write).await.map(|_| ())
    }

    /// The loop gave up.
    pub(super) async fn quarantine(&self, stack: &StackName, service: &ServiceName, now: DateTime<Utc>) -> StoreResult<Option<IncidentId>> {
        let taken = Taken { at: now, act: "quarantine".into(), outcome: Some("a person must look".into()) };
        let write = |i: &mut Incident| {
            i.quarantined = true;
            i.actions.push(taken);
        };
        self.change(stack, service, write).await
    }

    /// What there is nothing left of to recover is closed: its record says why, and goes when it is old like any other. `why` answers for a service that is gone.
    pub(super) async fn gone(&self, why: impl Fn(&StackName, &ServiceName) -> Option<&'static str>, now: DateTime<Utc>) -> StoreResult<()> {
        let mut guard = self.open.lock().await;
        let open = self.known(&mut guard).await?;
        let gone: Vec<_> =
            open.iter().filter_map(|(stack, service)| Some((stack.clone(), service.clone(), why(stack, service)?))).collect();
        for (stack, service, why) in gone {
            let store = &self.house.store;
            while let Some(mut incident) = store.open_incident(&stack, &service).await? {
                (incident.closed_at, incident.ended) = (Some(now), Some(why.to_owned()));
                store.put_incident(&incident).await?;
                tracing::info!(incident = %incident.id, %stack, %service, why, "an incident ended without a recovery");
            }
            store.close_unreadable(&stack, &service, now).await?;
            open.remove(&(stack, service));
        }
        Ok(())
    }

    /// The service is well; `over` closes its incident.
    pub(super) async fn well(&self, stack: &StackName, service: &ServiceName, now: DateTime<Utc>, over: bool) -> StoreResult<()> {
        let mut guard = self.open.lock().await;
        let open = self.known(&mut guard).await?;
        let key = (stack.clone(), service.clone());
        if !open.contains(&key) {
            return Ok(());
        }
        let Some(mut incident) = self.house.store.open_incident(stack, service).await? else {
            open.remove(&key);
            return Ok(());
        };
        let before = (incident.recovered_at, incident.closed_at);
        incident.recovered_at.get_or_insert(now);
        if over {
            incident.closed_at = Some(now);
            open.remove(&key);
        }
        if before == (incident.recovered_at, incident.closed_at) { Ok(()) } else { self.house.store.put_incident(&incident).await }
    }
}
