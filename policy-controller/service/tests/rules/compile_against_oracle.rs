//! The rows hold what the oracle says, walked as the datapath walks them.

use crate::judge::kernel::{Client, Kernel};
use palisade_policy::generate::Random;
use palisade_service::oracle::Answer;
use palisade_service::{Compiled, Numbers, compile, generate};
use std::collections::BTreeSet;

#[test]
fn every_flow_finds_a_backend_that_the_oracle_names_and_each_of_those_is_found() {
    let (mut walks, mut answers) = (0, [[0; 4]; 2]);
    for seed in 0..1_000 {
        let mut random = Random::new(seed);
        let services = generate::services(&mut random);
        let mut numbers = Numbers::default();
        let compiled = compile(&services, &Compiled::default(), &mut numbers);
        let kernel = Kernel::holding(&compiled, &numbers);
        let frontends: Vec<_> = generate::frontends().collect();
        assert!(compiled.frontends.keys().all(|frontend| frontends.contains(frontend)), "seed {seed}");
        let asked = frontends.iter().flat_map(|frontend| Client::BOTH.map(|client| (client, frontend)));
        for (client, frontend) in asked {
            let answer = client.oracle(&services, frontend);
            assert_eq!(kernel.answer(client, frontend), answer, "seed {seed}, {client:?} to {frontend}");
            let answers = &mut answers[usize::from(client == Client::Outside)];
            match &answer {
                Answer::NoService => answers[0] += 1,
                Answer::Refused => answers[1] += 1,
                Answer::Dropped => answers[2] += 1,
                Answer::OneOf(targets) => {
                    answers[3] += 1;
                    let service = kernel.frontends[frontend].service;
                    let stay = kernel.chosen(client).into_iter().filter(|(of, _)| *of == service).map(|(_, target)| target);
                    assert_eq!(stay.collect::<BTreeSet<_>>(), *targets, "seed {seed}, {client:?} to {frontend}");
                    for _ in 0..20 {
                        let found = kernel.walk(client, frontend, random.number() as u32, random.number() as u16);
                        assert!(found.is_some_and(|found| targets.contains(&found)), "seed {seed}, {client:?} to {frontend}: {found:?}");
                        walks += 1;
                    }
                }
            }
        }
    }
    println!("{walks} walks; none, refused, dropped, one of, from inside and from outside: {answers:?}");
    assert!(answers.iter().flatten().all(|&count| count > 200), "{answers:?}");
}
