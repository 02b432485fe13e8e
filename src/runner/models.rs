//! From the name of a model in an agent's manifest to what is asked: its settings, its key, its price. Keys are read anew for each run, so that a
//! changed one is used at once, and are held by nothing that can be shown.

use crate::model::config::{ModelProvider, ModelSettings, ModelsSettings, PriceSettings};
use crate::model::spend::Price;
use crate::redact::MASK;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// The house default, as Claude Code calls it.
const INHERIT: &str = "inherit";
const ANTHROPIC: &str = "https://api.anthropic.com/v1";
const OPENAI: &str = "https://api.openai.com/v1";
/// A key shorter than this is none, and would be masked in every other word.
const LEAST_KEY: usize = 8;

/// A key. It is shown by nothing: not by `Debug`, and not in texts that passed [`Key::scrub`].
#[derive(Clone)]
pub struct Key(Arc<str>);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key([redacted])")
    }
}

impl Key {
    /// From the text of a file or variable.
    ///
    /// # Errors
    /// In words, without the text.
    pub fn new(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.len() < LEAST_KEY || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err("it holds no key: one line of at least 8 characters without spaces".into());
        }
        Ok(Self(text.into()))
    }

    /// The key itself, for the request alone.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// A text without the key.
    pub fn scrub(&self, text: &str) -> String {
        if text.contains(&*self.0) { text.replace(&*self.0, MASK) } else { text.to_owned() }
    }

    /// A value without the key, at every depth.
    pub fn scrub_value(&self, value: Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.scrub(&text)),
            Value::Array(items) => items.into_iter().map(|v| self.scrub_value(v)).collect(),
            Value::Object(map) => {
                map.into_iter().map(|(k, v)| (self.scrub(&k), self.scrub_value(v))).collect::<serde_json::Map<_, _>>().into()
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => value,
        }
    }
}

/// A model that can be asked.
#[derive(Debug, Clone)]
pub struct Model {
    /// Its name here.
    pub name: String,
    /// What it speaks.
    pub provider: ModelProvider,
    /// Address.
    pub base_url: String,
    /// Its name there.
    pub model: String,
    /// Key.
    pub key: Option<Key>,
    /// Most tokens of an answer.
    pub max_tokens: u32,
    /// Tokens it takes in all.
    pub context_tokens: u32,
    /// Longest wait for a piece of an answer.
    pub timeout: Duration,
    /// Price.
    pub price: Option<Price>,
}

/// Prices as whole numbers.
///
/// # Errors
/// The first that is no price.
pub fn price(p: &PriceSettings) -> Result<Price, String> {
    let micro = |dollars: f64| {
        let micro = (dollars * 1e6).round();
        // A million dollars per million tokens: nothing costs as much.
        if (0.0..=1e12).contains(&micro) {
            Ok(micro as u64)
        } else {
            Err(format!("{dollars} is no price in US dollars per million tokens"))
        }
    };
    let input = micro(p.input)?;
    let cached = p.cached.map_or(Ok(input), micro)?;
    let cache_write = p.cache_write.map_or(Ok(input.saturating_mul(5).div_ceil(4)), micro)?;
    Ok(Price { input, cached, cache_write, output: micro(p.output)? })
}

/// The model an agent's manifest names.
///
/// # Errors
/// In words, with what to write where.
pub fn find<'a>(settings: &'a ModelsSettings, wanted: Option<&str>) -> Result<(&'a str, &'a ModelSettings), String> {
    let known = || settings.named.keys().cloned().collect::<Vec<_>>().join(", ");
    let name = match wanted {
        None => return Err("it has no `model`: write `model: inherit` or the name of one of [models] into its manifest".into()),
        Some(INHERIT) => settings
            .default
            .as_deref()
            .ok_or("its model is `inherit` and the house has no default: set default under [models] in dockwarden.toml")?,
        Some(name) => name,
    };
    settings.named.get_key_value(name).map(|(n, m)| (n.as_str(), m)).ok_or_else(|| {
        let known = known();
        let known = if known.is_empty() { "none are configured".to_owned() } else { format!("configured are: {known}") };
        format!("its model {name:?} is not configured: add [models.{name}] to dockwarden.toml ({known})")
    })
}

