//! The instructions of a translation, and which of their flags anybody may ever see.
//!
//! A translation goes over conditional branches that are not taken (each a side exit) and along jumps
//! inside the page; it never leaves its page. A loop back to its start is taken to be one: as many rounds as there is
//! room for stand one behind the other.

use iced_x86::{Decoder, DecoderError, Instruction};

use guestmem::GuestMemory;

use super::plan::{Effect, Facts, Plan, bit, plan};
use crate::cpu::Mode;
use crate::decode::{Decoded, End, OPTIONS, Stream};

/// Side exits of a translation at most.
const MAX_SIDES: usize = 12;
const PAGE: usize = 4096;

/// Bytes of a line: what is read of a page at a time.
const LINE: usize = 64;
/// Bytes of the longest instruction.
const LONGEST: usize = 15;

/// The bytes of a page, of which what is asked for is read: most translations are of a few lines, and the others would
/// have to come from far away.
pub(super) struct Lines<'a> {
    bytes: &'a mut [u8; PAGE],
    /// A bit for each line that is there.
    there: u64,
    memory: &'a GuestMemory,
    gpa: u64,
}

impl<'a> Lines<'a> {
    /// Of the page with guestmem's index `page`; `bytes` is room for it.
    pub fn new(bytes: &'a mut [u8; PAGE], memory: &'a GuestMemory, page: usize) -> Self {
        Self { bytes, there: 0, memory, gpa: memory.page_gpa(page) }
    }

    /// What begins at an offset in the page: an instruction, or what the page has of it.
    fn at(&mut self, offset: usize) -> &[u8] {
        let end = (offset + LONGEST).min(PAGE);
        for line in offset / LINE..end.div_ceil(LINE) {
            if self.there >> line & 1 == 0 {
                self.there |= 1 << line;
                let first = line * LINE;
                let to = &mut self.bytes[first..first + LINE];
                if self.memory.read(self.gpa + first as u64, to).is_err() {
                    to.fill(0);
                }
            }
        }
        self.bytes.get(offset..end).unwrap_or_default()
    }
}

/// One instruction of a translation.
pub(super) struct Item {
    pub insn: Instruction,
    pub plan: Plan,
    /// What the analysis asks of it.
    facts: Facts,
    /// Its encoding.
    pub bytes: [u8; 15],
    /// Its flags may be looked at where the host's are gone.
    pub need: bool,
    /// Its register operands (the result is in the first) are still there whenever that happens.
    pub keep: bool,
}

/// An instruction for the interpreter's handler.
pub(super) struct Handled {
    pub decoded: Decoded,
    pub encoded: Encoded,
}

/// An instruction's bytes; the last one is how many they are.
pub(super) type Encoded = [u8; LONGEST + 1];

/// The instruction as a block of its own, when it is one and its block is whole with it.
pub(super) fn handled(encoded: &Encoded) -> Option<Handled> {
    let bytes = encoded.get(..usize::from(encoded[LONGEST]))?;
    let decoded = Stream::new(bytes, Mode::Long64).next().ok()?;
    (decoded.end != Some(End::Side)).then_some(Handled { decoded, encoded: *encoded })
}

/// A run of instructions that is entered at its start. Addresses are relative to the page that it is in.
#[derive(Default)]
pub(super) struct Unit {
    pub start: u64,
    pub items: Vec<Item>,
    /// Those whose plan is to call the interpreter's handler, as blocks of their own for it, in their order.
    pub decoded: Vec<Handled>,
    /// Where it goes on behind the last item; `None`: the last item says.
    pub next: Option<u64>,
    /// Nothing looks at the flags that it is entered with.
    pub flags_dead: bool,
    pub uses_sse: bool,
}

