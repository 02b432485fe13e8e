//! What a client may take before it has shown who it is: a share of the connections, and so much time for the body of a request. The oldest stranger makes
//! room for the newest, so that whoever only holds connections open keeps nobody out. Deliberately absent: who is known (the doors say so).

use axum::body::Body;
use axum::extract::Request;
use axum::http::Extensions;
use axum::middleware::Next;
use axum::response::Response;
use futures_util::StreamExt;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Most connections of strangers at once, of those the door serves.
const MOST: usize = 128;
/// A body that is not sent within this is let go; replies may stream as long as they like.
const BODY_WITHIN: Duration = Duration::from_secs(30);

/// Connections whose client is not known yet, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Strangers(Arc<Mutex<VecDeque<CancellationToken>>>);

/// The client of a connection.
#[derive(Debug, Clone)]
pub struct Client {
    all: Strangers,
    cut: CancellationToken,
}

impl Strangers {
    /// A connection that was just accepted.
    pub fn meet(&self) -> Client {
        let cut = CancellationToken::new();
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while open.len() >= MOST {
            open.pop_front().iter().for_each(CancellationToken::cancel);
        }
        open.push_back(cut.clone());
        Client { all: self.clone(), cut }
    }

    /// How many are not known.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Client {
    /// It is known now, or gone.
    pub fn known(&self) {
        let mut open = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|cut| *cut != self.cut);
    }

    /// Resolves when another stranger takes its place.
    pub async fn cut(&self) {
        self.cut.cancelled().await;
    }
}

/// Says of a request's client that its credential was checked and holds. Nothing else makes it known: a header that nobody looked at is no credential.
pub fn known(extensions: &Extensions) {
    if let Some(client) = extensions.get::<Client>() {
        client.known();
    }
}

/// Middleware: bodies have their time.
pub async fn watched(request: Request, next: Next) -> Response {
    next.run(request.map(|body| in_time(body, BODY_WITHIN))).await
}

fn in_time(body: Body, within: Duration) -> Body {
    let whole = Box::pin(tokio::time::sleep(within));
    let parts = futures_util::stream::unfold(Some((body.into_data_stream(), whole)), move |state| async move {
        let (mut parts, mut whole) = state?;
        tokio::select! {
            part = parts.next() => match part? {
                Ok(part) => Some((Ok(part), Some((parts, whole)))),
                Err(e) => Some((Err(io::Error::other(e)), None)),
            },
            () = &mut whole => {
                let late = format!("the body was not sent within {} s", within.as_secs());
                Some((Err(io::Error::new(io::ErrorKind::TimedOut, late)), None))
            }
        }
    });
    Body::from_stream(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::{Bytes, to_bytes};
    use futures_util::FutureExt;

    #[tokio::test]
    async fn the_oldest_stranger_makes_room_and_who_is_known_stays() {
        let all = Strangers::default();
        let first = all.meet();
        let friend = all.meet();
        friend.known();
        let others: Vec<Client> = (0..MOST).map(|_| all.meet()).collect();
        assert!(first.cut().now_or_never().is_some(), "the oldest was cut");
        assert!(friend.cut().now_or_never().is_none() && others.iter().all(|c| c.cut().now_or_never().is_none()));
        others.iter().for_each(Client::known);
        assert!(all.0.lock().expect("no panic").is_empty(), "who is gone takes no place");
    }

    #[tokio::test]
    async fn a_body_that_is_not_sent_in_time_is_an_error_and_others_pass_whole() {
        let parts = futures_util::stream::iter([Ok::<_, io::Error>(Bytes::from_static(b"one ")), Ok(Bytes::from_static(b"two"))]);
        assert_eq!(to_bytes(in_time(Body::from_stream(parts), BODY_WITHIN), 100).await.expect("in time"), "one two");
        let slow = futures_util::stream::iter([Ok::<_, io::Error>(Bytes::from_static(b"one"))]).chain(futures_util::stream::pending());
        let late = to_bytes(in_time(Body::from_stream(slow), Duration::from_millis(20)), 100).await.expect_err("never ends");
        assert!(format!("{late:?}").contains("not sent within 0 s"), "{late:?}");
    }
}
