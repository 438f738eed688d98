//! Attaching and detaching by TCX and by clsact, with packets of a pod.

mod stage;

use std::{fs, process::Command};

use aya::programs::TcAttachType;
use palisade_datapath_core::abi::Outcome;
use palisade_loader::{
    AttachKind, Datapath, LoaderError, PinDir, Role, attach_endpoint, attach_with, detach_endpoint, endpoint_attached, pinned_links,
    probe_attach_kind, probe_attach_kind_of, supported_kind,
};
use stage::{Pod, allow, alone, has_tcx, kinds, names, open, run, soon, tcx_programs};

fn packets(datapath: &Datapath, outcome: Outcome) -> u64 {
    datapath.counters().unwrap()[outcome as usize].1.packets
}

/// Number of programs of ours at both hooks, as the kernel lists them.
fn attached(interface: &str) -> usize {
    let links = [TcAttachType::Ingress, TcAttachType::Egress].map(|hook| tcx_programs(interface, hook));
    let filters = ["ingress", "egress"].map(|hook| run(&format!("tc filter show dev {interface} {hook}")).matches("direct-action").count());
    links.iter().chain(&filters).sum()
}

/// Adds another's filter at the ingress, which lets every packet pass to the stack.
fn pass_everything(interface: &str, priority: u16) {
    let priority = priority.to_string();
    let words =
        ["filter", "add", "dev", interface, "ingress", "prio", &priority, "bpf", "bytecode", "1,6 0 0 4294967295,", "flowid", "1:1"];
    let status = Command::new("tc").args(words).status().unwrap();
    assert!(status.success());
}

#[test]
fn an_attached_pod_is_closed_until_its_row_is_written_and_open_after_detaching() {
    for kind in kinds() {
        alone(|base| {
            let pin = PinDir::new(base);
            let pod = Pod::new(1);
            let mut datapath = open(base);
            assert!(pod.reaches_host(), "before: the stage itself works");

            attach_with(&pin, kind, Role::Endpoint, &pod.host, pod.index).unwrap();
            assert!(endpoint_attached(&pin, &pod.host, pod.index).unwrap(), "{kind}");
            assert!(pod.is_cut_off(), "closed without a row, by {kind}");
            assert!(packets(&datapath, Outcome::EndpointMissing) > 0);

            allow(&mut datapath, 1);
            datapath.endpoints.insert(&pod.index, &pod.endpoint(1)).unwrap();
            assert!(pod.reaches_host(), "with a row that allows, by {kind}");
            assert!(packets(&datapath, Outcome::AllowedNew) > 0);

            datapath.endpoints.remove(&pod.index).unwrap();
            assert!(pod.is_cut_off(), "closed again, by {kind}");
            detach_endpoint(&pin, pod.index).unwrap();
            soon("no program is left", || attached(&pod.host) == 0);
            assert!(!endpoint_attached(&pin, &pod.host, pod.index).unwrap());
            assert!(pod.reaches_host(), "after detaching, by {kind}");
            assert!(names(&pin.links_dir()).is_empty());
        });
    }
}

#[test]
fn attaching_twice_leaves_one_program_at_each_hook() {
    for kind in kinds() {
        alone(|base| {
            let pin = PinDir::new(base);
            let pod = Pod::new(1);
            drop(open(base));
            for _ in 0..3 {
                attach_with(&pin, kind, Role::Endpoint, &pod.host, pod.index).unwrap();
                drop(open(base));
            }
            assert_eq!(attached(&pod.host), 2, "{kind}");
            assert_eq!(pinned_links(&pin, Role::Endpoint).unwrap().into_iter().collect::<Vec<_>>(), [pod.index]);
        });
    }
}

#[test]
fn changing_the_kind_leaves_only_the_new_one() {
    if !has_tcx() {
        return;
    }
    for [before, after] in [[AttachKind::Tcx, AttachKind::Clsact], [AttachKind::Clsact, AttachKind::Tcx]] {
        alone(|base| {
            let pin = PinDir::new(base);
            let pod = Pod::new(1);
            drop(open(base));
            attach_with(&pin, before, Role::Endpoint, &pod.host, pod.index).unwrap();
            attach_with(&pin, after, Role::Endpoint, &pod.host, pod.index).unwrap();
            assert!(endpoint_attached(&pin, &pod.host, pod.index).unwrap());
            soon("the former kind is gone", || attached(&pod.host) == 2);
            let links = tcx_programs(&pod.host, TcAttachType::Ingress);
            assert_eq!(links, usize::from(after == AttachKind::Tcx), "{before} to {after}");
        });
    }
}

