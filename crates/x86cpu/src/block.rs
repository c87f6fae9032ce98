//! Blocks: runs of ops, cached by guest-physical address and mode, and the links between them.
//!
//! A block goes on behind conditional branches that are not taken, up to a limit: each of them is a
//! side exit with a link of its own. A compare and the branch behind it become one op.
//!
//! A block is valid while the code generations of its pages are those it was decoded under; they are
//! looked at when guestmem's code epoch has moved since they last were. A link (or jump-cache entry)
//! says "this virtual address is that block"; it holds while mode, privilege and the MMU's map epoch
//! (together: the tag) are the same, and, for a direct branch inside one page, always: the page is the
//! one that is executing.
//!
//! Memory is bounded: when the op arena or the block table is full everything is dropped at once.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use guestmem::GuestMemory;

use crate::cpu::{Cpu, Mode, Trap};
use crate::decode::{DecodeError, Decoded, End, Stream};
use crate::jit::{Jit, KeptCode};
use crate::mmu::Table;
use crate::op::Op;
use crate::ops::cond;

/// Ops in a block at most.
const MAX_OPS: usize = 64;
/// Side exits of a block at most, and instructions after which no branch is decoded over.
const MAX_SIDES: u8 = 4;
const LONG_ENOUGH: u16 = 24;
/// Bytes read for decoding one block at most.
const WINDOW: usize = 384;
/// Longest instruction.
const MAX_INSN: usize = 15;
/// Ops kept at most (40 bytes each).
const ARENA_OPS: usize = 1 << 20;
/// Blocks and side exits kept at most.
const MAX_BLOCKS: usize = 1 << 17;
/// Floating-point operations of blocks and translations after which both are forgotten.
const MAX_FP_OPS: usize = 1 << 19;
/// Entries of the jump cache.
const JUMPS: usize = 1 << 13;
/// A link tag that holds as long as source and target are in one page.
const SAME_PAGE: u64 = u64::MAX;
const NO_PAGE: u32 = u32::MAX;
/// A code generation that no page has: of a block that is never valid again.
const DEAD: u32 = u32::MAX;

/// "Virtual address `rip` is block `block`", while the tag is `tag`.
#[derive(Clone, Copy, Debug)]
struct Link {
    rip: u64,
    tag: u64,
    block: u32,
}

/// A bit of every tag that [`link_tag`] gives.
const TAGGED: u64 = 1 << 5;

/// An entry of the jump cache.
type Jump = (u64, u64, u32);

const NO_LINK: Link = Link { rip: u64::MAX, tag: SAME_PAGE - 1, block: 0 };

/// How a block was left, when it was not by a trap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Behind its last op.
    End,
    /// By the conditional branch with this number.
    Side(u16),
}

/// A run of ops that is entered at its start only. One cache line: every entry looks at most of it.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(crate) struct Block {
    first: u32,
    len: u16,
    /// Instructions.
    pub(crate) insns: u16,
    /// Bytes from the start to behind the last op.
    pub(crate) bytes: u16,
    pub(crate) end: End,
    sides: u8,
    first_side: u32,
    page: u32,
    generation: u32,
    /// The second page when the block's only instruction crosses into it.
    page2: u32,
    generation2: u32,
    /// Where the end of the block leads to.
    link: Link,
}

/// What is noted at a block again and again: apart from it, so that copies of a machine, which share the blocks that
/// were decoded before they were split off, have little of their own for it.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    /// The code epoch at which the generations of the block's pages were last compared.
    checked: u32,
    /// Times it was run, up to when it is translated; then [`TRANSLATED`] and the number of one of its
    /// translations; or [`NEVER`].
    heat: u32,
}

/// Flag in [`Mark::heat`].
pub(crate) const TRANSLATED: u32 = 1 << 31;
/// [`Mark::heat`] of a block that cannot be translated.
pub(crate) const NEVER: u32 = u32::MAX;

/// Which bytes a block was decoded from: pages (guestmem's index) and their code generations then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    pub(crate) page: u32,
    pub(crate) generation: u32,
    /// Where its only instruction goes on.
    pub(crate) second: Option<(u32, u32)>,
}

