//! An agent in a process of its own: connects to a supervisor as any MCP client, fetches the agent's tasks one by one and does them with its model. It
//! has no engine, no database and no policy; what it may do is decided at the other end. Deliberately absent: the run of a task (`runner::work`).

pub mod link;
pub mod remote;

use crate::model::ids::AgentName;
use crate::model::task::{TaskEnd, TaskState};
use crate::runner::ask::Patience;
use crate::runner::models::Key;
use crate::runner::outside::{About, Ask, Kept, Lent, ModelFacts, VERSION, Welcome};
use crate::runner::{self, work};
use link::{Link, LinkError, TokenSource};
use remote::Remote;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How long one question for a task waits at the supervisor.
const WAIT: Duration = Duration::from_secs(20);
/// First and longest pause while the supervisor is away.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));
/// Signs of life in one lease.
const BEATS: u32 = 12;
/// How long a run that was told to stop may take to do so; a call under way is found again by its name.
const STOPS_WITHIN: Duration = Duration::from_secs(5);
/// How long the supervisor is told that a task is over, and then that this process ends.
const REPORT_WITHIN: Duration = Duration::from_secs(600);
const GOODBYE_WITHIN: Duration = Duration::from_secs(3);

/// What an agent's process is started with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The agent.
    pub agent: AgentName,
    /// Address of the supervisor's MCP door.
    pub url: String,
    /// Its token.
    pub token: TokenSource,
    /// File with the model's key; read anew for each task.
    pub key_file: Option<PathBuf>,
    /// The provider's address as this process reaches it, when it is not the configured one.
    pub model_url: Option<String>,
    /// Patience with the provider.
    pub patience: Patience,
}

/// Works until told to stop.
///
/// # Errors
/// What no waiting mends: `Refused` for a wrong token, an agent the supervisor does not lend out, a missing key, another process of the same agent.
pub async fn run(settings: &Settings, stop: &CancellationToken) -> Result<(), LinkError> {
    let link = Link::new(&settings.url, settings.agent.clone(), settings.token.clone());
    let link = Arc::new(link.map_err(|e| LinkError::Refused {
        code: "failed".into(),
        message: e,
        hint: "check this machine's certificates".into(),
    })?);
    let done = tokio::select! {
        done = serve(settings, &link, stop) => done,
        // Only waiting is cut short: a task at work stops by itself.
        () = idle_end(stop) => Ok(()),
    };
    link.close().await;
    done
}

/// Resolves some time after the word to stop: by then only a supervisor that is away is waited for.
async fn idle_end(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(STOPS_WITHIN + GOODBYE_WITHIN).await;
}

async fn serve(settings: &Settings, link: &Arc<Link>, stop: &CancellationToken) -> Result<(), LinkError> {
    let hello = Ask::Hello { agent: settings.agent.clone(), version: VERSION };
    let Some(welcome) = patiently(stop, || link.ask::<Welcome>(&hello, WAIT)).await? else { return Ok(()) };
    key(settings, &welcome.model).map_err(keyless)?;
    tracing::info!(agent = %settings.agent, url = settings.url, model = welcome.model.name, "the agent waits for tasks");
    let beat = (Duration::from_secs(welcome.lease_s) / BEATS).max(Duration::from_secs(1));
    let fetch = Ask::Fetch { claim: welcome.claim, wait_s: WAIT.as_secs() };
    while let Some(lent) = patiently(stop, || link.ask::<Option<Lent>>(&fetch, WAIT * 2)).await? {
        if let Some(lent) = lent {
            one(settings, link, &welcome, lent, beat, stop).await?;
        }
    }
    Ok(())
}

/// Asks until there is an answer; `None` when it is to stop.
async fn patiently<T, F: Future<Output = Result<T, LinkError>>>(
    stop: &CancellationToken,
    ask: impl Fn() -> F,
) -> Result<Option<T>, LinkError> {
    let mut pause = PAUSES.0;
    loop {
        let answer = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(None),
            answer = ask() => answer,
        };
        match answer {
            Err(LinkError::Away(why)) => {
                tracing::warn!(why, pause_ms = pause.as_millis(), "the supervisor is away; it is asked again");
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = stop.cancelled() => return Ok(None),
                }
                pause = (pause * 2).min(PAUSES.1);
            }
            answered => return answered.map(Some),
        }
    }
}

/// The model's key: the file's, else what the variable the supervisor names holds.
fn key(settings: &Settings, model: &ModelFacts) -> Result<Option<Key>, String> {
    if let Some(file) = &settings.key_file {
        let text = std::fs::read_to_string(file).map_err(|e| format!("the key file {}: {e}", file.display()))?;
        // An empty file is how a container that always has one says none.
        if !text.trim().is_empty() {
            return Key::new(&text).map(Some).map_err(|e| format!("the key file {}: {e}", file.display()));
        }
    }
    if let Some(text) = model.key_env.as_ref().and_then(|var| std::env::var(var).ok()) {
        return Key::new(&text).map(Some).map_err(|e| format!("${}: {e}", model.key_env.as_deref().unwrap_or_default()));
    }
    if model.needs_key {
        return Err(format!("the model {} is asked with a key, and this process has none", model.name));
    }
    Ok(None)
}

