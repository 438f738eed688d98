//! `palisade policy`.

use crate::agent;
use crate::arguments::{Asking, AskingFor};
use crate::error::CliError;
use crate::print;
use crate::standing;
use crate::table::{Paint, Table, count};
use palisade_protocol::{Call, PeersMatched, PolicyStatus, Reply};

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
    let mut table = Table::new(["KIND", "POLICY", "TIER", "MODE", "INGRESS", "EGRESS", "PODS", "HERE", "NODES", "ACCEPTED", "ENFORCED"]);
    for policy in policies {
        let rules = |rules: Option<usize>| rules.map_or_else(|| "-".into(), |rules| count(rules, "rule", "rules"));
        let [accepted, enforced] = standing::cells(&policy.standing);
        table.row([
            policy.kind.as_str().into(),
            policy.object.as_str().into(),
            policy.tier.as_str().into(),
            policy.mode.as_str().into(),
            rules(policy.ingress_rules).into(),
            rules(policy.egress_rules).into(),
            policy.pods.to_string().into(),
            policy.pods_here.to_string().into(),
            standing::nodes(&policy.standing).into(),
            accepted,
            enforced,
        ]);
    }
    let mut text = table.render(paint);
    for policy in policies {
        let name = format!("{} {}", policy.kind, policy.object);
        text.push_str(&standing::notes(&name, &policy.standing));
        if !policy.unknown_identities.is_empty() {
            let names = policy.unknown_identities.join(", ");
            text.push_str(&format!(
                "{name}: no such identity: {names}; rules that allow by it allow nobody, rules that deny by it deny everybody\n"
            ));
        }
        if !policy.selected.is_empty() {
            text.push_str(&format!("{name} selects {}\n", policy.selected.join(", ")));
        }
        if let Some(PeersMatched { pods, addresses }) = policy.peers {
            let (pods, addresses) = (count(pods, "pod", "pods"), count(addresses, "address", "addresses"));
            text.push_str(&format!("{name}: its peers match {pods}, {addresses} of pods, nodes and the API server\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_protocol::{Condition, Standing};

    fn condition(of: &str, status: &str, reason: &str, message: &str) -> Condition {
        Condition { of: of.into(), status: status.into(), reason: reason.into(), message: message.into() }
    }

    fn policy(conditions: [Condition; 2]) -> PolicyStatus {
        PolicyStatus {
            kind: "IdentityPolicy".into(),
            object: "shop/p".into(),
            tier: "Workload".into(),
            mode: "Enforce".into(),
            ingress_rules: Some(0),
            egress_rules: None,
            pods: 3,
            pods_here: 1,
            enforced: true,
            unknown_identities: Vec::new(),
            refused: None,
            standing: Standing { generation: Some(4), nodes_enforcing: 2, nodes: 3, conditions: conditions.into() },
            selected: vec!["shop/a".into(), "shop/b".into()],
            peers: Some(PeersMatched { pods: 1, addresses: 2 }),
        }
    }

    #[test]
    fn where_nodes_are_silent_it_is_unknown_whether_a_policy_is_enforced_and_they_are_named() {
        let enforced = condition("Enforced", "Unknown", "Unknown", "2 of 3 nodes; no report from: n2");
        let text = rendered(&[policy([condition("Accepted", "True", "Accepted", ""), enforced])], Paint::none());
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].ends_with("True      Unknown"), "{text}");
        assert_eq!(lines[2], "IdentityPolicy shop/p: 2 of 3 nodes; no report from: n2");
    }

    #[test]
    fn an_identity_that_does_not_exist_is_named_beside_the_policy_that_names_it() {
        let accepted = || [condition("Accepted", "True", "Accepted", ""), condition("Enforced", "True", "AllNodes", "")];
        let text = rendered(&[PolicyStatus { unknown_identities: vec!["clii".into()], ..policy(accepted()) }], Paint::none());
        assert!(text.contains("IdentityPolicy shop/p: no such identity: clii; "), "{text}");
        assert!(!rendered(&[policy(accepted())], Paint::none()).contains("no such identity"));
    }

    #[test]
    fn a_policy_that_was_refused_is_not_enforced_as_written_and_says_why() {
        let policy = policy([
            condition("Accepted", "False", "InvalidField", "spec.ingress[0].action: there is no action"),
            condition("Enforced", "False", "NotAccepted", "not as it is written"),
        ]);
        let text = rendered(&[policy], Paint::none());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[1].split_whitespace().collect::<Vec<_>>().join(" "),
            "IdentityPolicy shop/p Workload Enforce 0 rules - 3 1 2/3 InvalidField NotAccepted"
        );
        assert_eq!(lines[2], "IdentityPolicy shop/p: spec.ingress[0].action: there is no action");
        assert_eq!(lines[3], "IdentityPolicy shop/p: not as it is written");
        assert_eq!(lines[4], "IdentityPolicy shop/p selects shop/a, shop/b");
        assert_eq!(lines[5], "IdentityPolicy shop/p: its peers match 1 pod, 2 addresses of pods, nodes and the API server");
    }
}
