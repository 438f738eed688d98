//! `palisade identity`.

use crate::agent;
use crate::arguments::{Asking, AskingFor};
use crate::error::CliError;
use crate::print;
use crate::standing;
use crate::table::{Paint, Table};
use palisade_protocol::{Call, IdentityStatus, Reply};

/// Lists the identities that the agent knows.
pub fn list(arguments: &Asking) -> Result<(), CliError> {
    let identities = ask(arguments, None)?;
    print::answer(arguments.output, &identities, |paint| rendered(&identities, paint))
}

/// One identity, with what it matches.
pub fn get(arguments: &AskingFor) -> Result<(), CliError> {
    let identities = ask(&arguments.asking, Some(arguments.object.clone()))?;
    if identities.is_empty() {
        return Err(CliError::Input(format!("no identity {} is known here: `palisade identity list` names them", arguments.object)));
    }
    print::answer(arguments.asking.output, &identities, |paint| rendered(&identities, paint))
}

fn ask(arguments: &Asking, object: Option<String>) -> Result<Vec<IdentityStatus>, CliError> {
    match agent::connect(&arguments.agent)?.call(Call::Identities { object })? {
        Reply::Identities(identities) => Ok(identities),
        other => Err(agent::unexpected(&other)),
    }
}

fn rendered(identities: &[IdentityStatus], paint: Paint) -> String {
    let mut table = Table::new(["IDENTITY", "PODS", "ADDRESSES", "NODES", "ACCEPTED", "ENFORCED", "NAMED BY"]);
    for identity in identities {
        let policies = if identity.policies.is_empty() { "-".to_owned() } else { identity.policies.join(", ") };
        let [accepted, enforced] = standing::cells(&identity.standing);
        table.row([
            identity.name.as_str().into(),
            identity.pods.to_string().into(),
            identity.addresses.to_string().into(),
            standing::nodes(&identity.standing).into(),
            accepted,
            enforced,
            policies.into(),
        ]);
    }
    let mut text = table.render(paint);
    for identity in identities {
        text.push_str(&standing::notes(&identity.name, &identity.standing));
        if !identity.matched.is_empty() {
            text.push_str(&format!("{} matches {}\n", identity.name, identity.matched.join(", ")));
        }
    }
    text
}
