//! `prompts/<name>.md`: a prompt an MCP client offers its user, as front matter (name, title, description, arguments) and a body with
//! `{{argument}}` placeholders. Strict like agents. Deliberately absent: reading files, and any logic inside a prompt.

use super::load::LoadProblem;
use super::manifest::{front_matter, stem, yaml_line};
use super::runbook;
use crate::model::prompt::{Prompt, PromptArgument, Retry, Step};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Longest value of an argument in characters: a prompt is text for a model, not a way to carry files.
const MAX_VALUE: usize = 4000;

/// Arguments of a `render` that do not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    /// A required argument is missing or empty.
    #[error("prompt {prompt:?} needs the argument {argument:?}: {description}")]
    Missing {
        /// Prompt.
        prompt: String,
        /// Argument.
        argument: String,
        /// What to give.
        description: String,
    },
    /// An argument it does not have.
    #[error("prompt {prompt:?} has no argument {argument:?}; it has: {known}")]
    Unknown {
        /// Prompt.
        prompt: String,
        /// Argument, cut to 80 characters.
        argument: String,
        /// Names it has.
        known: String,
    },
    /// A value longer than 4000 characters.
    #[error("argument {argument:?} is longer than {MAX_VALUE} characters: give a name or a summary")]
    TooLong {
        /// Argument.
        argument: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Front {
    name: String,
    title: String,
    description: String,
    #[serde(default)]
    arguments: Vec<PromptArgument>,
    #[serde(default)]
    steps: Vec<Step>,
    #[serde(default)]
    retry: Retry,
}

/// Parses one prompt file.
///
/// # Errors
/// Every problem found; a front matter that does not parse gives the first one only.
pub fn parse_prompt(file: &str, text: &str) -> Result<Prompt, Vec<LoadProblem>> {
    let problem = |line, problem: String, hint: &str| LoadProblem { file: file.into(), line, problem, hint: hint.into() };
    let (front, body) = front_matter(text)
        .map_err(|e| vec![problem(Some(1), e.into(), "a prompt file is `---`, YAML front matter, `---`, and the text")])?;
    let front: Front = yaml_serde::from_str(front).map_err(|e| {
        let hint = "keys: name, title, description, arguments: [{name, description, required}], retry: {tries, pause_s}, steps: [{id, tool, input, when, each, continue_on_error}]";
        vec![problem(yaml_line(&e), e.to_string(), hint)]
    })?;
    let prompt = Prompt {
        name: front.name,
        title: front.title,
        description: front.description,
        arguments: front.arguments,
        body: body.into(),
        steps: front.steps,
        retry: front.retry,
    };
    let mut problems = runbook::check(&prompt, file);
    if prompt.retry.tries == Some(0) {
        problems.push(problem(None, "retry.tries is 0".into(), "1 or more: a task is tried at least once"));
    }
    if prompt.name != stem(file) {
        problems.push(problem(
            Some(2),
            format!("the file is called {:?} and the prompt {:?}", stem(file), prompt.name),
            "name the file after the prompt",
        ));
    }
    let names: Vec<&str> = prompt.arguments.iter().map(|a| a.name.as_str()).collect();
    for (i, name) in names.iter().enumerate() {
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
            problems.push(problem(None, format!("argument name {name:?} is not valid"), "lower-case letters, digits and '_'"));
        }
        if names[..i].contains(name) {
            problems.push(problem(None, format!("argument {name:?} is there twice"), "keep one"));
        }
        if !prompt.body.contains(&format!("{{{{{name}}}}}")) && !runbook::uses(&prompt.steps, name) {
            problems.push(problem(
                None,
                format!("argument {name:?} is never used"),
                "write {{name}} where it belongs, or take the argument out",
            ));
        }
    }
    let first = text.lines().count() - body.lines().count();
    for (i, line) in prompt.body.lines().enumerate() {
        for piece in pieces(line) {
            if let Piece::Argument(name) = piece
                && !names.contains(&name)
                && !runbook::names_step(&prompt.steps, name)
            {
                let hint = format!("arguments are: {}", names.join(", "));
                problems.push(problem(Some(first + i + 1), format!("placeholder {name:?} is no argument of the prompt"), &hint));
            }
        }
    }
    if problems.is_empty() { Ok(prompt) } else { Err(problems) }
}

