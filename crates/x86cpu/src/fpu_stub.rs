//! Stands in for `fpu/` until that compiles.
#![allow(dead_code)]
pub enum FpFault<F> {
    Mem(F),
    Simd,
    X87,
    Gp,
    Ud,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    X87,
    Wait,
    Mmx,
    Sse,
    Fxsr,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlagsUse {
    None,
    Reads,
    Writes,
}
#[derive(Clone, Copy, Debug)]
pub struct FpInsn {}
impl FpInsn {
    pub fn class(&self) -> Class {
        Class::Sse
    }
    pub fn flags_use(&self) -> FlagsUse {
        FlagsUse::None
    }
}
#[derive(Default, Debug)]
pub struct Fpu {}
pub trait FpBus {
    type Fault;
    fn load(&mut self, ea: u64, buf: &mut [u8]) -> Result<(), Self::Fault>;
    fn store(&mut self, ea: u64, bytes: &[u8]) -> Result<(), Self::Fault>;
    fn check_write(&mut self, ea: u64, len: usize) -> Result<(), Self::Fault>;
}
pub struct FpContext<'a> {
    pub fpu: &'a mut Fpu,
    pub gpr: &'a mut [u64; 16],
    pub rflags: &'a mut u64,
    pub rip: u64,
}
pub fn decode(_i: &iced_x86::Instruction) -> Option<FpInsn> {
    None
}
pub fn execute<B: FpBus>(
    _i: &FpInsn,
    _c: FpContext<'_>,
    _b: &mut B,
    _ea: u64,
) -> Result<(), FpFault<B::Fault>> {
    Err(FpFault::Ud)
}
