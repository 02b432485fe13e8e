//! The approvals pages: operators log in with their passphrase, see what waits and what it would do, and decide. The same record and the same
//! way as the command line (`adapters::people`). Deliberately absent: scripts, and anything a person cannot also do at the terminal.

mod html;

use super::session::{self, Session, Sessions};
use super::strangers;
use crate::adapters::Doors;
use crate::adapters::people::{self, Shown, Word};
use crate::adapters::socket::wire::Credential;
use crate::call::CallError;
use crate::call::error::ErrorCode;
use crate::model::ids::ApprovalId;
use axum::Router;
use axum::extract::rejection::FormRejection;
use axum::extract::{DefaultBodyLimit, Form, FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use chrono::Utc;
use html::{Details, Viewer};
use serde::Deserialize;
use serde_json::json;
use std::net::IpAddr;
use std::sync::Arc;

/// Bytes of a form: a passphrase and a token.
const MAX_FORM: usize = 8 * 1024;

/// What the pages share.
#[derive(Debug)]
struct Pages {
    doors: Arc<Doors>,
    sessions: Sessions,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Login {
    operator: String,
    passphrase: String,
    then: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Decision {
    word: String,
    csrf: String,
    confirm: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Logout {
    csrf: String,
}

#[derive(Debug, Deserialize)]
struct Then {
    then: Option<String>,
}

/// The routes of `/approvals`.
pub fn router(doors: &Arc<Doors>) -> Router {
    let pages = Pages { doors: Arc::clone(doors), sessions: Sessions::default() };
    Router::new()
        .route("/approvals", get(list))
        .route("/approvals/login", get(login_form).post(login))
        .route("/approvals/logout", post(logout))
        .route("/approvals/{id}", get(show).post(decide))
        .layer(DefaultBodyLimit::max(MAX_FORM))
        .layer(from_fn(strict))
        .with_state(Arc::new(pages))
}

/// Middleware: forms only from our own pages, and headers that keep a page to itself.
async fn strict(request: axum::extract::Request, next: Next) -> Response {
    let foreign = request.method() == axum::http::Method::POST && !own(request.headers());
    let mut response = if foreign {
        (StatusCode::FORBIDDEN, "this form was not sent by its own page; open /approvals and try again\n").into_response()
    } else {
        next.run(request).await
    };
    let policy = HeaderValue::from_str(&html::POLICY).expect("ASCII");
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
        (header::REFERRER_POLICY, HeaderValue::from_static("same-origin")),
        (header::HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
        (header::HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    ] {
        response.headers_mut().insert(name, value);
    }
    response
}

/// Whether a request was sent by a page of this very origin. `SameSite` is no help against another port of the same name, these headers are:
/// a browser writes them itself.
fn own(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|v| v.to_str().unwrap_or("?"));
    let site = text("sec-fetch-site").is_none_or(|s| s == "same-origin");
    // With `no-referrer` a browser would say `Origin: null` of our own forms: the pages say `same-origin`.
    let origin = text("origin").is_none_or(|origin| {
        let authority = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
        authority.is_some() && authority == text("host")
    });
    site && origin
}

/// Whether a cookie has to be kept off plain connections: always, unless the browser is on this machine.
fn secure(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
    let name = host.strip_prefix('[').and_then(|h| h.split(']').next()).unwrap_or_else(|| host.split(':').next().unwrap_or_default());
    !(name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()))
}

fn page(status: StatusCode, html: String) -> Response {
    (status, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], html).into_response()
}

fn to(place: &str) -> Response {
    (StatusCode::SEE_OTHER, [(header::LOCATION, place.to_owned())]).into_response()
}

/// An id as a link or form names it; anything else is none.
fn valid(id: Option<String>) -> Option<ApprovalId> {
    id.and_then(|id| ApprovalId::new(id).ok())
}

impl Pages {
    fn host(&self) -> &str {
        &self.doors.house.config.host_name
    }

    fn failed(&self, e: &CallError) -> Response {
        if let Some(detail) = &e.detail {
            tracing::error!(code = ?e.code, %detail, "a page could not be made");
        }
        let (status, title) = match e.code {
            ErrorCode::NotFound | ErrorCode::InvalidArgument => (StatusCode::NOT_FOUND, "Not found"),
            ErrorCode::Denied => (StatusCode::FORBIDDEN, "Refused"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "This did not work"),
        };
        page(status, html::problem(self.host(), title, &e.message, &e.hint))
    }

    /// The session behind a request, or the way to the login.
    async fn session(&self, visit: &Visit, then: Option<&ApprovalId>) -> Result<Session, Response> {
        let login = || to(&then.map_or_else(|| "/approvals/login".to_owned(), |id| format!("/approvals/login?then={id}")));
        let Some(cookie) = cookie(&visit.headers) else { return Err(login()) };
        let Some(session) = self.sessions.find(cookie, Utc::now()) else { return Err(login()) };
        let operators = self.doors.house.store.operators().await.map_err(|e| self.failed(&e.into()))?;
        if !session.holds(&operators) {
            self.sessions.close(cookie);
            return Err(login());
        }
        strangers::known(&visit.extensions);
        Ok(session)
    }

    async fn details(&self, session: &Session, id: &ApprovalId, problem: Option<&str>) -> Result<String, CallError> {
        let house = &self.doors.house;
        let (approval, plan) = people::with_plan(house, id.as_str()).await?;
        let (arguments, confirm) = (people::arguments(house, &approval).await?, people::confirms(house, &approval));
        let (logout, csrf) = (session.token(&["logout"]), session.token(&[id.as_str(), &approval.digest]));
        let viewer = Viewer { host: self.host(), operator: &session.operator, logout: &logout, now: Utc::now() };
        let shown = Shown::of(&approval, plan.as_ref(), &arguments, viewer.now);
        let details = Details { approval: &approval, shown: &shown, confirm, csrf: &csrf, problem };
        Ok(html::details(&viewer, &details))
    }
}

/// Who sends a request, as far as the request says.
struct Visit {
    headers: HeaderMap,
    extensions: Extensions,
}

impl<S: Sync> FromRequestParts<S> for Visit {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Self { headers: parts.headers.clone(), extensions: parts.extensions.clone() })
    }
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let mut all = headers.get_all(header::COOKIE).iter();
    match (all.next(), all.next()) {
        (Some(one), None) => one.to_str().ok().and_then(session::cookie),
        _ => None,
    }
}