fn keyless(message: String) -> LinkError {
    let hint = "give --key-file, or the environment variable that key_env of the model names".to_owned();
    LinkError::Refused { code: "failed".into(), message, hint }
}

/// One try of a task.
async fn one(
    settings: &Settings,
    link: &Arc<Link>,
    welcome: &Welcome,
    lent: Lent,
    beat: Duration,
    stop: &CancellationToken,
) -> Result<(), LinkError> {
    let Lent { task, brief, model } = lent;
    let begun = Instant::now();
    tracing::info!(task = %task.id, attempt = task.attempt, origin = task.origin, "a task begins");
    let halt = stop.child_token();
    let remote = Remote::new(link.clone(), welcome.claim, task.id.clone(), halt.clone());
    let model = key(settings, &model).map(|key| model.with(key, settings.model_url.as_deref())).map_err(keyless)?;
    let provider = match runner::connect(&model) {
        Ok(provider) => provider,
        Err(why) => {
            let end = TaskEnd::Failed(format!("the agent {} cannot do tasks: {why}", task.agent));
            return report(&remote, About::End { end }, REPORT_WITHIN).await.map(|_| ());
        }
    };
    let desk = work::Desk {
        journal: &remote,
        hands: &remote,
        provider: provider.as_ref(),
        model: &model,
        system: brief.system,
        task: brief.task,
        turns: brief.turns,
        patience: settings.patience,
    };
    let run = async {
        let work = work::work(&desk, &task, &halt);
        tokio::pin!(work);
        tokio::select! {
            end = &mut work => Some(end),
            () = halt.cancelled() => tokio::time::timeout(STOPS_WITHIN, work).await.ok(),
        }
    };
    let (end, halted) = tokio::select! {
        end = run => (end, None),
        halted = keep(&remote, beat, &halt) => (None, Some(halted)),
    };
    let about = match (end, halted) {
        (_, Some(Halted::Cancelled)) => About::End { end: TaskEnd::Cancelled },
        (_, Some(Halted::Lost)) => {
            tracing::warn!(task = %task.id, "the task is not with this process any more");
            return Ok(());
        }
        // What was refused would be refused again: it is a failed try, not an interruption.
        _ if remote.refused() => About::End { end: TaskEnd::Retry(remote.why()) },
        // Whoever could not answer knows nothing of an end: the run goes on from its turns.
        _ if remote.broken() && !stop.is_cancelled() => {
            tracing::warn!(task = %task.id, why = remote.why(), "a run broke off; it goes on from what is written down");
            return Ok(());
        }
        (Some(end @ (TaskEnd::Succeeded(_) | TaskEnd::Failed(_) | TaskEnd::Waiting(_))), None) => About::End { end },
        _ if stop.is_cancelled() => About::Back,
        (Some(end), None) => About::End { end },
        (None, None) => About::Back,
    };
    let within = if stop.is_cancelled() { GOODBYE_WITHIN } else { REPORT_WITHIN };
    let state = report(&remote, about, within).await?;
    let state = state.map_or("unknown", TaskState::as_str);
    tracing::info!(task = %task.id, state, took_s = begun.elapsed().as_secs_f64(), "a task ends");
    Ok(())
}

/// Tells the supervisor what became of a task. That it has lost it meanwhile is no failure of this process.
async fn report(remote: &Remote, about: About, within: Duration) -> Result<Option<TaskState>, LinkError> {
    match remote.until::<Option<TaskState>>(about, GOODBYE_WITHIN, within).await {
        Ok(state) => Ok(state),
        Err(e) => {
            tracing::warn!(task = %remote.task, why = %e, "what became of a task could not be reported; it goes on from what is written down");
            Ok(None)
        }
    }
}

/// Why a task is to end before its run is done.
enum Halted {
    /// Somebody wants it stopped.
    Cancelled,
    /// It is another's.
    Lost,
}

/// Signs of life while a task is at work. Resolves when the task is to end; a run that somebody wants stopped is told so first, and ends itself in time.
async fn keep(remote: &Remote, beat: Duration, halt: &CancellationToken) -> Halted {
    loop {
        tokio::time::sleep(beat).await;
        match remote.once::<Kept>(About::Keep, beat.max(GOODBYE_WITHIN)).await {
            Ok(Kept::Yours) => {}
            Ok(Kept::Cancel) => {
                halt.cancel();
                tokio::time::sleep(STOPS_WITHIN).await;
                return Halted::Cancelled;
            }
            Err(LinkError::Refused { .. }) => return Halted::Lost,
            Err(LinkError::Away(why)) => tracing::debug!(task = %remote.task, why, "no sign of life could be given"),
        }
    }
}

#[cfg(test)]
mod tests;
