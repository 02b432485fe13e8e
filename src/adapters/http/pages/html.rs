//! The approvals pages as HTML. Text of others gets in only through [`Page::text`], which escapes; markup only as literals of this file.
//! Deliberately absent: scripts, images, fonts, and anything fetched from elsewhere.

use crate::adapters::people::shown::{LONGEST_MARKED, Line, Part, Said, Shown, left, moment, place, word};
use crate::model::verdict::Verdict;
use crate::redact;
use crate::store::approval::{Approval, ApprovalState};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use std::sync::LazyLock;

/// The only style; the policy of the pages allows exactly its hash.
const STYLE: &str = include_str!("style.css");

/// `Content-Security-Policy`: nothing but this style and forms to ourselves.
pub static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = BASE64_STANDARD.encode(Sha256::digest(STYLE.as_bytes()));
    format!("default-src 'none'; style-src 'sha256-{hash}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
});

/// Longest text of one field: a page must stay readable whatever somebody put in, and show what the other doors show.
const MAX_TEXT: usize = LONGEST_MARKED;

/// A page being written. Markup has to be a literal, so nothing unescaped can become part of it.
struct Page(String);

impl Page {
    fn new(title: &str, host: &str, who: Option<(&str, &str)>) -> Self {
        let mut page = Self(String::with_capacity(8 * 1024));
        page.raw("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><meta name=\"referrer\" content=\"same-origin\"><title>");
        page.text(title).raw(" - dockwarden</title><style>");
        page.raw(STYLE);
        page.raw("</style></head><body><header><a class=\"home\" href=\"/approvals\">dockwarden</a><span class=\"host\">").text(host);
        page.raw("</span>");
        if let Some((operator, token)) = who {
            page.raw("<form method=\"post\" action=\"/approvals/logout\"><span class=\"who\">").text(operator);
            page.raw("</span>").token(token).raw("<button class=\"quiet\">Log out</button></form>");
        }
        page.raw("</header><main>");
        page
    }

    fn raw(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Text of any origin: without control and invisible characters, escaped for content and for quoted attributes.
    fn text(&mut self, text: &str) -> &mut Self {
        escape(&mut self.0, text);
        self
    }

    fn token(&mut self, token: &str) -> &mut Self {
        self.raw("<input type=\"hidden\" name=\"csrf\" value=\"").text(token).raw("\">")
    }

    fn row(&mut self, name: &'static str, value: &str) -> &mut Self {
        self.raw("<dt>").raw(name).raw("</dt><dd>").text(value).raw("</dd>")
    }

    fn end(&mut self) -> String {
        self.raw("</main></body></html>\n");
        std::mem::take(&mut self.0)
    }
}

fn escape(out: &mut String, text: &str) {
    let clean = redact::clean(text);
    for c in redact::keep_start(&clean, MAX_TEXT).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    if clean.len() > MAX_TEXT {
        out.push_str(" [cut]");
    }
}

fn state_class(state: ApprovalState) -> &'static str {
    match state {
        ApprovalState::Pending => "badge wait",
        ApprovalState::Approved | ApprovalState::Used => "badge good",
        ApprovalState::Denied | ApprovalState::Expired | ApprovalState::Stale => "badge bad",
    }
}

/// The login form. `then` is the approval to show after it.
pub fn login(host: &str, then: Option<&str>, problem: Option<&str>) -> String {
    let mut p = Page::new("Log in", host, None);
    p.raw("<h1>Log in as an operator</h1>");
    if let Some(problem) = problem {
        p.raw("<p class=\"problem\" role=\"alert\">").text(problem).raw("</p>");
    }
    p.raw("<form class=\"card\" method=\"post\" action=\"/approvals/login\" autocomplete=\"off\">");
    p.raw("<label for=\"operator\">Operator</label><input id=\"operator\" name=\"operator\" required maxlength=\"64\" autocomplete=\"username\" autocapitalize=\"none\" spellcheck=\"false\">");
    p.raw("<label for=\"passphrase\">Passphrase</label><input id=\"passphrase\" name=\"passphrase\" type=\"password\" required maxlength=\"1024\" autocomplete=\"current-password\">");
    if let Some(then) = then {
        p.raw("<input type=\"hidden\" name=\"then\" value=\"").text(then).raw("\">");
    }
    p.raw("<button class=\"yes\">Log in</button></form><p class=\"small\">Operators are made on the host: <code>dockwarden operators add NAME</code>. A session ends after 15 minutes without use.</p>");
    p.end()
}

