use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Numbers for contents: equal contents have one number, which is never 0.
///
/// A number that was released keeps its content until it is given to another, and it is given to another only in
/// a later generation than the one it was released in: whoever still reads tables of the last change never meets
/// it in its new meaning. Everything is deterministic: the smallest reusable number first, else the next fresh one.
///
/// Serialises as the list of its numbers, so that a restarted process goes on with the same ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "File<T>", into = "File<T>")]
#[serde(bound(serialize = "T: Ord + Clone + Serialize", deserialize = "T: Ord + Clone + Deserialize<'de>"))]
pub struct Interner<T: Ord + Clone> {
    numbers: BTreeMap<Arc<T>, u32>,
    slots: BTreeMap<u32, Slot<T>>,
    reusable: BTreeSet<u32>,
    next: u32,
    generation: u64,
}

/// What is known of a number that was given out.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Slot<T> {
    /// `None`: held for somebody, but its content is not known here.
    content: Option<Arc<T>>,
    /// The generation in which it was released; `None` while it is in use.
    released: Option<u64>,
}

impl<T: Ord + Clone> Default for Interner<T> {
    fn default() -> Self {
        Self::starting_after(0)
    }
}

impl<T: Ord + Clone> Interner<T> {
    /// An interner whose first number is `last + 1`.
    ///
    /// For a process that finds numbers up to `last` in use and does not know their contents.
    pub fn starting_after(last: u32) -> Self {
        let next = last.checked_add(1).unwrap_or(1);
        Self { numbers: BTreeMap::new(), slots: BTreeMap::new(), reusable: BTreeSet::new(), next, generation: 0 }
    }

    /// The number of `content`, a new one if it has none.
    pub fn intern(&mut self, content: T) -> u32 {
        if let Some(&number) = self.numbers.get(&content) {
            self.hold(number);
            return number;
        }
        let number = self.unused();
        let content = Arc::new(content);
        self.numbers.insert(Arc::clone(&content), number);
        self.slots.insert(number, Slot { content: Some(content), released: None });
        number
    }

    /// A number without content, for the time of a change.
    pub fn reserve(&mut self) -> u32 {
        let number = self.unused();
        self.slots.insert(number, Slot { content: None, released: None });
        number
    }

    /// The number of `content`, if it has one.
    pub fn number(&self, content: &T) -> Option<u32> {
        self.numbers.get(content).copied()
    }

    /// The content of `number`, also after its release, until the number is given to another.
    pub fn content(&self, number: u32) -> Option<&T> {
        self.slots.get(&number)?.content.as_deref()
    }

    /// As [`content`](Self::content), shared with whoever keeps it.
    pub fn shared(&self, number: u32) -> Option<Arc<T>> {
        self.slots.get(&number)?.content.clone()
    }

    /// Marks `number` as in use, whatever is known of it. 0 stands for nothing and is ignored.
    pub fn hold(&mut self, number: u32) {
        if number == 0 {
            return;
        }
        self.slots.entry(number).or_insert(Slot { content: None, released: None }).released = None;
        self.reusable.remove(&number);
        if number >= self.next {
            self.next = number.checked_add(1).unwrap_or(1);
        }
    }

    /// Releases every number in use that is not in `used`. They are given to others in a later generation only.
    pub fn release_except(&mut self, used: &BTreeSet<u32>) {
        for (number, slot) in &mut self.slots {
            if slot.released.is_none() && !used.contains(number) {
                slot.released = Some(self.generation);
            }
        }
    }

    /// Begins the next generation: what was released before may be given to others.
    /// Nothing changes where nothing was released since the last one began.
    pub fn begin_generation(&mut self) {
        let before = self.reusable.len();
        let released = self.slots.iter().filter(|(_, slot)| slot.released.is_some()).map(|(&number, _)| number);
        self.reusable.extend(released);
        if self.reusable.len() > before {
            self.generation += 1;
        }
    }

    /// How many numbers are in use.
    pub fn len(&self) -> usize {
        self.slots.values().filter(|slot| slot.released.is_none()).count()
    }

