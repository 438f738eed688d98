use std::{collections::BTreeMap, fmt};

use aya::maps::MapData;
use aya_obj::{EbpfSectionKind, Object, generated::bpf_map_type};

use palisade_datapath_core::abi::map;

use crate::{
    LoaderError, PinDir, Sizes,
    copy::GROWING,
    error::{cannot_open, os_error},
};

/// What a map is made of. Two maps of one layout can be read and written alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The kernel's number of the map's type (`BPF_MAP_TYPE_*`).
    pub map_type: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Rows, or bytes of a ring.
    pub max_entries: u32,
    /// The flags that the map was made with (`BPF_F_*`).
    pub flags: u32,
}

impl fmt::Display for Layout {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match bpf_map_type::try_from(self.map_type) {
            Ok(kind) => {
                let name = format!("{kind:?}");
                formatter.write_str(&name.trim_start_matches("BPF_MAP_TYPE_").to_lowercase().replace('_', " "))?;
            }
            Err(_) => write!(formatter, "map type {}", self.map_type)?,
        }
        let Self { key_size, value_size, max_entries, flags, .. } = self;
        write!(formatter, " with {key_size}-byte keys, {value_size}-byte values, {max_entries} entries and flags {flags:#x}")
    }
}

/// The layouts that the object declares for its pinned maps, by name, with the configured sizes.
pub(crate) fn declared(object: &[u8], sizes: &Sizes) -> Result<BTreeMap<String, Layout>, LoaderError> {
    let object = Object::parse(object).map_err(|error| LoaderError::Object { what: error.to_string() })?;
    let mut layouts = BTreeMap::new();
    for (name, declared) in &object.maps {
        // Constants, statics and scratch memory belong to one loading of the programs.
        if matches!(declared.section_kind(), EbpfSectionKind::Bss | EbpfSectionKind::Data | EbpfSectionKind::Rodata)
            || matches!(name.as_str(), map::SCRATCH_V4 | map::SCRATCH_V6)
        {
            continue;
        }
        let mut max_entries = sizes.of(name).unwrap_or_else(|| declared.max_entries());
        let mut value_size = declared.value_size();
        if declared.map_type() == bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32 {
            max_entries = ring_bytes(max_entries);
            value_size = 0;
        }
        let layout =
            Layout { map_type: declared.map_type(), key_size: declared.key_size(), value_size, max_entries, flags: declared.map_flags() };
        layouts.insert(name.clone(), layout);
    }
    Ok(layouts)
}

/// A ring holds a power of two of pages.
fn ring_bytes(wanted: u32) -> u32 {
    let page = u32::try_from(nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096)).unwrap_or(4096);
    wanted.clamp(page, 1 << 30).next_power_of_two()
}

/// The layout of a pinned map; `None` where there is none.
pub(crate) fn pinned(pin: &PinDir, name: &str) -> Result<Option<Layout>, LoaderError> {
    let path = pin.map(name);
    let info = match MapData::from_pin(&path).and_then(|map| map.info()) {
        Ok(info) => info,
        Err(error) if os_error(&error) == Some(nix::libc::ENOENT) => return Ok(None),
        Err(error) => return Err(cannot_open(&path, error)),
    };
    let map_type = info.map_type().map_or(0, |kind| kind as u32);
    Ok(Some(Layout {
        map_type,
        key_size: info.key_size(),
        value_size: info.value_size(),
        max_entries: info.max_entries(),
        flags: info.map_flags(),
    }))
}

/// A map that is to be replaced by a larger one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Larger {
    pub(crate) map: &'static str,
    /// Rows that the pinned one has room for.
    pub(crate) from: u32,
    /// Rows that the new one will have room for.
    pub(crate) to: u32,
}

/// Compares what is pinned with what the object declares, before anything is reused, and gives each map the size
/// that it has or will have: at least its first size and what `wanted` asks for. Tells which maps are pinned with less.
pub(crate) fn reconcile(
    pin: &PinDir,
    sizes: &Sizes,
    wanted: &[(&'static str, u32)],
    declared: &mut BTreeMap<String, Layout>,
) -> Result<Vec<Larger>, LoaderError> {
    let mut larger = Vec::new();
    for (name, layout) in declared {
        let Some(pinned) = pinned(pin, name)? else { continue };
        let configured = *layout;
        if sizes.of(name).is_some() {
            layout.max_entries = pinned.max_entries;
        }
        if pinned != *layout {
            return Err(LoaderError::Layout {
                map: name.clone(),
                path: pin.map(name),
                pinned: pinned.to_string(),
                declared: configured.to_string(),
            });
        }
        match GROWING.into_iter().find(|growing| growing == name) {
            Some(map) => {
                let asked = wanted.iter().filter(|(of, _)| *of == map).map(|(_, rows)| *rows);
                let to = asked.fold(configured.max_entries, u32::max);
                if to > pinned.max_entries {
                    layout.max_entries = to;
                    larger.push(Larger { map, from: pinned.max_entries, to });
                }
            }
            None if pinned.max_entries != configured.max_entries => tracing::warn!(
                map = name,
                pinned = pinned.max_entries,
                configured = configured.max_entries,
                "the pinned map keeps its size; drain the node and remove the pin directory to change it"
            ),
            None => {}
        }
    }
    Ok(larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_reads_as_words() {
        let layout = Layout { map_type: 1, key_size: 4, value_size: 36, max_entries: 16, flags: 1 };
        assert_eq!(layout.to_string(), "hash with 4-byte keys, 36-byte values, 16 entries and flags 0x1");
        assert!(Layout { map_type: 9_999, ..layout }.to_string().starts_with("map type 9999 with"));
    }

    #[test]
    fn a_ring_is_a_power_of_two_of_pages() {
        assert_eq!(ring_bytes(0), 4096);
        assert_eq!(ring_bytes(4097), 8192);
        assert_eq!(ring_bytes(1 << 20), 1 << 20);
        assert_eq!(ring_bytes(u32::MAX), 1 << 30);
    }
}
