//! The verbs, one file each: read the call, check all of it, act, and undo what was done when a step fails.
//!
//! Results and error objects go to standard output, everything else to standard error.

mod add;
mod addresses;
mod agent;
mod call;
mod check;
mod del;
mod delegate;
mod gc;
mod names;
mod reconcile;
mod record;
mod status;
mod undo;
mod version;
mod wire;

pub use names::{host_interface, is_host_interface};

use crate::spec::{Command, Demand, Environment, Error, NetworkConfig, SpecVersion};
use delegate::Delegate;
use std::io::{Read, Write};

/// What the program says of itself when it is started without a verb.
const ABOUT: &str = concat!(
    "palisade-cni ",
    env!("CARGO_PKG_VERSION"),
    ": the CNI plugin of Palisade, for CNI 0.3.1, 0.4.0, 1.0.0 and 1.1.0. Container runtimes start it with CNI_COMMAND set."
);

/// Runs one call of the runtime: `variables` are the environment, `input` is where the network configuration comes
/// from, `output` is where the result or the error object goes. Returns the exit code.
pub fn run(variables: impl IntoIterator<Item = (String, String)>, mut input: impl Read, mut output: impl Write) -> u8 {
    let environment = Environment::new(variables);
    let Some(command) = environment.command() else {
        eprintln!("{ABOUT}");
        return 0;
    };
    let mut config = Vec::new();
    let answer = command.and_then(|command| {
        if command != Command::Version {
            input.read_to_end(&mut config).map_err(|error| {
                Error::new(crate::spec::Code::Io, format!("the network configuration cannot be read from standard input: {error}"))
            })?;
        }
        dispatch(command, &environment, &config)
    });
    let (json, code) = match answer {
        Ok(None) => return 0,
        Ok(Some(json)) => (json, 0),
        Err(error) => {
            eprintln!("palisade-cni: {error}");
            (error.to_json(NetworkConfig::version_of(&config)), 1)
        }
    };
    match writeln!(output, "{json}").and_then(|()| output.flush()) {
        Ok(()) => code,
        Err(error) => {
            eprintln!("palisade-cni: cannot write to standard output: {error}");
            1
        }
    }
}

fn dispatch(command: Command, environment: &Environment, input: &[u8]) -> Result<Option<serde_json::Value>, Error> {
    match command {
        Command::Add => {
            let call = call::Call::read(environment, input, &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"])?;
            let pod = call::Pod::read(environment)?;
            let demand = Demand::of_new(&call.config, environment)?;
            add::add(&call, &pod, &demand).map(|result| Some(result.to_json(call.config.version)))
        }
        Command::Del => {
            let call = call::Call::read(environment, input, &["CNI_CONTAINERID", "CNI_IFNAME"])?;
            del::del(&call).map(|()| None)
        }
        Command::Check => {
            let call = call::Call::read(environment, input, &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"])?;
            call.config.require_version("CHECK", SpecVersion::V0_4_0)?;
            check::check(&call, &Demand::read(&call.config, environment)?).map(|()| None)
        }
        Command::Gc => {
            let config = call::read_config(input)?;
            config.require_version("GC", SpecVersion::V1_1_0)?;
            gc::gc(&config, Delegate::of(&config, environment, input).as_ref()).map(|()| None)
        }
        Command::Status => {
            let config = call::read_config(input)?;
            config.require_version("STATUS", SpecVersion::V1_1_0)?;
            status::status(&config, Delegate::of(&config, environment, input).as_ref()).map(|()| None)
        }
        Command::Version => Ok(Some(version::version())),
    }
}

/// Says something to whoever reads the runtime's log.
fn log(message: impl std::fmt::Display) {
    eprintln!("palisade-cni: {message}");
}
