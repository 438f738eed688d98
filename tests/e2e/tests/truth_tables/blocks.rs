//! Peers by address.

use palisade_e2e::scenario::Scenario;

crate::scenarios![
    a_block_of_one_address_is_one_family_of_one_pod,
    blocks_of_both_families_are_both_addresses,
    a_block_of_length_0_is_all_of_its_family,
    except_is_not_by_this_rule,
    except_is_no_denial,
    an_except_belongs_to_its_own_block,
    a_longer_block_hides_nothing_of_a_shorter_one,
    a_block_and_a_selector_are_alternatives,
    egress_to_a_block,
    egress_to_everywhere_except_a_pod,
];

fn from(peers: &str) -> Scenario {
    Scenario::default().policy("x/p", &format!("{{podSelector: {{}}, ingress: [{{from: {peers}}}]}}"))
}

fn to(peers: &str) -> Scenario {
    Scenario::default().policy("x/p", &format!("{{podSelector: {{}}, policyTypes: [Egress], egress: [{{to: {peers}}}]}}"))
}

fn a_block_of_one_address_is_one_family_of_one_pod() -> Scenario {
    from("[{ipBlock: {cidr: $4(y/a)/32}}]")
        .gives("to x/* only from y/a by v4")
        .policy("x/p", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: '$6(y/a)/128'}}]}]}")
        .gives("to x/* only from y/a by v6")
}

fn blocks_of_both_families_are_both_addresses() -> Scenario {
    from("[{ipBlock: {cidr: $4(y/a)/32}}, {ipBlock: {cidr: '$6(y/a)/128'}}, {ipBlock: {cidr: '$6(z/b)/128'}}]")
        .gives("to x/* only from y/a or from z/b by v6")
}

fn a_block_of_length_0_is_all_of_its_family() -> Scenario {
    from("[{ipBlock: {cidr: 0.0.0.0/0}}]")
        .gives("to x/* only from */* by v4")
        .policy("x/p", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: '::/0'}}]}]}")
        .gives("to x/* only from */* by v6")
}

fn except_is_not_by_this_rule() -> Scenario {
    from("[{ipBlock: {cidr: 0.0.0.0/0, except: [$4(y/a)/32, $4(z/c)/32]}}]").gives("to x/* only from x/*,y/b,y/c,z/a,z/b by v4")
}

fn except_is_no_denial() -> Scenario {
    from("[{ipBlock: {cidr: 0.0.0.0/0, except: [$4(y/a)/32]}}]")
        .policy(
            "x/more",
            "{podSelector: {matchLabels: {pod: b}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}], ports: [{port: 80}]}]}",
        )
        .gives("to x/a,x/c only from x/*,y/b,y/c,z/* by v4\n to x/b only from x/*,y/b,y/c,z/* by v4 or from y/* on tcp/80")
}

fn an_except_belongs_to_its_own_block() -> Scenario {
    from("[{ipBlock: {cidr: 0.0.0.0/0, except: [$4(y/a)/32, $4(y/b)/32]}}, {ipBlock: {cidr: $4(y/a)/32}}]")
        .gives("to x/* only from x/*,y/a,y/c,z/* by v4")
}

fn a_longer_block_hides_nothing_of_a_shorter_one() -> Scenario {
    Scenario::default()
        .policy(
            "x/p",
            "{podSelector: {}, ingress: [
                {from: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: '::/0'}}], ports: [{port: 80}]},
                {from: [{ipBlock: {cidr: $4(y/a)/32}}, {ipBlock: {cidr: '$6(y/a)/128'}}], ports: [{port: 81}]}]}",
        )
        .gives("to x/* only from */* on tcp/80 or from y/a on tcp/81")
}

fn a_block_and_a_selector_are_alternatives() -> Scenario {
    from("[{ipBlock: {cidr: $4(y/a)/32}}, {podSelector: {matchLabels: {pod: c}}}]").gives("to x/* only from y/a by v4 or from x/c")
}

fn egress_to_a_block() -> Scenario {
    to("[{ipBlock: {cidr: $4(z/a)/32}}, {ipBlock: {cidr: '$6(z/b)/128'}}]").gives("from x/* only to z/a by v4 or to z/b by v6")
}

fn egress_to_everywhere_except_a_pod() -> Scenario {
    to("[{ipBlock: {cidr: 0.0.0.0/0, except: [$4(z/a)/32]}}, {ipBlock: {cidr: '::/0', except: ['$6(z/a)/128']}}]")
        .gives("from x/* only to x/*,y/*,z/b,z/c")
}
