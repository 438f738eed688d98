use palisade_datapath_core::packet::connection::Lifetimes;

/// A time-out that cannot be set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimeoutError {
    /// It has no value, or none that is a number of seconds.
    #[error("{0:?} is no time-out: write NAME=SECONDS, such as udp=60")]
    Malformed(String),
    /// There is no time-out of this name.
    #[error("there is no time-out {0:?}: tcp-established, tcp-half-open, tcp-closed, udp-answered, udp and icmp are")]
    Unknown(String),
}

/// Sets one time-out of connections, written as `NAME=SECONDS`; a second at least.
///
/// # Errors
/// [`TimeoutError`].
pub fn set_timeout(lifetimes: &mut Lifetimes, written: &str) -> Result<(), TimeoutError> {
    let malformed = || TimeoutError::Malformed(written.to_owned());
    let (name, seconds) = written.split_once('=').ok_or_else(malformed)?;
    let lifetime = match name {
        "tcp-established" => &mut lifetimes.established,
        "tcp-half-open" => &mut lifetimes.half_open,
        "tcp-closed" => &mut lifetimes.closed,
        "udp-answered" => &mut lifetimes.datagram_answered,
        "udp" => &mut lifetimes.datagram,
        "icmp" => &mut lifetimes.echo,
        name => return Err(TimeoutError::Unknown(name.to_owned())),
    };
    *lifetime = seconds.parse().ok().filter(|seconds| *seconds > 0).ok_or_else(malformed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_out_is_set_by_its_name_and_anything_else_is_refused() {
        let mut lifetimes = Lifetimes::DEFAULT;
        for written in ["tcp-established=1", "tcp-half-open=2", "tcp-closed=3", "udp-answered=4", "udp=5", "icmp=4294967295"] {
            set_timeout(&mut lifetimes, written).unwrap();
        }
        let set = Lifetimes { established: 1, half_open: 2, closed: 3, datagram_answered: 4, datagram: 5, echo: u32::MAX };
        assert_eq!(lifetimes, set);
        for wrong in ["udp", "udp=", "udp=0", "udp=-1", "udp=1s", "udp=4294967296"] {
            assert_eq!(set_timeout(&mut lifetimes, wrong), Err(TimeoutError::Malformed(wrong.into())));
        }
        assert_eq!(set_timeout(&mut lifetimes, "tcp=7"), Err(TimeoutError::Unknown("tcp".into())));
        assert_eq!(lifetimes, set, "what is refused sets nothing");
    }
}