async fn list(State(pages): State<Arc<Pages>>, visit: Visit) -> Response {
    let session = match pages.session(&visit, None).await {
        Ok(session) => session,
        Err(response) => return response,
    };
    let now = Utc::now();
    match pages.doors.house.store.approvals(false, now).await {
        Ok(approvals) => {
            let logout = session.token(&["logout"]);
            let viewer = Viewer { host: pages.host(), operator: &session.operator, logout: &logout, now };
            page(StatusCode::OK, html::list(&viewer, &approvals))
        }
        Err(e) => pages.failed(&e.into()),
    }
}

async fn show(State(pages): State<Arc<Pages>>, visit: Visit, Path(id): Path<String>) -> Response {
    let id = valid(Some(id));
    let session = match pages.session(&visit, id.as_ref()).await {
        Ok(session) => session,
        Err(response) => return response,
    };
    let Some(id) = id else {
        let gone = CallError::new(ErrorCode::NotFound, "there is no such approval", "the list has those there are");
        return pages.failed(&gone);
    };
    match pages.details(&session, &id, None).await {
        Ok(html) => page(StatusCode::OK, html),
        Err(e) => pages.failed(&e),
    }
}

async fn login_form(State(pages): State<Arc<Pages>>, Query(then): Query<Then>) -> Response {
    page(StatusCode::OK, html::login(pages.host(), valid(then.then).as_ref().map(ApprovalId::as_str), None))
}

async fn login(State(pages): State<Arc<Pages>>, visit: Visit, form: Result<Form<Login>, FormRejection>) -> Response {
    let again = |status, then: Option<&ApprovalId>, problem: &str| {
        page(status, html::login(pages.host(), then.map(ApprovalId::as_str), Some(problem)))
    };
    let Ok(Form(form)) = form else { return again(StatusCode::BAD_REQUEST, None, "Fill in both fields.") };
    let then = valid(form.then);
    let store = &pages.doors.house.store;
    let credential = Credential { operator: form.operator, passphrase: form.passphrase };
    let operator = match people::verified_at_page(&pages.doors.house, &credential).await {
        Ok(operator) => operator,
        Err(e) if e.code == ErrorCode::Denied => {
            return again(StatusCode::UNAUTHORIZED, then.as_ref(), "Operator or passphrase are wrong.");
        }
        Err(e) if e.code == ErrorCode::RateLimited => {
            return again(StatusCode::TOO_MANY_REQUESTS, then.as_ref(), &format!("{}; {}", e.message, e.hint));
        }
        Err(e) => return pages.failed(&e),
    };
    let opened = async {
        let operators = store.operators().await?;
        let stored = operators.into_iter().find(|(name, _)| *name == operator).map(|(_, c)| c).unwrap_or_default();
        store.audit_event(&operator, "session_opened", None, &json!({"door": people::PAGE}), Utc::now()).await?;
        pages
            .sessions
            .open(&operator, &stored, Utc::now())
            .map_err(|e| CallError::new(ErrorCode::Internal, "no session could be opened", "look at the supervisor's log").detail(e))
    };
    match opened.await {
        Ok(cookie) => {
            strangers::known(&visit.extensions);
            let mut response = to(&then.map_or_else(|| "/approvals".to_owned(), |id| format!("/approvals/{id}")));
            let set = HeaderValue::from_str(&session::set_cookie(&cookie, secure(&visit.headers))).expect("base64 is ASCII");
            response.headers_mut().insert(header::SET_COOKIE, set);
            response
        }
        Err(e) => pages.failed(&e),
    }
}

