//! Each event is told once and in time, without anybody's words; a storm becomes a few messages; a receiver that is away is asked again.

use super::*;
use crate::model::ids::{ApprovalId, CallId, OperationId, StackName};
use crate::model::operation::Phase;
use crate::store::approval::ApprovalState;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const SECRET: &str = "s3cret-of-the-reason";

fn at(seconds: i64) -> DateTime<Utc> {
    "2026-01-02T10:00:00Z".parse::<DateTime<Utc>>().unwrap() + TimeDelta::seconds(seconds)
}

fn approval(id: &str, seconds: i64) -> Approval {
    Approval {
        id: ApprovalId::new(id).unwrap(),
        on_behalf: vec![],
        agent: "deployer".into(),
        tool: "deploy".into(),
        stack: Some(StackName::new("shop").unwrap()),
        environment: Some("production".into()),
        plan: None,
        digest: id.into(),
        input: json!({"reason": SECRET, "variables": {"TOKEN": SECRET}}),
        call: CallId::new(format!("call-{id}")).unwrap(),
        reason: Some(SECRET.into()),
        state: ApprovalState::Pending,
        needed: 1,
        approved_by: vec![],
        denied_by: None,
        operation: None,
        at_terminal: false,
        by_client: false,
        created_at: at(seconds),
        expires_at: at(seconds + 1800),
    }
}

fn operation(id: &str, verb: &str, state: OperationState, settled: i64) -> Operation {
    Operation {
        stack: Some(StackName::new("shop").unwrap()),
        state,
        phase: Phase::Finished,
        epoch: 1,
        release: Some(4),
        reason: Some(SECRET.into()),
        message: Some(SECRET.into()),
        settled_at: Some(at(settled)),
        ..Operation::new(
            OperationId::new(id).unwrap(),
            verb.into(),
            "deployer".into(),
            CallId::new(format!("call-{id}")).unwrap(),
            at(settled - 5),
        )
    }
}

fn settings() -> NotifySettings {
    NotifySettings { public_url: Some("https://dw.example/".into()), topic: Some("ops".into()), ..NotifySettings::default() }
}

async fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("home"), &dir.path().join("memory")).await.unwrap();
    (dir, store)
}

fn ids(events: &[Event]) -> Vec<&str> {
    events.iter().map(|e| e.id.as_str()).collect()
}

#[tokio::test]
async fn an_approval_is_told_when_it_waits_and_when_it_runs_out_each_once() {
    let (_dir, store) = store().await;
    store.request_approval(approval("ap-1", 0)).await.unwrap();
    let mut told = Told { since: Some(at(-1)), ..Told::default() };
    let first = collect(&store, &mut told, at(3)).await.unwrap();
    assert_eq!(ids(&first), ["pending:ap-1"]);
    assert_eq!(first[0].title, "deployer wants deploy on shop (production): 29 min to decide");
    assert_eq!(collect(&store, &mut told, at(6)).await.unwrap(), []);
    assert_eq!(ids(&collect(&store, &mut told, at(1501)).await.unwrap()), ["expiring:ap-1"]);
    assert_eq!(collect(&store, &mut told, at(1600)).await.unwrap(), []);
    assert_eq!(collect(&store, &mut told, at(1801)).await.unwrap(), [], "void: nobody can decide any more");
    let body = message(&first[0], &settings(), "box");
    assert_eq!(
        body,
        json!({
            "event": "approval_pending", "event_id": "pending:ap-1", "host": "box", "at": at(0), "title": "dockwarden on box", "topic": "ops",
            "message": "deployer wants deploy on shop (production): 29 min to decide\nhttps://dw.example/approvals/ap-1",
            "text": "[box] deployer wants deploy on shop (production): 29 min to decide\nhttps://dw.example/approvals/ap-1",
            "content": "[box] deployer wants deploy on shop (production): 29 min to decide\nhttps://dw.example/approvals/ap-1",
            "link": "https://dw.example/approvals/ap-1", "click": "https://dw.example/approvals/ap-1",
        })
    );
}

