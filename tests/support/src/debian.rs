//! Plugins that others wrote, in Debian's package `containernetworking-plugins`.

use std::path::Path;
use std::process::Command;

/// Where the package puts them.
pub const DEBIAN: &str = "/usr/lib/cni";
/// Where what they call is: not in everybody's PATH.
pub const SYSTEM: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a plugin cannot work on this machine: it is not there, or something that it needs is not.
pub fn missing(plugin: &str) -> Option<String> {
    if !Path::new(DEBIAN).join(plugin).exists() {
        return Some(format!("there is no {DEBIAN}/{plugin} (Debian's containernetworking-plugins)"));
    }
    let probed = match plugin {
        "portmap" => said("iptables -t nat -S").and_then(|_| said("ip6tables -t nat -S")),
        "bandwidth" => said("ip link add probe type ifb").and_then(|_| {
            let limited = said("tc qdisc add dev probe root tbf rate 1mbit burst 10kb latency 25ms");
            said("ip link delete probe").and(limited)
        }),
        _ => Ok(String::new()),
    };
    probed.err()
}

/// What a command prints, in the calling thread's namespaces; why it failed.
pub fn said(line: &str) -> Result<String, String> {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap_or_default());
    let output = command.args(words).env("PATH", SYSTEM).output().map_err(|error| format!("{line}: {error}"))?;
    let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(format!("{line}: {}", text(&output.stderr))) }
}
