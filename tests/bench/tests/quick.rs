//! The benchmark itself works: everything that it measures is measured, and nothing is left behind. No time is judged.

use palisade_bench::{Family, Plan, run};
use palisade_test_support::requires_root;

#[test]
fn a_quick_run_measures_every_row_over_both_families() {
    if !requires_root() {
        return;
    }
    for family in [Family::Ipv4, Family::Ipv6] {
        let report = run(&Plan::quick(Some(family))).unwrap_or_else(|error| panic!("{family:?}: {error:#}"));
        // Traffic by paths; between nodes; through services, by two numbers of them and of the one to the other; program runs.
        assert_eq!(report.rows.len(), 4 * 3 + 4 * 2 + 3 * (2 + 1) + 4);
        for row in &report.rows {
            assert!(row.ratio.is_finite() && row.ratio > 0.0 && row.spread.is_finite(), "{row:?}");
        }
        assert_eq!(report.policy.len(), 2);
        for row in &report.policy {
            assert!(row.rows > row.pods && row.bytes > row.rows && row.identities > 1 && row.subjects > 1 && row.full > 0.0, "{row:?}");
        }
        let json: serde_json::Value = serde_json::to_value(&report).expect("a report is JSON");
        assert!(json["rows"].as_array().is_some_and(|rows| rows.iter().all(|row| row["name"].is_string() && row["ratio"].is_number())));
    }
}
