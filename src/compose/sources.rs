//! Puts the one tree together: every file parsed and interpolated, `include` and `extends` followed, overrides merged. Types nothing yet.

use super::files::{join, parent, rebase_objects, rebase_service, remote};
use super::value::{Map, Value};
use super::{LoadInput, ReadError, Report, dotenv, interpolate, merge, schema, shape, unique, value};
use std::collections::BTreeMap;

/// Files followed in all, and how deep: real stacks use a handful.
const MAX_FILES: usize = 50;
const MAX_CHAIN: usize = 16;

struct Assembler<'a, 'i> {
    input: &'a LoadInput<'i>,
    read: usize,
    /// Parsed `extends` targets by path, so that fifty services of one file parse it once.
    parsed: BTreeMap<String, Parsed>,
}

/// One file, interpolated.
#[derive(Clone)]
struct Parsed {
    map: Map,
    /// Places of its tags: what earlier files and extended services say there goes away.
    resets: Vec<Vec<String>>,
}

/// The merged tree; `None` when something was reported that leaves no tree.
pub(super) fn assemble(input: &LoadInput<'_>, report: &mut Report) -> Option<Value> {
    if input.sources.is_empty() {
        report.error_in(
            "compose.yaml",
            None,
            "there is no compose file",
            "give `compose` or `files`, or put compose.yaml into the project directory",
        );
        return None;
    }
    let mut assembler = Assembler { input, read: 0, parsed: BTreeMap::new() };
    let texts = input.sources.iter().map(|s| (s.path.clone(), s.text.clone())).collect();
    assembler.project(texts, "", input.variables, 0, report).map(Value::Map)
}

impl Assembler<'_, '_> {
    /// A base and its overrides as one tree, includes imported; paths are relative to `dir`.
    fn project(
        &mut self,
        texts: Vec<(String, String)>,
        dir: &str,
        variables: &BTreeMap<String, String>,
        depth: usize,
        report: &mut Report,
    ) -> Option<Map> {
        let mut tree = Map::new();
        for (file, text) in &texts {
            let before = report.errors.len();
            let mut one = self.parse(file, text, dir, variables, report)?;
            self.extend_services(&mut one, file, variables, report);
            // What could not be read would only yield follow-up errors.
            if report.errors.len() > before {
                return None;
            }
            merge::clear(&mut tree, &one.resets);
            if let Some(include) = one.map.remove("include") {
                self.include(&mut one.map, include, dir, variables, depth, report);
            }
            let before = report.errors.len();
            if let Value::Map(merged) = merge::merge(Value::Map(tree), Value::Map(one.map), &mut Vec::new(), report) {
                tree = merged;
            } else {
                return None;
            }
            unique::enforce(&mut tree);
            schema::check(&tree, report);
            self.attribute(file, before, report);
            if report.errors.len() > before {
                return None;
            }
            tree.remove("version");
            shape::tree(&mut tree, report);
            unique::enforce(&mut tree);
        }
        if tree.is_empty() {
            report.error_in(&texts[0].0, Some(1), "the file is empty", "a compose file starts with `services:`");
            return None;
        }
        Some(tree)
    }

    /// Errors in a file that is not one of the sources are located there by name only.
    fn attribute(&self, file: &str, before: usize, report: &mut Report) {
        if self.input.sources.iter().all(|s| s.path != file) {
            report.errors[before..].iter_mut().filter(|e| e.file.is_empty()).for_each(|e| file.clone_into(&mut e.file));
        }
    }

