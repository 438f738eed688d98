//! What the agent lacks: it says so, keeps what is pinned in force, tries again, and is not ready.

use crate::node::{Agent, MANIFESTS, PROGRAM, add, add_in_vain, clear, inside, reaches, reaches_in_time, remove, wait, with_kubeconfig};
use crate::server::{Answer, Server};
use palisade_test_support::{Host, for_every_user, private_host};
use std::fs::{self, Permissions};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const WEB: (&str, &str) = ("shop", "web");
const FRIEND: (&str, &str) = ("shop", "client");
const STRANGER: (&str, &str) = ("other", "client");

/// Runs a test on a node whose pods an earlier agent has wired, with its policy in force and no agent.
fn after_an_agent(test: impl FnOnce(&Host, &Path, &Enforced<'_>) + Send) {
    private_host(|host| {
        let directory = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir().unwrap();
        fs::write(directory.path().join("shop.yaml"), MANIFESTS).unwrap();
        let agent = Agent::on_directory(host, directory.path());
        let at = SocketAddr::new(add(host, WEB.0, WEB.1)[0], 80);
        add(host, FRIEND.0, FRIEND.1);
        add(host, STRANGER.0, STRANGER.1);
        let listener = crate::node::inside(host, WEB.0, WEB.1).enter(|| TcpListener::bind(at)).unwrap().unwrap();
        agent.kill();
        test(host, directory.path(), &Enforced { host, at });
        drop(listener);
        for (namespace, pod) in [WEB, FRIEND, STRANGER] {
            remove(host, namespace, pod);
        }
        clear(host);
    });
}

struct Enforced<'a> {
    host: &'a Host,
    at: SocketAddr,
}

impl Enforced<'_> {
    /// What was pinned is in force, and no new pod comes up.
    fn still(&self) {
        self.policy();
        add_in_vain(self.host, "shop", "late");
    }

    fn policy(&self) {
        assert!(reaches_in_time(self.host, FRIEND, self.at), "what policy allows passes");
        assert!(!reaches(self.host, STRANGER, self.at), "what policy refuses does not");
    }
}

/// Waits until the agent, not ready, shows a problem with these words.
fn wait_for_problem(host: &Host, words: &str) {
    let status = wait(host, words, |status| status.problems.iter().any(|problem| problem.contains(words)));
    assert!(!status.ready, "{status:?}");
}

#[test]
fn an_api_server_that_cannot_be_reached_or_refuses_leaves_policy_in_force() {
    after_an_agent(|host, directory, enforced| {
        let address: SocketAddr = "127.0.0.1:6443".parse().unwrap();
        let agent = with_kubeconfig(host, directory, address);
        wait_for_problem(host, "cannot be reached");
        enforced.still();

        let server = Server::start(address, Answer::Unauthorised);
        wait_for_problem(host, "(401)");
        server.answer(Answer::Forbidden);
        wait_for_problem(host, "may not list networkpolicies (403");
        enforced.still();
        let before = server.requests();
        std::thread::sleep(Duration::from_secs(3));
        let asked = server.requests() - before;
        assert!(asked < 60, "{asked} requests in three seconds: the pauses do not grow");

        server.answer(Answer::Objects);
        let status = wait(host, "the agent is ready", |status| status.ready);
        assert!(status.problems.is_empty(), "{status:?}");
        enforced.policy();
        agent.kill();
    });
}

#[test]
fn a_kind_that_users_install_later_is_noticed_and_enforced() {
    after_an_agent(|host, directory, enforced| {
        let address: SocketAddr = "127.0.0.1:6443".parse().unwrap();
        let server = Server::start(address, Answer::Objects);
        let agent = with_kubeconfig(host, directory, address);
        let status = wait(host, "the agent is ready without it", |status| status.ready);
        assert_eq!(status.counts.policies, 1, "{status:?}");
        enforced.policy();
        server.answer(Answer::Installed);
        wait(host, "the ClusterNetworkPolicy is known", |status| status.counts.policies == 2);
        assert!(!reaches(host, FRIEND, enforced.at), "the cluster's policy denies what the namespace's allows");
        agent.kill();
    });
}

#[test]
fn a_kind_that_is_served_in_another_version_alone_is_a_problem_and_policy_stays_in_force() {
    after_an_agent(|host, directory, enforced| {
        let address: SocketAddr = "127.0.0.1:6443".parse().unwrap();
        let server = Server::start(address, Answer::Moved);
        let agent = with_kubeconfig(host, directory, address);
        wait_for_problem(host, "serves clusternetworkpolicies of policy.networking.k8s.io in v1beta1 alone, and this agent reads v1alpha2");
        enforced.still();
        // The definition is deleted, and with it all objects.
        server.answer(Answer::Objects);
        wait(host, "the agent is ready", |status| status.ready);
        enforced.policy();
        agent.kill();
    });
}

