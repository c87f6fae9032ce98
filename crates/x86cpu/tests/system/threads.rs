//! vCPUs that execute at once, each on a thread: memory order, locked accesses, code that another one writes.
//!
//! The programs were assembled from the comments above them. RBX points at data, RCX is the number of rounds.

use std::sync::Barrier;
use std::thread;

use arch::x86_64::state::VcpuState;
use x86cpu::Stop;

use super::machine::{CODE, DATA, Machine};

const RBX: usize = 3;
const RCX: usize = 1;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;
/// The function that is written while others call it.
const FUNCTION: u64 = 0x3_0000;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|p| u8::from_str_radix(std::str::from_utf8(p).unwrap(), 16).unwrap()).collect()
}

/// Runs `vcpus` at once, to their HLT. `set`: what is special about the state of each.
fn at_once(machine: &Machine, vcpus: u32, set: impl Fn(u64, &mut VcpuState) + Sync) {
    let begin = Barrier::new(vcpus as usize);
    thread::scope(|scope| {
        for id in 0..vcpus {
            let (begin, set) = (&begin, &set);
            scope.spawn(move || {
                let mut cpu = machine.cpu(id);
                let mut state = machine.state(&mut cpu);
                state.gpr[RBX] = DATA;
                state.gpr[4] = 0x5_0000 + 0x1000 * u64::from(id);
                set(u64::from(id), &mut state);
                cpu.restore(&state).unwrap();
                begin.wait();
                loop {
                    match cpu.run(u64::MAX) {
                        Stop::Budget => thread::yield_now(),
                        Stop::Halt => break,
                        other => panic!("vCPU {id}: {other:?}"),
                    }
                }
            });
        }
    });
}

/// Each stores to its word, passes `fence` and loads the other's, round by round:
/// ```text
///       mov r10,rdi; shl r10,6; add r10,rbx; mov r11,rsi; shl r11,6; add r11,rbx; xor r8d,r8d; xor r9d,r9d
///    2: inc r8; BARRIER; mov [r10],r8; FENCE; mov rax,[r11]; mov [r10+0x100],rax; BARRIER
///       cmp [rbx+0x100],r8; jge 3f; cmp [rbx+0x140],r8; jge 3f; inc qword [r10+0x200]
///    3: cmp r8,rcx; jl 2b; hlt
///    BARRIER: mov eax,1; lock xadd [rbx+0x80],eax; add r9d,2; 1: pause; cmp [rbx+0x80],r9d; jl 1b
/// ```
fn store_buffer(fence: &str, back: &str) {
    let machine = Machine::new(2);
    let barrier = "b801000000 f00fc18380000000 4183c102 f390 44398b80000000 7cf5";
    let code = format!(
        "4989fa 49c1e206 4901da 4989f3 49c1e306 4901db 4531c0 4531c9 49ffc0 {barrier} 4d8902 {fence} 498b03
         49898200010000 {barrier} 4c398300010000 7d10 4c398340010000 7d07 49ff8200020000 4939c8 7c{back} f4"
    );
    machine.code(CODE, &hex(&code));
    at_once(&machine, 2, |id, state| {
        state.gpr[RCX] = 3_000;
        state.gpr[RDI] = id;
        state.gpr[RSI] = 1 - id;
    });
    assert_eq!(machine.get(DATA + 0x80) as u32, 12_000, "every round had its barriers");
    assert_eq!(
        (machine.get(DATA + 0x200), machine.get(DATA + 0x240)),
        (0, 0),
        "{fence}: both loads were early"
    );
}

#[test]
fn no_load_passes_an_earlier_store_over_a_fence() {
    // mfence; xchg [rbx+0xc0],rax; push rbx; push rcx; xor eax,eax; cpuid; pop rcx; pop rbx
    store_buffer("0faef0", "97");
    store_buffer("488783c0000000", "93");
    store_buffer("53 51 31c0 0fa2 59 5b", "92");
}

#[test]
fn stores_are_seen_in_their_order() {
    let machine = Machine::new(2);
    // xor r8d,r8d; 1: inc r8; mov [rbx],r8; mov [rbx+0x44],r8; cmp r8,rcx; jl 1b; hlt
    machine.code(CODE, &hex("4531c0 49ffc0 4c8903 4c894344 4939c8 7cf1 f4"));
    // 2: mov rax,[rbx+0x44]; mov rdx,[rbx]; cmp rdx,rax; jae 3f; inc qword [rbx+0x200]; 3: cmp rax,rcx; jl 2b; hlt
    machine.code(CODE + 0x1000, &hex("488b4344 488b13 4839c2 7307 48ff8300020000 4839c8 7ce8 f4"));
    at_once(&machine, 2, |id, state| {
        state.gpr[RCX] = 300_000;
        state.rip = CODE + 0x1000 * id;
    });
    assert_eq!(machine.get(DATA + 0x200), 0, "the flag was seen before its data");
}

