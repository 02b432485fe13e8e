//! Test data that is not ours to hand on and so lies beside a checkout, not in it.

use std::path::{Path, PathBuf};

/// Where the variable says, else below `shared` beside the checkout. `None` when neither is there: the test says that it checked nothing.
pub(crate) fn beside(variable: &str, name: &str) -> Option<PathBuf> {
    if let Some(said) = std::env::var_os(variable) {
        return Some(PathBuf::from(said));
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared").join(name);
    if !here.exists() {
        println!("not checked: {variable} is not set and {} is not there", here.display());
        return None;
    }
    Some(here)
}
