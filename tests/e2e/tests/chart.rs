//! What the chart's values make of the agent's command line; that the agent does what its flags say is tested with the agent.

use anyhow::{Context, Result, ensure};
use palisade_e2e::chart;
use std::collections::BTreeSet;

/// Flags that may stand several times: once for each key of a value that is a map.
const REPEATED: [&str; 3] = ["--map-size", "--map-limit", "--connection-timeout"];

/// The flags of the agent's container with these values.
fn flags(values: &[&str]) -> Result<BTreeSet<String>> {
    let daemonset = chart::rendered("templates/daemonset.yaml", values)?;
    let command = daemonset["spec"]["template"]["spec"]["containers"][0]["command"].as_array().context("a command")?.clone();
    let flags: Vec<&str> = command.iter().filter_map(|word| word.as_str()).filter(|word| word.starts_with("--")).collect();
    let mut named = flags.iter().filter_map(|flag| flag.split_once('=')).filter(|(name, _)| !REPEATED.contains(name)).map(|(name, _)| name);
    let mut names = BTreeSet::new();
    ensure!(named.all(|name| names.insert(name)), "a flag stands twice: {flags:?}");
    Ok(flags.into_iter().map(str::to_owned).collect())
}

#[test]
fn each_value_is_the_flag_that_it_says() -> Result<()> {
    let usual = flags(&[])?;
    for (values, expected) in [
        (&["masquerade.ipv4=off"][..], &["--masquerade-ipv4=off"][..]),
        // YAML takes a bare on or off for a truth value.
        (&["masquerade.ipv4=false", "masquerade.ipv6=true"], &["--masquerade-ipv4=off", "--masquerade-ipv6=on"]),
        (&["masquerade.exclude={10.0.0.0/8,fd00::/8}"], &["--masquerade-exclude=10.0.0.0/8,fd00::/8"]),
        (&["servicesOutside=false"], &["--services-outside=off"]),
        (&["servicesOutside=on", "uplinks={eth0,en*}"], &["--services-outside=on", "--uplinks=eth0,en*"]),
        (&["nodeServices=true"], &["--node-services=on"]),
        (&["connectionTimeouts.tcp-established=7200"], &["--connection-timeout=tcp-established=7200"]),
        (&["mapSizes.policy=1048576", "mapLimits.policy=4194304"], &["--map-size=policy=1048576", "--map-limit=policy=4194304"]),
        (
            &["routing.mode=vxlan", "routing.forwarding=stack", "routing.overlay.port=8472", "routing.overlay.network=7"],
            &["--routing-mode=vxlan", "--forwarding=stack", "--overlay-port=8472", "--overlay-network=7"],
        ),
        (&["mtu=1400"], &["--mtu=1400"]),
        (&["apiServer.host=fd00::1", "apiServer.port=8443"], &["--api-server=https://[fd00::1]:8443"]),
        (&["metrics.address=0.0.0.0"], &["--metrics=0.0.0.0:9964"]),
        (&["metrics.address=::1", "metrics.port=9000"], &["--metrics=[::1]:9000"]),
        (&["paths.run=/run/other", "paths.bpf=/sys/fs/other"], &["--run-dir=/run/other", "--pin-dir=/sys/fs/other/palisade"]),
    ] {
        let flags = flags(values)?;
        let new: BTreeSet<&str> = flags.difference(&usual).map(String::as_str).collect();
        assert_eq!(new, expected.iter().copied().collect(), "{values:?}");
    }
    let without = flags(&["status.enabled=false"])?;
    let gone: Vec<&String> = usual.difference(&without).collect();
    assert_eq!(gone, ["--status-namespace=$(POD_NAMESPACE)"]);
    Ok(())
}
