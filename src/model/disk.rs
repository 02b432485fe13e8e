//! How full the file system of the home is, and from where on that is told. Deliberately absent: looking at a disk (`store::disk`).

use serde::{Deserialize, Serialize};

/// A level that was reached holds until the disk is so many points below it: a file that comes and goes must not ring twice a minute.
const EASES: u8 = 2;

/// `[disk]`: from where on a person is told. Closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiskSettings {
    /// Percent from which there is a warning.
    pub warn_percent: u8,
    /// Percent from which it is urgent: what is left goes fast, and without an audit row nothing is executed.
    pub critical_percent: u8,
}

impl Default for DiskSettings {
    fn default() -> Self {
        Self { warn_percent: 85, critical_percent: 95 }
    }
}

/// How full it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskLevel {
    /// Enough room.
    #[default]
    Fine,
    /// Somebody should look.
    High,
    /// Somebody must.
    Critical,
}

/// Room of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskUsage {
    /// Bytes in use, by whomever.
    pub used: u64,
    /// Bytes that the supervisor can still write.
    pub free: u64,
}

impl DiskUsage {
    /// Whole percent in use, of what can be used at all, as `df` counts.
    pub fn percent(&self) -> u8 {
        let all = u128::from(self.used) + u128::from(self.free);
        u8::try_from((u128::from(self.used) * 100).checked_div(all).unwrap_or(0)).unwrap_or(100)
    }
}

impl DiskSettings {
    /// The level of a disk this full that was at another one before.
    pub fn level(&self, percent: u8, before: DiskLevel) -> DiskLevel {
        let reaches = |from: u8, level: DiskLevel| percent >= if before >= level { from.saturating_sub(EASES) } else { from };
        if reaches(self.critical_percent, DiskLevel::Critical) {
            DiskLevel::Critical
        } else if reaches(self.warn_percent, DiskLevel::High) {
            DiskLevel::High
        } else {
            DiskLevel::Fine
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_reached_at_its_number_and_left_two_points_below() {
        let settings = DiskSettings::default();
        let mut level = DiskLevel::Fine;
        let mut seen = vec![];
        for percent in [84, 85, 84, 83, 82, 85, 95, 94, 93, 92, 95, 100, 10, 96] {
            level = settings.level(percent, level);
            seen.push(level);
        }
        use DiskLevel::{Critical, Fine, High};
        assert_eq!(seen, [Fine, High, High, High, Fine, High, Critical, Critical, Critical, High, Critical, Critical, Fine, Critical]);
    }

    #[test]
    fn percent_counts_what_can_be_written_and_survives_any_disk() {
        let of = |used, free| DiskUsage { used, free }.percent();
        assert_eq!(
            [of(0, 0), of(0, 10), of(849, 151), of(85, 15), of(10, 0), of(u64::MAX, 1), of(u64::MAX, u64::MAX)],
            [0, 0, 84, 85, 100, 99, 50]
        );
    }
}
