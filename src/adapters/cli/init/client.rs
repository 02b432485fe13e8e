//! `init --client`: writes the configuration of an MCP client, beside what is in it already, and shows the difference first.
//! Deliberately absent: clients' global settings; a project's file is reviewed with the project.

use super::super::{CliError, CliResult, Ended, Global, output, terminal};
use super::{diff, failed};
use clap::ValueEnum;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Clients whose configuration is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Client {
    /// `.mcp.json`
    Claude,
    /// `.vscode/mcp.json`
    Vscode,
    /// `.cursor/mcp.json`
    Cursor,
}

impl Client {
    fn file(self) -> &'static str {
        match self {
            Self::Claude => ".mcp.json",
            Self::Vscode => ".vscode/mcp.json",
            Self::Cursor => ".cursor/mcp.json",
        }
    }
    fn key(self) -> &'static str {
        match self {
            Self::Claude | Self::Cursor => "mcpServers",
            Self::Vscode => "servers",
        }
    }
}

/// What the client shall start.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// Binary, on the machine where it runs.
    pub binary: String,
    /// Agent.
    pub agent: String,
    /// Machine, when it is another one.
    pub host: Option<String>,
    /// Environment the bridge needs to find home and configuration.
    pub env: Vec<(String, String)>,
}

impl Server {
    /// The name the client shows: several servers attached to one client are told apart by their host.
    fn name(&self) -> String {
        self.host.as_ref().map_or_else(|| "dockwarden".into(), |h| format!("dockwarden-{}", h.rsplit('@').next().unwrap_or(h)))
    }

    fn entry(&self, client: Client) -> Value {
        let mut args = vec!["mcp".to_owned(), "--agent".into(), self.agent.clone()];
        let command = match &self.host {
            None => self.binary.clone(),
            Some(host) => {
                // `-T`: no terminal, so that nothing is added to the protocol's lines.
                args.splice(0..0, ["-T".into(), host.clone(), self.binary.clone()]);
                "ssh".into()
            }
        };
        let mut entry = Map::new();
        if client == Client::Vscode {
            entry.insert("type".into(), "stdio".into());
        }
        entry.insert("command".into(), command.into());
        entry.insert("args".into(), args.into());
        if !self.env.is_empty() {
            entry.insert("env".into(), self.env.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect::<Map<_, _>>().into());
        }
        entry.into()
    }
}

/// The file's text with our server in it; everything else stays as it is.
///
/// # Errors
/// In words, when the file is not plain JSON or has something else where the servers belong.
fn merged(text: &str, client: Client, server: &Server) -> Result<String, String> {
    let mut root: Value = if text.trim().is_empty() { json!({}) } else { serde_json::from_str(text).map_err(|e| e.to_string())? };
    let servers = root
        .as_object_mut()
        .ok_or("it is not an object")?
        .entry(client.key())
        .or_insert_with(|| json!({}))
        .as_object_mut()
        .ok_or_else(|| format!("{} is not an object", client.key()))?;
    servers.insert(server.name(), server.entry(client));
    serde_json::to_string_pretty(&root).map(|t| t + "\n").map_err(|e| e.to_string())
}

/// Where this user's home and configuration are, when a client started without this shell's environment would look elsewhere.
fn environment(global: &Global) -> Vec<(String, String)> {
    let given = [("DOCKWARDEN_HOME", &global.home), ("DOCKWARDEN_CONFIG", &global.config)];
    let absolute = |p: &PathBuf| std::path::absolute(p).unwrap_or_else(|_| p.clone()).display().to_string();
    given.into_iter().filter_map(|(name, path)| path.as_ref().map(|p| (name.to_owned(), absolute(p)))).collect()
}

/// The agent a client is given: the one asked for, else the one that only reads, whatever the command line itself acts as.
fn agent(global: &Global) -> String {
    global.agent.clone().unwrap_or_else(|| "observer".into())
}

