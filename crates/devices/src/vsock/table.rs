//! All connections, and what is owed to the guest. Knows packets, not queues.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use host::{Interest, Poller, Ready};
use virtio::{Reader, Writer};

use super::connection::{Connection, Next, Phase, Spare};
use super::packet::{HEADER, HOST_CID, Header, Op, Ports, STREAM};
use super::{CHUNK, MAX_CONNECTIONS};

/// Called for each connection that the guest opens to a port; without any lock, so that it may
/// come back here.
pub type Listener = Arc<dyn Fn(UnixStream) + Send + Sync>;

/// Resets that wait for the guest; from here on its packets wait, too.
pub const RESET_LIMIT: usize = 256;
/// First port that the host's own connections come from: far above any service.
pub const FIRST_PORT: u32 = 1 << 30;

/// See the module.
pub struct Table {
    pub guest_cid: u64,
    pub next_port: u32,
    /// The guest gets what was written to the streams before it ran, and nothing later.
    pub scripted: bool,
    /// By token; tokens ascend, so this is the order in which they were made.
    connections: BTreeMap<u64, Connection>,
    by_ports: HashMap<Ports, u64>,
    listeners: HashMap<u32, Listener>,
    resets: VecDeque<Header>,
    ready: VecDeque<u64>,
    next_token: u64,
    /// Once there is an I/O thread.
    poller: Option<Arc<Poller>>,
    spare: Spare,
    scratch: Vec<u8>,
    /// Streams for listeners, to be handed over without the lock.
    accepted: Vec<(Listener, UnixStream)>,
}

impl Table {
    pub fn new(guest_cid: u64) -> Self {
        Self {
            guest_cid,
            next_port: FIRST_PORT,
            scripted: false,
            connections: BTreeMap::new(),
            by_ports: HashMap::new(),
            listeners: HashMap::new(),
            resets: VecDeque::new(),
            ready: VecDeque::new(),
            next_token: 0,
            poller: None,
            spare: Spare::default(),
            scratch: Vec::new(),
            accepted: Vec::new(),
        }
    }

    /// From now on streams are watched, those of connections that were made before first of all.
    pub fn set_poller(&mut self, poller: Arc<Poller>) {
        self.poller = Some(poller);
        let made = self.connections.iter().filter(|(_, c)| !matches!(c.phase, Phase::Connecting(_)));
        for token in made.map(|(token, _)| *token).collect::<Vec<_>>() {
            self.watch(token);
        }
    }

    /// Forgets all connections (the host's ends see the end); listeners stay.
    pub fn clear(&mut self) {
        self.connections.clear();
        self.by_ports.clear();
        self.resets.clear();
        self.ready.clear();
        self.accepted.clear();
        self.spare = Spare::default();
        self.scratch = Vec::new();
    }

    /// What a restored machine must reset: connections that the guest believes in, oldest first.
    pub fn live_ports(&self) -> Vec<Ports> {
        let owed = self.resets.iter().filter(|h| h.src_cid == HOST_CID && h.dst_cid == self.guest_cid);
        let owed = owed.map(|h| Ports { guest: h.dst_port, host: h.src_port });
        let open = self.connections.values();
        let open = open.filter(|c| !matches!(c.phase, Phase::Draining) && c.is_known());
        owed.chain(open.map(|c| c.ports)).collect()
    }

    /// Owes the guest a reset for each.
    pub fn owe_resets(&mut self, ports: impl IntoIterator<Item = Ports>) {
        let cid = self.guest_cid;
        self.resets.extend(ports.into_iter().map(|p| Header::from_host(cid, p, Op::Reset)));
    }

    /// Connections, whatever their phase.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether too many resets wait: the guest's packets must wait, too.
    pub fn is_choked(&self) -> bool {
        self.resets.len() >= RESET_LIMIT
    }

