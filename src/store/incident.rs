//! Incidents: from the first sign that a service is not well to its recovery. Sealed, since evidence holds what containers wrote.

mod index;

pub(super) use index::Index;

use super::codec::{all, first, limit, name, readable, time};
use super::fault::Sql;
use super::memory::search;
use super::seal::Keys;
use super::{Store, StoreResult};
use crate::model::ids::*;
use crate::model::incident::Incident;
use chrono::{DateTime, Utc};
use rusqlite::{Connection, Row, params};
use std::collections::BTreeMap;

const WHAT: &str = "incident";
/// Incidents kept; older ones that are closed go.
const KEPT: i64 = 2000;

fn place(id: &IncidentId) -> String {
    format!("incident/{id}")
}

impl Store {
    /// Stores an incident as it stands.
    pub async fn put_incident(&self, incident: &Incident) -> StoreResult<()> {
        let sealed = self.inner.keys.seal(&place(&incident.id), incident)?;
        let i = incident.clone();
        // Taken out while the two differ: a write that is not followed to its end leaves no index, and the next search makes one.
        let mut place = self.inner.incident_words.lock().await;
        let index = place.take();
        let write = move |c: &Connection| {
            c.prepare_cached(
                "INSERT INTO incident (id, stack, service, opened_at, closed_at, sealed_body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (id) DO UPDATE SET closed_at = ?5, sealed_body = ?6",
            )?
            .execute(params![
                i.id.as_str(),
                i.stack.as_str(),
                i.service.as_str(),
                time(i.opened_at),
                i.closed_at.map(time),
                sealed
            ])?;
            let mut old = c.prepare_cached(
                "DELETE FROM incident WHERE closed_at IS NOT NULL AND opened_at < (SELECT opened_at FROM incident ORDER BY opened_at DESC LIMIT 1 OFFSET ?1) RETURNING id",
            )?;
            all(&mut old, [KEPT], |r| Ok(r.get::<_, String>(0)?))
        };
        let gone = self.inner.state.write(write).await?;
        *place = index.filter(|index| {
            let kept_up = index.put(incident).and_then(|()| gone.iter().try_for_each(|id| index.remove(id)));
            kept_up.inspect_err(|e| tracing::warn!(error = ?e, "the index of incidents is made anew by the next search")).is_ok()
        });
        Ok(())
    }

    /// The open incident of a service.
    pub async fn open_incident(&self, stack: &StackName, service: &ServiceName) -> StoreResult<Option<Incident>> {
        let (stack, service, inner) = (stack.clone(), service.clone(), self.inner.clone());
        let read = move |c: &Connection| {
            let mut s = c.prepare_cached(
                "SELECT id, sealed_body FROM incident WHERE stack = ?1 AND service = ?2 AND closed_at IS NULL ORDER BY opened_at DESC",
            )?;
            Ok(readable(&mut s, params![stack.as_str(), service.as_str()], |r| open(r, &inner.keys))?.into_iter().next())
        };
        self.inner.state.read(read).await
    }

    /// Services with an open incident, also one that cannot be read.
    ///
    /// # Errors
    /// The database's.
    pub async fn services_with_incidents(&self) -> StoreResult<Vec<(StackName, ServiceName)>> {
        let read = move |c: &Connection| {
            let mut s = c.prepare_cached("SELECT DISTINCT stack, service FROM incident WHERE closed_at IS NULL")?;
            all(&mut s, [], |r| Ok((name(WHAT, r.get(0)?)?, name(WHAT, r.get(1)?)?)))
        };
        self.inner.state.read(read).await
    }

    /// Closes, by their columns, what is still open of a service: incidents that cannot be read go with the rest.
    ///
    /// # Errors
    /// The database's.
    pub async fn close_unreadable(&self, stack: &StackName, service: &ServiceName, now: DateTime<Utc>) -> StoreResult<()> {
        let (stack, service) = (stack.clone(), service.clone());
        let write = move |c: &Connection| {
            let sql = "UPDATE incident SET closed_at = ?3 WHERE stack = ?1 AND service = ?2 AND closed_at IS NULL";
            c.prepare_cached(sql)?.execute(params![stack.as_str(), service.as_str(), time(now)])?;
            Ok(())
        };
        self.inner.state.write(write).await
    }

    /// One incident.
    pub async fn incident(&self, id: &IncidentId) -> StoreResult<Option<Incident>> {
        let (id, inner) = (id.clone(), self.inner.clone());
        let read = move |c: &Connection| {
            let mut s = c.prepare_cached("SELECT id, sealed_body FROM incident WHERE id = ?1")?;
            first(&mut s, [id.as_str()], |r| open(r, &inner.keys))
        };
        self.inner.state.read(read).await
    }

    /// How many incidents of each stack are not over.
    pub async fn open_incidents_by_stack(&self) -> StoreResult<BTreeMap<String, i64>> {
        let read = |c: &Connection| {
            let mut s = c.prepare_cached("SELECT stack, COUNT(*) FROM incident WHERE closed_at IS NULL GROUP BY stack")?;
            let rows = s.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        };
        self.inner.state.read(read).await
    }

