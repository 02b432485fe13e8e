//! Who asks: an agent or an operator, by bearer token. An operator reads as the agent of the command line and changes nothing that way; what
//! operators decide has requests of its own.

use super::{Answer, Failure, answer};
use crate::adapters::http::strangers;
use crate::adapters::mcp::http::{base_of, bearer, identity, unauthorized};
use crate::adapters::{Doors, client_text, people};
use crate::call::error::ErrorCode;
use crate::call::{CallError, Door, Principal};
use crate::model::ids::AgentName;
use crate::store::token::TokenId;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// How an operator's token begins; an agent's begins otherwise.
pub const OPERATOR_PREFIX: &str = "dwo_";

/// Whose token a request showed.
#[derive(Debug, Clone, PartialEq)]
pub enum Who {
    /// An agent's.
    Agent {
        /// Agent.
        agent: AgentName,
        /// Token.
        token: TokenId,
        /// What the client says of itself.
        client: Option<String>,
    },
    /// An operator's.
    Operator {
        /// Operator.
        name: String,
        /// Token.
        token: TokenId,
    },
}

impl Who {
    /// The principal of a tool call.
    ///
    /// # Errors
    /// When the agent of the command line, which operators read as, has no valid name.
    pub fn principal(&self, doors: &Doors) -> Result<Principal, CallError> {
        let (agent, token, client, read_only) = match self {
            Self::Agent { agent, token, client } => (agent.clone(), *token, client.clone(), false),
            Self::Operator { name, token } => {
                let agent = doors.house.config.settings.cli_agent.as_deref().unwrap_or(crate::adapters::cli::DEFAULT_AGENT);
                let hint = "correct cli_agent in dockwarden.toml";
                let agent = AgentName::new(agent).map_err(|e| CallError::new(ErrorCode::Internal, e.to_string(), hint))?;
                (agent, *token, Some(format!("operator {name}")), true)
            }
        };
        Ok(Principal { agent, door: Door::Rest(token), client, read_only, on_behalf: vec![] })
    }

    /// Calls a tool as this principal.
    ///
    /// # Errors
    /// What the call answered.
    pub async fn call(&self, doors: &Arc<Doors>, tool: &str, input: Value) -> Answer {
        Ok(answer(doors.call(self.principal(doors)?, tool.to_owned(), input, None).await?))
    }

    /// The operator, for what only operators do. That the token was used for it is in the audit log before anything else happens.
    ///
    /// # Errors
    /// `Denied` for an agent.
    pub async fn operator(&self, doors: &Doors, what: &str, about: Option<&str>) -> Result<(String, String), CallError> {
        match self {
            Self::Operator { name, token } => {
                let detail = json!({"what": what, "about": about, "token": token.to_string(), "door": people::REST});
                doors.house.store.audit_event(name, "operator_request", None, &detail, Utc::now()).await?;
                Ok((name.clone(), format!("{} {token}", people::REST)))
            }
            Self::Agent { agent, .. } => Err(only_operators(agent)),
        }
    }
}

/// What an agent is told that asks for what only operators get.
pub fn only_operators(agent: &AgentName) -> CallError {
    let hint = "an operator makes a token at a terminal with `dockwarden operators token` and sends that one";
    CallError::new(ErrorCode::Denied, format!("this needs an operator, and the token is of agent {agent}"), hint)
}

impl FromRequestParts<Arc<Doors>> for Who {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, doors: &Arc<Doors>) -> Result<Self, Response> {
        let who = of(doors, &parts.headers, &base_of(&parts.extensions)).await.map_err(|refused| *refused)?;
        strangers::known(&parts.extensions);
        Ok(who)
    }
}

/// Whose token these headers show.
///
/// # Errors
/// The 401 or 503 to send.
pub async fn of(doors: &Doors, headers: &HeaderMap, base: &str) -> Result<Who, Box<Response>> {
    let shown = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(bearer);
    let Some(token) = shown.filter(|t| t.starts_with(OPERATOR_PREFIX)) else {
        let (caller, token) = identity(doors, headers, base).await?;
        let client = headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).map(client_text);
        return Ok(Who::Agent { agent: caller.agent, token: token.id, client });
    };
    let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
    match doors.house.store.operator_token_use(&hash, Utc::now()).await {
        Ok(Some(token)) => Ok(Who::Operator { name: token.agent, token: token.id }),
        Ok(None) => Err(unauthorized(base, "the operator's token is not known, was revoked or has expired", true)),
        Err(e) => Err(Box::new(Failure(e.into()).into_response())),
    }
}
