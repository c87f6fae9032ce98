//! Stubs until sys has them.
use crate::cpu::{Cpu, Stop, Trap};

macro_rules! stub {
    ($($name:ident($($arg:ident: $t:ty),*) -> $r:ty;)*) => {
        impl Cpu {
            $(pub(crate) fn $name(&mut self, $($arg: $t),*) -> Result<$r, Trap> {
                $(let _ = $arg;)*
                Err(self.unsupported(stringify!($name)))
            })*
        }
    };
}
stub! {
    load_segment(seg: usize, selector: u16) -> ();
    far_jump(selector: u16, offset: u64, size: u8) -> ();
    far_call(selector: u16, offset: u64, size: u8) -> ();
    far_ret(size: u8, pop: u16) -> ();
    iret(size: u8) -> ();
    soft_int(vector: u8) -> ();
    int3() -> ();
    into() -> ();
    syscall() -> ();
    sysret(size: u8) -> ();
    sysenter() -> ();
    sysexit(size: u8) -> ();
    swapgs() -> ();
    rdmsr() -> ();
    wrmsr() -> ();
    cpuid_insn() -> ();
    rdtsc() -> ();
    rdtscp() -> ();
    rdpmc() -> ();
    hlt() -> ();
    mov_from_cr(n: u8) -> u64;
    mov_to_cr(n: u8, v: u64) -> ();
    mov_from_dr(n: u8) -> u64;
    mov_to_dr(n: u8, v: u64) -> ();
    clts() -> ();
    lmsw(v: u16) -> ();
    smsw() -> u64;
    invlpg(lin: u64) -> ();
    invpcid(kind: u64, lin: u64) -> ();
    wbinvd() -> ();
    lgdt(lin: u64, size: u8) -> ();
    lidt(lin: u64, size: u8) -> ();
    sgdt(lin: u64) -> ();
    sidt(lin: u64) -> ();
    lldt(sel: u16) -> ();
    ltr(sel: u16) -> ();
    sldt() -> u16;
    str_insn() -> u16;
    lar(sel: u16) -> Option<u32>;
    lsl(sel: u16) -> Option<u32>;
    verr(sel: u16) -> bool;
    verw(sel: u16) -> bool;
    rdrand() -> u64;
    rdseed() -> u64;
    rd_fs_gs_base(seg: usize) -> u64;
    wr_fs_gs_base(seg: usize, v: u64) -> ();
    clac() -> ();
    stac() -> ();
    cli() -> ();
    sti() -> ();
    pio_read(port: u16, size: u8) -> u32;
    pio_write(port: u16, size: u8, value: u32) -> ();
}

impl Cpu {
    pub(crate) fn deliver_exception(&mut self, vector: u8, _error: Option<u16>) -> Result<(), Stop> {
        Err(Stop::Unsupported(format!("exception {vector} at {:#x}", self.rip)))
    }
    pub(crate) fn poll_events(&mut self) -> Result<(), Stop> {
        self.attention = false;
        if self.poll.take() & crate::cpu::PollFlag::KICK != 0 {
            return Err(Stop::Poll);
        }
        if self.mp_state != arch::x86_64::state::MpState::Runnable { Err(Stop::Halt) } else { Ok(()) }
    }
    pub(crate) fn single_step_trap(&mut self) -> Result<(), Stop> {
        self.deliver_exception(1, None)
    }
}
