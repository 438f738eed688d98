use serde_json::Value;

/// VERSION: what is spoken. Does not look at its input.
pub(super) fn version() -> Value {
    crate::spec::version_output()
}
