//! stub: replaced by the backup part
/// Backup repository.
#[derive(Debug)]
pub struct BackupHouse {}