impl Block {
    /// [`place`] of the block, which is at `cpu.rip`.
    pub(crate) fn place(&self, cpu: &Cpu) -> u64 {
        place(self.page, cpu)
    }

    pub(crate) fn source(&self) -> Source {
        let second = (self.page2 != NO_PAGE).then_some((self.page2, self.generation2));
        Source { page: self.page, generation: self.generation, second }
    }
}

const _: () = assert!(size_of::<Block>() == 64 && size_of::<Op>() == 40);

/// A hash of numbers.
#[derive(Default)]
pub(crate) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(u64::from(*b));
        }
    }
    fn write_u32(&mut self, v: u32) {
        self.write_u64(u64::from(v));
    }
    fn write_u64(&mut self, v: u64) {
        let x = (self.0 ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = x ^ (x >> 29);
    }
}

/// Blocks by guest-physical address and context.
type Addresses = HashMap<u64, u32, BuildHasherDefault<KeyHasher>>;

/// All blocks of one vCPU.
pub(crate) struct CodeCache {
    ops: Vec<Op>,
    blocks: Vec<Block>,
    /// By block.
    marks: Vec<Mark>,
    /// So many blocks are another vCPU's, who shares them with others: their links are never written.
    shared: u32,
    /// Links of side exits, by block.
    sides: Vec<Link>,
    by_address: Addresses,
    /// The same of blocks that another vCPU decoded. Shared with others: never written.
    learnt: Addresses,
    /// Up to this instruction count blocks are not written to, see [`Cpu::rested`].
    pub(crate) quiet_until: u64,
    /// (rip, tag, block); all zeros where there is none, so that a fresh cache is not resident.
    jumps: Table<Jump>,
    pub(crate) jit: Jit,
    /// Times everything was dropped: an index from before is meaningless after.
    pub(crate) flushes: u64,
    /// Blocks that were decoded, and their instructions.
    pub(crate) decoded: (u64, u64),
}

impl Default for CodeCache {
    /// The tables never move: they have their whole size from the start, of which only what is used becomes
    /// resident. Moving them as they grow took a tenth of the time of a machine's first command.
    fn default() -> Self {
        Self {
            ops: Vec::with_capacity(ARENA_OPS),
            blocks: Vec::with_capacity(MAX_BLOCKS),
            marks: Vec::with_capacity(MAX_BLOCKS),
            shared: 0,
            sides: Vec::with_capacity(MAX_BLOCKS + usize::from(MAX_SIDES)),
            by_address: HashMap::default(),
            learnt: HashMap::default(),
            quiet_until: 0,
            jumps: Table::new(JUMPS),
            jit: Jit::default(),
            flushes: 0,
            decoded: (0, 0),
        }
    }
}

/// Context bit of blocks that hold one instruction each, for stepping.
const SINGLE: u64 = 1 << 4;

/// Mode and privilege: what besides the address decides which block it is.
#[inline(always)]
fn context(cpu: &Cpu) -> u64 {
    (cpu.mode as u64) | (u64::from(cpu.cpl == 3) << 3)
}

/// A physical place in a context: what is at `cpu.rip` in the page with guestmem's index `page`.
pub(crate) fn place(page: u32, cpu: &Cpu) -> u64 {
    (u64::from(page) << 12 | cpu.rip & 0xfff) << 5 | context(cpu)
}

/// The same of what is at `address` in 64-bit mode.
pub(crate) fn hot_place(page: u32, address: u64, user: bool) -> u64 {
    (u64::from(page) << 12 | address & 0xfff) << 5 | Mode::Long64 as u64 | u64::from(user) << 3
}

/// What a [`place`] says: guestmem's page index, offset in the page, mode, whether it is the user's.
pub(crate) fn place_parts(place: u64) -> (u32, u64, u64, bool) {
    ((place >> 17) as u32, place >> 5 & 0xfff, place & 7, place & 1 << 3 != 0)
}