    fn parse(&mut self, file: &str, text: &str, dir: &str, variables: &BTreeMap<String, String>, report: &mut Report) -> Option<Parsed> {
        self.read += 1;
        if self.read > MAX_FILES {
            report.error_in(file, None, format!("more than {MAX_FILES} files are extended or included"), "put them together");
            return None;
        }
        match value::parse(text, self.input.quotas) {
            Err(e) => {
                report.broken_in(file, e.line, Some(e.rule), e.message, e.hint);
                None
            }
            Ok(Value::Map(map)) => {
                let before = report.errors.len();
                let mut resets = Vec::new();
                let map = merge::take_tags(Value::Map(map), &mut Vec::new(), &mut resets)?;
                let done = interpolate::tree(map, "", &mut Vec::new(), variables, report);
                self.attribute(file, before, report);
                let Value::Map(mut map) = done else { return None };
                rebase(&mut map, dir);
                Some(Parsed { map, resets })
            }
            // Nothing but comments: a file without a document.
            Ok(Value::Null) if text.lines().all(|l| l.trim().is_empty() || l.trim_start().starts_with('#')) => {
                Some(Parsed { map: Map::new(), resets: Vec::new() })
            }
            Ok(other) => {
                report.error_in(
                    file,
                    Some(1),
                    format!("the file holds {}, not a mapping", other.kind()),
                    "a compose file starts with `services:`",
                );
                None
            }
        }
    }

    fn read(&self, path: &str, asked_by: &str, report: &mut Report) -> Option<String> {
        if Self::at_home(path, asked_by, report) {
            return None;
        }
        Self::found(path, asked_by, self.input.files.read(path), report)
    }

    /// Whether a path means a home directory, which is reported.
    fn at_home(path: &str, asked_by: &str, report: &mut Report) -> bool {
        let home = path.starts_with('~');
        if home {
            let hint = "use a file beneath the project directory";
            report.broken(asked_by, Some("path.traversal"), format!("{path} means a home directory"), hint);
        }
        home
    }

    /// The text, or a reported reason why there is none.
    fn found(path: &str, asked_by: &str, text: Result<Option<String>, ReadError>, report: &mut Report) -> Option<String> {
        match text {
            Ok(Some(text)) => Some(text),
            Ok(None) => {
                report.broken(asked_by, None, format!("file {path} not found"), "paths are relative to the project directory");
                None
            }
            Err(why) => {
                report.broken(
                    asked_by,
                    why.rule(),
                    format!("file {path} cannot be read: {why}"),
                    "use a file beneath the project directory",
                );
                None
            }
        }
    }

    fn extend_services(&mut self, one: &mut Parsed, file: &str, variables: &BTreeMap<String, String>, report: &mut Report) {
        let Some(Value::Map(services)) = one.map.get("services").cloned() else { return };
        let mut done = Map::new();
        for name in services.keys() {
            let mut chain = Vec::new();
            if let Some(service) = self.extended((&services, &one.resets), name, file, variables, &mut chain, report) {
                done.insert(name.clone(), service);
            }
        }
        one.map.insert("services".into(), Value::Map(done));
    }