#[test]
fn what_ends_badly_is_told_without_anybodys_words_and_what_ends_well_is_not() {
    let of = |verb: &str, state| settled(&operation("op-1", verb, state, 0)).map(|e| (e.kind, e.id));
    assert_eq!(of("deploy", OperationState::RolledBack), Some((NotifyEvent::RolledBack, "rolled_back:op-1".into())));
    assert_eq!(of("stop", OperationState::NeedsAttention), Some((NotifyEvent::NeedsAttention, "needs_attention:op-1".into())));
    assert_eq!(of("backup", OperationState::Failed), Some((NotifyEvent::BackupFailed, "backup:call-op-1".into())));
    for quiet in [OperationState::Done, OperationState::Failed, OperationState::Cancelled, OperationState::Running] {
        assert_eq!(of("deploy", quiet), None, "{quiet:?}");
    }
    let event = settled(&operation("op-1", "deploy", OperationState::RolledBack, 0)).unwrap();
    assert!(!message(&event, &settings(), "box").to_string().contains(SECRET));
    assert_eq!(event.title, "deploy of shop release 4 by deployer was rolled back: what ran before runs (op-1)");
}

#[tokio::test]
async fn a_clock_set_back_keeps_nothing_silent() {
    let (_dir, store) = store().await;
    let mut op = operation("op-late", "deploy", OperationState::Running, 10);
    op.epoch = 0;
    let begun = store.begin_operation(op.clone(), "").await.unwrap().unwrap();
    store.save_operation(&Operation { state: OperationState::RolledBack, epoch: begun.epoch, ..op }).await.unwrap();
    let mut told = Told { since: Some(at(90_000)), ..Told::default() };
    assert_eq!(ids(&collect(&store, &mut told, at(5)).await.unwrap()), ["rolled_back:op-late"]);
    let event = |n: usize| Event { id: n.to_string(), kind: NotifyEvent::RolledBack, title: n.to_string(), path: None, at: at(0) };
    let mut told = Told { sent: vec![at(90_000); MOST], ..Told::default() };
    let bounded = |told: &mut Told, now| within_bounds(told, vec![event(1)], vec![], now).now.len();
    assert_eq!(bounded(&mut told, at(0)), 0, "they count as sent now");
    assert_eq!(bounded(&mut told, at(700)), 1, "and not until the clock is there again");
}

#[tokio::test]
async fn the_log_tells_of_healing_that_gave_up_and_only_of_what_is_new() {
    let (_dir, store) = store().await;
    store.audit_event("warden", "healing_gave_up", Some("old"), &json!({"service": "db"}), at(0)).await.unwrap();
    let mut told = Told { since: Some(at(1)), seq: store.audit_head().await.unwrap(), ..Told::default() };
    store.audit_event("warden", "healing_gave_up", Some("shop"), &json!({"service": "web", "reason": SECRET}), at(2)).await.unwrap();
    store.audit_event("ann", "approval_given", Some("shop"), &json!({}), at(3)).await.unwrap();
    let events = collect(&store, &mut told, at(4)).await.unwrap();
    assert_eq!(ids(&events), ["row:2"]);
    assert_eq!((events[0].kind, events[0].title.as_str()), (NotifyEvent::GaveUp, "healing of web of shop gave up: a person must look"));
    assert_eq!(told.seq, 3);
    assert_eq!(collect(&store, &mut told, at(5)).await.unwrap(), []);
}

