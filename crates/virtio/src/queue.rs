//! A split virtqueue (2.7), the device's side.
//!
//! Order of memory accesses: the available index is loaded with acquire before the ring entry is
//! read; the used element is written before the used index is stored with release; a full fence
//! stands between publishing our index (or event index) and reading the other side's, so that at
//! least one of the two sides sees the other's move and no wake-up is lost (2.7.13).

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex};

use guestmem::GuestMemory;
use thiserror::Error;

use crate::features::{self, AVAIL_NO_INTERRUPT, USED_NO_NOTIFY, desc};
use crate::{Chain, MAX_CHAIN, Segment};

/// A queue as the transport and the device share it.
pub type QueueHandle = Arc<Mutex<Queue>>;

/// Where the driver put a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueLayout {
    /// Entries: a power of two, at most the device's maximum.
    pub size: u16,
    /// Guest-physical address of the descriptor table, 16-byte aligned.
    pub desc: u64,
    /// Of the available ring, 2-byte aligned.
    pub driver: u64,
    /// Of the used ring, 4-byte aligned.
    pub device: u64,
}

/// How a driver broke the rules. The queue is of no use until a reset.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum QueueError {
    /// Size, alignment or place that no queue may have.
    #[error("queue of {size} entries at {desc:#x}, {driver:#x}, {device:#x} is impossible")]
    BadLayout { size: u16, desc: u64, driver: u64, device: u64 },
    /// More entries offered than the ring has.
    #[error("available index {index} is too far ahead of {next}")]
    BadIndex { index: u16, next: u16 },
    /// A descriptor number outside its table.
    #[error("descriptor {index} outside a table of {count}")]
    BadDescriptor { index: u32, count: u32 },
    /// More descriptors than a chain may have: a loop, most likely.
    #[error("chain of more than {limit} descriptors")]
    TooLong { limit: usize },
    /// More bytes than a used length can name.
    #[error("chain of 4 GiB or more")]
    TooBig,
    /// An indirect table inside another, followed by more, of a broken length, or not negotiated.
    #[error("indirect descriptor table of {len} bytes against the rules")]
    BadIndirect { len: u32 },
    /// Something to read after something to write.
    #[error("readable descriptor after a writable one")]
    BadOrder,
    /// A buffer or ring outside RAM.
    #[error(transparent)]
    Memory(#[from] guestmem::Error),
    /// It broke before.
    #[error("the queue is stopped until a reset")]
    Broken,
}

/// The device's side of one queue.
#[derive(Debug, Default)]
pub struct Queue {
    pub(crate) max_size: u16,
    pub(crate) layout: QueueLayout,
    pub(crate) ready: bool,
    broken: bool,
    event_idx: bool,
    indirect: bool,
    /// Next available entry to take.
    pub(crate) next_avail: u16,
    /// Next used entry to fill.
    pub(crate) next_used: u16,
    /// Used index when the driver's wish was last looked at.
    pub(crate) signalled: u16,
}

#[derive(Clone, Copy)]
struct Descriptor {
    gpa: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Queue {
    pub(crate) fn new(max_size: u16) -> Self {
        Self { max_size, layout: QueueLayout { size: max_size, ..Default::default() }, ..Default::default() }
    }

    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }

    /// Checks the layout and opens the queue.
    pub(crate) fn make_ready(&mut self, memory: &GuestMemory, negotiated: u64) -> Result<(), QueueError> {
        let QueueLayout { size, desc, driver, device } = self.layout;
        let n = u64::from(size);
        let fits = size.is_power_of_two()
            && size <= self.max_size
            && desc.is_multiple_of(16)
            && driver.is_multiple_of(2)
            && device.is_multiple_of(4)
            && memory.is_ram(desc, n * desc::SIZE)
            && memory.is_ram(driver, 6 + 2 * n)
            && memory.is_ram(device, 6 + 8 * n);
        if !fits {
            return Err(QueueError::BadLayout { size, desc, driver, device });
        }
        self.event_idx = negotiated & features::EVENT_IDX != 0;
        self.indirect = negotiated & features::INDIRECT_DESC != 0;
        self.ready = true;
        Ok(())
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.layout.size
    }

    /// Whether the driver set the queue up.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Stops the queue until a reset.
    pub(crate) fn stop(&mut self) {
        self.broken = true;
    }

    fn avail_index(&self, memory: &GuestMemory) -> Result<u16, QueueError> {
        Ok(memory.load_u16(self.layout.driver + 2)?)
    }

