//! Text to a bounded tree. Limits are enforced while the tree is built, so an alias bomb is refused after the allowed number of nodes and
//! not after it has filled the memory. Merge keys (`<<`) are resolved here, as YAML parsers do. Knows nothing of compose beside its two tags.

use super::plain;
use crate::model::policy::Quotas;
use serde::de::{DeserializeSeed, EnumAccess, Error as _, MapAccess, SeqAccess, VariantAccess, Visitor};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;

/// A mapping; keys are strings in compose.
pub(super) type Map = BTreeMap<String, Value>;

/// The tags compose gives a meaning to when files are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tag {
    /// `!reset`: remove what earlier files said.
    Reset,
    /// `!override`: replace what earlier files said.
    Override,
}

/// A YAML value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    String(String),
    Seq(Vec<Value>),
    Map(Map),
    Tagged(Tag, Box<Value>),
}

impl Value {
    /// What it takes in memory, roughly.
    pub(super) fn bytes(&self) -> usize {
        const NODE: usize = 32;
        let within = match self {
            Self::Null | Self::Bool(_) | Self::Int(_) | Self::Float(_) => 0,
            Self::String(text) => text.len(),
            Self::Seq(items) => items.iter().map(Self::bytes).sum(),
            Self::Map(map) => map.iter().map(|(key, value)| NODE + key.len() + value.bytes()).sum(),
            Self::Tagged(_, value) => value.bytes(),
        };
        NODE + within
    }

    /// The word used in messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Int(_) | Self::Float(_) => "a number",
            Self::String(_) => "text",
            Self::Seq(_) => "a list",
            Self::Map(_) => "a mapping",
            Self::Tagged(..) => "a tagged value",
        }
    }

    /// A scalar as text, the way compose converts it; `None` for null, lists and mappings.
    pub(super) fn scalar(&self) -> Option<String> {
        match self {
            Self::Bool(b) => Some(b.to_string()),
            Self::Int(i) => Some(i.to_string()),
            Self::Float(f) => Some(plain::float_text(*f)),
            Self::String(s) => Some(s.clone()),
            Self::Null | Self::Seq(_) | Self::Map(_) | Self::Tagged(..) => None,
        }
    }

    /// Canonical JSON: mappings sorted by key.
    pub(super) fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Null => serde_json::Value::Null,
            Self::Bool(b) => (*b).into(),
            Self::Int(i) => i64::try_from(*i).map_or_else(|_| i.to_string().into(), Into::into),
            Self::Float(f) if f.fract() == 0.0 && f.abs() < 9e15 => (*f as i64).into(),
            Self::Float(f) => serde_json::Number::from_f64(*f).map_or_else(|| plain::float_text(*f).into(), serde_json::Value::Number),
            Self::String(s) => s.as_str().into(),
            Self::Seq(items) => items.iter().map(Self::to_json).collect(),
            Self::Map(map) => serde_json::Value::Object(map.iter().map(|(k, v)| (k.clone(), v.to_json())).collect()),
            Self::Tagged(_, inner) => inner.to_json(),
        }
    }
}

/// Why a text is no tree: the message, the line where known, and what to do.
#[derive(Debug)]
pub(super) struct ParseError {
    pub message: String,
    pub line: Option<usize>,
    pub hint: &'static str,
    pub rule: &'static str,
}

/// Rule of texts that would cost more than they may.
const BOMB: &str = "yaml.bomb";
/// Steps the scanner may take over open flow collections: a fraction of a second.
const MAX_FLOW_STEPS: usize = 100_000_000;

/// Parses one document within the quotas.
pub(super) fn parse(text: &str, quotas: &Quotas) -> Result<Value, ParseError> {
    let refuse = |message: String, hint| ParseError { message, line: None, hint, rule: BOMB };
    if text.len() as u64 > quotas.max_file_bytes {
        return Err(refuse(
            format!("the file has {} bytes, at most {} are read", text.len(), quotas.max_file_bytes),
            "split the file with `include`, or move long texts to files named by configs",
        ));
    }
    if let Some(line) = nesting_beyond(text, quotas.max_depth as usize * 8) {
        return Err(ParseError {
            message: "brackets are nested too deep".into(),
            line: Some(line),
            hint: "flatten the document",
            rule: BOMB,
        });
    }
    let budget = Budget {
        text,
        nodes: Cell::new(quotas.max_alias_expansion_nodes),
        // A scalar repeated through aliases costs no file bytes: bound what it expands to as well.
        bytes: Cell::new(quotas.max_file_bytes.saturating_mul(16)),
        max_depth: quotas.max_depth,
    };
    Seed { budget: &budget, depth: 0 }.deserialize(yaml_serde::Deserializer::from_str(text)).map_err(|e| {
        let message = e.to_string();
        let hint = if message.contains("alias expansion") || message.contains("repetition limit") {
            "write fewer aliases, or raise max_alias_expansion_nodes in policy.toml"
        } else if message.contains("more than one document") {
            "keep one document per file; give further documents as override files"
        } else {
            "mend the YAML at this place"
        };
        let rule = if ["alias expansion", "repetition limit", "recursion limit", "nested deeper"].iter().any(|w| message.contains(w)) {
            BOMB
        } else if message.contains("more than one document") || message.contains("duplicate key") {
            "yaml.ambiguous"
        } else {
            super::INVALID
        };
        // The parser does not say where the second document begins.
        let second = || {
            let begun = text.lines().position(|l| !l.trim().is_empty() && !l.starts_with(['#', '%']) && l.trim_end() != "---")?;
            text.lines().skip(begun + 1).position(|l| l.starts_with("---") || l.trim_end() == "...").map(|n| begun + n + 2)
        };
        let line = e.location().map(|l| l.line()).or_else(|| if message.contains("more than one document") { second() } else { None });
        ParseError { line: line.or(Some(1)), message, hint, rule }
    })
}