/// Every locked form; aligned, over two cache lines, of 16 bytes; a lock by XCHG:
/// ```text
///    1: mov eax,1; lock xadd [rbx],eax; lock inc dword [rbx+0x3e]; lock add qword [rbx+0x7b],3; mov edx,1
///    2: mov ax,[rbx+0xc1]; lea edi,[rax+1]; lock cmpxchg [rbx+0xc1],di; jne 2b
///       push rbx; push rcx; mov rsi,rbx; mov rax,[rsi+0x100]; mov rdx,[rsi+0x108]
///    3: mov rbx,rax; mov rcx,rdx; add rbx,1; adc rcx,2; lock cmpxchg16b [rsi+0x100]; jne 3b; pop rcx; pop rbx
///    4: mov al,1; xchg [rbx+0x140],al; test al,al; je 5f; pause; jmp 4b
///    5: inc qword [rbx+0x180]; mov byte [rbx+0x140],0; dec rcx; jne 1b; hlt
/// ```
#[test]
fn nothing_is_lost_between_locked_accesses() {
    const ROUNDS: u64 = 4_000;
    let machine = Machine::new(4);
    machine.code(
        CODE,
        &hex(
            "b801000000f00fc103f0ff433ef04883437b03ba01000000668b83c10000008d780166f00fb1bbc100000075eb53514889de
             488b8600010000488b96080100004889c34889d14883c3014883d102f0480fc78e0001000075e7595bb00186834001000084c0
             7404f390ebf048ff8380010000c683400100000048ffc97582f4",
        ),
    );
    at_once(&machine, 4, |_, state| state.gpr[RCX] = ROUNDS);
    let all = 4 * ROUNDS;
    assert_eq!(machine.get(DATA) as u32, all as u32, "LOCK XADD");
    assert_eq!(machine.memory.read_le::<u32>(DATA + 0x3e).unwrap(), all as u32, "LOCK INC over two lines");
    assert_eq!(machine.get(DATA + 0x7b), 3 * all, "LOCK ADD over two lines");
    assert_eq!(machine.memory.read_le::<u16>(DATA + 0xc1).unwrap(), all as u16, "LOCK CMPXCHG");
    assert_eq!((machine.get(DATA + 0x100), machine.get(DATA + 0x108)), (all, 2 * all), "LOCK CMPXCHG16B");
    assert_eq!(machine.get(DATA + 0x180), all, "what the lock protects");
}

/// One writes the constant of a function, tells the other by a flag, which serialises and calls it:
/// ```text
///       xor r8d,r8d; 1: inc r8; mov [rbp+1],r8d; mov [rbx],r8; 2: pause; cmp [rbx+0x40],r8; jne 2b; cmp r8,rcx
///       jl 1b; hlt
///
///       xor r8d,r8d; 3: inc r8; 4: pause; cmp [rbx],r8; jne 4b; push rbx; push rcx; xor eax,eax; cpuid
///       pop rcx; pop rbx; call rbp; cmp rax,r8; je 5f; inc qword [rbx+0x80]; 5: mov [rbx+0x40],r8; cmp r8,rcx
///       jl 3b; hlt
/// ```
/// `data`: on the page of the function itself, or on another.
fn patched(data: u64) {
    const ROUNDS: u64 = 1_500;
    let machine = Machine::new(2);
    machine.code(CODE, &hex("4531c0 49ffc0 44894501 4c8903 f390 4c394340 75f8 4939c8 7ce9 f4"));
    machine.code(
        CODE + 0x1000,
        &hex("4531c0 49ffc0 f390 4c3903 75f9 53 51 31c0 0fa2 59 5b ffd5 4c39c0 7407 48ff8380000000 4c894340
              4939c8 7cd7 f4"),
    );
    // mov eax,0; ret
    machine.code(FUNCTION, &hex("b800000000 c3"));
    at_once(&machine, 2, |id, state| {
        state.gpr[RCX] = ROUNDS;
        state.gpr[RBX] = data;
        state.gpr[RBP] = FUNCTION;
        state.rip = CODE + 0x1000 * id;
    });
    assert_eq!(machine.get(data + 0x40), ROUNDS);
    assert_eq!(machine.get(data + 0x80), 0, "old code was executed after serialising");
}

#[test]
fn code_that_another_vcpu_has_written_is_executed_after_serialising() {
    patched(DATA);
    patched(FUNCTION + 0x800);
}

/// CPUID is not what makes it work on this engine: a page that one writes all the time and the other executes from.
/// mov eax,0 is written to `mov eax,n` without telling; what is executed only ever grows.
#[test]
fn code_is_never_older_than_what_was_executed_before() {
    let machine = Machine::new(2);
    // xor r8d,r8d; 1: inc r8; mov [rbp+1],r8d; cmp r8,rcx; jl 1b; mov [rbx],rcx; hlt
    machine.code(CODE, &hex("4531c0 49ffc0 44894501 4939c8 7cf4 48890b f4"));
    // xor r8d,r8d; 2: call rbp; cmp rax,r8; jae 3f; inc qword [rbx+0x80]; 3: mov r8,rax; cmp [rbx],rcx; jne 2b
    // xor eax,eax; cpuid; call rbp; mov [rbp+0x900],rax; hlt
    machine.code(
        CODE + 0x1000,
        &hex("4531c0 ffd5 4c39c0 7307 48ff8380000000 4989c0 48390b 75ea 31c0 0fa2 ffd5 48898500090000 f4"),
    );
    machine.code(FUNCTION, &hex("b800000000 c3"));
    machine.put(DATA + 0x100, 0);
    at_once(&machine, 2, |id, state| {
        state.gpr[RCX] = 60_000;
        state.gpr[RBP] = FUNCTION;
        state.rip = CODE + 0x1000 * id;
    });
    assert_eq!(machine.get(DATA + 0x80), 0);
    assert_eq!(machine.get(FUNCTION + 0x900), 60_000, "the last one is what is executed in the end");
}
