//! Sessions of operators in a browser: in memory only, found by a random cookie, ended by time, by logging out, by a new passphrase and by
//! the supervisor's end. Deliberately absent: checking the passphrase (`adapters::people`), and any right beyond the operator's own.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// A session nobody used for so long ends.
const IDLE: TimeDelta = TimeDelta::minutes(15);
/// A session ends after a working day in any case.
const LONGEST: TimeDelta = TimeDelta::hours(8);
/// Most sessions at once; the one unused for longest makes room.
const MAX: usize = 32;
/// Name of the cookie.
pub const COOKIE: &str = "dockwarden_session";

type Hash = [u8; 32];

/// Sessions, by the SHA-256 of their cookie: what is kept here opens nothing.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<BTreeMap<Hash, Kept>>);

#[derive(Debug)]
struct Kept {
    operator: String,
    credential: Hash,
    csrf: Hash,
    opened: DateTime<Utc>,
    used: DateTime<Utc>,
}

/// A session as a request sees it.
#[derive(Clone, PartialEq, Eq)]
pub struct Session {
    /// Who logged in.
    pub operator: String,
    /// SHA-256 of the stored credential they logged in with.
    credential: Hash,
    csrf: Hash,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("operator", &self.operator).finish_non_exhaustive()
    }
}

fn random() -> Result<Hash, String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|e| format!("the kernel gave no random bytes: {e}"))?;
    Ok(bytes)
}

fn hash(text: &str) -> Hash {
    Sha256::digest(text.as_bytes()).into()
}

impl Kept {
    fn alive(&self, now: DateTime<Utc>) -> bool {
        now - self.used < IDLE && now - self.opened < LONGEST
    }
}

impl Sessions {
    /// Opens a session and returns the value of its cookie. `credential` is the operator's stored credential: with another one it is void.
    ///
    /// # Errors
    /// In words, when there is no randomness.
    pub fn open(&self, operator: &str, credential: &str, now: DateTime<Utc>) -> Result<String, String> {
        let cookie = BASE64_URL_SAFE_NO_PAD.encode(random()?);
        let kept = Kept { operator: operator.to_owned(), credential: hash(credential), csrf: random()?, opened: now, used: now };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, s| s.alive(now));
        while all.len() >= MAX {
            let Some(oldest) = all.iter().min_by_key(|(_, s)| s.used).map(|(k, _)| *k) else { break };
            all.remove(&oldest);
        }
        all.insert(hash(&cookie), kept);
        Ok(cookie)
    }

    /// The session of a cookie, and its idle time begins anew.
    pub fn find(&self, cookie: &str, now: DateTime<Utc>) -> Option<Session> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = all.get_mut(&hash(cookie)).filter(|s| s.alive(now))?;
        kept.used = now;
        Some(Session { operator: kept.operator.clone(), credential: kept.credential, csrf: kept.csrf })
    }

    /// Ends the session of a cookie.
    pub fn close(&self, cookie: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&hash(cookie));
    }
}

impl Session {
    /// Whether the operator's credential is still the one of the login. `stored` are operators and their credentials.
    pub fn holds(&self, stored: &[(String, String)]) -> bool {
        stored.iter().any(|(name, credential)| *name == self.operator && hash(credential) == self.credential)
    }

    fn mac(&self, about: &[&str]) -> Hmac<Sha256> {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.csrf).expect("HMAC takes a key of any length");
        for part in about {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        mac
    }

    /// Token of a form: of this session and for exactly this, e.g. an approval's id and digest.
    pub fn token(&self, about: &[&str]) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.mac(about).finalize().into_bytes())
    }

    /// Whether a form's token is of this session and for exactly this. Takes the same time for every wrong one.
    pub fn meant(&self, about: &[&str], token: &str) -> bool {
        BASE64_URL_SAFE_NO_PAD.decode(token).is_ok_and(|bytes| self.mac(about).verify_slice(&bytes).is_ok())
    }
}

/// `Set-Cookie` of a session; an empty value ends it.
pub fn set_cookie(value: &str, secure: bool) -> String {
    let end = if value.is_empty() { "; Max-Age=0" } else { "" };
    let secure = if secure { "; Secure" } else { "" };
    format!("{COOKIE}={value}; Path=/approvals; HttpOnly; SameSite=Strict{secure}{end}")
}

