//! The invariants of ARCHITECTURE.md that a compiler does not see, read off the source text: layers, the one place of each vendor crate,
//! purity, file heads and sizes, forgotten files. Text is enough for these; deliberately no parser.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Layers, lowest first: a module may use its own layer and those below. The longest matching prefix counts.
const LAYERS: &[(u8, &[&str])] = &[
    (0, &["model"]),
    (1, &["gate", "compose", "planner", "redact", "engine"]),
    (2, &["engine::docker", "engine::swarm", "engine::fake", "engine::dry_run", "store"]),
    (3, &["executor"]),
    (4, &["call", "tools"]),
    (5, &["supervisor", "runner"]),
    (6, &["adapters", "app", "config", "main", "lib"]),
];
/// Processes of their own that use nothing above plain data.
const APART: &[&str] = &["demo", "front"];
/// Vendor crate -> the only places that may name it.
const VENDORS: &[(&str, &[&str])] = &[
    ("bollard", &["engine::docker", "engine::swarm"]),
    ("rusqlite", &["store"]),
    ("rusqlite_migration", &["store"]),
    ("rmcp", &["adapters::mcp"]),
    ("rustic_core", &["executor::worker"]),
    ("opendal", &["executor::worker"]),
    ("openssh_sftp_client", &["executor::worker"]),
    ("rustic_backend", &["executor::worker"]),
    ("genai", &["runner::wire"]),
];
/// Modules that decide or plan: they take plain data and `now`, and touch nothing.
const PURE: &[&str] = &["model", "gate", "compose", "planner", "redact"];
/// What "touching something" looks like in text.
const IMPURE: &[&str] = &[
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "ToSocketAddrs",
    "std::process",
    "std::env::",
    "tokio::",
    "Utc::now",
    "Local::now",
    "SystemTime::now",
    "Instant::now",
];
/// Longest file before its tests, lines.
const MAX_LINES: usize = 500;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(dir: &str, extension: &str) -> Vec<PathBuf> {
    fn walk(dir: &Path, extension: &str, out: &mut Vec<PathBuf>) {
        let Ok(entries) = std::fs::read_dir(dir) else { return };
        for path in entries.map(|e| e.expect("readable directory").path()) {
            if path.is_dir() {
                walk(&path, extension, out);
            } else if path.extension().is_some_and(|e| e == extension) {
                out.push(path);
            }
        }
    }
    let mut out = vec![];
    walk(&root().join(dir), extension, &mut out);
    out.sort();
    out
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// A source file of the library: module path, and its lines without comments and without its tests.
struct Source {
    file: String,
    module: String,
    code: Vec<(usize, String)>,
}

/// Lines before the test module. `#[cfg(test)]` on a single item inside does not end the file, a module of tests does.
fn before_tests(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().collect();
    let end = (0..lines.len())
        .find(|&i| lines[i] == "#[cfg(test)]" && lines.get(i + 1).is_some_and(|l| l.starts_with("mod ") && l.ends_with('{')));
    lines[..end.unwrap_or(lines.len())].to_vec()
}

fn is_test_file(path: &Path) -> bool {
    path.file_stem().is_some_and(|s| s == "tests" || s.to_string_lossy().ends_with("_tests"))
        || path.components().any(|c| c.as_os_str() == "tests")
}

fn sources() -> Vec<Source> {
    let src = root().join("src");
    let list: Vec<Source> = files("src", "rs")
        .into_iter()
        .filter(|p| !is_test_file(p.strip_prefix(&src).expect("under src")))
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("source is UTF-8");
            let module = path.strip_prefix(&src).expect("under src").with_extension("").display().to_string().replace('/', "::");
            let code = before_tests(&text)
                .into_iter()
                .enumerate()
                .filter(|(_, l)| !l.trim_start().starts_with("//"))
                .map(|(i, l)| (i + 1, l.split(" // ").next().unwrap_or(l).to_owned()))
                .collect();
            Source { file: shown(&path), module, code }
        })
        .collect();
    assert!(list.len() > 20, "the scan found only {} files: it looks in the wrong place", list.len());
    list
}

fn within(module: &str, place: &str) -> bool {
    module == place || module.strip_prefix(place).is_some_and(|rest| rest.starts_with("::"))
}

fn layer(module: &str) -> Option<u8> {
    LAYERS
        .iter()
        .flat_map(|(n, places)| places.iter().map(move |p| (*n, *p)))
        .filter(|(_, p)| within(module, p))
        .max_by_key(|(_, p)| p.len())
        .map(|(n, _)| n)
}