/// Reads the instructions at offset `start` in the page with these bytes; at most `longest`. `beyond`: the first
/// bytes of the page after it, where the first instruction goes on in it: then that is all. `unit`: what was one, whose
/// memory is used again. False when there is no instruction that can be translated.
pub(super) fn read(
    unit: &mut Unit,
    page: &mut Lines,
    beyond: Option<[u8; LONGEST]>,
    start: u64,
    longest: usize,
) -> bool {
    unit.items.clear();
    unit.decoded.clear();
    (unit.start, unit.next, unit.flags_dead, unit.uses_sse) = (start, None, false, false);
    if let Some(beyond) = beyond {
        return over_the_end(unit, page, &beyond);
    }
    run(unit, page, longest);
    leave_shadows(unit);
    analyse(unit);
    !unit.items.is_empty()
}

/// The instructions one behind the other.
fn run(unit: &mut Unit, page: &mut Lines, longest: usize) {
    let start = unit.start;
    let (mut at, mut sides, mut round) = (start, 0, None);
    loop {
        unit.next = Some(at);
        if at >= PAGE as u64 || unit.items.len() >= longest {
            break;
        }
        let Some(item) = decode(page.at(at as usize), at, &mut unit.decoded) else { break };
        let (insn, plan) = (item.insn, item.plan);
        if plan == Plan::Stop {
            break;
        }
        at = insn.next_ip();
        unit.uses_sse |= plan == Plan::Sse;
        unit.items.push(item);
        match plan {
            Plan::Jmp => {
                at = insn.near_branch_target();
                let seen = unit.items.iter().any(|i| i.insn.ip() == at);
                if seen || at >= PAGE as u64 {
                    unit.next = Some(at);
                    break;
                }
            }
            Plan::Jcc(cc) => {
                sides += 1;
                if is_loop(unit) {
                    let last = unit.items.len() - 1;
                    unit.items[last].plan = Plan::Loop(cc);
                    at = start;
                    let round = *round.get_or_insert(last + 1);
                    if unit.items.len() + round > longest || sides >= MAX_SIDES {
                        unit.next = Some(at);
                        break;
                    }
                } else if sides >= MAX_SIDES {
                    unit.next = Some(at);
                    break;
                }
            }
            Plan::Call | Plan::Ret | Plan::JmpIndirect | Plan::CallIndirect | Plan::HandlerEnd => {
                unit.next = None;
                break;
            }
            _ => {}
        }
    }
}

/// A unit of the one instruction that goes on in the page after it.
fn over_the_end(unit: &mut Unit, page: &mut Lines, beyond: &[u8; LONGEST]) -> bool {
    let Some(first) = crossing(page, beyond, unit.start, &mut unit.decoded) else { return false };
    unit.uses_sse = first.plan == Plan::Sse;
    unit.next = match first.plan {
        Plan::Stop | Plan::Sti => return false,
        Plan::Jmp => Some(first.insn.near_branch_target()),
        Plan::Call | Plan::Ret | Plan::JmpIndirect | Plan::CallIndirect | Plan::HandlerEnd => None,
        _ => Some(first.insn.next_ip()),
    };
    unit.items.push(first);
    analyse(unit);
    // Before it begins it may find another second page, and leave: then they are looked at.
    unit.flags_dead = false;
    true
}

/// Ends the unit before an STI whose next instruction is not done here at once: between the two nothing may look for
/// interrupts, which the interpreter's shadow sees to and a translation's end does not (SDM vol. 2, STI).
fn leave_shadows(unit: &mut Unit) {
    let at_once = |item: &Item| !matches!(item.plan, Plan::Handler | Plan::HandlerEnd);
    let open = |i: &usize| unit.items[*i].plan == Plan::Sti && !unit.items.get(i + 1).is_some_and(at_once);
    if let Some(i) = (0..unit.items.len()).find(open) {
        unit.next = Some(unit.items[i].insn.ip());
        unit.items.truncate(i);
        let handled = |item: &&Item| matches!(item.plan, Plan::Handler | Plan::HandlerEnd);
        unit.decoded.truncate(unit.items.iter().filter(handled).count());
    }
}

