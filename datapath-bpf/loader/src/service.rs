use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use palisade_datapath_core::abi::{ServiceEntry, ServiceKey, V4, V6, map};

use crate::{LoaderError, PinDir, Table};

/// Address, port (host byte order) and IP protocol number of a frontend.
pub type FrontendKey = (IpAddr, u16, u8);

/// Two tables of frontends, one per family.
#[derive(Debug)]
pub struct ServiceTable {
    v4: Table<ServiceKey<V4>, ServiceEntry>,
    v6: Table<ServiceKey<V6>, ServiceEntry>,
}

fn key<A>(address: A, port: u16, protocol: u8) -> ServiceKey<A> {
    ServiceKey { address, port: port.to_be_bytes(), protocol, reserved: 0 }
}

impl ServiceTable {
    pub(crate) fn open(pin: &PinDir) -> Result<Self, LoaderError> {
        Ok(Self { v4: Table::open(pin, map::SERVICES_V4)?, v6: Table::open(pin, map::SERVICES_V6)? })
    }

    /// The names of both maps, and how many rows each has room for.
    pub fn room(&self) -> [(&'static str, u32); 2] {
        [(self.v4.name(), self.v4.max_entries()), (self.v6.name(), self.v6.max_entries())]
    }

    /// The row of a frontend, if there is one.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn get(&self, (address, port, protocol): FrontendKey) -> Result<Option<ServiceEntry>, LoaderError> {
        match address {
            IpAddr::V4(address) => self.v4.get(&key(address.octets(), port, protocol)),
            IpAddr::V6(address) => self.v6.get(&key(address.octets(), port, protocol)),
        }
    }

    /// Writes the row of a frontend, over an older one if there is one, in one step.
    ///
    /// # Errors
    /// [`LoaderError::TableFull`], [`LoaderError::Table`].
    pub fn insert(&mut self, (address, port, protocol): FrontendKey, entry: &ServiceEntry) -> Result<(), LoaderError> {
        match address {
            IpAddr::V4(address) => self.v4.insert(&key(address.octets(), port, protocol), entry),
            IpAddr::V6(address) => self.v6.insert(&key(address.octets(), port, protocol), entry),
        }
    }

    /// Removes the row of a frontend. Says whether there was one.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn remove(&mut self, (address, port, protocol): FrontendKey) -> Result<bool, LoaderError> {
        match address {
            IpAddr::V4(address) => self.v4.remove(&key(address.octets(), port, protocol)),
            IpAddr::V6(address) => self.v6.remove(&key(address.octets(), port, protocol)),
        }
    }

    /// All rows of both families.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn rows(&self) -> Result<BTreeMap<FrontendKey, ServiceEntry>, LoaderError> {
        let v4 = self.v4.rows()?.into_iter().map(|(key, entry)| (frontend(Ipv4Addr::from(key.address), key.port, key.protocol), entry));
        let v6 = self.v6.rows()?.into_iter().map(|(key, entry)| (frontend(Ipv6Addr::from(key.address), key.port, key.protocol), entry));
        Ok(v4.chain(v6).collect())
    }
}

fn frontend(address: impl Into<IpAddr>, port: [u8; 2], protocol: u8) -> FrontendKey {
    (address.into(), u16::from_be_bytes(port), protocol)
}