/// The text of a prompt with the arguments put in. A value is never looked at for placeholders again; an optional argument that is not given
/// becomes `(not given)`.
///
/// # Errors
/// `PromptError` for a missing, unknown or overlong argument.
pub fn render(prompt: &Prompt, given: &BTreeMap<String, String>) -> Result<String, PromptError> {
    for (name, value) in given {
        if !prompt.arguments.iter().any(|a| a.name == *name) {
            let known = prompt.arguments.iter().map(|a| a.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(PromptError::Unknown { prompt: prompt.name.clone(), argument: name.chars().take(80).collect(), known });
        }
        if value.chars().count() > MAX_VALUE {
            return Err(PromptError::TooLong { argument: name.clone() });
        }
    }
    for a in prompt.arguments.iter().filter(|a| a.required) {
        if given.get(&a.name).is_none_or(|v| v.trim().is_empty()) {
            return Err(PromptError::Missing { prompt: prompt.name.clone(), argument: a.name.clone(), description: a.description.clone() });
        }
    }
    let value = |name: &str| given.get(name).map(String::as_str).filter(|v| !v.trim().is_empty()).unwrap_or("(not given)");
    let put = |p: Piece<'_>| match p {
        Piece::Text(t) => t.to_owned(),
        Piece::Argument(name) => value(name).to_owned(),
    };
    Ok(pieces(&prompt.body).into_iter().map(put).collect())
}

enum Piece<'a> {
    Text(&'a str),
    Argument(&'a str),
}

/// Splits a text at its placeholders; `{{` without `}}` is text.
fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let Some((name, tail)) = after.split_once("}}") else { break };
        out.push(Piece::Text(before));
        out.push(Piece::Argument(name.trim()));
        rest = tail;
    }
    out.push(Piece::Text(rest));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "---\nname: hello\ntitle: Hello\ndescription: Greets.\narguments:\n  - {name: who, description: A name, required: true}\n  - {name: why, description: A reason}\n---\n\nHello {{who}},\nbecause {{why}}.\n";

    fn given(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_value_is_put_in_once_and_never_expanded_again() {
        let prompt = parse_prompt("prompts/hello.md", TEXT).unwrap();
        assert_eq!(render(&prompt, &given(&[("who", "{{why}}")])).unwrap(), "Hello {{why}},\nbecause (not given).");
    }

    #[test]
    fn missing_unknown_and_overlong_arguments_are_told() {
        let prompt = parse_prompt("hello.md", TEXT).unwrap();
        let missing = PromptError::Missing { prompt: "hello".into(), argument: "who".into(), description: "A name".into() };
        assert_eq!(render(&prompt, &given(&[("who", " ")])), Err(missing));
        let unknown = PromptError::Unknown { prompt: "hello".into(), argument: "whom".into(), known: "who, why".into() };
        assert_eq!(render(&prompt, &given(&[("whom", "x")])), Err(unknown));
        assert_eq!(render(&prompt, &given(&[("who", &"x".repeat(4001))])), Err(PromptError::TooLong { argument: "who".into() }));
    }

    #[test]
    fn placeholders_without_argument_and_arguments_without_placeholder_are_errors() {
        let text = TEXT.replace("{{why}}", "{{wy}}");
        let problems: Vec<String> = parse_prompt("hello.md", &text).unwrap_err().iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            [
                "hello.md: argument \"why\" is never used (write {{name}} where it belongs, or take the argument out)",
                "hello.md:11: placeholder \"wy\" is no argument of the prompt (arguments are: who, why)",
            ]
        );
        assert!(parse_prompt("other.md", TEXT).is_err());
    }

    #[test]
    fn the_shipped_prompts_load() {
        let shipped = [
            ("deploy.md", include_str!("../../prompts/deploy.md")),
            ("rollback.md", include_str!("../../prompts/rollback.md")),
            ("diagnose-incident.md", include_str!("../../prompts/diagnose-incident.md")),
            ("backup-drill.md", include_str!("../../prompts/backup-drill.md")),
            ("optimize-deployment.md", include_str!("../../prompts/optimize-deployment.md")),
            ("ci-cd.md", include_str!("../../prompts/ci-cd.md")),
        ];
        for (file, text) in shipped {
            let prompt = parse_prompt(file, text).unwrap_or_else(|p| panic!("{p:?}"));
            let all = prompt.arguments.iter().map(|a| (a.name.clone(), "x".to_owned())).collect();
            assert!(!render(&prompt, &all).unwrap().contains("{{"), "{file}");
        }
    }
}