/// Whether the last item, a conditional branch, closes a loop from the start that goes round more than once, as a rule.
/// One with LOCK in it tries until it succeeds, which is at once.
fn is_loop(unit: &Unit) -> bool {
    let back = unit.items.last().is_some_and(|item| item.insn.near_branch_target() == unit.start);
    back && !unit.items.iter().any(|item| item.insn.has_lock_prefix())
}

/// The instruction at the end of a page that goes on in the next.
fn crossing(page: &mut Lines, beyond: &[u8; LONGEST], start: u64, ops: &mut Vec<Handled>) -> Option<Item> {
    let head = page.at(start as usize);
    if head.len() >= LONGEST {
        return None;
    }
    let mut bytes = [0; 2 * LONGEST];
    bytes[..head.len()].copy_from_slice(head);
    bytes[head.len()..head.len() + LONGEST].copy_from_slice(beyond);
    let len = head.len() + LONGEST;
    decode(&bytes[..len], start, ops)
}

/// An instruction; for the interpreter it is among `ops` then, where the plan is to call its handler.
fn decode(bytes: &[u8], ip: u64, ops: &mut Vec<Handled>) -> Option<Item> {
    let mut decoder = Decoder::with_ip(64, bytes, ip, OPTIONS);
    let insn = decoder.decode();
    let whole = decoder.last_error() == DecoderError::None;
    if !whole {
        // Undefined, or it goes on in the next page: the interpreter knows.
        return None;
    }
    let mut raw = [0; LONGEST];
    let len = insn.len().min(LONGEST);
    raw[..len].copy_from_slice(&bytes[..len]);
    let mut plan = plan(&insn, None);
    if plan == Plan::Handler {
        let mut encoded = [0; LONGEST + 1];
        encoded[..len].copy_from_slice(&bytes[..len]);
        encoded[LONGEST] = len as u8;
        plan = match handled(&encoded) {
            None => Plan::Stop,
            Some(own) => {
                let ends = own.decoded.end.is_some();
                ops.push(own);
                if ends { Plan::HandlerEnd } else { Plan::Handler }
            }
        };
    }
    let facts = plan.facts(&insn);
    Some(Item { insn, plan, facts, bytes: raw, need: false, keep: false })
}

/// What follows an instruction that changed the flags: whether anybody may look, and which registers
/// were written before the last who does. `given`: those in the host's flags at first.
fn observers(unit: &Unit, from: usize, given: u8) -> (bool, u16) {
    let mut clobbered = false;
    let (mut seen, mut lost, mut written) = (false, 0, 0);
    for item in &unit.items[from..] {
        let facts = &item.facts;
        let exit = matches!(item.plan, Plan::Jcc(_) | Plan::Loop(_));
        let wanted = facts.reads;
        let reads = wanted != bit::NONE && (clobbered || facts.has_memory || wanted & !given != 0);
        // What changes some of them is laid over what there is, if anybody looks at it.
        let over = facts.effect == Effect::Partial && item.need;
        if exit || reads || facts.may_fault || over {
            (seen, lost) = (true, written);
        }
        if facts.effect == Effect::Kills || over && item.plan.settles(&item.insn) {
            return (seen, lost);
        }
        clobbered |= facts.clobbers;
        written |= facts.writes;
    }
    (true, written)
}

fn analyse(unit: &mut Unit) {
    for i in (0..unit.items.len()).rev() {
        if unit.items[i].facts.effect == Effect::Keeps {
            continue;
        }
        let (plan, insn) = (unit.items[i].plan, unit.items[i].insn);
        let (need, lost) = observers(unit, i + 1, plan.gives(&insn));
        let operands = (0..insn.op_count().min(2))
            .filter(|k| insn.op_kind(*k) == iced_x86::OpKind::Register)
            .fold(0u16, |m, k| m | 1 << (insn.op_register(k).full_register().number() & 15));
        unit.items[i].need = need;
        unit.items[i].keep = lost & operands == 0;
    }
    unit.flags_dead = !observers(unit, 0, bit::NONE).0 && !unit.uses_sse;
}
