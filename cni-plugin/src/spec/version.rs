use super::{Code, Error};
use serde_json::{Value, json};

/// A version of the CNI specification that is spoken here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpecVersion {
    /// 0.3.1: interfaces in the result.
    V0_3_1,
    /// 0.4.0: CHECK.
    V0_4_0,
    /// 1.0.0: addresses without `version`.
    V1_0_0,
    /// 1.1.0: GC, STATUS, MTU in the result.
    V1_1_0,
}

impl SpecVersion {
    /// All of them, oldest first.
    pub const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The newest.
    pub const LATEST: Self = Self::V1_1_0;

    /// As the specification writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Reads the `cniVersion` of a configuration. One that says nothing is of 0.1.0, which is not spoken.
    pub fn parse(text: Option<&str>) -> Result<Self, Error> {
        let text = text.unwrap_or("0.1.0");
        Self::ALL.into_iter().find(|version| version.as_str() == text).ok_or_else(|| {
            let spoken = Self::ALL.map(Self::as_str).join(", ");
            Error::new(Code::IncompatibleVersion, format!("CNI version {text} is not supported: set cniVersion to one of {spoken}"))
        })
    }
}

/// What VERSION answers.
pub fn version_output() -> Value {
    json!({
        "cniVersion": SpecVersion::LATEST.as_str(),
        "supportedVersions": SpecVersion::ALL.map(SpecVersion::as_str),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_from_0_3_1_to_1_1_0_is_spoken() {
        for text in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            assert_eq!(SpecVersion::parse(Some(text)).unwrap().as_str(), text);
        }
    }

    #[test]
    fn an_unknown_or_missing_version_is_code_1_and_says_what_is_spoken() {
        for text in [Some("0.2.0"), Some("1.2.0"), Some(""), Some("1.0"), None] {
            let error = SpecVersion::parse(text).unwrap_err();
            assert_eq!(error.code, Code::IncompatibleVersion);
            assert!(error.message.contains("0.3.1, 0.4.0, 1.0.0, 1.1.0"), "{}", error.message);
        }
    }

    #[test]
    fn version_lists_what_is_spoken() {
        let output = version_output();
        assert_eq!(output["cniVersion"], "1.1.0");
        assert_eq!(output["supportedVersions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    }
}
