//! struct virtio_vsock_hdr (5.10.6).

/// Bytes of a header.
pub const HEADER: usize = 44;
/// The host's address.
pub const HOST_CID: u64 = 2;
/// Socket type: stream.
pub const STREAM: u16 = 1;
/// Shutdown flag: the sender will receive no more.
pub const NO_RECEIVE: u32 = 1;
/// Shutdown flag: the sender will send no more.
pub const NO_SEND: u32 = 2;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Request,
    Response,
    Reset,
    Shutdown,
    Data,
    CreditUpdate,
    CreditRequest,
    /// Not in the standard.
    Other(u16),
}

impl Op {
    fn from_raw(raw: u16) -> Self {
        match raw {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            other => Self::Other(other),
        }
    }

    fn raw(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::Data => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
            Self::Other(raw) => raw,
        }
    }
}

/// One header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    /// Bytes of data after the header.
    pub len: u32,
    pub socket_type: u16,
    pub op: Op,
    pub flags: u32,
    /// Bytes of the sender's receive buffer.
    pub buf_alloc: u32,
    /// Bytes that the sender has taken out of it, ever.
    pub fwd_cnt: u32,
}

/// The two ports that name a connection; the addresses are always the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ports {
    pub guest: u32,
    pub host: u32,
}

impl Header {
    /// Reads a header.
    pub fn parse(raw: &[u8; HEADER]) -> Self {
        let word = |at: usize, len: usize| {
            raw[at..at + len].iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte))
        };
        Self {
            src_cid: word(0, 8),
            dst_cid: word(8, 8),
            src_port: word(16, 4) as u32,
            dst_port: word(20, 4) as u32,
            len: word(24, 4) as u32,
            socket_type: word(28, 2) as u16,
            op: Op::from_raw(word(30, 2) as u16),
            flags: word(32, 4) as u32,
            buf_alloc: word(36, 4) as u32,
            fwd_cnt: word(40, 4) as u32,
        }
    }

    /// Writes it.
    pub fn bytes(&self) -> [u8; HEADER] {
        let mut raw = [0; HEADER];
        let mut put = |at: usize, bytes: &[u8]| raw[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.src_cid.to_le_bytes());
        put(8, &self.dst_cid.to_le_bytes());
        put(16, &self.src_port.to_le_bytes());
        put(20, &self.dst_port.to_le_bytes());
        put(24, &self.len.to_le_bytes());
        put(28, &self.socket_type.to_le_bytes());
        put(30, &self.op.raw().to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &self.buf_alloc.to_le_bytes());
        put(40, &self.fwd_cnt.to_le_bytes());
        raw
    }

    /// A packet from the host without data or credit.
    pub fn from_host(guest_cid: u64, ports: Ports, op: Op) -> Self {
        Self {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: ports.host,
            dst_port: ports.guest,
            len: 0,
            socket_type: STREAM,
            op,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }

    /// The reset that answers a packet that belongs nowhere.
    pub fn reset_for(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            len: 0,
            socket_type: self.socket_type,
            op: Op::Reset,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }

    /// The connection of a packet that came from the guest.
    pub fn ports(&self) -> Ports {
        Ports { guest: self.src_port, host: self.dst_port }
    }
}
