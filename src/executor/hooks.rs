//! Hooks of a service: `pre` in a one-off container of the new image before a new container of the service is made, `post` in the first new
//! container once the release serves. Each is a journaled step; what it may run was judged with the plan and is judged again here.

use super::acts::Act;
use super::run::{Fail, Halt, Run, failed};
use super::{names, probe};
use crate::engine::{EngineError, ExecSpec, LogQuery};
use crate::gate::request;
use crate::model::ids::{EngineName, ServiceName};
use crate::model::labels;
use crate::model::observed::RunState;
use crate::model::operation::{Evidence, Phase};
use crate::model::plan::{Action, Change, Strategy};
use crate::model::spec::{Hook, ServiceSpec};
use crate::planner;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How often a one-off container is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Numbers of the stack's hooks begin far from those of a service's own.
const OF_STACK: usize = 1000;
/// Output of a hook that is kept.
const OUTPUT: usize = 16 * 1024;
const LINES: usize = 200;

impl Run {
    /// Runs the `pre` hooks of a service, one after the other. Called when the old containers of a service that writes data are stopped.
    pub(super) async fn pre_hooks(&self, service: &ServiceName, spec: &ServiceSpec) -> Result<(), Halt> {
        for (i, hook) in spec.settings.hooks.pre.iter().enumerate() {
            self.say(format!("running pre hook {} of {service}", i + 1));
            let name = names::hook(self.operation_id(), service, i + 1);
            let act = Act::HookOnce { service: service.clone(), name: name.clone(), run: hook.run.clone(), timeout_s: hook.timeout_s };
            let done = self.step(Phase::StartNew, format!("hook:{service}:pre:{}", i + 1), act).await?;
            outcome(service, "pre", hook, name.as_str(), &done)?;
        }
        Ok(())
    }

    /// Runs the `post` hooks of every service that got a new container, in dependency order.
    pub(super) async fn post_hooks(&self) -> Result<(), Halt> {
        let renewed = |c: &&Change| matches!(c.action, Action::Create | Action::Update) && c.strategy != Strategy::RunOnce;
        let order: Vec<&Change> =
            self.plan.levels.iter().flatten().filter_map(|s| self.changes().find(|c| c.service == *s).filter(renewed)).collect();
        for change in order {
            let service = &change.service;
            let spec = self.spec(service)?;
            let Some(id) = self.created(&format!("create:{service}:1")) else { continue };
            for (i, hook) in spec.settings.hooks.post.iter().enumerate() {
                self.say(format!("running post hook {} of {service}", i + 1));
                let act = Act::HookExec { service: service.clone(), id: id.clone(), run: hook.run.clone(), timeout_s: hook.timeout_s };
                let done = self.step(Phase::Switch, format!("hook:{service}:post:{}", i + 1), act).await?;
                outcome(service, "post", hook, id.short(), &done)?;
            }
        }
        Ok(())
    }

    /// Runs the `pre` hooks of the stack, before any container of the release is made.
    pub(super) async fn stack_pre_hooks(&self) -> Result<(), Halt> {
        if self.changes().next().is_none() {
            return Ok(());
        }
        for (i, h) in self.plan.desired.settings.hooks.pre.iter().enumerate() {
            let service = &h.service;
            self.say(format!("running pre hook {} of the stack in {service}", i + 1));
            let name = names::hook(self.operation_id(), service, OF_STACK + i);
            let (run, timeout_s) = (h.hook.run.clone(), h.hook.timeout_s);
            let act = Act::HookOnce { service: service.clone(), name: name.clone(), run, timeout_s };
            let done = self.step(Phase::StartNew, self.stack_hook("pre", i + 1), act).await?;
            outcome(service, "stack's pre", &h.hook, name.as_str(), &done)?;
        }
        Ok(())
    }

    /// Runs the `post` hooks of the stack, once the release serves.
    pub(super) async fn stack_post_hooks(&self) -> Result<(), Halt> {
        if self.changes().next().is_none() {
            return Ok(());
        }
        for (i, h) in self.plan.desired.settings.hooks.post.iter().enumerate() {
            let service = &h.service;
            let id = self
                .stands_for(service)
                .await?
                .ok_or_else(|| failed(format!("service {service} has no container for a hook of the stack")))?;
            self.say(format!("running post hook {} of the stack in {service}", i + 1));
            let act = Act::HookExec { service: service.clone(), id: id.clone(), run: h.hook.run.clone(), timeout_s: h.hook.timeout_s };
            let done = self.step(Phase::Switch, self.stack_hook("post", i + 1), act).await?;
            outcome(service, "stack's post", &h.hook, id.short(), &done)?;
        }
        Ok(())
    }

