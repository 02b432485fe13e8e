//! Operators' passphrases (scrypt) and bearer tokens. Deliberately absent: where they are kept (`store::token`) and where a passphrase is
//! typed (`cli::terminal`).

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};
use scrypt::{Params, scrypt};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// OWASP's scrypt setting: N = 2^17, r = 8, p = 1 (128 MiB would raise the supervisor's peak too far; 2^15 with p = 3 is its listed equal).
const COST: (u8, u32, u32) = (15, 8, 3);
/// Most that a stored credential may cost: 128 MiB, as OWASP's largest setting.
const MOST: (u8, u32, u32) = (17, 8, 10);
/// Shortest passphrase: below it, guessing offline from a stolen home is cheap.
pub const MIN_PASSPHRASE: usize = 12;

/// Why a credential could not be made or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// Too short.
    #[error("a passphrase has at least {MIN_PASSPHRASE} characters")]
    TooShort,
    /// No randomness.
    #[error("the kernel gave no random bytes: {0}")]
    Random(String),
    /// The stored text is not ours.
    #[error("the stored credential is unreadable")]
    Unreadable,
}

fn random<const N: usize>() -> Result<[u8; N], CredentialError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| CredentialError::Random(e.to_string()))?;
    Ok(bytes)
}

fn derive(passphrase: &str, salt: &[u8], (log_n, r, p): (u8, u32, u32)) -> Result<[u8; 32], CredentialError> {
    let params = Params::new(log_n, r, p).map_err(|_| CredentialError::Unreadable)?;
    let mut out = [0; 32];
    scrypt(passphrase.as_bytes(), salt, &params, &mut out).map_err(|_| CredentialError::Unreadable)?;
    Ok(out)
}

/// `scrypt$15$8$3$<salt>$<hash>`. Takes about 0.1 s: run it off the runtime's threads.
///
/// # Errors
/// `TooShort`, `Random`.
pub fn hash(passphrase: &str) -> Result<String, CredentialError> {
    if passphrase.chars().count() < MIN_PASSPHRASE {
        return Err(CredentialError::TooShort);
    }
    let salt: [u8; 16] = random()?;
    let key = derive(passphrase, &salt, COST)?;
    let (log_n, r, p) = COST;
    Ok(format!("scrypt${log_n}${r}${p}${}${}", BASE64_STANDARD_NO_PAD.encode(salt), BASE64_STANDARD_NO_PAD.encode(key)))
}

/// A stored credential that no passphrase opens: what is checked for a name that has none, so that it takes as long.
pub const NOBODYS: &str = "scrypt$15$8$3$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Whether a passphrase is the one behind a stored credential.
///
/// # Errors
/// `Unreadable`.
pub fn verify(passphrase: &str, stored: &str) -> Result<bool, CredentialError> {
    let bad = CredentialError::Unreadable;
    let [kind, log_n, r, p, salt, key] = stored.split('$').collect::<Vec<_>>()[..] else { return Err(bad) };
    let (Ok(log_n), Ok(r), Ok(p)) = (log_n.parse(), r.parse(), p.parse()) else { return Err(bad) };
    let (Ok(salt), Ok(key)) = (BASE64_STANDARD_NO_PAD.decode(salt), BASE64_STANDARD_NO_PAD.decode(key)) else { return Err(bad) };
    // A credential that asks for more than ours ever do would take the supervisor's memory with it.
    if kind != "scrypt" || log_n > MOST.0 || r > MOST.1 || p > MOST.2 {
        return Err(bad);
    }
    Ok(derive(passphrase, &salt, (log_n, r, p))?.ct_eq(&key).into())
}

/// A new bearer token of 256 bits and the SHA-256 that is kept of it.
///
/// # Errors
/// `Random`.
pub fn token() -> Result<(String, [u8; 32]), CredentialError> {
    prefixed("dw_")
}

/// The same for an operator; the prefix tells people, and scanners for leaked secrets, what it is.
///
/// # Errors
/// `Random`.
pub fn operator_token() -> Result<(String, [u8; 32]), CredentialError> {
    prefixed(crate::adapters::http::api::OPERATOR_PREFIX)
}

fn prefixed(prefix: &str) -> Result<(String, [u8; 32]), CredentialError> {
    let bytes: [u8; 32] = random()?;
    let token = format!("{prefix}{}", BASE64_URL_SAFE_NO_PAD.encode(bytes));
    let kept = Sha256::digest(token.as_bytes()).into();
    Ok((token, kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passphrase_is_verified_and_another_is_not() {
        let stored = hash("correct horse battery").expect("hashes");
        assert_eq!(verify("correct horse battery", &stored), Ok(true));
        assert_eq!(verify("correct horse batterz", &stored), Ok(false));
        assert!(!stored.contains("horse"));
        let cost = |stored: &str| stored.rsplitn(3, '$').last().map(str::to_owned);
        assert_eq!((verify("correct horse battery", NOBODYS), cost(NOBODYS)), (Ok(false), cost(&stored)), "as costly as any");
    }

    #[test]
    fn short_passphrases_and_foreign_credentials_are_refused() {
        assert_eq!(hash("short"), Err(CredentialError::TooShort));
        for bad in ["", "plain", "bcrypt$15$8$3$AA$AA", "scrypt$99$8$3$AA$AA", "scrypt$30$8$3$AA$AA", "scrypt$15$4294967295$3$AA$AA"] {
            assert_eq!(verify("x", bad), Err(CredentialError::Unreadable), "{bad:?}");
        }
    }

    #[test]
    fn tokens_differ_and_only_their_hash_is_kept() {
        let (a, kept) = token().expect("random");
        let (b, _) = token().expect("random");
        assert!(a != b && a.len() == 46);
        assert_eq!(kept, <[u8; 32]>::from(Sha256::digest(a.as_bytes())));
    }
}
