//! A call about two stacks is judged for both: whose data is read, and who gets it.

use super::*;
use crate::store::backup::BackupRecord;

/// A keeper that may restore within the stacks named, and a snapshot of `shop`.
async fn keeper_of(stacks: &str) -> Bench {
    let rule = format!("    - {{id: back, effect: allow, tools: [restore], stacks: [{stacks}], because: \"their data\"}}\n---");
    let b = bench_of(&KEEPER.replace("stop, prune", "stop, prune, restore").replacen("---\nKeep", &format!("{rule}\nKeep"), 1)).await;
    let record = BackupRecord {
        snapshot_id: "feedc0de".into(),
        stack: Some("shop".into()),
        volume: "shop_data".into(),
        bytes: 1,
        added: 1,
        files: 1,
        state: "complete".into(),
        at: chrono::DateTime::UNIX_EPOCH,
        agent: "keeper".into(),
        release: None,
        tags: vec![],
        operation: None,
        copies: vec![],
    };
    b.house.store.put_backup(&record).await.expect("recorded");
    b
}

#[tokio::test]
async fn data_of_one_stack_goes_to_another_only_where_both_allow_it() {
    let input = || json!({"snapshot_id": "feedc0de", "to_stack": "other"});
    for stacks in ["shop", "other"] {
        let b = keeper_of(stacks).await;
        let e = b.call("restore", input()).await.expect_err("one of the two says no");
        assert_eq!(e.code, ErrorCode::Denied, "{stacks}: {e}");
        assert_eq!(b.rows().await, [row("read", "restore", "deny", Some("denied"))], "{stacks}");
        assert_eq!(b.engine.calls(), Vec::<String>::new());
    }
    // With both the line goes on; this house has no repository to restore from.
    let b = keeper_of("shop, other").await;
    let e = b.call("restore", input()).await.expect_err("no repository");
    assert!(e.code != ErrorCode::Denied && e.code != ErrorCode::InvalidArgument, "{e}");
    let within = b.call("restore", json!({"snapshot_id": "feedc0de"})).await.expect_err("no repository");
    assert_eq!(within.code, e.code);
}

#[tokio::test]
async fn what_makes_no_sense_with_another_stack_is_refused() {
    let b = keeper_of("shop, other").await;
    for (more, field) in [
        (json!({"to_stack": "shop"}), "to_stack"),
        (json!({"to_stack": "other", "swap": true}), "to_stack"),
        (json!({"to_stack": "other", "into": "other_x"}), "to_stack"),
        (json!({"path": "/etc"}), "path"),
        (json!({"path": "a/../.."}), "path"),
        (json!({"path": "a", "swap": true}), "path"),
    ] {
        let mut input = json!({"snapshot_id": "feedc0de"});
        input.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let e = b.call("restore", input).await.expect_err("refused");
        assert_eq!((e.code, e.field.as_deref()), (ErrorCode::InvalidArgument, Some(field)), "{more}: {e}");
    }
}
