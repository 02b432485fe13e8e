//! Labels we put on what we make. Labels are the keys by which objects are found; ownership is read from our own registry.

/// Id of the home that made it.
pub const INSTANCE: &str = "dockwarden.instance";
/// Stack.
pub const STACK: &str = "dockwarden.stack";
/// Service.
pub const SERVICE: &str = "dockwarden.service";
/// Release number.
pub const RELEASE: &str = "dockwarden.release";
/// Operation that made it.
pub const OPERATION: &str = "dockwarden.operation";
/// Keyed hash over the resolved service with its image identity.
pub const SPEC: &str = "dockwarden.spec";
/// Number of the container within its service, from 1.
pub const NUMBER: &str = "dockwarden.number";
/// Name under which a service's front reaches the container.
pub const BACKEND: &str = "dockwarden.backend";
/// `serving`, `canary`, `front` or `claim`.
pub const ROLE: &str = "dockwarden.role";
/// `ROLE` of a container that serves, or shall.
pub const ROLE_SERVING: &str = "serving";
/// `ROLE` of a canary: proves a version, never serves.
pub const ROLE_CANARY: &str = "canary";
/// `ROLE` of a front: owns a service's ports and name and passes connections on to its serving containers.
pub const ROLE_FRONT: &str = "front";
/// `ROLE` of the never started container whose name claims a stack on an engine.
pub const ROLE_CLAIM: &str = "claim";
/// `ROLE` of the network of one colour of a blue-green stack.
pub const ROLE_COLOUR: &str = "colour";
/// `ROLE` of a one-off container that runs a hook.
pub const ROLE_HOOK: &str = "hook";
/// What a one-shot service was run for: its own hash and those of what it depends on.
pub const ONCE: &str = "dockwarden.once";

/// Compose's label for the project.
pub const COMPOSE_PROJECT: &str = "com.docker.compose.project";
/// Compose's label for the service.
pub const COMPOSE_SERVICE: &str = "com.docker.compose.service";
/// Compose's label for the container's number.
pub const COMPOSE_NUMBER: &str = "com.docker.compose.container-number";
/// Compose's label for the configuration's hash (our own value).
pub const COMPOSE_HASH: &str = "com.docker.compose.config-hash";
/// Compose's label for one-off containers.
pub const COMPOSE_ONEOFF: &str = "com.docker.compose.oneoff";
/// Compose's label for a network's key.
pub const COMPOSE_NETWORK: &str = "com.docker.compose.network";
/// Compose's label for a volume's key.
pub const COMPOSE_VOLUME: &str = "com.docker.compose.volume";

/// `key=value` as engines filter by.
pub fn filter(key: &str, value: &str) -> String {
    format!("{key}={value}")
}
