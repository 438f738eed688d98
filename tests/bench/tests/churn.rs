//! Pods come and go while the agent restarts: nothing is left of them. `make bench` does it with a thousand, and reports the times.

use palisade_bench::Churn;
use palisade_test_support::requires_root;

/// How many pods come and go, where the environment does not say: as many as fit into a minute of two busy CPUs.
const PODS: u32 = 200;
/// The variable that says how many.
const PODS_VARIABLE: &str = "PALISADE_CHURN_PODS";

#[test]
fn nothing_is_left_of_pods_that_come_and_go_while_the_agent_restarts_twice() {
    if !requires_root() {
        return;
    }
    let program = std::env::current_exe().expect("the path of this program");
    // Cargo puts tests into a folder beside the programs.
    let folder = program.ancestors().nth(2).expect("the folder of programs");
    let pods = std::env::var(PODS_VARIABLE)
        .map_or(PODS, |value| value.parse().unwrap_or_else(|_| panic!("{PODS_VARIABLE} is {value}: it must be a number of pods")));
    let churn = Churn::with_programs_in(folder, pods, 50, 2).unwrap_or_else(|error| panic!("{error:#}"));
    let row = churn.run().expect("there is root");
    assert!(row.tried_again > 0, "no pod came while there was no agent: {row:?}");
    assert!(row.add_median > 0.0 && row.add_p99 >= row.add_median && row.del_p99 >= row.del_median, "{row:?}");
    println!("{row:?}");
}
