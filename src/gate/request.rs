//! stub
use crate::engine::*;
use crate::model::verdict::Finding;
/// stub
#[derive(Debug, Clone, Default)]
pub struct RequestFacts {}
/// stub
pub fn assert_container(_spec: &ContainerSpec, _facts: &RequestFacts) -> Vec<Finding> {
    vec![]
}
/// stub
pub fn assert_network(_spec: &NetworkCreate, _facts: &RequestFacts) -> Vec<Finding> {
    vec![]
}
/// stub
pub fn assert_volume(_spec: &VolumeCreate, _facts: &RequestFacts) -> Vec<Finding> {
    vec![]
}