    #[allow(clippy::too_many_arguments)] // the recursion's state; a struct would only rename it
    fn extended(
        &mut self,
        (services, resets): (&Map, &[Vec<String>]),
        name: &str,
        file: &str,
        variables: &BTreeMap<String, String>,
        chain: &mut Vec<String>,
        report: &mut Report,
    ) -> Option<Value> {
        let path = format!("services.{name}.extends");
        let link = format!("{file}:{name}");
        if chain.contains(&link) || chain.len() > MAX_CHAIN {
            report.error(&path, format!("`extends` goes round in a circle: {} -> {link}", chain.join(" -> ")), "break the circle");
            return None;
        }
        let service = services.get(name)?.clone();
        let Value::Map(mut own) = service else { return Some(service) };
        let Some(extends) = own.remove("extends") else { return Some(Value::Map(own)) };
        let (target, other) = match &extends {
            Value::Map(m) => {
                if let Some(key) = m.keys().find(|k| !matches!(k.as_str(), "service" | "file")) {
                    report.note(&format!("{path}.{key}"), "has no effect: `extends` has `service` and `file`");
                }
                (m.get("service").and_then(Value::scalar), m.get("file").and_then(Value::scalar))
            }
            scalar => (scalar.scalar(), None),
        };
        let Some(target) = target else {
            report.error(&path, "`extends` names no service", "write `extends: {service: NAME, file: other.yaml}`");
            return None;
        };
        chain.push(link);
        let base = match other {
            None => {
                if !services.contains_key(&target) {
                    report.error(&path, format!("`extends` names service {target:?}, which this file has not"), "");
                    return None;
                }
                self.extended((services, resets), &target, file, variables, chain, report)?
            }
            Some(other) => {
                if remote(&other) {
                    fetched(&path, &other, report);
                    return None;
                }
                let other = join("", &other);
                if !self.parsed.contains_key(&other) {
                    let text = self.read(&other, &path, report)?;
                    let mut parsed = self.parse(&other, &text, parent(&other), variables, report)?;
                    unique::enforce(&mut parsed.map);
                    shape::tree(&mut parsed.map, report);
                    unique::enforce(&mut parsed.map);
                    self.parsed.insert(other.clone(), parsed);
                }
                let Parsed { map, resets } = self.parsed.get(&other).cloned()?;
                let Some(Value::Map(theirs)) = map.get("services").cloned() else {
                    report.error(&path, format!("file {other} has no services"), "");
                    return None;
                };
                if !theirs.contains_key(&target) {
                    report.error(&path, format!("file {other} has no service {target:?}"), "");
                    return None;
                }
                self.extended((&theirs, &resets), &target, &other, variables, chain, report)?
            }
        };
        chain.pop();
        if !report.expand(&path, base.bytes()) {
            return None;
        }
        if base == Value::Null {
            return Some(Value::Map(own));
        }
        let mut holder = Map::from([("services".to_owned(), Value::Map(Map::from([(name.to_owned(), base)])))]);
        merge::clear(&mut holder, resets);
        let base = match holder.remove("services") {
            Some(Value::Map(mut services)) => services.remove(name).unwrap_or(Value::Null),
            _ => Value::Null,
        };
        let mut at = vec!["services".to_owned(), name.to_owned()];
        Some(merge::merge(base, Value::Map(own), &mut at, report))
    }

    fn include(
        &mut self,
        tree: &mut Map,
        include: Value,
        dir: &str,
        variables: &BTreeMap<String, String>,
        depth: usize,
        report: &mut Report,
    ) {
        if include == Value::Null {
            return;
        }
        let Value::Seq(entries) = include else {
            report.error("include", format!("a list is needed, found {}", include.kind()), "write `- path/compose.yaml`");
            return;
        };
        if depth >= MAX_CHAIN {
            report.error("include", format!("files are included deeper than {MAX_CHAIN} levels"), "look for a file that includes itself");
            return;
        }
        for (index, entry) in entries.into_iter().enumerate() {
            let path = format!("include[{index}]");
            let list = |v: Option<&Value>| match v {
                Some(Value::Seq(items)) => items.iter().filter_map(Value::scalar).collect(),
                Some(one) => one.scalar().into_iter().collect::<Vec<_>>(),
                None => Vec::new(),
            };
            let (paths, project, env_files) = match &entry {
                Value::Map(m) => (list(m.get("path")), m.get("project_directory").and_then(Value::scalar), list(m.get("env_file"))),
                one => (list(Some(one)), None, Vec::new()),
            };
            if let Value::Map(m) = &entry
                && let Some(key) = m.keys().find(|k| !matches!(k.as_str(), "path" | "project_directory" | "env_file"))
            {
                report.note(&format!("{path}.{key}"), "has no effect: `include` has path, project_directory and env_file");
            }
            if let Some(other) = paths.iter().chain(&project).chain(&env_files).find(|p| remote(p)) {
                fetched(&path, other, report);
                continue;
            }
            let Some(first) = paths.first().map(|p| join(dir, p)) else {
                report.error(&path, "names no file", "write `- path/compose.yaml` or `- path: ...`");
                continue;
            };
            let inner_dir = project.map_or_else(|| parent(&first).to_owned(), |p| join(dir, &p));
            let mut inner_vars = variables.clone();
            let mut env_files: Vec<String> = env_files.iter().map(|f| join(dir, f)).collect();
            if env_files.is_empty() {
                // As beside the project's own file: a `.env` there counts when there is one.
                let beside = join(&inner_dir, ".env");
                if matches!(self.input.files.variables(&beside), Ok(Some(_))) && !inner_dir.is_empty() && inner_dir != "." {
                    env_files.push(beside);
                }
            }
            let mut said = BTreeMap::new();
            for file in env_files {
                if Self::at_home(&file, &path, report) {
                    continue;
                }
                let Some(text) = Self::found(&file, &path, self.input.files.variables(&file), report) else { continue };
                // A later file counts before an earlier one, and sees what that said; the project's own variables count before all.
                let mut known: BTreeMap<String, String> = said.clone();
                known.extend(variables.iter().map(|(k, v)| (k.clone(), v.clone())));
                match dotenv::parse(&text, &known, true) {
                    Ok(more) => said.extend(more),
                    Err(bad) => report.error_in(&file, Some(bad.line), bad.message, "write KEY=value, one per line"),
                }
            }
            for (key, value) in said {
                inner_vars.entry(key).or_insert(value);
            }
            let texts: Option<Vec<_>> =
                paths.iter().map(|p| join(dir, p)).map(|p| self.read(&p, &path, report).map(|text| (p, text))).collect();
            let Some(texts) = texts else { continue };
            if let Some(mut part) = self.project(texts, &inner_dir, &inner_vars, depth + 1, report) {
                settle(&mut part, &inner_dir, &inner_vars);
                import(tree, part, &path, report);
            }
        }
    }
}

