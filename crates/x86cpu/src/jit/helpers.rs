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
use super::lower::leave;
use super::run::{serialise, sse_ok};
use super::thunks::Helpers;
use crate::block::CodeCache;
use crate::cpu::{Cpu, Mode};
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
    let sites = code.jit.store.as_ref().map_or(&[][..], |s| &s.sites);
    let again = sites.get(number as usize).is_some_and(|s| cpu.open_page(lin, s.size, s.write));
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
    site.desc.settle(cpu);
    evaluate(cpu);
    cpu.gpr[usize::from(REG_START)] = site.rip;
    cpu.rip = site.rip.wrapping_add(u64::from(op.len));
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
                cpu.jx.target = target as u64;
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

/// Host address of the translation of what is at `Cpu::rip`, when there is one.
fn locate(cpu: &mut Cpu, code: &mut CodeCache) -> Option<usize> {
    let number = translation(cpu, code)?;
    let store = code.jit.store.as_mut()?;
    store.confirm(number, cpu.jx.map_epoch);
    if std::mem::take(&mut store.unserialised) {
        serialise();
    }
    Some(store.code.base().as_ptr() as usize + store.translations[number as usize].at as usize)
}

fn translation(cpu: &mut Cpu, code: &mut CodeCache) -> Option<u32> {
    code.jit.sync(cpu);
    let index = code.known(cpu)?;
    code.jit.find(index, code.heat(index), cpu.rip)
}

/// An indirect branch goes to `target`, which is not in the jump cache. Puts it there; the address of the
/// entry, or 0.
extern "sysv64" fn indirect(cpu: *mut Cpu, target: u64) -> usize {
    // SAFETY: called by translated code only.
    let (cpu, code) = unsafe { parts(cpu) };
    cpu.rip = target;
    match locate(cpu, code) {
        Some(at) => cpu.remember_jump(target, at).expose_provenance(),
        None => 0,
    }
}

/// An exit leads nowhere yet: links it when its target is translated, which is in `JitState::target` then.
/// 0: it is not.
extern "sysv64" fn unlinked(cpu: *mut Cpu, exit: u32) -> u32 {
    // SAFETY: called by translated code only.
    let (cpu, code) = unsafe { parts(cpu) };
    let Some(store) = &code.jit.store else { return 0 };
    let Some(linked) = store.exits.get(exit as usize) else { return 0 };
    cpu.rip = linked.exit.target;
    let Some(number) = translation(cpu, code) else { return 0 };
    let Some(store) = &mut code.jit.store else { return 0 };
    store.link(exit, number, cpu.jx.map_epoch);
    store.confirm(number, cpu.jx.map_epoch);
    store.unserialised = false;
    serialise();
    cpu.jx.target = store.code.base().as_ptr() as u64 + u64::from(store.translations[number as usize].at);
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