/// Value of the session's cookie in a `Cookie` header. Two of them are none: one may have been put there by another page.
pub fn cookie(header: &str) -> Option<&str> {
    let mut found = header.split(';').filter_map(|pair| pair.trim().split_once('=')).filter(|(name, _)| *name == COOKIE);
    match (found.next(), found.next()) {
        (Some((_, value)), None) if !value.is_empty() => Some(value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::minutes(minutes)
    }

    #[test]
    fn a_session_lives_while_it_is_used_and_never_longer_than_a_working_day() {
        let sessions = Sessions::default();
        let cookie = sessions.open("ann", "stored", at(0)).expect("random");
        assert_eq!(cookie.len(), 43, "256 bits");
        assert_eq!(sessions.find(&cookie, at(14)).map(|s| s.operator), Some("ann".into()));
        assert!(sessions.find(&cookie, at(28)).is_some(), "its use counts");
        assert!(sessions.find(&cookie, at(43)).is_none(), "15 minutes without use");
        let cookie = sessions.open("ann", "stored", at(0)).expect("random");
        assert!((1..48).all(|n| sessions.find(&cookie, at(n * 10)).is_some()));
        assert!(sessions.find(&cookie, at(480)).is_none(), "8 hours");
        assert!(sessions.find("", at(0)).is_none() && sessions.find("x", at(0)).is_none());
    }

    #[test]
    fn logging_out_and_another_passphrase_end_it() {
        let sessions = Sessions::default();
        let cookie = sessions.open("ann", "stored", at(0)).expect("random");
        let session = sessions.find(&cookie, at(1)).expect("open");
        let stored = |name: &str, credential: &str| vec![(name.to_owned(), credential.to_owned())];
        assert!(session.holds(&stored("ann", "stored")));
        assert!(!session.holds(&stored("ann", "changed")) && !session.holds(&stored("bob", "stored")) && !session.holds(&[]));
        sessions.close(&cookie);
        assert!(sessions.find(&cookie, at(1)).is_none());
    }

    #[test]
    fn a_forms_token_is_of_one_session_and_one_thing() {
        let sessions = Sessions::default();
        let open = |who: &str| sessions.find(&sessions.open(who, "c", at(0)).expect("random"), at(0)).expect("open");
        let (ann, other) = (open("ann"), open("ann"));
        let token = ann.token(&["ap-1", "digest"]);
        assert!(ann.meant(&["ap-1", "digest"], &token));
        assert!(!other.meant(&["ap-1", "digest"], &token), "another session");
        for about in [["ap-1", "other"], ["ap-2", "digest"], ["ap-1d", "igest"]] {
            assert!(!ann.meant(&about, &token), "{about:?}");
        }
        for bad in ["", "!", &token[..42], &format!("{token}A")] {
            assert!(!ann.meant(&["ap-1", "digest"], bad), "{bad:?}");
        }
    }

    #[test]
    fn there_are_never_more_than_the_most_and_the_oldest_goes() {
        let sessions = Sessions::default();
        let cookies: Vec<String> =
            (0..=MAX).map(|n| sessions.open("ann", "c", at(0) + TimeDelta::seconds(n as i64)).expect("random")).collect();
        assert!(sessions.find(&cookies[0], at(1)).is_none());
        assert!(cookies[1..].iter().all(|c| sessions.find(c, at(1)).is_some()));
    }

    #[test]
    fn cookies_are_closed_to_scripts_and_other_sites() {
        assert_eq!(set_cookie("v", true), "dockwarden_session=v; Path=/approvals; HttpOnly; SameSite=Strict; Secure");
        assert_eq!(set_cookie("", false), "dockwarden_session=; Path=/approvals; HttpOnly; SameSite=Strict; Max-Age=0");
        assert_eq!(cookie("a=b; dockwarden_session=v"), Some("v"));
        for bad in ["", "dockwarden_session", "dockwarden_session=", "xdockwarden_session=v", "dockwarden_session=a; dockwarden_session=b"]
        {
            assert_eq!(cookie(bad), None, "{bad:?}");
        }
    }
}
