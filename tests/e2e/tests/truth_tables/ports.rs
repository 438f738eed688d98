//! Ports: numbers, names, ranges, protocols. The port `web` is 80 on all pods but z/c, where it is 81; y/c has two ports
//! `twice`, first 80 and then 81; `dgram` is UDP 80 and `assoc` is SCTP 80 everywhere.

use palisade_e2e::scenario::Scenario;

crate::scenarios![
    a_port_opens_one_number_of_its_protocol_and_no_echo,
    the_protocol_of_a_port_is_tcp_by_default,
    udp_and_tcp_of_one_number_are_two_ports,
    a_protocol_without_a_number_is_all_of_that_protocol,
    several_ports_of_a_rule_are_alternatives,
    ports_belong_to_the_peers_of_their_rule,
    a_rule_without_ports_admits_every_port_and_echo,
    a_range_includes_its_first_and_its_last_port,
    a_range_ends_before_the_next_port,
    a_named_port_is_the_number_that_each_pod_gives_it,
    a_named_port_of_udp_opens_udp,
    the_protocol_of_a_named_port_must_fit,
    a_name_that_no_pod_has_opens_nothing,
    a_name_that_a_pod_gives_to_two_numbers_means_both,
    egress_to_a_named_port_is_asked_of_each_destination,
    egress_to_a_named_port_of_some_peers,
    sctp_isolates_and_opens_nothing_else,
    a_range_of_sctp_opens_its_ports_and_no_others,
    an_sctp_port_of_some_peers_is_open_to_them_only,
    egress_by_sctp_goes_where_its_rule_says_only,
    a_named_port_of_tcp_opens_nothing_of_sctp,
    a_named_port_of_sctp_opens_sctp,
];

/// A policy of all pods of z, with these ports of everybody.
fn open(ports: &str) -> Scenario {
    Scenario::default().policy("z/p", &format!("{{podSelector: {{}}, ingress: [{{ports: {ports}}}]}}"))
}

fn a_port_opens_one_number_of_its_protocol_and_no_echo() -> Scenario {
    open("[{port: 81, protocol: TCP}]").gives("to z/* only from */* on tcp/81")
}

fn the_protocol_of_a_port_is_tcp_by_default() -> Scenario {
    open("[{port: 80}]").gives("to z/* only from */* on tcp/80")
}

fn udp_and_tcp_of_one_number_are_two_ports() -> Scenario {
    open("[{port: 80, protocol: UDP}]")
        .gives("to z/* only from */* on udp/80")
        .policy("z/p", "{podSelector: {}, ingress: [{ports: [{port: 80, protocol: TCP}]}]}")
        .gives("to z/* only from */* on tcp/80")
}

fn a_protocol_without_a_number_is_all_of_that_protocol() -> Scenario {
    open("[{protocol: TCP}]")
        .gives("to z/* only from */* on tcp/80,tcp/81")
        .policy("z/p", "{podSelector: {}, ingress: [{ports: [{protocol: UDP}]}]}")
        .gives("to z/* only from */* on udp/80")
        .policy("z/p", "{podSelector: {}, ingress: [{ports: [{protocol: SCTP}]}]}")
        .gives("to z/* only from */* on sctp/80")
}

fn several_ports_of_a_rule_are_alternatives() -> Scenario {
    open("[{port: 81}, {port: 80, protocol: UDP}]").gives("to z/* only from */* on tcp/81,udp/80")
}

fn ports_belong_to_the_peers_of_their_rule() -> Scenario {
    Scenario::default()
        .policy(
            "z/p",
            "{podSelector: {}, ingress: [
                {from: [{namespaceSelector: {matchLabels: {ns: x}}}], ports: [{port: 80}]},
                {from: [{namespaceSelector: {matchLabels: {ns: y}}}], ports: [{port: 81}, {protocol: UDP}]}]}",
        )
        .gives("to z/* only from x/* on tcp/80 or from y/* on tcp/81,udp/80")
}

fn a_rule_without_ports_admits_every_port_and_echo() -> Scenario {
    Scenario::default()
        .policy(
            "z/p",
            "{podSelector: {}, ingress: [
                {from: [{namespaceSelector: {matchLabels: {ns: x}}}], ports: []},
                {from: [{namespaceSelector: {matchLabels: {ns: y}}}], ports: [{port: 1, endPort: 65535}, {port: 1, endPort: 65535, protocol: UDP}]}]}",
        )
        .gives("to z/* only from x/* or from y/* on tcp/80,tcp/81,udp/80")
}

