//! Places at the local door: bounded in all and per user, so that no user keeps the others out, and the owner of the home least of all.

use super::peer::Peer;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Most local clients at once: each is a process of this machine.
const ALL: usize = 256;
/// Most of one user who is neither root nor the owner of the home.
const OF_ONE: usize = 32;
/// Kept for root and the owner, whose word at the terminal stops agents.
const KEPT: usize = 32;

/// The places taken, by user.
#[derive(Debug, Default)]
pub(super) struct Places {
    taken: Mutex<BTreeMap<u32, usize>>,
}

/// A place; free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    uid: u32,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.uid);
            }
        }
    }
}

impl Places {
    /// A place for a client, or none.
    pub(super) fn take(self: &Arc<Self>, peer: &Peer) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, own) = (taken.values().sum::<usize>(), taken.get(&peer.uid).copied().unwrap_or_default());
        let others: usize = taken.iter().filter(|(uid, _)| !Peer { uid: **uid, ..*peer }.is_owner()).map(|(_, n)| n).sum();
        let free = all < ALL && (peer.is_owner() || (others < ALL - KEPT && own < OF_ONE));
        free.then(|| {
            *taken.entry(peer.uid).or_default() += 1;
            Place { places: Arc::clone(self), uid: peer.uid }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_user_keeps_another_out_and_the_owner_always_finds_a_place() {
        let places = Arc::new(Places::default());
        let peer = |uid| Peer { uid, owner: 1000 };
        let filled = |uid| std::iter::from_fn(|| places.take(&peer(uid))).collect::<Vec<_>>();
        let first = filled(2000);
        assert_eq!(first.len(), OF_ONE);
        let second = filled(2001);
        assert_eq!(second.len(), OF_ONE, "another user has places of their own");
        let others: Vec<_> = (2002..2020).flat_map(filled).collect();
        assert_eq!(first.len() + second.len() + others.len(), ALL - KEPT);
        let owner = filled(1000);
        assert_eq!(owner.len(), KEPT);
        assert!(places.take(&peer(0)).is_none());
        drop(first);
        assert!(places.take(&peer(0)).is_some() && places.take(&peer(2000)).is_some());
    }
}
