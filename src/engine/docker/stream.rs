//! What flows: log lines, exec output, archives. Each bounded in bytes and in silence; nothing is kept beyond its bound.

use super::SILENCE;
use super::error::translate;
use crate::engine::{EngineError, EngineResult, LogQuery};
use crate::model::observed::LogLine;
use bollard::container::LogOutput;
use bollard::errors::Error;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};

/// Puts log frames together to lines. The engine cuts long lines into frames of 16 KiB, each with its time.
#[derive(Debug, Default)]
pub(super) struct Lines {
    done: Vec<LogLine>,
    /// Unfinished line of standard output and of standard error.
    open: [Option<LogLine>; 2],
    bytes: usize,
}

impl Lines {
    /// Takes a frame; false once `most` bytes were read.
    pub fn push(&mut self, frame: LogOutput, most: usize) -> bool {
        let stderr = matches!(frame, LogOutput::StdErr { .. });
        let bytes = frame.into_bytes();
        let text = String::from_utf8_lossy(&bytes);
        for piece in text.split_inclusive('\n') {
            let ends = piece.ends_with('\n');
            let (at, rest) = stamped(piece.trim_end_matches(['\n', '\r']));
            let left = most.saturating_sub(self.bytes);
            let fits = rest.floor_char_boundary(left.min(rest.len()));
            self.bytes = if fits < rest.len() { most } else { self.bytes + fits };
            let rest = &rest[..fits];
            let open = &mut self.open[usize::from(stderr)];
            let line = open.get_or_insert_with(|| LogLine { at: at.unwrap_or_default(), stderr, text: String::new() });
            line.text.push_str(rest);
            if ends {
                self.done.extend(open.take());
            }
            if self.bytes >= most {
                return false;
            }
        }
        true
    }

    /// The lines, in the order they ended, those before `since` left out (the engine knows whole seconds only).
    pub fn finish(mut self, query: &LogQuery) -> Vec<LogLine> {
        self.done.extend(self.open.into_iter().flatten());
        self.done.retain(|l| query.since.is_none_or(|s| l.at >= s));
        self.done
    }
}

/// Splits the engine's time stamp off a line.
fn stamped(line: &str) -> (Option<DateTime<Utc>>, &str) {
    let (stamp, rest) = line.split_once(' ').unwrap_or((line, ""));
    match DateTime::parse_from_rfc3339(stamp) {
        Ok(at) => (Some(at.with_timezone(&Utc)), rest),
        Err(_) => (None, line),
    }
}

/// The next item of a stream that should flow.
pub(super) async fn next<T>(
    stream: &mut (impl Stream<Item = Result<T, Error>> + Unpin),
    what: &'static str,
    endpoint: &str,
) -> Option<EngineResult<T>> {
    match tokio::time::timeout(SILENCE, stream.next()).await {
        Ok(item) => item.map(|r| r.map_err(|e| translate(what, endpoint, e))),
        Err(_) => Some(Err(EngineError::Timeout { what: super::asked(what), after: SILENCE })),
    }
}

/// A stream of bytes whose first chunk (or refusal) is already there; ends after an error.
pub(super) async fn bytes(
    mut stream: BoxStream<'static, Result<Bytes, Error>>,
    what: &'static str,
    endpoint: String,
) -> EngineResult<BoxStream<'static, EngineResult<Bytes>>> {
    let first = next(&mut stream, what, &endpoint).await.transpose()?;
    let rest = futures_util::stream::unfold(Some((stream, endpoint)), move |state| async move {
        let (mut stream, endpoint) = state?;
        match next(&mut stream, what, &endpoint).await? {
            Ok(chunk) => Some((Ok(chunk), Some((stream, endpoint)))),
            Err(e) => Some((Err(e), None)),
        }
    });
    Ok(futures_util::stream::iter(first.map(Ok)).chain(rest).boxed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out(text: &str) -> LogOutput {
        LogOutput::StdOut { message: Bytes::from(text.to_owned()) }
    }

    fn texts(lines: &Lines) -> Vec<(bool, String)> {
        let all = lines.done.iter().chain(lines.open.iter().flatten());
        all.map(|l| (l.stderr, l.text.clone())).collect()
    }

    #[test]
    fn frames_become_lines_with_the_time_of_their_beginning() {
        let mut lines = Lines::default();
        assert!(lines.push(out("2026-01-01T00:00:01.5Z first half, "), 1000));
        let err = LogOutput::StdErr { message: Bytes::from_static(b"2026-01-01T00:00:02Z oops \xff\r\n") };
        assert!(lines.push(err, 1000));
        assert!(lines.push(out("2026-01-01T00:00:03Z second half\n2026-01-01T00:00:04Z next\n"), 1000));
        let all = lines.finish(&LogQuery { tail: None, since: None, max_bytes: 1000 });
        let line = |at: &str, stderr, text: &str| LogLine { at: at.parse().unwrap(), stderr, text: text.into() };
        assert_eq!(
            all,
            [
                line("2026-01-01T00:00:02Z", true, "oops \u{fffd}"),
                line("2026-01-01T00:00:01.5Z", false, "first half, second half"),
                line("2026-01-01T00:00:04Z", false, "next"),
            ]
        );
    }

    #[test]
    fn output_beyond_the_bound_is_cut_between_characters() {
        let mut lines = Lines::default();
        assert!(!lines.push(out("2026-01-01T00:00:00Z ééé\n"), 5));
        assert_eq!(texts(&lines), [(false, "éé".to_owned())]);
    }

    #[test]
    fn since_is_exact_though_the_engine_knows_seconds() {
        let mut lines = Lines::default();
        lines.push(out("2026-01-01T00:00:00.1Z a\n2026-01-01T00:00:00.2Z b\n"), 100);
        let query = LogQuery { tail: None, since: Some("2026-01-01T00:00:00.2Z".parse().unwrap()), max_bytes: 100 };
        assert_eq!(lines.finish(&query).iter().map(|l| l.text.as_str()).collect::<Vec<_>>(), ["b"]);
    }
}
