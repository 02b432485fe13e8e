//! What `[backup]` may say. Deliberately absent: reaching the places, which `dockwarden doctor` does.

use super::{Fault, valid_schedule};
use crate::model::target::{BackupSettings, Location, Target};

/// Places and copies that cannot work: the line to look for, what is wrong, what to write.
pub(super) fn check(settings: &BackupSettings, remote: bool) -> Result<(), Fault> {
    if let Some(mib @ ..64) = settings.worker_memory_mib {
        return Err((
            "worker_memory_mib".to_owned(),
            format!("worker_memory_mib = {mib} is too little for a backup worker"),
            "write 64 or more, or leave it out",
        ));
    }
    let mut places: Vec<(String, Target)> = settings.repository.iter().map(|t| ("backup.repository".to_owned(), t.clone())).collect();
    for (name, copy) in &settings.copies {
        let table = format!("backup.copies.{name}");
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
        if name.is_empty() || name.len() > 32 || !name.bytes().all(fits) {
            return Err((table, format!("{name:?} is not a name for a copy"), "lower-case letters, digits, '-' and '_', 32 at most"));
        }
        if copy.key_file.as_ref().is_some_and(|f| !f.is_absolute()) {
            return Err((table, format!("backup.copies.{name}.key_file is not absolute"), "write the whole path"));
        }
        if let Some(schedule) = copy.schedule.as_deref().filter(|s| *s != "off" && !valid_schedule(s)) {
            let message = format!("backup.copies.{name}.schedule = {schedule:?} is not a schedule");
            return Err((
                table,
                message,
                "leave it out for a copy after each backup, or write hourly, daily, weekly, monthly, five cron fields, or \"off\"",
            ));
        }
        places.push((table, copy.target()));
    }
    for (n, (table, target)) in places.iter().enumerate() {
        let fault = |message: String, hint: &'static str| Err((table.clone(), format!("{table}: {message}"), hint));
        if target.at.is_remote() && !remote {
            return fault(
                format!("{} is on another host, and this build reaches none", target.at),
                "build it with `cargo build --locked --features backup-remote`, or name a directory",
            );
        }
        if let Some((other, _)) = places[..n].iter().find(|(_, o)| same(&o.at, &target.at)) {
            return fault(format!("{} is where {other} is", target.at), "give each a place of its own");
        }
        let files = [&target.credentials_file, &target.identity_file, &target.known_hosts];
        if files.into_iter().flatten().any(|f| !f.is_absolute() || f.to_str().is_none_or(|t| t.contains(['"', '%', ' ']))) {
            return fault(
                "credentials_file, identity_file and known_hosts are whole paths without spaces, quotes and percent signs".into(),
                "write e.g. \"/etc/dockwarden/s3.credentials\"",
            );
        }
        let s3 = matches!(target.at, Location::S3 { .. });
        let sftp = matches!(target.at, Location::Sftp { .. });
        if !s3 && (target.credentials_file.is_some() || target.region.is_some()) {
            return fault("credentials_file and region are for s3: places".into(), "take them out");
        }
        if !sftp && (target.identity_file.is_some() || target.known_hosts.is_some()) {
            return fault("identity_file and known_hosts are for sftp:// places".into(), "take them out");
        }
        if !(1..=3600).contains(&target.timeout_s) {
            return fault(format!("timeout_s = {} is no time limit", target.timeout_s), "1 to 3600 seconds for one request; 60 by default");
        }
    }
    Ok(())
}

/// The same place, or one within the other.
fn same(a: &Location, b: &Location) -> bool {
    let (a, b) = (format!("{a}/"), format!("{b}/"));
    a.starts_with(&b) || b.starts_with(&a)
}

#[cfg(test)]
mod tests {
    use crate::config::parse;

    fn refused(text: &str) -> (Option<usize>, String, String) {
        let e = parse(text, "f").unwrap_err();
        (e.line, e.message, e.hint)
    }

    #[test]
    fn copies_on_this_host_need_no_feature() {
        let text = "[backup.copies.disk]\nat = \"/mnt/disk/dockwarden\"\nschedule = \"weekly\"\nkeep = {daily = 30}\n";
        let settings = parse(text, "f").unwrap();
        let copy = &settings.backup.copies["disk"];
        let keep = copy.keep.clone().unwrap();
        assert_eq!((copy.at.to_string().as_str(), keep.daily, keep.hourly), ("/mnt/disk/dockwarden", 30, 24));
    }

    #[test]
    fn a_place_on_another_host_is_refused_with_its_line_by_a_build_that_reaches_none() {
        let text = "listen = \"off\"\n[backup.repository]\nat = \"s3:https://s3.example.com/bucket\"\n";
        let settings: crate::model::config::Settings = toml::from_str(text).unwrap();
        assert!(super::check(&settings.backup, true).is_ok());
        let (needle, message, hint) = super::check(&settings.backup, false).unwrap_err();
        assert_eq!(super::super::line_of(text, &needle), Some(2));
        assert!(message.contains("s3:https://s3.example.com/bucket") && hint.contains("--features backup-remote"), "{message} {hint}");
        // What this build does with the whole file.
        assert_eq!(parse(text, "f").is_ok(), cfg!(feature = "backup-remote"));
    }

    #[test]
    fn what_cannot_work_is_named_with_its_line() {
        for (text, line, says) in [
            ("[backup.copies.disk]\nat = \"here\"\n", 2, "not understood"),
            ("[backup.copies.disk]\nat = \"/a\"\nsecret = \"x\"\n", 3, "unknown field"),
            ("[backup.copies.\"Big Disk\"]\nat = \"/a\"\n", 0, "is not a name"),
            ("[backup.copies.disk]\nat = \"/a\"\nschedule = \"sometimes\"\n", 1, "is not a schedule"),
            ("[backup.copies.disk]\nat = \"/a\"\nkey_file = \"k\"\n", 1, "is not absolute"),
            ("[backup.copies.disk]\nat = \"/a\"\nregion = \"eu\"\n", 1, "for s3: places"),
            ("[backup.copies.disk]\nat = \"/a\"\ntimeout_s = 0\n", 1, "no time limit"),
            ("[backup.copies.a]\nat = \"/a\"\n[backup.copies.b]\nat = \"/a/b\"\n", 3, "is where backup.copies.a is"),
        ] {
            let (found, message, _) = refused(text);
            assert!(message.contains(says), "{text}: {message}");
            assert_eq!(found.unwrap_or_default(), line, "{text}");
        }
    }
}
