use super::{Code, Error};
use palisade_protocol::Attachment;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What the runtime asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Connect a container to the network.
    Add,
    /// Disconnect it.
    Del,
    /// Compare what is there with what ADD left.
    Check,
    /// Remove what belongs to no attachment.
    Gc,
    /// Say whether ADD can be served.
    Status,
    /// Say which versions are spoken.
    Version,
}

/// The `CNI_*` variables of a call.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
}

impl Environment {
    /// Keeps the `CNI_*` variables of an environment. Empty ones count as missing, as the specification has it.
    pub fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let cni = |(name, value): &(String, String)| name.starts_with("CNI_") && !value.is_empty();
        Self { variables: variables.into_iter().filter(cni).collect() }
    }

    /// The verb; `None` when `CNI_COMMAND` is missing.
    pub fn command(&self) -> Option<Result<Command, Error>> {
        Some(match self.get("CNI_COMMAND")? {
            "ADD" => Ok(Command::Add),
            "DEL" => Ok(Command::Del),
            "CHECK" => Ok(Command::Check),
            "GC" => Ok(Command::Gc),
            "STATUS" => Ok(Command::Status),
            "VERSION" => Ok(Command::Version),
            other => Err(invalid(format!("CNI_COMMAND is '{other}': it must be one of ADD, DEL, CHECK, GC, STATUS, VERSION"))),
        })
    }

    /// Fails unless all of these variables are there; names all that are missing.
    pub fn require(&self, names: &[&str]) -> Result<(), Error> {
        let missing: Vec<&str> = names.iter().copied().filter(|name| self.get(name).is_none()).collect();
        if missing.is_empty() { Ok(()) } else { Err(invalid(format!("missing in the environment: {}", missing.join(", ")))) }
    }

    /// The container id and the interface name, checked.
    pub fn attachment(&self) -> Result<Attachment, Error> {
        self.require(&["CNI_CONTAINERID", "CNI_IFNAME"])?;
        let container_id = self.get("CNI_CONTAINERID").unwrap_or_default().to_owned();
        let interface = self.get("CNI_IFNAME").unwrap_or_default().to_owned();
        if !is_identifier(&container_id) {
            return Err(invalid(format!(
                "CNI_CONTAINERID is '{container_id}': it must start with a letter or digit and contain only letters, digits, '_', '.' and '-'"
            )));
        }
        // A longer name does not fit into a file name.
        if container_id.len() > 200 {
            return Err(invalid("CNI_CONTAINERID is longer than 200 characters"));
        }
        let fits = (1..=15).contains(&interface.len()) && interface != "." && interface != "..";
        if !fits || interface.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control()) {
            return Err(invalid(format!(
                "CNI_IFNAME is '{interface}': it must have 1 to 15 characters, no '/', no ':', no space, and be neither '.' nor '..'"
            )));
        }
        Ok(Attachment { container_id, interface })
    }

    /// The path of the container's network namespace.
    pub fn namespace(&self) -> Option<PathBuf> {
        self.get("CNI_NETNS").map(PathBuf::from)
    }

    /// The pairs of `CNI_ARGS`, `KEY=VALUE;KEY=VALUE`.
    pub fn arguments(&self) -> Result<BTreeMap<&str, &str>, Error> {
        let pair =
            |pair: &'_ str| -> Error { invalid(format!("CNI_ARGS contains '{pair}': it must be KEY=VALUE pairs with ';' between them")) };
        let text = self.get("CNI_ARGS").unwrap_or_default();
        text.split(';').filter(|part| !part.is_empty()).map(|part| part.split_once('=').ok_or_else(|| pair(part))).collect()
    }

    /// The folders of plugins (`CNI_PATH`).
    pub fn plugin_folders(&self) -> Vec<PathBuf> {
        self.get("CNI_PATH").map(|path| std::env::split_paths(path).collect()).unwrap_or_default()
    }

    /// All of them, for a plugin that is called on behalf of this call.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }
}

/// `^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`, which container ids and network names must match.
pub(super) fn is_identifier(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Code::InvalidEnvironment, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment::new(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    #[test]
    fn every_verb_is_read_and_an_unknown_one_is_code_4() {
        for (text, command) in [
            ("ADD", Command::Add),
            ("DEL", Command::Del),
            ("CHECK", Command::Check),
            ("GC", Command::Gc),
            ("STATUS", Command::Status),
            ("VERSION", Command::Version),
        ] {
            assert_eq!(environment(&[("CNI_COMMAND", text)]).command(), Some(Ok(command)));
        }
        for text in ["add", "UPDATE"] {
            let error = environment(&[("CNI_COMMAND", text)]).command().unwrap().unwrap_err();
            assert_eq!(error.code, Code::InvalidEnvironment);
            assert!(error.message.contains(text), "{}", error.message);
        }
        assert_eq!(environment(&[]).command(), None);
        assert_eq!(environment(&[("CNI_COMMAND", "")]).command(), None);
    }

    #[test]
    fn missing_variables_are_code_4_and_all_named() {
        let error =
            environment(&[("CNI_NETNS", ""), ("CNI_IFNAME", "eth0")]).require(&["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"]).unwrap_err();
        assert_eq!(error.code, Code::InvalidEnvironment);
        assert!(error.message.ends_with("CNI_CONTAINERID, CNI_NETNS"), "{}", error.message);
    }

    #[test]
    fn a_container_id_is_what_the_specification_allows() {
        let attachment = |id: &str| environment(&[("CNI_CONTAINERID", id), ("CNI_IFNAME", "eth0")]).attachment();
        for good in ["a", "0", "A-b_c.d", "deadbeef"] {
            assert_eq!(attachment(good).unwrap().container_id, good);
        }
        let long = "a".repeat(201);
        for bad in ["a/b", "../a", ".a", "-a", "_a", "a b", "a:b", "\u{e4}", "a\n", long.as_str()] {
            assert_eq!(attachment(bad).unwrap_err().code, Code::InvalidEnvironment, "{bad}");
        }
    }

    #[test]
    fn an_interface_name_is_what_the_kernel_allows() {
        let attachment = |name: &str| environment(&[("CNI_CONTAINERID", "a"), ("CNI_IFNAME", name)]).attachment();
        for good in ["e", "eth0", "fifteen-letters", "a.b"] {
            assert_eq!(attachment(good).unwrap().interface, good);
        }
        for bad in ["sixteen--letters", ".", "..", "a/b", "a:b", "a b", "a\tb"] {
            assert_eq!(attachment(bad).unwrap_err().code, Code::InvalidEnvironment, "{bad}");
        }
    }

    #[test]
    fn what_is_valid_here_is_valid_in_the_protocol() {
        for (id, name) in [("a", "eth0"), ("A-b_c.d", "fifteen-letters"), ("0", "a.b")] {
            assert!(environment(&[("CNI_CONTAINERID", id), ("CNI_IFNAME", name)]).attachment().unwrap().is_valid());
        }
    }

    #[test]
    fn arguments_are_pairs() {
        let good = environment(&[("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=a;K8S_POD_UID=x=y;")]);
        assert_eq!(good.arguments().unwrap(), BTreeMap::from([("IgnoreUnknown", "1"), ("K8S_POD_NAME", "a"), ("K8S_POD_UID", "x=y")]));
        assert!(environment(&[]).arguments().unwrap().is_empty());
        assert_eq!(environment(&[("CNI_ARGS", "a=b;c")]).arguments().unwrap_err().code, Code::InvalidEnvironment);
    }
}
