//! A release as a compose file: Compose's canonical form, made of what is stored. What may be a secret (values of variables, contents, options of drivers,
//! arguments of builds) is a keyed hash, as in a diff. Deliberately absent: the text somebody once sent; nobody keeps it.

use crate::compose::canonical;
use crate::model::ids::ServiceName;
use crate::model::spec::StackSpec;
use serde_json::Value;

/// Bytes of the text: a reply says it twice, and a model reads at most 25,000 tokens.
const BUDGET: usize = 24_000;

/// Options of drivers that tell where something is, and are shown.
const PLAIN_OPTIONS: [&str; 2] = ["type", "device"];

/// How values are masked.
struct Mask<'a> {
    /// Variables whose values are shown.
    literal: &'a [String],
    hash: &'a dyn Fn(&str) -> String,
}

/// The text, of one service where one is named, and whether it was cut.
pub(super) fn text(
    spec: &StackSpec,
    only: Option<&ServiceName>,
    literal: &[String],
    hash: &dyn Fn(&str) -> String,
) -> Result<(String, bool), yaml_serde::Error> {
    let mut spec = spec.clone();
    if let Some(only) = only {
        spec.services.retain(|name, _| name == only);
    }
    let from_file: Vec<String> =
        spec.services.iter().filter(|(_, s)| s.other.contains_key("label_file")).map(|(name, _)| name.to_string()).collect();
    let mut file = canonical(&spec);
    let mask = Mask { literal, hash };
    for name in from_file {
        values(file["services"].get_mut(&name).and_then(|s| s.get_mut("labels"))).for_each(|value| mask.value(value));
    }
    mask.within(&mut file);
    for kind in ["configs", "secrets"] {
        values(file.get_mut(kind)).filter_map(|object| object.get_mut("content")).for_each(|content| mask.value(content));
    }
    let mut text = yaml_serde::to_string(&file)?;
    let cut = text.len() > BUDGET;
    if cut {
        text.truncate(text.floor_char_boundary(BUDGET));
        text.truncate(text.rfind('\n').map_or(0, |at| at + 1));
    }
    Ok((text, cut))
}

fn values(map: Option<&mut Value>) -> impl Iterator<Item = &mut Value> {
    map.and_then(Value::as_object_mut).into_iter().flat_map(serde_json::Map::values_mut)
}

impl Mask<'_> {
    /// Masks, at any depth, what carries values of variables: of services, of their hooks, of builds.
    fn within(&self, value: &mut Value) {
        match value {
            Value::Object(map) => {
                for (key, inner) in map {
                    match key.as_str() {
                        "environment" => self.variables(inner, self.literal),
                        "args" if inner.is_object() => self.variables(inner, &[]),
                        "driver_opts" => self.variables(inner, &PLAIN_OPTIONS.map(str::to_owned)),
                        _ => self.within(inner),
                    }
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.within(item)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    /// A map of names to values, or a list of `NAME=value`.
    fn variables(&self, value: &mut Value, shown: &[String]) {
        let is_shown = |name: &str| shown.iter().any(|s| s == name);
        match value {
            Value::Object(map) => map.iter_mut().filter(|(name, _)| !is_shown(name)).for_each(|(_, value)| self.value(value)),
            Value::Array(items) => {
                for item in items {
                    let Some((name, text)) = item.as_str().and_then(|text| text.split_once('=')) else { continue };
                    if !is_shown(name) {
                        *item = format!("{name}={}", self.masked(text)).into();
                    }
                }
            }
            // `environment` of a secret names a variable.
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    fn value(&self, value: &mut Value) {
        let text = match &*value {
            Value::Null => return,
            Value::String(text) => self.masked(text),
            other => self.masked(&other.to_string()),
        };
        *value = text.into();
    }

    /// As in a diff. The canonical form doubles each `$`.
    fn masked(&self, text: &str) -> String {
        format!("set ({})", (self.hash)(&text.replace("$$", "$")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compose::{LoadInput, Source, load};
    use crate::model::ids::StackName;
    use crate::model::policy::Quotas;
    use std::collections::BTreeMap;

    const FILE: &str = r#"
services:
  web:
    image: hello:1
    command: [serve, --root, /srv]
    environment: {ROLE: api, PASSWORD: "pa$$word"}
    labels: {team: shop}
    build: {context: /src, args: {TOKEN: tok-1}}
    post_start: [{command: [warm], environment: ["KEY=hook-1"]}]
    configs: [motd]
  db:
    image: hello:1
    command: [keep]
    volumes: ["share:/data"]
configs:
  motd: {content: "word of the day"}
volumes:
  share: {driver_opts: {type: cifs, device: //nas/x, o: "username=a,password=nas-1"}}
"#;

    struct Nothing;

    impl crate::compose::Files for Nothing {
        fn read(&self, _: &str) -> Result<Option<String>, crate::compose::ReadError> {
            Ok(None)
        }
    }

    fn spec() -> StackSpec {
        let input = LoadInput {
            name: StackName::new("shop").expect("valid"),
            project_dir: "/srv/shop",
            sources: vec![Source { path: "compose.yaml".into(), text: FILE.into() }],
            variables: &BTreeMap::new(),
            profiles: &[],
            files: &Nothing,
            quotas: &Quotas::default(),
        };
        load(&input).expect("loads")
    }

    #[test]
    fn it_is_the_file_with_hashes_where_secrets_may_stand() {
        let hash = |text: &str| format!("hash of {} bytes", text.len());
        let (text, cut) = text(&spec(), None, &["ROLE".into()], &hash).expect("written");
        assert!(!cut);
        for secret in ["pa$", "tok-1", "hook-1", "word of the day", "nas-1"] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
        let read: Value = yaml_serde::from_str(&text).expect("YAML");
        let web = &read["services"]["web"];
        assert_eq!((&read["name"], &web["image"], &web["command"][2]), (&"shop".into(), &"hello:1".into(), &"/srv".into()));
        assert_eq!((&web["environment"]["ROLE"], &web["labels"]["team"]), (&"api".into(), &"shop".into()));
        // The password has seven bytes: its dollar is not doubled.
        assert_eq!(web["environment"]["PASSWORD"], "set (hash of 7 bytes)");
        assert_eq!(web["post_start"][0]["environment"]["KEY"], "set (hash of 6 bytes)");
        assert_eq!(read["volumes"]["share"]["driver_opts"]["device"], "//nas/x");
        assert_eq!(read["configs"]["motd"]["content"], "set (hash of 15 bytes)");
    }

    #[test]
    fn one_service_is_shown_alone_and_a_large_file_is_cut_at_a_line() {
        let hash = |_: &str| "h".to_owned();
        let mut spec = spec();
        let (one, _) = text(&spec, Some(&ServiceName::new("db").expect("valid")), &[], &hash).expect("written");
        assert!(one.contains("keep") && one.contains("share") && !one.contains("serve") && !one.contains("motd"), "{one}");
        let web = spec.services.values().next().expect("a service").clone();
        for n in 0..400 {
            spec.services.insert(ServiceName::new(format!("web{n}")).expect("valid"), web.clone());
        }
        let (large, cut) = text(&spec, None, &[], &hash).expect("written");
        assert!(cut && large.len() <= BUDGET && large.ends_with('\n'), "{}", large.len());
    }
}