    /// Whether no number is in use.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers in use and their contents, where known.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Option<&T>)> {
        self.slots.iter().filter(|(_, slot)| slot.released.is_none()).map(|(&number, slot)| (number, slot.content.as_deref()))
    }

    fn unused(&mut self) -> u32 {
        if let Some(number) = self.reusable.pop_first() {
            if let Some(content) = self.slots.remove(&number).and_then(|slot| slot.content) {
                self.numbers.remove(&content);
            }
            return number;
        }
        // After a wrap, numbers in use are passed over; memory ends long before all of them are.
        while self.next == 0 || self.slots.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        number
    }
}

/// An interner as it is written down.
#[derive(Serialize, Deserialize)]
struct File<T> {
    next: u32,
    generation: u64,
    entries: Vec<Line<T>>,
}

/// One number as it is written down.
#[derive(Serialize, Deserialize)]
struct Line<T> {
    number: u32,
    content: Option<T>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    released: Option<u64>,
}

impl<T: Ord + Clone> From<File<T>> for Interner<T> {
    fn from(file: File<T>) -> Self {
        let mut interner = Self { next: file.next, generation: file.generation, ..Self::default() };
        for line in file.entries {
            let content = line.content.map(Arc::new);
            if let Some(content) = &content {
                interner.numbers.insert(Arc::clone(content), line.number);
            }
            if line.released.is_some_and(|released| released < file.generation) {
                interner.reusable.insert(line.number);
            }
            interner.slots.insert(line.number, Slot { content, released: line.released });
        }
        interner
    }
}

impl<T: Ord + Clone> From<Interner<T>> for File<T> {
    fn from(interner: Interner<T>) -> Self {
        let entries = interner
            .slots
            .into_iter()
            .map(|(number, slot)| Line { number, content: slot.content.map(|content| T::clone(&content)), released: slot.released })
            .collect();
        Self { next: interner.next, generation: interner.generation, entries }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_contents_have_one_number_and_it_is_never_zero() {
        let mut interner = Interner::default();
        assert_eq!((interner.intern("a"), interner.intern("b"), interner.intern("a")), (1, 2, 1));
        assert_eq!(interner.content(2), Some(&"b"));
        assert_eq!(interner.content(0), None);
    }

    #[test]
    fn a_released_number_is_given_to_another_only_in_a_later_generation() {
        let mut interner = Interner::default();
        interner.intern("a");
        interner.release_except(&BTreeSet::new());
        assert_eq!(interner.intern("b"), 2, "same generation");
        assert_eq!(interner.content(1), Some(&"a"), "a released number still resolves");
        interner.begin_generation();
        assert_eq!(interner.intern("c"), 1, "later generation");
        assert_eq!(interner.number(&"a"), None);
    }

    #[test]
    fn a_released_content_that_comes_back_keeps_its_number() {
        let mut interner = Interner::default();
        interner.intern("a");
        interner.release_except(&BTreeSet::new());
        interner.begin_generation();
        assert_eq!(interner.intern("a"), 1);
        assert_eq!(interner.intern("b"), 2);
    }

    #[test]
    fn a_number_that_is_held_is_not_given_to_another() {
        let mut interner = Interner::default();
        interner.intern("a");
        interner.release_except(&BTreeSet::new());
        interner.hold(1);
        interner.hold(2);
        interner.begin_generation();
        assert_eq!(interner.intern("b"), 3);
        assert_eq!(interner.len(), 3);
    }

    #[test]
    fn an_interner_can_start_after_numbers_of_unknown_content() {
        assert_eq!(Interner::starting_after(41).intern("a"), 42);
        assert_ne!(Interner::starting_after(u32::MAX).intern("a"), 0);
    }

    #[test]
    fn an_interner_read_back_from_json_goes_on_where_it_was() {
        let mut interner = Interner::default();
        for name in ["a", "b", "c"] {
            interner.intern(name.to_owned());
        }
        interner.release_except(&BTreeSet::from([2]));
        interner.begin_generation();
        interner.reserve();
        let json = serde_json::to_string(&interner).unwrap();
        let mut back: Interner<String> = serde_json::from_str(&json).unwrap();
        assert_eq!(back, interner);
        assert_eq!(back.intern("d".to_owned()), interner.intern("d".to_owned()));
    }
}