async fn logout(State(pages): State<Arc<Pages>>, visit: Visit, form: Result<Form<Logout>, FormRejection>) -> Response {
    let session = match pages.session(&visit, None).await {
        Ok(session) => session,
        Err(response) => return response,
    };
    if !form.is_ok_and(|Form(f)| session.meant(&["logout"], &f.csrf)) {
        return outdated(&pages);
    }
    if let Some(cookie) = cookie(&visit.headers) {
        pages.sessions.close(cookie);
    }
    let closed = json!({"door": people::PAGE});
    if let Err(e) = pages.doors.house.store.audit_event(&session.operator, "session_closed", None, &closed, Utc::now()).await {
        return pages.failed(&e.into());
    }
    let mut response = to("/approvals/login");
    let set = HeaderValue::from_str(&session::set_cookie("", secure(&visit.headers))).expect("ASCII");
    response.headers_mut().insert(header::SET_COOKIE, set);
    response
}

fn outdated(pages: &Pages) -> Response {
    let message = "The form does not belong to this session, or what it shows has changed. Nothing was decided.";
    page(StatusCode::FORBIDDEN, html::problem(pages.host(), "Not accepted", message, "Open the page again and look at it once more."))
}

async fn decide(
    State(pages): State<Arc<Pages>>,
    visit: Visit,
    Path(id): Path<String>,
    form: Result<Form<Decision>, FormRejection>,
) -> Response {
    let id = valid(Some(id));
    let session = match pages.session(&visit, id.as_ref()).await {
        Ok(session) => session,
        Err(response) => return response,
    };
    let (Some(id), Ok(Form(form))) = (id, form) else { return outdated(&pages) };
    let word = match form.word.as_str() {
        "approve" => Word::Approve,
        "reject" => Word::Reject,
        "revoke" => Word::Revoke,
        _ => return outdated(&pages),
    };
    let house = &pages.doors.house;
    let approval = match people::with_plan(house, id.as_str()).await {
        Ok((approval, _)) => approval,
        Err(e) => return pages.failed(&e),
    };
    // The token names what was shown: an approval of something else is not what was clicked at.
    if !session.meant(&[id.as_str(), &approval.digest], &form.csrf) {
        return outdated(&pages);
    }
    let operator = session.operator.clone();
    // A task of its own: a browser that goes away must not leave a decision between its record and its start.
    let (house, decided) = (Arc::clone(house), id.clone());
    let done = tokio::spawn(async move {
        people::decide_confirmed(&house, decided.as_str(), &operator, form.confirm.as_deref(), word, people::PAGE).await
    });
    let done = done.await;
    match done {
        Ok(Ok(_)) => to(&format!("/approvals/{id}")),
        Ok(Err(e)) => {
            let problem = format!("{}. {}", e.message.trim_end_matches('.'), e.hint);
            match pages.details(&session, &id, Some(&problem)).await {
                Ok(html) => page(StatusCode::CONFLICT, html),
                Err(e) => pages.failed(&e),
            }
        }
        Err(e) => {
            pages.failed(&CallError::new(ErrorCode::Internal, "the decision ended abnormally", "open the page again").detail(e.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (header::HeaderName::from_static(n), HeaderValue::from_str(v).expect("a header"))).collect()
    }

    #[test]
    fn only_forms_of_the_same_origin_are_taken() {
        let host = ("host", "127.0.0.1:7420");
        for good in [
            vec![host],
            vec![host, ("origin", "http://127.0.0.1:7420")],
            vec![host, ("origin", "http://127.0.0.1:7420"), ("sec-fetch-site", "same-origin")],
        ] {
            assert!(own(&headers(&good)), "{good:?}");
        }
        for bad in [
            vec![host, ("origin", "http://127.0.0.1:3000")],
            vec![host, ("origin", "http://localhost:7420")],
            vec![host, ("origin", "null")],
            vec![host, ("sec-fetch-site", "same-site")],
            vec![host, ("sec-fetch-site", "cross-site")],
            vec![host, ("sec-fetch-site", "none")],
        ] {
            assert!(!own(&headers(&bad)), "{bad:?}");
        }
    }

    #[test]
    fn cookies_are_secure_unless_the_browser_is_on_this_machine() {
        for (host, expected) in [
            ("127.0.0.1:7420", false),
            ("localhost", false),
            ("[::1]:7420", false),
            ("box.example:7420", true),
            ("localhost.evil", true),
            ("", true),
        ] {
            assert_eq!(secure(&headers(&[("host", host)])), expected, "{host}");
        }
    }
}