/// Every `crate::a::b` of a line as `a::b`, and each name of `crate::{a, b}`.
fn uses(line: &str) -> Vec<String> {
    let mut found = vec![];
    for (at, _) in line.match_indices("crate::") {
        if line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &line[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            found.extend(
                group
                    .trim_end_matches(['}', ';'])
                    .split(',')
                    .map(|n| n.trim().split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').next().unwrap_or("").to_owned())
                    .filter(|n| !n.is_empty()),
            );
        } else {
            found.push(
                rest.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').next().unwrap_or("").trim_end_matches(':').to_owned(),
            );
        }
    }
    found
}

fn names_crate(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let (before, after) = (&line[..at], &line[at + name.len()..]);
        let own_word = !before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':' || c == '.' || c == '"');
        own_word && (after.starts_with("::") || (before.trim_end().ends_with("use") && after.starts_with([';', ' '])))
    })
}

fn none(broken: &[String], rule: &str) {
    assert!(broken.is_empty(), "{rule}\n  {}", broken.join("\n  "));
}

#[test]
fn dependencies_point_down_only() {
    let mut broken = vec![];
    for s in sources() {
        let apart = APART.iter().any(|a| within(&s.module, a));
        let Some(own) = layer(&s.module).or(apart.then_some(0)) else {
            broken.push(format!("{}: module {} has no layer; give it one in LAYERS and in ARCHITECTURE.md", s.file, s.module));
            continue;
        };
        for (n, line) in &s.code {
            for target in uses(line) {
                let to_apart =
                    APART.iter().any(|a| within(&target, a)) && !within(&target, s.module.split("::").next().expect("a first segment"));
                if layer(&target).is_some_and(|l| l > own) || (to_apart && own < 6) {
                    broken.push(format!("{}:{n}: {} (L{own}) uses {target}", s.file, s.module));
                }
            }
        }
    }
    none(&broken, "a module uses only its own layer and those below (ARCHITECTURE.md: dependencies point down only):");
}

#[test]
fn every_vendor_crate_stays_in_its_place() {
    let mut broken = vec![];
    for s in sources() {
        for (vendor, places) in VENDORS {
            if places.iter().any(|p| within(&s.module, p)) {
                continue;
            }
            broken.extend(
                s.code
                    .iter()
                    .filter(|(_, l)| names_crate(l, vendor))
                    .map(|(n, _)| format!("{}:{n}: {vendor}, which belongs to {places:?}", s.file)),
            );
        }
    }
    none(&broken, "replacing a vendor crate must be a change in one place:");
}

#[test]
fn deciding_and_planning_touch_nothing() {
    let mut broken = vec![];
    for s in sources().iter().filter(|s| PURE.iter().any(|p| within(&s.module, p))) {
        for (n, line) in &s.code {
            broken.extend(IMPURE.iter().filter(|i| line.contains(*i)).map(|i| format!("{}:{n}: {i}", s.file)));
        }
    }
    none(&broken, "gate, compose, planner, redact and model take plain data and `now`:");
}

#[test]
fn every_file_says_what_it_is_for() {
    let broken: Vec<String> = ["src", "tests", "benches"]
        .iter()
        .flat_map(|d| files(d, "rs"))
        .filter(|p| !std::fs::read_to_string(p).expect("source is UTF-8").starts_with("//! "))
        .map(|p| shown(&p))
        .collect();
    none(&broken, "every file opens with `//!`:");
}

#[test]
fn no_file_outgrows_a_reader() {
    let broken: Vec<String> = files("src", "rs")
        .into_iter()
        .filter(|p| p.file_name().is_none_or(|n| n != "tests.rs"))
        .filter_map(|p| {
            let lines = before_tests(&std::fs::read_to_string(&p).expect("source is UTF-8")).len();
            (lines > MAX_LINES).then(|| format!("{}: {lines} lines before its tests", shown(&p)))
        })
        .collect();
    none(&broken, "over 500 lines a file wants splitting:");
}

#[test]
fn nothing_is_left_unfinished() {
    let marks = ["todo!(", "unimplemented!(", concat!("TO", "DO"), concat!("FIX", "ME"), "//! stub"];
    let mut broken = vec![];
    for path in files("src", "rs") {
        for (n, line) in std::fs::read_to_string(&path).expect("source is UTF-8").lines().enumerate() {
            broken.extend(marks.iter().filter(|m| line.contains(*m)).map(|m| format!("{}:{}: {m}", shown(&path), n + 1)));
        }
    }
    none(&broken, "unfinished work is in the issue tracker, not in the source:");
}