#[tokio::test]
async fn a_share_of_an_agents_budget_is_told() {
    let (_dir, store) = store().await;
    let mut told = Told { since: Some(at(0)), ..Told::default() };
    let detail = json!({"agent": "helper", "month": "2026-11", "percent": 80, "spent_usd": "16.40", "cap_usd": "20.00"});
    store.audit_event("supervisor", "budget_share", None, &detail, at(1)).await.unwrap();
    let events = collect(&store, &mut told, at(2)).await.unwrap();
    assert_eq!((events.len(), events[0].kind), (1, NotifyEvent::Budget));
    assert_eq!(events[0].title, "helper has spent 80 % of its budget of 2026-11 (16.40 of 20.00 USD)");
    let refused = json!({"agent": "helper", "month": "2026-11", "worst_usd": "4.10", "spent_usd": "16.40", "cap_usd": "20.00"});
    store.audit_event("supervisor", "budget_refused", None, &refused, at(3)).await.unwrap();
    let events = collect(&store, &mut told, at(4)).await.unwrap();
    let title =
        "helper may ask its model nothing more: a question of up to 4.10 USD would pass its budget of 2026-11 (16.40 of 20.00 USD spent)";
    assert_eq!((events.len(), events[0].kind, events[0].title.as_str()), (1, NotifyEvent::Budget, title));
}

#[tokio::test]
async fn a_failing_host_drift_and_a_failed_task_are_told_without_anybodys_words() {
    let (_dir, store) = store().await;
    let mut told = Told { since: Some(at(0)), ..Told::default() };
    let rows = [
        ("warden", "host_failing", None, json!({"services_down": 11, "services": 20})),
        ("warden", "drift_found", Some("shop"), json!({"release": 3, "drift": [SECRET], "mends": false})),
        ("warden", "drift_found", Some("shop"), json!({"release": 3, "drift": [SECRET], "mends": true})),
        ("deployer", "task_failed", Some("shop"), json!({"task": "task-01", "why": SECRET})),
    ];
    for (n, (agent, what, stack, detail)) in rows.into_iter().enumerate() {
        store.audit_event(agent, what, stack, &detail, at(1 + i64::try_from(n).unwrap())).await.unwrap();
    }
    let events = collect(&store, &mut told, at(9)).await.unwrap();
    let told: Vec<(NotifyEvent, &str)> = events.iter().map(|e| (e.kind, e.title.as_str())).collect();
    assert_eq!(
        told,
        [
            (NotifyEvent::HostFailing, "11 of 20 services are down at once: this is the host or the engine, nothing is restarted"),
            (NotifyEvent::DriftFound, "what runs of shop is not what was deployed; nothing was changed: `deploy` makes it so again"),
            (NotifyEvent::DriftFound, "what runs of shop is not what was deployed; it is mended"),
            (NotifyEvent::TaskFailed, "task-01 of deployer failed for good: `dockwarden task show task-01`"),
        ]
    );
}

#[tokio::test]
async fn a_disk_that_fills_up_is_told_and_one_that_has_room_again_is_not() {
    let (_dir, store) = store().await;
    let mut told = Told { since: Some(at(0)), ..Told::default() };
    for (what, percent) in [("disk_high", 85), ("disk_critical", 95), ("disk_eased", 80)] {
        store.audit_event("supervisor", what, None, &json!({"percent": percent, "free_mib": 512}), at(1)).await.unwrap();
    }
    let titles: Vec<String> = collect(&store, &mut told, at(2)).await.unwrap().into_iter().map(|e| e.title).collect();
    let home = "the disk of the supervisor's home is";
    let urgent = ": soon nothing can be recorded, and so nothing done";
    assert_eq!(titles, [format!("{home} 85 % full, 512 MiB are free"), format!("{home} 95 % full, 512 MiB are free{urgent}")]);
}

