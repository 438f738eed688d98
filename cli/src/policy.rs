//! `palisade policy`.

use crate::agent;
use crate::arguments::{Asking, AskingFor};
use crate::error::CliError;
use crate::print;
use crate::table::{Cell, Paint, Table, Tone};
use palisade_protocol::{Call, PolicyStatus, Reply};

/// Lists the policies that the agent knows.
pub fn list(arguments: &Asking) -> Result<(), CliError> {
    let policies = ask(arguments, None)?;
    print::answer(arguments.output, &policies, |paint| rendered(&policies, paint))
}

/// One policy, or several kinds of one name, with the pods that they select.
pub fn get(arguments: &AskingFor) -> Result<(), CliError> {
    let policies = ask(&arguments.asking, Some(arguments.object.clone()))?;
    if policies.is_empty() {
        return Err(CliError::Input(format!("no policy {} is known here: `palisade policy list` names them", arguments.object)));
    }
    print::answer(arguments.asking.output, &policies, |paint| rendered(&policies, paint))
}

fn ask(arguments: &Asking, object: Option<String>) -> Result<Vec<PolicyStatus>, CliError> {
    match agent::connect(&arguments.agent)?.call(Call::Policies { object })? {
        Reply::Policies(policies) => Ok(policies),
        other => Err(agent::unexpected(&other)),
    }
}

fn rendered(policies: &[PolicyStatus], paint: Paint) -> String {
    let mut table = Table::new(["KIND", "POLICY", "TIER", "MODE", "INGRESS", "EGRESS", "PODS", "HERE", "ENFORCED HERE"]);
    for policy in policies {
        let rules = |rules: Option<usize>| rules.map_or_else(|| "-".into(), |rules| format!("{rules} rules"));
        let (enforced, tone) = match (policy.enforced, &policy.refused) {
            (true, None) => ("yes", Tone::Good),
            (true, Some(_)) => ("not as written", Tone::Alarm),
            (false, _) => ("not yet", Tone::Bad),
        };
        table.row([
            policy.kind.as_str().into(),
            policy.object.as_str().into(),
            policy.tier.as_str().into(),
            policy.mode.as_str().into(),
            rules(policy.ingress_rules).into(),
            rules(policy.egress_rules).into(),
            policy.pods.to_string().into(),
            policy.pods_here.to_string().into(),
            Cell::toned(enforced, tone),
        ]);
    }
    let mut text = table.render(paint);
    for policy in policies {
        if let Some(refused) = &policy.refused {
            text.push_str(&format!("{} {}: {refused}\n", policy.kind, policy.object));
        }
        if !policy.selected.is_empty() {
            text.push_str(&format!("{} {} selects {}\n", policy.kind, policy.object, policy.selected.join(", ")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_was_refused_is_not_enforced_as_written_and_says_why() {
        let policy = PolicyStatus {
            kind: "IdentityPolicy".into(),
            object: "shop/p".into(),
            tier: "Workload".into(),
            mode: "Enforce".into(),
            ingress_rules: Some(0),
            egress_rules: None,
            pods: 3,
            pods_here: 1,
            enforced: true,
            refused: Some("spec.ingress[0].action: there is no action".into()),
            selected: vec!["shop/a".into(), "shop/b".into()],
        };
        let text = rendered(&[policy], Paint::none());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[1].split_whitespace().collect::<Vec<_>>().join(" "),
            "IdentityPolicy shop/p Workload Enforce 0 rules - 3 1 not as written"
        );
        assert_eq!(lines[2], "IdentityPolicy shop/p: spec.ingress[0].action: there is no action");
        assert_eq!(lines[3], "IdentityPolicy shop/p selects shop/a, shop/b");
    }
}