#[test]
fn no_test_file_is_forgotten() {
    let main = std::fs::read_to_string(root().join("tests/it/main.rs")).expect("tests/it/main.rs");
    let broken: Vec<String> = std::fs::read_dir(root().join("tests/it"))
        .expect("tests/it")
        .map(|e| e.expect("readable directory").path())
        .filter(|p| p.extension().is_some_and(|e| e == "rs"))
        .filter_map(|p| p.file_stem().map(|s| s.to_string_lossy().into_owned()))
        .filter(|name| name != "main" && !main.lines().any(|l| l == format!("mod {name};")))
        .collect();
    none(&broken, "tests/it/main.rs must name every file beside it:");
    let others: Vec<String> = std::fs::read_dir(root().join("tests"))
        .expect("tests")
        .map(|e| e.expect("readable directory").path())
        .filter(|p| p.extension().is_some_and(|e| e == "rs"))
        .map(|p| shown(&p))
        .collect();
    none(&others, "one integration binary; a file in tests/ would be another:");
}

#[test]
fn no_tool_is_forgotten() {
    let order: Vec<&str> = dockwarden::tools::catalogue().iter().map(|t| t.name).collect();
    let listed: BTreeSet<&str> = order.iter().copied().collect();
    assert_eq!(order, listed.iter().copied().collect::<Vec<_>>(), "the catalogue is sorted and has no name twice");
    // A tool's file has the tool's name; a file that is no tool does not implement `Verb`.
    let written: BTreeSet<String> = files("src/tools", "rs")
        .into_iter()
        .filter(|p| std::fs::read_to_string(p).expect("source is UTF-8").contains("impl Verb for"))
        .map(|p| p.file_stem().expect("a file has a name").to_string_lossy().into_owned())
        .collect();
    assert_eq!(written.iter().map(String::as_str).collect::<BTreeSet<_>>(), listed, "a tool is one file and one catalogue line");
}

#[test]
fn every_direct_dependency_is_used() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml");
    let mut section = "";
    let mut declared: BTreeMap<String, &str> = BTreeMap::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line;
        } else if let (true, Some((name, _))) = (section == "[dependencies]" || section == "[dev-dependencies]", line.split_once(" = ")) {
            declared.insert(name.replace('-', "_"), section);
        }
    }
    assert!(declared.len() > 10, "the scan of Cargo.toml found only {declared:?}");
    let library: Vec<String> = sources().into_iter().flat_map(|s| s.code.into_iter().map(|(_, l)| l)).collect();
    let everything: Vec<String> = ["src", "tests", "benches"]
        .iter()
        .flat_map(|d| files(d, "rs"))
        .flat_map(|p| std::fs::read_to_string(p).expect("source is UTF-8").lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let broken: Vec<String> = declared
        .iter()
        .filter(|(name, section)| {
            let lines = if **section == "[dependencies]" { &library } else { &everything };
            // A derive or attribute macro by its full path counts like a use.
            !lines.iter().any(|l| names_crate(l, name) || names_crate(&l.replace("#[", " "), name))
        })
        .map(|(name, section)| format!("{name} of {section}"))
        .collect();
    none(&broken, "a dependency that nothing uses is weight and risk for nothing:");
}

#[test]
fn documents_name_only_what_exists() {
    let mut broken = vec![];
    let documents = files("docs", "md").into_iter().chain(
        [
            "README",
            "ARCHITECTURE",
            "CONTRIBUTING",
            "SECURITY",
            "CHANGELOG",
            "memory/README",
            "secrets/README",
            "examples/clients/README",
            "examples/monitoring/README",
            "examples/web/README",
        ]
        .map(|n| root().join(format!("{n}.md"))),
    );
    for document in documents {
        let text = std::fs::read_to_string(&document).unwrap_or_else(|e| panic!("{}: {e}", shown(&document)));
        for (at, _) in text.match_indices("scripts/") {
            let name: String = text[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || "/_-.".contains(*c)).collect();
            let name = name.trim_end_matches(['.', '/']);
            if name != "scripts" && !root().join(name).exists() {
                broken.push(format!("{}: {name}", shown(&document)));
            }
        }
        for (at, _) in text.match_indices("](") {
            let link = text[at + 2..].split([')', '#']).next().unwrap_or("");
            if !link.is_empty() && !link.contains("://") && !document.parent().expect("a file has a directory").join(link).exists() {
                broken.push(format!("{}: link to {link}", shown(&document)));
            }
        }
        for (file, part) in parts_linked(&text) {
            let target = if file.is_empty() { document.clone() } else { document.parent().expect("a file has a directory").join(&file) };
            // A file that is not there was named above.
            let there = std::fs::read_to_string(&target).is_ok_and(|t| headings(&t).contains(&part));
            if target.exists() && !there {
                broken.push(format!("{}: link to the part {part} of {}", shown(&document), shown(&target)));
            }
        }
    }
    none(&broken, "a document names only scripts, files and parts of pages that are there:");
}

