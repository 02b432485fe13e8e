//! A service of a compose file as the `docker run` arguments that mean the same, so that `docker-compose.mcp.yml` itself is what is tested where no
//! Compose plugin is installed. Deliberately absent: leniency. A key it does not translate fails the test that met it.

use std::collections::BTreeMap;
use yaml_serde::Value;

/// What the caller decides beside the file: names that must not collide with a real deployment.
pub struct Names<'a> {
    /// Container, network and the prefix of volumes.
    pub project: &'a str,
    /// Directory that relative paths mean.
    pub directory: &'a str,
    /// The service.
    pub service: &'a str,
}

/// Volumes and networks to make before, and the arguments from `--name` to the command.
#[derive(Debug, Clone)]
pub struct Run {
    /// Named volumes, as they are called here.
    pub volumes: Vec<String>,
    /// The network, as it is called here.
    pub network: String,
    /// Options, in the order of the file.
    pub options: Vec<[String; 2]>,
    /// Image.
    pub image: String,
    /// Command.
    pub command: Vec<String>,
}

impl Run {
    /// Everything after `docker run`.
    pub fn args(&self) -> Vec<&str> {
        let options = self.options.iter().flatten().map(String::as_str).filter(|a| !a.is_empty());
        options.chain([self.image.as_str()]).chain(self.command.iter().map(String::as_str)).collect()
    }

    /// Replaces the value of options that start with a text.
    pub fn replace(&mut self, option: &str, starts: &str, value: &str) {
        let found: Vec<_> = self.options.iter_mut().filter(|[o, v]| o == option && v.starts_with(starts)).collect();
        assert!(!found.is_empty(), "no {option} {starts}");
        for [_, old] in found {
            *old = value.to_owned();
        }
    }
}

/// The file with its merge keys resolved.
pub fn read(text: &str) -> Value {
    let mut file: Value = yaml_serde::from_str(text).expect("the compose file is YAML");
    file.apply_merge().expect("merge keys merge maps");
    file
}

/// Translates one service of a file; the container is named after the project, and called by the service's name.
pub fn translate(text: &str, variables: &BTreeMap<&str, String>, names: &Names<'_>) -> Run {
    let file = read(text);
    let (service, spec) = (names.service, &file["services"][names.service]);
    let named: Vec<&str> = file["volumes"].as_mapping().expect("volumes").keys().map(text_of).collect();
    let mut run = Run { volumes: vec![], network: names.project.to_owned(), options: vec![], image: String::new(), command: vec![] };
    let value = |v: &Value| interpolate(text_of(v), variables);
    run.options.push(["--name".into(), names.project.to_owned()]);
    for (key, v) in spec.as_mapping().expect("a service") {
        let list = || v.as_sequence().expect("a list").iter().map(value).collect::<Vec<_>>();
        let mut each = |option: &str| run.options.extend(list().into_iter().map(|v| [option.to_owned(), v]));
        match text_of(key) {
            "image" => run.image = value(v),
            "command" => run.command = list(),
            // The caller's name takes its place.
            "container_name" => {}
            // When it is started is the caller's matter.
            "profiles" | "depends_on" => {}
            "healthcheck" => {
                assert_eq!(v["disable"].as_bool(), Some(true));
                run.options.push(["--no-healthcheck".into(), String::new()]);
            }
            "mem_limit" => run.options.push(["--memory".into(), value(v)]),
            "secrets" => {
                for secret in v.as_sequence().expect("a list") {
                    let (source, target) = match secret.as_str() {
                        Some(name) => (name, name),
                        None => (text_of(&secret["source"]), text_of(&secret["target"])),
                    };
                    let file = value(&file["secrets"][source]["file"]);
                    let file = file.strip_prefix("./").map_or(file.clone(), |f| format!("{}/{f}", names.directory));
                    run.options.push(["--volume".into(), format!("{file}:/run/secrets/{target}:ro")]);
                }
            }
            "restart" => run.options.push(["--restart".into(), value(v)]),
            "read_only" => {
                assert_eq!(v.as_bool(), Some(true));
                run.options.push(["--read-only".into(), String::new()]);
            }
            "cap_drop" => each("--cap-drop"),
            "security_opt" => each("--security-opt"),
            "user" => run.options.push(["--user".into(), value(v)]),
            "group_add" => each("--group-add"),
            "pids_limit" => run.options.push(["--pids-limit".into(), v.as_u64().expect("a number").to_string()]),
            "stop_grace_period" => run.options.push(["--stop-timeout".into(), value(v).trim_end_matches('s').to_owned()]),
            "ports" => each("--publish"),
            "tmpfs" => each("--tmpfs"),
            "environment" => {
                for (key, v) in v.as_mapping().expect("a map") {
                    run.options.push(["--env".into(), format!("{}={}", text_of(key), value(v))]);
                }
            }
            "networks" => {
                // The service's name is what other containers call it by.
                run.options.push(["--network".into(), names.project.to_owned()]);
                run.options.push(["--network-alias".into(), service.to_owned()]);
            }
            "logging" => {
                run.options.push(["--log-driver".into(), value(&v["driver"])]);
                for (key, v) in v["options"].as_mapping().expect("a map") {
                    run.options.push(["--log-opt".into(), format!("{}={}", text_of(key), value(v))]);
                }
            }
            "volumes" => {
                for volume in list() {
                    let (source, rest) = volume.split_once(':').expect("source:target");
                    let source = match source {
                        s if s.starts_with('/') => s.to_owned(),
                        s if s.starts_with("./") => format!("{}/{}", names.directory, &s[2..]),
                        s => {
                            assert!(named.contains(&s), "volume {s} is not declared");
                            run.volumes.push(format!("{}_{s}", names.project));
                            format!("{}_{s}", names.project)
                        }
                    };
                    run.options.push(["--volume".into(), format!("{source}:{rest}")]);
                }
            }
            other => panic!("{other} of docker-compose.mcp.yml is not translated: add it here"),
        }
    }
    run
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("a text, not {value:?}"))
}

/// `${NAME}`, `${NAME:-default}`, `${NAME:?message}`: an empty variable counts as none.
fn interpolate(text: &str, variables: &BTreeMap<&str, String>) -> String {
    let Some((before, rest)) = text.split_once("${") else { return text.to_owned() };
    let (inside, after) = rest.split_once('}').expect("closed");
    let (name, otherwise) = inside.split_once(':').map_or((inside, None), |(n, o)| (n, Some(o)));
    let given = variables.get(name).filter(|v| !v.is_empty());
    let value = match (given, otherwise) {
        (Some(value), _) => value.clone(),
        (None, Some(otherwise)) if otherwise.starts_with('-') => otherwise[1..].to_owned(),
        (None, otherwise) => panic!("{name} is needed: {}", otherwise.unwrap_or_default()),
    };
    format!("{before}{value}{}", interpolate(after, variables))
}
