//! Users of `[peers]`: what each could do beside the gate, read from owners, groups and modes. Deliberately absent: access lists and capabilities.

use super::{Finding, engine_socket, error, note};
use crate::config::{self, Places};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Findings about the users that may use the socket.
pub(super) fn reach(places: &Places, peers: &BTreeMap<String, Vec<String>>, endpoint: Option<&str>) -> Vec<Finding> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (passwd, group) = (read("/etc/passwd"), read("/etc/group"));
    let mut found = vec![];
    for uid in peers.keys().filter_map(|uid| uid.parse::<u32>().ok()) {
        let gids = groups(uid, &passwd, &group);
        let engine = Path::new(engine_socket(endpoint));
        let mend = "take the user out of the group that may, or give its agents another user (SECURITY.md)";
        let advisory = |what: String| error("peers", format!("uid {uid} {what}: for its agents the gate is advisory"), mend);
        if writes(engine, uid, &gids) {
            found.push(advisory(format!("reaches the engine's socket {}", engine.display())));
        }
        for (what, path) in [("configuration", &places.config_dir), ("home", &places.home)] {
            if writes(path, uid, &gids) {
                found.push(advisory(format!("can write the {what} {}", path.display())));
            }
        }
        let socket = config::socket_path(&places.home);
        if socket.exists() && !writes(&socket, uid, &gids) {
            let text = format!("uid {uid} is named under [peers] and cannot use {}", socket.display());
            found.push(note("peers", text, "the supervisor opens the way when it reads policy.toml again: does its log say why not?"));
        }
    }
    found
}

/// Groups of a user, by the files of this machine.
fn groups(uid: u32, passwd: &str, group: &str) -> BTreeSet<u32> {
    let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    let user = passwd.lines().map(fields).find(|f| f.get(2).is_some_and(|u| *u == uid.to_string()));
    let Some(user) = user else { return BTreeSet::new() };
    let own = user.get(3).and_then(|g| g.parse().ok());
    let named = group.lines().map(fields).filter(|f| f.get(3).is_some_and(|all| all.split(',').any(|n| n == user[0])));
    own.into_iter().chain(named.filter_map(|f| f.get(2)?.parse().ok())).collect()
}

/// Whether a user may write it, and may pass to it.
fn writes(path: &Path, uid: u32, gids: &BTreeSet<u32>) -> bool {
    let may = |path: &Path, right: u32| {
        std::fs::metadata(path).is_ok_and(|m| {
            let of_group = if gids.contains(&m.gid()) { 3 } else { 0 };
            let shift = if m.uid() == uid { 6 } else { of_group };
            (m.mode() >> shift) & right == right
        })
    };
    let Ok(path) = path.canonicalize() else { return false };
    uid == 0 || may(&path, 2) && path.ancestors().skip(1).all(|dir| may(dir, 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nagent:x:4711:4712::/home/agent:/bin/sh\nother:x:4713:4713::/:/bin/sh\n";
    const GROUP: &str = "root:x:0:\ndocker:x:4799:other,agent\nagent:x:4712:\n";

    #[test]
    fn a_users_groups_are_its_own_and_those_that_name_it() {
        assert_eq!(groups(4711, PASSWD, GROUP), BTreeSet::from([4712, 4799]));
        assert_eq!(groups(4713, PASSWD, GROUP), BTreeSet::from([4713, 4799]));
        assert_eq!(groups(9, PASSWD, GROUP), BTreeSet::new());
        assert_eq!(groups(4711, "", "garbage\n:::"), BTreeSet::new());
    }

    #[test]
    fn a_peer_that_reaches_the_engine_or_writes_the_configuration_is_an_error() {
        let dir = tempfile::tempdir_in("/tmp").expect("directory");
        let mode = |path: &Path, mode: u32| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("set");
        let (home, config, socket) = (dir.path().join("home"), dir.path().join("config"), dir.path().join("engine.sock"));
        for dir in [&home, &config] {
            std::fs::create_dir(dir).expect("made");
            mode(dir, 0o700);
        }
        std::fs::write(&socket, "").expect("made");
        mode(dir.path(), 0o711);
        mode(&socket, 0o660);
        let places = Places { home: home.clone(), config_dir: config.clone(), memory: home.clone() };
        let endpoint = format!("unix://{}", socket.display());
        // A user that no file of this machine knows has no group.
        let peers = BTreeMap::from([("4294000001".to_owned(), vec!["observer".to_owned()])]);
        let found = |peers: &BTreeMap<String, Vec<String>>| reach(&places, peers, Some(&endpoint));
        assert_eq!(found(&peers), []);
        mode(&socket, 0o666);
        mode(&config, 0o777);
        let texts: Vec<String> = found(&peers).into_iter().map(|f| f.text).collect();
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert!(texts[0].contains("reaches the engine's socket") && texts[1].contains("can write the configuration"), "{texts:?}");
        std::fs::create_dir(home.join("run")).expect("made");
        std::fs::write(config::socket_path(&home), "").expect("made");
        assert!(found(&peers)[2].text.contains("cannot use"), "the home is closed");
        assert_eq!(found(&BTreeMap::new()), []);
    }
}
