//! What a soft vCPU counted, as `hv` passes it on.

use hv::Counters;
use x86cpu::{CpuCounters, Stop};

/// Times that the machine was asked for something, by what it was; and HLTs, which it does not see.
#[derive(Default)]
pub(crate) struct Exits {
    port_reads: u64,
    port_writes: u64,
    device_reads: u64,
    device_writes: u64,
    interrupt_ends: u64,
    others: u64,
    pub(crate) halts: u64,
}

impl Exits {
    pub(crate) fn count(&mut self, stop: &Stop) {
        let counter = match stop {
            Stop::PioRead { .. } => &mut self.port_reads,
            Stop::PioWrite { .. } => &mut self.port_writes,
            Stop::MmioRead { .. } => &mut self.device_reads,
            Stop::MmioWrite { .. } => &mut self.device_writes,
            Stop::IoapicEoi { .. } => &mut self.interrupt_ends,
            _ => &mut self.others,
        };
        *counter += 1;
    }

    fn all(&self) -> u64 {
        let accesses = self.port_reads + self.port_writes + self.device_reads + self.device_writes;
        accesses + self.interrupt_ends + self.others
    }
}

pub(crate) fn counters(cpu: &CpuCounters, exits: &Exits) -> Counters {
    let (jit, paging) = (&cpu.translated, &cpu.paging);
    let details = vec![
        ("translated_instructions", jit.instructions),
        ("interpreted_instructions", cpu.instructions.saturating_sub(jit.instructions)),
        ("translations", jit.translations),
        ("translations_kept", jit.kept),
        ("code_bytes", jit.code_bytes),
        ("code_recycled", jit.flushes),
        ("entries", jit.entries),
        ("steps", jit.steps),
        ("handler_calls", jit.handlers),
        ("jump_searches", jit.searches),
        ("unlinked_exits", jit.unlinked),
        ("blocks_decoded", cpu.decoded.0),
        ("instructions_decoded", cpu.decoded.1),
        ("blocks_dropped", cpu.drops),
        ("tlb_misses", jit.misses),
        ("page_walks", paging.walks),
        ("cr3_loads", paging.switches),
        ("tlb_flushes", paging.flushes),
        ("page_flushes", paging.page_flushes),
        ("jump_flushes", paging.epochs),
        ("port_reads", exits.port_reads),
        ("port_writes", exits.port_writes),
        ("device_reads", exits.device_reads),
        ("device_writes", exits.device_writes),
        ("interrupt_ends", exits.interrupt_ends),
        ("halts", exits.halts),
    ];
    Counters { instructions: Some(cpu.instructions), exits: exits.all(), details }
}
