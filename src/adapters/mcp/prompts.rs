//! Prompts as MCP shows them, and their text with the arguments filled in. Deliberately absent: loading the files (`app::rules`).

use crate::model::prompt::Prompt;
use rmcp::model::{self, GetPromptResult, JsonObject, PromptMessage, Role};
use serde_json::Value;

/// Most characters of one argument: it goes into a model's context.
const MAX_ARGUMENT: usize = 4_000;

/// The entry of `prompts/list`.
pub fn listed(prompt: &Prompt) -> model::Prompt {
    let argument = |a: &crate::model::prompt::PromptArgument| {
        model::PromptArgument::new(&a.name).with_description(&a.description).with_required(a.required)
    };
    let arguments = (!prompt.arguments.is_empty()).then(|| prompt.arguments.iter().map(argument).collect());
    model::Prompt::new(&prompt.name, Some(&prompt.description), arguments).with_title(&prompt.title)
}

/// The text of `prompts/get`. Each `{{name}}` becomes its argument once; what an argument contains is not expanded again.
///
/// # Errors
/// In words: unknown prompt (with those there are), unknown or missing argument, a value that is not text or too long.
pub fn filled(prompts: &[Prompt], name: &str, arguments: Option<&JsonObject>) -> Result<GetPromptResult, String> {
    let Some(prompt) = prompts.iter().find(|p| p.name == name) else {
        let names: Vec<&str> = prompts.iter().map(|p| p.name.as_str()).collect();
        return Err(format!("there is no prompt {:?}; there are: {}", name.chars().take(80).collect::<String>(), names.join(", ")));
    };
    let empty = JsonObject::new();
    let given = arguments.unwrap_or(&empty);
    if let Some(unknown) = given.keys().find(|k| !prompt.arguments.iter().any(|a| &a.name == *k)) {
        return Err(format!("prompt {name} has no argument {:?}", unknown.chars().take(80).collect::<String>()));
    }
    let value = |argument: &str| match given.get(argument) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) if s.chars().count() <= MAX_ARGUMENT => Ok(Some(s.as_str())),
        Some(Value::String(_)) => Err(format!("argument {argument} is longer than {MAX_ARGUMENT} characters")),
        Some(_) => Err(format!("argument {argument} must be text")),
    };
    for argument in &prompt.arguments {
        if value(&argument.name)?.is_none() && argument.required {
            return Err(format!("prompt {name} needs argument {}: {}", argument.name, argument.description));
        }
    }
    let mut text = String::with_capacity(prompt.body.len());
    let mut rest = prompt.body.as_str();
    while let Some((before, after)) = rest.split_once("{{") {
        text.push_str(before);
        let Some((key, tail)) = after.split_once("}}") else {
            text.push_str("{{");
            rest = after;
            break;
        };
        match prompt.arguments.iter().find(|a| a.name == key.trim()) {
            Some(argument) => text.push_str(value(&argument.name)?.unwrap_or("")),
            None => text.extend(["{{", key, "}}"]),
        }
        rest = tail;
    }
    text.push_str(rest);
    let mut result = GetPromptResult::new(vec![PromptMessage::new_text(Role::User, text)]);
    result.description = Some(prompt.description.clone());
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::prompt::PromptArgument;
    use serde_json::json;

    fn prompts() -> Vec<Prompt> {
        let argument = |name: &str, required| PromptArgument { name: name.into(), description: "what it means".into(), required };
        let body = "Deploy {{stack}} ({{ why }}); keep {{other}} and {{open";
        vec![Prompt {
            name: "deploy".into(),
            title: "Deploy".into(),
            description: "d".into(),
            arguments: vec![argument("stack", true), argument("why", false)],
            body: body.into(),
        }]
    }

    fn get(arguments: Value) -> Result<String, String> {
        let result = filled(&prompts(), "deploy", arguments.as_object())?;
        Ok(serde_json::to_value(&result.messages[0]).expect("serialises")["content"]["text"].as_str().expect("text").to_owned())
    }

    #[test]
    fn arguments_are_filled_in_once_and_never_expanded_again() {
        assert_eq!(get(json!({"stack": "{{why}}", "why": "x"})), Ok("Deploy {{why}} (x); keep {{other}} and {{open".into()));
    }

    #[test]
    fn faulty_arguments_are_named() {
        assert_eq!(get(json!({})), Err("prompt deploy needs argument stack: what it means".into()));
        assert_eq!(get(json!({"stack": 1})), Err("argument stack must be text".into()));
        assert_eq!(get(json!({"stack": "a", "x": "b"})), Err("prompt deploy has no argument \"x\"".into()));
        assert_eq!(filled(&prompts(), "nope", None).map(|_| ()), Err("there is no prompt \"nope\"; there are: deploy".into()));
    }
}
