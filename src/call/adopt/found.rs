//! A Compose project as its labels tell it: which containers, from which files. Labels are text of whoever made the containers: paths are checked
//! before anything is read. Deliberately absent: what the files say.

use crate::call::error::ErrorCode;
use crate::call::{CallError, House, compose_files};
use crate::executor::names;
use crate::model::config::{Config, StackSettingsEntry};
use crate::model::ids::StackName;
use crate::model::labels;
use crate::model::observed::ContainerSummary;
use crate::redact;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

const CONFIG_FILES: &str = "com.docker.compose.project.config_files";
const WORKING_DIR: &str = "com.docker.compose.project.working_dir";
const ENV_FILES: &str = "com.docker.compose.project.environment_file";

/// Containers of projects that are not ours, by project; `docker compose run` leaves ones that are no part of the stack.
///
/// # Errors
/// The engine's.
pub async fn projects(house: &House) -> Result<BTreeMap<String, Vec<ContainerSummary>>, CallError> {
    let mut found: BTreeMap<String, Vec<ContainerSummary>> = BTreeMap::new();
    for c in house.engine.containers(&[labels::COMPOSE_PROJECT.to_owned()]).await? {
        let ours = c.labels.get(labels::INSTANCE).is_some_and(|i| i == house.store.instance());
        if !ours && !one_off(&c) {
            found.entry(c.labels[labels::COMPOSE_PROJECT].clone()).or_default().push(c);
        }
    }
    Ok(found)
}

/// All containers of a project that serve: also ours, where Compose replaced only some of a stack that is managed here.
///
/// # Errors
/// The engine's.
pub async fn whole(house: &House, stack: &StackName) -> Result<Vec<ContainerSummary>, CallError> {
    let mut found = house.engine.containers(&[labels::filter(labels::COMPOSE_PROJECT, stack.as_str())]).await?;
    found.retain(|c| !one_off(c) && !names::is_retired(&c.name));
    Ok(found)
}

/// Made by `docker compose run`.
pub fn one_off(c: &ContainerSummary) -> bool {
    c.labels.get(labels::COMPOSE_ONEOFF).is_some_and(|v| v.eq_ignore_ascii_case("true"))
}

fn refuse<T>(code: ErrorCode, message: String, hint: impl Into<String>) -> Result<T, CallError> {
    Err(CallError::new(code, message, hint).field("stack"))
}

/// Another supervisor's stack is not Compose's to give.
///
/// # Errors
/// `Conflict` naming the instance.
pub async fn unclaimed(house: &House, stack: &StackName, containers: &[ContainerSummary]) -> Result<(), CallError> {
    let claim = house.engine.container(&names::claim(stack)).await?;
    let of = |l: &BTreeMap<String, String>| l.get(labels::INSTANCE).filter(|i| *i != house.store.instance()).map(|i| redact::line(i, 40));
    let other = claim.as_ref().and_then(|c| of(&c.labels)).or_else(|| containers.iter().find_map(|c| of(&c.labels)));
    match other {
        None => Ok(()),
        Some(instance) => refuse(
            ErrorCode::Conflict,
            format!("stack {stack} is claimed by another dockwarden (instance {instance})"),
            format!("run `dockwarden eject {stack}` there first"),
        ),
    }
}

