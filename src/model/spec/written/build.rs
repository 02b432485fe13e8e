//! `build`.

use super::scalar::*;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;

/// `build`. Paths are absolute where there is a project directory.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Build {
    /// Directory or address.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// File, relative to the context.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub dockerfile: Option<String>,
    /// The file itself.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub dockerfile_inline: Option<String>,
    /// Build arguments that have a value.
    #[serde(deserialize_with = "pairs", skip_serializing_if = "BTreeMap::is_empty")]
    pub args: BTreeMap<String, Option<String>>,
    /// Keys of the agent: id and socket or file.
    #[serde(deserialize_with = "pairs", serialize_with = "as_list", skip_serializing_if = "BTreeMap::is_empty")]
    pub ssh: BTreeMap<String, Option<String>>,
    /// Labels of the image.
    #[serde(deserialize_with = "mapping", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Caches read.
    #[serde(deserialize_with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub cache_from: Vec<String>,
    /// Caches written.
    #[serde(deserialize_with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub cache_to: Vec<String>,
    /// Without a cache.
    #[serde(deserialize_with = "flag", skip_serializing_if = "is_false")]
    pub no_cache: bool,
    /// Steps that take nothing from the cache.
    #[serde(deserialize_with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub no_cache_filter: Vec<String>,
    /// More contexts by name.
    #[serde(deserialize_with = "mapping", skip_serializing_if = "BTreeMap::is_empty")]
    pub additional_contexts: BTreeMap<String, String>,
    /// Base images are pulled.
    #[serde(deserialize_with = "flag", skip_serializing_if = "is_false")]
    pub pull: bool,
    /// `host=address`, sorted.
    #[serde(deserialize_with = "hosts", skip_serializing_if = "Vec::is_empty")]
    pub extra_hosts: Vec<String>,
    /// Isolation (Windows).
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub isolation: Option<String>,
    /// Network of the steps.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Stage.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Secrets of the steps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<FileReference>,
    /// Shared memory of the steps.
    #[serde(skip_serializing_if = "no_bytes")]
    pub shm_size: Option<Bytes>,
    /// More names of the image.
    #[serde(deserialize_with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Limits of the steps.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ulimits: BTreeMap<String, Ulimit>,
    /// Platforms.
    #[serde(deserialize_with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<String>,
    /// With all rights.
    #[serde(deserialize_with = "flag", skip_serializing_if = "is_false")]
    pub privileged: bool,
    /// Rights of the build; Compose checks them and does not print them.
    #[serde(deserialize_with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub entitlements: Vec<String>,
    /// Attestation.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub provenance: Option<String>,
    /// Attestation.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub sbom: Option<String>,
}

fn hosts<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Address {
        One(String),
        Many(Vec<String>),
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        Map(BTreeMap<String, Address>),
        List(Vec<String>),
    }
    let bare = |ip: &str| ip.strip_prefix('[').and_then(|i| i.strip_suffix(']')).filter(|i| !i.is_empty()).unwrap_or(ip).to_owned();
    let mut out: Vec<String> = match Option::<Form>::deserialize(d)? {
        None => Vec::new(),
        Some(Form::Map(map)) => map
            .into_iter()
            .flat_map(|(host, address)| match address {
                Address::One(one) => vec![format!("{host}={}", bare(&one))],
                Address::Many(many) => many.iter().map(|ip| format!("{host}={}", bare(ip))).collect(),
            })
            .collect(),
        Some(Form::List(items)) => {
            let mut out = Vec::new();
            for item in &items {
                let Some((host, addresses)) = item.split_once('=').or_else(|| item.split_once(':')) else {
                    return Err(D::Error::custom(format_args!("{item:?} has no address; write host=address")));
                };
                out.extend(addresses.split(',').map(|ip| format!("{host}={}", bare(ip))));
            }
            out
        }
    };
    out.sort();
    Ok(out)
}

/// A limit: one number, or two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ulimit {
    /// Soft and hard alike.
    Single(i64),
    /// Soft and hard.
    Both(i64, i64),
}

impl Serialize for Ulimit {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = BTreeMap::new();
        match self {
            Self::Single(0) => {}
            Self::Single(n) => return s.serialize_i64(*n),
            Self::Both(soft, hard) => {
                map.extend([("soft", *soft), ("hard", *hard)].into_iter().filter(|(_, v)| *v != 0));
            }
        }
        map.serialize(s)
    }
}

impl<'de> Deserialize<'de> for Ulimit {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            One(i64),
            Text(String),
            Two {
                #[serde(default, deserialize_with = "int")]
                soft: Option<i64>,
                #[serde(default, deserialize_with = "int")]
                hard: Option<i64>,
            },
        }
        match Form::deserialize(d)? {
            Form::One(n) => Ok(Self::Single(n)),
            Form::Text(t) => t.parse().map(Self::Single).map_err(|_| D::Error::custom(format_args!("{t:?} is no whole number"))),
            Form::Two { soft, hard } => Ok(Self::Both(soft.unwrap_or(0), hard.unwrap_or(0))),
        }
    }
}

/// A secret used by a build.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileReference {
    /// Key of the secret.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Name within.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Owner.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Group.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub gid: Option<String>,
    /// Mode.
    #[serde(deserialize_with = "int", skip_serializing_if = "Option::is_none")]
    pub mode: Option<i64>,
}