#[test]
fn detaching_leaves_the_filters_and_the_qdisc_of_others() {
    alone(|base| {
        let pin = PinDir::new(base);
        let pod = Pod::new(1);
        drop(open(base));
        run(&format!("tc qdisc add dev {} clsact", pod.host));
        pass_everything(&pod.host, 7);
        attach_with(&pin, AttachKind::Clsact, Role::Endpoint, &pod.host, pod.index).unwrap();
        assert!(endpoint_attached(&pin, &pod.host, pod.index).unwrap());
        detach_endpoint(&pin, pod.index).unwrap();
        let filters = run(&format!("tc filter show dev {} ingress", pod.host));
        assert!(filters.contains("bytecode") && !filters.contains("from_pod"), "{filters}");
    });
}

#[test]
fn our_programs_run_before_those_of_others() {
    alone(|base| {
        let pin = PinDir::new(base);
        let pod = Pod::new(1);
        let datapath = open(base);
        run(&format!("tc qdisc add dev {} clsact", pod.host));
        // It would let every packet pass, had it the first word.
        pass_everything(&pod.host, 2);
        attach_with(&pin, AttachKind::Clsact, Role::Endpoint, &pod.host, pod.index).unwrap();
        assert!(pod.is_cut_off());
        assert!(packets(&datapath, Outcome::EndpointMissing) > 0);
    });
}

#[test]
fn clsact_is_tried_and_nothing_is_left_of_the_attempt() {
    alone(|_| {
        probe_attach_kind_of(AttachKind::Clsact).unwrap();
        assert!(!run("tc qdisc show").contains("clsact"), "tried in another network namespace");
        assert_eq!(probe_attach_kind().unwrap(), supported_kind().unwrap());
    });
}

#[test]
fn an_endpoint_that_lost_one_program_is_not_attached() {
    for kind in kinds() {
        alone(|base| {
            let pin = PinDir::new(base);
            let pod = Pod::new(1);
            drop(open(base));
            attach_with(&pin, kind, Role::Endpoint, &pod.host, pod.index).unwrap();
            match kind {
                AttachKind::Tcx => fs::remove_file(pin.links_dir().join(format!("{}-to_pod", pod.index))).unwrap(),
                AttachKind::Clsact => drop(run(&format!("tc filter delete dev {} egress", pod.host))),
            }
            assert!(!endpoint_attached(&pin, &pod.host, pod.index).unwrap(), "{kind}");
            attach_endpoint(&pin, &pod.host, pod.index).unwrap();
            assert!(endpoint_attached(&pin, &pod.host, pod.index).unwrap(), "attaching repairs it, {kind}");
        });
    }
}

#[test]
fn detaching_is_fine_when_nothing_is_there() {
    alone(|base| {
        let pin = PinDir::new(base);
        detach_endpoint(&pin, 4711).expect("without a pin directory");
        drop(open(base));
        detach_endpoint(&pin, 4711).expect("without a link");
        let pod = Pod::new(1);
        attach_with(&pin, AttachKind::Clsact, Role::Endpoint, &pod.host, pod.index).unwrap();
        run(&format!("tc qdisc delete dev {} clsact", pod.host));
        detach_endpoint(&pin, pod.index).expect("without the qdisc");
        attach_endpoint(&pin, &pod.host, pod.index).unwrap();
        run(&format!("ip link delete {}", pod.host));
        detach_endpoint(&pin, pod.index).expect("without the interface");
        assert!(pinned_links(&pin, Role::Endpoint).unwrap().is_empty());
    });
}

#[test]
fn without_pinned_programs_the_error_says_that_the_agent_is_not_ready() {
    alone(|base| {
        run("ip link add eth9 type veth peer name peer");
        let index = nix::net::if_::if_nametoindex("eth9").unwrap();
        let error = attach_endpoint(&PinDir::new(base), "eth9", index).unwrap_err();
        assert!(matches!(error, LoaderError::ProgramsMissing { .. }), "{error}");
        assert!(error.to_string().contains("agent is not ready"), "{error}");
    });
}

#[test]
fn an_interface_that_is_gone_or_has_another_index_is_refused() {
    alone(|base| {
        let pin = PinDir::new(base);
        let pod = Pod::new(1);
        drop(open(base));
        for (name, index) in [("nothing", 4711), (pod.host.as_str(), pod.index + 1)] {
            let error = attach_endpoint(&pin, name, index).unwrap_err();
            assert!(matches!(error, LoaderError::InterfaceMissing { .. }), "{error}");
        }
        assert!(names(&pin.links_dir()).is_empty());
    });
}

#[test]
fn tcx_is_chosen_where_the_kernel_has_it() {
    alone(|base| {
        let pin = PinDir::new(base);
        let pod = Pod::new(1);
        drop(open(base));
        let kind = supported_kind().unwrap();
        assert_eq!(attach_endpoint(&pin, &pod.host, pod.index).unwrap(), kind);
        let marked = pin.links_dir().join(format!("{}-clsact", pod.index)).exists();
        assert_eq!(marked, kind == AttachKind::Clsact);
    });
}