/// Under which links are valid now. It changes only by instructions that end their block with
/// [`End::System`], by traps and by events.
#[inline(always)]
pub(crate) fn link_tag(cpu: &Cpu) -> u64 {
    (u64::from(cpu.mmu.map_epoch) << 8) | TAGGED | context(cpu)
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
    pub(crate) fn heat(&self, index: u32) -> u32 {
        self.marks[index as usize].heat
    }

    #[inline(always)]
    pub(crate) fn set_heat(&mut self, index: u32, heat: u32) {
        self.marks[index as usize].heat = heat;
    }

    #[inline(always)]
    pub(crate) fn ops(&self, block: &Block) -> &[Op] {
        &self.ops[block.first as usize..block.first as usize + usize::from(block.len)]
    }

    /// Whether the bytes that block `index` was decoded from are unchanged. To be asked before every
    /// run of it.
    #[inline(always)]
    pub(crate) fn is_valid(&mut self, cpu: &Cpu, index: u32) -> bool {
        let now = cpu.memory.code_epoch();
        self.marks[index as usize].checked == now || self.revalidate(cpu, index, now)
    }

    fn revalidate(&mut self, cpu: &Cpu, index: u32, now: u32) -> bool {
        let block = &self.blocks[index as usize];
        let valid = cpu.memory.code_generation(block.page as usize) == block.generation
            && (block.page2 == NO_PAGE
                || cpu.memory.code_generation(block.page2 as usize) == block.generation2);
        if valid && cpu.instructions() >= self.quiet_until {
            self.marks[index as usize].checked = now;
        }
        valid
    }

    /// The block that follows `from` at `cpu.rip`, when a link or the jump cache knows it. `tag`: the
    /// present [`link_tag`], the same as when `from` was entered. Not after [`End::System`].
    #[inline(always)]
    pub(crate) fn linked(&self, cpu: &Cpu, from: u32, exit: Exit, tag: u64) -> Option<u32> {
        let block = &self.blocks[from as usize];
        let link = match exit {
            Exit::End => &block.link,
            Exit::Side(n) => &self.sides[block.first_side as usize + usize::from(n)],
        };
        let same_page = (cpu.block_start() ^ cpu.rip) >> 12 == 0;
        if link.rip == cpu.rip && (link.tag == tag || (link.tag == SAME_PAGE && same_page)) {
            return Some(link.block);
        }
        if block.end != End::Indirect && from >= self.shared {
            return None;
        }
        let (rip, known, block) = self.jumps[jump_slot(cpu.rip)];
        (rip == cpu.rip && known == tag).then_some(block)
    }

    /// The block at `cpu.rip` by [`CodeCache::find`], noted as what follows `from`.
    #[inline(never)]
    pub(crate) fn follow(&mut self, cpu: &mut Cpu, from: u32, exit: Exit) -> Result<u32, Trap> {
        let start = cpu.block_start();
        let flushes = self.flushes;
        let to = self.find(cpu, false)?;
        let quiet = cpu.instructions() < self.quiet_until || from < self.shared;
        if quiet || flushes != self.flushes || self.blocks[from as usize].end == End::System {
            return Ok(to);
        }
        let one_page = self.blocks[to as usize].page2 == NO_PAGE;
        let block = &mut self.blocks[from as usize];
        let direct = block.end != End::Indirect || exit != Exit::End;
        let inside = direct && one_page && block.page2 == NO_PAGE && (start ^ cpu.rip) >> 12 == 0;
        let link = Link { rip: cpu.rip, tag: if inside { SAME_PAGE } else { link_tag(cpu) }, block: to };
        match exit {
            Exit::End => block.link = link,
            Exit::Side(n) => self.sides[block.first_side as usize + usize::from(n)] = link,
        }
        Ok(to)
    }

    /// The block at `cpu.rip`, decoded when need be. `single`: one that holds one instruction only.
    ///
    /// # Errors
    /// The fault of fetching its first instruction.
    pub(crate) fn find(&mut self, cpu: &mut Cpu, single: bool) -> Result<u32, Trap> {
        let rip = cpu.rip;
        let kind = if single { SINGLE } else { 0 };
        let tag = link_tag(cpu) | kind;
        let slot = jump_slot(rip);
        let (known, known_tag, block) = self.jumps[slot];
        if known == rip && known_tag == tag && self.is_valid(cpu, block) {
            return Ok(block);
        }
        let lin = cpu.code_address(rip)?;
        let fetched = cpu.fetch_page(lin)?;
        let gpa = fetched.gpa | (lin & 0xfff);
        let key = (gpa << 5) | context(cpu) | kind;
        let known = self.by_key(cpu, key, lin)?;
        let index = match known {
            Some(index) => index,
            None => {
                let place = place(fetched.page as u32, cpu);
                let translated = if single { None } else { self.jit.at(place) };
                // What is translated, or will be at once, is not interpreted: its first instruction is enough.
                let soon = self.jit.is_on() && cpu.instructions() >= self.quiet_until;
                let short = single || translated.is_some() || soon && cpu.is_foreseen(place);
                let index = self.decode(cpu, lin, gpa, fetched.page, short)?;
                self.by_address.insert(key, index);
                if let Some(number) = translated {
                    self.set_heat(index, TRANSLATED | number);
                }
                index
            }
        };
        self.jumps[slot] = (rip, tag, index);
        Ok(index)
    }

    /// The block by its address, when it is as it was decoded.
    fn by_key(&mut self, cpu: &mut Cpu, key: u64, lin: u64) -> Result<Option<u32>, Trap> {
        let known = self.by_address.get(&key).or_else(|| self.learnt.get(&key));
        let Some(index) = known.copied() else { return Ok(None) };
        if !self.is_valid(cpu, index) {
            return Ok(None);
        }
        // The second page may be mapped elsewhere now.
        let page2 = self.block(index).page2;
        let same = page2 == NO_PAGE || cpu.fetch_page((lin | 0xfff).wrapping_add(1))?.page as u32 == page2;
        Ok(same.then_some(index))
    }

    /// Keeps what was decoded from pages that nobody ever wrote, for [`CodeCache::fit`].
    pub(crate) fn keep_unwritten(&mut self, memory: &GuestMemory) {
        self.jumps.give_back();
        for (block, mark) in self.blocks.iter_mut().zip(&mut self.marks) {
            let written = |page: u32| page != NO_PAGE && memory.is_dirty(page as usize);
            if written(block.page) || written(block.page2) {
                block.generation = DEAD;
            }
            if mark.heat != NEVER {
                mark.heat = 0;
            }
        }
    }

    /// Watches the pages of what was kept, in a memory that holds the same bytes.
    pub(crate) fn fit(&mut self, memory: &GuestMemory) {
        if self.learnt.is_empty() {
            self.learnt = std::mem::take(&mut self.by_address);
        } else {
            self.learnt.extend(self.by_address.drain());
        }
        let count = memory.page_count();
        let there = |page: u32| page == NO_PAGE || (page as usize) < count;
        let watch = |page: u32| if page == NO_PAGE { 0 } else { memory.watch_code(page as usize) };
        self.shared = self.blocks.len() as u32;
        for (block, mark) in self.blocks.iter_mut().zip(&mut self.marks) {
            if block.generation != DEAD && there(block.page) && there(block.page2) {
                (block.generation, block.generation2) = (watch(block.page), watch(block.page2));
                mark.checked = memory.code_epoch();
            } else {
                (block.page, block.page2, block.generation) = (0, NO_PAGE, DEAD);
                mark.checked = memory.code_epoch().wrapping_sub(1);
            }
        }
    }

    /// Whether others share what was decoded, as long as nobody writes there.
    pub(crate) fn is_shared(&self) -> bool {
        self.shared > 0
    }

    /// Gives back the memory of what is found again when it is asked for.
    pub(crate) fn give_back(&mut self) {
        self.jumps.give_back();
    }

    /// Goes on with kept translations; all else is forgotten then.
    pub(crate) fn adopt(&mut self, cpu: &mut Cpu, kept: KeptCode) -> bool {
        // What is shared is not to be written, and has its own ways.
        if self.is_shared() || !self.jit.is_on() {
            return false;
        }
        self.recycle();
        cpu.fp_ops.clear();
        let adopted = self.jit.adopt(cpu, kept);
        if !adopted {
            self.jit.flush(cpu);
        }
        adopted
    }

    /// Forgets everything (restore).
    pub(crate) fn clear(&mut self, cpu: &mut Cpu) {
        self.recycle();
        self.jit.flush(cpu);
        cpu.fp_ops.clear();
    }

    /// Forgets all blocks: there is no room for more. What is translated stays.
    fn recycle(&mut self) {
        // Without blocks there are no jumps: a fresh cache stays untouched.
        if !self.blocks.is_empty() {
            self.jumps.give_back();
        }
        self.ops.clear();
        self.blocks.clear();
        self.marks.clear();
        self.shared = 0;
        self.sides.clear();
        self.by_address.clear();
        self.learnt = HashMap::default();
        self.flushes += 1;
    }

    fn decode(&mut self, cpu: &mut Cpu, lin: u64, gpa: u64, page: usize, single: bool) -> Result<u32, Trap> {
        let full = self.ops.len() + MAX_OPS > ARENA_OPS || self.sides.len() >= MAX_BLOCKS;
        if full || self.blocks.len() >= MAX_BLOCKS {
            if cpu.fp_ops.len() > MAX_FP_OPS {
                self.clear(cpu);
            }
            self.recycle();
        }
        // Epoch and generation are read before the bytes: a write in between then invalidates.
        let checked = cpu.memory.code_epoch();
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
            insns: 0,
            bytes: 0,
            end: End::Direct,
            sides: 0,
            first_side: self.sides.len() as u32,
            page: page as u32,
            generation,
            page2: NO_PAGE,
            generation2: 0,
            link: NO_LINK,
        };
        let to_page_end = window.len() == rest;
        let mut stream = Stream::new(window, cpu.mode);
        let mut compare = None;
        while usize::from(block.len) < MAX_OPS {
            let left = window.len() - stream.position();
            if left == 0 || (left < MAX_INSN && !to_page_end) {
                break;
            }
            let Ok(decoded) = stream.next() else { break };
            let ended = self.push(cpu, decoded, &mut block, &mut compare);
            block.bytes = stream.position() as u16;
            if ended || single {
                break;
            }
        }
        if block.len == 0 {
            self.decode_crossing(cpu, lin, window, &mut block)?;
        }
        self.decoded = (self.decoded.0 + 1, self.decoded.1 + u64::from(block.insns));
        self.blocks.push(block);
        self.marks.push(Mark { checked, heat: 0 });
        Ok((self.blocks.len() - 1) as u32)
    }

    /// Adds an instruction to the block under construction; true when the block ends with it.
    /// `compare`: what the instruction before it was, when it can be fused with a branch.
    fn push(
        &mut self,
        cpu: &mut Cpu,
        decoded: Decoded,
        block: &mut Block,
        compare: &mut Option<(u8, u8, u8)>,
    ) -> bool {
        let mut op = decoded.op;
        if let Some(insn) = decoded.fp {
            op.imm = cpu.fp_ops.len() as u64;
            cpu.fp_ops.push(insn);
        }
        op.before = block.insns as u8;
        block.insns += 1;
        let before = compare.take();
        *compare = decoded.compare;
        if decoded.end != Some(End::Side) {
            self.ops.push(op);
            block.len += 1;
            block.end = decoded.end.unwrap_or(End::Direct);
            return decoded.end.is_some();
        }
        op.exit = u16::from(block.sides);
        block.sides += 1;
        self.sides.push(NO_LINK);
        let fused = before
            .filter(|_| decoded.jcc && cpu.mode == Mode::Long64 && op.size == 8)
            .and_then(|(operation, form, size)| cond::fuse(operation, form, size, op.aux));
        match (fused, self.ops.last_mut()) {
            (Some(run), Some(first)) => {
                let len = first.len + op.len;
                *first = Op { run, disp: op.imm, len, insns: 2, exit: op.exit, ..*first };
            }
            _ => {
                self.ops.push(op);
                block.len += 1;
            }
        }
        block.sides >= MAX_SIDES || block.insns >= LONG_ENOUGH
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
            Ok(decoded) => self.push(cpu, decoded, block, &mut None),
            // More than 15 bytes (SDM vol. 3, 6.15).
            Err(DecodeError::MoreBytes) => return Err(Trap::gp(0)),
        };
        block.bytes = stream.position() as u16;
        Ok(())
    }
}
