//! Who got what a probe sent: of a flow to a service the answer alone does not tell.

use super::flow::Party;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// What an attempt sends, unlike all that others send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Question(pub u32);

/// Who got a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Who.
    pub party: Party,
    /// At which port.
    pub port: u16,
    /// Under which address the opener appeared there.
    pub peer: IpAddr,
}

/// Knows the questions that are under way, and who got each. Copies are the same one.
#[derive(Clone, Debug, Default)]
pub struct Witness(Arc<Mutex<BTreeMap<Question, Option<Arrival>>>>);

impl Question {
    /// Its bytes.
    pub const fn bytes(self) -> [u8; 4] {
        self.0.to_be_bytes()
    }

    /// The question that these bytes are, if they can be one.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        <[u8; 4]>::try_from(bytes).ok().map(|bytes| Self(u32::from_be_bytes(bytes)))
    }
}

impl Witness {
    /// A question that is under way from now on. Never 0.
    pub fn ask(&self) -> Question {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let question = Question(NEXT.fetch_add(1, Ordering::Relaxed).max(1));
        self.questions().insert(question, None);
        question
    }

    /// Tells that somebody got a question; nothing where it is none that is under way.
    pub fn saw(&self, question: Question, arrival: Arrival) {
        if let Some(known) = self.questions().get_mut(&question) {
            *known = Some(arrival);
        }
    }

    /// Who got a question, which is over now.
    pub fn end(&self, question: Question) -> Option<Arrival> {
        self.questions().remove(&question).flatten()
    }

    fn questions(&self) -> MutexGuard<'_, BTreeMap<Question, Option<Arrival>>> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival() -> Arrival {
        Arrival { party: Party::Outside, port: 80, peer: IpAddr::from([10, 0, 0, 1]) }
    }

    #[test]
    fn who_got_a_question_is_known_until_it_is_over() {
        let witness = Witness::default();
        let (first, second) = (witness.ask(), witness.ask());
        assert_ne!(first, second);
        witness.clone().saw(first, arrival());
        assert_eq!((witness.end(first), witness.end(first), witness.end(second)), (Some(arrival()), None, None));
    }

    #[test]
    fn what_nobody_asked_is_not_kept() {
        let witness = Witness::default();
        let over = witness.ask();
        witness.end(over);
        witness.saw(over, arrival());
        assert!(witness.questions().is_empty());
        assert_eq!((Question::read(&over.bytes()), Question::read(b"x"), Question::read(b"hello")), (Some(over), None, None));
    }
}
