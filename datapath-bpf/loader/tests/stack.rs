//! The stack of the programs, as Linux 5.10 counts it (`check_max_stack_depth`): that of each function in steps of 32 bytes, and of all that call
//! one another no more than 512. Later kernels count in smaller steps, so that only old ones refuse what is too large.

use std::collections::BTreeMap;

use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SymbolKind};
use palisade_datapath_core::abi::Hook;
use palisade_loader::{Role, object as bpf_object};

const MOST: usize = 512;
const STEP: usize = 32;
/// At most so many functions deep may one call another (`MAX_CALL_FRAMES`).
const FRAMES: usize = 8;
/// The register that points to the stack's end.
const FRAME: u8 = 10;

/// A function: where it is, by section and first instruction.
type At = (usize, usize);

#[derive(Default)]
struct Function {
    name: String,
    stack: usize,
    calls: Vec<At>,
}

/// An instruction of eight bytes: `struct bpf_insn`.
struct Instruction {
    code: u8,
    target: u8,
    source: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    fn read(bytes: &[u8]) -> Self {
        Self {
            code: bytes[0],
            target: bytes[1] & 0xf,
            source: bytes[1] >> 4,
            offset: i16::from_le_bytes([bytes[2], bytes[3]]),
            immediate: i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        }
    }

    /// How far below the stack's end it reads or writes.
    fn reaches(&self) -> usize {
        let base = match self.code & 7 {
            // BPF_LDX
            1 => self.source,
            // BPF_ST, BPF_STX
            2 | 3 => self.target,
            _ => return 0,
        };
        if base == FRAME { usize::from(self.offset.min(0).unsigned_abs()) } else { 0 }
    }

    /// The register that it points to the stack's end.
    fn points(&self) -> Option<u8> {
        // BPF_ALU64 | BPF_MOV | BPF_X
        (self.code == 0xbf && self.source == FRAME).then_some(self.target)
    }

    /// How far it lowers a register.
    fn lowers(&self, register: u8) -> usize {
        // BPF_ALU64 | BPF_ADD | BPF_K
        if self.code == 0x07 && self.target == register { self.immediate.min(0).unsigned_abs() as usize } else { 0 }
    }

    /// By how many instructions it calls ahead, where it calls another function of the object.
    fn calls(&self) -> Option<i32> {
        // BPF_JMP | BPF_CALL, BPF_PSEUDO_CALL
        (self.code == 0x85 && self.source == 1).then_some(self.immediate)
    }
}

fn functions() -> BTreeMap<At, Function> {
    let file = object::File::parse(bpf_object()).unwrap();
    let mut functions: BTreeMap<At, Function> = file
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0)
        .map(|symbol| {
            let at = (symbol.section_index().unwrap().0, symbol.address() as usize / 8);
            (at, Function { name: symbol.name().unwrap().to_owned(), ..Function::default() })
        })
        .collect();
    for section in file.sections() {
        let data = section.data().unwrap();
        // A call into another section counts from that section's beginning, or that of the function whose symbol it names.
        let moved: BTreeMap<usize, At> = section
            .relocations()
            .filter_map(|(at, relocation)| {
                let to = match relocation.target() {
                    RelocationTarget::Symbol(index) => {
                        let symbol = file.symbol_by_index(index).unwrap();
                        (symbol.section_index()?.0, symbol.address() as usize / 8)
                    }
                    RelocationTarget::Section(index) => (index.0, 0),
                    _ => return None,
                };
                Some((at as usize / 8, to))
            })
            .collect();
        let mut own: Vec<At> = functions.keys().filter(|(index, _)| *index == section.index().0).copied().collect();
        own.push((section.index().0, data.len() / 8));
        for pair in own.windows(2) {
            let function = functions.get_mut(&pair[0]).unwrap();
            let mut pointer = None;
            for at in pair[0].1..pair[1].1 {
                let instruction = Instruction::read(&data[at * 8..]);
                let lowered = pointer.map_or(0, |register| instruction.lowers(register));
                function.stack = function.stack.max(instruction.reaches()).max(lowered);
                pointer = instruction.points();
                if let Some(ahead) = instruction.calls() {
                    let (section, from) = moved.get(&at).copied().unwrap_or((pair[0].0, at));
                    let to = usize::try_from(i64::try_from(from).unwrap() + i64::from(ahead) + 1).unwrap();
                    function.calls.push((section, to));
                }
            }
        }
    }
    functions
}

/// The most stack that a function needs with all that it calls, and who they are.
fn deepest(functions: &BTreeMap<At, Function>, at: At) -> (usize, Vec<String>) {
    let function = functions.get(&at).unwrap_or_else(|| panic!("a call to {at:?}, where no function begins"));
    let (below, mut names) = function.calls.iter().map(|to| deepest(functions, *to)).max().unwrap_or_default();
    names.insert(0, format!("{} bytes: {}", function.stack, function.name));
    (function.stack.max(1).next_multiple_of(STEP) + below, names)
}

/// How many functions deep a function calls, itself among them.
fn frames(functions: &BTreeMap<At, Function>, at: At) -> usize {
    1 + functions[&at].calls.iter().map(|to| frames(functions, *to)).max().unwrap_or(0)
}

#[test]
fn the_stack_of_all_functions_that_call_one_another_fits_linux_5_10() {
    let functions = functions();
    // Programs stand in sections of their own, what they call in one for all.
    let text = functions.iter().max_by_key(|(at, _)| functions.keys().filter(|other| other.0 == at.0).count()).map(|(at, _)| at.0).unwrap();
    let programs: Vec<_> = functions.iter().filter(|(at, _)| at.0 != text).collect();
    for hook in Role::ALL.into_iter().flat_map(Role::hooks).map(Hook::program) {
        assert!(programs.iter().any(|(_, function)| function.name == hook), "no program {hook}");
    }
    let mut calls = 0;
    for (at, program) in programs {
        let (stack, names) = deepest(&functions, *at);
        assert!(stack <= MOST, "{}: {stack} bytes:\n{}", program.name, names.join("\n"));
        calls = calls.max(frames(&functions, *at));
    }
    assert!((4..=FRAMES).contains(&calls), "{calls} functions deep");
}
