//! What was taken over from Compose: the objects that are ours without carrying our labels, where the files of such a stack are, and the two
//! transactions that make a stack ours and give it back. Deliberately absent: judging whether it should be.

use super::codec::{all, changed, json, name, parse_json, parse_word, time, word};
use super::fault::Sql;
use super::journal::hold;
use super::{Store, StoreResult};
use crate::engine::adopted::Registry;
use crate::model::adopted::{AdoptedObject, Adoption, ObjectKind};
use crate::model::config::StackSettingsEntry;
use crate::model::ids::StackName;
use crate::model::operation::{Operation, OperationState, Phase};
use crate::model::release::{Release, ReleaseState};
use chrono::{DateTime, Utc};
use rusqlite::{Connection, OptionalExtension, Row, params};
use std::sync::Arc;

const WHAT: &str = "adopted object";

impl Store {
    /// The registry of adopted objects, always as the store has them.
    pub fn registry(&self) -> Arc<Registry> {
        self.inner.registry.clone()
    }

    /// Where an adopted stack's files are.
    pub async fn registration(&self, stack: &StackName) -> StoreResult<Option<StackSettingsEntry>> {
        let stack = stack.clone();
        self.inner.state.read(move |c| registration(c, &stack)).await
    }

    /// Makes an adopted stack ours in one transaction: its objects, its files, its release current and good, its operation done.
    ///
    /// # Errors
    /// `Superseded`, `Missing`, or the database's.
    pub async fn adopt(&self, op: &Operation, release: &Release, adoption: &Adoption, now: DateTime<Utc>) -> StoreResult<()> {
        let (op, number, environment) = (op.clone(), release.number, release.environment.clone());
        let (stack, adoption) = (release.stack.clone(), adoption.clone());
        let write = move |c: &Connection| {
            hold(c, &stack, op.epoch)?;
            for object in &adoption.objects {
                put_object(c, object)?;
            }
            put_registration(c, &stack, &adoption.entry, &op.agent, now)?;
            changed(serve(c, &stack, number, &environment, adoption.stopped)?, "stack", &stack)?;
            changed(good(c, &stack, number)?, "release", format!("{number} of stack {stack}"))?;
            Ok(changed(done(c, op.id.as_str(), number, now)?, "operation", &op.id)?)
        };
        self.inner.state.write(write).await?;
        self.refresh_registry().await
    }

    /// Forgets a stack in one transaction: registration, objects, releases, operations with their steps, plans, healing. Snapshots of its data
    /// stay, and so does the audit log. `given_back` are its objects, whose labels of ours mean nothing from now on.
    pub async fn forget_stack(&self, stack: &StackName, given_back: &[AdoptedObject]) -> StoreResult<()> {
        let (stack, given_back) = (stack.clone(), given_back.to_vec());
        let write = move |c: &Connection| {
            forget(c, &stack)?;
            given_back.iter().try_for_each(|object| put_object(c, object))
        };
        self.inner.state.write(write).await?;
        self.refresh_registry().await
    }

    async fn refresh_registry(&self) -> StoreResult<()> {
        let objects = self.inner.state.read(objects).await?;
        self.inner.registry.set(objects);
        Ok(())
    }
}

/// Everything adopted.
pub(super) fn objects(c: &Connection) -> Sql<Vec<AdoptedObject>> {
    let mut statement = c.prepare_cached("SELECT kind, id, stack, labels FROM adopted ORDER BY kind, id")?;
    all(&mut statement, [], |r: &Row<'_>| {
        Ok(AdoptedObject {
            kind: parse_word::<ObjectKind>(WHAT, &r.get::<_, String>(0)?)?,
            id: r.get(1)?,
            stack: name(WHAT, r.get(2)?)?,
            labels: parse_json(WHAT, &r.get::<_, String>(3)?)?,
        })
    })
}

fn put_object(c: &Connection, object: &AdoptedObject) -> Sql<()> {
    c.prepare_cached("INSERT OR REPLACE INTO adopted (kind, id, stack, labels) VALUES (?1, ?2, ?3, ?4)")?.execute(params![
        word(WHAT, &object.kind)?,
        object.id,
        object.stack.as_str(),
        json(WHAT, &object.labels)?
    ])?;
    Ok(())
}

fn registration(c: &Connection, stack: &StackName) -> Sql<Option<StackSettingsEntry>> {
    let text: Option<String> =
        c.prepare_cached("SELECT entry FROM registration WHERE stack = ?1")?.query_row([stack.as_str()], |r| r.get(0)).optional()?;
    Ok(text.map(|t| parse_json("registration", &t)).transpose()?)
}

fn put_registration(c: &Connection, stack: &StackName, entry: &StackSettingsEntry, by: &str, now: DateTime<Utc>) -> Sql<()> {
    c.prepare_cached("INSERT OR REPLACE INTO registration (stack, entry, by, at) VALUES (?1, ?2, ?3, ?4)")?.execute(params![
        stack.as_str(),
        json("registration", entry)?,
        by,
        time(now)
    ])?;
    Ok(())
}

fn serve(c: &Connection, stack: &StackName, number: u32, environment: &str, stopped: bool) -> Sql<usize> {
    let mut statement = c.prepare_cached("UPDATE stack SET current = ?2, environment = ?3, stopped = ?4 WHERE name = ?1")?;
    Ok(statement.execute(params![stack.as_str(), number, environment, stopped])?)
}