#[test]
fn a_storm_becomes_a_few_messages_and_then_silence() {
    let event = |n: usize| Event { id: n.to_string(), kind: NotifyEvent::RolledBack, title: n.to_string(), path: None, at: at(0) };
    let mut told = Told::default();
    let sent = within_bounds(&mut told, (0..100).map(event).collect(), vec![], at(0)).now;
    assert_eq!(sent.len(), AT_ONCE + 1);
    assert!(sent[AT_ONCE].title.starts_with("and 95 more"), "{sent:?}");
    let mut all = sent.len();
    let mut last = sent;
    for round in 1..60 {
        let sent = within_bounds(&mut told, (0..100).map(event).collect(), vec![], at(round)).now;
        all += sent.len();
        last = if sent.is_empty() { last } else { sent };
    }
    assert!((MOST - 1..=MOST).contains(&all), "{all}");
    assert!(last.last().is_some_and(|e| e.title.starts_with("and ")), "the last word is that there is more: {last:?}");
    assert_eq!(within_bounds(&mut told, vec![event(1)], vec![], at(700)).now.len(), 1, "ten minutes later there is room again");
}

#[test]
fn what_waits_for_a_person_is_told_in_any_storm_now_or_later() {
    use NotifyEvent as N;
    let event = |n: usize, kind| Event { id: format!("{kind:?}-{n}"), kind, title: n.to_string(), path: None, at: at(0) };
    let mut told = Told { sent: vec![at(0); MOST], ..Told::default() };
    let important = [N::NeedsAttention, N::GaveUp, N::BreakGlass, N::ApprovalPending].map(|kind| event(1, kind)).to_vec();
    let all = important.iter().cloned().chain([event(1, N::TaskFailed)]).collect();
    assert_eq!(within_bounds(&mut told, all, vec![], at(1)), Decided { now: important, ..Decided::default() });
    // A flood of them: the last place says how many more there are, and what comes then is kept until there is room.
    let flood: Vec<Event> = (0..20).map(|n| event(n, N::GaveUp)).collect();
    let first = within_bounds(&mut told, flood, vec![], at(2));
    assert_eq!((first.now.len(), first.held, told.urgent.len()), (URGENT - 4, vec![], URGENT));
    assert!(first.now.last().is_some_and(|e| e.title.starts_with("and 15 more that wait for a person")), "{:?}", first.now);
    let late: Vec<Event> = (20..40).map(|n| event(n, N::NeedsAttention)).collect();
    let kept = within_bounds(&mut told, late.clone(), vec![], at(3));
    assert_eq!((kept.now, kept.held), (vec![], late.clone()));
    assert_eq!(within_bounds(&mut told, vec![], late.clone(), at(4)), Decided::default(), "they stay as they are");
    let released = within_bounds(&mut told, vec![], late.clone(), at(700));
    assert_eq!(released.now[..URGENT - 1], late[..URGENT - 1], "in the order they came");
    assert_eq!(released.covered, late[URGENT - 1..].iter().map(|e| e.id.clone()).collect::<Vec<_>>(), "the line counts these");
    assert_eq!((released.now.len(), released.held), (URGENT, vec![]), "a storm of any size ends in few messages");
}

/// A house that notifies with a command, what it is told goes into a file. `refuses`: it fails for messages with this word.
async fn notifying(refuses: &str) -> (crate::supervisor::tasks::tests::Bench, std::path::PathBuf, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("told");
    let script = "m=$(cat); case \"$m\" in *$2*) exit 1;; esac; printf '%s\\n' \"$m\" >> \"$1\"";
    let command = ["sh", "-c", script, "x", &file.display().to_string(), refuses].map(str::to_owned).to_vec();
    let b =
        crate::supervisor::tasks::tests::Bench::with(|s| s.notify = Some(NotifySettings { command, ..NotifySettings::default() })).await;
    (b, file, dir)
}

/// Ids of the messages that were taken.
fn taken(file: &std::path::Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["event_id"].as_str().unwrap().to_owned()).collect()
}

fn lane(house: &Arc<House>, urgent: bool) -> (Lane, deliver::Courier) {
    let settings = house.config.settings.notify.clone().unwrap();
    let courier = deliver::Courier::new(&settings).unwrap();
    (Lane { urgent, house: house.clone(), settings }, courier)
}

