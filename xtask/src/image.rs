//! `cargo xtask image`: the container image as an archive, made without a container engine.
//!
//! The archive is what `docker save` writes: a tar of one layer, a configuration and a manifest that names them. The
//! product's binaries are static, so the layer is those three files. The same binaries give the same bytes.

use crate::product::{self, Profile};
use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Name of the image; the chart's default values say the same, its tag is the workspace's version.
const IMAGE: &str = "palisade/agent";
/// Where the binaries are in the image; the chart's commands say the same.
const BIN: &str = "usr/bin";
/// What runs when nothing else is named.
const ENTRYPOINT: &str = "palisade-agent";

/// Builds the binaries and writes them as an archive in `target/image`, `palisade.tar` where they are those that are released; its path.
pub fn write(root: &Path, profile: &Profile) -> Result<PathBuf> {
    let bin = product::build(root, profile)?;
    let mut contents = Vec::new();
    for name in product::BINARIES {
        let path = bin.join(name);
        contents.push((*name, std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?));
    }
    let archive = archive(&layer(&contents)?, env!("CARGO_PKG_VERSION"), architecture())?;
    let folder = root.join("target/image");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(format!("palisade{}.tar", profile.ending()));
    // In one step: who loads the image meanwhile gets the old one or the new one.
    let fresh = path.with_extension("tar.new");
    std::fs::write(&fresh, archive).with_context(|| format!("writing {}: is there space?", fresh.display()))?;
    std::fs::rename(&fresh, &path)?;
    println!("{IMAGE}:{} in {}", env!("CARGO_PKG_VERSION"), path.display());
    Ok(path)
}

/// The image's file system as a tar.
fn layer(binaries: &[(&str, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for folder in ["usr/", "usr/bin/"] {
        append(&mut tar, folder, tar::EntryType::Directory, &[])?;
    }
    for (name, content) in binaries {
        append(&mut tar, &format!("{BIN}/{name}"), tar::EntryType::Regular, content)?;
    }
    Ok(tar.into_inner()?)
}

/// The whole archive around a layer.
fn archive(layer: &[u8], version: &str, architecture: &str) -> Result<Vec<u8>> {
    let layer_digest = digest(layer);
    let configuration = serde_json::to_vec(&json!({
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Entrypoint": [format!("/{BIN}/{ENTRYPOINT}")],
            "Env": [format!("PATH=/{BIN}")],
            "Labels": { "org.opencontainers.image.version": version, "org.opencontainers.image.licenses": "Apache-2.0" },
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_digest}")] },
    }))?;
    let configuration_name = format!("{}.json", digest(&configuration));
    let layer_name = format!("{layer_digest}.tar");
    let manifest = serde_json::to_vec(&json!([{
        "Config": configuration_name,
        "RepoTags": [format!("{IMAGE}:{version}")],
        "Layers": [layer_name],
    }]))?;
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, &configuration_name, tar::EntryType::Regular, &configuration)?;
    append(&mut tar, &layer_name, tar::EntryType::Regular, layer)?;
    append(&mut tar, "manifest.json", tar::EntryType::Regular, &manifest)?;
    Ok(tar.into_inner()?)
}

/// Appends an entry that names neither a time nor a user of this machine.
fn append(tar: &mut tar::Builder<impl Write>, path: &str, kind: tar::EntryType, content: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, path, content)?;
    Ok(())
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// This machine's architecture, as images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read;

    fn entries(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut tar = tar::Archive::new(archive);
        let mut found = BTreeMap::new();
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_string_lossy().into_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            found.insert(path, content);
        }
        found
    }

    #[test]
    fn the_manifest_names_a_configuration_and_a_layer_whose_digests_hold() {
        let layer = layer(&[("palisade-agent", b"agent".to_vec()), ("palisade-cni", b"cni".to_vec())]).unwrap();
        let files = entries(&archive(&layer, "1.2.3", "amd64").unwrap());
        let manifest: serde_json::Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        assert_eq!(manifest[0]["RepoTags"], json!(["palisade/agent:1.2.3"]));
        let configuration = &files[manifest[0]["Config"].as_str().unwrap()];
        assert_eq!(manifest[0]["Config"], format!("{}.json", digest(configuration)));
        let configuration: serde_json::Value = serde_json::from_slice(configuration).unwrap();
        let layer = &files[manifest[0]["Layers"][0].as_str().unwrap()];
        assert_eq!(configuration["rootfs"]["diff_ids"][0], format!("sha256:{}", digest(layer)));
        assert_eq!(configuration["config"]["Entrypoint"][0], "/usr/bin/palisade-agent");
        let inside = entries(layer);
        assert_eq!(inside["usr/bin/palisade-cni"], b"cni");
        assert_eq!(inside["usr/bin/palisade-agent"], b"agent");
    }

    #[test]
    fn the_same_binaries_give_the_same_bytes() {
        let once = archive(&layer(&[("palisade", b"cli".to_vec())]).unwrap(), "1.2.3", "amd64").unwrap();
        let again = archive(&layer(&[("palisade", b"cli".to_vec())]).unwrap(), "1.2.3", "amd64").unwrap();
        assert_eq!(once, again);
    }
}
