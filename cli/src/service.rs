//! `palisade service`.

use crate::agent;
use crate::arguments::{AgentArguments, AskingFor, AskingIn};
use crate::error::CliError;
use crate::print;
use crate::table::{Cell, Paint, Table, Tone, count};
use palisade_protocol::{
    Call, FrontendState, FrontendView, Reply, ServiceBackend, ServiceFrontend, ServiceKind, ServicePort, ServiceStatus,
};
use std::net::SocketAddr;

/// Lists the services that are in the kernel of the agent's node.
pub fn list(arguments: &AskingIn) -> Result<(), CliError> {
    let services = ask(&arguments.asking.agent, arguments.namespaces(), None)?;
    print::answer(arguments.asking.output, &services, |paint| listed(&services, paint))
}

/// One service, with each frontend and what stands behind it.
pub fn get(arguments: &AskingFor) -> Result<(), CliError> {
    let services = ask(&arguments.asking.agent, Vec::new(), Some(arguments.object.clone()))?;
    if services.is_empty() {
        return Err(CliError::Input(format!("no service {} is known here: `palisade service list` names them", arguments.object)));
    }
    print::answer(arguments.asking.output, &services, |paint| whole(&services, paint))
}

fn ask(of: &AgentArguments, namespaces: Vec<String>, object: Option<String>) -> Result<Vec<ServiceStatus>, CliError> {
    match agent::connect(of)?.call(Call::Services { namespaces, backends: object.is_some(), object })? {
        Reply::Services(services) => Ok(services),
        other => Err(agent::unexpected(&other)),
    }
}

fn listed(services: &[ServiceStatus], paint: Paint) -> String {
    let mut table = Table::new(["NAMESPACE", "NAME", "KIND", "FRONTENDS", "BACKENDS", "NOTE"]);
    for service in services {
        let [frontends, backends] = if service.kind == ServiceKind::Addressed {
            [service.frontends.len().to_string(), format!("{}/{}", service.backends_chosen, service.backends_known)]
        } else {
            ["-".to_owned(), "-".to_owned()]
        };
        table.row([
            service.namespace.as_str().into(),
            service.name.as_str().into(),
            kind(service.kind).into(),
            frontends.into(),
            backends.into(),
            note(service),
        ]);
    }
    let mut text = table.render(paint);
    for service in services {
        if let Some(reason) = &service.refused {
            text.push_str(&format!("service {}/{}: {reason}\n", service.namespace, service.name));
        }
        for problem in &service.problems {
            text.push_str(&format!("{problem}\n"));
        }
    }
    text
}

fn whole(services: &[ServiceStatus], paint: Paint) -> String {
    let mut text = listed(services, paint);
    for service in services {
        if !service.ports.is_empty() {
            let ports: Vec<String> = service.ports.iter().map(port).collect();
            text.push_str(&format!("service {}/{} has {}\n", service.namespace, service.name, ports.join(", ")));
        }
        if !service.frontends.is_empty() {
            text.push_str(&format!("\n{}", frontends(&service.frontends).render(paint)));
        }
    }
    text
}

/// A row for each backend of each frontend; what is said of the frontend stands in the first of its rows.
fn frontends(frontends: &[ServiceFrontend]) -> Table {
    let mut table = Table::new(["FRONTEND", "VIEW", "STATE", "OUTSIDE", "AFFINITY", "BACKEND", "NAME", "TAKES"]);
    for frontend in frontends {
        let mut of_frontend: [Cell; 5] = [
            format!("{}/{}", SocketAddr::new(frontend.address, frontend.port), frontend.protocol).into(),
            view(frontend.view).into(),
            state(frontend.state),
            frontend.outside.map_or_else(|| Cell::toned("closed", Tone::Faint), state),
            frontend.affinity.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds} s")).into(),
        ];
        if frontend.backends.is_empty() {
            table.row(of_frontend.into_iter().chain(["-".into()]));
            continue;
        }
        for backend in &frontend.backends {
            let of_backend: [Cell; 3] = [
                SocketAddr::new(backend.address, backend.port).to_string().into(),
                if backend.name.is_empty() { "-" } else { backend.name.as_str() }.into(),
                takes(backend, frontend.outside.is_some()),
            ];
            table.row(std::mem::take(&mut of_frontend).into_iter().chain(of_backend));
        }
    }
    table
}

