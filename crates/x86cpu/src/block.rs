//! Blocks: runs of ops, cached by guest-physical address and mode, and the links between them.
//!
//! A block is valid while the code generations of its pages are those it was decoded under; this is
//! looked at on every entry. A link (or jump-cache entry) says "this virtual address is that block";
//! it holds while the MMU's map epoch has not moved, and, for a direct branch inside one page,
//! always: the page is the one that is executing.
//!
//! Memory is bounded: when the op arena or the block table is full everything is dropped at once.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::cpu::{Cpu, Mode, Trap};
use crate::decode::{DecodeError, End, Stream};
use crate::op::Op;

/// Ops in a block at most.
const MAX_OPS: usize = 64;
/// Bytes read for decoding one block at most.
const WINDOW: usize = 384;
/// Longest instruction.
const MAX_INSN: usize = 15;
/// Ops kept at most (40 bytes each).
const ARENA_OPS: usize = 1 << 19;
/// Blocks kept at most.
const MAX_BLOCKS: usize = 1 << 17;
/// Entries of the jump cache.
const JUMPS: usize = 1 << 13;
/// A link epoch that never expires.
const ALWAYS: u64 = u64::MAX;
const NO_PAGE: u32 = u32::MAX;

/// "Virtual address `rip` is block `block`", while the map epoch is `epoch`.
#[derive(Clone, Copy, Debug)]
struct Link {
    rip: u64,
    epoch: u64,
    block: u32,
}

const NO_LINK: Link = Link { rip: u64::MAX, epoch: ALWAYS - 1, block: 0 };

/// A run of ops that is entered at its start only.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    first: u32,
    /// Ops: 1 to [`MAX_OPS`].
    pub(crate) len: u16,
    /// Bytes from the start to behind the last op.
    pub(crate) bytes: u16,
    pub(crate) end: End,
    /// Replace this link next.
    victim: u8,
    page: u32,
    generation: u32,
    /// The second page when the block's only instruction crosses into it.
    page2: u32,
    generation2: u32,
    links: [Link; 2],
}

#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(u64::from(*b));
        }
    }
    fn write_u64(&mut self, v: u64) {
        let x = (self.0 ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = x ^ (x >> 29);
    }
}

/// All blocks of one vCPU.
pub(crate) struct CodeCache {
    ops: Vec<Op>,
    blocks: Vec<Block>,
    by_address: HashMap<u64, u32, BuildHasherDefault<KeyHasher>>,
    jumps: Vec<Link>,
    /// Times everything was dropped: an index from before is meaningless after.
    pub(crate) flushes: u64,
}

impl Default for CodeCache {
    fn default() -> Self {
        Self {
            ops: Vec::new(),
            blocks: Vec::new(),
            by_address: HashMap::default(),
            jumps: vec![NO_LINK; JUMPS],
            flushes: 0,
        }
    }
}

/// The part of a link's epoch that says in which mode and privilege it was made.
#[inline(always)]
fn link_epoch(cpu: &Cpu) -> u64 {
    (u64::from(cpu.mmu.map_epoch) << 8) | context(cpu)
}

/// Mode and privilege: what besides the address decides which block it is.
#[inline(always)]
fn context(cpu: &Cpu) -> u64 {
    (cpu.mode as u64) | (u64::from(cpu.cpl == 3) << 3)
}

#[inline(always)]
fn jump_slot(rip: u64) -> usize {
    ((rip ^ (rip >> 13)) as usize) & (JUMPS - 1)
}

impl CodeCache {
    #[inline(always)]
    pub(crate) fn block(&self, index: u32) -> &Block {
        &self.blocks[index as usize]
    }

    #[inline(always)]
    pub(crate) fn ops(&self, block: &Block) -> &[Op] {
        &self.ops[block.first as usize..block.first as usize + usize::from(block.len)]
    }

    /// Whether the bytes that `block` was decoded from are unchanged.
    #[inline(always)]
    pub(crate) fn is_valid(&self, cpu: &Cpu, block: &Block) -> bool {
        cpu.memory.code_generation(block.page as usize) == block.generation
            && (block.page2 == NO_PAGE
                || cpu.memory.code_generation(block.page2 as usize) == block.generation2)
    }

    /// The block that follows `from` at `cpu.rip`, when a link knows it. Only after a block whose
    /// end is not [`End::System`].
    #[inline(always)]
    pub(crate) fn linked(&self, cpu: &Cpu, from: u32) -> Option<u32> {
        let epoch = link_epoch(cpu);
        let block = &self.blocks[from as usize];
        let same_page = (cpu.block_start() ^ cpu.rip) >> 12 == 0;
        for link in &block.links {
            if link.rip == cpu.rip && (link.epoch == epoch || (link.epoch == ALWAYS && same_page)) {
                return Some(link.block);
            }
        }
        None
    }

    /// Notes that `to`, at `cpu.rip`, followed `from` whose start was at `start`.
    pub(crate) fn link(&mut self, cpu: &Cpu, from: u32, start: u64, to: u32) {
        let target = &self.blocks[to as usize];
        let one_page = target.page2 == NO_PAGE;
        let block = &mut self.blocks[from as usize];
        if block.end == End::System {
            return;
        }
        let inside =
            block.end == End::Direct && (start ^ cpu.rip) >> 12 == 0 && one_page && block.page2 == NO_PAGE;
        let epoch = if inside { ALWAYS } else { link_epoch(cpu) };
        let link = Link { rip: cpu.rip, epoch, block: to };
        // A stale link to the same address is replaced first.
        if let Some(old) = block.links.iter_mut().find(|l| l.rip == cpu.rip) {
            *old = link;
            return;
        }
        block.links[usize::from(block.victim & 1)] = link;
        block.victim ^= 1;
    }

