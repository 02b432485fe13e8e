//! Lines of a client, bounded, and the request id of a line that is not kept. Deliberately absent: what a line means.

use serde_json::Value;
use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// A line without its newline; the last one of an input needs none.
    Line(Vec<u8>),
    /// A line longer than the bound, and the id it named.
    TooLong(Value),
    /// The client closed its side.
    End,
}

/// Reads lines within a bound.
#[derive(Debug)]
pub struct Reader<R> {
    read: R,
    most: usize,
    line: Vec<u8>,
    /// Looks through a line that is too long to be kept.
    skipping: Option<IdScan>,
}

impl<R: AsyncBufRead + Unpin> Reader<R> {
    /// Lines of at most `most` bytes.
    pub fn new(read: R, most: usize) -> Self {
        Self { read, most, line: Vec::new(), skipping: None }
    }

    /// The next line. Safe to drop half-way: what was consumed is kept.
    ///
    /// # Errors
    /// The connection's.
    pub async fn take(&mut self) -> std::io::Result<Taken> {
        loop {
            let available = self.read.fill_buf().await?;
            if available.is_empty() {
                return Ok(match self.skipping.take() {
                    Some(scan) => Taken::TooLong(scan.id()),
                    None if self.line.is_empty() => Taken::End,
                    None => Taken::Line(std::mem::take(&mut self.line)),
                });
            }
            let newline = available.iter().position(|b| *b == b'\n');
            let part = &available[..newline.unwrap_or(available.len())];
            match &mut self.skipping {
                Some(scan) => scan.feed(part),
                None if self.line.len() + part.len() > self.most => {
                    let mut scan = IdScan::default();
                    scan.feed(&self.line);
                    scan.feed(part);
                    self.line = Vec::new();
                    self.skipping = Some(scan);
                }
                None => self.line.extend_from_slice(part),
            }
            let consumed = newline.map_or(part.len(), |n| n + 1);
            self.read.consume(consumed);
            if newline.is_some() {
                return Ok(match self.skipping.take() {
                    Some(scan) => Taken::TooLong(scan.id()),
                    None => Taken::Line(std::mem::take(&mut self.line)),
                });
            }
        }
    }
}

/// Bytes of a key or an id that are looked at.
const MOST_TOKEN: usize = 256;

/// Finds the value of the outermost `id` of a JSON object in one pass: SDKs write it first or last, and the line is not kept.
#[derive(Debug, Default)]
pub struct IdScan {
    depth: usize,
    string: bool,
    escaped: bool,
    key: Vec<u8>,
    value: Vec<u8>,
    in_id: bool,
}

impl IdScan {
    /// The id a whole line names; `null` when it names none.
    pub fn of(line: &[u8]) -> Value {
        let mut scan = Self::default();
        scan.feed(line);
        scan.id()
    }

    /// The next bytes of the line.
    pub fn feed(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.byte(*b);
        }
    }

    fn byte(&mut self, b: u8) {
        let outermost = self.depth == 1;
        if self.string {
            match b {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.string = false,
                _ => {}
            }
            self.keep(outermost, b);
            return;
        }
        match b {
            b'"' => {
                self.string = true;
                if outermost && !self.in_id {
                    self.key.clear();
                }
                self.keep(outermost, b);
            }
            b':' if outermost && self.key == b"\"id\"" => {
                self.in_id = true;
                self.value.clear();
            }
            b',' if outermost => self.in_id = false,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.in_id = self.in_id && !outermost;
                self.depth = self.depth.saturating_sub(1);
            }
            _ => self.keep(outermost, b),
        }
    }

    fn keep(&mut self, outermost: bool, b: u8) {
        let token = if self.in_id { &mut self.value } else { &mut self.key };
        if outermost && token.len() < MOST_TOKEN && (self.in_id || self.string || b == b'"') {
            token.push(b);
        }
    }

    /// The id found so far; `null` when there is none.
    pub fn id(&self) -> Value {
        serde_json::from_slice::<Value>(&self.value).ok().filter(|id| id.is_string() || id.is_number()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_id_of_a_line_is_found_wherever_it_stands() {
        for (line, id) in [
            (r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"id":1}}"#, json!(7)),
            (
                r#"{"method":"tools/call","params":{"id":1,"a":["id",{"id":2}],"b":"\"id\":3,{"},"jsonrpc":"2.0","id":"x-\"1"}"#,
                json!("x-\"1"),
            ),
            (r#"{ "id" : 12 , "method":"ping"}"#, json!(12)),
            (r#"{"jsonrpc":"2.0","method":"id","params":{"id":4}}"#, json!(null)),
            (r#"{"id":{"a":1}}"#, json!(null)),
            (r#"{"id":nul"#, json!(null)),
            ("}}]]{{", json!(null)),
            ("", json!(null)),
        ] {
            assert_eq!(IdScan::of(line.as_bytes()), id, "{line}");
        }
    }

    #[tokio::test]
    async fn the_last_line_needs_no_newline_and_a_long_one_tells_its_id() {
        let long = format!("{{\"params\":\"{}\",\"id\":9}}", "x".repeat(64));
        let input = format!("a\n\n{long}\nb\n{long}");
        let mut reader = Reader::new(tokio::io::BufReader::with_capacity(7, input.as_bytes()), 16);
        let mut taken = vec![];
        while let Ok(next) = reader.take().await
            && next != Taken::End
        {
            taken.push(next);
        }
        let line = |text: &str| Taken::Line(text.into());
        assert_eq!(taken, [line("a"), line(""), Taken::TooLong(json!(9)), line("b"), Taken::TooLong(json!(9))]);
        let mut reader = Reader::new(&b"whole\nrest"[..], 16);
        assert_eq!((reader.take().await.expect("read"), reader.take().await.expect("read")), (line("whole"), line("rest")));
        assert_eq!(reader.take().await.expect("read"), Taken::End);
    }
}
