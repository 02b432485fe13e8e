//! Requests that become tasks over a real store: interrupted, repeated, too many, and partly of no use.

use super::*;
use crate::call::dispatch::tests::{Bench, bench};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

fn trigger(kind: HookKind) -> Trigger {
    serde_json::from_value(json!({"name": "t", "agent": "keeper", "prompt": "look", "stack": "{{alert.labels.stack}}",
        "on": {"webhook": kind, "secret_file": "/k"}}))
    .expect("valid")
}

async fn send(b: &Bench, kind: HookKind, body: &str) -> Result<Taken, CallError> {
    take(&b.house, &trigger(kind), kind, &Request { headers: &BTreeMap::new(), body: body.as_bytes() }, Utc::now()).await
}

async fn bench_with(per_second: u32) -> Bench {
    let mut b = bench().await;
    Arc::get_mut(&mut b.house).expect("nobody else has it").config.settings.tasks.max_per_second = per_second;
    b
}

fn alerts(stacks: &[&str]) -> String {
    let alert = |(n, stack): (usize, &&str)| json!({"status": "firing", "fingerprint": format!("f{n}"), "startsAt": "1", "labels": {"stack": stack}});
    json!({"alerts": stacks.iter().enumerate().map(alert).collect::<Vec<_>>()}).to_string()
}

async fn queued(b: &Bench) -> usize {
    b.house.store.tasks(None, None, 1000).await.expect("read").len()
}

#[tokio::test]
async fn a_request_that_was_interrupted_and_comes_again_has_its_task_and_only_one() {
    let b = bench_with(100).await;
    let (mut polls, mut whole) = (1, false);
    while !whole {
        let body = json!({"n": polls}).to_string();
        {
            let mut taken = pin!(send(&b, HookKind::Gitlab, &body));
            for _ in 0..polls {
                let polled = poll_fn(|cx| Poll::Ready(taken.as_mut().poll(cx))).await;
                whole = polled.is_ready();
                if whole {
                    break;
                }
                // So that what was asked of the store is done by the next look, as far as that is possible.
                b.house.store.value("nothing").await.expect("read");
            }
        }
        send(&b, HookKind::Gitlab, &body).await.expect("taken");
        assert_eq!(queued(&b).await, polls, "after {polls} polls");
        assert_eq!(send(&b, HookKind::Gitlab, &body).await, Ok(Taken::Duplicate));
        polls += 1;
    }
    assert!(polls > 3, "it was interrupted at several places");
}

#[tokio::test]
async fn an_alert_of_no_use_does_not_keep_the_others_out() {
    let b = bench_with(100).await;
    let taken = send(&b, HookKind::Alertmanager, &alerts(&["../x", "shop", "till"])).await.expect("taken");
    assert!(matches!(&taken, Taken::Tasks { tasks, left_out: 1 } if tasks.len() == 2), "{taken:?}");
    let none = send(&b, HookKind::Alertmanager, &alerts(&["../x"])).await.expect_err("nothing of it is of use");
    assert_eq!(none.code, ErrorCode::InvalidArgument);
}

#[tokio::test]
async fn more_alerts_than_are_taken_at_once_are_counted_in_the_answer() {
    let b = bench_with(1000).await;
    let taken = send(&b, HookKind::Alertmanager, &alerts(&["shop"; MOST_ALERTS + 7])).await.expect("taken");
    assert!(matches!(&taken, Taken::Tasks { tasks, left_out: 7 } if tasks.len() == MOST_ALERTS), "{taken:?}");
    // They still fire when the group is sent again: the others have their turn.
    let again = send(&b, HookKind::Alertmanager, &alerts(&["shop"; MOST_ALERTS + 7])).await.expect("taken");
    assert!(matches!(&again, Taken::Tasks { tasks, left_out: 0 } if tasks.len() == MOST_ALERTS + 7), "{again:?}");
    assert_eq!(queued(&b).await, MOST_ALERTS + 7);
}

#[tokio::test]
async fn a_batch_beyond_the_rate_gets_further_each_time_it_comes() {
    let b = bench_with(1).await;
    let first = send(&b, HookKind::Alertmanager, &alerts(&["shop"])).await.expect("taken");
    // No place is free for the next hour.
    let later = std::time::Instant::now() + std::time::Duration::from_secs(3600);
    while b.house.desk.admit(1, later).is_ok() {}
    assert_eq!(send(&b, HookKind::Alertmanager, &alerts(&["shop"])).await.expect("it is in and needs none"), first);
    let slow = send(&b, HookKind::Alertmanager, &alerts(&["shop", "till"])).await.expect_err("the second needs one");
    assert_eq!((slow.code, queued(&b).await), (ErrorCode::RateLimited, 1));
}
