//! What a service becomes as one request: logging, and where configs and secrets go.

use super::*;
use crate::engine::ContainerSpec;
use crate::executor::render::{self, Rendering, Role};
use crate::model::observed::MountInfo;
use serde_json::json;

/// The request for `web` of a stack, on an engine with this log driver, after a container with these volumes.
fn request_for(spec: &StackSpec, log_driver: &str, inherited: &[MountInfo]) -> Result<ContainerSpec, String> {
    render::container(&Rendering {
        instance: "i",
        stack: spec,
        service: &name("web"),
        number: 1,
        role: Role::Serving,
        operation: &OperationId::new("op-render").unwrap(),
        release: 1,
        image: ImageRef::new("sha256:ab").unwrap(),
        hash: String::new(),
        inherited,
        carried: BTreeSet::new(),
        declared: BTreeSet::new(),
        joined: BTreeMap::new(),
        log_driver,
    })
}

fn with(service: serde_json::Value) -> StackSpec {
    let mut spec = stack("web:1", None, &[]);
    let web = spec.services.get_mut("web").unwrap();
    let mut whole = serde_json::to_value(&*web).unwrap();
    whole.as_object_mut().unwrap().extend(service.as_object().unwrap().clone());
    *web = serde_json::from_value(whole).unwrap();
    spec
}

#[test]
fn the_engines_own_log_driver_is_left_alone_where_the_file_names_none() {
    let logging = |service: serde_json::Value, engine: &str| request_for(&with(service), engine, &[]).unwrap().logging;
    for engine in ["json-file", ""] {
        let options = [("max-file".to_owned(), "3".to_owned()), ("max-size".to_owned(), "10m".to_owned())].into();
        assert_eq!(logging(json!({}), engine), Some(Logging { driver: "json-file".into(), options }), "{engine:?}");
    }
    assert_eq!(logging(json!({}), "journald"), None);
    let tag = || [("tag".to_owned(), "web".to_owned())].into();
    let options = json!({"logging": {"driver": "", "options": {"tag": "web"}}});
    assert_eq!(logging(options, "journald"), Some(Logging { driver: String::new(), options: tag() }), "its options, the engine's driver");
    let named = json!({"logging": {"driver": "syslog", "options": {"tag": "web"}}});
    assert_eq!(logging(named, "journald"), Some(Logging { driver: "syslog".into(), options: tag() }));
    let asked = logging(json!({"logging": {"driver": "json-file", "options": {}}}), "journald").unwrap();
    assert_eq!(asked.options["max-size"], "10m", "bounded where the file asks for it, too");
}

/// A stack whose `web` has a config at `/etc/app/x` and these mounts.
fn configured(mounts: Vec<MountSpec>, object: serde_json::Value) -> StackSpec {
    let mut whole = json!({"name": "shop_c", "external": false, "labels": {}});
    whole.as_object_mut().unwrap().extend(object.as_object().unwrap().clone());
    let mut spec = with(json!({"configs": [{"source": "c", "target": "/etc/app/x"}]}));
    spec.services.get_mut("web").unwrap().mounts = mounts;
    spec.configs = serde_json::from_value(json!({"c": whole})).unwrap();
    spec
}

#[test]
fn nothing_is_copied_beneath_a_mount() {
    let mount =
        |kind, source: Option<&str>, target: &str| MountSpec { source: source.map(str::to_owned), ..MountSpec::new(kind, target, "") };
    let file = json!({"file": "/srv/shop/x", "content": "text"});
    let text = json!({"content": "text"});
    let copied = request_for(&configured(vec![mount(MountKind::Volume, Some("data"), "/etc/application")], file.clone()), "", &[]).unwrap();
    assert_eq!((copied.files.len(), copied.mounts.len()), (1, 1), "beside a mount it is copied");
    for above in [
        mount(MountKind::Volume, Some("data"), "/etc/app"),
        mount(MountKind::Bind, Some("/srv/conf"), "/etc/"),
        mount(MountKind::Tmpfs, None, "/etc/app"),
        mount(MountKind::Volume, None, "/"),
    ] {
        let place = above.target.clone();
        let got = request_for(&configured(vec![above.clone()], file.clone()), "", &[]).unwrap();
        let bind = got.mounts.iter().find(|m| m.target == "/etc/app/x").unwrap_or_else(|| panic!("{place}: {:?}", got.mounts));
        assert_eq!((bind.kind, bind.source.as_deref(), bind.read_only, got.files.len()), (MountKind::Bind, Some("/srv/shop/x"), true, 0));
        let why = request_for(&configured(vec![above.clone()], text.clone()), "", &[]).unwrap_err();
        assert!(why.contains(&format!("lies in the mount at {place}; choose another target")), "{why}");
        assert_eq!(
            render::deliverable(&configured(vec![above], text.clone()), &name("web"), &BTreeSet::new()).unwrap_err(),
            why,
            "and preflight says it"
        );
    }
    let at = configured(vec![mount(MountKind::Bind, Some("/srv/y"), "/etc/app/x")], text.clone());
    let got = request_for(&at, "", &[]).unwrap();
    assert_eq!((got.files.len(), got.mounts.len()), (0, 1), "the mount at the same place counts, as in Compose");
    // An image's own volume, taken over from the container before.
    let old =
        MountInfo { kind: "volume".into(), name: Some("ab".repeat(32)), source: String::new(), target: "/etc/app".into(), writable: true };
    let got = request_for(&configured(vec![], file), "", std::slice::from_ref(&old)).unwrap();
    assert_eq!((got.files.len(), got.mounts.len()), (0, 2));
    assert!(request_for(&configured(vec![], text.clone()), "", &[old]).is_err());
    assert!(render::deliverable(&configured(vec![], text.clone()), &name("web"), &["/etc/app".to_owned()].into()).is_err());
    assert!(render::deliverable(&configured(vec![], text), &name("web"), &BTreeSet::new()).is_ok());
}
