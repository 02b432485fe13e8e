//! The fake against the engine's known behaviour.
