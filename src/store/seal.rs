//! Encryption of secret values at rest, and the keyed hash that replies show. Every use of the key file goes through a key derived
//! for that use. Deliberately absent: key rotation, and protection from who can read the home.

use super::chain::hex;
use super::fault::{Sql, corrupt, io};
use super::{Store, StoreError, StoreResult, migrate};
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use ed25519_dalek::SigningKey;
use hmac::{Hmac, Mac};
use rusqlite::{Connection, OptionalExtension};
use serde::{Serialize, de::DeserializeOwned};
use sha2::Sha256;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// First byte of a sealed value: XChaCha20-Poly1305, 24-byte nonce, JSON.
const FORMAT: u8 = 1;
const NONCE: usize = 24;

/// The keys of a home.
pub(super) struct Keys {
    cipher: XChaCha20Poly1305,
    hash_key: [u8; 32],
    digest_key: [u8; 32],
    /// Hashes words agents heard.
    pub(super) word_key: (u64, u64),
    /// Signs checkpoints of the audit log.
    pub(super) checkpoint: SigningKey,
}

impl Keys {
    fn new(seal: &[u8; 32], checkpoint: &[u8; 32]) -> Self {
        let derive = |purpose: &str| mac(seal, purpose.as_bytes());
        Self {
            cipher: XChaCha20Poly1305::new(&derive("dockwarden seal v1").into()),
            hash_key: derive("dockwarden keyed hash v1"),
            digest_key: derive("dockwarden keyed digest v1"),
            word_key: {
                let [a, b, ..] = *derive("dockwarden heard words v1").as_chunks::<8>().0 else { unreachable!("32 bytes are four times 8") };
                (u64::from_le_bytes(a), u64::from_le_bytes(b))
            },
            checkpoint: SigningKey::from_bytes(checkpoint),
        }
    }

    /// Encrypts a value for one place: sealed bytes moved to another row do not open.
    pub(super) fn seal<T: Serialize>(&self, place: &str, value: &T) -> StoreResult<Vec<u8>> {
        let plain = serde_json::to_vec(value).map_err(|e| corrupt("value", e))?;
        let mut nonce = [0u8; NONCE];
        random(&mut nonce)?;
        let sealed = self
            .cipher
            .encrypt(&XNonce::from(nonce), Payload { msg: &plain, aad: place.as_bytes() })
            .map_err(|_| corrupt("value", format!("{place} is too large to encrypt")))?;
        let mut out = Vec::with_capacity(1 + NONCE + sealed.len());
        out.push(FORMAT);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&sealed);
        Ok(out)
    }

    /// Decrypts what `seal` made for the same place.
    pub(super) fn open<T: DeserializeOwned>(&self, what: &'static str, place: &str, sealed: &[u8]) -> StoreResult<T> {
        let (format, rest) = sealed.split_first().ok_or_else(|| corrupt(what, format!("{place} is empty")))?;
        if *format != FORMAT {
            return Err(corrupt(what, format!("{place} is sealed in format {format}, this version knows {FORMAT}")));
        }
        let (nonce, text) = rest.split_first_chunk::<NONCE>().ok_or_else(|| corrupt(what, format!("{place} is cut short")))?;
        let plain = self
            .cipher
            .decrypt(&XNonce::from(*nonce), Payload { msg: text, aad: place.as_bytes() })
            .map_err(|_| corrupt(what, format!("{place} was changed, or sealed with another key than keys/seal.key")))?;
        serde_json::from_slice(&plain).map_err(|e| corrupt(what, format!("{place}: {e}")))
    }
}

fn mac(key: &[u8; 32], bytes: &[u8]) -> [u8; 32] {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(bytes);
    mac.finalize().into_bytes().into()
}

fn random(bytes: &mut [u8]) -> StoreResult<()> {
    getrandom::fill(bytes).map_err(|e| StoreError::Io { path: "/dev/urandom".into(), detail: e.to_string() })
}

