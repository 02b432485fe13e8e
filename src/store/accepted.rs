//! Findings an operator approved, kept with the operation that carried them out, so that the same finding in a later plan of the stack does not ask
//! again. Deliberately absent: what makes two findings the same (`call::accepted`).

use super::codec::all;
use super::fault::Sql;
use super::{Store, StoreResult};
use crate::model::ids::OperationId;
use rusqlite::{Connection, params};
use std::collections::BTreeMap;

impl Store {
    /// Keeps approved findings (keyed hash -> release they were first approved with) with the operation of a release.
    pub async fn keep_accepted(&self, operation: &OperationId, findings: BTreeMap<String, u32>) -> StoreResult<()> {
        let operation = operation.clone();
        let write = move |c: &Connection| {
            for (finding, release) in &findings {
                insert(c, &operation, finding, *release)?;
            }
            Ok(())
        };
        self.inner.state.write(write).await
    }

    /// Approved findings of the operation that made a release, by keyed hash.
    pub async fn accepted(&self, operation: &OperationId) -> StoreResult<BTreeMap<String, u32>> {
        let operation = operation.clone();
        self.inner.state.read(move |c| select(c, &operation)).await
    }
}

fn insert(c: &Connection, operation: &OperationId, finding: &str, release: u32) -> Sql<usize> {
    let mut statement = c.prepare_cached("INSERT OR REPLACE INTO accepted (operation, finding, release) VALUES (?1, ?2, ?3)")?;
    Ok(statement.execute(params![operation.as_str(), finding, release])?)
}

fn select(c: &Connection, operation: &OperationId) -> Sql<BTreeMap<String, u32>> {
    let mut statement = c.prepare_cached("SELECT finding, release FROM accepted WHERE operation = ?1")?;
    let found: Vec<(String, u32)> = all(&mut statement, [operation.as_str()], |r| Ok((r.get(0)?, r.get(1)?)))?;
    Ok(found.into_iter().collect())
}
