//! What adopting decides without an engine: profiles by what runs, the lines an operator would write.

use super::*;
use chrono::NaiveDate;

#[test]
fn lines_for_the_policy_name_the_value_and_leave_the_reason_to_the_operator() {
    let stack = StackName::new("shop").unwrap();
    let finding = |rule: &str, service: Option<&str>| Finding {
        rule: rule.into(),
        verdict: Verdict::Deny,
        service: service.map(str::to_owned),
        path: Some("services.web.volumes[0]".into()),
        because: "it leads out".into(),
    };
    let weighed = |finding, value: &str| gate::plan::Weighed { finding, value: value.to_owned() };
    let warned = Finding { verdict: Verdict::Warn, ..finding("image.latest", Some("web")) };
    let findings = [
        weighed(finding("bind.outside", Some("web")), "/etc/\"ssl\""),
        weighed(finding("yaml.alias", None), "x"),
        weighed(warned, "web:latest"),
    ];
    let text = lines::policy(&stack, &findings, NaiveDate::from_ymd_opt(2030, 1, 31).unwrap());
    assert_eq!(
        text,
        "# bind.outside (deny) services.web.volumes[0]: it leads out\n[[exceptions]]\nrule = \"bind.outside\"\nstack = \"shop\"\nservice = \"web\"\n\
         value = \"/etc/\\\"ssl\\\"\"\nbecause = \"\"  # say why\nexpires = \"2030-07-31\"\n\n\
         # yaml.alias (deny) services.web.volumes[0]: it leads out\n\
         # no exception can be written for it: change the file, or the rule's level under [rules]\n\n"
    );
    // The file refuses them until the reason is written, and takes them then.
    assert!(crate::gate::policy::parse("policy.toml", &text).is_err());
    assert!(crate::gate::policy::parse("policy.toml", &text.replace("because = \"\"", "because = \"certificates\"")).is_ok());
}

#[test]
fn lines_for_the_configuration_are_read_back_as_the_registration() {
    let entry = StackSettingsEntry {
        dir: "/srv/my shop".into(),
        files: vec!["compose.yaml".into(), "prod.yaml".into()],
        environment: Some("production".into()),
        profiles: vec!["jobs".into()],
        env_files: vec!["prod.env".into()],
        backup: None,
        git: None,
    };
    let text = lines::config(&StackName::new("shop").unwrap(), &entry);
    let settings = crate::config::parse(&text, "dockwarden.toml").unwrap();
    assert_eq!(settings.stacks[&StackName::new("shop").unwrap()], entry);
}

#[test]
fn profiles_are_taken_from_what_runs_and_bring_as_little_else_as_can_be() {
    let service = |profiles: &[&str]| crate::model::spec::ServiceSpec {
        active: profiles.is_empty(),
        profiles: profiles.iter().map(|p| (*p).to_owned()).collect(),
        ..Default::default()
    };
    let services = [("web", service(&[])), ("mail", service(&["all", "mail"])), ("shell", service(&["all"])), ("jobs", service(&["jobs"]))];
    let spec = StackSpec {
        services: services.into_iter().map(|(n, s)| (ServiceName::new(n).unwrap(), s)).collect(),
        ..StackSpec::new(StackName::new("shop").unwrap())
    };
    let of = |running: &[&str], given: &[&str]| {
        let given: Vec<String> = given.iter().map(|g| (*g).to_owned()).collect();
        profiles(&spec, &running.iter().copied().collect(), &given)
    };
    assert_eq!(of(&["web"], &[]), None);
    assert_eq!(of(&["web", "mail"], &[]), Some(vec!["mail".into()]), "`all` would bring shell too");
    assert_eq!(of(&["web", "mail"], &["mail"]), None);
    assert_eq!(of(&["jobs", "shell"], &["mail"]), Some(vec!["all".into(), "jobs".into(), "mail".into()]));
}
