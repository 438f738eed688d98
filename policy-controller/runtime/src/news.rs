//! Each thing that is wrong is logged once, for as long as it is wrong.

use crate::state::State;
use palisade_k8s::index::Refused;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// How long changes are waited for before all objects are looked at again.
const DEBOUNCE: Duration = Duration::from_secs(1);

/// What is wrong and was logged.
#[derive(Debug)]
pub struct Told<T>(Vec<T>);

impl<T> Default for Told<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Clone> Told<T> {
    /// What of all that is wrong `now` was not told before.
    pub fn news(&mut self, now: Vec<T>, is_same: impl Fn(&T, &T) -> bool) -> Vec<T> {
        let is_new = |one: &&T| !self.0.iter().any(|told| is_same(one, told));
        let news = now.iter().filter(is_new).cloned().collect();
        self.0 = now;
        news
    }
}

/// Logs the objects that cannot be used as they are, for ever.
pub async fn follow(state: Arc<State>) -> Infallible {
    let mut changes = state.changes();
    let mut told = Told::default();
    loop {
        changes.borrow_and_update();
        let refused = state.index().refused();
        for Refused { kind, object, error, instead } in told.news(refused, Refused::eq) {
            tracing::warn!(%kind, object, %error, "an object cannot be used as it is written: {instead}");
        }
        let _ = changes.changed().await;
        tokio::time::sleep(DEBOUNCE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_when_it_comes_and_when_it_comes_back_and_not_as_long_as_it_stays() {
        let mut told = Told::default();
        let mut news = |now: &[&'static str]| told.news(now.to_vec(), |one, other| one == other);
        assert_eq!(news(&["a"]), ["a"]);
        assert_eq!(news(&["a"]), [""; 0]);
        assert_eq!(news(&["b", "a"]), ["b"]);
        assert_eq!(news(&["b"]), [""; 0]);
        assert_eq!(news(&["a", "b"]), ["a"]);
    }
}
