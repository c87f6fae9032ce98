//! What there is much of for each translation, in little room, and as bytes.

use super::cc::{Desc, Loc};
use super::lower::{Exit, Named, Site};
use super::scan::Encoded;

/// No number: of an exit, a translation, an op.
pub(super) const NONE: u32 = u32::MAX;

const SLOT: u8 = 0;
const GPR: u8 = 1;
const IMM: u8 = 2;
/// Bits of a kind of operand; there are three.
const KIND: u8 = 2;
/// Flag above them.
const FLAG: u8 = 1 << 7;

fn packed(loc: Loc) -> (u8, i32) {
    match loc {
        Loc::Slot => (SLOT, 0),
        Loc::Gpr(g) => (GPR, i32::from(g)),
        Loc::Imm(v) => (IMM, v),
    }
}

fn loc(kind: u8, value: i32) -> Loc {
    match kind {
        GPR => Loc::Gpr(value as u8),
        IMM => Loc::Imm(value),
        _ => Loc::Slot,
    }
}

/// A [`Desc`], and a flag of whoever has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packed {
    values: [i32; 3],
    op: u8,
    over: u8,
    kinds: u8,
}

impl Packed {
    fn new(desc: &Desc, flag: bool) -> Self {
        let parts = [desc.a, desc.b, desc.r].map(packed);
        let kinds = (0..).zip(parts).fold(0, |all, (n, (kind, _))| all | kind << (KIND * n));
        let kinds = kinds | if flag { FLAG } else { 0 };
        Self { values: parts.map(|(_, value)| value), op: desc.op, over: desc.over, kinds }
    }

    fn desc(&self) -> Desc {
        let part = |n: u8| loc(self.kinds >> (KIND * n) & 3, self.values[usize::from(n)]);
        Desc { op: self.op, a: part(0), b: part(1), over: self.over, r: part(2) }
    }

    fn flag(&self) -> bool {
        self.kinds & FLAG != 0
    }
}

/// See [`Site`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeptSite {
    desc: Packed,
    pub done: u8,
    pub op: u32,
    rip: u16,
    pub size: u8,
}

impl KeptSite {
    pub fn new(site: &Site) -> Self {
        // A translation never leaves its page, and has 255 instructions at most.
        debug_assert!(site.rip < 1 << 16 && site.done < 1 << 8);
        let (rip, done) = (site.rip as u16, site.done as u8);
        Self { desc: Packed::new(&site.desc, site.write), done, op: site.op, rip, size: site.size }
    }

    pub fn desc(&self) -> Desc {
        self.desc.desc()
    }

    /// Relative to [`super::JitState`]'s page.
    pub fn rip(&self) -> u64 {
        u64::from(self.rip)
    }

    pub fn write(&self) -> bool {
        self.desc.flag()
    }
}

/// See [`Exit`]; positions are from the start of the code memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeptExit {
    pub target: u64,
    desc: Packed,
    pub stub: u32,
    /// From the stub.
    bare: u16,
    jump: u16,
    unlinked: u16,
    /// What stands where the stores of the flags are jumped over; zeros where they are not.
    pub replaced: [u8; 2],
    /// [`NONE`] where there is none.
    branch: u32,
    slot_at: u32,
    /// Of the page that its translation begins in.
    pub slot: u32,
    /// The translation that it leads to, and its neighbours among those that lead there; [`NONE`].
    pub to: u32,
    pub next: u32,
    pub before: u32,
}

impl KeptExit {
    /// Of a translation that begins in the page of `slot`.
    pub fn new(exit: &Exit, slot: u32) -> Self {
        let from_stub = |at: u32| (at - exit.stub) as u16;
        debug_assert!(exit.unlinked - exit.stub < 1 << 16);
        Self {
            target: exit.target,
            desc: Packed::new(&exit.desc, exit.is_far),
            stub: exit.stub,
            bare: from_stub(exit.bare),
            jump: from_stub(exit.jump),
            unlinked: from_stub(exit.unlinked),
            replaced: [0; 2],
            branch: exit.branch.unwrap_or(NONE),
            slot_at: exit.slot.unwrap_or(NONE),
            slot,
            to: NONE,
            next: NONE,
            before: NONE,
        }
    }

    pub fn desc(&self) -> Desc {
        self.desc.desc()
    }

    /// The same, linked to nothing.
    pub fn alone(self) -> Self {
        Self { to: NONE, next: NONE, before: NONE, replaced: [0; 2], ..self }
    }

    pub fn is_far(&self) -> bool {
        self.desc.flag()
    }

    pub fn bare(&self) -> u32 {
        self.stub.saturating_add(u32::from(self.bare))
    }

    pub fn jump(&self) -> u32 {
        self.stub.saturating_add(u32::from(self.jump))
    }