async fn looked(house: &House) {
    look(house, house.config.settings.notify.as_ref().unwrap(), Utc::now()).await.unwrap();
}

#[tokio::test]
async fn what_was_decided_and_not_delivered_when_the_supervisor_was_killed_is_told_after_its_start_once() {
    let (b, file, _dir) = notifying("never-refused").await;
    let store = &b.house.store;
    looked(&b.house).await;
    store.audit_event("warden", "healing_gave_up", Some("shop"), &json!({"service": "web"}), Utc::now()).await.unwrap();
    looked(&b.house).await;
    // Killed while it is tried: nobody takes it.
    let away = deliver::Courier::new(&NotifySettings { command: vec!["false".into()], ..NotifySettings::default() }).unwrap();
    let (lane, courier) = lane(&b.house, true);
    let killed = tokio::time::timeout(Duration::from_millis(300), lane.deliver(&away, &|_| panic!("not over yet"))).await;
    assert!(killed.is_err(), "it is being tried");
    let counted = AtomicUsize::new(0);
    for _ in 0..2 {
        // The next start: looks again, and delivers what waits.
        looked(&b.house).await;
        lane.deliver(&courier, &|o| assert_eq!((o, counted.fetch_add(1, Ordering::SeqCst)), (Outcome::Delivered, 0))).await;
    }
    assert_eq!((taken(&file), counted.load(Ordering::SeqCst)), (vec!["row:1".to_owned()], 1));
    assert!(store.notices(true, false).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_nobody_takes_is_given_up_and_what_was_decided_meanwhile_is_not_told() {
    let (b, file, _dir) = notifying("healing_gave_up").await;
    let store = &b.house.store;
    looked(&b.house).await;
    let now = Utc::now();
    for id in ["ap-1", "ap-2"] {
        let asked = Approval { created_at: now, expires_at: now + TimeDelta::hours(1), ..approval(id, 0) };
        store.request_approval(asked).await.unwrap();
    }
    looked(&b.house).await;
    store.set_approval_state(&ApprovalId::new("ap-1").unwrap(), ApprovalState::Denied).await.unwrap();
    let (lane, courier) = lane(&b.house, true);
    lane.deliver(&courier, &|o| assert_eq!(o, Outcome::Delivered)).await;
    assert_eq!(taken(&file), ["pending:ap-2"]);
    let away = deliver::Courier::new(&NotifySettings { command: vec!["false".into()], ..NotifySettings::default() }).unwrap().impatient();
    store.audit_event("warden", "healing_gave_up", Some("shop"), &json!({"service": "web"}), now).await.unwrap();
    looked(&b.house).await;
    lane.deliver(&away, &|o| assert_eq!(o, Outcome::Failed)).await;
    assert!(store.notices(true, false).await.unwrap().is_empty(), "after its attempts, for good");
}

#[tokio::test]
async fn what_waits_for_a_person_is_delivered_while_the_rest_is_refused() {
    let (b, file, _dir) = notifying("task_failed").await;
    let (stop, store) = (CancellationToken::new(), &b.house.store);
    looked(&b.house).await;
    store.audit_event("a0", "task_failed", None, &json!({"task": "task-1"}), Utc::now()).await.unwrap();
    store.audit_event("ann", "break_glass_opened", None, &json!({}), Utc::now()).await.unwrap();
    let running = tokio::spawn(run(b.house.clone(), stop.clone(), |_| {}));
    let told = async {
        while taken(&file) != ["row:2"] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), told).await.expect("told while the other is tried");
    stop.cancel();
    running.await.unwrap();
    let waiting: Vec<String> = store.notices(false, false).await.unwrap().into_iter().map(|n| n.id).collect();
    assert_eq!(waiting, ["row:1"], "what an end interrupts is told by the next supervisor");
}

#[tokio::test]
async fn an_approval_that_cannot_be_read_and_a_long_operation_hide_nothing() {
    let (b, file, _dir) = notifying("never-refused").await;
    let store = &b.house.store;
    looked(&b.house).await;
    let now = Utc::now();
    for id in ["ap-1", "ap-2"] {
        let asked = Approval { created_at: now, expires_at: now + TimeDelta::hours(1), ..approval(id, 0) };
        store.request_approval(asked).await.unwrap();
    }
    store.damage("UPDATE approval SET approved_by = '{' WHERE id = 'ap-1'").await;
    looked(&b.house).await;
    let (lane, courier) = lane(&b.house, true);
    lane.deliver(&courier, &|_| {}).await;
    assert_eq!(taken(&file), ["pending:ap-2"]);
}

/// A receiver that answers with the given statuses in order, then 200, and keeps the bodies.
async fn receiver(statuses: &'static [u16]) -> (String, Arc<Mutex<Vec<Value>>>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let (bodies, asked) = (Arc::new(Mutex::new(vec![])), Arc::new(AtomicUsize::new(0)));
    let (kept, count) = (Arc::clone(&bodies), Arc::clone(&asked));
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut text = String::new();
            let mut buffer = [0; 4096];
            let body = loop {
                let n = stream.read(&mut buffer).await.unwrap();
                text.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
                if let Some((head, body)) = text.split_once("\r\n\r\n")
                    && let Some(length) =
                        head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok())
                    && body.len() >= length
                {
                    assert!(head.starts_with("POST /hook "), "{head}");
                    break serde_json::from_str(body).unwrap();
                }
            };
            let status = statuses.get(count.fetch_add(1, Ordering::SeqCst)).copied().unwrap_or(200);
            if status == 200 {
                kept.lock().unwrap().push(body);
            }
            let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (url, bodies, asked)
}

