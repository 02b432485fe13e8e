//! What secrets are called and how well-known credentials begin: the one list that the plan gate judges files by and that masks what leaves.
//! Deliberately absent: what is done about one.

/// Words of a name that make its value a secret. Those of five letters and more also count within a longer word.
pub const SECRET_WORDS: &[&str] =
    &["PASSWORD", "PASSWD", "PASSPHRASE", "PASS", "PWD", "PW", "SECRET", "TOKEN", "APIKEY", "CREDENTIAL", "CREDENTIALS", "AUTHORIZATION"];
/// `..._KEY` is a secret after one of these.
pub const KEY_WORDS: &[&str] = &["API", "ACCESS", "PRIVATE", "SECRET", "ENCRYPTION", "SIGNING", "MASTER", "APP", "AUTH", "JWT"];
/// A name that ends so speaks about a secret and holds none.
pub const ABOUT_WORDS: &[&str] = &[
    "FILE",
    "PATH",
    "DIR",
    "TTL",
    "SECONDS",
    "MINUTES",
    "HOURS",
    "DAYS",
    "MS",
    "LENGTH",
    "LEN",
    "MIN",
    "MAX",
    "EXPIRY",
    "EXPIRES",
    "EXPIRATION",
    "LIFETIME",
    "TIMEOUT",
    "ENABLED",
    "DISABLED",
    "REQUIRED",
    "POLICY",
    "NAME",
    "HEADER",
    "ALGORITHM",
    "ALG",
    "TYPE",
    "ISSUER",
    "AUDIENCE",
    "COUNT",
    "SIZE",
    "FORMAT",
    "FIELD",
    "ROTATION",
    "ENDPOINT",
    "URL",
    "URI",
    "ID",
    "USER",
    "USERNAME",
    "POOL",
];

/// How a well-known credential begins, from the providers' own documentation, and ours.
#[derive(Debug)]
pub struct Prefix {
    /// The beginning.
    pub text: &'static str,
    /// Least bytes behind it in a file that is judged.
    pub least: usize,
    /// Least bytes behind it in a text that leaves: masking once too often costs less than refusing a file.
    pub masked: usize,
}

const fn prefix(text: &'static str, least: usize, masked: usize) -> Prefix {
    Prefix { text, least, masked }
}

/// All of them.
pub const PREFIXES: &[Prefix] = &[
    prefix("AKIA", 16, 12),
    prefix("ASIA", 16, 12),
    prefix("ghp_", 30, 12),
    prefix("gho_", 30, 12),
    prefix("ghu_", 30, 12),
    prefix("ghs_", 30, 12),
    prefix("ghr_", 30, 12),
    prefix("github_pat_", 30, 12),
    prefix("glpat-", 16, 12),
    prefix("xoxb-", 10, 12),
    prefix("xoxp-", 10, 12),
    prefix("xoxa-", 10, 10),
    prefix("xoxr-", 10, 10),
    prefix("xapp-", 10, 10),
    prefix("sk_live_", 16, 12),
    prefix("rk_live_", 16, 16),
    prefix("whsec_", 16, 16),
    prefix("sk-ant-", 16, 12),
    prefix("sk-proj-", 16, 12),
    prefix("sk-", 32, 32),
    prefix("AIza", 30, 30),
    prefix("ya29.", 20, 20),
    prefix("SG.", 30, 30),
    prefix("npm_", 30, 12),
    prefix("pypi-", 30, 30),
    prefix("dckr_pat_", 16, 12),
    prefix("hf_", 30, 30),
    prefix("dop_v1_", 30, 30),
    prefix("shpat_", 30, 30),
    prefix("hvs.", 20, 20),
    prefix("AGE-SECRET-KEY-", 20, 20),
    // Bearer tokens of this supervisor: an agent's, an operator's. Whoever reads one is them.
    prefix("dw_", 40, 40),
    prefix("dwo_", 40, 40),
];

/// Whether a name names a secret by its words, however they are put together: `DB_PASSWORD`, `clientSecret`, `jwt.key`.
pub fn is_secret_key(key: &str) -> bool {
    let key = key.to_ascii_uppercase();
    let part = |c: char| !c.is_ascii_alphanumeric();
    let squeezed: String = key.chars().filter(|c| !part(*c)).collect();
    SECRET_WORDS.iter().any(|word| if word.len() >= 5 { squeezed.contains(word) } else { key.split(part).any(|p| p == *word) })
        || KEY_WORDS.iter().any(|word| squeezed.match_indices(word).any(|(at, _)| squeezed[at + word.len()..].starts_with("KEY")))
}

/// Whether a name only speaks about a secret: `TOKEN_TTL`, `PASSWORD_FILE`.
pub fn is_about(key: &str) -> bool {
    let last = key.rsplit(|c: char| !c.is_ascii_alphanumeric()).find(|w| !w.is_empty()).unwrap_or_default().to_ascii_uppercase();
    ABOUT_WORDS.contains(&last.as_str()) && !holds(key)
}

/// `VAULT_SECRET_ID`: one half of a login, whatever its end looks like.
pub fn holds(key: &str) -> bool {
    let key = key.to_ascii_uppercase();
    key.ends_with("SECRET_ID") || key.ends_with("SECRET-ID") || key.ends_with("SECRETID")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_by_their_words_in_any_spelling() {
        for key in [
            "JWT_KEY",
            "encryption-key",
            "signing.key",
            "MASTER_KEY",
            "appKey",
            "AUTH_KEY",
            "clientSecret",
            "db_pw",
            "X_TOKEN",
            "VAULT_SECRET_ID",
        ] {
            assert!(is_secret_key(key), "{key}");
        }
        for key in ["KEY", "PUBLIC_KEY", "MONKEY", "PASSENGERS", "compass", "keyboard"] {
            assert!(!is_secret_key(key), "{key}");
        }
        assert!(is_about("TOKEN_TTL") && is_about("AWS_ACCESS_KEY_ID") && !is_about("VAULT_SECRET_ID") && !is_about("DB_PASSWORD"));
    }
}
