use anyhow::{Context, Result};
use palisade_cni::link::Netlink;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

/// What there is on a host: links, addresses, routes, permanent neighbours, mounts, and the files, pins and pinned
/// namespaces below a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    things: BTreeSet<String>,
}

impl Snapshot {
    /// Looks at the calling thread's network and mount namespace, and at all that is below `directory`.
    ///
    /// The address store of the CNI plugin (`state/ipam`) is not looked at: it stays, because it remembers which
    /// addresses were used last. Ask the store itself whether addresses are free again.
    pub fn take(directory: &Path) -> Result<Self> {
        let mut things = BTreeSet::new();
        let netlink = Netlink::open()?;
        for link in netlink.links()? {
            things.insert(format!("link {} (number {}, {})", link.name, link.index, if link.up { "up" } else { "down" }));
        }
        for address in netlink.addresses()? {
            things.insert(format!("address {} on link number {}", address.address, address.link));
        }
        for route in netlink.routes()? {
            things.insert(format!("route {route:?}"));
        }
        for neighbour in netlink.neighbours()?.iter().filter(|neighbour| neighbour.permanent) {
            things.insert(format!("neighbour {neighbour:?}"));
        }
        for line in std::fs::read_to_string("/proc/thread-self/mountinfo")?.lines() {
            // The fifth field is the mount point.
            things.extend(line.split(' ').nth(4).map(|point| format!("mount at {point}")));
        }
        walk(directory, &mut things)?;
        let store = format!("file {}", directory.join("state/ipam").display());
        things.retain(|thing| !thing.starts_with(&store));
        Ok(Self { things })
    }

    /// What is gone (`-`) and what is new (`+`) in `after`, a line each.
    pub fn difference(&self, after: &Self) -> String {
        let mut text = String::new();
        for gone in self.things.difference(&after.things) {
            let _ = writeln!(text, "- {gone}");
        }
        for new in after.things.difference(&self.things) {
            let _ = writeln!(text, "+ {new}");
        }
        text
    }
}

/// Lists the files below a directory; a pin in a bpffs and a pinned namespace are files, too. Directories do not count:
/// the first call of the plugin makes some that stay.
fn walk(directory: &Path, things: &mut BTreeSet<String>) -> Result<()> {
    for entry in std::fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), things)?;
        } else {
            things.insert(format!("file {}", entry.path().display()));
        }
    }
    Ok(())
}
