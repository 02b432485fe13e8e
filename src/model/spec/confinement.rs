//! Security options whose value is a whole text: seccomp profiles. Plain text work.

use sha2::{Digest, Sha256};
use std::borrow::Cow;

/// Value of a `seccomp` option.
fn seccomp(option: &str) -> Option<&str> {
    option.trim().strip_prefix("seccomp")?.strip_prefix(['=', ':'])
}

/// The profile file of a `seccomp=FILE` option; a profile written out is none.
pub fn seccomp_file(option: &str) -> Option<&str> {
    seccomp(option).filter(|f| !f.trim_start().starts_with('{') && !matches!(*f, "unconfined" | "builtin" | "default" | "runtime/default"))
}

/// The option as it is shown and agreed to: a profile written out by a hash of all of it.
pub fn option_shown(option: &str) -> Cow<'_, str> {
    match seccomp(option).filter(|p| p.trim_start().starts_with('{')) {
        None => Cow::Borrowed(option.trim()),
        Some(profile) => {
            let hash: String = Sha256::digest(profile).iter().take(12).map(|b| format!("{b:02x}")).collect();
            Cow::Owned(format!("seccomp=profile {hash} ({} bytes)", profile.len()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_a_file_or_written_out_and_two_of_them_are_never_shown_alike() {
        assert_eq!(seccomp_file("seccomp=./p.json"), Some("./p.json"));
        assert_eq!(seccomp_file("seccomp:p.json"), Some("p.json"));
        for none in ["seccomp=unconfined", "seccomp={}", "apparmor=./p", "no-new-privileges"] {
            assert_eq!(seccomp_file(none), None, "{none}");
        }
        assert_eq!(option_shown(" apparmor=x "), "apparmor=x");
        let (a, b) = (option_shown("seccomp={\"a\":1}"), option_shown("seccomp={\"a\":2}"));
        assert!(a != b && a.starts_with("seccomp=profile ") && a.ends_with("(7 bytes)"), "{a}");
    }
}
