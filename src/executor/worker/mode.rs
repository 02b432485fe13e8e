//! Mode bits between Unix and the repository format, which stores Go's `os.FileMode`; times as the system counts them. Deliberately absent: file types; a node says its own.

use rustic_core::jiff::Timestamp;

const GO_DIR: u32 = 1 << 31;
const GO_SYMLINK: u32 = 1 << 27;
const GO_DEVICE: u32 = 1 << 26;
const GO_FIFO: u32 = 1 << 25;
const GO_SOCKET: u32 = 1 << 24;
const GO_SETUID: u32 = 1 << 23;
const GO_SETGID: u32 = 1 << 22;
const GO_CHAR: u32 = 1 << 21;
const GO_STICKY: u32 = 1 << 20;

/// Kind of an entry, for its type bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Dir,
    Symlink,
    Fifo,
    Socket,
    Char,
    Block,
}

impl Kind {
    /// The word used in reports.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Dir => "directory",
            Self::Symlink => "symbolic link",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
            Self::Char => "character device",
            Self::Block => "block device",
        }
    }
}

/// Permission bits (`0o7777`) and kind as Go's mode.
pub(super) fn to_go(permissions: u32, kind: Kind) -> u32 {
    let mut mode = permissions & 0o777;
    mode |= match kind {
        Kind::File => 0,
        Kind::Dir => GO_DIR,
        Kind::Symlink => GO_SYMLINK,
        Kind::Fifo => GO_FIFO,
        Kind::Socket => GO_SOCKET,
        Kind::Char => GO_DEVICE | GO_CHAR,
        Kind::Block => GO_DEVICE,
    };
    for (unix, go) in SPECIAL {
        if permissions & unix != 0 {
            mode |= go;
        }
    }
    mode
}

/// Permission bits (`0o7777`) of a Go mode.
pub(super) fn permissions(go: u32) -> u32 {
    SPECIAL.iter().filter(|(_, bit)| go & bit != 0).fold(go & 0o777, |mode, (unix, _)| mode | unix)
}

/// Seconds downwards and the nanoseconds that are left, as the system keeps times, also those before 1970.
pub(super) fn floor(time: Timestamp) -> (i64, u32) {
    const SECOND: i128 = 1_000_000_000;
    let all = time.as_nanosecond();
    // Both fit: a timestamp spans the years -9999 to 9999.
    (i64::try_from(all.div_euclid(SECOND)).unwrap_or_default(), u32::try_from(all.rem_euclid(SECOND)).unwrap_or_default())
}

/// Unix bit and Go bit of set-user-id, set-group-id, sticky.
const SPECIAL: [(u32, u32); 3] = [(0o4000, GO_SETUID), (0o2000, GO_SETGID), (0o1000, GO_STICKY)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_are_counted_as_the_system_counts_them() {
        let at = |nanoseconds| floor(Timestamp::from_nanosecond(nanoseconds).unwrap());
        assert_eq!((at(0), at(1_500_000_000), at(-500_000_000)), ((0, 0), (1, 500_000_000), (-1, 500_000_000)));
        assert_eq!((at(-1_000_000_000), at(-1_000_000_001)), ((-1, 0), (-2, 999_999_999)));
    }

    #[test]
    fn permission_bits_survive_the_way_to_go_and_back() {
        for bits in [0o000, 0o644, 0o755, 0o1777, 0o2775, 0o4755, 0o6711, 0o7777] {
            for kind in [Kind::File, Kind::Dir, Kind::Symlink, Kind::Fifo, Kind::Socket, Kind::Char, Kind::Block] {
                assert_eq!(permissions(to_go(bits, kind)), bits, "{bits:o} {kind:?}");
            }
        }
    }
}
