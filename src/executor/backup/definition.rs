//! What data is part of, kept with its snapshot: the stack's file in Compose's canonical form, and how the volume is declared. With it a copy of the
//! repository and its key are enough to have a stack again where nothing else of it is left. Deliberately absent: deploying it.

use crate::compose;
use crate::model::release::Release;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Longest text kept with a snapshot, bytes: it is read whenever snapshots are listed.
const MOST: usize = 256 * 1024;

/// The definition of a source of a release. A file that is too long is left out, its volume is not.
pub(super) fn of(release: &Release, source: &str) -> String {
    let declared = release.spec.volumes.iter().find(|(_, v)| v.name == source || v.declared() == source);
    let volume = declared.map(|(key, v)| {
        json!({"key": key, "name": v.declared(), "driver": v.driver, "driver_opts": v.driver_opts, "labels": v.labels, "external": v.external})
    });
    let mut text = json!({
        "stack": release.stack,
        "release": release.number,
        "environment": release.environment,
        "volume": volume,
        "compose": compose::canonical(&release.spec),
    });
    if text.to_string().len() > MOST {
        text["compose"] = Value::Null;
    }
    text.to_string()
}

/// Files of definitions that stay of each stack.
const STAY: usize = 5;

/// Writes the file of a definition for people to deploy from, readable by us alone since it holds what its environment holds. `None` where there is none.
pub(super) fn written(exports: &Path, stack: &str, snapshot: &str, text: &str) -> std::io::Result<Option<PathBuf>> {
    use std::io::Write;
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    let Ok(definition) = serde_json::from_str::<Value>(text) else { return Ok(None) };
    if definition["compose"].is_null() {
        return Ok(None);
    }
    let directory = exports.join(stack);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
    let short: String = snapshot.chars().take(8).collect();
    let path = directory.join(format!("compose-{short}.json"));
    let aside = path.with_extension("new");
    let mut file = std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    file.write_all(format!("{:#}\n", definition["compose"]).as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&aside, &path)?;
    only_newest(&directory, &path)?;
    Ok(Some(path))
}

/// They hold what the environment of services holds: only the newest stay.
fn only_newest(directory: &Path, written: &Path) -> std::io::Result<()> {
    let mut files = vec![];
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let ours = entry.file_name().to_str().is_some_and(|n| n.starts_with("compose-"));
        if ours && entry.path() != written && entry.file_type()?.is_file() {
            files.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    files.sort();
    for (_, old) in files.iter().rev().skip(STAY - 1) {
        std::fs::remove_file(old)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::spec::VolumeSpec;
    use std::os::unix::fs::PermissionsExt;

    fn release(long: bool) -> Release {
        let volume = VolumeSpec { name: "shop_data".into(), driver: Some("local".into()), ..VolumeSpec::default() };
        let mut spec: crate::model::spec::StackSpec = serde_json::from_value(json!({
            "name": "shop", "services": {}, "networks": {}, "volumes": {}, "configs": {}, "secrets": {}, "settings": {}
        }))
        .unwrap();
        spec.volumes.insert("data".into(), volume);
        if long {
            spec.extensions.insert("x-long".into(), json!("x".repeat(MOST)));
        }
        Release { number: 4, ..Release::sample(spec) }
    }

    #[test]
    fn a_definition_tells_how_the_volume_is_declared_and_its_file_can_be_written_for_people() {
        let text = of(&release(false), "shop_data");
        let read: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&read["stack"], &read["release"], &read["volume"]["key"], &read["volume"]["driver"]),
            (&json!("shop"), &json!(4), &json!("data"), &json!("local"))
        );
        assert_eq!(read["compose"]["name"], json!("shop"));
        let dir = tempfile::tempdir().unwrap();
        let file = written(dir.path(), "other", "0123456789", &text).unwrap().unwrap();
        assert_eq!(file, dir.path().join("other/compose-01234567.json"));
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let back: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        assert_eq!(back, read["compose"]);
        assert_eq!(written(dir.path(), "other", "0123456789", "").unwrap(), None, "an older snapshot has none");
        // They hold secrets: a few stay, the one just written among them.
        for n in 0..9 {
            let file = written(dir.path(), "other", &format!("{n}abcdefgh"), &text).unwrap().unwrap();
            assert!(file.exists(), "{n}");
        }
        assert_eq!(std::fs::read_dir(dir.path().join("other")).unwrap().count(), STAY);
    }

    #[test]
    fn a_file_that_is_too_long_is_left_out_and_its_volume_is_not() {
        let text = of(&release(true), "shop_data");
        let read: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&read["compose"], &read["volume"]["key"]), (&Value::Null, &json!("data")));
        assert_eq!(written(Path::new("/nonexistent"), "other", "0123456789", &text).unwrap(), None);
    }
}