/// Reads the key and puts everything together. `variable` looks into the environment.
///
/// # Errors
/// In words, with what to do; never with any part of a key.
pub fn resolve(name: &str, s: &ModelSettings, variable: &dyn Fn(&str) -> Option<String>) -> Result<Model, String> {
    let key = match (&s.key_file, &s.key_env) {
        (Some(file), _) => {
            let text = std::fs::read_to_string(file).map_err(|e| format!("models.{name}.key_file {}: {e}", file.display()))?;
            Some(Key::new(&text).map_err(|e| format!("models.{name}.key_file {}: {e}", file.display()))?)
        }
        (None, Some(var)) => {
            let text = variable(var).ok_or_else(|| format!("models.{name}.key_env: the supervisor's environment has no {var}"))?;
            Some(Key::new(&text).map_err(|e| format!("models.{name}.key_env {var}: {e}"))?)
        }
        (None, None) => None,
    };
    Ok(Model { key, ..keyless(name, s)? })
}

/// As [`resolve`], without its key: what an agent in a process of its own is told.
///
/// # Errors
/// In words.
pub fn keyless(name: &str, s: &ModelSettings) -> Result<Model, String> {
    let own = match s.provider {
        ModelProvider::Anthropic => ANTHROPIC,
        ModelProvider::Openai => OPENAI,
    };
    Ok(Model {
        name: name.to_owned(),
        provider: s.provider,
        base_url: s.base_url.clone().unwrap_or_else(|| own.to_owned()),
        model: s.model.clone(),
        key: None,
        max_tokens: s.max_tokens,
        context_tokens: s.context_tokens,
        timeout: Duration::from_secs(s.timeout_s),
        price: s.price.as_ref().map(price).transpose().map_err(|e| format!("models.{name}.price: {e}"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TEXT: &str = "[models]\ndefault = \"big\"\n[models.big]\nprovider = \"anthropic\"\nmodel = \"m-1\"\nkey_env = \"KEY\"\nprice = {input = 3.0, cached = 0.3, output = 15.0}\n[models.own]\nprovider = \"openai\"\nmodel = \"q\"\nbase_url = \"http://127.0.0.1:8000/v1\"\n";

    fn settings() -> ModelsSettings {
        crate::config::parse(TEXT, "f").expect("valid").models
    }

    #[test]
    fn a_manifest_names_a_model_or_means_the_default() {
        let s = settings();
        assert_eq!(find(&s, Some("inherit")).unwrap().0, "big");
        assert_eq!(find(&s, Some("own")).unwrap().1.model, "q");
        assert!(find(&s, Some("sonnet")).unwrap_err().contains("[models.sonnet]"));
        assert!(find(&s, None).unwrap_err().contains("model: inherit"));
        assert!(find(&ModelsSettings::default(), Some("inherit")).unwrap_err().contains("default under [models]"));
    }

    #[test]
    fn a_key_comes_from_outside_and_is_never_shown() {
        let s = settings();
        let model = resolve("big", &s.named["big"], &|_| Some("sk-test-0123456789\n".into())).unwrap();
        assert!(!format!("{model:?}").contains("0123"), "{model:?}");
        let key = model.key.unwrap();
        assert_eq!(key.scrub("key sk-test-0123456789!"), "key [redacted]!");
        assert_eq!(key.scrub_value(json!({"a": ["sk-test-0123456789"]})), json!({"a": ["[redacted]"]}));
        assert_eq!(model.price, Some(Price { input: 3_000_000, cached: 300_000, cache_write: 3_750_000, output: 15_000_000 }));
        let missing = resolve("big", &s.named["big"], &|_| None).unwrap_err();
        assert_eq!(missing, "models.big.key_env: the supervisor's environment has no KEY");
        let bad = resolve("big", &s.named["big"], &|_| Some("two words of secret".into())).unwrap_err();
        assert!(!bad.contains("secret"), "{bad}");
        assert!(resolve("own", &s.named["own"], &|_| None).unwrap().key.is_none());
    }

    #[test]
    fn a_price_that_is_none_is_refused() {
        let p = |input, output| price(&PriceSettings { input, cached: None, cache_write: None, output });
        assert!(p(-1.0, 1.0).is_err() && p(1.0, f64::NAN).is_err() && p(1e9, 1.0).is_err());
        assert_eq!(p(0.15, 0.6), Ok(Price { input: 150_000, cached: 150_000, cache_write: 187_500, output: 600_000 }));
    }
}
