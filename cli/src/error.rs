//! How a command ends.

use palisade_protocol::ClientError;
use std::process::ExitCode;

/// Why a command did not do what was asked; its text is the one sentence that the user reads.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// What was measured is not what was expected; the differences are printed already.
    #[error("{0}")]
    Differs(String),
    /// The command line or a file that the user wrote cannot be used.
    #[error("{0}")]
    Input(String),
    /// This machine, or the rights of the user, do not allow it.
    #[error("{0}")]
    Environment(String),
    /// Packets went another way than the compiled policy says; the rows are printed already.
    #[error("{0}")]
    Disagrees(String),
    /// The agent could not be asked.
    #[error(transparent)]
    Socket(#[from] ClientError),
    /// The agent refused, or a step failed that should not.
    #[error("{0}")]
    Failed(String),
    /// Standard output or another stream cannot be used.
    #[error("cannot write the output: {0}")]
    Output(#[from] std::io::Error),
    /// Ended by the user before the result was there.
    #[error("interrupted: everything that this command made is removed")]
    Interrupted,
    /// A command that ran elsewhere ended with this code; it has said why itself.
    #[error("the command ended with {0}")]
    Code(u8),
}

impl CliError {
    /// The exit code; `docs/user/cli.md` lists them.
    pub fn code(&self) -> u8 {
        match self {
            Self::Differs(_) => 1,
            Self::Input(_) => 2,
            Self::Socket(ClientError::Refused(_)) => 5,
            Self::Environment(_) | Self::Socket(_) => 3,
            Self::Disagrees(_) => 4,
            Self::Failed(_) => 5,
            // Whoever read the output has seen enough: that is no failure.
            Self::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe => 0,
            Self::Output(_) => 5,
            Self::Interrupted => 130,
            Self::Code(code) => *code,
        }
    }

    /// Says why on standard error, where there is something to say, and gives the exit code.
    pub fn report(&self) -> ExitCode {
        let silent = matches!(self, Self::Code(_)) || matches!(self, Self::Output(_)) && self.code() == 0;
        if !silent {
            // Standard error may be closed as well; the exit code still says that it failed.
            let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("palisade: {self}\n").as_bytes());
        }
        ExitCode::from(self.code())
    }
}