    /// Incidents of a stack and service (or all), newest first.
    pub async fn incidents(&self, stack: Option<&StackName>, service: Option<&ServiceName>, n: usize) -> StoreResult<Vec<Incident>> {
        let (stack, service, inner) = (stack.cloned(), service.cloned(), self.inner.clone());
        let read = move |c: &Connection| {
            let mut s = c.prepare_cached(
                "SELECT id, sealed_body FROM incident WHERE (?1 IS NULL OR stack = ?1) AND (?2 IS NULL OR service = ?2)
                 ORDER BY opened_at DESC, id DESC LIMIT ?3",
            )?;
            readable(&mut s, params![stack.as_ref().map(StackName::as_str), service.as_ref().map(ServiceName::as_str), limit(n)], |r| {
                open(r, &inner.keys)
            })
        };
        self.inner.state.read(read).await
    }
}

impl Store {
    /// Incidents of these stacks with all of these words in their report, in any form of them, else with words that begin so; best first.
    pub async fn incidents_matching(&self, stacks: &[StackName], words: &str, n: usize) -> StoreResult<Vec<Incident>> {
        let queries = search::queries(words, false);
        if queries.is_empty() || stacks.is_empty() {
            return Ok(vec![]);
        }
        let ids = {
            let mut place = self.inner.incident_words.lock().await;
            if place.is_none() {
                *place = Some(self.index_incidents().await?);
            }
            let found = place.as_ref().map_or(Ok(vec![]), |index| index.search(stacks, &queries, n));
            found.map_err(|e| e.named(std::path::Path::new("the index of incidents")))?
        };
        let mut found = Vec::with_capacity(ids.len());
        for id in ids {
            found.extend(self.incident(&name(WHAT, id)?).await?);
        }
        Ok(found)
    }

    /// All incidents, opened and indexed off the async threads.
    async fn index_incidents(&self) -> StoreResult<Index> {
        let inner = self.inner.clone();
        let read = move |c: &Connection| {
            let index = Index::empty()?;
            let mut s = c.prepare("SELECT id, sealed_body FROM incident")?;
            readable(&mut s, [], |r| index.put(&open(r, &inner.keys)?))?;
            Ok(index)
        };
        self.inner.state.read(read).await
    }
}

