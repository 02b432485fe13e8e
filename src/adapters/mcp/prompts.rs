//! Prompts as MCP shows them. Deliberately absent: loading the files (`app::rules`) and filling in the arguments (`gate::prompt`).

use crate::gate::prompt::render;
use crate::model::prompt::Prompt;
use rmcp::model::{self, GetPromptResult, JsonObject, PromptMessage, Role};
use serde_json::Value;
use std::collections::BTreeMap;

/// The entry of `prompts/list`.
pub fn listed(prompt: &Prompt) -> model::Prompt {
    let argument = |a: &crate::model::prompt::PromptArgument| {
        model::PromptArgument::new(&a.name).with_description(&a.description).with_required(a.required)
    };
    let arguments = (!prompt.arguments.is_empty()).then(|| prompt.arguments.iter().map(argument).collect());
    model::Prompt::new(&prompt.name, Some(&prompt.description), arguments).with_title(&prompt.title)
}

/// The answer of `prompts/get`.
///
/// # Errors
/// In words: unknown prompt (with those there are), unknown or missing argument, a value that is not text or too long.
pub fn filled(prompts: &[Prompt], name: &str, arguments: Option<&JsonObject>) -> Result<GetPromptResult, String> {
    let prompts = || prompts.iter().filter(|p| p.steps.is_empty());
    let Some(prompt) = prompts().find(|p| p.name == name) else {
        let names: Vec<&str> = prompts().map(|p| p.name.as_str()).collect();
        return Err(format!("there is no prompt {:?}; there are: {}", name.chars().take(80).collect::<String>(), names.join(", ")));
    };
    let mut given = BTreeMap::new();
    for (argument, value) in arguments.into_iter().flatten() {
        match value {
            Value::Null => {}
            Value::String(text) => {
                given.insert(argument.clone(), text.clone());
            }
            Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                return Err(format!("argument {:?} must be text", argument.chars().take(80).collect::<String>()));
            }
        }
    }
    let text = render(prompt, &given).map_err(|e| e.to_string())?;
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
        let body = "Deploy {{stack}} ({{ why }}) and {{open";
        vec![Prompt {
            name: "deploy".into(),
            title: "Deploy".into(),
            description: "d".into(),
            arguments: vec![argument("stack", true), argument("why", false)],
            body: body.into(),
            steps: vec![],
            retry: Default::default(),
        }]
    }

    fn get(arguments: Value) -> Result<String, String> {
        let result = filled(&prompts(), "deploy", arguments.as_object())?;
        Ok(serde_json::to_value(&result.messages[0]).expect("serialises")["content"]["text"].as_str().expect("text").to_owned())
    }

    #[test]
    fn arguments_are_filled_in_once_and_never_expanded_again() {
        assert_eq!(get(json!({"stack": "{{why}}", "why": "x"})), Ok("Deploy {{why}} (x) and {{open".into()));
    }

    #[test]
    fn faulty_arguments_are_named() {
        assert_eq!(get(json!({})), Err("prompt \"deploy\" needs the argument \"stack\": what it means".into()));
        assert_eq!(get(json!({"stack": 1})), Err("argument \"stack\" must be text".into()));
        assert_eq!(get(json!({"stack": "a", "x": "b"})), Err("prompt \"deploy\" has no argument \"x\"; it has: stack, why".into()));
        assert_eq!(filled(&prompts(), "nope", None).map(|_| ()), Err("there is no prompt \"nope\"; there are: deploy".into()));
    }
}
