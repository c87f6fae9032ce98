//! Port input and output: permission (SDM vol. 1, 18.5), then the outside.

use arch::x86_64::regs::Rflags;

use crate::cpu::{Cpu, Mode, Stop, Trap};

/// Offset of the I/O map's own offset in a TSS.
const IO_MAP_BASE: u64 = 0x66;

impl Cpu {
    fn port_allowed(&mut self, port: u16, size: u8) -> Result<(), Trap> {
        let iopl = (self.flags.system & Rflags::IOPL.bits()) >> 12;
        if self.mode == Mode::Real16 || u64::from(self.cpl) <= iopl {
            return Ok(());
        }
        let limit = u64::from(self.tr.limit);
        if IO_MAP_BASE + 1 > limit {
            return Err(Trap::gp(0));
        }
        let map = u64::from(self.read_sys_u16(self.tr.base.wrapping_add(IO_MAP_BASE))?);
        let at = map + u64::from(port) / 8;
        // Always two bytes: the ports may reach into the second (SDM vol. 1, 18.5.2).
        if at + 1 > limit {
            return Err(Trap::gp(0));
        }
        let bits = u32::from(self.read_sys_u16(self.tr.base.wrapping_add(at))?) >> (port & 7);
        if bits & ((1 << size) - 1) == 0 { Ok(()) } else { Err(Trap::gp(0)) }
    }

    /// IN and INS: the caller has made sure that storing the result cannot fault.
    pub(crate) fn pio_read(&mut self, port: u16, size: u8) -> Result<u32, Trap> {
        self.port_allowed(port, size)?;
        let answer = self.io.access(|| Stop::PioRead { port, size }).ok_or(Trap::Io)?;
        Ok(answer as u32 & (u32::MAX >> (32 - 8 * u32::from(size))))
    }

    /// OUT and OUTS.
    pub(crate) fn pio_write(&mut self, port: u16, size: u8, value: u32) -> Result<(), Trap> {
        self.port_allowed(port, size)?;
        self.io.access(|| Stop::PioWrite { port, size, value }).map(|_| ()).ok_or(Trap::Io)
    }
}