    /// Journal key of a hook of the stack; no service has an empty name. Operations of older versions used the word, which may be a service's.
    fn stack_hook(&self, when: &str, number: usize) -> String {
        let before = format!("hook:stack:{when}:{number}");
        let a_service = self.plan.desired.services.keys().any(|s| s.as_str() == "stack");
        let known = !a_service && self.journal.lock().expect("no panic while held").contains_key(&before);
        if known { before } else { format!("hook::{when}:{number}") }
    }

    /// The container that stands for a service in this release: its new one, else the one that serves.
    pub(super) async fn stands_for(&self, service: &ServiceName) -> Result<Option<EngineName>, Halt> {
        if let Some(id) = self.created(&format!("create:{service}:1")).or_else(|| self.created(&format!("create:{service}:canary"))) {
            return Ok(Some(id));
        }
        let observed = self.observe().await?;
        Ok(planner::live(&observed, service).first().map(|c| c.id.clone()))
    }

    /// Makes, starts and awaits a one-off container, and removes it. Found again after a crash, it is awaited, not run twice.
    pub(super) async fn hook_once(&self, service: &ServiceName, name: &EngineName, run: &[String], timeout_s: u64) -> Result<Value, Fail> {
        let (engine, permit) = (&*self.exec.engine, &self.permit);
        let allowed = self.exec.request_facts(&self.plan, Some(service)).pulled(self.image_id(service).await?.as_str());
        self.judge(request::assert_command(run, &allowed))?;
        if self.made_before(name, true).await?.is_none() {
            let mut spec = self.render(service, 1, true, &[]).await?;
            spec.name = name.clone();
            spec.command = Some(run.to_vec());
            spec.entrypoint = Some(vec![]);
            spec.healthcheck = None;
            spec.labels.insert(labels::ROLE.into(), labels::ROLE_HOOK.into());
            self.create_judged(spec, allowed).await?;
        }
        let seen = engine.container(name).await?;
        if seen.is_none_or(|c| c.started_at.is_none()) {
            self.same_paths(name).await?;
            engine.start(permit, name).await?;
        }
        let start = Instant::now();
        let phase = self.operation().phase;
        let leaving = self.asked_to_leave(phase);
        tokio::pin!(leaving);
        let exit = loop {
            let seen = engine.container(name).await?.ok_or_else(|| Fail::Refused(format!("the container {name} of a hook is gone")))?;
            match seen.state {
                RunState::Exited | RunState::Dead => break Some(seen.exit_code),
                _ if start.elapsed() >= Duration::from_secs(timeout_s) => break None,
                _ => tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    // Not in the middle of a request: what it makes must be there for the undo to find.
                    _ = &mut leaving => return Ok(json!({"left": true})),
                },
            }
        };
        let query = LogQuery { tail: Some(LINES), since: None, max_bytes: OUTPUT };
        let logs: Vec<String> = engine.logs(name, &query).await?.into_iter().map(|l| l.text).collect();
        engine.remove_container(permit, name, true).await?;
        Ok(json!({"exit": exit, "output": logs.join("\n")}))
    }

    /// Runs a command in a new container.
    pub(super) async fn hook_exec(&self, service: &ServiceName, id: &EngineName, run: &[String], timeout_s: u64) -> Result<Value, Fail> {
        let allowed = self.exec.request_facts(&self.plan, Some(service));
        self.judge(request::assert_command(run, &allowed))?;
        let spec = ExecSpec { command: run.to_vec(), user: None, env: vec![], timeout: Duration::from_secs(timeout_s), max_output: OUTPUT };
        let done = self.exec.engine.exec(&self.permit, id, &spec).await?;
        Ok(json!({"exit": done.exit_code, "output": done.output}))
    }

    /// Removes the container of a hook that was interrupted.
    pub(super) async fn remove_hook(&self, name: &EngineName) -> Result<(), Fail> {
        if !self.is_mine(name).await? {
            return Ok(());
        }
        match self.exec.engine.remove_container(&self.permit, name, true).await {
            Ok(()) | Err(EngineError::NotFound { .. }) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

/// The recorded end of a hook as a halt, when it did not exit 0.
fn outcome(service: &ServiceName, which: &str, hook: &Hook, container: &str, done: &Value) -> Result<(), Halt> {
    let exit = done["exit"].as_i64();
    let why = match exit {
        Some(0) => return Ok(()),
        Some(126 | 127) => format!("cannot run (exit code {})", exit.unwrap_or(0)),
        Some(code) => format!("ended with exit code {code}"),
        None => format!("did not end within {} s", hook.timeout_s),
    };
    let reason = format!("its {which} hook `{}` {why}", probe::shortened(&hook.run.join(" ")));
    Err(Halt::Failed {
        message: format!("service {service}: {reason}"),
        evidence: vec![Evidence {
            service: service.to_string(),
            container: container.to_owned(),
            reason,
            exit_code: exit,
            oom_killed: false,
            probe_output: done["output"].as_str().filter(|o| !o.is_empty()).map(str::to_owned),
            logs: vec![],
        }],
    })
}