/// The parser underneath does work proportional to the open flow collections for every token, so that work is bounded before it starts; how
/// deep a document really is, the tree's own limit judges. Brackets within quoted text are taken for open ones: telling them apart would be
/// a second parser that can be led astray. They cost nothing unless there are thousands.
fn nesting_beyond(text: &str, limit: usize) -> Option<usize> {
    let (mut depth, mut steps) = (0usize, 0usize);
    for (index, line) in text.lines().enumerate() {
        let dashes = line.bytes().take_while(|b| matches!(b, b'-' | b' ' | b'?' | b'\t')).filter(|b| matches!(b, b'-' | b'?')).count();
        if dashes > limit && line.len() > dashes && line.contains("- -") {
            return Some(index + 1);
        }
        for byte in line.bytes() {
            match byte {
                b'[' | b'{' => depth += 1,
                b']' | b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            // Every token begins or ends with a byte that is no letter or digit.
            if !byte.is_ascii_alphanumeric() {
                steps += depth;
            }
        }
        if steps > MAX_FLOW_STEPS {
            return Some(index + 1);
        }
    }
    None
}

struct Budget<'t> {
    /// The document, to tell a plain scalar from a quoted one: what the parser lends out is a part of it.
    text: &'t str,
    nodes: Cell<u64>,
    bytes: Cell<u64>,
    max_depth: u32,
}

#[derive(Clone, Copy)]
struct Seed<'b> {
    budget: &'b Budget<'b>,
    depth: u32,
}

impl Seed<'_> {
    fn spend<E: serde::de::Error>(self, bytes: usize) -> Result<(), E> {
        let nodes = self.budget.nodes.get().checked_sub(1);
        let left = self.budget.bytes.get().checked_sub(bytes as u64);
        let (Some(nodes), Some(left)) = (nodes, left) else {
            return Err(E::custom("the document is too large after alias expansion"));
        };
        self.budget.nodes.set(nodes);
        self.budget.bytes.set(left);
        Ok(())
    }

    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        self.spend(0)?;
        if self.depth >= self.budget.max_depth {
            return Err(E::custom(format_args!("the document is nested deeper than {} levels", self.budget.max_depth)));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }
    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        self.spend(0).map(|()| Value::Null)
    }
    fn visit_none<E: serde::de::Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }
    fn visit_some<D: serde::Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        self.deserialize(d)
    }
    fn visit_bool<E: serde::de::Error>(self, v: bool) -> Result<Value, E> {
        self.spend(0).map(|()| Value::Bool(v))
    }
    fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<Value, E> {
        self.spend(0).map(|()| Value::Int(v.into()))
    }
    fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<Value, E> {
        self.spend(0).map(|()| Value::Int(v.into()))
    }
    fn visit_i128<E: serde::de::Error>(self, v: i128) -> Result<Value, E> {
        self.spend(0).map(|()| Value::Float(v as f64))
    }
    fn visit_u128<E: serde::de::Error>(self, v: u128) -> Result<Value, E> {
        // What fits no integer is a floating-point number, as Compose's parser has it.
        self.spend(0).map(|()| Value::Float(v as f64))
    }
    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Value, E> {
        self.spend(0).map(|()| Value::Float(v))
    }
    fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<Value, E> {
        self.spend(v.len()).map(|()| Value::String(v.to_owned()))
    }
    fn visit_borrowed_str<E: serde::de::Error>(self, v: &'de str) -> Result<Value, E> {
        self.spend(v.len())?;
        let at = (v.as_ptr() as usize).checked_sub(self.budget.text.as_ptr() as usize);
        let before = at.and_then(|at| self.budget.text.as_bytes().get(at.checked_sub(1)?));
        let quoted = matches!(before, Some(b'"' | b'\''));
        Ok(if quoted { None } else { plain::resolve(v) }.unwrap_or_else(|| Value::String(v.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(inner)? {
            items.push(item);
        }
        Ok(Value::Seq(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut map = Map::new();
        while let Some(key) = access.next_key_seed(inner)? {
            let Value::String(key) = key else {
                let shown = key.scalar().unwrap_or_else(|| key.kind().to_owned());
                return Err(A::Error::custom(format_args!("the key {shown} is {}, not text: put it in quotes", key.kind())));
            };
            let value = access.next_value_seed(inner)?;
            if map.contains_key(&key) {
                return Err(A::Error::custom(format_args!("duplicate key {key:?}")));
            }
            map.insert(key, value);
        }
        if let Some(merge) = map.remove("<<") {
            merge_into(&mut map, merge).map_err(A::Error::custom)?;
        }
        Ok(Value::Map(map))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let (tag, variant) = data.variant::<String>()?;
        let value = variant.newtype_variant_seed(inner)?;
        let tag = match tag.trim_start_matches('!') {
            "reset" => Tag::Reset,
            "override" => Tag::Override,
            other => return Err(A::Error::custom(format_args!("unknown tag !{other}; compose has !reset and !override"))),
        };
        Ok(Value::Tagged(tag, Box::new(value)))
    }
}

/// What the mapping says itself wins; among several merged mappings the first one wins.
fn merge_into(map: &mut Map, merge: Value) -> Result<(), &'static str> {
    const FORM: &str = "`<<` needs a mapping or a list of mappings";
    match merge {
        Value::Map(from) => {
            for (key, value) in from {
                map.entry(key).or_insert(value);
            }
            Ok(())
        }
        Value::Seq(items) => items.into_iter().try_for_each(|item| match item {
            from @ Value::Map(_) => merge_into(map, from),
            _ => Err(FORM),
        }),
        _ => Err(FORM),
    }
}
