//! One debugger after the other.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use gdbstub::common::Signal;
use gdbstub::conn::ConnectionExt;
use gdbstub::stub::run_blocking::{BlockingEventLoop, Event, WaitForStopReasonError};
use gdbstub::stub::{GdbStub, MultiThreadStopReason};
use machine::{Error, Machine};

use crate::target::Debugged;

/// Between two looks at the debugger's connection while the machine runs.
const LOOK: Duration = Duration::from_millis(5);

/// Serves debuggers on `listener` until the machine is gone.
///
/// # Errors
/// The host's: no thread.
pub fn serve(machine: &Arc<Machine>, listener: TcpListener) -> io::Result<()> {
    let machine = Arc::downgrade(machine);
    let accept = move || {
        for stream in listener.incoming().flatten() {
            let Some(machine) = Weak::upgrade(&machine) else { return };
            if machine.pause().is_err() {
                return;
            }
            let mut debugged = Debugged::new(machine);
            // A debugger that breaks the protocol off is gone like one that says goodbye.
            let _ = GdbStub::new(stream).run_blocking::<Loop>(&mut debugged);
            debugged.let_go();
        }
    };
    thread::Builder::new().name("gdb".into()).spawn(accept).map(drop)
}

enum Loop {}

impl BlockingEventLoop for Loop {
    type Target = Debugged;
    type Connection = TcpStream;
    type StopReason = MultiThreadStopReason<u64>;

    fn wait_for_stop_reason(
        target: &mut Debugged,
        connection: &mut TcpStream,
    ) -> Result<Event<Self::StopReason>, WaitForStopReasonError<Error, io::Error>> {
        loop {
            if let Some(reason) = target.stopped(LOOK) {
                return Ok(Event::TargetStopped(reason));
            }
            let waiting = ConnectionExt::peek(connection).map_err(WaitForStopReasonError::Connection)?;
            if waiting.is_some() {
                let byte = ConnectionExt::read(connection).map_err(WaitForStopReasonError::Connection)?;
                return Ok(Event::IncomingData(byte));
            }
        }
    }

    /// Ctrl-C.
    fn on_interrupt(target: &mut Debugged) -> Result<Option<Self::StopReason>, Error> {
        target.interrupt()?;
        Ok(Some(MultiThreadStopReason::Signal(Signal::SIGINT)))
    }
}