fn good(c: &Connection, stack: &StackName, number: u32) -> Sql<usize> {
    let mut statement = c.prepare_cached("UPDATE release SET state = ?3 WHERE stack = ?1 AND number = ?2")?;
    Ok(statement.execute(params![stack.as_str(), number, word("release", &ReleaseState::Good)?])?)
}

fn done(c: &Connection, operation: &str, release: u32, now: DateTime<Utc>) -> Sql<usize> {
    let mut statement =
        c.prepare_cached("UPDATE operation SET state = ?2, terminal = 1, phase = ?3, release = ?4, settled_at = ?5 WHERE id = ?1")?;
    Ok(statement.execute(params![operation, OperationState::Done.as_str(), word("operation", &Phase::Finished)?, release, time(now)])?)
}

fn forget(c: &Connection, stack: &StackName) -> Sql<()> {
    for statement in [
        "DELETE FROM step WHERE operation IN (SELECT id FROM operation WHERE stack = ?1)",
        "DELETE FROM accepted WHERE operation IN (SELECT id FROM operation WHERE stack = ?1)",
        "DELETE FROM operation WHERE stack = ?1",
        "DELETE FROM plan WHERE stack = ?1",
        "DELETE FROM release WHERE stack = ?1",
        "DELETE FROM heal WHERE stack = ?1",
        "DELETE FROM adopted WHERE stack = ?1",
        "DELETE FROM registration WHERE stack = ?1",
        "UPDATE approval SET state = 'stale' WHERE stack = ?1 AND state IN ('pending', 'approved')",
        "DELETE FROM stack WHERE name = ?1",
    ] {
        c.prepare_cached(statement)?.execute([stack.as_str()])?;
    }
    // What is noted under a key of its own: another life of the name begins at release 1 again and must not find it.
    for kind in ["links", "once", "drift", "hands", "course", "backup", "drill", "export"] {
        let key = format!("{kind}:{stack}");
        let (of_release, of_service) = (format!("{key}:"), format!("{key}/"));
        c.prepare_cached("DELETE FROM value WHERE key = ?1 OR substr(key, 1, length(?2)) = ?2 OR substr(key, 1, length(?3)) = ?3")?
            .execute([&key, &of_release, &of_service])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::labels;
    use std::collections::BTreeMap;

    #[tokio::test]
    async fn a_stack_that_was_forgotten_leaves_no_row_and_the_others_keep_theirs() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("home"), &dir.path().join("memory")).await.unwrap();
        for name in ["shop", "blog"] {
            let (name, entry) = (StackName::new(name).unwrap(), StackSettingsEntry { dir: "/srv".into(), ..Default::default() });
            let write = move |c: &Connection| {
                c.execute("INSERT INTO stack (name, current) VALUES (?1, 1)", [name.as_str()])?;
                c.execute("INSERT INTO step VALUES (?1, 1, 'prepare', 'k', x'00', NULL, 't', NULL)", [format!("op-{name}")])?;
                c.execute(
                    "INSERT INTO operation VALUES (?1, 'adopt', ?2, NULL, 'a', 'c', NULL, 'h', 'done', 1, 'finished', 1, 1, NULL, NULL, x'00', NULL, 0, 't', NULL)",
                    [format!("op-{name}"), name.to_string()],
                )?;
                put_registration(c, &name, &entry, "ann", Utc::now())?;
                put_object(
                    c,
                    &AdoptedObject {
                        kind: ObjectKind::Volume,
                        id: format!("{name}_data"),
                        stack: name.clone(),
                        labels: BTreeMap::from([(labels::STACK.into(), name.to_string())]),
                    },
                )
            };
            store.inner.state.write(write).await.unwrap();
        }
        let noted = |stack: &str| {
            let keys =
                ["links:S", "links:S:1", "once:S", "course:S/web", "drift:S", "hands:S", "backup:S", "backup:S/db", "drill:S", "export:S"];
            keys.map(|key| key.replace('S', stack))
        };
        // A name that begins with the other's is another stack's.
        for key in ["shop", "shop-2", "shopx", "blog"].iter().flat_map(|s| noted(s)) {
            store.set_value(&key, &serde_json::json!({"1": "x"})).await.unwrap();
        }
        store.forget_stack(&StackName::new("shop").unwrap(), &[]).await.unwrap();
        let count = |c: &Connection| -> Sql<Vec<i64>> {
            let mut counts = vec![];
            for table in ["stack", "step", "operation", "registration", "adopted"] {
                counts.push(c.query_row(&format!("SELECT count(*) FROM {table}"), [], |r| r.get(0))?);
            }
            Ok(counts)
        };
        assert_eq!(store.inner.state.read(count).await.unwrap(), [1, 1, 1, 1, 1]);
        for stack in ["shop", "shop-2", "shopx", "blog"] {
            for key in noted(stack) {
                assert_eq!(store.value(&key).await.unwrap().is_some(), stack != "shop", "{key}");
            }
        }
        assert_eq!(store.registration(&StackName::new("shop").unwrap()).await.unwrap(), None);
        let kept = store.registration(&StackName::new("blog").unwrap()).await.unwrap().unwrap();
        assert_eq!(kept.dir, std::path::PathBuf::from("/srv"));
    }
}
