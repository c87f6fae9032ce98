//! What translated code calls: look-ups that missed, handlers, flags, and the search for what comes next.
//!
//! Each is called by a thunk of [`super::thunks`] while [`Cpu::enter`] waits. The guest registers that Rust
//! code would destroy are in `Cpu::gpr`; those that it preserves are still in the host's, unless the thunk
//! says that all are in memory.
//!
//! [`Cpu::enter`]: super::run

use arch::x86_64::regs::Rflags;
use arch::x86_64::state::MpState;

use super::cc::{evaluate, image, op, over};
use super::lower::{flow_jump_slot, leave};
use super::run::{bank, page, serialise, sse_ok};
use super::state::JumpEntry;
use super::thunks::Helpers;
use crate::block::{CodeCache, place};
use crate::cpu::{Cpu, Mode};
use crate::mmu::is_canonical;
use crate::op::REG_START;

/// Addresses of all of them.
pub(super) fn helpers() -> Helpers {
    Helpers {
        fill: fill as *const () as usize,
        handler: handler as *const () as usize,
        flags: flags as *const () as usize,
        indirect: indirect as *const () as usize,
        unlinked: unlinked as *const () as usize,
        transfer: transfer as *const () as usize,
        x87_out: x87_out as *const () as usize,
        enable: enable as *const () as usize,
    }
}

/// How far they are from each other, each as an address of a process that has them far up: the same in every process of
/// one build.
pub(super) fn distances() -> Helpers {
    const FAR_UP: usize = 1 << 46;
    let here = helpers();
    let from = |address: usize| FAR_UP.wrapping_add(address).wrapping_sub(here.fill);
    Helpers {
        fill: from(here.fill),
        handler: from(here.handler),
        flags: from(here.flags),
        indirect: from(here.indirect),
        unlinked: from(here.unlinked),
        transfer: from(here.transfer),
        x87_out: from(here.x87_out),
        enable: from(here.enable),
    }
}

/// The CPU and all code, for a helper.
///
/// # Safety
/// `cpu` is what `Cpu::enter` gave to the code that calls the helper.
unsafe fn parts<'a>(cpu: *mut Cpu) -> (&'a mut Cpu, &'a mut CodeCache) {
    // SAFETY: the caller's promise: `enter` waits for the code to return and touches neither.
    let cpu = unsafe { &mut *cpu };
    // SAFETY: as above; `enter` has put the address there.
    let code = unsafe { &mut *std::ptr::with_exposed_provenance_mut::<CodeCache>(cpu.jx.code) };
    (cpu, code)
}

/// A look-up missed at a site: 0 when it hits now, else how to leave.
extern "sysv64" fn fill(cpu: *mut Cpu, lin: u64, number: u32) -> u32 {
    // SAFETY: called by translated code only.
    let (cpu, code) = unsafe { parts(cpu) };
    code.jit.counters.misses += 1;
    let sites = code.jit.store.as_ref().map_or(&[][..], |s| &s.sites);
    let again = sites.get(number as usize).is_some_and(|s| cpu.open_page(lin, s.size, s.write()));
    if again { 0 } else { number << leave::BITS | leave::STEP }
}

/// What came of a handler.
enum Ran {
    /// The next instruction's turn.
    On,
    /// The same, but the dispatcher has to look at something first.
    Stop,
    /// It is left to the interpreter.
    Not,
}

/// Runs the interpreter's handler for a site's instruction; all of the guest is in memory.
fn run_handler(cpu: &mut Cpu, code: &CodeCache, number: u32) -> Ran {
    cpu.x87_home();
    let Some(store) = &code.jit.store else { return Ran::Not };
    let Some(site) = store.sites.get(number as usize) else { return Ran::Not };
    let Some(op) = store.ops.get(site.op as usize) else { return Ran::Not };
    site.desc().settle(cpu);
    evaluate(cpu);
    let rip = cpu.jx.page.wrapping_add(site.rip());
    cpu.gpr[usize::from(REG_START)] = rip;
    cpu.rip = rip.wrapping_add(u64::from(op.len));
    cpu.leave = false;
    if (op.run)(cpu, op).is_err() {
        // Nothing has changed, or a string instruction is at an element: the interpreter finds it so.
        cpu.leave = false;
        return Ran::Not;
    }
    let fpu_gone = cpu.jx.live != 0 && !sse_ok(cpu);
    if std::mem::take(&mut cpu.leave) || fpu_gone { Ran::Stop } else { Ran::On }
}