    /// The block at `cpu.rip`, decoded when need be.
    ///
    /// # Errors
    /// The fault of fetching its first instruction.
    pub(crate) fn find(&mut self, cpu: &mut Cpu) -> Result<u32, Trap> {
        let rip = cpu.rip;
        let slot = jump_slot(rip);
        let jump = self.jumps[slot];
        if jump.rip == rip && jump.epoch == link_epoch(cpu) && self.is_valid(cpu, self.block(jump.block)) {
            return Ok(jump.block);
        }
        let lin = cpu.code_address(rip)?;
        let fetched = cpu.fetch_page(lin)?;
        let gpa = fetched.gpa | (lin & 0xfff);
        let key = (gpa << 4) | context(cpu);
        let known = self.by_address.get(&key).copied();
        let known = match known {
            Some(index) if self.is_valid(cpu, self.block(index)) => {
                // The second page may be mapped elsewhere now.
                let page2 = self.block(index).page2;
                let same = page2 == NO_PAGE || {
                    let next = cpu.fetch_page((lin | 0xfff).wrapping_add(1))?;
                    next.page as u32 == page2
                };
                same.then_some(index)
            }
            _ => None,
        };
        let index = match known {
            Some(index) => index,
            None => {
                let index = self.decode(cpu, lin, gpa, fetched.page)?;
                self.by_address.insert(key, index);
                index
            }
        };
        self.jumps[slot] = Link { rip, epoch: link_epoch(cpu), block: index };
        Ok(index)
    }

    /// Forgets everything (restore, or full).
    pub(crate) fn clear(&mut self, cpu: &mut Cpu) {
        self.ops.clear();
        self.blocks.clear();
        self.by_address.clear();
        self.jumps.fill(NO_LINK);
        self.flushes += 1;
        cpu.fp_ops.clear();
    }

    fn decode(&mut self, cpu: &mut Cpu, lin: u64, gpa: u64, page: usize) -> Result<u32, Trap> {
        if self.ops.len() + MAX_OPS > ARENA_OPS || self.blocks.len() >= MAX_BLOCKS {
            self.clear(cpu);
        }
        // The generation is read before the bytes: a write in between then invalidates.
        let generation = cpu.mmu.watch_code(page);
        let rest = 4096 - (gpa & 0xfff) as usize;
        let mut window = [0u8; WINDOW];
        let window = &mut window[..rest.min(WINDOW)];
        if cpu.memory.read(gpa, window).is_err() {
            return Err(cpu.unsupported(format!("instruction fetch from {gpa:#x}, which is not RAM")));
        }
        let mut block = Block {
            first: self.ops.len() as u32,
            len: 0,
            bytes: 0,
            end: End::Direct,
            victim: 0,
            page: page as u32,
            generation,
            page2: NO_PAGE,
            generation2: 0,
            links: [NO_LINK; 2],
        };
        let to_page_end = window.len() == rest;
        self.decode_run(cpu, window, to_page_end, cpu.mode, &mut block);
        if block.len == 0 {
            self.decode_crossing(cpu, lin, window, &mut block)?;
        }
        self.blocks.push(block);
        Ok((self.blocks.len() - 1) as u32)
    }

    fn decode_run(&mut self, cpu: &mut Cpu, window: &[u8], to_page_end: bool, mode: Mode, block: &mut Block) {
        let mut stream = Stream::new(window, mode);
        while usize::from(block.len) < MAX_OPS {
            let left = window.len() - stream.position();
            if left == 0 || (left < MAX_INSN && !to_page_end) {
                return;
            }
            let Ok(decoded) = stream.next() else { return };
            self.push(cpu, decoded, block);
            block.bytes = stream.position() as u16;
            if block.end != End::Direct || self.ended(block) {
                return;
            }
        }
    }

    /// Whether the op pushed last ended the block ([`CodeCache::push`] marks it).
    fn ended(&self, block: &Block) -> bool {
        block.victim == ENDED
    }

    fn push(&mut self, cpu: &mut Cpu, decoded: crate::decode::Decoded, block: &mut Block) {
        let mut op = decoded.op;
        if let Some(insn) = decoded.fp {
            op.imm = cpu.fp_ops.len() as u64;
            cpu.fp_ops.push(insn);
        }
        if let Some(end) = decoded.end {
            block.end = end;
            block.victim = ENDED;
        }
        self.ops.push(op);
        block.len += 1;
    }

    /// A first instruction that crosses into the next page: a block of its own.
    fn decode_crossing(
        &mut self,
        cpu: &mut Cpu,
        lin: u64,
        head: &[u8],
        block: &mut Block,
    ) -> Result<(), Trap> {
        let next = cpu.fetch_page((lin | 0xfff).wrapping_add(1))?;
        block.generation2 = cpu.mmu.watch_code(next.page);
        block.page2 = next.page as u32;
        let mut bytes = [0u8; 2 * MAX_INSN];
        let take = head.len().min(MAX_INSN);
        bytes[..take].copy_from_slice(&head[..take]);
        if cpu.memory.read(next.gpa, &mut bytes[take..take + MAX_INSN]).is_err() {
            return Err(cpu.unsupported(format!("instruction fetch from {:#x}, which is not RAM", next.gpa)));
        }
        let mut stream = Stream::new(&bytes[..take + MAX_INSN], cpu.mode);
        match stream.next() {
            Ok(decoded) => self.push(cpu, decoded, block),
            // More than 15 bytes (SDM vol. 3, 6.15).
            Err(DecodeError::MoreBytes) => return Err(Trap::gp(0)),
        }
        block.bytes = stream.position() as u16;
        Ok(())
    }
}

/// `Block::victim` while decoding: the block has its last op.
const ENDED: u8 = 2;
