//! [`KvmVcpu`]: way (a), first step. Next: `machine/vcpu_thread.rs`.
//!
//! An exit's reply slot is KVM's own: bytes of the shared `kvm_run` page. One exit of KVM can hold
//! several accesses (INS reads ahead, a load can straddle); they are handed out one by one.

#![allow(unsafe_code)] // The kvm_run page: a union, and data at an offset that the kernel names.

use std::mem::offset_of;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arch::x86_64::cpuid::CpuidLeaf;
use hv::{Counters, Error, Exit, Kick, Stops, Vcpu, VcpuState};
use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO,
    KVM_EXIT_IO_OUT, KVM_EXIT_IOAPIC_EOI, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN,
    KVM_EXIT_SYSTEM_EVENT, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP,
    KVM_INTERNAL_ERROR_EMULATION, kvm_guest_debug, kvm_run,
    kvm_run__bindgen_ty_1__bindgen_ty_6 as kvm_run_mmio,
};
use kvm_ioctls::VcpuFd;
use x86cpu::Stop;

use crate::abi::host;
use crate::assist::{Assist, Assisted};
use crate::entry;
use crate::kick::{self, KickTarget};
use crate::state;
use crate::vm::Shared;

/// Where MMIO data is in `kvm_run`.
const MMIO_DATA: usize = offset_of!(kvm_run, __bindgen_anon_1) + offset_of!(kvm_run_mmio, data);
/// #UD.
const INVALID_OPCODE: u8 = 6;

/// Accesses of one exit of KVM, in pieces for the machine.
#[derive(Clone, Copy)]
struct Access {
    /// Offset of the data in the `kvm_run` mapping, and bytes of all pieces.
    at: usize,
    len: usize,
    /// Bytes handed out and answered.
    done: usize,
    /// Bytes that are being answered.
    given: usize,
    /// Port (then every piece is of `size` bytes and for the same port) or guest-physical address.
    target: u64,
    port_size: Option<usize>,
    write: bool,
}

impl Access {
    /// The next piece's size: 1, 2, 4 or 8.
    fn piece(&self) -> usize {
        let left = self.len - self.done;
        self.port_size.unwrap_or_else(|| if left >= 8 { 8 } else { 1 << left.ilog2() })
    }
}

/// What `run` returns, before it borrows the reply slot.
enum Next {
    /// The next piece of `KvmVcpu::access`.
    Piece,
    /// An access of an assisted instruction.
    Assist(Stop),
    Eoi(u8),
    Kicked,
    Debug,
    Shutdown,
    Failed(String),
}

pub(crate) struct KvmVcpu {
    pub(crate) fd: VcpuFd,
    id: u32,
    shared: Arc<Shared>,
    kick: Arc<KickTarget>,
    /// Bytes of the `kvm_run` mapping.
    mapped: usize,
    access: Option<Access>,
    assist: Assist,
    /// The reply slot of an assisted instruction's access.
    data: [u8; 8],
    /// The machine is answering that access.
    answering: bool,
    /// An access that came up while settling: the next exit.
    deferred: Option<Stop>,
    /// Where a debugger wants it to stop.
    stops: Stops,
    /// Where it stops for `entry`.
    fault_handler: Option<u64>,
    exits: u64,
}

impl KvmVcpu {
    pub(crate) fn new(
        mut fd: VcpuFd,
        id: u32,
        leaves: Vec<CpuidLeaf>,
        shared: Arc<Shared>,
    ) -> Result<Self, Error> {
        kick::install_handler()?;
        let mapped = shared.vm.run_size();
        let kick = Arc::new(KickTarget::new(NonNull::from(&mut fd.get_kvm_run().immediate_exit)));
        Ok(Self {
            fd,
            id,
            shared,
            kick,
            mapped,
            access: None,
            assist: Assist::new(id, leaves),
            data: [0; 8],
            answering: false,
            deferred: None,
            stops: Stops::default(),
            fault_handler: None,
            exits: 0,
        })
    }

    /// Until there is something for the machine.
    fn advance(&mut self) -> Result<Next, Error> {
        if let Some(stop) = self.deferred.take() {
            return Ok(Next::Assist(stop));
        }
        if std::mem::take(&mut self.answering)
            && let Some(assisted) = self.assist.answer(u64::from_le_bytes(self.data))
            && let Some(next) = self.assisted(assisted)?
        {
            return Ok(next);
        }
        if let Some(access) = &mut self.access {
            access.done += std::mem::take(&mut access.given);
            if access.done < access.len {
                return Ok(Next::Piece);
            }
            self.access = None;
        }
        loop {
            if let Some(next) = self.enter()? {
                return Ok(next);
            }
        }
    }

