//! The supervisor as a systemd service. Deliberately absent: creating users; the unit runs as root by default because the engine's socket
//! is root's equal, and says how to choose another user.

use super::{CliError, CliResult, Ended, Global, output};
use crate::config::UNIT;
use clap::{Args, Subcommand};
use serde_json::json;
use std::path::Path;
use std::process::Command;

/// Run the supervisor as a systemd service.
#[derive(Debug, Args)]
pub struct ServiceArgs {
    /// What to do.
    #[command(subcommand)]
    command: ServiceCommand,
}

/// What to do with the service.
#[derive(Debug, Subcommand)]
enum ServiceCommand {
    /// Write the unit, enable and start it.
    Install,
    /// Stop and remove the unit; state and configuration stay.
    Uninstall,
    /// Print the unit.
    Print,
}

/// A path as a unit file takes it.
fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display().to_string().replace('\\', r"\\").replace('"', "\\\"").replace('%', "%%"))
}

/// The unit. Hardened as far as reading compose projects anywhere under /srv, /opt and /home allows.
fn unit(binary: &Path, home: &Path, config: &Path) -> String {
    format!(
        "[Unit]\n\
         Description=dockwarden: supervisor of Docker compose stacks for AI agents\n\
         Wants=network-online.target\n\
         After=network-online.target docker.service\n\
         \n\
         [Service]\n\
         Type=exec\n\
         ExecStart={binary} serve --home {home} --config {config}\n\
         Restart=always\n\
         RestartSec=2\n\
         TimeoutStopSec=30\n\
         KillMode=mixed\n\
         UMask=0077\n\
         # Hardening. The engine's socket remains: whoever holds it holds the host.\n\
         NoNewPrivileges=yes\n\
         ProtectSystem=strict\n\
         ProtectHome=read-only\n\
         ReadWritePaths={home}\n\
         PrivateTmp=yes\n\
         PrivateDevices=yes\n\
         ProtectKernelTunables=yes\n\
         ProtectKernelModules=yes\n\
         ProtectKernelLogs=yes\n\
         ProtectControlGroups=yes\n\
         ProtectClock=yes\n\
         ProtectHostname=yes\n\
         RestrictNamespaces=yes\n\
         RestrictRealtime=yes\n\
         RestrictSUIDSGID=yes\n\
         LockPersonality=yes\n\
         MemoryDenyWriteExecute=yes\n\
         RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6\n\
         SystemCallArchitectures=native\n\
         SystemCallFilter=@system-service\n\
         # Reading the files of stacks and volumes of any owner needs these two, and nothing else.\n\
         CapabilityBoundingSet=CAP_DAC_READ_SEARCH CAP_DAC_OVERRIDE\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        binary = quoted(binary),
        home = quoted(home),
        config = quoted(config),
    )
}

/// Runs `service`.
pub fn service(global: &Global, args: ServiceArgs) -> CliResult {
    let binary = std::env::current_exe().map_err(|e| CliError::Failed(format!("this binary's path: {e}"), "run it by its path".into()))?;
    // A service has no user's home: without flags it lives where the system keeps such things.
    let home = global.home.clone().unwrap_or_else(|| "/var/lib/dockwarden".into());
    let config = global.config.clone().unwrap_or_else(|| "/etc/dockwarden".into());
    let text = unit(&binary, &home, &config);
    match args.command {
        ServiceCommand::Print => output::reply(global.json, "", &json!({"path": UNIT, "unit": text}), &text),
        ServiceCommand::Install => {
            for (dir, what) in [(&home, "state"), (&config, "configuration")] {
                std::fs::create_dir_all(dir).map_err(|e| needs_root(&format!("{what} directory {}: {e}", dir.display())))?;
            }
            std::fs::write(UNIT, &text).map_err(|e| needs_root(&format!("{UNIT}: {e}")))?;
            systemctl(&["daemon-reload"])?;
            systemctl(&["enable", "--now", "dockwarden.service"])?;
            let text = format!("{UNIT} is enabled and started; every command finds it at {}", home.display());
            output::reply(global.json, "", &json!({"path": UNIT, "state": "started", "home": home, "config": config}), &text);
        }
        ServiceCommand::Uninstall => {
            systemctl(&["disable", "--now", "dockwarden.service"])?;
            std::fs::remove_file(UNIT).map_err(|e| needs_root(&format!("{UNIT}: {e}")))?;
            systemctl(&["daemon-reload"])?;
            let text = format!("removed {UNIT}; {} and {} stay", home.display(), config.display());
            output::reply(global.json, "", &json!({"path": UNIT, "state": "removed", "home": home, "config": config}), &text);
        }
    }
    Ok(Ended::Done)
}

fn needs_root(what: &str) -> CliError {
    CliError::Failed(what.to_owned(), "run it as root; `dockwarden service print` shows the unit without writing it".into())
}

fn systemctl(args: &[&str]) -> Result<(), CliError> {
    let hint = || "does this host run systemd? otherwise start `dockwarden serve` by what starts services here".to_owned();
    let status = Command::new("systemctl").args(args).status().map_err(|e| CliError::Failed(format!("systemctl: {e}"), hint()))?;
    if status.success() { Ok(()) } else { Err(CliError::Failed(format!("systemctl {} failed: {status}", args.join(" ")), hint())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_with_spaces_quotes_and_percent_signs_stay_one_argument() {
        let text = unit(Path::new("/opt/my app/dockwarden"), Path::new("/var/lib/100%"), Path::new("/etc/a\"b"));
        assert!(text.contains("ExecStart=\"/opt/my app/dockwarden\" serve --home \"/var/lib/100%%\" --config \"/etc/a\\\"b\"\n"), "{text}");
        assert!(text.lines().all(|l| !l.starts_with(' ')), "a unit's lines begin at the margin");
        for home in ["/var/lib/100%", "/srv/a \"b\" \\c"] {
            let text = unit(Path::new("/opt/my app/dockwarden"), Path::new(home), Path::new("/etc/dockwarden"));
            assert_eq!(crate::config::home_of_unit(&text).as_deref(), Some(Path::new(home)), "commands find the service's home");
        }
        assert_eq!(crate::config::home_of_unit("[Service]\nExecStart=/bin/true --home relative\n"), None);
    }
}