#[test]
fn what_names_a_page_names_one_that_is_there() {
    let mut broken = vec![];
    let plain =
        [".env.example", "docker-compose.mcp.yml", "Makefile", "Cargo.toml", "mcpb/manifest.json", "server.json"].map(|n| root().join(n));
    let named = ["src", "tests", "benches", "examples", "scripts", "agents", "prompts"].into_iter();
    let in_folders = named.flat_map(|d| ["rs", "toml", "md", "sh", "yml", "yaml", "py"].into_iter().flat_map(move |e| files(d, e)));
    for file in in_folders.chain(plain) {
        let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", shown(&file)));
        for (at, _) in text.match_indices("docs/") {
            let name: String = text[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || "/_-.".contains(*c)).collect();
            // An address of somebody else's pages has a host before it.
            let ours = !text[..at].ends_with(['.', '/', '-', '_']) || text[..at].ends_with("../") || text[..at].ends_with("}/");
            if ours && name.ends_with(".md") && !root().join(&name).exists() {
                broken.push(format!("{}: {name}", shown(&file)));
            }
        }
    }
    none(&broken, "an error, a comment or an example that sends people to a page names one that is there:");
}

/// `(file, part)` of every link to a part of a page of ours, `file` empty for the page itself.
fn parts_linked(text: &str) -> Vec<(String, String)> {
    let links = text.match_indices("](").filter_map(|(at, _)| text[at + 2..].split_once(')').map(|(link, _)| link));
    let parts = links.filter(|l| !l.contains("://")).filter_map(|l| l.split_once('#'));
    parts.filter(|(file, _)| file.is_empty() || file.ends_with(".md")).map(|(f, p)| (f.to_owned(), p.to_owned())).collect()
}

/// What links name the parts of a page by.
fn headings(text: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        fenced ^= line.trim_start().starts_with("```");
        if let Some(heading) = line.strip_prefix('#').filter(|_| !fenced) {
            let kept = heading.trim_start_matches('#').trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            found.insert(kept.collect::<String>().to_lowercase().replace(' ', "-"));
        }
    }
    found
}

#[test]
fn the_code_map_is_complete() {
    let map = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let broken: BTreeSet<String> = sources()
        .iter()
        .map(|s| s.module.split("::").next().expect("a first segment").to_owned())
        .filter(|m| !map.contains(&format!("`{m}")) && !map.contains(&format!("src/{m}")))
        .collect();
    none(&broken.into_iter().collect::<Vec<_>>(), "ARCHITECTURE.md must name every module of src/:");
}

#[test]
fn the_scan_itself_sees_what_it_is_for() {
    assert_eq!(uses("use crate::engine::docker::Docker;"), ["engine::docker::Docker"]);
    assert_eq!(uses("use crate::{gate, store::Store};"), ["gate", "store::Store"]);
    assert_eq!(uses("pub(crate) fn f() -> crate::model::Spec {"), ["model::Spec"]);
    assert_eq!(
        [layer("engine"), layer("engine::docker::map"), layer("engineering"), layer("call::dispatch")],
        [Some(1), Some(2), None, Some(4)]
    );
    assert!(names_crate("use bollard::Docker;", "bollard") && names_crate("fn f(d: &bollard::Docker)", "bollard"));
    assert!(!names_crate("let x = \"bollard::Docker\"; // bollard", "bollard") && !names_crate("use my_bollard::X;", "bollard"));
    assert_eq!(before_tests("a\n#[cfg(test)]\nmod tests {\nb\n}"), ["a"]);
    assert_eq!(
        parts_linked("[a](b.md#c-d) [e](https://f#g) [h](#i) [j](k.md)"),
        [("b.md".into(), "c-d".into()), (String::new(), "i".into())]
    );
    assert_eq!(headings("# A b\n```\n# no\n```\n## When x.toml changes").into_iter().collect::<Vec<_>>(), ["a-b", "when-xtoml-changes"]);
}
