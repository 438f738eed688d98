//! Kernel settings below `/proc/sys`. Those below `net` are of the calling thread's network namespace: use them
//! inside [`Namespace::enter`](super::Namespace::enter) for another.

use super::LinkError;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

/// Reads a setting, without the newline. `name` has slashes (`net/ipv4/conf/eth0/rp_filter`): interface names may
/// contain dots.
pub fn read(name: &str) -> Result<String, LinkError> {
    let text = std::fs::read_to_string(path(name)?).map_err(|source| LinkError::Sysctl { name: name.to_owned(), source })?;
    Ok(text.trim_end().to_owned())
}

/// Reads a setting; `None` where this kernel does not have it (an interface that is gone, IPv6 not built in).
pub fn read_if_any(name: &str) -> Result<Option<String>, LinkError> {
    match read(name) {
        Err(LinkError::Sysctl { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Whether the node speaks IPv6: the setting is absent where it was turned off at boot, and 1 where it was turned off later.
pub fn ipv6_is_on() -> Result<bool, LinkError> {
    Ok(read_if_any("net/ipv6/conf/all/disable_ipv6")?.is_some_and(|disabled| disabled == "0"))
}

/// Writes a setting unless it has this value already, so that a read-only `/proc/sys` does no harm where nothing
/// is to be changed.
pub fn write(name: &str, value: &str) -> Result<(), LinkError> {
    let path = path(name)?;
    let failed = |source| LinkError::Sysctl { name: format!("{name}={value}"), source };
    if std::fs::read_to_string(&path).is_ok_and(|current| current.trim_end() == value) {
        return Ok(());
    }
    // Never created: a name that does not exist is an error.
    OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(value.as_bytes())).map_err(failed)
}

fn path(name: &str) -> Result<PathBuf, LinkError> {
    let climbs = name.starts_with('/') || name.split('/').any(|part| part.is_empty() || part == "." || part == "..");
    if climbs {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, "the name must be a path below /proc/sys");
        return Err(LinkError::Sysctl { name: name.to_owned(), source });
    }
    Ok(PathBuf::from("/proc/sys").join(name))
}