/// Reads the home's instance id and keys, making them when the home is new.
pub(super) fn identify(conn: &Connection, home: &Path) -> Sql<(String, Keys)> {
    let known = meta(conn, "instance")?;
    let seal = key_file(&home.join("keys/seal.key"), known.is_none())?;
    let checkpoint = key_file(&home.join("keys/checkpoint.key"), known.is_none())?;
    let keys = Keys::new(&seal, &checkpoint);
    // Tells a wrong key file at start, not at the first release that does not open.
    let check = hex(&mac(&seal, b"dockwarden key check v1"));
    match known {
        Some(instance) => {
            if meta(conn, "key_check")?.as_deref() != Some(check.as_str()) {
                let detail = format!("{} is not the key this home was made with: put that one back", home.join("keys/seal.key").display());
                return Err(corrupt("key", detail).into());
            }
            Ok((instance, keys))
        }
        None => {
            let instance = ulid::Ulid::generate().to_string().to_lowercase();
            let tx = conn.unchecked_transaction()?;
            set_meta(&tx, "key_check", &check)?;
            set_meta(&tx, "instance", &instance)?;
            tx.commit()?;
            Ok((instance, keys))
        }
    }
}

fn meta(conn: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    conn.query_row("SELECT value FROM meta WHERE key = ?1", [key], |r| r.get(0)).optional()
}

fn set_meta(conn: &Connection, key: &str, value: &str) -> rusqlite::Result<usize> {
    conn.execute("INSERT INTO meta (key, value) VALUES (?1, ?2)", [key, value])
}

/// Reads 32 bytes, or makes them when they may be missing. A lost key of an old home is an error: a new one would open nothing.
fn key_file(path: &Path, may_create: bool) -> StoreResult<[u8; 32]> {
    match std::fs::read(path) {
        Ok(bytes) => {
            let mode = std::fs::metadata(path).map_err(|e| io(path, &e))?.permissions().mode();
            if mode & 0o077 != 0 {
                tracing::warn!(key = %path.display(), mode = format!("{:o}", mode & 0o777), "the key was readable by others; closed it to them");
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(|e| io(path, &e))?;
            }
            let size = bytes.len();
            bytes.try_into().map_err(|_| {
                corrupt("key", format!("{} has {size} bytes instead of 32: restore it from a backup of the home", path.display()))
            })
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && may_create => create_key(path),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(corrupt(
            "key",
            format!("{} is missing and this home's data was made with it: restore it from a backup of the home", path.display()),
        )),
        Err(e) => Err(io(path, &e)),
    }
}

fn create_key(path: &Path) -> StoreResult<[u8; 32]> {
    let mut key = [0u8; 32];
    random(&mut key)?;
    // Written aside and renamed: a crash leaves no half key.
    let new = PathBuf::from(format!("{}.new", path.display()));
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new).map_err(|e| io(&new, &e))?;
    file.write_all(&key).and_then(|()| file.sync_all()).map_err(|e| io(&new, &e))?;
    std::fs::rename(&new, path).map_err(|e| io(path, &e))?;
    migrate::sync_dir(path)?;
    Ok(key)
}

impl Store {
    /// Keyed 6-character hash of a value, e.g. for `changed (1f09ab)`.
    pub fn keyed_hash(&self, value: &str) -> String {
        hex(&mac(&self.inner.keys.hash_key, value.as_bytes())[..3])
    }

    /// Keyed hash (hex, 64 characters) over bytes: plan digests.
    pub fn keyed_digest(&self, bytes: &[u8]) -> String {
        hex(&mac(&self.inner.keys.digest_key, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_value_opens_only_at_its_place_with_its_key_and_unchanged() {
        let keys = Keys::new(&[7; 32], &[8; 32]);
        let sealed = keys.seal("release/shop/1", &"s3cret").unwrap();
        assert_eq!(keys.open::<String>("release", "release/shop/1", &sealed).unwrap(), "s3cret");
        assert!(!sealed.windows(6).any(|w| w == b"s3cret"));
        assert_ne!(keys.seal("release/shop/1", &"s3cret").unwrap(), sealed, "fresh nonce");
        assert!(keys.open::<String>("release", "release/shop/2", &sealed).is_err());
        assert!(Keys::new(&[9; 32], &[8; 32]).open::<String>("release", "release/shop/1", &sealed).is_err());
        for i in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[i] ^= 1;
            assert!(keys.open::<String>("release", "release/shop/1", &bad).is_err(), "byte {i}");
            assert!(keys.open::<String>("release", "release/shop/1", &sealed[..i]).is_err(), "cut at {i}");
        }
    }
}
