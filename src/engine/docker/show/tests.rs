//! Answers as Docker 20.10 gives them.

use super::*;
use serde_json::json;

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

#[test]
fn health_is_read_from_the_end_of_the_status_text() {
    let cases = [
        ("Up 3 minutes (healthy)", HealthState::Healthy),
        ("Up 3 minutes (unhealthy)", HealthState::Unhealthy),
        ("Up Less than a second (health: starting)", HealthState::Starting),
        ("Up 3 minutes", HealthState::None),
        ("Up 3 minutes (Paused)", HealthState::None),
        ("Exited (0) 2 hours ago", HealthState::None),
    ];
    for (status, want) in cases {
        assert_eq!(health_in(status), want, "{status}");
    }
}

#[test]
fn what_was_paused_is_not_unhealthy_before_a_check_has_failed() {
    let health = |streak: i64| {
        let answer = json!({"Id": "ab".repeat(32), "State": {"Status": "running", "Running": true, "Health": {"Status": "unhealthy", "FailingStreak": streak}}});
        detail(serde_json::from_value(answer).expect("an answer")).expect("shown").health
    };
    assert_eq!((health(0), health(1)), (HealthState::Starting, HealthState::Unhealthy));
}

#[test]
fn a_detail_has_no_short_id_alias_and_shows_wanted_ports_while_stopped() {
    let answer = json!({
        "Id": ID, "Name": "/web-1", "Image": "sha256:ab", "RestartCount": 2,
        "State": {"Status": "exited", "ExitCode": 137, "OOMKilled": true, "Pid": 0, "StartedAt": "2026-01-01T00:00:00.5Z", "FinishedAt": "0001-01-01T00:00:00Z",
                  "Health": {"Status": "unhealthy", "FailingStreak": 3, "Log": [{"Output": "old"}, {"Output": "é".repeat(4000)}]}},
        "Config": {"Image": "web", "Labels": {"a": "b"}, "Healthcheck": {"Test": ["CMD", "x"]}},
        "HostConfig": {"RestartPolicy": {"Name": "on-failure"}, "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}]}},
        "NetworkSettings": {"Ports": {}, "Networks": {"shop": {"Aliases": ["web", "0123456789ab"], "IPAddress": ""}}},
        "Mounts": [{"Type": "volume", "Name": "data", "Source": "/v", "Destination": "/data", "RW": true}],
    });
    let d = detail(serde_json::from_value(answer).unwrap()).unwrap();
    assert_eq!(d.last_health_output.as_ref().map(String::len), Some(4096));
    let want = ContainerDetail {
        id: EngineName::new(ID).unwrap(),
        name: "web-1".into(),
        image: "web".into(),
        image_id: "sha256:ab".into(),
        state: RunState::Exited,
        health: HealthState::Unhealthy,
        exit_code: 137,
        oom_killed: true,
        error: String::new(),
        restart_count: 2,
        started_at: Some("2026-01-01T00:00:00.5Z".parse().unwrap()),
        finished_at: None,
        labels: [("a".to_owned(), "b".to_owned())].into(),
        restart_policy: "on-failure".into(),
        networks: [("shop".to_owned(), vec!["web".to_owned()])].into(),
        addresses: BTreeMap::new(),
        mounts: vec![MountInfo {
            kind: "volume".into(),
            name: Some("data".into()),
            source: "/v".into(),
            target: "/data".into(),
            writable: true,
        }],
        ports: vec![PublishedPort { host_ip: "127.0.0.1".into(), host_port: 8080, container_port: 80, protocol: "tcp".into() }],
        last_health_output: d.last_health_output.clone(),
        pid: 0,
        health_test: Some(vec!["CMD".into(), "x".into()]),
    };
    assert_eq!(d, want);
}

#[test]
fn an_event_carries_labels_only() {
    let answer = json!({"Type": "container", "Action": "health_status: unhealthy", "timeNano": 1_700_000_000_000_000_001i64,
        "Actor": {"ID": ID, "Attributes": {"image": "web", "name": "web-1", "exitCode": "1", "dockwarden.stack": "shop"}}});
    assert_eq!(
        event(serde_json::from_value(answer).unwrap()),
        Some(EngineEvent {
            action: "health_status: unhealthy".into(),
            container: EngineName::new(ID).unwrap(),
            labels: [("dockwarden.stack".to_owned(), "shop".to_owned())].into(),
            at: DateTime::from_timestamp_nanos(1_700_000_000_000_000_001),
        })
    );
}

#[test]
fn cpu_is_what_was_used_between_two_readings() {
    let reading = |at: &str, used: u64| {
        let answer = json!({"read": at, "cpu_stats": {"cpu_usage": {"total_usage": used}}, "pids_stats": {"current": 2},
            "memory_stats": {"usage": 1000, "limit": 5000, "stats": {"inactive_file": 300}}, "networks": {"eth0": {"rx_bytes": 7, "tx_bytes": 8}},
            "blkio_stats": {"io_service_bytes_recursive": [{"op": "Read", "value": 1}, {"op": "write", "value": 2}, {"op": "Total", "value": 3}]}});
        serde_json::from_value::<ContainerStatsResponse>(answer).unwrap()
    };
    let sample = stats(&reading("2026-01-01T00:00:00Z", 100), reading("2026-01-01T00:00:00.5Z", 250_000_100));
    let want = StatsSample {
        cpu_percent: 50.0,
        memory_bytes: 700,
        memory_limit_bytes: 5000,
        net_rx_bytes: 7,
        net_tx_bytes: 8,
        block_read_bytes: 1,
        block_write_bytes: 2,
        pids: 2,
    };
    assert_eq!(sample, want);
}
