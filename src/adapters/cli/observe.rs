//! Commands that look: status, health, logs, stats.

use super::stack::input;
use super::{CliError, CliResult, Ended, Global, output, reach};
use clap::Args;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// Time for `health --self`: a container's HEALTHCHECK has its own limit above it.
const SELF_WITHIN: Duration = Duration::from_secs(3);
/// Pause between looks of `logs -f`: each look is an audited call.
const FOLLOW_EVERY: Duration = Duration::from_secs(2);
/// Lines a later look asks for: the tool's own maximum.
const MOST_AT_ONCE: usize = 5_000;

/// All stacks, or one.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Stack.
    stack: Option<String>,
}

/// Show health.
#[derive(Debug, Args)]
pub struct HealthArgs {
    /// Stack.
    stack: Option<String>,
    /// Service.
    service: Option<String>,
    /// Also check the engine and the supervisor's own state.
    #[arg(long)]
    deep: bool,
    /// Ask the supervisor's HTTP door whether it lives (for a container's HEALTHCHECK).
    #[arg(long = "self", conflicts_with_all = ["stack", "service", "deep"])]
    own: bool,
}

/// Show why a stack is not well.
#[derive(Debug, Args)]
pub struct DiagnoseArgs {
    /// Stack.
    stack: String,
    /// Service.
    service: Option<String>,
    /// Print the report of this incident, as Markdown.
    #[arg(long, value_name = "ID")]
    incident: Option<String>,
    /// List only incidents with these words in their report.
    #[arg(long, value_name = "WORDS")]
    find: Option<String>,
}

/// Show log lines, services merged by time.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Stack.
    stack: String,
    /// Service.
    service: Option<String>,
    /// Last lines.
    #[arg(long, short = 'n', default_value_t = 200)]
    tail: u32,
    /// Not before: a time (RFC 3339) or an age such as 10m.
    #[arg(long)]
    since: Option<String>,
    /// Only lines with this text.
    #[arg(long)]
    grep: Option<String>,
    /// Go on showing new lines.
    #[arg(long, short)]
    follow: bool,
}

/// Runs `diagnose`.
pub async fn diagnose(global: &Global, args: DiagnoseArgs) -> CliResult {
    let wish = input(json!({"stack": args.stack, "service": args.service, "incident_id": args.incident, "find": args.find}));
    if args.incident.is_none() || global.json {
        return reach::show(global, "diagnose", wish).await;
    }
    let (value, text) = reach::value(global, "diagnose", wish).await?;
    output::line(value["report"]["text"].as_str().map_or(text, str::to_owned));
    Ok(Ended::Done)
}

/// Runs `stats`.
pub async fn stats(global: &Global, args: StatusArgs) -> CliResult {
    reach::show(global, "stats", input(json!({"stack": args.stack}))).await
}

/// Runs `status`: all pages of it.
pub async fn status(global: &Global, args: StatusArgs) -> CliResult {
    let (mut whole, mut said) = reach::value(global, "status", input(json!({"stack": args.stack}))).await?;
    while let Some(after) = whole.as_object_mut().and_then(|o| o.remove("next")) {
        let page = reach::value(global, "status", input(json!({"stack": args.stack, "after": after}))).await?;
        add(&mut whole, &mut said, page);
    }
    output::reply(global.json, "status", &whole, &said);
    Ok(Ended::Done)
}

/// Puts a further page of `status` behind what was read: its head is said already, and that there was more is true no longer.
fn add(whole: &mut Value, said: &mut String, (mut page, text): (Value, String)) {
    if let (Some(all), Some(more)) = (whole["stacks"].as_array_mut(), page["stacks"].as_array_mut()) {
        all.append(more);
    }
    if let Some(next) = page.as_object_mut().and_then(|o| o.remove("next")) {
        whole["next"] = next;
    }
    said.truncate(said.rfind("\n(there is more").unwrap_or(said.len()));
    said.extend(text.lines().skip(1).map(|line| format!("\n{line}")));
}

/// Runs `health`: 1 when something is not healthy.
pub async fn health(global: &Global, args: HealthArgs) -> CliResult {
    if args.own {
        return own_health(global).await;
    }
    let (value, text) =
        reach::value(global, "health", input(json!({"stack": args.stack, "service": args.service, "deep": args.deep}))).await?;
    output::reply(global.json, "health", &value, &text);
    Ok(if value["healthy"] == Value::Bool(false) { Ended::Failed } else { Ended::Done })
}

/// `GET /health` on the address the supervisor wrote down.
async fn own_health(global: &Global) -> CliResult {
    let places = crate::config::places(global.home.as_deref(), global.config.as_deref());
    let file = crate::app::address_file(&places.home);
    let hint = "is the supervisor running with an HTTP door? see `dockwarden doctor`";
    let failed = |what: String| CliError::Failed(what, hint.into());
    let written = std::fs::read_to_string(&file).map_err(|e| failed(format!("{}: {e}", file.display())))?;
    let (tls, written) = written.trim().strip_prefix("https://").map_or((false, written.trim()), |rest| (true, rest));
    let mut address: std::net::SocketAddr = written.parse().map_err(|e| failed(format!("{}: {e}", file.display())))?;
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    let body = tokio::time::timeout(SELF_WITHIN, get(address, tls, "/health")).await;
    let body = body
        .map_err(|_| failed(format!("{address} did not answer within {SELF_WITHIN:?}")))?
        .map_err(|e| failed(format!("{address}: {e}")))?;
    output::line(body);
    Ok(Ended::Done)
}