/// Something that went wrong, with the way on.
pub fn problem(host: &str, title: &str, message: &str, hint: &str) -> String {
    let mut p = Page::new(title, host, None);
    p.raw("<h1>").text(title).raw("</h1><p class=\"problem\" role=\"alert\">").text(message).raw("</p><p>").text(hint);
    p.raw("</p><p><a href=\"/approvals\">All approvals</a></p>").end()
}

/// Who looks, and what the header needs.
#[derive(Debug, Clone, Copy)]
pub struct Viewer<'a> {
    /// Name of the host.
    pub host: &'a str,
    /// Operator.
    pub operator: &'a str,
    /// Form token of logging out.
    pub logout: &'a str,
    /// The moment the page is made for.
    pub now: DateTime<Utc>,
}

/// The queue.
pub fn list(viewer: &Viewer<'_>, approvals: &[Approval]) -> String {
    let mut p = Page::new("Approvals", viewer.host, Some((viewer.operator, viewer.logout)));
    let (waiting, settled): (Vec<_>, Vec<_>) =
        approvals.iter().partition(|a| matches!(a.state, ApprovalState::Pending | ApprovalState::Approved));
    p.raw("<h1>Waiting for a person</h1>");
    if waiting.is_empty() {
        p.raw("<p class=\"card\">Nothing waits.</p>");
    }
    entries(&mut p, &waiting, viewer.now);
    if !settled.is_empty() {
        p.raw("<h2>Settled lately</h2>");
        entries(&mut p, &settled[..settled.len().min(20)], viewer.now);
    }
    p.end()
}

fn entries(p: &mut Page, approvals: &[&Approval], now: DateTime<Utc>) {
    p.raw("<ul class=\"list\">");
    for a in approvals {
        p.raw("<li class=\"card\"><a href=\"/approvals/").text(a.id.as_str()).raw("\">").text(&a.tool).raw(" ").text(&place(a));
        p.raw("</a> <span class=\"").raw(state_class(a.state)).raw("\">").text(&word(&a.state)).raw("</span><p class=\"small\">asked by ");
        p.text(&a.agent).raw(" at ").text(&moment(a.created_at));
        if matches!(a.state, ApprovalState::Pending | ApprovalState::Approved) {
            p.raw(", ").text(&left(a.expires_at, now)).raw(", ").text(&format!("{} of {} given", a.approved_by.len(), a.needed));
        }
        p.raw("</p></li>");
    }
    p.raw("</ul>");
}

/// What an approval's page shows.
#[derive(Debug)]
pub struct Details<'a> {
    /// The approval.
    pub approval: &'a Approval,
    /// What every door shows of it.
    pub shown: &'a Shown,
    /// What has to be typed to approve a call that may be one's own.
    pub confirm: Option<&'a str>,
    /// Form token of the decision.
    pub csrf: &'a str,
    /// What came of the last click, when it failed.
    pub problem: Option<&'a str>,
}

/// One approval, with everything a person needs to decide.
pub fn details(viewer: &Viewer<'_>, d: &Details<'_>) -> String {
    let a = d.approval;
    let title = &d.shown.title;
    let mut p = Page::new(title, viewer.host, Some((viewer.operator, viewer.logout)));
    p.raw("<h1>").text(title).raw(" <span class=\"").raw(state_class(a.state)).raw("\">").text(&word(&a.state)).raw("</span></h1>");
    if let Some(problem) = d.problem {
        p.raw("<p class=\"problem\" role=\"alert\">").text(problem).raw("</p>");
    }
    p.raw("<dl class=\"card\">");
    for (name, value) in &d.shown.facts {
        match *name {
            // Beside the title.
            "State" => {}
            "Digest" => {
                p.raw("<dt>Digest</dt><dd class=\"mono\">").text(value).raw("</dd>");
            }
            name => {
                p.row(name, value);
            }
        }
    }
    p.raw("</dl>");
    if let Some(reason) = &d.shown.reason {
        p.raw("<h2>What the agent says</h2><blockquote class=\"card\">").text(reason);
        p.raw("</blockquote><p class=\"small\">Written by the agent, not checked by anybody. Decide by what is below.</p>");
    }
    if let Some(found) = &d.shown.findings {
        p.raw("<h2>What would be done</h2>");
        d.shown.parts.iter().for_each(|part| change(&mut p, part));
        findings(&mut p, found);
    }
    p.raw("<h2>The call</h2><dl class=\"card\">");
    for (key, value) in &d.shown.call {
        p.raw("<dt>").text(key).raw("</dt><dd class=\"mono\">").text(value).raw("</dd>");
    }
    p.raw("</dl>");
    match (a.state, &a.operation) {
        (ApprovalState::Pending, _) => decision(&mut p, viewer, d),
        (ApprovalState::Approved, _) => start(&mut p, viewer, d),
        (_, Some(operation)) => {
            p.raw("<p>Operation <code>").text(operation.as_str()).raw("</code></p>");
        }
        (_, None) => {}
    }
    p.end()
}

