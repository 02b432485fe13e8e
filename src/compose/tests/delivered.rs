//! What of a file goes to the engine otherwise than it is written: restart policies, seccomp profiles, configs and secrets that are no text.

use super::*;
use serde_json::json;

/// Texts; `opaque` is there and no text, `theirs` is a text of the directory that a caller's text may not read values from.
struct Side(BTreeMap<&'static str, &'static str>);
impl Files for Side {
    fn read(&self, path: &str) -> Result<Option<String>, ReadError> {
        match path {
            "opaque" | "given" => Err(ReadError::Opaque { why: "it is not UTF-8 text".into(), digest: "d1".into() }),
            "long" => Ok(Some("x".repeat(600 << 10))),
            _ => Ok(self.0.get(path).map(|t| (*t).to_owned())),
        }
    }
    fn variables(&self, path: &str) -> Result<Option<String>, ReadError> {
        if path == "theirs" { Err(ReadError::Unreadable("not for a caller".into())) } else { self.read(path) }
    }
    fn mountable(&self, path: &str) -> bool {
        !matches!(path, "given" | "inline")
    }
}

fn loaded(text: &str, files: &[(&'static str, &'static str)], project_dir: &str) -> Result<StackSpec, Vec<String>> {
    load(&LoadInput {
        name: StackName::new("shop").unwrap(),
        project_dir,
        sources: vec![Source { path: "compose.yaml".into(), text: text.into() }],
        variables: &BTreeMap::new(),
        profiles: &[],
        files: &Side(files.iter().copied().collect()),
        quotas: &Quotas::default(),
    })
    .map_err(|e| e.0.iter().map(ToString::to_string).collect())
}

#[test]
fn the_restart_policy_of_the_deploy_section_wins() {
    let policy = |keys: &str| svc(&ok(&format!("services:\n  a:\n    image: a\n{keys}")), "a").restart;
    let section = "    deploy: {restart_policy: {condition: on-failure, max_attempts: 3}}\n";
    assert_eq!(policy(section), Restart::OnFailure(3));
    assert_eq!(policy(&format!("    restart: always\n{section}")), Restart::OnFailure(3));
    assert_eq!(policy("    restart: always\n    deploy: {restart_policy: {condition: none}}\n"), Restart::No);
    assert_eq!(policy("    restart: unless-stopped\n    deploy: {restart_policy: {delay: 5s}}\n"), Restart::UnlessStopped);
    assert_eq!(policy("    deploy: {restart_policy: {delay: 5s}}\n"), Restart::Always);
    assert_eq!(policy("    restart: unless-stopped\n"), Restart::UnlessStopped);
}

#[test]
fn a_seccomp_profile_goes_to_the_engine_as_its_text() {
    let text = |file: &str| format!("services:\n  a:\n    image: a\n    security_opt: [no-new-privileges, \"seccomp={file}\"]\n");
    let profile = "{\n  \"defaultAction\": \"SCMP_ACT_ERRNO\",\n  \"note\": \"a \\\" b\"\n}\n";
    let files = [("p.json", profile), ("theirs", profile), ("list", "[1]"), ("text", "secret words")];
    let spec = loaded(&text("./p.json"), &files, "/srv/shop").unwrap();
    let compact = "seccomp={\"defaultAction\":\"SCMP_ACT_ERRNO\",\"note\":\"a \\\" b\"}";
    assert_eq!(svc(&spec, "a").security_opt, ["no-new-privileges", compact]);
    let written = json!(["no-new-privileges", "seccomp=./p.json"]);
    assert_eq!(canonical(&spec)["services"]["a"]["security_opt"], written, "the canonical form is Compose's");
    let unconfined = loaded(&text("unconfined"), &files, "/srv/shop").unwrap();
    assert_eq!(svc(&unconfined, "a").security_opt[1], "seccomp=unconfined");
    for (file, why) in [
        ("./gone.json", "the seccomp profile ./gone.json does not exist"),
        ("theirs", "cannot be read: not for a caller"),
        ("list", "list is no seccomp profile: it has no `defaultAction`"),
        ("text", "text is no seccomp profile: it is no JSON (line 1, column 1)"),
    ] {
        let found = loaded(&text(file), &files, "/srv/shop").unwrap_err();
        assert!(found.len() == 1 && found[0].contains("services.a.security_opt[1]: ") && found[0].contains(why), "{file}: {found:?}");
        assert!(!found[0].contains("secret words"));
    }
}

#[test]
fn what_cannot_be_copied_is_mounted_and_told_apart_by_a_digest() {
    let text = |file: &str| format!("services:\n  a: {{image: a, secrets: [s]}}\nsecrets:\n  s: {{file: {file}}}\n");
    for (file, digest) in [("./opaque", Some("d1")), ("./long", None)] {
        let spec = loaded(&text(file), &[], "/srv/shop").unwrap();
        let secret = &spec.secrets["s"];
        assert_eq!((secret.file.as_deref(), &secret.content), (Some(format!("/srv/shop{}", &file[1..])).as_deref(), &None));
        assert!(
            digest.map_or(secret.digest.as_ref().is_some_and(|d| d.len() == 64), |d| secret.digest.as_deref() == Some(d)),
            "{secret:?}"
        );
        assert!(
            spec.unsupported.iter().any(|n| n.path == "secrets.s" && n.reason.contains("is mounted read-only")),
            "{:?}",
            spec.unsupported
        );
    }
    // Nothing on the host to mount.
    for (file, dir) in [("./given", "/srv/shop"), ("./opaque", "")] {
        let found = loaded(&text(file), &[], dir).unwrap_err();
        assert!(found[0].contains("cannot be read: it is not UTF-8 text"), "{file}: {found:?}");
    }
}

#[test]
fn a_text_of_the_call_has_no_path_on_the_host() {
    let text = |file: &str| format!("services:\n  a: {{image: a, configs: [c]}}\nconfigs:\n  c: {{file: {file}}}\n");
    let of = |file: &str| {
        let spec = loaded(&text(file), &[("inline", "new"), ("there", "text")], "/srv/shop").unwrap();
        (spec.configs["c"].file.clone(), spec.configs["c"].content.clone())
    };
    assert_eq!(of("./inline"), (None, Some("new".into())), "the directory's file of that name is another text");
    assert_eq!(of("./there"), (Some("/srv/shop/there".into()), Some("text".into())));
}