/// One GET by hand: a HEALTHCHECK runs every few seconds and needs no client.
async fn get(address: std::net::SocketAddr, tls: bool, path: &str) -> std::io::Result<String> {
    let stream = tokio::net::TcpStream::connect(address).await?;
    if tls { exchange(crate::adapters::http::tls::own::connect(stream).await?, path).await } else { exchange(stream, path).await }
}

async fn exchange(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, path: &str) -> std::io::Result<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    let mut text = String::new();
    stream.take(64 * 1024).read_to_string(&mut text).await?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| std::io::Error::other("no HTTP answer"))?;
    if head.starts_with("HTTP/1.1 200") {
        Ok(body.to_owned())
    } else {
        Err(std::io::Error::other(head.lines().next().unwrap_or_default().to_owned()))
    }
}

/// Runs `logs`.
pub async fn logs(global: &Global, args: LogsArgs) -> CliResult {
    let mut request =
        input(json!({"stack": args.stack, "service": args.service, "tail": args.tail, "since": args.since, "grep": args.grep}));
    let mut seen = Seen::default();
    loop {
        let (value, text) = reach::value(global, "logs", request.clone()).await?;
        if !args.follow {
            output::reply(global.json, "logs", &value, &text);
            return Ok(Ended::Done);
        }
        if value["truncated"] == Value::Bool(true) && !seen.0.is_empty() {
            eprintln!("(more was written than one look shows; older lines are left out)");
        }
        for line in seen.fresh(value["logs"]["text"].as_str().unwrap_or_default()) {
            output::line(if global.json { as_value(line).to_string() } else { line.to_owned() });
        }
        if let Some(newest) = seen.newest() {
            request["since"] = json!(newest);
            request["tail"] = json!(MOST_AT_ONCE);
        }
        tokio::time::sleep(FOLLOW_EVERY).await;
    }
}

/// The lines of the last look, and how often each was there: the next look begins at the newest one's time and shows some of them again.
#[derive(Debug, Default)]
struct Seen(BTreeMap<String, usize>);

impl Seen {
    /// The lines of a look that were not in the one before.
    fn fresh<'a>(&mut self, text: &'a str) -> Vec<&'a str> {
        let mut now = BTreeMap::new();
        let mut fresh = vec![];
        for line in text.lines() {
            let count: &mut usize = now.entry(line.to_owned()).or_default();
            *count += 1;
            if *count > self.0.get(line).copied().unwrap_or(0) {
                fresh.push(line);
            }
        }
        if !now.is_empty() {
            self.0 = now;
        }
        fresh
    }

    /// Time of the newest line: lines begin with it, in a form that sorts.
    fn newest(&self) -> Option<&str> {
        self.0.keys().next_back()?.split(' ').next().filter(|at| chrono::DateTime::parse_from_rfc3339(at).is_ok())
    }
}

/// A line of `time service| text` as a value.
fn as_value(line: &str) -> Value {
    let (at, rest) = line.split_once(' ').unwrap_or(("", line));
    let (service, text) = rest.split_once("| ").unwrap_or(("", rest));
    json!({"at": at, "service": service, "text": text})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_pages_of_status_are_one_list_that_says_nothing_of_pages() {
        let page = |stacks: &[&str], next: Option<&str>| {
            let mut value = json!({"host": "h", "stacks": stacks});
            let mut text = format!("h linux\n{}", stacks.join("\n"));
            if let Some(next) = next {
                value["next"] = json!(next);
                text.push_str(&format!("\n(there is more: call again with after: {next})"));
            }
            (value, text)
        };
        let (mut whole, mut said) = page(&["a", "b"], Some("b"));
        whole.as_object_mut().expect("an object").remove("next");
        add(&mut whole, &mut said, page(&["c"], Some("c")));
        assert_eq!(whole["next"], "c");
        whole.as_object_mut().expect("an object").remove("next");
        add(&mut whole, &mut said, page(&["d"], None));
        assert_eq!((whole, said.as_str()), (json!({"host": "h", "stacks": ["a", "b", "c", "d"]}), "h linux\na\nb\nc\nd"));
    }

    #[test]
    fn following_shows_each_line_once_and_goes_on_from_the_newest() {
        let mut seen = Seen::default();
        let first = "2026-01-02T10:00:00.000Z web-1| a\n2026-01-02T10:00:01.000Z web-1| same\n";
        assert_eq!(seen.fresh(first).len(), 2);
        assert_eq!(seen.newest(), Some("2026-01-02T10:00:01.000Z"));
        // The next look begins at that time: it shows the line again, and the same words written once more.
        let next = "2026-01-02T10:00:01.000Z web-1| same\n2026-01-02T10:00:01.000Z web-1| same\n2026-01-02T10:00:02.000Z db-1| b";
        assert_eq!(seen.fresh(next), ["2026-01-02T10:00:01.000Z web-1| same", "2026-01-02T10:00:02.000Z db-1| b"]);
        assert_eq!(seen.fresh("2026-01-02T10:00:02.000Z db-1| b"), Vec::<&str>::new());
        assert_eq!(seen.fresh(""), Vec::<&str>::new());
        assert_eq!(seen.newest(), Some("2026-01-02T10:00:02.000Z"), "a look without lines forgets nothing");
    }

    #[test]
    fn a_line_is_told_in_its_parts() {
        let told = json!({"at": "2026-01-02T10:00:00.000Z", "service": "web-1", "text": "a | b| c"});
        assert_eq!(as_value("2026-01-02T10:00:00.000Z web-1| a | b| c"), told);
    }
}
