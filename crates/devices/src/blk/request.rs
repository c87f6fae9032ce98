//! What the driver asks for. Parsing only: no disk, no effect.

use disk::SECTOR;
use guestmem::GuestMemory;
use thiserror::Error;
use virtio::{Chain, Reader, Writer};

use super::regs::{MAX_RANGE_SECTORS, MAX_RANGES, MAX_TRANSFER};

/// Bytes of struct virtio_blk_req before the data: type, reserved, sector.
const HEADER: usize = 16;
/// Bytes of one discard or write-zeroes range.
const RANGE: u64 = 16;
/// Write-zeroes flag: the storage may be given back (it is, always: the range reads the same).
const UNMAP: u32 = 1;

/// One request (5.2.6).
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// Fill the data part from this byte on.
    Read {
        offset: u64,
    },
    /// Take the data part to this byte on.
    Write {
        offset: u64,
    },
    Flush,
    /// The disk's name, 20 bytes.
    GetId,
    Discard(Vec<Range>),
    WriteZeroes(Vec<Range>),
}

/// Bytes of the disk.
#[derive(Debug, PartialEq, Eq)]
pub struct Range {
    pub offset: u64,
    pub len: u64,
}

/// A request with the memory that goes with it.
pub struct Parsed<'a> {
    /// Or the status that answers it.
    pub request: Result<Request, Status>,
    pub data_in: Reader<'a>,
    pub data_out: Writer<'a>,
    pub status: Writer<'a>,
}

/// The last byte of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// The chain has no room for a status: it cannot be answered at all.
#[derive(Debug, Error)]
#[error("block request without a status byte")]
pub struct NoStatus;

/// Takes a chain apart.
///
/// # Errors
/// [`NoStatus`].
pub fn parse<'a>(chain: &'a Chain, memory: &'a GuestMemory) -> Result<Parsed<'a>, NoStatus> {
    let mut data_in = chain.readable(memory);
    let mut data_out = chain.writable(memory);
    let last = data_out.remaining().checked_sub(1).ok_or(NoStatus)?;
    let status = data_out.split_off(last).map_err(|_| NoStatus)?;
    let request = parse_request(&mut data_in, &data_out);
    Ok(Parsed { request, data_in, data_out, status })
}

fn parse_request(data_in: &mut Reader<'_>, data_out: &Writer<'_>) -> Result<Request, Status> {
    let mut header = [0; HEADER];
    data_in.read_exact(&mut header).map_err(|_| Status::IoError)?;
    let header = u128::from_le_bytes(header);
    let offset = || ((header >> 64) as u64).checked_mul(SECTOR).ok_or(Status::IoError);
    Ok(match header as u32 {
        0 => Request::Read { offset: transfer(offset()?, data_out.remaining())? },
        1 => Request::Write { offset: transfer(offset()?, data_in.remaining())? },
        4 => Request::Flush,
        8 => Request::GetId,
        11 => Request::Discard(ranges(data_in, 0)?),
        13 => Request::WriteZeroes(ranges(data_in, UNMAP)?),
        _ => return Err(Status::Unsupported),
    })
}

fn transfer(offset: u64, len: u64) -> Result<u64, Status> {
    if len.is_multiple_of(SECTOR) && len <= MAX_TRANSFER { Ok(offset) } else { Err(Status::IoError) }
}

fn ranges(data: &mut Reader<'_>, allowed_flags: u32) -> Result<Vec<Range>, Status> {
    let count = data.remaining() / RANGE;
    if !data.remaining().is_multiple_of(RANGE) || !(1..=u64::from(MAX_RANGES)).contains(&count) {
        return Err(Status::IoError);
    }
    let one = |_| {
        let mut raw = [0; RANGE as usize];
        data.read_exact(&mut raw).map_err(|_| Status::IoError)?;
        let raw = u128::from_le_bytes(raw);
        let (sectors, flags) = ((raw >> 64) as u32, (raw >> 96) as u32);
        if flags & !allowed_flags != 0 {
            return Err(Status::Unsupported);
        }
        if sectors > MAX_RANGE_SECTORS {
            return Err(Status::IoError);
        }
        let offset = (raw as u64).checked_mul(SECTOR).ok_or(Status::IoError)?;
        Ok(Range { offset, len: u64::from(sectors) * SECTOR })
    };
    (0..count).map(one).collect()
}