/// What is to be known of a service at a glance.
fn note(service: &ServiceStatus) -> Cell {
    let (mut notes, mut tone) = (Vec::new(), Tone::Plain);
    match service.kind {
        ServiceKind::Headless => (notes, tone) = (vec!["headless: nothing to translate".to_owned()], Tone::Faint),
        ServiceKind::ExternalName => (notes, tone) = (vec!["external name: nothing to translate".to_owned()], Tone::Faint),
        ServiceKind::Addressed if service.frontends.is_empty() => {
            (notes, tone) = (vec!["no frontends: not reached".to_owned()], Tone::Alarm);
        }
        ServiceKind::Addressed => {}
    }
    let all = service.frontends.len();
    let count_of = |is: &dyn Fn(&ServiceFrontend) -> bool| service.frontends.iter().filter(|frontend| is(frontend)).count();
    let counts = [
        (count_of(&|it| it.state == FrontendState::Refused), "no endpoints: refused"),
        (count_of(&|it| it.state == FrontendState::Dropped), "no endpoints here: dropped"),
        // What the cluster is refused, the outside is, too.
        (count_of(&|it| it.outside == Some(FrontendState::Dropped)), "no endpoints here for clients outside: dropped"),
    ];
    for (of, what) in counts {
        if of == 0 {
            continue;
        }
        tone = Tone::Bad;
        notes.push(if of == all { what.to_owned() } else { format!("{what} at {of} of {}", count(all, "frontend", "frontends")) });
    }
    let problems = service.problems.len() + usize::from(service.refused.is_some());
    if problems > 0 {
        tone = Tone::Alarm;
        notes.push(format!("{} below", count(problems, "problem", "problems")));
    }
    Cell::toned(notes.join("; "), tone)
}

const fn kind(kind: ServiceKind) -> &'static str {
    match kind {
        ServiceKind::Addressed => "addressed",
        ServiceKind::Headless => "headless",
        ServiceKind::ExternalName => "external-name",
    }
}

const fn view(view: FrontendView) -> &'static str {
    match view {
        FrontendView::Cluster => "cluster",
        FrontendView::External => "external",
    }
}

fn state(state: FrontendState) -> Cell {
    match state {
        FrontendState::Served => Cell::toned("served", Tone::Good),
        FrontendState::Refused => Cell::toned("refused", Tone::Bad),
        FrontendState::Dropped => Cell::toned("dropped", Tone::Bad),
    }
}

/// Which packets a backend still gets, of a frontend that is open to clients outside the cluster or not.
fn takes(backend: &ServiceBackend, is_open: bool) -> Cell {
    if backend.chosen && is_open && !backend.chosen_outside {
        Cell::toned("new flows of the cluster", Tone::Good)
    } else if backend.chosen {
        Cell::toned("new flows", Tone::Good)
    } else if backend.chosen_outside {
        Cell::toned("new flows from outside", Tone::Good)
    } else if backend.serving {
        Cell::toned("flows that it has", Tone::Faint)
    } else {
        Cell::toned("connections that it has", Tone::Bad)
    }
}