/// Runs the interpreter's handler for a site's instruction: 0 to go on behind it, else how to leave.
extern "sysv64" fn handler(cpu: *mut Cpu, number: u32) -> u32 {
    // SAFETY: called by translated code only.
    let (cpu, code) = unsafe { parts(cpu) };
    code.jit.counters.handlers += 1;
    let how = match run_handler(cpu, code, number) {
        Ran::On if !cpu.attention => {
            cpu.point_to_bank();
            return 0;
        }
        Ran::On | Ran::Stop => leave::DONE,
        Ran::Not => leave::STEP,
    };
    number << leave::BITS | how
}

/// Runs the interpreter's handler for an instruction that ends its translation: 0 to go on at
/// `JitState::target`, else how to leave.
extern "sysv64" fn transfer(cpu: *mut Cpu, number: u32) -> u32 {
    // SAFETY: called by translated code only.
    let (cpu, code) = unsafe { parts(cpu) };
    code.jit.counters.handlers += 1;
    let how = match run_handler(cpu, code, number) {
        Ran::On => {
            // Before code that others may have written is looked at.
            cpu.serialise();
            if quiet(cpu)
                && let Some(target) = locate(cpu, code)
                && let Some(site) = code.jit.store.as_ref().and_then(|s| s.sites.get(number as usize))
                && cpu.jx.budget > i64::from(site.done)
            {
                cpu.jx.budget -= i64::from(site.done) + 1;
                (cpu.jx.target, cpu.jx.page) = (target as u64, page(cpu.rip));
                // The instruction behind STI comes at once: nothing looks for events before it.
                (cpu.attention, cpu.events.sti_shadow) = (false, false);
                (cpu.jx.op, cpu.jx.over) = (op::IN_FLAGS, over::NONE);
                cpu.point_to_bank();
                return 0;
            }
            leave::DONE
        }
        Ran::Stop => leave::DONE,
        Ran::Not => leave::STEP,
    };
    number << leave::BITS | how
}

/// STI where IF is clear: 0 when it is set now and nothing waited for it, else how to leave.
extern "sysv64" fn enable(cpu: *mut Cpu, _: u64, number: u32) -> u32 {
    // SAFETY: called by translated code only.
    let (cpu, code) = unsafe { parts(cpu) };
    cpu.flags.set_system_bit(Rflags::IF, true);
    if quiet(cpu) {
        let site = code.jit.store.as_ref().and_then(|store| store.sites.get(number as usize));
        code.jit.enabled = site.map(|site| super::run::retired(cpu, u64::from(site.done)));
        return 0;
    }
    cpu.flags.set_system_bit(Rflags::IF, false);
    number << leave::BITS | leave::STEP
}

/// Whether a look at events would find none that is due.
fn quiet(cpu: &Cpu) -> bool {
    let events = &cpu.events;
    let interrupt = cpu.flags.system_bit(Rflags::IF) && cpu.lapic.pending().is_some();
    let due = events.exception.is_some()
        || events.interrupt.is_some()
        || events.nmi_pending && !events.nmi_masked
        || events.movss_shadow
        || interrupt
        || cpu.outbox.is_some()
        || cpu.poll.is_raised();
    let odd = cpu.mp_state != MpState::Runnable || cpu.mode != Mode::Long64;
    !due && !odd && !cpu.flags.system_bit(Rflags::TF)
}

/// Host address of the translation of what is at `Cpu::rip`, when there is one; it is in the jump cache then.
fn locate(cpu: &mut Cpu, code: &mut CodeCache) -> Option<usize> {
    code.jit.sync(cpu);
    let rip = cpu.rip;
    if let Some(at) = remembered(cpu, rip) {
        return Some(at);
    }
    let number = translation(cpu, code)?;
    let at = code.jit.arrive(cpu, number)?;
    code.jit.remember_jump(cpu, rip, at);
    let store = code.jit.store.as_mut()?;
    if std::mem::take(&mut store.unserialised) {
        serialise();
    }
    Some(at)
}