    /// KVM_RUN once. `None`: nothing for the machine.
    fn enter(&mut self) -> Result<Option<Next>, Error> {
        self.kick.enter();
        let result = self.fd.run().map(|_| ());
        self.kick.leave();
        if let Err(error) = result {
            return match error.errno() {
                libc::EINTR => Ok(self.kick.take().then_some(Next::Kicked)),
                // A vCPU that waited for INIT got it.
                libc::EAGAIN => Ok(None),
                libc::EFAULT => {
                    Ok(Some(Next::Failed("KVM cannot reach a page of the guest's memory".into())))
                }
                _ => Err(host("KVM_RUN")(error)),
            };
        }
        let run = self.fd.get_kvm_run();
        match run.exit_reason {
            KVM_EXIT_IO => self.port_access(),
            KVM_EXIT_MMIO => self.memory_access(),
            KVM_EXIT_IOAPIC_EOI => {
                // SAFETY: the exit reason names the union's field.
                Ok(Some(Next::Eoi(unsafe { run.__bindgen_anon_1.eoi.vector })))
            }
            KVM_EXIT_INTERNAL_ERROR => self.refused(),
            KVM_EXIT_DEBUG => self.stopped(),
            KVM_EXIT_SHUTDOWN | KVM_EXIT_SYSTEM_EVENT => Ok(Some(Next::Shutdown)),
            KVM_EXIT_INTR => Ok(self.kick.take().then_some(Next::Kicked)),
            KVM_EXIT_IRQ_WINDOW_OPEN => Ok(None),
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: as above.
                let reason = unsafe { run.__bindgen_anon_1.fail_entry.hardware_entry_failure_reason };
                Ok(Some(Next::Failed(format!(
                    "the processor refuses to enter the guest (reason {reason:#x})"
                ))))
            }
            other => {
                Ok(Some(Next::Failed(format!("KVM stopped with an exit that is not known here ({other})"))))
            }
        }
    }

    fn port_access(&mut self) -> Result<Option<Next>, Error> {
        let mapped = self.mapped;
        // SAFETY: the exit reason names the union's field.
        let io = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.io };
        let (size, count) = (usize::from(io.size), io.count as usize);
        let at = usize::try_from(io.data_offset).unwrap_or(usize::MAX);
        let len = size.saturating_mul(count);
        let fits = at.checked_add(len).is_some_and(|end| end <= mapped);
        if !fits || !matches!(size, 1 | 2 | 4) || count == 0 {
            return Ok(Some(Next::Failed(format!("KVM reports {count} port accesses of {size} bytes"))));
        }
        self.access = Some(Access {
            at,
            len,
            done: 0,
            given: 0,
            target: io.port.into(),
            port_size: Some(size),
            write: u32::from(io.direction) == KVM_EXIT_IO_OUT,
        });
        Ok(Some(Next::Piece))
    }

    fn memory_access(&mut self) -> Result<Option<Next>, Error> {
        // SAFETY: the exit reason names the union's field.
        let mmio = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.mmio };
        let len = mmio.len as usize;
        if !(1..=mmio.data.len()).contains(&len) {
            return Ok(Some(Next::Failed(format!("KVM reports a device access of {len} bytes"))));
        }
        self.access = Some(Access {
            at: MMIO_DATA,
            len,
            done: 0,
            given: 0,
            target: mmio.phys_addr,
            port_size: None,
            write: mmio.is_write != 0,
        });
        Ok(Some(Next::Piece))
    }

    /// KVM gives up. An instruction that it cannot emulate is executed by the soft CPU.
    fn refused(&mut self) -> Result<Option<Next>, Error> {
        // SAFETY: the exit reason names the union's field.
        let internal = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal };
        let mut state = state::save(&self.fd, &self.shared)?;
        if internal.suberror != KVM_INTERNAL_ERROR_EMULATION {
            let what = format!(
                "KVM gave up with internal error {} at {:#x}, data {:x?}",
                internal.suberror,
                state.rip,
                &internal.data[..(internal.ndata as usize).min(internal.data.len())]
            );
            return Ok(Some(Next::Failed(what)));
        }
        if !self.shared.clean_refusals && state.events.exception.is_some_and(|(v, _)| v == INVALID_OPCODE) {
            // Queued by KVM because of the refusal itself.
            state.events.exception = None;
        }
        self.shared.assists.fetch_add(1, Ordering::Relaxed);
        let assisted = self.assist.begin(&self.shared, state)?;
        self.assisted(assisted)
    }

    /// At one of the places where it was to stop, or after a step.
    fn stopped(&mut self) -> Result<Option<Next>, Error> {
        // SAFETY: the exit reason names the union's field.
        let at = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.debug.arch.pc };
        if self.fault_handler != Some(at) || self.stops.holds(at) {
            return Ok(Some(Next::Debug));
        }
        if entry::enter(&self.fd, &self.shared.memory)? {
            return Ok(None);
        }
        let state = state::save(&self.fd, &self.shared)?;
        let assisted = self.assist.begin(&self.shared, state)?;
        self.assisted(assisted)
    }

    /// Has KVM stop where the debugger wants it to, and for `entry`.
    fn watch(&mut self) -> Result<(), Error> {
        let mut stops = self.stops.clone();
        stops.at.extend(self.fault_handler.filter(|at| !self.stops.at.contains(at)));
        self.fd.set_guest_debug(&guest_debug(&stops)?).map_err(host("KVM_SET_GUEST_DEBUG"))
    }

    fn assisted(&mut self, assisted: Assisted) -> Result<Option<Next>, Error> {
        Ok(match assisted {
            Assisted::Done(states) => {
                let (before, after) = &*states;
                state::load_changes(&self.fd, &self.shared, before, after)?;
                None
            }
            Assisted::Access(stop) => Some(Next::Assist(stop)),
            Assisted::Shutdown => Some(Next::Shutdown),
            Assisted::Failed(what) => {
                Some(Next::Failed(format!("neither KVM nor the soft CPU can execute an instruction: {what}")))
            }
        })
    }

    fn exit(&mut self, next: Next) -> Exit<'_> {
        self.exits += 1;
        match next {
            Next::Piece => self.piece(),
            Next::Assist(stop) => self.assist_exit(stop),
            Next::Eoi(vector) => Exit::IoapicEoi { vector },
            Next::Kicked => Exit::Kicked,
            Next::Debug => Exit::Debug,
            Next::Shutdown => Exit::Shutdown,
            Next::Failed(reason) => Exit::Failed { reason },
        }
    }

    fn piece(&mut self) -> Exit<'_> {
        let base = std::ptr::from_mut(self.fd.get_kvm_run()).cast::<u8>();
        let Some(access) = &mut self.access else { return Exit::Kicked };
        let size = access.piece().min(access.len - access.done);
        access.given = size;
        let at = access.at + access.done;
        debug_assert!(at + size <= self.mapped);
        // SAFETY: `at + size` is within the `kvm_run` mapping, which lives as long as `self.fd` and so as
        // the borrow; the kernel touches it only in KVM_RUN, which needs `&mut self`.
        let data = unsafe { std::slice::from_raw_parts_mut(base.add(at), size) };
        match (access.port_size.is_some(), access.write) {
            (true, true) => Exit::PioWrite { port: access.target as u16, data },
            (true, false) => Exit::PioRead { port: access.target as u16, data },
            (false, true) => Exit::MmioWrite { gpa: access.target + access.done as u64, data },
            (false, false) => Exit::MmioRead { gpa: access.target + access.done as u64, data },
        }
    }

    fn assist_exit(&mut self, stop: Stop) -> Exit<'_> {
        self.answering = true;
        let mut slot = |size: u8, value: u64| {
            self.data = value.to_le_bytes();
            usize::from(size).min(8)
        };
        match stop {
            Stop::PioRead { port, size } => {
                let len = slot(size, 0);
                Exit::PioRead { port, data: &mut self.data[..len] }
            }
            Stop::PioWrite { port, size, value } => {
                let len = slot(size, value.into());
                Exit::PioWrite { port, data: &self.data[..len] }
            }
            Stop::MmioRead { gpa, size } => {
                let len = slot(size, 0);
                Exit::MmioRead { gpa, data: &mut self.data[..len] }
            }
            Stop::MmioWrite { gpa, size, value } => {
                let len = slot(size, value);
                Exit::MmioWrite { gpa, data: &self.data[..len] }
            }
            other => Exit::Failed { reason: format!("unexpected stop {other:?}") },
        }
    }

    /// Completes what KVM began: KVM_RUN that returns before it enters the guest.
    fn complete(&mut self) -> Result<(), Error> {
        while let Some(mut access) = self.access.take() {
            access.done += access.given;
            if access.done < access.len {
                self.fill(&access);
            }
            self.kick.set_immediate(true);
            let result = self.fd.run().map(|_| ());
            self.kick.set_immediate(false);
            if self.kick.is_requested() {
                // It came meanwhile and is for the next run.
                self.kick.set_immediate(true);
            }
            match result {
                Err(error) if error.errno() == libc::EINTR => return Ok(()),
                Err(error) => return Err(host("completing a device access")(error)),
                Ok(()) => {}
            }
            // One more part of the same instruction.
            match self.fd.get_kvm_run().exit_reason {
                KVM_EXIT_IO => drop(self.port_access()?),
                KVM_EXIT_MMIO => drop(self.memory_access()?),
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    /// Reads that nobody will answer give ones, as on an empty bus, and such writes are lost. Only parts
    /// of an access of more than eight bytes, of an unaligned one over a page's end or of an INS with
    /// repeat come to this: no driver of a device of ours makes them.
    fn fill(&mut self, access: &Access) {
        if access.write {
            return;
        }
        let base = std::ptr::from_mut(self.fd.get_kvm_run()).cast::<u8>();
        debug_assert!(access.at + access.len <= self.mapped);
        // SAFETY: as in `piece`.
        unsafe { base.add(access.at + access.done).write_bytes(0xff, access.len - access.done) };
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self) -> Result<Exit<'_>, Error> {
        let next = self.advance()?;
        Ok(self.exit(next))
    }

    fn settle(&mut self) -> Result<(), Error> {
        if std::mem::take(&mut self.answering)
            && let Some(assisted) = self.assist.answer(u64::from_le_bytes(self.data))
        {
            match self.assisted(assisted)? {
                None => {}
                // Not begun, as far as the saved state goes.
                Some(Next::Assist(stop)) => self.deferred = Some(stop),
                Some(Next::Failed(reason)) => {
                    return Err(Error::BadState { engine: crate::abi::ENGINE, what: reason });
                }
                Some(_) => {}
            }
        }
        self.complete()
    }

    fn save(&mut self) -> Result<VcpuState, Error> {
        state::save(&self.fd, &self.shared)
    }

    fn restore(&mut self, state: &VcpuState) -> Result<(), Error> {
        self.complete()?;
        self.assist.forget();
        (self.answering, self.deferred) = (false, None);
        state::restore(&self.fd, &self.shared, self.id, state)?;
        if !self.shared.system_call {
            self.fault_handler = entry::fault_handler(&self.fd, &self.shared.memory)?;
            self.watch()?;
        }
        Ok(())
    }

    fn stop_at(&mut self, stops: &Stops) -> Result<(), Error> {
        self.stops = stops.clone();
        self.watch()
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.kick) as Arc<dyn Kick>
    }

    fn counters(&self) -> Counters {
        let assists = self.shared.assists.load(Ordering::Relaxed);
        Counters { instructions: None, exits: self.exits, details: vec![("assists_of_machine", assists)] }
    }
}