#[tokio::test]
async fn a_receiver_that_is_away_is_asked_again_and_one_that_stays_away_is_given_up() {
    let (url, bodies, asked) = receiver(&[500, 302]).await;
    let courier = |url: String| deliver::Courier::new(&NotifySettings { url: Some(url), ..settings() }).unwrap().impatient();
    assert!(courier(url).deliver(&json!({"event_id": "e"})).await);
    assert_eq!((asked.load(Ordering::SeqCst), bodies.lock().unwrap().clone()), (3, vec![json!({"event_id": "e"})]));
    let (url, bodies, asked) = receiver(&[500; 99]).await;
    assert!(!courier(url).deliver(&json!({"event_id": "e"})).await);
    assert_eq!((asked.load(Ordering::SeqCst), bodies.lock().unwrap().len()), (5, 0), "five attempts, then never again");
}

#[tokio::test]
async fn a_command_gets_the_message_on_stdin_and_its_exit_code_counts() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("seen").display().to_string();
    let with = |script: &str| {
        let command = ["sh", "-c", script, "x", &file].map(str::to_owned).to_vec();
        deliver::Courier::new(&NotifySettings { command, ..NotifySettings::default() }).unwrap().impatient()
    };
    assert!(with("cat > \"$1\"").deliver(&json!({"event_id": "e"})).await);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), json!({"event_id": "e"}).to_string());
    assert!(!with("exit 3").deliver(&json!({"event_id": "e"})).await);
}

#[test]
fn a_partial_backup_is_told_like_one_that_failed() {
    let with = |message: &str| Operation { message: Some(message.into()), ..operation("op-1", "backup", OperationState::Done, 1) };
    let told = settled(&with("PARTIAL: not everything could be read of shop_data (1 files)")).expect("told");
    assert_eq!(told.kind, NotifyEvent::BackupFailed);
    assert!(told.title.contains("is PARTIAL"), "{}", told.title);
    assert!(settled(&with("snapshots that the schedule no longer needs were not removed: in use")).is_none());
}
