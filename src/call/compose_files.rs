//! Where a stack's files come from: its registered directory, or texts in the call, and the variables declared for it. A file beneath a directory is
//! opened so that no link leads out of it: whoever can write a link there must not read the host through us. Deliberately absent: what the text means.

use super::CallError;
use super::beneath::{self, Refused};
use super::error::ErrorCode;
use super::prepare::Source;
use crate::compose::{self, Files, LoadErrors, ReadError};
use crate::model::config::{Config, StackSettingsEntry};
use crate::redact;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// All inline texts of a call together, bytes.
const MAX_INLINE: usize = 1 << 20;
/// Variables of a call, and their bytes together.
const MOST_VARIABLES: usize = 200;
const MAX_VARIABLES: usize = 64 * 1024;
/// One side file (environment file, config, secret), bytes; as much as an engine takes as a secret, twice over.
const MAX_FILE: u64 = 1 << 20;
/// Base files in the order in which Compose looks for them.
const BASES: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];
/// Override files in the order in which Compose looks for them, whatever its base is called: the first that is there counts.
const OVERRIDES: [&str; 4] =
    ["compose.override.yml", "compose.override.yaml", "docker-compose.override.yml", "docker-compose.override.yaml"];
/// Variables of an environment file that say which files and profiles Compose takes.
const FILE_VARIABLE: &str = "COMPOSE_FILE";
const SEPARATOR_VARIABLE: &str = "COMPOSE_PATH_SEPARATOR";
const PROFILES_VARIABLE: &str = "COMPOSE_PROFILES";

/// Everything the loader reads for one stack.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// Base and overrides, in order.
    pub sources: Vec<compose::Source>,
    /// Declared variables with `.env` merged in.
    pub variables: BTreeMap<String, String>,
    /// The variables that the registered directory declares.
    pub of_files: BTreeMap<String, String>,
    /// Active profiles.
    pub profiles: Vec<String>,
    /// Project directory as the host knows it; empty when there is none.
    pub project_dir: String,
    /// Side files.
    pub side: SideFiles,
}

impl Bundle {
    /// The compose files are texts of the call.
    pub fn given(&self) -> bool {
        self.side.given
    }
}

/// Side files: texts of the call before those of the directory.
#[derive(Debug, Clone, Default)]
pub struct SideFiles {
    inline: BTreeMap<String, String>,
    /// Directory as the host knows it, and as this process sees it.
    dir: Option<(PathBuf, PathBuf)>,
    /// The compose files are texts of the call.
    given: bool,
}

impl Files for SideFiles {
    fn read(&self, path: &str) -> Result<Option<String>, ReadError> {
        let path = Path::new(path);
        let relative = match (&self.dir, path.is_absolute()) {
            (_, false) => path.to_owned(),
            (Some((host, _)), true) => path
                .strip_prefix(host)
                .map_err(|_| ReadError::Outside(format!("it lies outside of the project directory {}; copy it there", host.display())))?
                .to_owned(),
            (None, true) => {
                let why = "the stack has no directory: give the file in `files`, or have an operator register a directory";
                return Err(ReadError::Outside(why.into()));
            }
        };
        if let Some(text) = self.inline.get(&plain(&relative)) {
            return Ok(Some(text.clone()));
        }
        match &self.dir {
            Some((_, seen)) => read_beneath(seen, &relative),
            None => Ok(None),
        }
    }

    fn mountable(&self, path: &str) -> bool {
        let path = Path::new(path);
        let beneath = self.dir.as_ref().and_then(|(host, _)| path.strip_prefix(host).ok());
        !self.inline.contains_key(&plain(beneath.unwrap_or(path)))
    }

    /// Values of the directory's files are put into the directory's own texts only: a caller's text could print them in a plan, in a label or an image's name.
    fn variables(&self, path: &str) -> Result<Option<String>, ReadError> {
        if !self.given {
            return self.read(path);
        }
        if let Some(text) = self.inline.get(&plain(Path::new(path))) {
            return Ok(Some(text.clone()));
        }
        match self.read(path)? {
            None => Ok(None),
            Some(_) => {
                let why = "variables of the project directory are not put into texts of a call: give the file in `files`, or its values in `variables`";
                Err(ReadError::Unreadable(why.into()))
            }
        }
    }
}