#[test]
fn an_endpoint_is_closed_when_a_newer_pod_has_its_name() {
    after_an_agent(|host, directory, enforced| {
        let address: SocketAddr = "127.0.0.1:6443".parse().unwrap();
        let server = Server::start(address, Answer::Objects);
        let agent = with_kubeconfig(host, directory, address);
        wait(host, "the agent is ready", |status| status.ready);
        enforced.policy();
        // Deleted by force, while its container lives on: the rules of the newer one would let everybody in.
        server.replace_web(8);
        let began = Instant::now();
        while reaches(host, FRIEND, enforced.at) {
            assert!(began.elapsed() < Duration::from_secs(20), "the endpoint is still open");
            std::thread::sleep(Duration::from_millis(200));
        }
        assert!(!reaches(host, STRANGER, enforced.at));
        agent.kill();
    });
}

/// The container of the old one lives on, and another IPAM plugin has given its addresses away. The rules of the newer one would let everybody in.
#[test]
fn an_endpoint_is_closed_when_the_next_agent_finds_its_name_and_addresses_with_a_newer_pod() {
    after_an_agent(|host, directory, enforced| {
        let address: SocketAddr = "127.0.0.1:6443".parse().unwrap();
        let own = |any: &str, to: &str| {
            let socket = UdpSocket::bind((any.parse::<IpAddr>().unwrap(), 0)).unwrap();
            socket.connect((to.parse::<IpAddr>().unwrap(), 9)).unwrap();
            socket.local_addr().unwrap().ip()
        };
        let addresses = inside(host, "shop", "web").enter(|| [own("0.0.0.0", "203.0.113.9"), own("::", "2001:db8:9::9")]).unwrap();
        assert_eq!(addresses[0], enforced.at.ip());
        let _server = Server::start(address, Answer::Heir(addresses));
        let agent = with_kubeconfig(host, directory, address);
        wait(host, "the agent is ready", |status| status.ready);
        for from in [FRIEND, STRANGER] {
            assert!(!reaches(host, from, enforced.at), "{from:?}");
        }
        agent.kill();
    });
}

#[test]
fn without_permission_the_agent_says_what_it_needs() {
    after_an_agent(|host, directory, enforced| {
        // Another user cannot reach the test's own program where it lies.
        let (_place, program) = for_every_user(PROGRAM.as_ref());
        let everybody = |path: &Path| fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
        let mut above = host.run_dir();
        while above.starts_with(host.directory()) {
            everybody(&above);
            assert!(above.pop());
        }
        for path in [host.bpffs(), host.bpffs().join("palisade"), host.bpffs().join("palisade/v1")] {
            everybody(&path);
        }
        for entry in fs::read_dir(host.run_dir()).unwrap() {
            chown(entry.unwrap().path(), Some(65_534), Some(65_534)).unwrap();
        }
        let mut command = Agent::command_of(&program, host, &host.bpffs().join("palisade"));
        command.uid(65_534).gid(65_534);
        let agent = Agent::from_directory(command, directory);
        wait_for_problem(host, "CAP_BPF");
        enforced.still();
        agent.kill();
    });
}

#[test]
fn state_that_a_newer_agent_has_pinned_is_left_alone_until_it_is_gone() {
    after_an_agent(|host, directory, enforced| {
        let newer = host.bpffs().join("palisade/v4294967295");
        fs::create_dir(&newer).unwrap();
        let agent = Agent::from_directory(Agent::command(host), directory);
        wait_for_problem(host, "v4294967295");
        enforced.still();
        fs::remove_dir(&newer).unwrap();
        wait(host, "the agent is ready", |status| status.ready);
        enforced.policy();
        agent.kill();
    });
}

#[test]
fn a_bpf_file_system_that_is_mounted_later_is_found() {
    private_host(|host| {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("shop.yaml"), MANIFESTS).unwrap();
        let place = host.directory().join("plain");
        fs::create_dir(&place).unwrap();
        let command = Agent::command_of(Path::new(PROGRAM), host, &place.join("palisade"));
        let agent = Agent::from_directory(command, directory.path());
        wait_for_problem(host, "BPF file system");
        add_in_vain(host, "shop", "web");
        let run =
            |program: &str, arguments: &[&str]| assert!(Command::new(program).args(arguments).arg(&place).status().unwrap().success());
        run("mount", &["-t", "bpf", "bpf"]);
        wait(host, "the agent is ready", |status| status.ready);
        agent.kill();
        run("umount", &[]);
        fs::remove_dir(&place).unwrap();
        for file in ["agent.sock", "agent.lock", "numbers.json"] {
            let _ = fs::remove_file(host.run_dir().join(file));
        }
    });
}
