//! `agents import`: an OSSA manifest becomes an agent file, checked together with the agents that are there, shown, and written only where no file is.

use crate::adapters::cli::{CliError, CliResult, Ended, Global, output};
use crate::app::rules;
use crate::config;
use crate::gate::ossa;
use crate::tools;
use clap::Args;
use serde_json::json;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// What to import, and where to.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// OSSA manifest (apiVersion: ossa/...).
    file: PathBuf,
    /// Only show what would be written.
    #[arg(long)]
    dry_run: bool,
    /// Directory of agent files; by default agents/ of the configuration.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

fn failed(problem: impl std::fmt::Display, hint: &str) -> CliError {
    CliError::Failed(problem.to_string(), hint.to_owned())
}

/// Runs `agents import`.
pub fn import(global: &Global, args: &ImportArgs) -> CliResult {
    let shown = args.file.display().to_string();
    let text = read(&args.file).map_err(|e| failed(format!("{shown}: {e}"), "name the manifest's file"))?;
    let config_dir = config::config_dir(global.config.as_deref());
    let faulty = |p: Vec<_>| failed(rules::in_words(&p), "mend the lines above, then import again");
    let (book, _) = rules::load(&config_dir).map_err(faulty)?;
    let agents = book.agents.keys().cloned().collect();
    let made = ossa::import(&shown, &text, &tools::gate_facts(), &book.policy, &agents).map_err(faulty)?;
    let dir = args.out.clone().unwrap_or_else(|| config_dir.join("agents"));
    let path = dir.join(format!("{}.md", made.name));
    let written = !args.dry_run;
    if written {
        if args.out.is_none() {
            joins(&dir)?;
            rules::load_with(&config_dir, Some((path.display().to_string(), made.text.clone()))).map_err(faulty)?;
        }
        place(&path, &made.text)?;
    }
    let value = json!({"agent": made.name, "path": path, "written": written, "manifest": made.text, "noted": made.noted, "not_understood": made.not_understood});
    let list =
        |title: &str, lines: &[String]| if lines.is_empty() { String::new() } else { format!("\n{title}:\n  {}", lines.join("\n  ")) };
    let done = if written {
        format!("written to {}; it is in force when a supervisor reads its configuration", path.display())
    } else {
        "nothing was written".into()
    };
    let text = format!("{}{}{}\n{done}", made.text, list("noted", &made.noted), list("not understood", &made.not_understood));
    output::reply(global.json, "", &value, &text);
    Ok(Ended::Done)
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::new(ErrorKind::InvalidInput, "not a regular file"));
    }
    file.take(ossa::MOST_BYTES as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}

/// A directory with one agent would stand for all: without agent files the shipped ones are in force.
fn joins(dir: &Path) -> Result<(), CliError> {
    let any = std::fs::read_dir(dir).is_ok_and(|d| d.flatten().any(|e| e.path().extension().is_some_and(|x| x == "md")));
    if any {
        return Ok(());
    }
    let problem = format!(
        "{} has no agent files, so the shipped agents are in force; a directory with only this one would replace them",
        dir.display()
    );
    Err(failed(problem, "run `dockwarden init --write` first, or name another directory with --out"))
}

/// Writes a file that is whole or not there, and never over another one.
fn place(path: &Path, text: &str) -> Result<(), CliError> {
    let hint = "choose a directory you may write to with --out";
    let dir = path.parent().unwrap_or_else(|| Path::new("."));
    let draft = dir.join(format!(".{}.{}.tmp", path.file_name().unwrap_or_default().to_string_lossy(), std::process::id()));
    let write = || {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        // A link fails where a name is taken; a rename would replace it.
        std::fs::hard_link(&draft, path)
    };
    let done = write();
    let removed = std::fs::remove_file(&draft);
    match done {
        Ok(()) => removed.map_err(|e| failed(format!("{}: {e}", draft.display()), "remove it")),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            Err(failed(format!("{} exists", path.display()), "remove or rename it first: an import never replaces a file"))
        }
        Err(e) => Err(failed(format!("{}: {e}", path.display()), hint)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "apiVersion: ossa/v0.4.0\nmetadata: {name: helper, description: Helps.}\nspec: {role: You help., access: {tier: tier_2_write_limited}, tools: [x]}\n";

    fn home() -> (tempfile::TempDir, Global) {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("m.yaml"), MANIFEST).expect("written");
        let global = Global { home: None, config: Some(dir.path().join("config")), agent: None, json: true };
        (dir, global)
    }

    fn run(global: &Global, dir: &Path, dry_run: bool, out: Option<PathBuf>) -> Result<(), String> {
        import(global, &ImportArgs { file: dir.join("m.yaml"), dry_run, out }).map(|_| ()).map_err(|e| e.to_string())
    }

    #[test]
    fn an_import_is_shown_then_written_once_and_never_over_a_file() {
        let (dir, global) = home();
        let out = dir.path().join("out");
        std::fs::create_dir(&out).expect("made");
        run(&global, dir.path(), true, Some(out.clone())).expect("shown");
        assert!(!out.join("helper.md").exists(), "a dry run writes nothing");
        run(&global, dir.path(), false, Some(out.clone())).expect("written");
        let first = std::fs::read_to_string(out.join("helper.md")).expect("there");
        assert!(first.contains("tier: tier_2_write_limited") && first.ends_with("You help.\n"), "{first}");
        std::fs::write(dir.path().join("m.yaml"), MANIFEST.replace("You help.", "Evil.")).expect("written");
        assert!(run(&global, dir.path(), false, Some(out.clone())).expect_err("refused").contains("helper.md exists"));
        assert_eq!(std::fs::read_to_string(out.join("helper.md")).expect("there"), first);
        assert_eq!(std::fs::read_dir(&out).expect("listed").count(), 1, "no draft stays");
    }

    #[test]
    fn an_import_joins_the_agents_that_are_there_and_does_not_replace_the_shipped_ones() {
        let (dir, global) = home();
        let agents = dir.path().join("config/agents");
        assert!(run(&global, dir.path(), false, None).expect_err("refused").contains("would replace them"));
        std::fs::create_dir_all(&agents).expect("made");
        for (name, text) in rules::AGENTS {
            std::fs::write(agents.join(name), text).expect("written");
        }
        run(&global, dir.path(), false, None).expect("written");
        let (book, _) = rules::load(&dir.path().join("config")).expect("loads");
        assert!(book.agents.contains_key("helper") && book.agents.contains_key("deployer"));
    }
}