/// A relative path without `.` components, as the keys of `files` are compared.
fn plain(path: &Path) -> String {
    path.components().filter(|c| !matches!(c, Component::CurDir)).collect::<PathBuf>().to_string_lossy().into_owned()
}

/// The text of a file beneath a directory; `None` when there is none.
fn read_beneath(dir: &Path, relative: &Path) -> Result<Option<String>, ReadError> {
    let unreadable = |why: String| Err(ReadError::Unreadable(why));
    let said = |e: std::io::Error| ReadError::Unreadable(format!("{}: {e}", relative.display()));
    let file = match beneath::open(dir, relative) {
        Ok(Some(file)) => file,
        Ok(None) => return Ok(None),
        Err(Refused::LeadsOut) => return Err(ReadError::Outside(format!("{} leads out of the project directory", relative.display()))),
        Err(Refused::Link) => {
            let why = "is a link or lies behind one, and this kernel cannot follow it safely (it lacks openat2): put the file itself there";
            return unreadable(format!("{} {why}", relative.display()));
        }
        Err(Refused::Root(e)) => return unreadable(format!("project directory {}: {e}", dir.display())),
        Err(Refused::Io(e)) => return Err(said(e)),
    };
    let meta = file.metadata().map_err(said)?;
    let opaque = |why: String, digest: String| Err(ReadError::Opaque { why, digest });
    if meta.is_dir() {
        // What a container sees of a directory follows it: nothing has to be made anew for it.
        return opaque(format!("{} is a directory", relative.display()), "directory".into());
    }
    if !meta.is_file() {
        return unreadable(format!("{} is not a regular file", relative.display()));
    }
    if meta.len() > MAX_FILE {
        let digest = format!("{} bytes of {}.{:09}", meta.len(), meta.mtime(), meta.mtime_nsec());
        return opaque(format!("{} has {} bytes, at most {MAX_FILE} are read", relative.display(), meta.len()), digest);
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(said)?;
    String::from_utf8(bytes).map(Some).or_else(|e| {
        let digest = Sha256::digest(e.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
        opaque(format!("{} is not UTF-8 text", relative.display()), digest)
    })
}

/// A path of the host as this process sees it; `None` when its container does not mount it.
pub fn visible(config: &Config, host: &Path) -> Option<PathBuf> {
    let Some(map) = &config.path_map else { return Some(host.to_owned()) };
    let best = map.iter().filter(|(_, h)| host.starts_with(h)).max_by_key(|(_, h)| h.components().count());
    best.map(|(inside, h)| inside.join(host.strip_prefix(h).expect("filtered by this prefix")))
}

/// A path of this process as the host knows it; the same outside of a container.
pub fn on_host(config: &Config, seen: &Path) -> PathBuf {
    let best = config
        .path_map
        .iter()
        .flatten()
        .filter(|(inside, _)| seen.starts_with(inside))
        .max_by_key(|(inside, _)| inside.components().count());
    best.map_or_else(|| seen.to_owned(), |(inside, host)| host.join(seen.strip_prefix(inside).expect("filtered by this prefix")))
}

/// Paths of the host that are the supervisor's own: home, configuration and memory, and whatever else is mounted into its container (single files of the
/// configuration, keys, the volumes of its state). What is mounted under its own path is not, nor what an operator registered a stack in: that is how stacks'
/// directories are shown to it.
pub fn protected(config: &Config) -> BTreeSet<PathBuf> {
    let own = [&config.home, &config.config_dir, &config.memory];
    let real = own.iter().filter_map(|p| std::fs::canonicalize(p).ok()).map(|p| on_host(config, &p));
    let mut all: BTreeSet<PathBuf> = own.iter().map(|p| on_host(config, p)).chain(real).collect();
    // The whole host, mounted for a look at it, is nobody's.
    let stacks = |host: &PathBuf| config.settings.stacks.values().any(|s| s.dir.starts_with(host));
    let ours = |inside: &PathBuf, host: &PathBuf| inside != host && host != Path::new("/") && !stacks(host);
    all.extend(config.path_map.iter().flatten().filter(|(inside, host)| ours(inside, host)).map(|(_, host)| host.clone()));
    all
}

/// Reads what a source means. Blocking: called off the async threads.
///
/// # Errors
/// `InvalidArgument` for contradicting or oversized arguments, `NotFound` when there is neither directory nor text.
pub fn bundle(config: &Config, source: &Source) -> Result<Option<Bundle>, CallError> {
    let entry = config.settings.stacks.get(&source.stack);
    let size: usize = source.variables.iter().map(|(k, v)| k.len() + v.len()).sum();
    if source.variables.len() > MOST_VARIABLES || size > MAX_VARIABLES {
        let message = format!(
            "{} variables with {size} bytes were given, at most {MOST_VARIABLES} with {MAX_VARIABLES} bytes are accepted",
            source.variables.len()
        );
        let hint = "put them into a `.env` among `files`, or have an operator put them into the stack's directory";
        return Err(CallError::new(ErrorCode::InvalidArgument, message, hint).field("variables"));
    }
    let inline = inline(source)?;
    if entry.is_none() && inline.is_empty() {
        return Ok(None);
    }
    let dir = match entry {
        Some(entry) => Some((entry.dir.clone(), seen_dir(config, entry)?)),
        None => None,
    };
    let project_dir = dir.as_ref().map(|(host, _)| host.display().to_string()).unwrap_or_default();
    let default_entry = StackSettingsEntry::default();
    let entry = entry.unwrap_or(&default_entry);
    // Texts of the call are the whole stack: files of the directory beside them are only what they name.
    let given = !inline.is_empty();
    let side = SideFiles { inline, dir, given };
    let base = if given { SideFiles { inline: side.inline.clone(), dir: None, given } } else { side.clone() };
    let env_files: &[String] = if given { &[] } else { &entry.env_files };
    let declared = variables(&base, env_files, &source.variables)?;
    let of_files = match source.variables.is_empty() {
        true => declared.clone(),
        // Without the caller's own, which the files may put into theirs; files that cannot do without have none of their own to tell. But which files and
        // profiles are the stack is theirs to say, so what they say of that must be known.
        false => match variables(&base, env_files, &BTreeMap::new()) {
            Ok(alone) => alone,
            Err(e) => match [FILE_VARIABLE, PROFILES_VARIABLE].iter().find(|key| names(key, entry) && declared.contains_key(**key)) {
                Some(key) => return Err(untold(key, &e)),
                None => BTreeMap::new(),
            },
        },
    };
    let named = match (given, entry.files.is_empty()) {
        (false, false) => entry.files.clone(),
        _ => named_files(&of_files)?,
    };
    let sources = sources(&base, &named, &project_dir)?;
    let profiles = match entry.profiles.is_empty() {
        false => entry.profiles.clone(),
        true => listed(&of_files, PROFILES_VARIABLE, ","),
    };
    let mut merged = declared;
    merged.extend(source.variables.iter().map(|(k, v)| (k.clone(), v.clone())));
    let of_files = if given { BTreeMap::new() } else { of_files };
    Ok(Some(Bundle { sources, variables: merged, of_files, profiles, project_dir, side }))
}

/// Whether a variable of the environment file counts: the operator's word in the configuration counts before it.
fn names(key: &str, entry: &StackSettingsEntry) -> bool {
    if key == FILE_VARIABLE { entry.files.is_empty() } else { entry.profiles.is_empty() }
}

/// The environment file says which files or profiles are the stack, and cannot be read without the call's variables.
fn untold(key: &str, e: &CallError) -> CallError {
    let message =
        format!("the environment file sets {key}, which is read without the call's variables, and so it cannot be read: {}", e.message);
    let hint =
        "give that variable a default in the environment file (${NAME:-}), or name files and profiles in dockwarden.toml (stacks.<name>)";
    CallError::new(ErrorCode::InvalidArgument, message, hint).field("variables")
}

fn listed(variables: &BTreeMap<String, String>, key: &str, separator: &str) -> Vec<String> {
    let items = variables.get(key).into_iter().flat_map(|v| v.split(separator));
    items.map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

/// The files that an environment file names for Compose. Never those a call's variables name: which files of a directory are a stack is not the caller's.
fn named_files(of_files: &BTreeMap<String, String>) -> Result<Vec<String>, CallError> {
    let separator = of_files.get(SEPARATOR_VARIABLE).map(String::as_str).filter(|s| !s.is_empty()).unwrap_or(":");
    let named = listed(of_files, FILE_VARIABLE, separator);
    match named.first().map(|first| Path::new(first).parent().is_some_and(|p| !p.as_os_str().is_empty() && p != Path::new("."))) {
        // Compose takes the first file's directory for the project's.
        Some(true) => Err(CallError::new(
            ErrorCode::InvalidArgument,
            format!("{FILE_VARIABLE} of the environment file names {:?}, which lies in another directory", redact::line(&named[0], 200)),
            "register the directory of that file as the stack's, or name its files in dockwarden.toml (stacks.<name>.files)",
        )),
        Some(false) | None => Ok(named),
    }
}

fn seen_dir(config: &Config, entry: &StackSettingsEntry) -> Result<PathBuf, CallError> {
    visible(config, &entry.dir).filter(|d| d.is_dir()).ok_or_else(|| {
        let hint = if config.path_map.is_some() {
            "mount it into the supervisor's container at the same path (STACK_ROOTS)"
        } else {
            "correct stacks.<name>.dir in dockwarden.toml"
        };
        CallError::new(ErrorCode::Preflight, format!("the project directory {} cannot be seen", entry.dir.display()), hint)
    })
}

fn inline(source: &Source) -> Result<BTreeMap<String, String>, CallError> {
    let wrong = |field: &str, message: String, hint: &str| Err(CallError::new(ErrorCode::InvalidArgument, message, hint).field(field));
    let mut found = BTreeMap::new();
    match (&source.compose, &source.files) {
        (Some(_), Some(_)) => {
            return wrong(
                "files",
                "compose and files were both given".into(),
                "give one: files holds the compose file too, as compose.yaml",
            );
        }
        (Some(text), None) => {
            found.insert(BASES[0].to_owned(), text.clone());
        }
        (None, Some(files)) => {
            for (path, text) in files {
                let relative = Path::new(path);
                if relative.is_absolute()
                    || path.is_empty()
                    || !relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
                {
                    return wrong(
                        "files",
                        format!("{:?} is not a path beneath the project", redact::line(path, 200)),
                        "use relative paths without ..",
                    );
                }
                found.insert(plain(relative), text.clone());
            }
        }
        (None, None) => {}
    }
    let size: usize = found.values().map(String::len).sum();
    if size > MAX_INLINE {
        return wrong(
            "files",
            format!("the files have {size} bytes together, at most {MAX_INLINE} are accepted"),
            "have an operator register a directory for the stack",
        );
    }
    Ok(found)
}

fn sources(files: &SideFiles, named: &[String], project_dir: &str) -> Result<Vec<compose::Source>, CallError> {
    let read = |path: &str| {
        files.read(path).map_err(|e| CallError::new(ErrorCode::InvalidArgument, e, "correct the file, then call again").field(path))
    };
    let source = |path: &str, text| compose::Source { path: path.to_owned(), text };
    if !named.is_empty() {
        return named
            .iter()
            .map(|path| {
                let text = read(path)?.ok_or_else(|| {
                    CallError::new(
                        ErrorCode::NotFound,
                        format!("{path} does not exist in {project_dir}"),
                        "correct `files` of the stack in dockwarden.toml, or COMPOSE_FILE of its environment file",
                    )
                })?;
                Ok(source(path, text))
            })
            .collect();
    }
    for base in BASES {
        let Some(text) = read(base)? else { continue };
        let mut found = vec![source(base, text)];
        for path in OVERRIDES {
            if let Some(text) = read(path)? {
                found.push(source(path, text));
                break;
            }
        }
        return Ok(found);
    }
    let names = BASES.join(", ");
    let place = if project_dir.is_empty() { "files".to_owned() } else { project_dir.to_owned() };
    Err(CallError::new(ErrorCode::NotFound, format!("{place} has no compose file"), format!("name it one of {names}")))
}

/// What the environment files say; a later file over an earlier one. A reference in them means the call's variable, then what an earlier file said. For
/// texts of a call that is a `.env` among them alone.
fn variables(side: &SideFiles, env_files: &[String], given: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, CallError> {
    let default = [".env".to_owned()];
    let named = !env_files.is_empty();
    let mut said = BTreeMap::new();
    for path in if named { env_files } else { &default[..] } {
        let text =
            side.read(path).map_err(|e| CallError::new(ErrorCode::InvalidArgument, e, "correct the environment file").field(path))?;
        match text {
            Some(text) => {
                let mut known: BTreeMap<String, String> = said.clone();
                known.extend(given.iter().map(|(k, v)| (k.clone(), v.clone())));
                said.extend(compose::dotenv(&text, path, &known).map_err(|e| load_error(&e))?);
            }
            None if named => {
                return Err(CallError::new(
                    ErrorCode::NotFound,
                    format!("environment file {path} does not exist"),
                    "correct env_files of the stack in dockwarden.toml",
                ));
            }
            None => {}
        }
    }
    Ok(said)
}

/// What is wrong with the files: the first problem as message and hint, all of them as data.
pub fn load_error(errors: &LoadErrors) -> CallError {
    let problems: Vec<String> = errors.0.iter().map(|e| redact::line(&e.to_string(), 400)).collect();
    let first = errors.0.first();
    let hint = first.map(|e| e.hint.as_str()).filter(|h| !h.is_empty()).unwrap_or("correct the file, then call again");
    let mut error = CallError::new(
        ErrorCode::InvalidArgument,
        problems.iter().take(5).cloned().collect::<Vec<_>>().join("\n"),
        redact::line(hint, 400),
    );
    error.field = first.and_then(|e| e.path.clone());
    let rules: BTreeSet<&str> = errors.0.iter().filter_map(|e| e.rule).collect();
    error.data(serde_json::json!({"problems": problems, "rules": rules}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::StackName;

    fn home() -> (tempfile::TempDir, SideFiles) {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("compose.yaml"), "services: {}").expect("written");
        std::fs::write(dir.path().join("inside"), "in").expect("written");
        std::os::unix::fs::symlink("inside", dir.path().join("link-in")).expect("linked");
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link-out")).expect("linked");
        let path = dir.path().to_owned();
        (dir, SideFiles { inline: BTreeMap::new(), dir: Some((path.clone(), path)), given: false })
    }

    #[test]
    fn no_link_and_no_path_leads_out_of_the_project_directory() {
        let (dir, files) = home();
        assert_eq!(files.read("inside"), Ok(Some("in".into())));
        assert_eq!(files.read("./link-in"), Ok(Some("in".into())));
        assert_eq!(files.read(&dir.path().join("inside").display().to_string()), Ok(Some("in".into())));
        assert_eq!(files.read("absent"), Ok(None));
        assert_eq!(files.read("link-out"), Err(ReadError::Outside("link-out leads out of the project directory".into())));
        assert_eq!(files.read("../x"), Err(ReadError::Outside("../x leads out of the project directory".into())));
        assert!(
            files
                .read("/etc/passwd")
                .is_err_and(|e| matches!(e, ReadError::Outside(why) if why.contains("outside of the project directory")))
        );
    }

    #[test]
    fn what_is_no_text_is_told_apart_by_a_digest_and_only_files_of_the_host_are_mountable() {
        let (dir, mut files) = home();
        let at = |name: &str| dir.path().join(name);
        let digest = |files: &SideFiles, name: &str| match files.read(name) {
            Err(ReadError::Opaque { why, digest }) => (why, digest),
            other => panic!("{name}: {other:?}"),
        };
        std::fs::write(at("store.p12"), [0xff, 1]).expect("written");
        let one = digest(&files, "store.p12");
        assert_eq!((one.0.as_str(), one.1.len()), ("store.p12 is not UTF-8 text", 64));
        std::fs::write(at("store.p12"), [0xff, 2]).expect("written");
        assert_ne!(digest(&files, "store.p12").1, one.1);
        std::fs::create_dir(at("conf.d")).expect("made");
        assert_eq!(digest(&files, "conf.d"), ("conf.d is a directory".to_owned(), "directory".to_owned()));
        let long = std::fs::File::create(at("long")).expect("made");
        long.set_len(MAX_FILE + 1).expect("grown");
        let one = digest(&files, "long");
        assert!(one.0.contains("at most 1048576 are read"), "{one:?}");
        long.set_len(MAX_FILE + 2).expect("grown");
        assert_ne!(digest(&files, "long").1, one.1);
        files.inline.insert("given".into(), "text".into());
        let absolute = at("given").display().to_string();
        assert_eq!(["long", "given", "./given", absolute.as_str()].map(|f| files.mountable(f)), [true, false, false, false]);
    }

    /// A registered stack in a directory with these files.
    fn registered(texts: &[(&str, &str)], entry: StackSettingsEntry) -> (tempfile::TempDir, Config) {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, text) in texts {
            std::fs::write(dir.path().join(name), text).expect("written");
        }
        let entry = StackSettingsEntry { dir: dir.path().to_owned(), ..entry };
        let mut config = Config { host_name: "h".into(), ..Config::new("/h".into(), "/c".into(), "/m".into()) };
        config.settings.stacks.insert(StackName::new("shop").expect("valid"), entry);
        (dir, config)
    }

    fn taken(config: &Config, variables: &[(&str, &str)]) -> Result<Bundle, CallError> {
        let mut source = Source::registered(&StackName::new("shop").expect("valid"));
        source.variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        bundle(config, &source).map(|b| b.expect("registered"))
    }

    fn paths(bundle: &Bundle) -> Vec<&str> {
        bundle.sources.iter().map(|s| s.path.as_str()).collect()
    }

    #[test]
    fn the_override_file_that_compose_takes_is_taken_whatever_the_base_is_called() {
        let cases: [(&[&str], &[&str]); 6] = [
            (&["compose.yaml", "docker-compose.override.yml"], &["compose.yaml", "docker-compose.override.yml"]),
            (&["docker-compose.yml", "compose.override.yaml"], &["docker-compose.yml", "compose.override.yaml"]),
            (&["compose.yaml", "compose.override.yaml", "compose.override.yml"], &["compose.yaml", "compose.override.yml"]),
            (
                &["docker-compose.yaml", "docker-compose.override.yaml", "docker-compose.override.yml"],
                &["docker-compose.yaml", "docker-compose.override.yml"],
            ),
            (&["docker-compose.yml", "docker-compose.yaml"], &["docker-compose.yml"]),
            (
                &["compose.yml", "compose.yaml", "compose.override.yml", "docker-compose.override.yml"],
                &["compose.yaml", "compose.override.yml"],
            ),
        ];
        for (there, expected) in cases {
            let texts: Vec<_> = there.iter().map(|name| (*name, "services: {}")).collect();
            let (_dir, config) = registered(&texts, StackSettingsEntry::default());
            assert_eq!(paths(&taken(&config, &[]).expect("taken")), expected);
        }
    }

    #[test]
    fn an_environment_file_names_files_and_profiles_and_a_call_does_not() {
        let texts = [
            ("docker-compose.yml", "services: {}"),
            ("docker-compose.prod.yml", "services: {}"),
            ("docker-compose.override.yml", "services: {}"),
            (".env", "COMPOSE_FILE=docker-compose.yml:docker-compose.prod.yml\nCOMPOSE_PROFILES=p, q\n"),
            ("other.env", "COMPOSE_PATH_SEPARATOR=,\nCOMPOSE_FILE=docker-compose.prod.yml,docker-compose.yml\n"),
        ];
        let (_dir, config) = registered(&texts, StackSettingsEntry::default());
        let bundle = taken(&config, &[("COMPOSE_FILE", "docker-compose.yml"), ("COMPOSE_PROFILES", "debug")]).expect("taken");
        assert_eq!(paths(&bundle), ["docker-compose.yml", "docker-compose.prod.yml"]);
        assert_eq!(bundle.profiles, ["p", "q"]);
        let other = StackSettingsEntry { env_files: vec!["other.env".into()], profiles: vec!["r".into()], ..Default::default() };
        let (_dir, config) = registered(&texts, other);
        let bundle = taken(&config, &[]).expect("taken");
        assert_eq!(
            (paths(&bundle), bundle.profiles.as_slice()),
            (vec!["docker-compose.prod.yml", "docker-compose.yml"], ["r".to_owned()].as_slice())
        );
        let named = StackSettingsEntry { files: vec!["docker-compose.override.yml".into()], ..Default::default() };
        let (_dir, config) = registered(&texts, named);
        assert_eq!(paths(&taken(&config, &[]).expect("taken")), ["docker-compose.override.yml"], "the operator's word counts");
        let (_dir, config) = registered(&[(".env", "COMPOSE_FILE=deploy/compose.yaml")], StackSettingsEntry::default());
        assert!(taken(&config, &[]).expect_err("another directory").message.contains("another directory"));
    }

    #[test]
    fn what_names_files_and_profiles_is_never_forgotten_because_a_variable_of_the_call_is_missing() {
        let texts = |domain: &str| {
            [
                ("compose.yml", "services: {}".to_owned()),
                ("compose.override.yml", "services: {}".to_owned()),
                ("compose.prod.yml", "services: {}".to_owned()),
                (
                    ".env",
                    format!("COMPOSE_FILE=compose.yml:compose.prod.yml\nCOMPOSE_PROFILES=worker\nURL=https://${{DOMAIN{domain}}}/api\n"),
                ),
            ]
        };
        let of = |domain: &str, entry: StackSettingsEntry| {
            let texts = texts(domain);
            let texts: Vec<(&str, &str)> = texts.iter().map(|(name, text)| (*name, text.as_str())).collect();
            let (dir, config) = registered(&texts, entry);
            (dir, taken(&config, &[("DOMAIN", "x.org")]))
        };
        let (_dir, refused) = of(":?", StackSettingsEntry::default());
        let e = refused.expect_err("never the override instead");
        assert!(e.message.contains("COMPOSE_FILE") && e.message.contains("DOMAIN"), "{e}");
        let (_dir, told) = of(":-", StackSettingsEntry::default());
        let bundle = told.expect("taken");
        assert_eq!((paths(&bundle), bundle.profiles.clone()), (vec!["compose.yml", "compose.prod.yml"], vec!["worker".to_owned()]));
        assert_eq!(bundle.variables["URL"], "https://x.org/api");
        // Where the operator says both, the environment file has nothing to say.
        let named = StackSettingsEntry { files: vec!["compose.prod.yml".into()], ..Default::default() };
        let e = of(":?", named.clone()).1.expect_err("its profiles are still to be known");
        assert!(e.message.contains("COMPOSE_PROFILES"), "{e}");
        let (_dir, told) = of(":?", StackSettingsEntry { profiles: vec!["p".into()], ..named });
        assert_eq!(paths(&told.expect("taken")), ["compose.prod.yml"]);
    }

    #[test]
    fn a_later_environment_file_sees_what_an_earlier_one_said_and_counts_before_it() {
        let texts = [
            ("compose.yaml", "services: {}"),
            ("a.env", "HOST=base\nTAG=1\nSEES=[$LATER]\n"),
            ("b.env", "URL=http://$HOST\nTAG=2\nLATER=x\nWHO=$NAME\n"),
        ];
        let entry = StackSettingsEntry { env_files: vec!["a.env".into(), "b.env".into()], ..Default::default() };
        let (_dir, config) = registered(&texts, entry);
        let bundle = taken(&config, &[("NAME", "caller"), ("LATER", "given")]).expect("taken");
        let of = |key: &str| bundle.variables.get(key).map(String::as_str);
        let seen = ["URL", "TAG", "SEES", "LATER", "WHO"].map(of);
        assert_eq!(seen, [Some("http://base"), Some("2"), Some("[given]"), Some("given"), Some("caller")]);
        assert_eq!(bundle.of_files.get("LATER").map(String::as_str), Some("x"), "without the caller's");
    }

    #[test]
    fn inline_paths_stay_beneath_the_project_and_are_bounded() {
        let source = |path: &str, text: &str| Source {
            stack: StackName::new("shop").expect("valid"),
            files: Some(BTreeMap::from([(path.to_owned(), text.to_owned())])),
            ..Source::registered(&StackName::new("shop").expect("valid"))
        };
        for bad in ["/etc/x", "../x", "a/../../x", ""] {
            assert_eq!(inline(&source(bad, "")).expect_err("refused").field.as_deref(), Some("files"), "{bad:?}");
        }
        assert!(inline(&source("a", &"x".repeat(MAX_INLINE + 1))).expect_err("refused").message.contains("at most 1048576"));
        assert_eq!(inline(&source("./a/b", "t")).expect("accepted"), BTreeMap::from([("a/b".to_owned(), "t".to_owned())]));
    }

    #[test]
    fn what_is_mounted_into_our_container_is_ours_but_for_the_roots_of_stacks() {
        let at = PathBuf::from;
        let config = Config {
            host_name: "h".into(),
            path_map: Some(BTreeMap::from([
                (at("/etc/dockwarden/agents"), at("/srv/dockwarden/agents")),
                (at("/etc/dockwarden/keys"), at("/srv/dockwarden/secrets")),
                (at("/etc/dockwarden/policy.toml"), at("/srv/dockwarden/agents/policy.toml")),
                (at("/var/lib/dockwarden"), at("/var/lib/docker/volumes/dockwarden_state/_data")),
                (at("/srv"), at("/srv")),
            ])),
            ..Config::new("/var/lib/dockwarden".into(), "/etc/dockwarden".into(), "/var/lib/dockwarden/memory".into())
        };
        let all = protected(&config);
        for own in ["/srv/dockwarden/agents", "/srv/dockwarden/secrets", "/var/lib/docker/volumes/dockwarden_state/_data"] {
            assert!(all.contains(Path::new(own)), "{own}: {all:?}");
        }
        assert!(!all.contains(Path::new("/srv")), "{all:?}");
        assert!(protected(&Config { path_map: None, ..config }).contains(Path::new("/etc/dockwarden")));
    }

    #[test]
    fn a_path_is_seen_through_the_longest_mount() {
        let map = BTreeMap::from([(PathBuf::from("/srv"), PathBuf::from("/srv")), (PathBuf::from("/data"), PathBuf::from("/srv/deep"))]);
        let config = Config { host_name: "h".into(), path_map: Some(map), ..Config::new("/h".into(), "/c".into(), "/m".into()) };
        assert_eq!(visible(&config, Path::new("/srv/deep/x")), Some(PathBuf::from("/data/x")));
        assert_eq!(visible(&config, Path::new("/srv/y")), Some(PathBuf::from("/srv/y")));
        assert_eq!(visible(&config, Path::new("/etc")), None);
        assert_eq!(on_host(&config, Path::new("/data/x")), PathBuf::from("/srv/deep/x"));
    }
}
