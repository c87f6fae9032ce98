//! Runs one instruction on the host's CPU, in this process.
//!
//! Three areas lie at fixed low addresses, so that the trampoline reaches them without a register:
//! the context (registers in and out), the scratch page, the code page. The trampoline saves the
//! host's registers, loads the case's (FXRSTOR, RFLAGS, all 16 GPRs with RSP), jumps to the code
//! page, and one of two exits stores everything back. An exception arrives as a signal on an
//! alternate stack; the handler takes the registers from the signal frame and resumes at the end of
//! the trampoline.
#![allow(
    unsafe_code,
    reason = "executes generated machine code and handles its faults: the point of this file"
)]

use crate::case::{Case, Outcome};

/// Why there is no oracle here.
#[derive(Debug)]
pub struct Unavailable(pub String);

impl std::fmt::Display for Unavailable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no native oracle: {}", self.0)
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod imp {
    use super::*;

    pub struct Native;

    impl Native {
        pub fn new() -> Result<Native, Unavailable> {
            Err(Unavailable("the host is not x86-64 Linux; run the oracle on one that is".into()))
        }

        pub fn run(&mut self, _: &Case) -> Outcome {
            unreachable!("Native::new never succeeds here")
        }

        pub fn has(_: &str) -> bool {
            false
        }

        pub fn is_amd() -> bool {
            false
        }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod imp {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{LazyLock, Mutex, MutexGuard};

    use super::*;
    use crate::case::{CODE, End, GS_BASE, SCRATCH, SCRATCH_LEN, State, TARGET};

    const CTX: u64 = 0x2000_0000;
    const CODE_PAGE: u64 = CODE & !0xfff;

    /// What the trampoline and the handler exchange; offsets are in the assembly below.
    #[repr(C, align(64))]
    struct Context {
        gpr_in: [u64; 16],
        rflags_in: u64,
        host_rsp: u64,
        entry: u64,
        pad0: [u64; 13],
        gpr_out: [u64; 16],
        rflags_out: u64,
        /// 0 next, 1 taken, 0x100 | vector.
        end: u64,
        /// Of the fault.
        rip: u64,
        pad1: [u64; 13],
        fx_in: [u8; 512],
        fx_out: [u8; 512],
    }

    const _: () = assert!(std::mem::offset_of!(Context, gpr_out) == 0x100);
    const _: () = assert!(std::mem::offset_of!(Context, end) == 0x188);
    const _: () = assert!(std::mem::offset_of!(Context, fx_in) == 0x200);

    std::arch::global_asm!(
        ".globl oracle_enter",
        "oracle_enter:",
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "pushfq",
        "mov [0x20000088], rsp",
        "fxrstor64 [0x20000200]",
        "push qword ptr [0x20000080]",
        "popfq",
        "mov rax, [0x20000000]",
        "mov rcx, [0x20000008]",
        "mov rdx, [0x20000010]",
        "mov rbx, [0x20000018]",
        "mov rsp, [0x20000020]",
        "mov rbp, [0x20000028]",
        "mov rsi, [0x20000030]",
        "mov rdi, [0x20000038]",
        "mov r8, [0x20000040]",
        "mov r9, [0x20000048]",
        "mov r10, [0x20000050]",
        "mov r11, [0x20000058]",
        "mov r12, [0x20000060]",
        "mov r13, [0x20000068]",
        "mov r14, [0x20000070]",
        "mov r15, [0x20000078]",
        "jmp qword ptr [0x20000090]",
        ".globl oracle_taken",
        "oracle_taken:",
        "mov qword ptr [0x20000188], 1",
        ".globl oracle_next",
        "oracle_next:",
        "mov [0x20000100], rax",
        "mov [0x20000108], rcx",
        "mov [0x20000110], rdx",
        "mov [0x20000118], rbx",
        "mov [0x20000120], rsp",
        "mov [0x20000128], rbp",
        "mov [0x20000130], rsi",
        "mov [0x20000138], rdi",
        "mov [0x20000140], r8",
        "mov [0x20000148], r9",
        "mov [0x20000150], r10",
        "mov [0x20000158], r11",
        "mov [0x20000160], r12",
        "mov [0x20000168], r13",
        "mov [0x20000170], r14",
        "mov [0x20000178], r15",
        "mov rsp, [0x20000088]",
        "pushfq",
        "pop qword ptr [0x20000180]",
        "fxsave64 [0x20000400]",
        ".globl oracle_resume",
        "oracle_resume:",
        "mov rsp, [0x20000088]",
        "fninit",
        "push 0x1f80",
        "ldmxcsr [rsp]",
        "pop rax",
        "popfq",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    );

    unsafe extern "C" {
        fn oracle_enter();
        fn oracle_taken();
        fn oracle_next();
        fn oracle_resume();
    }

    static ONE: Mutex<()> = Mutex::new(());
    static ARMED: AtomicBool = AtomicBool::new(false);

    /// The areas and the handlers. One at a time in a process; it stays on its thread.
    pub struct Native {
        _one: MutexGuard<'static, ()>,
        _stack: Vec<u8>,
    }

    fn context() -> *mut Context {
        CTX as *mut Context
    }

    fn map(at: u64, len: usize, prot: i32) -> Result<(), Unavailable> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: a fresh anonymous mapping that the kernel refuses to lay over another one.
        let p = unsafe { libc::mmap(at as *mut _, len, prot, flags, -1, 0) };
        if p as u64 == at {
            return Ok(());
        }
        let why = std::io::Error::last_os_error();
        // The areas of an earlier `Native` in this process stay and serve again.
        if why.kind() == std::io::ErrorKind::AlreadyExists {
            return Ok(());
        }
        Err(Unavailable(format!("cannot map {len:#x} bytes at {at:#x}: {why}")))
    }

    /// From signal frame order to encoding order.
    const GREGS: [i32; 16] = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];

    extern "C" fn on_fault(signal: i32, _: *mut libc::siginfo_t, frame: *mut libc::c_void) {
        if !ARMED.swap(false, Ordering::SeqCst) {
            // Not ours: die by it, as without a handler.
            // SAFETY: resetting a disposition is allowed in a handler; returning runs into it again.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
            return;
        }
        // SAFETY: the kernel hands a valid frame to an SA_SIGINFO handler, with the FXSAVE image
        // behind `fpregs`; the context page is mapped while a Native exists, and ARMED says that
        // the thread was between entry and exit of the trampoline, so nobody else holds it.
        unsafe {
            let frame = &mut *frame.cast::<libc::ucontext_t>();
            let c = &mut *context();
            for (out, reg) in c.gpr_out.iter_mut().zip(GREGS) {
                *out = frame.uc_mcontext.gregs[reg as usize] as u64;
            }
            c.rflags_out = frame.uc_mcontext.gregs[libc::REG_EFL as usize] as u64;
            c.rip = frame.uc_mcontext.gregs[libc::REG_RIP as usize] as u64;
            c.end = 0x100 | frame.uc_mcontext.gregs[libc::REG_TRAPNO as usize] as u64;
            c.fx_out.copy_from_slice(std::slice::from_raw_parts(frame.uc_mcontext.fpregs.cast::<u8>(), 512));
            frame.uc_mcontext.gregs[libc::REG_RIP as usize] = oracle_resume as *const () as i64;
            frame.uc_mcontext.gregs[libc::REG_RSP as usize] = c.host_rsp as i64;
            frame.uc_mcontext.gregs[libc::REG_EFL as usize] = 0x202;
        }
    }

    impl Native {
        /// Maps the areas and installs the handlers on this thread.
        pub fn new() -> Result<Native, Unavailable> {
            let one = ONE.lock().unwrap_or_else(|e| e.into_inner());
            let rw = libc::PROT_READ | libc::PROT_WRITE;
            map(CTX, 0x1000, rw)?;
            map(SCRATCH, SCRATCH_LEN, rw)?;
            map(CODE_PAGE, 0x1000, rw | libc::PROT_EXEC)?;
            let mut stack = vec![0u8; 1 << 16];
            // SAFETY: the stack outlives its use (it is in Native); the handler has the signature
            // that SA_SIGINFO asks for.
            unsafe {
                let alt =
                    libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
                libc::sigaltstack(&alt, std::ptr::null_mut());
                for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
                    let mut action: libc::sigaction = std::mem::zeroed();
                    action.sa_sigaction = on_fault as *const () as usize;
                    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                    libc::sigaction(signal, &action, std::ptr::null_mut());
                }
            }
            // SAFETY: ARCH_SET_GS changes only GS of this thread, which user code on x86-64 Linux does
            // not use otherwise.
            if unsafe { libc::syscall(libc::SYS_arch_prctl, 0x1001, GS_BASE) } != 0 {
                let why = std::io::Error::last_os_error();
                return Err(Unavailable(format!("cannot set the GS base: {why}")));
            }
            let mut native = Native { _one: one, _stack: stack };
            native.jump_at(TARGET, oracle_taken as *const () as u64);
            Ok(native)
        }

        /// `jmp [rip + 0]` and its address.
        fn jump_at(&mut self, at: u64, to: u64) {
            let mut code = [0xff, 0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            code[6..].copy_from_slice(&to.to_le_bytes());
            // SAFETY: within the code page, which is ours and writable.
            unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), at as *mut u8, code.len()) };
        }

        /// Runs the case's instruction once.
        pub fn run(&mut self, case: &Case) -> Outcome {
            let b = &case.before;
            self.jump_at(CODE + case.bytes.len() as u64, oracle_next as *const () as u64);
            // SAFETY: the areas are mapped and ours (ONE is held); an instruction is at most 15
            // bytes, so it and its jump end before TARGET. The generated instruction may do
            // anything that a user instruction can to registers and the scratch page; its faults
            // come back through the handler, and generation leaves out what could escape.
            unsafe {
                std::ptr::copy_nonoverlapping(case.bytes.as_ptr(), CODE as *mut u8, case.bytes.len());
                std::ptr::copy_nonoverlapping(b.mem.as_ptr(), SCRATCH as *mut u8, SCRATCH_LEN);
                let c = context();
                (*c).gpr_in = b.gpr;
                (*c).rflags_in = b.rflags;
                (*c).entry = CODE;
                ((*c).end, (*c).rip) = (0, 0);
                (*c).fx_in = b.fx;
                ARMED.store(true, Ordering::SeqCst);
                oracle_enter();
                ARMED.store(false, Ordering::SeqCst);
                let mut mem = b.mem.clone();
                std::ptr::copy_nonoverlapping(SCRATCH as *const u8, mem.as_mut_ptr(), SCRATCH_LEN);
                let end = match (*c).end {
                    0 => End::Next,
                    1 => End::Taken,
                    v => End::Vector(v as u8),
                };
                let after = State { gpr: (*c).gpr_out, rflags: (*c).rflags_out, fx: (*c).fx_out, mem };
                Outcome { end, rip: (*c).rip, after }
            }
        }

        /// Whether the host is AMD's, whose x87 the soft FPU follows where the manuals leave a choice.
        pub fn is_amd() -> bool {
            // Asked once: in a virtual machine CPUID takes as long as half a case.
            static IS_AMD: LazyLock<bool> =
                LazyLock::new(|| std::arch::x86_64::__cpuid(0).ebx == u32::from_le_bytes(*b"Auth"));
            *IS_AMD
        }

        /// Whether the host has a CPU feature that cases ask for.
        pub fn has(feature: &str) -> bool {
            match feature {
                "sse3" => std::is_x86_feature_detected!("sse3"),
                "ssse3" => std::is_x86_feature_detected!("ssse3"),
                "sse4.1" => std::is_x86_feature_detected!("sse4.1"),
                "sse4.2" => std::is_x86_feature_detected!("sse4.2"),
                "popcnt" => std::is_x86_feature_detected!("popcnt"),
                "cmpxchg16b" => std::is_x86_feature_detected!("cmpxchg16b"),
                _ => true,
            }
        }
    }
}

pub use imp::Native;
