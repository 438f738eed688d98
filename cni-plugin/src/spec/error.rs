use super::SpecVersion;
use serde_json::{Value, json};

/// Why a call failed, as the specification numbers it; from 100 on, as this plugin does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The version of the configuration is not spoken, or does not know the verb.
    IncompatibleVersion = 1,
    /// A field of the configuration is not supported.
    UnsupportedField = 2,
    /// The container's namespace is gone.
    UnknownContainer = 3,
    /// A `CNI_*` variable is missing or makes no sense.
    InvalidEnvironment = 4,
    /// Reading or writing failed.
    Io = 5,
    /// The configuration is no JSON of the expected form.
    Decode = 6,
    /// The configuration makes no sense.
    InvalidConfig = 7,
    /// The container's namespace is the plugin's own.
    OwnNamespace = 8,
    /// It may work later.
    TryAgain = 11,
    /// STATUS: ADD cannot be served now.
    NotAvailable = 50,
    /// No address is left.
    AddressesExhausted = 100,
    /// The kernel refused a link, an address or a route.
    Network = 101,
    /// The programs could not be attached.
    Datapath = 102,
    /// The agent refused.
    Agent = 103,
    /// CHECK: something is not as ADD left it.
    Differs = 104,
    /// GC: something could not be removed.
    Incomplete = 105,
}

/// A failed call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Why.
    pub code: Code,
    /// What happened and what to do about it.
    pub message: String,
    /// What else is known; may be empty.
    pub details: String,
}

impl Error {
    /// A failed call without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    /// The error object that goes to standard output.
    pub fn to_json(&self, version: SpecVersion) -> Value {
        let mut object = json!({ "cniVersion": version.as_str(), "code": self.code as u32, "msg": self.message });
        if !self.details.is_empty() {
            object["details"] = self.details.clone().into();
        }
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_object_has_the_specified_keys() {
        let mut error = Error::new(Code::TryAgain, "the agent is not ready");
        assert_eq!(error.to_json(SpecVersion::V0_4_0), json!({"cniVersion": "0.4.0", "code": 11, "msg": "the agent is not ready"}));
        error.details = "more".into();
        assert_eq!(error.to_json(SpecVersion::V1_1_0)["details"], "more");
    }
}
