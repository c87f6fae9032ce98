//! The instructions of a translation, and which of their flags anybody may ever see.
//!
//! A translation goes over conditional branches that are not taken (each a side exit) and along jumps
//! inside the page; it never leaves its page. A loop back to its start is taken to be one: as many rounds as there is
//! room for stand one behind the other.

use iced_x86::{Decoder, DecoderError, Instruction};

use super::plan::{Effect, Plan, bit, has_memory, plan};
use crate::cpu::Mode;
use crate::decode::{Decoded, End, OPTIONS, Stream};

/// Side exits of a translation at most.
const MAX_SIDES: usize = 12;
const PAGE: usize = 4096;

/// One instruction of a translation.
pub(super) struct Item {
    pub insn: Instruction,
    pub plan: Plan,
    /// For the interpreter, as a block of its own; only where the plan is to call its handler.
    pub decoded: Option<Decoded>,
    /// Its encoding.
    pub bytes: [u8; 15],
    /// Its flags may be looked at where the host's are gone.
    pub need: bool,
    /// Its register operands (the result is in the first) are still there whenever that happens.
    pub keep: bool,
}

/// A run of instructions that is entered at its start. Addresses are relative to the page that it is in.
pub(super) struct Unit {
    pub start: u64,
    pub items: Vec<Item>,
    /// Where it goes on behind the last item; `None`: the last item says.
    pub next: Option<u64>,
    /// Nothing looks at the flags that it is entered with.
    pub flags_dead: bool,
    pub uses_sse: bool,
}

/// Reads the instructions at offset `start` in the page with these bytes; at most `longest`. `beyond`: the first
/// bytes of the page after it, where the first instruction goes on in it: then that is all.
pub(super) fn unit(page: &[u8; PAGE], beyond: Option<[u8; 15]>, start: u64, longest: usize) -> Option<Unit> {
    let mut unit = Unit { start, items: Vec::new(), next: None, flags_dead: false, uses_sse: false };
    let (mut at, mut sides, mut round) = (start, 0, None);
    if let Some(beyond) = beyond {
        return over_the_end(page, &beyond, unit);
    }
    loop {
        unit.next = Some(at);
        if at >= PAGE as u64 || unit.items.len() >= longest {
            break;
        }
        let Some(item) = decode(&page[at as usize..], at) else { break };
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
                if is_loop(&unit) {
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
    leave_shadows(&mut unit);
    if unit.items.is_empty() {
        return None;
    }
    analyse(&mut unit);
    Some(unit)
}

/// A unit of the one instruction that goes on in the page after it.
fn over_the_end(page: &[u8; PAGE], beyond: &[u8; 15], mut unit: Unit) -> Option<Unit> {
    let first = crossing(page, beyond, unit.start)?;
    unit.uses_sse = first.plan == Plan::Sse;
    unit.next = match first.plan {
        Plan::Stop | Plan::Sti => return None,
        Plan::Jmp => Some(first.insn.near_branch_target()),
        Plan::Call | Plan::Ret | Plan::JmpIndirect | Plan::CallIndirect | Plan::HandlerEnd => None,
        _ => Some(first.insn.next_ip()),
    };
    unit.items.push(first);
    analyse(&mut unit);
    // Before it begins it may find another second page, and leave: then they are looked at.
    unit.flags_dead = false;
    Some(unit)
}

/// Ends the unit before an STI whose next instruction is not done here at once: between the two nothing may look for
/// interrupts, which the interpreter's shadow sees to and a translation's end does not (SDM vol. 2, STI).
fn leave_shadows(unit: &mut Unit) {
    let at_once = |item: &Item| !matches!(item.plan, Plan::Handler | Plan::HandlerEnd);
    let open = |i: &usize| unit.items[*i].plan == Plan::Sti && !unit.items.get(i + 1).is_some_and(at_once);
    if let Some(i) = (0..unit.items.len()).find(open) {
        unit.next = Some(unit.items[i].insn.ip());
        unit.items.truncate(i);
    }
}

/// Whether the last item, a conditional branch, closes a loop from the start that goes round more than once, as a rule.
/// One with LOCK in it tries until it succeeds, which is at once.
fn is_loop(unit: &Unit) -> bool {
    let back = unit.items.last().is_some_and(|item| item.insn.near_branch_target() == unit.start);
    back && !unit.items.iter().any(|item| item.insn.has_lock_prefix())
}

/// The instruction at the end of a page that goes on in the next.
fn crossing(page: &[u8; PAGE], beyond: &[u8; 15], start: u64) -> Option<Item> {
    let head = page.get(start as usize..)?;
    if head.len() >= 15 {
        return None;
    }
    let mut bytes = head.to_vec();
    bytes.extend(beyond);
    decode(&bytes, start)
}

fn decode(bytes: &[u8], ip: u64) -> Option<Item> {
    let mut decoder = Decoder::with_ip(64, bytes, ip, OPTIONS);
    let insn = decoder.decode();
    let whole = decoder.last_error() == DecoderError::None;
    if !whole {
        // Undefined, or it goes on in the next page: the interpreter knows.
        return None;
    }
    let mut raw = [0; 15];
    let len = insn.len().min(15);
    raw[..len].copy_from_slice(&bytes[..len]);
    let first = plan(&insn, None);
    if first != Plan::Handler {
        return Some(Item { insn, plan: first, decoded: None, bytes: raw, need: false, keep: false });
    }
    let decoded = Stream::new(&bytes[..insn.len()], Mode::Long64).next().ok()?;
    let plan = match decoded.end {
        None => Plan::Handler,
        Some(End::Side) => Plan::Stop,
        Some(_) => Plan::HandlerEnd,
    };
    Some(Item { insn, plan, decoded: Some(decoded), bytes: raw, need: false, keep: false })
}

/// What follows an instruction that changed the flags: whether anybody may look, and which registers
/// were written before the last who does. `given`: those in the host's flags at first.
fn observers(unit: &Unit, from: usize, given: u8) -> (bool, u16) {
    let mut clobbered = false;
    let (mut seen, mut lost, mut written) = (false, 0, 0);
    for item in &unit.items[from..] {
        let (plan, insn) = (item.plan, &item.insn);
        let effect = plan.effect(insn);
        let exit = matches!(plan, Plan::Jcc(_) | Plan::Loop(_));
        let wanted = plan.reads_flags(insn);
        let reads = wanted != bit::NONE && (clobbered || has_memory(insn) || wanted & !given != 0);
        // What changes some of them is laid over what there is, if anybody looks at it.
        let over = effect == Effect::Partial && item.need;
        if exit || reads || plan.may_fault(insn) || over {
            (seen, lost) = (true, written);
        }
        if effect == Effect::Kills || over && plan.settles(insn) {
            return (seen, lost);
        }
        clobbered |= plan.clobbers(insn);
        written |= plan.writes(insn);
    }
    (true, written)
}

fn analyse(unit: &mut Unit) {
    for i in (0..unit.items.len()).rev() {
        let (plan, insn) = (unit.items[i].plan, unit.items[i].insn);
        if plan.effect(&insn) == Effect::Keeps {
            continue;
        }
        let (need, lost) = observers(unit, i + 1, plan.gives(&insn));
        let operands = (0..insn.op_count().min(2))
            .filter(|k| insn.op_kind(*k) == iced_x86::OpKind::Register)
            .fold(0u16, |m, k| m | 1 << (insn.op_register(k).full_register().number() & 15));
        unit.items[i].need = need;
        unit.items[i].keep = lost & operands == 0;
    }
    unit.flags_dead = !observers(unit, 0, bit::NONE).0 && !unit.uses_sse;
}