    /// Takes the next chain; `None` when there is none.
    ///
    /// # Errors
    /// [`QueueError`]: the queue is stopped from here on.
    pub fn pop(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, QueueError> {
        if self.broken {
            return Err(QueueError::Broken);
        }
        if !self.ready {
            return Ok(None);
        }
        let popped = self.try_pop(memory);
        self.broken = popped.is_err();
        popped
    }

    fn try_pop(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, QueueError> {
        let index = self.avail_index(memory)?;
        match index.wrapping_sub(self.next_avail) {
            0 => return Ok(None),
            ahead if ahead > self.layout.size => {
                return Err(QueueError::BadIndex { index, next: self.next_avail });
            }
            _ => {}
        }
        let slot = u64::from(self.next_avail & (self.layout.size - 1));
        let head = memory.load_u16(self.layout.driver + 4 + 2 * slot)?;
        let chain = self.parse(memory, head)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Some(chain))
    }

    /// Puts the chain that was popped last back: the next `pop` gives it again.
    pub fn undo_pop(&mut self) {
        self.next_avail = self.next_avail.wrapping_sub(1);
    }

    fn parse(&self, memory: &GuestMemory, head: u16) -> Result<Chain, QueueError> {
        let mut chain = Chain { head, ..Default::default() };
        let mut walk = Walk { bytes: 0, count: 0 };
        let mut table = (self.layout.desc, u32::from(self.layout.size), false);
        let mut index = head;
        loop {
            let d = Self::descriptor(memory, table.0, table.1, index)?;
            if d.flags & desc::INDIRECT == 0 {
                walk.add(memory, &mut chain, d)?;
                if d.flags & desc::NEXT == 0 {
                    return Ok(chain);
                }
                index = d.next;
                continue;
            }
            let whole = d.len > 0 && u64::from(d.len).is_multiple_of(desc::SIZE);
            if table.2 || !self.indirect || d.flags & desc::NEXT != 0 || !whole {
                return Err(QueueError::BadIndirect { len: d.len });
            }
            table = (d.gpa, d.len / desc::SIZE as u32, true);
            index = 0;
        }
    }

    fn descriptor(
        memory: &GuestMemory,
        table: u64,
        count: u32,
        index: u16,
    ) -> Result<Descriptor, QueueError> {
        if u32::from(index) >= count {
            return Err(QueueError::BadDescriptor { index: index.into(), count });
        }
        let at = table.checked_add(u64::from(index) * desc::SIZE);
        let at = at.ok_or(guestmem::Error::NotRam { gpa: table, len: desc::SIZE })?;
        // One read: what was checked is what is used, whatever the guest writes meanwhile.
        let raw = memory.read_le::<u128>(at)?;
        Ok(Descriptor {
            gpa: raw as u64,
            len: (raw >> 64) as u32,
            flags: (raw >> 96) as u16,
            next: (raw >> 112) as u16,
        })
    }

    /// Gives a chain back with the number of bytes written into it.
    ///
    /// # Errors
    /// [`QueueError`] when the queue is stopped.
    pub fn push(&mut self, memory: &GuestMemory, head: u16, written: u32) -> Result<(), QueueError> {
        self.push_together(memory, [(head, written)])
    }

    /// Gives several chains back at once: the driver sees none of them before all (a packet that was merged from several
    /// buffers, 5.1.6.4).
    ///
    /// # Errors
    /// [`QueueError`] when the queue is stopped.
    pub fn push_together(
        &mut self,
        memory: &GuestMemory,
        chains: impl IntoIterator<Item = (u16, u32)>,
    ) -> Result<(), QueueError> {
        if self.broken || !self.ready {
            return Err(QueueError::Broken);
        }
        let mut next = self.next_used;
        for (head, written) in chains {
            let slot = u64::from(next & (self.layout.size - 1));
            let element = u64::from(head) | u64::from(written) << 32;
            memory.write_le(self.layout.device + 4 + 8 * slot, element)?;
            next = next.wrapping_add(1);
        }
        self.next_used = next;
        memory.store_u16(self.layout.device + 2, next)?;
        Ok(())
    }

    /// Whether the driver wants an interrupt for what was pushed since the last call.
    ///
    /// # Errors
    /// [`QueueError::Memory`].
    pub fn should_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        let (old, new) = (self.signalled, self.next_used);
        if old == new || !self.ready {
            return Ok(false);
        }
        self.signalled = new;
        fence(Ordering::SeqCst);
        if !self.event_idx {
            return Ok(memory.load_u16(self.layout.driver)? & AVAIL_NO_INTERRUPT == 0);
        }
        let event = memory.load_u16(self.layout.driver + 4 + 2 * u64::from(self.layout.size))?;
        Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
    }

    /// Asks for a notification of the next chain; `true` when one is there already.
    ///
    /// # Errors
    /// [`QueueError::Memory`].
    pub fn arm(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        if !self.ready || self.broken {
            return Ok(false);
        }
        if self.event_idx {
            let at = self.layout.device + 4 + 8 * u64::from(self.layout.size);
            memory.store_u16(at, self.next_avail)?;
        } else {
            memory.store_u16(self.layout.device, 0)?;
        }
        fence(Ordering::SeqCst);
        Ok(self.avail_index(memory)? != self.next_avail)
    }

    /// Asks for no notifications for now. (With event indexes there is nothing to do: one comes
    /// only when the driver passes the index that was armed.)
    ///
    /// # Errors
    /// [`QueueError::Memory`].
    pub fn disarm(&mut self, memory: &GuestMemory) -> Result<(), QueueError> {
        if self.ready && !self.event_idx && !self.broken {
            memory.store_u16(self.layout.device, USED_NO_NOTIFY)?;
        }
        Ok(())
    }
}

/// Running totals of a chain.
struct Walk {
    bytes: u64,
    count: usize,
}

impl Walk {
    fn add(&mut self, memory: &GuestMemory, chain: &mut Chain, d: Descriptor) -> Result<(), QueueError> {
        self.count += 1;
        if self.count > MAX_CHAIN {
            return Err(QueueError::TooLong { limit: MAX_CHAIN });
        }
        self.bytes += u64::from(d.len);
        if self.bytes > u64::from(u32::MAX) {
            return Err(QueueError::TooBig);
        }
        let write = d.flags & desc::WRITE != 0;
        if !write && !chain.writable.is_empty() {
            return Err(QueueError::BadOrder);
        }
        if d.len == 0 {
            return Ok(());
        }
        if !memory.is_ram(d.gpa, u64::from(d.len)) {
            return Err(guestmem::Error::NotRam { gpa: d.gpa, len: d.len.into() }.into());
        }
        let list = if write { &mut chain.writable } else { &mut chain.readable };
        list.push(Segment { gpa: d.gpa, len: d.len });
        Ok(())
    }
}
