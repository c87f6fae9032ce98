//! System calls under a KVM that does not enter the guest's kernel for them.
//!
//! Problem: a software KVM was seen to go on at LSTAR in ring 3 after SYSCALL, with RCX and R11 as they should be. The
//! guest's kernel then sees a page fault of a program at the address of its own entry, and ends the program.
//!
//! Strategy: the vCPU stops at the first instruction of the guest's handler of page faults, which is kernel code and
//! therefore KVM's to interpret. Where the fault is the fetch at LSTAR from ring 3, the rest of SYSCALL is done here (SDM
//! vol. 2, SYSCALL) as if the fault had not been; any other fault goes on, its handler's first instruction executed by
//! the soft CPU, since KVM would stop there again. It takes one of the four debug registers. Where the probe
//! finds system calls right, which is everywhere else, nothing of this is made.

use arch::x86_64::msr;
use arch::x86_64::regs::Rflags;
use arch::x86_64::state::Segment;
use guestmem::GuestMemory;
use hv::Error;
use kvm_ioctls::VcpuFd;

use crate::abi::{self, host, refused};
use crate::convert;

/// #PF, and the bit of its error code that says ring 3 (SDM vol. 3, 4.7).
const PAGE_FAULT: u64 = 14;
const FROM_USER: u64 = 1 << 2;
/// Bytes of a gate in 64-bit mode (SDM vol. 3, 6.14.1).
const GATE: u64 = 16;
/// Attributes that SYSCALL gives CS and SS: present, ring 0, code of 64 bits or data, all of memory.
const CODE: u32 = 0xa09b;
const STACK: u32 = 0xc093;

/// Reads eight bytes at a linear address; `None` where nothing is mapped.
fn read(fd: &VcpuFd, memory: &GuestMemory, address: u64) -> Option<u64> {
    let found = fd.translate_gva(address).ok().filter(|found| found.valid != 0)?;
    memory.read_le(found.physical_address).ok()
}

/// Where the guest's handler of page faults begins; `None` while it has none.
pub(crate) fn fault_handler(fd: &VcpuFd, memory: &GuestMemory) -> Result<Option<u64>, Error> {
    let table = fd.get_sregs().map_err(host("KVM_GET_SREGS"))?.idt;
    if u64::from(table.limit) < (PAGE_FAULT + 1) * GATE - 1 {
        return Ok(None);
    }
    let gate = table.base.wrapping_add(PAGE_FAULT * GATE);
    let (Some(low), Some(high)) = (read(fd, memory, gate), read(fd, memory, gate.wrapping_add(8))) else {
        return Ok(None);
    };
    let address = (low & 0xffff) | (low >> 32 & 0xffff_0000) | high << 32;
    Ok(Some(address).filter(|_| low >> 47 & 1 != 0))
}

/// The vCPU is at the first instruction of that handler: enters the kernel if it was a system call that came there.
pub(crate) fn enter(fd: &VcpuFd, memory: &GuestMemory) -> Result<bool, Error> {
    let mut regs = fd.get_regs().map_err(host("KVM_GET_REGS"))?;
    let frame = [0, 8, 16, 24, 32].map(|at| read(fd, memory, regs.rsp.wrapping_add(at)));
    let [Some(code), Some(rip), Some(cs), Some(flags), Some(rsp)] = frame else { return Ok(false) };
    let [star, lstar, mask] = abi::get_msrs(fd, [msr::IA32_STAR, msr::IA32_LSTAR, msr::IA32_FMASK])?;
    let (Some(star), Some(lstar), Some(mask)) = (star, lstar, mask) else { return Ok(false) };
    if code & FROM_USER == 0 || cs & 3 != 3 || rip != lstar {
        return Ok(false);
    }
    let selector = (star >> 32) as u16 & !3;
    let flat = |selector, attr| Segment { selector, base: 0, limit: u32::MAX, attr };
    let mut sregs = fd.get_sregs().map_err(host("KVM_GET_SREGS"))?;
    sregs.cs = convert::segment_to(&flat(selector, CODE));
    sregs.ss = convert::segment_to(&flat(selector.wrapping_add(8), STACK));
    fd.set_sregs(&sregs).map_err(refused("control and segment registers"))?;
    (regs.rip, regs.rsp) = (lstar, rsp);
    regs.rflags = flags & !mask & !Rflags::RF.bits() | Rflags::ONE.bits();
    fd.set_regs(&regs).map_err(refused("registers"))?;
    Ok(true)
}