/// Completes an included project by what only its own place tells: the values its environment files declare for entries that are only
/// named, and the directory a build without a context means.
fn settle(part: &mut Map, dir: &str, variables: &BTreeMap<String, String>) {
    let Some(Value::Map(services)) = part.get_mut("services") else { return };
    for service in services.values_mut() {
        let Value::Map(map) = service else { continue };
        if let Some(Value::Map(build)) = map.get_mut("build") {
            build.entry("context".into()).or_insert_with(|| Value::String(join(dir, ".")));
        }
        let Some(Value::Seq(items)) = map.get_mut("environment") else { continue };
        for item in items {
            if let Some(value) = item.scalar().and_then(|name| variables.get(&name).map(|v| format!("{name}={v}"))) {
                *item = Value::String(value);
            }
        }
    }
}

fn fetched(path: &str, what: &str, report: &mut Report) {
    let shown: String = what.chars().take(120).collect();
    report.broken(
        path,
        Some("include.remote"),
        format!("{shown:?} would be fetched from elsewhere, where it can change at any time"),
        "copy the file into the project directory",
    );
}

/// Adds what an included project defines; the same name with another content is an error, as in compose.
fn import(tree: &mut Map, mut part: Map, path: &str, report: &mut Report) {
    for kind in ["services", "networks", "volumes", "configs", "secrets"] {
        let Some(Value::Map(theirs)) = part.remove(kind) else { continue };
        let slot = tree.entry(kind.to_owned()).or_insert(Value::Null);
        if *slot == Value::Null {
            *slot = Value::Map(Map::new());
        }
        let Value::Map(ours) = slot else { continue };
        for (name, value) in theirs {
            match ours.get(&name) {
                Some(existing) if *existing != value => {
                    report.error(path, format!("{kind}.{name} is defined here and in the included file"), "rename one of them");
                }
                _ => {
                    ours.insert(name, value);
                }
            }
        }
    }
}

/// Makes the relative paths of a parsed file mean the project directory, so that nothing downstream asks where a text came from.
fn rebase(tree: &mut Map, dir: &str) {
    if let Some(Value::Map(services)) = tree.get_mut("services") {
        for service in services.values_mut() {
            if let Value::Map(m) = service {
                rebase_service(m, dir);
            }
        }
    }
    for kind in ["configs", "secrets", "volumes"] {
        if let Some(objects) = tree.get_mut(kind) {
            rebase_objects(objects, dir);
        }
    }
}