/// `http 80/TCP (node port 30080)`.
fn port(port: &ServicePort) -> String {
    let name = if port.name.is_empty() { String::new() } else { format!("{} ", port.name) };
    let node_port = port.node_port.map(|number| format!(" (node port {number})")).unwrap_or_default();
    format!("{name}{}/{}{node_port}", port.port, port.protocol)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(address: &str, name: &str, chosen: bool, serving: bool) -> ServiceBackend {
        ServiceBackend { address: address.parse().unwrap(), port: 8080, name: name.into(), chosen, chosen_outside: chosen, serving }
    }

    fn frontend(address: &str, state: FrontendState, backends: Vec<ServiceBackend>) -> ServiceFrontend {
        let (address, view) = (address.parse().unwrap(), FrontendView::Cluster);
        ServiceFrontend { address, port: 80, protocol: "TCP".into(), view, state, outside: None, affinity: None, backends }
    }

    fn service(name: &str, kind: ServiceKind, frontends: Vec<ServiceFrontend>) -> ServiceStatus {
        ServiceStatus {
            namespace: "shop".into(),
            name: name.into(),
            kind,
            ports: Vec::new(),
            frontends,
            backends_known: 0,
            backends_chosen: 0,
            problems: Vec::new(),
            refused: None,
        }
    }

    /// The lines of a table, with single blanks.
    fn lines(text: &str) -> Vec<String> {
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn a_list_says_of_each_service_how_much_there_is_or_why_there_is_nothing() {
        let at = |address: &str, state| frontend(address, state, Vec::new());
        let (served, refused, dropped) = (FrontendState::Served, FrontendState::Refused, FrontendState::Dropped);
        let text = listed(
            &[
                ServiceStatus {
                    backends_known: 3,
                    backends_chosen: 2,
                    ..service("web", ServiceKind::Addressed, vec![at("10.96.0.1", served), at("fd00::1", served)])
                },
                service("empty", ServiceKind::Addressed, vec![at("10.96.0.2", refused)]),
                ServiceStatus {
                    backends_known: 1,
                    backends_chosen: 1,
                    ..service("partly", ServiceKind::Addressed, vec![at("10.96.0.3", dropped), at("203.0.113.1", served)])
                },
                service(
                    "local",
                    ServiceKind::Addressed,
                    vec![at("10.96.0.4", served), ServiceFrontend { outside: Some(dropped), ..at("203.0.113.2", served) }],
                ),
                service("lost", ServiceKind::Addressed, Vec::new()),
                service("names", ServiceKind::Headless, Vec::new()),
                service("elsewhere", ServiceKind::ExternalName, Vec::new()),
            ],
            Paint::none(),
        );
        assert_eq!(
            lines(&text),
            [
                "NAMESPACE NAME KIND FRONTENDS BACKENDS NOTE",
                "shop web addressed 2 2/3",
                "shop empty addressed 1 0/0 no endpoints: refused",
                "shop partly addressed 2 1/1 no endpoints here: dropped at 1 of 2 frontends",
                "shop local addressed 2 0/0 no endpoints here for clients outside: dropped at 1 of 2 frontends",
                "shop lost addressed 0 0/0 no frontends: not reached",
                "shop names headless - - headless: nothing to translate",
                "shop elsewhere external-name - - external name: nothing to translate",
            ]
        );
    }

    #[test]
    fn what_is_wrong_with_a_service_stands_below_the_list() {
        let wrong = ServiceStatus {
            problems: vec!["service shop/web is not reached at 10.96.0.1:80/TCP".into()],
            refused: Some("spec.sessionAffinity: no".into()),
            ..service("web", ServiceKind::Addressed, Vec::new())
        };
        assert_eq!(
            lines(&listed(&[wrong], Paint::none()))[1..],
            [
                "shop web addressed 0 0/0 no frontends: not reached; 2 problems below",
                "service shop/web: spec.sessionAffinity: no",
                "service shop/web is not reached at 10.96.0.1:80/TCP"
            ]
        );
    }

    #[test]
    fn a_service_is_shown_with_its_frontends_and_what_each_backend_takes() {
        let backends = vec![
            backend("10.1.0.1", "shop/web-0", true, true),
            backend("10.1.0.2", "", false, true),
            backend("10.1.0.3", "shop/web-2", false, false),
        ];
        let apart = vec![
            backend("10.1.0.1", "", true, true),
            ServiceBackend { chosen_outside: false, ..backend("10.1.0.2", "", true, true) },
            ServiceBackend { chosen: false, ..backend("10.1.0.3", "", true, true) },
        ];
        let status = ServiceStatus {
            ports: vec![
                ServicePort { name: "http".into(), protocol: "TCP".into(), port: 80, node_port: Some(30_080) },
                ServicePort { name: String::new(), protocol: "UDP".into(), port: 53, node_port: None },
            ],
            ..service(
                "web",
                ServiceKind::Addressed,
                vec![
                    ServiceFrontend { affinity: Some(60), ..frontend("10.96.0.1", FrontendState::Served, backends) },
                    frontend("fd00::1", FrontendState::Refused, Vec::new()),
                    ServiceFrontend {
                        view: FrontendView::External,
                        outside: Some(FrontendState::Served),
                        ..frontend("203.0.113.1", FrontendState::Served, apart)
                    },
                    ServiceFrontend { outside: Some(FrontendState::Dropped), ..frontend("203.0.113.2", FrontendState::Served, Vec::new()) },
                ],
            )
        };
        assert_eq!(
            lines(&whole(&[status], Paint::none()))[2..],
            [
                "service shop/web has http 80/TCP (node port 30080), 53/UDP",
                "",
                "FRONTEND VIEW STATE OUTSIDE AFFINITY BACKEND NAME TAKES",
                "10.96.0.1:80/TCP cluster served closed 60 s 10.1.0.1:8080 shop/web-0 new flows",
                "10.1.0.2:8080 - flows that it has",
                "10.1.0.3:8080 shop/web-2 connections that it has",
                "[fd00::1]:80/TCP cluster refused closed - -",
                "203.0.113.1:80/TCP external served served - 10.1.0.1:8080 - new flows",
                "10.1.0.2:8080 - new flows of the cluster",
                "10.1.0.3:8080 - new flows from outside",
                "203.0.113.2:80/TCP cluster served dropped - -",
            ]
        );
    }
}