/// Breakpoints in the debug registers, of which there are four (SDM vol. 3, 18.2: global enables 1, 3, 5, 7 of DR7;
/// condition and length 0, instruction execution; bit 10 is always set).
fn guest_debug(stops: &Stops) -> Result<kvm_guest_debug, Error> {
    let mut debug = kvm_guest_debug::default();
    if stops.is_any() {
        debug.control = KVM_GUESTDBG_ENABLE;
    }
    if stops.step {
        debug.control |= KVM_GUESTDBG_SINGLESTEP;
    }
    if stops.at.len() > 4 {
        let what = format!("{} breakpoints", stops.at.len());
        let advice = "keep fewer (a processor has four, and one is ours where KVM is a software one), or run it with --engine \
                      soft, which has no limit";
        return Err(Error::Unsupported { engine: crate::abi::ENGINE, what, advice });
    }
    if !stops.at.is_empty() {
        debug.control |= KVM_GUESTDBG_USE_HW_BP;
        debug.arch.debugreg[7] = 1 << 10;
    }
    for (i, address) in stops.at.iter().enumerate() {
        debug.arch.debugreg[i] = *address;
        debug.arch.debugreg[7] |= 2 << (2 * i);
    }
    Ok(debug)
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        self.kick.retire();
    }
}
