//! Rules whose facts lie outside of the resolved stack: what backups cover, what a registry told, what the reader left aside. Who has these facts finds
//! them and weighs them with [`super::Scales`], by the policy like every other rule. Deliberately absent: finding.

/// Data is not snapshotted before an update.
pub const PRE_UPDATE: &str = "backup.pre_update";
/// Data that no schedule covers.
pub const NO_BACKUP: &str = "backup.none";
/// A volume that several containers write.
pub const WRITERS: &str = "backup.writers";
/// A key that is not carried out.
pub const UNSUPPORTED: &str = "compose.unsupported";
/// An image nobody knows before it is pulled.
pub const UNRESOLVED: &str = "image.unresolved";