fn open(r: &Row<'_>, keys: &Keys) -> Sql<Incident> {
    let id: IncidentId = name(WHAT, r.get(0)?)?;
    Ok(keys.open(WHAT, &place(&id), &r.get::<_, Vec<u8>>(1)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::incident::Cause;
    use crate::store::tests::open_in;

    fn incident(id: &str, service: &str, at: i64, closed: Option<i64>) -> Incident {
        let time = |s| DateTime::<Utc>::from_timestamp(1_790_000_000 + s, 0).unwrap();
        Incident {
            id: IncidentId::new(id).unwrap(),
            stack: StackName::new("shop").unwrap(),
            service: ServiceName::new(service).unwrap(),
            release: 1,
            opened_at: time(at),
            closed_at: closed.map(time),
            recovered_at: None,
            cause: Cause::Crashed,
            reason: "it ended".into(),
            evidence: vec![],
            changes: vec![],
            actions: vec![],
            quarantined: false,
            ended: None,
        }
    }

    #[tokio::test]
    async fn an_incident_is_open_until_it_is_closed_and_found_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let store = open_in(&dir).await.unwrap();
        let (stack, web) = (StackName::new("shop").unwrap(), ServiceName::new("web").unwrap());
        let mut first = incident("inc-a", "web", 0, None);
        store.put_incident(&first).await.unwrap();
        store.put_incident(&incident("inc-b", "db", 5, None)).await.unwrap();
        assert_eq!(store.open_incident(&stack, &web).await.unwrap(), Some(first.clone()));
        first.closed_at = Some(first.opened_at);
        store.put_incident(&first).await.unwrap();
        assert_eq!(store.open_incident(&stack, &web).await.unwrap(), None);
        assert_eq!(store.incident(&first.id).await.unwrap(), Some(first.clone()));
        let ids = |found: Vec<Incident>| found.into_iter().map(|i| i.id.to_string()).collect::<Vec<_>>();
        assert_eq!(ids(store.incidents(Some(&stack), None, 10).await.unwrap()), ["inc-b", "inc-a"]);
        assert_eq!(ids(store.incidents(None, Some(&web), 10).await.unwrap()), ["inc-a"]);
    }

    #[tokio::test]
    async fn one_that_cannot_be_read_hides_no_other_and_ends_with_its_service() {
        let dir = tempfile::tempdir().unwrap();
        let store = open_in(&dir).await.unwrap();
        let (stack, web) = (StackName::new("shop").unwrap(), ServiceName::new("web").unwrap());
        for (id, service, at) in [("inc-a", "web", 0), ("inc-b", "web", 5), ("inc-c", "db", 6)] {
            store.put_incident(&incident(id, service, at, None)).await.unwrap();
        }
        let damage = |c: &Connection| Ok(c.execute("UPDATE incident SET sealed_body = x'01' WHERE id = 'inc-b'", [])?);
        assert_eq!(store.inner.state.write(damage).await.unwrap(), 1);
        let ids = |found: Vec<Incident>| found.into_iter().map(|i| i.id.to_string()).collect::<Vec<_>>();
        assert_eq!(ids(store.incidents(None, None, 9).await.unwrap()), ["inc-c", "inc-a"]);
        assert_eq!(store.open_incident(&stack, &web).await.unwrap().unwrap().id.as_str(), "inc-a");
        *store.inner.incident_words.lock().await = None;
        assert_eq!(store.incidents_matching(std::slice::from_ref(&stack), "ended", 9).await.unwrap().len(), 2, "also by their words");
        assert_eq!(store.services_with_incidents().await.unwrap().len(), 2);
        store.close_unreadable(&stack, &web, incident("inc-x", "web", 9, None).opened_at).await.unwrap();
        assert_eq!(store.services_with_incidents().await.unwrap(), [(stack, ServiceName::new("db").unwrap())]);
    }

    #[tokio::test]
    async fn words_find_incidents_whose_bodies_are_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let store = open_in(&dir).await.unwrap();
        let stack = StackName::new("shop").unwrap();
        for (n, (id, reason)) in
            [("inc-a", "connection refused by db"), ("inc-b", "it deadlocked"), ("inc-c", "refused, refused again")].into_iter().enumerate()
        {
            store.put_incident(&Incident { reason: reason.into(), ..incident(id, "web", n as i64, None) }).await.unwrap();
        }
        let found = async |words: &str| {
            let found = store.incidents_matching(std::slice::from_ref(&stack), words, 10).await.unwrap();
            found.into_iter().map(|i| i.id.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(found("REFUSED").await, ["inc-c", "inc-a"], "most of them first");
        assert_eq!(found("connect refus").await, ["inc-a"], "all words, by their beginnings");
        assert_eq!(found("nothing of it").await, Vec::<String>::new());
        assert_eq!(found(" -- ").await, Vec::<String>::new());
        assert_eq!(found("deadlocking").await, ["inc-b"], "another form of the word");
        let other = StackName::new("other").unwrap();
        assert!(store.incidents_matching(std::slice::from_ref(&other), "refused", 10).await.unwrap().is_empty());
        assert_eq!(store.incidents_matching(&[other, stack.clone()], "refused", 10).await.unwrap().len(), 2);

        // What is written after the first search is found, and what an incident no longer says is not.
        store.put_incident(&Incident { reason: "restarted by hand".into(), ..incident("inc-b", "web", 1, None) }).await.unwrap();
        store.put_incident(&Incident { reason: "restarted twice".into(), ..incident("inc-d", "web", 9, None) }).await.unwrap();
        assert_eq!(found("restarting twice").await, ["inc-d"]);
        assert_eq!(found("restarting").await.len(), 2);
        assert_eq!(found("deadlocked").await, Vec::<String>::new());
        store.close().await;
        let dump = std::fs::read(dir.path().join("home/state.db")).unwrap();
        assert!(!dump.windows(7).any(|w| w == b"restart"), "no word of an incident is on the disk in the clear");
        let store = open_in(&dir).await.unwrap();
        assert_eq!(store.incidents_matching(&[stack], "restarts", 10).await.unwrap().len(), 2, "also after a restart");
    }

    #[tokio::test]
    async fn an_incident_that_is_no_longer_kept_is_no_longer_found() {
        let dir = tempfile::tempdir().unwrap();
        let store = open_in(&dir).await.unwrap();
        let stack = StackName::new("shop").unwrap();
        let old = Incident { reason: "ancient".into(), ..incident("inc-old", "web", 0, Some(1)) };
        store.put_incident(&old).await.unwrap();
        assert_eq!(store.incidents_matching(std::slice::from_ref(&stack), "ancient", 10).await.unwrap(), [old]);
        // Written beside the index, as an earlier process did.
        let sealed = store.inner.keys.seal(&place(&IncidentId::new("inc-x").unwrap()), &incident("inc-x", "web", 0, Some(1))).unwrap();
        let fill = move |c: &Connection| {
            for n in 0..KEPT {
                let at = time(DateTime::<Utc>::from_timestamp(1_790_000_100 + n, 0).unwrap());
                c.prepare_cached(
                    "INSERT INTO incident (id, stack, service, opened_at, closed_at, sealed_body) VALUES (?1, 'x', 'x', ?2, ?2, ?3)",
                )?
                .execute(params![format!("inc-{n}"), at, sealed])?;
            }
            Ok(())
        };
        store.inner.state.write(fill).await.unwrap();
        store.put_incident(&incident("inc-new", "web", 9_000, None)).await.unwrap();
        let index = store.inner.incident_words.lock().await;
        let queries = search::queries("ancient", false);
        assert_eq!(index.as_ref().unwrap().search(&[stack], &queries, 10).unwrap(), Vec::<String>::new());
    }
}