/// Runs `init --client`.
pub fn run(global: &Global, client: Client, host: Option<String>, dir: &Path, write: bool) -> CliResult {
    if let Some(bad) = host.as_deref().filter(|h| h.is_empty() || h.starts_with('-') || h.contains(char::is_whitespace)) {
        return Err(CliError::Usage(format!("{bad:?} is no host"), "name it as ssh takes it: HOST or USER@HOST".into()));
    }
    let binary = match &host {
        Some(_) => "dockwarden".to_owned(),
        None => std::env::current_exe().map_err(|e| failed(Path::new("dockwarden"), e))?.display().to_string(),
    };
    let env = if host.is_some() { vec![] } else { environment(global) };
    let server = Server { binary, agent: agent(global), host, env };
    let path = dir.join(client.file());
    let before = match std::fs::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        text => text.map_err(|e| failed(&path, e))?,
    };
    let after = merged(&before, client, &server).map_err(|cause| {
        let entry = json!({ server.name(): server.entry(client) });
        CliError::Failed(
            format!("{} cannot be edited: {cause}", path.display()),
            format!("is it JSON with comments? Add this under {:?} by hand: {entry}", client.key()),
        )
    })?;
    if global.json {
        output::json(&json!({"path": path, "changes": before != after, "text": after, "written": write && before != after}));
    }
    if before == after {
        if !global.json {
            output::line(format!("{}: nothing to change", path.display()));
        }
        return Ok(Ended::Done);
    }
    if !global.json {
        output::line(format!("--- {}\n{}", path.display(), diff(&before, &after)));
    }
    let yes = write
        || !global.json && terminal::ask("Write it? [y/N]").is_ok_and(|a| a.eq_ignore_ascii_case("y") || a.eq_ignore_ascii_case("yes"));
    if !yes {
        eprintln!("nothing was written; add --write to write it");
        return Ok(Ended::Done);
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|e| failed(parent, e))?;
    }
    let beside = path.with_extension("new");
    std::fs::write(&beside, &after).and_then(|()| std::fs::rename(&beside, &path)).map_err(|e| failed(&path, e))?;
    eprintln!("wrote {}; the client shows the server when it reads its configuration again", path.display());
    Ok(Ended::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(host: Option<&str>) -> Server {
        Server { binary: "/usr/bin/dockwarden".into(), agent: "observer".into(), host: host.map(str::to_owned), env: vec![] }
    }

    #[test]
    fn a_client_nobody_chose_an_agent_for_only_reads() {
        let global = |agent: Option<&str>| Global { home: None, config: None, agent: agent.map(str::to_owned), json: false };
        assert_eq!((agent(&global(None)).as_str(), agent(&global(Some("stack-keeper"))).as_str()), ("observer", "stack-keeper"));
    }

    #[test]
    fn a_new_file_has_the_server_and_nothing_else() {
        let text = merged("", Client::Vscode, &server(None)).expect("made");
        let value: Value = serde_json::from_str(&text).expect("json");
        let entry = json!({"type": "stdio", "command": "/usr/bin/dockwarden", "args": ["mcp", "--agent", "observer"]});
        assert_eq!(value, json!({"servers": {"dockwarden": entry}}));
        assert_eq!(merged(&text, Client::Vscode, &server(None)), Ok(text), "doing it again changes nothing");
    }

    #[test]
    fn what_is_there_stays_in_its_place() {
        let mine = r#"{"other": 1, "mcpServers": {"a": {"command": "x"}}}"#;
        let text = merged(mine, Client::Claude, &server(Some("root@box.example"))).expect("made");
        let value: Value = serde_json::from_str(&text).expect("json");
        assert_eq!((&value["other"], &value["mcpServers"]["a"]), (&json!(1), &json!({"command": "x"})));
        let args = json!(["-T", "root@box.example", "/usr/bin/dockwarden", "mcp", "--agent", "observer"]);
        assert_eq!(value["mcpServers"]["dockwarden-box.example"], json!({"command": "ssh", "args": args}));
    }

    #[test]
    fn a_file_that_is_no_plain_json_is_left_alone() {
        assert!(merged("// mine\n{}", Client::Cursor, &server(None)).is_err());
        assert!(merged("[]", Client::Cursor, &server(None)).is_err());
        assert!(merged(r#"{"mcpServers": 1}"#, Client::Cursor, &server(None)).is_err());
    }
}
