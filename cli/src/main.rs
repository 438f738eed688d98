//! `palisade`, the command line.
#![forbid(unsafe_code)]

mod agent;
mod arguments;
mod endpoint;
mod error;
mod explain;
mod files;
mod identity;
mod lab;
mod observe;
mod policy;
mod print;
mod service;
mod standing;
mod status;
mod table;

use arguments::{Arguments, Command, EndpointCommand, IdentityCommand, PolicyCommand, ServiceCommand};
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    // The lab runs the agent's code, which speaks through this; a lab says the rest itself.
    let filter =
        tracing_subscriber::EnvFilter::try_from_env("PALISADE_LOG").unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let result = match Arguments::parse().command {
        Command::Lab(arguments) => lab::run(arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Observe(arguments) => observe::run(&arguments),
        Command::Endpoint { command: EndpointCommand::List(arguments) } => endpoint::list(&arguments),
        Command::Policy { command: PolicyCommand::List(arguments) } => policy::list(&arguments),
        Command::Policy { command: PolicyCommand::Get(arguments) } => policy::get(&arguments),
        Command::Identity { command: IdentityCommand::List(arguments) } => identity::list(&arguments),
        Command::Identity { command: IdentityCommand::Get(arguments) } => identity::get(&arguments),
        Command::Service { command: ServiceCommand::List(arguments) } => service::list(&arguments),
        Command::Service { command: ServiceCommand::Get(arguments) } => service::get(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::LabInit { options } => lab::init(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}
