//! The OpenAPI document: what the parts say of themselves, in one. Made once, when the door opens; the same for everybody.

use super::Part;
use serde_json::{Map, Value, json};
use utoipa::OpenApi as _;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "dockwarden",
        description = "Docker compose stacks under a policy. A token of an agent (`dockwarden agents token`) makes that agent's calls; a token of an operator (`dockwarden operators token`) reads, and decides about approvals and the freeze.",
        version = env!("CARGO_PKG_VERSION"),
        license(name = "Apache-2.0")
    ),
    components(schemas(Problem, ProblemDetail)),
    security(("bearer" = []))
)]
struct Head;

/// Why it was not done.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes what `Failure` writes")]
pub(super) struct Problem {
    error: ProblemDetail,
}

/// Cause and what to do next.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes `CallError`")]
struct ProblemDetail {
    /// Stable, e.g. `denied`.
    code: String,
    /// What is wrong.
    message: String,
    /// What to do next.
    hint: String,
    /// Field concerned.
    field: Option<String>,
    /// Rules that matched.
    #[schema(value_type = Option<Vec<Object>>)]
    findings: Option<Vec<Value>>,
    /// Anything structured that helps.
    #[schema(value_type = Option<Object>)]
    data: Option<Value>,
}

/// The whole document.
pub(super) fn document(parts: &[Part]) -> Value {
    let mut head = Head::openapi();
    for part in parts {
        head.merge(part.docs.clone());
    }
    let mut document = serde_json::to_value(head).expect("utoipa's document is JSON");
    let scheme = json!({"type": "http", "scheme": "bearer", "description": "a token of an agent or of an operator"});
    document["components"]["securitySchemes"] = json!({"bearer": scheme});
    let mut paths: Map<String, Value> = document["paths"].as_object().cloned().unwrap_or_default();
    paths.extend(parts.iter().flat_map(|part| part.paths.clone()));
    let mut sorted: Vec<_> = paths.into_iter().collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    document["paths"] = sorted.into_iter().collect::<Map<_, _>>().into();
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Paths under `/api` that the door's files route, as they are written there.
    fn routes() -> Vec<String> {
        let mut found = vec![];
        let mut dirs = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src/adapters/http"))];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).expect("sources") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    dirs.push(path);
                } else if path.extension().is_some_and(|x| x == "rs") {
                    let text = std::fs::read_to_string(path).expect("UTF-8");
                    let paths = text.split(".route(\"").skip(1).map(|rest| rest.split('"').next().expect("closed").to_owned());
                    found.extend(paths.filter(|p| p.starts_with("/api/")));
                }
            }
        }
        assert!(found.iter().any(|p| p == "/api/tasks") && found.iter().any(|p| p == "/api/freeze"), "{found:?}");
        // The document itself, what probes ask, and what is described tool by tool.
        found.retain(|p| !["/api/openapi.json", "/api/health/deep", "/api/tools/{tool}"].contains(&p.as_str()));
        found
    }

    #[test]
    fn the_document_describes_every_route_and_every_reference_leads_somewhere() {
        let parts: Vec<Part> = super::super::PARTS.iter().map(|part| part()).collect();
        let document = document(&parts);
        assert_eq!(document["openapi"].as_str().map(|v| v.starts_with("3.1")), Some(true));
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().expect("closed")) {
            assert!(document.pointer(reference).is_some(), "{reference} leads nowhere");
        }
        for path in routes() {
            assert!(document["paths"][&path].is_object(), "{path} is a route and is not described");
        }
        let mut ids = std::collections::BTreeSet::new();
        for (path, methods) in document["paths"].as_object().expect("paths") {
            for (method, about) in methods.as_object().expect("methods") {
                assert!(about["summary"].is_string() && about["responses"].is_object(), "{method} {path}: {about:#}");
                assert!(ids.insert(about["operationId"].as_str().expect("an id").to_owned()), "{method} {path}: its id is not its own");
            }
        }
        insta::assert_snapshot!(ids.into_iter().collect::<Vec<_>>().join("\n"));
    }
}