    /// Whether the guest may have to be sent something.
    pub fn has_output(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    pub fn take_accepted(&mut self) -> Vec<(Listener, UnixStream)> {
        std::mem::take(&mut self.accepted)
    }

    pub fn listen(&mut self, port: u32, listener: Listener) -> bool {
        let free = !self.listeners.contains_key(&port);
        if free {
            self.listeners.insert(port, listener);
        }
        free
    }

    pub fn unlisten(&mut self, port: u32) {
        self.listeners.remove(&port);
    }

    /// Begins a connection from the host; `None` when there are too many.
    pub fn connect(&mut self, guest: u32, stream: UnixStream, waiter: SyncSender<bool>) -> Option<u64> {
        let host = self.free_port(guest)?;
        self.insert(Connection::new(Ports { guest, host }, Phase::Connecting(waiter), stream, Op::Request))
    }

    fn free_port(&mut self, guest: u32) -> Option<u32> {
        for _ in 0..=2 * MAX_CONNECTIONS + RESET_LIMIT {
            let host = self.next_port;
            self.next_port = host.checked_add(1).filter(|p| *p != u32::MAX).unwrap_or(FIRST_PORT);
            let owed = self.resets.iter().any(|h| h.src_port == host);
            if !owed && !self.by_ports.contains_key(&Ports { guest, host }) {
                return Some(host);
            }
        }
        None
    }

    fn insert(&mut self, mut connection: Connection) -> Option<u64> {
        connection.patient = self.scripted;
        if self.connections.len() >= MAX_CONNECTIONS {
            // One that only waits for the guest's last word can go.
            let spent = self.connections.iter().find(|(_, c)| c.is_spent()).map(|(t, _)| *t)?;
            self.kill(spent);
        }
        let token = self.next_token;
        self.next_token += 1;
        self.by_ports.insert(connection.ports, token);
        self.connections.insert(token, connection);
        self.touch(token);
        Some(token)
    }

    /// Takes a connection attempt back; `true` when it was made meanwhile.
    pub fn give_up(&mut self, token: u64) -> bool {
        match self.connections.get(&token) {
            Some(c) if matches!(c.phase, Phase::Connecting(_)) => {
                if c.is_known() {
                    self.kill(token)
                } else {
                    self.remove(token)
                }
                false
            }
            found => found.is_some(),
        }
    }

    /// Something may have to be sent for this connection.
    fn touch(&mut self, token: u64) {
        if let Some(c) = self.connections.get_mut(&token).filter(|c| !c.queued) {
            c.queued = true;
            self.ready.push_back(token);
        }
    }

    fn remove(&mut self, token: u64) {
        if let Some(c) = self.connections.remove(&token)
            && self.by_ports.get(&c.ports) == Some(&token)
        {
            self.by_ports.remove(&c.ports);
        }
    }

    /// Removes a connection and tells the guest.
    fn kill(&mut self, token: u64) {
        if let Some(c) = self.connections.get(&token) {
            self.resets.push_back(Header::from_host(self.guest_cid, c.ports, Op::Reset));
        }
        self.remove(token);
    }

    /// The guest has said its last word: only its bytes that the host has not read remain.
    fn detach(&mut self, token: u64) {
        let Some(c) = self.connections.get_mut(&token) else { return };
        self.by_ports.remove(&c.ports);
        c.detach();
        self.settle(token);
    }

    /// After bytes moved towards the host: watch for room, or remove what is done.
    fn settle(&mut self, token: u64) {
        let Some(c) = self.connections.get_mut(&token) else { return };
        let backlog = c.has_backlog();
        if matches!(c.phase, Phase::Draining) && !backlog {
            return self.remove(token);
        }
        if c.watching_room == backlog {
            return;
        }
        c.watching_room = backlog;
        let interest = if backlog { Interest::BOTH } else { Interest::READ };
        let watched = match (&self.poller, c.stream()) {
            (Some(poller), Some(stream)) => poller.modify(stream, token, interest).is_ok(),
            _ => true,
        };
        if !watched {
            self.kill(token);
        }
    }

    /// Starts to watch the stream of a connection that was just made; without a poller later.
    fn watch(&mut self, token: u64) {
        let Some(poller) = &self.poller else { return };
        let Some(c) = self.connections.get(&token) else { return };
        let interest = if c.watching_room { Interest::BOTH } else { Interest::READ };
        let watched = c.stream().is_none_or(|stream| poller.add(stream, token, interest).is_ok());
        if !watched {
            self.kill(token);
        }
    }

    /// The poller saw something.
    pub fn stream_ready(&mut self, ready: &Ready) {
        if let Some(c) = self.connections.get_mut(&ready.token) {
            c.stream_ready(ready.readable, ready.closed);
            self.settle(ready.token);
            self.touch(ready.token);
        }
    }

    /// Takes one packet of the guest.
    pub fn take_packet(&mut self, mut packet: Reader<'_>) {
        let mut raw = [0; HEADER];
        if packet.read_exact(&mut raw).is_err() {
            return; // not even a header: nobody to answer
        }
        let header = Header::parse(&raw);
        let ours = header.src_cid == self.guest_cid
            && header.dst_cid == HOST_CID
            && header.socket_type == STREAM
            && u64::from(header.len) <= packet.remaining();
        let token = self.by_ports.get(&header.ports()).copied().filter(|_| ours);
        match (token, header.op) {
            (Some(token), _) => self.take_known(token, &header, packet),
            (None, Op::Reset) => {}
            (None, Op::Request) if ours => self.accept(&header),
            (None, _) => self.resets.push_back(header.reset_for()),
        }
    }

    fn accept(&mut self, header: &Header) {
        let made = self.listeners.get(&header.dst_port).cloned().and_then(|listener| {
            let (ours, theirs) = UnixStream::pair().ok()?;
            ours.set_nonblocking(true).ok()?;
            let mut connection = Connection::new(header.ports(), Phase::Open, ours, Op::Response);
            connection.update_credit(header);
            Some((self.insert(connection)?, listener, theirs))
        });
        match made {
            Some((token, listener, theirs)) => {
                self.watch(token);
                self.accepted.push((listener, theirs));
            }
            None => self.resets.push_back(header.reset_for()),
        }
    }

    fn take_known(&mut self, token: u64, header: &Header, packet: Reader<'_>) {
        let Some(c) = self.connections.get_mut(&token) else { return };
        c.update_credit(header);
        if let Phase::Connecting(waiter) = &c.phase {
            match header.op {
                Op::Response if c.is_known() => {
                    // Nobody may listen any more: then the stream's other end is closed, too.
                    let _ = waiter.send(true);
                    c.phase = Phase::Open;
                    self.watch(token);
                    self.touch(token);
                }
                Op::Reset => self.remove(token),
                _ => self.kill(token),
            }
            return;
        }
        match header.op {
            Op::Data => self.take_data(token, header.len, packet),
            Op::CreditUpdate => self.touch(token),
            Op::CreditRequest => {
                c.owe_credit();
                self.touch(token);
            }
            Op::Shutdown => {
                if c.guest_shuts_down(header.flags) {
                    self.resets.push_back(header.reset_for());
                    self.detach(token);
                } else {
                    self.settle(token);
                    self.touch(token);
                }
            }
            Op::Reset => self.detach(token),
            Op::Request | Op::Response | Op::Other(_) => self.kill(token),
        }
    }

    fn take_data(&mut self, token: u64, len: u32, mut packet: Reader<'_>) {
        let Some(c) = self.connections.get_mut(&token) else { return };
        if c.is_spent() || c.expect(len).is_err() {
            return self.kill(token);
        }
        self.scratch.resize(CHUNK, 0);
        let mut left = len as usize;
        while left > 0 {
            let piece = &mut self.scratch[..left.min(CHUNK)];
            if packet.read_exact(piece).is_err() {
                return self.kill(token);
            }
            c.receive(piece);
            left -= piece.len();
        }
        self.settle(token);
        self.touch(token);
    }

    /// Writes the next packet for the guest; the bytes written, or `None` when there is nothing.
    /// Room for less than a header is used up with nothing in it.
    pub fn write_packet(&mut self, mut room: Writer<'_>) -> Option<u32> {
        let space = (room.remaining() as usize).checked_sub(HEADER);
        if let Some(reset) = self.resets.front() {
            let Some(_) = space else { return Some(0) };
            let _ = room.write_all(&reset.bytes());
            self.resets.pop_front();
            return Some(HEADER as u32);
        }
        loop {
            let token = *self.ready.front()?;
            let Some(space) = space else { return Some(0) };
            if let Some(written) = self.write_for(token, space, &mut room) {
                return Some(written);
            }
            self.ready.pop_front();
            if let Some(c) = self.connections.get_mut(&token) {
                c.queued = false;
            }
        }
    }

    fn write_for(&mut self, token: u64, space: usize, room: &mut Writer<'_>) -> Option<u32> {
        let c = self.connections.get_mut(&token)?;
        let mut header = Header::from_host(self.guest_cid, c.ports, Op::Data);
        let data = match c.next(&mut self.spare) {
            Next::Nothing => return None,
            Next::Control(op, flags) => {
                (header.op, header.flags) = (op, flags);
                0
            }
            Next::Data(_) if space == 0 => return Some(0),
            Next::Data(ready) => ready.min(space),
        };
        header.len = data as u32;
        c.stamp(&mut header);
        // The chain was checked to be RAM and to have this room.
        let _ = room.write_all(&header.bytes());
        if data > 0 {
            let _ = room.write_all(c.data(data));
            // One packet each in turn.
            self.ready.rotate_left(1);
        }
        Some((HEADER + data) as u32)
    }
}