/// What was approved and has not started: it could not when the word came.
fn start(p: &mut Page, viewer: &Viewer<'_>, d: &Details<'_>) {
    let a = d.approval;
    p.raw("<p class=\"card\">Approved, and not started: it could not start when it was approved. It can be started until it expires.</p>");
    p.raw("<form class=\"decide\" method=\"post\" action=\"/approvals/").text(a.id.as_str()).raw("\">").token(d.csrf);
    if !a.asked_by(viewer.operator) {
        p.raw("<button class=\"yes\" name=\"word\" value=\"approve\">Start it now</button>");
    }
    p.raw("<button class=\"no\" name=\"word\" value=\"revoke\">Take it back</button></form>");
}

fn decision(p: &mut Page, viewer: &Viewer<'_>, d: &Details<'_>) {
    let a = d.approval;
    if a.approved_by.iter().any(|o| o == viewer.operator) {
        p.raw("<p class=\"card\">You have approved this; it waits for another operator.</p>");
    }
    p.raw("<form class=\"decide\" method=\"post\" action=\"/approvals/").text(a.id.as_str()).raw("\">").token(d.csrf);
    if a.asked_by(viewer.operator) {
        p.raw("<p class=\"problem\">Who asked cannot approve.</p>");
    } else {
        if let Some(name) = d.confirm {
            p.raw("<div class=\"own\"><label for=\"confirm\">Asked for at the command line, so it may be your own call. To approve it, type <strong>");
            p.text(name).raw("</strong></label><input id=\"confirm\" name=\"confirm\" required maxlength=\"128\" autocomplete=\"off\" autocapitalize=\"none\" spellcheck=\"false\"></div>");
        }
        p.raw("<button class=\"yes\" name=\"word\" value=\"approve\">Approve and start</button>");
    }
    // A no needs nothing typed.
    p.raw("<button class=\"no\" name=\"word\" value=\"reject\" formnovalidate>Reject</button></form>");
}

fn change(p: &mut Page, part: &Part) {
    p.raw("<section class=\"card\"><h3>").text(&part.name);
    if !part.action.is_empty() {
        p.raw(" <span class=\"badge\">").text(&part.action).raw("</span>");
    }
    p.raw("</h3>");
    if !part.how.is_empty() {
        p.raw("<p class=\"small\">").text(&part.how).raw("</p>");
    }
    if !part.lines.is_empty() {
        diff(p, &part.lines);
    }
    p.raw("</section>");
}

fn diff(p: &mut Page, lines: &[Line]) {
    p.raw("<ul class=\"diff\">");
    for line in lines {
        p.raw("<li><span class=\"path\">").text(&line.path).raw("</span>");
        if let Some(from) = &line.from {
            p.raw("<del>").text(from).raw("</del>");
        }
        if let Some(to) = &line.to {
            p.raw("<ins>").text(to).raw("</ins>");
        }
        p.raw("</li>");
    }
    p.raw("</ul>");
}

fn findings(p: &mut Page, findings: &[Said]) {
    p.raw("<h2>What the policy says</h2>");
    if findings.is_empty() {
        p.raw("<p class=\"card\">No finding.</p>");
        return;
    }
    p.raw("<ul class=\"list\">");
    for f in findings {
        let class = match f.verdict {
            Verdict::Allow => "badge good",
            Verdict::Warn | Verdict::Approval => "badge wait",
            Verdict::Deny => "badge bad",
        };
        p.raw("<li class=\"card\"><span class=\"").raw(class).raw("\">").text(f.verdict.as_str()).raw("</span> <strong>").text(&f.rule);
        p.raw("</strong> <span class=\"path\">").text(&f.place);
        p.raw("</span><br>").text(&f.because).raw("</li>");
    }
    p.raw("</ul>");
}

#[cfg(test)]
mod tests;
