use super::SpecVersion;
use serde_json::{Value, json};

/// Why a call failed, as the specification numbers it; from 100 on, as this plugin does; or as another plugin did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The version of the configuration is not spoken, or does not know the verb.
    IncompatibleVersion,
    /// A field of the configuration is not supported.
    UnsupportedField,
    /// The container's namespace is gone.
    UnknownContainer,
    /// A `CNI_*` variable is missing or makes no sense.
    InvalidEnvironment,
    /// Reading or writing failed.
    Io,
    /// The configuration is no JSON of the expected form.
    Decode,
    /// The configuration makes no sense.
    InvalidConfig,
    /// The container's namespace is the plugin's own.
    OwnNamespace,
    /// It may work later.
    TryAgain,
    /// STATUS: ADD cannot be served now.
    NotAvailable,
    /// STATUS: nor can it, and what is connected has lost something.
    NotAvailableAndLimited,
    /// No address is left.
    AddressesExhausted,
    /// The kernel refused a link, an address or a route.
    Network,
    /// The programs could not be attached.
    Datapath,
    /// The agent refused.
    Agent,
    /// CHECK: something is not as ADD left it.
    Differs,
    /// GC: something could not be removed.
    Incomplete,
    /// An address that was asked for, or that the IPAM plugin gave, is another attachment's.
    AddressTaken,
    /// The IPAM plugin does not behave as one.
    Delegate,
    /// The number that a plugin gave which was called by this one.
    OfAnother(u32),
}

impl Code {
    /// Its number in an error object.
    pub fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnsupportedField => 2,
            Self::UnknownContainer => 3,
            Self::InvalidEnvironment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::InvalidConfig => 7,
            Self::OwnNamespace => 8,
            Self::TryAgain => 11,
            Self::NotAvailable => 50,
            Self::NotAvailableAndLimited => 51,
            Self::AddressesExhausted => 100,
            Self::Network => 101,
            Self::Datapath => 102,
            Self::Agent => 103,
            Self::Differs => 104,
            Self::Incomplete => 105,
            Self::AddressTaken => 106,
            Self::Delegate => 107,
            Self::OfAnother(number) => number,
        }
    }
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
        let mut object = json!({ "cniVersion": version.as_str(), "code": self.code.number(), "msg": self.message });
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