fn a_range_includes_its_first_and_its_last_port() -> Scenario {
    open("[{port: 80, endPort: 81}]")
        .gives("to z/* only from */* on tcp/80,tcp/81")
        .policy("z/p", "{podSelector: {}, ingress: [{ports: [{port: 1, endPort: 80}, {port: 80, endPort: 80, protocol: UDP}]}]}")
        .gives("to z/* only from */* on tcp/80,udp/80")
}

fn a_range_ends_before_the_next_port() -> Scenario {
    open("[{port: 1, endPort: 79}, {port: 81, endPort: 65535}, {port: 81, endPort: 90, protocol: UDP}]")
        .gives("to z/* only from */* on tcp/81")
}

fn a_named_port_is_the_number_that_each_pod_gives_it() -> Scenario {
    open("[{port: web}]").gives("to z/a,z/b only from */* on tcp/80\n to z/c only from */* on tcp/81")
}

fn a_named_port_of_udp_opens_udp() -> Scenario {
    open("[{port: dgram, protocol: UDP}]").gives("to z/* only from */* on udp/80")
}

fn the_protocol_of_a_named_port_must_fit() -> Scenario {
    open("[{port: dgram, protocol: TCP}, {port: web, protocol: UDP}]").gives("to z/* only from nobody")
}

fn a_name_that_no_pod_has_opens_nothing() -> Scenario {
    open("[{port: none}]").gives("to z/* only from nobody")
}

fn a_name_that_a_pod_gives_to_two_numbers_means_both() -> Scenario {
    Scenario::default()
        .policy("y/p", "{podSelector: {}, ingress: [{ports: [{port: twice}]}]}")
        .gives("to y/c only from */* on tcp/80,tcp/81\n to y/a,y/b only from nobody")
}

fn egress_to_a_named_port_is_asked_of_each_destination() -> Scenario {
    Scenario::default()
        .policy("x/p", "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{ports: [{port: web}]}]}")
        .gives("from x/a only to */a,*/b,x/c,y/c on tcp/80 or to z/c on tcp/81")
}

fn egress_to_a_named_port_of_some_peers() -> Scenario {
    Scenario::default()
        .policy(
            "x/p",
            "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {ns: z}}}], ports: [{port: web}, {port: dgram, protocol: UDP}]}]}",
        )
        .gives("from x/* only to z/a,z/b on tcp/80,udp/80 or to z/c on tcp/81,udp/80")
}

fn sctp_isolates_and_opens_nothing_else() -> Scenario {
    open("[{port: 80, protocol: SCTP}]")
        .gives("to z/* only from */* on sctp/80")
        .policy("z/p", "{podSelector: {}, ingress: [{ports: [{port: 81, protocol: SCTP}]}]}")
        .gives("to z/* only from nobody")
}

fn a_range_of_sctp_opens_its_ports_and_no_others() -> Scenario {
    open("[{port: 1, endPort: 79, protocol: SCTP}, {port: 81, endPort: 65535, protocol: SCTP}]")
        .gives("to z/* only from nobody")
        .policy("z/p", "{podSelector: {}, ingress: [{ports: [{port: 79, endPort: 80, protocol: SCTP}]}]}")
        .gives("to z/* only from */* on sctp/80")
}

fn an_sctp_port_of_some_peers_is_open_to_them_only() -> Scenario {
    Scenario::default()
        .policy(
            "z/p",
            "{podSelector: {}, ingress: [
                {from: [{namespaceSelector: {matchLabels: {ns: x}}}], ports: [{port: 80, protocol: SCTP}]},
                {from: [{ipBlock: {cidr: '$6(y/a)/128'}}], ports: [{protocol: SCTP}, {port: 81}]}]}",
        )
        .gives("to z/* only from x/* on sctp/80 or from y/a on sctp/80,tcp/81 by v6")
}

fn egress_by_sctp_goes_where_its_rule_says_only() -> Scenario {
    Scenario::default()
        .policy(
            "x/p",
            "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [
                {to: [{namespaceSelector: {matchLabels: {ns: z}}}], ports: [{port: 80, protocol: SCTP}]},
                {to: [{namespaceSelector: {matchLabels: {ns: y}}}], ports: [{port: 80}, {port: 80, protocol: UDP}]}]}",
        )
        .gives("from x/a only to z/* on sctp/80 or to y/* on tcp/80,udp/80")
}

fn a_named_port_of_tcp_opens_nothing_of_sctp() -> Scenario {
    open("[{port: web, protocol: SCTP}, {port: dgram, protocol: SCTP}, {port: assoc}]").gives("to z/* only from nobody")
}

fn a_named_port_of_sctp_opens_sctp() -> Scenario {
    open("[{port: assoc, protocol: SCTP}]").gives("to z/* only from */* on sctp/80")
}
