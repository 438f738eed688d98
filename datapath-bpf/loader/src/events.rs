use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use aya::maps::{Map, MapData, MapError, RingBuf};
use palisade_datapath_core::abi::{DatapathEvent, map};
use zerocopy::FromBytes;

use crate::{LoaderError, PinDir, error::cannot_open};

/// The verdicts that the programs report, oldest first.
///
/// Its file descriptor is readable while events wait, so it can be polled. Read it in one place only: all readers share one position.
pub struct EventRing {
    ring: RingBuf<MapData>,
}

impl EventRing {
    pub(crate) fn open(pin: &PinDir) -> Result<Self, LoaderError> {
        let path = pin.map(map::EVENTS);
        let ring = MapData::from_pin(&path)
            .and_then(Map::from_map_data)
            .and_then(RingBuf::try_from)
            .map_err(|error: MapError| cannot_open(&path, error))?;
        Ok(Self { ring })
    }

    /// Takes the next event; `None` when none waits.
    ///
    /// # Errors
    /// [`LoaderError::EventMalformed`] for a record that is no event. It is taken too: the next call reads on behind it.
    #[expect(clippy::should_implement_trait, reason = "an iterator that ends and goes on again would surprise")]
    pub fn next(&mut self) -> Result<Option<DatapathEvent>, LoaderError> {
        self.ring.next().map(|record| parse(&record)).transpose()
    }
}

fn parse(record: &[u8]) -> Result<DatapathEvent, LoaderError> {
    DatapathEvent::read_from_bytes(record)
        .map_err(|_| LoaderError::EventMalformed { length: record.len(), expected: size_of::<DatapathEvent>() })
}

impl AsFd for EventRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl AsRawFd for EventRing {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_another_length_is_an_error() {
        for length in [0, 1, size_of::<DatapathEvent>() - 1, size_of::<DatapathEvent>() + 8] {
            let error = parse(&vec![0; length]).unwrap_err();
            assert!(matches!(error, LoaderError::EventMalformed { length: found, .. } if found == length), "{error}");
        }
        assert_eq!(parse(&[0; size_of::<DatapathEvent>()]).unwrap(), DatapathEvent::default());
    }
}
