//! The way to the guest, and smoltcp's view of it.

use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use crate::address::{GATEWAY_MAC, GUEST_MAC, MTU};
use crate::frame::ETHERNET;

/// Longest frame either way, in bytes.
pub const MAX_FRAME: usize = MTU + ETHERNET;

/// Carries frames to the guest.
pub trait Link {
    /// Whether the next [`Link::send`] will be taken. When not, the link tells its owner later, who then calls
    /// [`crate::Stack::unblocked`].
    fn ready(&mut self) -> bool;

    /// Gives the guest one Ethernet frame of at most [`MAX_FRAME`] bytes. Lost when the link is not ready.
    fn send(&mut self, frame: &[u8]);
}

/// The checksums that we compute and verify. Those of TCP and UDP only where the guest's driver does not spare us
/// them; what comes from the guest came through memory and is not verified.
pub fn checksums(offload: bool) -> ChecksumCapabilities {
    let mut all = ChecksumCapabilities::ignored();
    all.ipv4 = Checksum::Tx;
    all.icmpv4 = Checksum::Tx;
    all.icmpv6 = Checksum::Tx;
    all.tcp = if offload { Checksum::None } else { Checksum::Tx };
    all.udp = all.tcp;
    all
}

/// A link with room for one packet on its way in, as smoltcp sees it.
pub struct Wire<'a> {
    pub link: &'a mut dyn Link,
    /// The packet (or frame) to take in.
    pub incoming: Option<&'a [u8]>,
    /// [`MAX_FRAME`] bytes to build frames in.
    pub buffer: &'a mut [u8],
    pub medium: Medium,
    pub offload: bool,
    /// Frames that were sent through this value.
    pub sent: usize,
}

impl<'a> Wire<'a> {
    pub fn new(
        link: &'a mut dyn Link,
        incoming: Option<&'a [u8]>,
        buffer: &'a mut [u8],
        offload: bool,
    ) -> Self {
        Self { link, incoming, buffer, medium: Medium::Ip, offload, sent: 0 }
    }
}

pub struct Incoming<'a>(&'a [u8]);

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

pub struct Outgoing<'b> {
    link: &'b mut dyn Link,
    buffer: &'b mut [u8],
    medium: Medium,
    sent: &'b mut usize,
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let head = if self.medium == Medium::Ip { ETHERNET } else { 0 };
        // smoltcp keeps to the MTU that it was told.
        let len = len.min(self.buffer.len() - head);
        let frame = &mut self.buffer[..head + len];
        let result = f(&mut frame[head..]);
        if head > 0 {
            ethernet_header(frame);
        }
        self.link.send(frame);
        *self.sent += 1;
        result
    }
}

/// Puts the header in front of the IP packet that follows it, to the guest.
pub fn ethernet_header(frame: &mut [u8]) {
    let v6 = frame.get(ETHERNET).is_some_and(|byte| byte >> 4 == 6);
    let kind: u16 = if v6 { 0x86dd } else { 0x0800 };
    frame[..6].copy_from_slice(&GUEST_MAC);
    frame[6..12].copy_from_slice(&GATEWAY_MAC);
    frame[12..ETHERNET].copy_from_slice(&kind.to_be_bytes());
}

impl<'a> Device for Wire<'a> {
    type RxToken<'b>
        = Incoming<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Outgoing<'b>
    where
        Self: 'b;

    fn receive(&mut self, _timestamp: Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        let packet = self.incoming.take()?;
        // An answer that the guest has no room for is lost, as on any wire.
        let out =
            Outgoing { link: self.link, buffer: self.buffer, medium: self.medium, sent: &mut self.sent };
        Some((Incoming(packet), out))
    }

    fn transmit(&mut self, _timestamp: Instant) -> Option<Outgoing<'_>> {
        if !self.link.ready() {
            return None;
        }
        Some(Outgoing { link: self.link, buffer: self.buffer, medium: self.medium, sent: &mut self.sent })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = self.medium;
        caps.max_transmission_unit = if self.medium == Medium::Ip { MTU } else { MAX_FRAME };
        caps.checksum = checksums(self.offload);
        caps
    }
}
