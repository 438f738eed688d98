use crate::spec::Error;

/// What has to be undone when a later step fails; in the opposite order.
#[derive(Default)]
pub(super) struct Undo<'a> {
    steps: Vec<(&'static str, Step<'a>)>,
}

type Step<'a> = Box<dyn FnOnce() -> Result<(), Error> + 'a>;

impl<'a> Undo<'a> {
    /// Remembers how to undo a step; `what` names what is removed.
    pub(super) fn remember(&mut self, what: &'static str, step: impl FnOnce() -> Result<(), Error> + 'a) {
        self.steps.push((what, Box::new(step)));
    }

    /// Nothing is to be undone any more.
    pub(super) fn forget(mut self) {
        self.steps.clear();
    }

    /// Undoes everything. What cannot be undone is added to the details of the error that made it necessary: the DEL
    /// that the runtime sends after a failed ADD tries again.
    pub(super) fn after(self, mut error: Error) -> Error {
        let failures = self
            .steps
            .into_iter()
            .rev()
            .filter_map(|(what, step)| step().err().map(|failure| format!("{what} could not be removed: {failure}")));
        let details: Vec<String> = Some(error.details).filter(|details| !details.is_empty()).into_iter().chain(failures).collect();
        error.details = details.join("; ");
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Code;
    use std::cell::RefCell;

    #[test]
    fn steps_are_undone_backwards_and_failures_do_not_stop_the_others() {
        let order = RefCell::new(Vec::new());
        let mut undo = Undo::default();
        undo.remember("the address", || {
            order.borrow_mut().push("address");
            Ok(())
        });
        undo.remember("the link", || {
            order.borrow_mut().push("link");
            Err(Error::new(Code::Network, "busy"))
        });
        let error = undo.after(Error { details: "at once".to_owned(), ..Error::new(Code::TryAgain, "no agent") });
        assert_eq!(*order.borrow(), ["link", "address"]);
        assert_eq!((error.code, error.message.as_str()), (Code::TryAgain, "no agent"));
        assert_eq!(error.details, "at once; the link could not be removed: busy");
    }
}