    pub fn unlinked(&self) -> u32 {
        self.stub.saturating_add(u32::from(self.unlinked))
    }

    pub fn branch(&self) -> Option<u32> {
        (self.branch != NONE).then_some(self.branch)
    }

    pub fn slot_at(&self) -> Option<u32> {
        (self.slot_at != NONE).then_some(self.slot_at)
    }
}

/// Where code names a table: four bytes, which are the address of the table of a privilege, or of a field of its first
/// entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name(u32);

impl Name {
    const SUPERVISOR: u32 = 1 << 30;
    const JUMPS: u32 = 1 << 31;

    /// `at`: offset in the code memory, below 2 to the power of 30.
    pub fn new(at: u32, bank: usize, named: Named) -> Self {
        let jumps = if named == Named::Jumps { Self::JUMPS } else { 0 };
        Self(at | if bank == 0 { 0 } else { Self::SUPERVISOR } | jumps)
    }

    /// Offset in the code memory.
    pub fn at(self) -> usize {
        (self.0 & (Self::SUPERVISOR - 1)) as usize
    }

    pub fn bank(self) -> usize {
        usize::from(self.0 & Self::SUPERVISOR != 0)
    }

    pub fn named(self) -> Named {
        if self.0 & Self::JUMPS != 0 { Named::Jumps } else { Named::Tlb }
    }
}

/// Something that is so many bytes in a file.
pub(super) trait Record: Sized {
    const BYTES: usize;

    fn put(&self, to: &mut Vec<u8>);

    /// From exactly so many bytes; what is in them is for the caller to look at.
    fn get(from: &mut Fields) -> Self;
}

/// Bytes on their way to numbers; zeros behind the last.
pub(super) struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let Some((bytes, rest)) = self.0.split_first_chunk() else { return [0; N] };
        self.0 = rest;
        *bytes
    }

    pub fn u8(&mut self) -> u8 {
        let [byte] = self.bytes();
        byte
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.bytes())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }
}

fn put_all<const N: usize>(to: &mut Vec<u8>, numbers: [u32; N]) {
    numbers.iter().for_each(|number| to.extend(number.to_le_bytes()));
}

impl Record for Packed {
    const BYTES: usize = 15;

    fn put(&self, to: &mut Vec<u8>) {
        put_all(to, self.values.map(i32::cast_unsigned));
        to.extend([self.op, self.over, self.kinds]);
    }

    fn get(from: &mut Fields) -> Self {
        let values = std::array::from_fn(|_| from.u32().cast_signed());
        Self { values, op: from.u8(), over: from.u8(), kinds: from.u8() }
    }
}

impl Record for KeptSite {
    const BYTES: usize = Packed::BYTES + 8;

    fn put(&self, to: &mut Vec<u8>) {
        self.desc.put(to);
        to.extend(self.op.to_le_bytes());
        to.extend(self.rip.to_le_bytes());
        to.extend([self.done, self.size]);
    }

    fn get(from: &mut Fields) -> Self {
        let (desc, op, rip) = (Packed::get(from), from.u32(), from.u16());
        Self { desc, op, rip, done: from.u8(), size: from.u8() }
    }
}

impl Record for KeptExit {
    const BYTES: usize = Packed::BYTES + 8 + 7 * 4 + 3 * 2 + 2;

    fn put(&self, to: &mut Vec<u8>) {
        to.extend(self.target.to_le_bytes());
        self.desc.put(to);
        put_all(to, [self.stub, self.branch, self.slot_at, self.slot, self.to, self.next, self.before]);
        [self.bare, self.jump, self.unlinked].iter().for_each(|at| to.extend(at.to_le_bytes()));
        to.extend(self.replaced);
    }

    fn get(from: &mut Fields) -> Self {
        let (target, desc) = (from.u64(), Packed::get(from));
        let (stub, branch, slot_at, slot) = (from.u32(), from.u32(), from.u32(), from.u32());
        let (to, next, before) = (from.u32(), from.u32(), from.u32());
        let (bare, jump, unlinked) = (from.u16(), from.u16(), from.u16());
        let replaced = from.bytes();
        Self { target, desc, stub, bare, jump, unlinked, replaced, branch, slot_at, slot, to, next, before }
    }
}

impl Record for Name {
    const BYTES: usize = 4;

    fn put(&self, to: &mut Vec<u8>) {
        to.extend(self.0.to_le_bytes());
    }

    fn get(from: &mut Fields) -> Self {
        Self(from.u32())
    }
}

impl Record for Encoded {
    const BYTES: usize = size_of::<Encoded>();

    fn put(&self, to: &mut Vec<u8>) {
        to.extend(self);
    }

    fn get(from: &mut Fields) -> Self {
        from.bytes()
    }
}

const _: () = assert!(size_of::<KeptSite>() <= 24 && size_of::<KeptExit>() <= 64);