/// What the jump cache says.
fn remembered(cpu: &Cpu, rip: u64) -> Option<usize> {
    let entry = cpu.jumps.as_ref()?[bank(cpu)].get(flow_jump_slot(rip))?;
    (entry.rip == rip).then_some(entry.code as usize)
}

/// Number of the translation of what is at `Cpu::rip`; after [`super::run::Jit::sync`].
fn translation(cpu: &mut Cpu, code: &mut CodeCache) -> Option<u32> {
    // A fault that is found here has not happened yet.
    let cr2 = cpu.cr2;
    let found = at_rip(cpu, code);
    cpu.cr2 = cr2;
    found
}

fn at_rip(cpu: &mut Cpu, code: &mut CodeCache) -> Option<u32> {
    let rip = cpu.rip;
    let page = cpu.fetch_page(rip).ok()?.page;
    let place = place(page as u32, cpu);
    let number = match code.jit.at(place) {
        Some(number) => number,
        None if cpu.insn_count < code.quiet_until || !cpu.is_foreseen(place) => return None,
        None => code.jit.make_on_the_way(cpu, place)?,
    };
    let Some(second) = code.jit.store.as_ref()?.second_page(number) else { return Some(number) };
    let next = cpu.fetch_page((rip | 0xfff).wrapping_add(1)).ok()?.page;
    (next as u32 == second).then_some(number)
}

/// An indirect branch goes to `target`, which is not in the jump cache. Puts it there; the address of the
/// entry, or of one that leads out. 0: the interpreter does the branch, which faults.
extern "sysv64" fn indirect(cpu: *mut Cpu, target: u64) -> usize {
    // SAFETY: called by translated code only.
    let (cpu, code) = unsafe { parts(cpu) };
    code.jit.counters.searches += 1;
    cpu.rip = target;
    match locate(cpu, code) {
        Some(_) => cpu.jx.jumps + size_of::<JumpEntry>() * flow_jump_slot(target),
        None if !is_canonical(target) => 0,
        None => {
            let Some(store) = &code.jit.store else { return 0 };
            let code = store.code.base().as_ptr() as u64 + store.thunks.missed as u64;
            cpu.jump_miss = JumpEntry { rip: target, code };
            (&raw const cpu.jump_miss).expose_provenance()
        }
    }
}

/// An exit leads nowhere yet: links it when its target is translated, which is in `JitState::target` then.
/// 0: it is not.
extern "sysv64" fn unlinked(cpu: *mut Cpu, exit: u32) -> u32 {
    // SAFETY: called by translated code only.
    let (cpu, code) = unsafe { parts(cpu) };
    code.jit.counters.unlinked += 1;
    let Some(store) = &code.jit.store else { return 0 };
    let Some(linked) = store.exits.get(exit as usize) else { return 0 };
    // What it was linked to looks at no flags: then they were not written down.
    let bare = store.is_bare(exit);
    cpu.rip = cpu.jx.page.wrapping_add(linked.target);
    code.jit.sync(cpu);
    let Some(number) = translation(cpu, code) else { return 0 };
    let Some(target) = code.jit.arrive(cpu, number) else { return 0 };
    let Some(store) = &mut code.jit.store else { return 0 };
    if bare && !store.translations[number as usize].flags_dead {
        // On the way out the description is brought up to date.
        return 0;
    }
    store.link(exit, number);
    if std::mem::take(&mut store.unserialised) {
        serialise();
    }
    (cpu.jx.target, cpu.jx.page) = (target as u64, page(cpu.rip));
    1
}

/// Brings the flags together in `Cpu::flags`, and their image into `JitState::tmp`.
extern "sysv64" fn flags(cpu: *mut Cpu) {
    // SAFETY: called by translated code only.
    let (cpu, _) = unsafe { parts(cpu) };
    evaluate(cpu);
    cpu.jx.tmp = image(cpu);
}

/// Puts the guest's x87 state where FRSTOR takes it from.
extern "sysv64" fn x87_out(cpu: *mut Cpu) {
    // SAFETY: called by translated code only.
    let (cpu, _) = unsafe { parts(cpu) };
    cpu.x87_image.0 = cpu.fpu.to_host();
}
