//! Incidents: from the first sign that a service is not well to its recovery. Sealed, since evidence holds what containers wrote.

use super::codec::{all, first, limit, name, time};
use super::fault::Sql;
use super::seal::Keys;
use super::{Store, StoreResult};
use crate::model::ids::*;
use crate::model::incident::Incident;
use rusqlite::{Connection, Row, params};

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
            c.prepare_cached(
                "DELETE FROM incident WHERE closed_at IS NOT NULL AND opened_at < (SELECT opened_at FROM incident ORDER BY opened_at DESC LIMIT 1 OFFSET ?1)",
            )?
            .execute([KEPT])?;
            Ok(())
        };
        self.inner.state.write(write).await
    }

    /// The open incident of a service.
    pub async fn open_incident(&self, stack: &StackName, service: &ServiceName) -> StoreResult<Option<Incident>> {
        let (stack, service, inner) = (stack.clone(), service.clone(), self.inner.clone());
        let read = move |c: &Connection| {
            let mut s = c.prepare_cached(
                "SELECT id, sealed_body FROM incident WHERE stack = ?1 AND service = ?2 AND closed_at IS NULL ORDER BY opened_at DESC LIMIT 1",
            )?;
            first(&mut s, params![stack.as_str(), service.as_str()], |r| open(r, &inner.keys))
        };
        self.inner.state.read(read).await
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

    /// Incidents of a stack and service (or all), newest first.
    pub async fn incidents(&self, stack: Option<&StackName>, service: Option<&ServiceName>, n: usize) -> StoreResult<Vec<Incident>> {
        let (stack, service, inner) = (stack.cloned(), service.cloned(), self.inner.clone());
        let read = move |c: &Connection| {
            let mut s = c.prepare_cached(
                "SELECT id, sealed_body FROM incident WHERE (?1 IS NULL OR stack = ?1) AND (?2 IS NULL OR service = ?2)
                 ORDER BY opened_at DESC, id DESC LIMIT ?3",
            )?;
            all(&mut s, params![stack.as_ref().map(StackName::as_str), service.as_ref().map(ServiceName::as_str), limit(n)], |r| {
                open(r, &inner.keys)
            })
        };
        self.inner.state.read(read).await
    }
}

impl Store {
    /// Incidents of a stack with all of these words (or words that begin so) in their report: most of them first, then the newest. Bodies are sealed, since
    /// they hold what containers wrote, so there is no index of their words on the disk: all that are kept are opened and read.
    pub async fn incidents_matching(&self, stack: &StackName, words: &str, n: usize) -> StoreResult<Vec<Incident>> {
        let wanted: Vec<String> = tokens(words).take(MOST_WORDS).map(str::to_lowercase).collect();
        if wanted.is_empty() {
            return Ok(vec![]);
        }
        let (stack, inner) = (stack.clone(), self.inner.clone());
        let read = move |c: &Connection| {
            let mut s =
                c.prepare_cached("SELECT id, sealed_body FROM incident WHERE stack = ?1 ORDER BY opened_at DESC, id DESC LIMIT ?2")?;
            let kept = all(&mut s, params![stack.as_str(), KEPT], |r| open(r, &inner.keys))?;
            let mut found: Vec<(usize, Incident)> =
                kept.into_iter().map(|i| (matches(&i, &wanted), i)).filter(|(hits, _)| *hits > 0).collect();
            // Stable: equal ones stay newest first.
            found.sort_by_key(|(hits, _)| std::cmp::Reverse(*hits));
            Ok(found.into_iter().take(n).map(|(_, i)| i).collect())
        };
        self.inner.state.read(read).await
    }
}

/// Words looked for; more only slow it down.
const MOST_WORDS: usize = 16;

fn tokens(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty())
}

/// How often the words are in an incident's report; 0 when one of them is not.
fn matches(incident: &Incident, wanted: &[String]) -> usize {
    let text = incident.markdown(incident.closed_at.unwrap_or(incident.opened_at)).to_lowercase();
    let hits = |w: &String| tokens(&text).filter(|t| t.starts_with(w.as_str())).count();
    let counts: Vec<usize> = wanted.iter().map(hits).collect();
    if counts.contains(&0) { 0 } else { counts.iter().sum() }
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
    use chrono::{DateTime, Utc};

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
    async fn words_find_incidents_whose_bodies_are_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let store = open_in(&dir).await.unwrap();
        let stack = StackName::new("shop").unwrap();
        for (n, (id, reason)) in
            [("inc-a", "connection refused by db"), ("inc-b", "it ended"), ("inc-c", "refused, refused again")].into_iter().enumerate()
        {
            store.put_incident(&Incident { reason: reason.into(), ..incident(id, "web", n as i64, None) }).await.unwrap();
        }
        let found = async |words: &str| {
            let found = store.incidents_matching(&stack, words, 10).await.unwrap();
            found.into_iter().map(|i| i.id.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(found("REFUSED").await, ["inc-c", "inc-a"], "most of them first");
        assert_eq!(found("connect refus").await, ["inc-a"], "all words, by their beginnings");
        assert_eq!(found("nothing of it").await, Vec::<String>::new());
        assert_eq!(found(" -- ").await, Vec::<String>::new());
        assert!(store.incidents_matching(&StackName::new("other").unwrap(), "refused", 10).await.unwrap().is_empty());
    }
}
