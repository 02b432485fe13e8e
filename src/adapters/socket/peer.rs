//! Which agents the process at the other end of the socket may act as. Pure: the uid comes from the kernel (`SO_PEERCRED`), the map from
//! `policy.toml`. Deliberately absent: operators; being on the machine is not being one.

use crate::call::CallError;
use crate::call::error::ErrorCode;
use crate::model::ids::AgentName;
use std::collections::BTreeMap;

/// The loop's own agent: nobody outside the supervisor acts as it.
pub const WARDEN: &str = "warden";

/// A local process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its user.
    pub uid: u32,
    /// The user the home belongs to.
    pub owner: u32,
}

impl Peer {
    /// Root or the owner of the home: may do locally whatever needs no operator credential.
    pub fn is_owner(&self) -> bool {
        self.uid == 0 || self.uid == self.owner
    }
}

/// Admits a peer as an agent.
///
/// # Errors
/// `Denied` for an agent not granted to the uid, `NotFound` for one that is not loaded, with the names there are.
pub fn admit(peer: &Peer, name: &str, peers: &BTreeMap<String, Vec<String>>, agents: &[&str]) -> Result<AgentName, CallError> {
    let agent = AgentName::new(name)
        .map_err(|e| CallError::new(ErrorCode::InvalidArgument, e.to_string(), "name an agent of agents/*.md").field("agent"))?;
    if agent.as_str() == WARDEN {
        return Err(CallError::new(
            ErrorCode::Denied,
            "agent warden is the supervisor's own loop",
            "act as another agent, e.g. `--agent stack-keeper`",
        ));
    }
    let granted = peers.get(&peer.uid.to_string()).map(Vec::as_slice).unwrap_or_default();
    if !peer.is_owner() && !granted.iter().any(|g| g == "*" || g == agent.as_str()) {
        let message = format!("uid {} may not act as agent {agent}", peer.uid);
        let hint = format!("an operator adds `{} = [\"{agent}\"]` under [peers] in policy.toml", peer.uid);
        return Err(CallError::new(ErrorCode::Denied, message, hint));
    }
    if !agents.contains(&agent.as_str()) {
        let there: Vec<&str> = agents.iter().copied().filter(|a| *a != WARDEN).collect();
        let hint = format!("the agents are: {}", there.join(", "));
        return Err(CallError::new(ErrorCode::NotFound, format!("there is no agent {agent}"), hint).field("agent"));
    }
    Ok(agent)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGENTS: &[&str] = &["deployer", "observer", "warden"];

    fn code(uid: u32, agent: &str) -> Result<String, ErrorCode> {
        let peers = BTreeMap::from([("1001".to_owned(), vec!["observer".to_owned()]), ("1002".to_owned(), vec!["*".to_owned()])]);
        admit(&Peer { uid, owner: 1000 }, agent, &peers, AGENTS).map(|a| a.as_str().to_owned()).map_err(|e| e.code)
    }

    #[test]
    fn root_and_the_owner_may_act_as_every_agent_but_the_loops_own() {
        for uid in [0, 1000, 1002] {
            assert_eq!(code(uid, "deployer"), Ok("deployer".into()));
            assert_eq!(code(uid, "warden"), Err(ErrorCode::Denied));
        }
    }

    #[test]
    fn another_uid_may_act_as_what_the_policy_grants_it() {
        assert_eq!(code(1001, "observer"), Ok("observer".into()));
        assert_eq!(code(1001, "deployer"), Err(ErrorCode::Denied));
        assert_eq!(code(4, "observer"), Err(ErrorCode::Denied));
    }

    #[test]
    fn unknown_and_invalid_names_are_told_apart() {
        assert_eq!(code(0, "nobody"), Err(ErrorCode::NotFound));
        assert_eq!(code(0, "../x"), Err(ErrorCode::InvalidArgument));
    }
}
