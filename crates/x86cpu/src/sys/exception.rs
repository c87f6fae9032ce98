//! From a fault to its handler: double and triple faults (SDM vol. 3, 6.15, "Interrupt 8").

use super::interrupt::Source;
use crate::cpu::{Cpu, Stop, Trap};

const DOUBLE_FAULT: u8 = 8;
const PAGE_FAULT: u8 = 14;
/// DR6.BS: single step.
const DR6_BS: u64 = 1 << 14;

/// Classes of SDM vol. 3, table 6-4.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    Page,
    Double,
}

fn class(vector: u8) -> Class {
    match vector {
        0 | 10..=13 => Class::Contributory,
        PAGE_FAULT => Class::Page,
        DOUBLE_FAULT => Class::Double,
        _ => Class::Benign,
    }
}

impl Cpu {
    /// Delivers an exception that an instruction raised. RIP is where the handler shall return to.
    ///
    /// # Errors
    /// [`Stop::TripleFault`]; [`Stop::Unsupported`] when delivery needs a device access.
    pub(crate) fn deliver_exception(&mut self, vector: u8, error: Option<u16>) -> Result<(), Stop> {
        self.deliver_event(vector, error, class(vector))
    }

    /// Delivers an external interrupt or NMI.
    pub(super) fn deliver_interrupt(&mut self, vector: u8) -> Result<(), Stop> {
        self.deliver_event(vector, None, Class::Benign)
    }

    fn deliver_event(&mut self, vector: u8, error: Option<u16>, first: Class) -> Result<(), Stop> {
        self.attention = true;
        let (mut vector, mut error, mut first) = (vector, error, first);
        loop {
            let trap = match self.deliver(vector, error, Source::Hardware) {
                Ok(()) => return Ok(()),
                Err(trap) => trap,
            };
            let (second, code) = match trap {
                Trap::Exception { vector, error } => (vector, error),
                Trap::Unsupported => {
                    return Err(Stop::Unsupported(self.failure.take().unwrap_or_default()));
                }
                Trap::Io | Trap::Pause | Trap::Taken | Trap::Alone => {
                    self.io.clear();
                    let what = format!("delivery of exception or interrupt {vector} touches a device");
                    return Err(Stop::Unsupported(what));
                }
            };
            (vector, error) = match (first, class(second)) {
                (Class::Double, _) => return Err(Stop::TripleFault),
                (Class::Contributory, Class::Contributory)
                | (Class::Page, Class::Contributory | Class::Page) => (DOUBLE_FAULT, Some(0)),
                _ => (second, code),
            };
            first = class(vector);
        }
    }

    /// #DB after an instruction that began with TF set.
    ///
    /// # Errors
    /// As [`Cpu::deliver_exception`].
    pub(crate) fn single_step_trap(&mut self) -> Result<(), Stop> {
        self.dr[4] |= DR6_BS;
        self.deliver_exception(1, None)
    }
}