/// Where a project's files are, from the labels of its newest container (older ones may name what an earlier `up` read).
///
/// # Errors
/// `Preflight` when it was deployed from standard input, or its directory or files are gone, out of sight or elsewhere.
pub fn entry(config: &Config, stack: &StackName, containers: &[ContainerSummary]) -> Result<StackSettingsEntry, CallError> {
    let gone = |message: String, hint: &str| refuse(ErrorCode::Preflight, message, hint);
    // Ours do not say: it was not from these files that Compose made them.
    let newest = containers.iter().filter(|c| c.labels.contains_key(CONFIG_FILES)).max_by_key(|c| c.created);
    let label = |key: &str| newest.and_then(|c| c.labels.get(key)).map(String::as_str).unwrap_or_default();
    let list = |key: &str| label(key).split(',').filter(|f| !f.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    let (dir, files) = (label(WORKING_DIR), list(CONFIG_FILES));
    if dir.is_empty() || files.is_empty() {
        return gone(
            format!("the containers of {stack} do not say which files they were deployed from"),
            "run `docker compose up -d` for it once with Compose v2, then adopt it",
        );
    }
    if files.iter().any(|f| f == "-" || f.starts_with("oci:") || f.contains("://")) {
        return gone(
            format!("{stack} was deployed from standard input or a remote file, so there is no file to go on with"),
            "write the file into its directory, run `docker compose up -d` there once, then adopt it",
        );
    }
    let root = PathBuf::from(dir);
    let seen = Some(&root).filter(|r| r.is_absolute()).and_then(|r| compose_files::visible(config, r)).filter(|d| d.is_dir());
    let Some(seen) = seen else {
        let hint = if config.path_map.is_some() {
            "mount it into the supervisor's container at the same path (STACK_ROOTS)"
        } else {
            "put the directory back, or run `docker compose up -d` where its files are now"
        };
        return gone(format!("the project directory {} of {stack} cannot be seen", redact::line(dir, 200)), hint);
    };
    let relative = |what: &str, file: &String| match inside(&root, file) {
        Some(path) if seen.join(&path).is_file() => Ok(path),
        Some(_) => refuse(
            ErrorCode::Preflight,
            format!("{what} {} of {stack} is gone", redact::line(file, 200)),
            "put it back, or run `docker compose up -d` with the files there are now",
        ),
        None => refuse(
            ErrorCode::Preflight,
            format!("{what} {} of {stack} lies outside of the project directory {}", redact::line(file, 200), root.display()),
            "copy it into the project directory, run `docker compose up -d` with it once, then adopt the stack",
        ),
    };
    let files = files.iter().map(|f| relative("compose file", f)).collect::<Result<_, _>>()?;
    let env_files = list(ENV_FILES).iter().map(|f| relative("environment file", f)).collect::<Result<_, _>>()?;
    Ok(StackSettingsEntry { dir: root, files, env_files, ..StackSettingsEntry::default() })
}

/// A file's path beneath the project directory; `None` when it lies elsewhere.
fn inside(root: &Path, file: &str) -> Option<String> {
    let path = Path::new(file);
    let path = if path.is_absolute() { path.strip_prefix(root).ok()? } else { path };
    let plain = path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    let kept: PathBuf = path.components().filter(|c| matches!(c, Component::Normal(_))).collect();
    (plain && kept.components().next().is_some()).then(|| kept.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::EngineName;
    use crate::model::observed::{HealthState, RunState};

    fn container(created: i64, labels: &[(&str, &str)]) -> ContainerSummary {
        ContainerSummary {
            id: EngineName::new(format!("c{created}")).unwrap(),
            name: "shop-web-1".into(),
            image: "web".into(),
            image_id: "sha256:1".into(),
            state: RunState::Running,
            health: HealthState::None,
            status: String::new(),
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ports: vec![],
            created: chrono::DateTime::from_timestamp(created, 0).unwrap(),
        }
    }

    fn look(containers: &[ContainerSummary]) -> Result<StackSettingsEntry, String> {
        let config = Config { host_name: "h".into(), ..Config::new("/h".into(), "/c".into(), "/m".into()) };
        entry(&config, &StackName::new("shop").unwrap(), containers).map_err(|e| e.message)
    }

    #[test]
    fn the_newest_container_says_where_the_files_are() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let root = dir.path().display().to_string();
        for name in ["compose.yaml", "prod.yaml", "prod.env"] {
            std::fs::write(at(name), "").unwrap();
        }
        let old = container(1, &[(WORKING_DIR, "/gone"), (CONFIG_FILES, "/gone/compose.yaml")]);
        let files = format!("{},{}", at("compose.yaml"), at("prod.yaml"));
        let new = container(2, &[(WORKING_DIR, &root), (CONFIG_FILES, &files), (ENV_FILES, &at("prod.env"))]);
        let found = look(&[old, new]).unwrap();
        assert_eq!(found.dir, dir.path());
        assert_eq!(found.files, ["compose.yaml", "prod.yaml"]);
        assert_eq!(found.env_files, ["prod.env"]);
    }

    #[test]
    fn what_has_no_files_here_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().display().to_string();
        let refused = |dir: &str, files: &str| look(&[container(1, &[(WORKING_DIR, dir), (CONFIG_FILES, files)])]).unwrap_err();
        assert!(refused(&root, "-").contains("standard input"));
        assert!(refused(&root, "").contains("do not say"));
        assert!(refused("/no/such/place", "/no/such/place/compose.yaml").contains("cannot be seen"));
        assert!(refused("relative", "compose.yaml").contains("cannot be seen"));
        assert!(refused(&root, &format!("{root}/compose.yaml")).contains("is gone"));
        assert!(refused(&root, "/etc/passwd").contains("outside of the project directory"));
        assert!(refused(&root, "../x.yaml").contains("outside of the project directory"));
        assert!(refused(&root, &format!("{root}/../x.yaml")).contains("outside of the project directory"));
    }
}
