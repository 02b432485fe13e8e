//! Questions to the person at the terminal. A passphrase is read from /dev/tty alone: an argument or variable could be set by whoever
//! runs the command, and coding agents run commands.

use super::CliError;
use crate::adapters::socket::wire::{Admin, Credential};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};

fn tty() -> Result<File, CliError> {
    std::fs::OpenOptions::new().read(true).write(true).open("/dev/tty").map_err(|e| {
        let hint = "run this at a terminal of your own: what decides is typed there, never passed by argument, variable or pipe";
        CliError::Failed(format!("there is no terminal to ask at: {e}"), hint.into())
    })
}

fn failed(e: impl std::fmt::Display) -> CliError {
    CliError::Failed(format!("the terminal: {e}"), "try again at another terminal".into())
}

fn read_line(tty: &File) -> Result<String, CliError> {
    let mut text = String::new();
    BufReader::new(tty).read_line(&mut text).map_err(failed)?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// Asks and reads a line.
///
/// # Errors
/// No terminal.
pub fn ask(question: &str) -> Result<String, CliError> {
    let mut tty = tty()?;
    write!(tty, "{question} ").map_err(failed)?;
    read_line(&tty)
}

/// Asks and reads a line without showing it.
///
/// # Errors
/// No terminal.
pub fn secret(question: &str) -> Result<String, CliError> {
    let mut tty = tty()?;
    let before = tcgetattr(&tty).map_err(failed)?;
    let mut quiet = before.clone();
    quiet.local_modes.remove(LocalModes::ECHO);
    quiet.local_modes.insert(LocalModes::ECHONL);
    // Before the question: this throws away what was typed so far, and an answer to the question must not be among it.
    tcsetattr(&tty, OptionalActions::Flush, &quiet).map_err(failed)?;
    let answer = write!(tty, "{question} ").map_err(failed).and_then(|()| read_line(&tty));
    tcsetattr(&tty, OptionalActions::Drain, &before).map_err(failed)?;
    answer
}

/// An operator's name (asked for when not given) and passphrase.
///
/// # Errors
/// No terminal.
pub fn credential(operator: Option<String>) -> Result<Credential, CliError> {
    let operator = match operator {
        Some(name) => name,
        None => ask("Operator:")?,
    };
    let passphrase = secret(&format!("Passphrase of {operator}:"))?;
    Ok(Credential { operator, passphrase })
}

/// A credential when the supervisor knows any operator; `None` on a fresh home.
///
/// # Errors
/// No terminal, no supervisor.
pub async fn credential_if_any(global: &super::Global, operator: Option<String>) -> Result<Option<Credential>, CliError> {
    let (value, _) = super::reach::admin(global, Admin::Operators).await?;
    let any = value["operators"].as_array().is_some_and(|o| !o.is_empty());
    if any { credential(operator).map(Some) } else { Ok(None) }
}
