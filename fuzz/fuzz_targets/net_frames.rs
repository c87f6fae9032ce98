//! Any frames of a guest, on a network that reaches nothing: answers fit the link, tables keep to their caps.
#![no_main]

use std::sync::Arc;

use host::Poller;
use libfuzzer_sys::fuzz_target;
use netstack::{
    Config, GATEWAY_MAC, GUEST_MAC, Link, MAX_ECHO, MAX_FRAME, MAX_QUERIES, MAX_TCP, MAX_UDP, Policy, Stack,
};

struct Checked {
    room: usize,
}

impl Link for Checked {
    fn ready(&mut self) -> bool {
        self.room > 0
    }

    fn send(&mut self, frame: &[u8]) {
        assert!((14..=MAX_FRAME).contains(&frame.len()));
        assert_eq!(frame[6..12], GATEWAY_MAC);
        self.room = self.room.saturating_sub(1);
    }
}

fuzz_target!(|input: (bool, u8, Vec<(bool, Vec<u8>)>)| {
    let (offload, room, frames) = input;
    // One name that nobody has is allowed, so everything else is refused: no packet leaves this process.
    let nobody = vec!["nobody.invalid".parse().expect("a name")];
    let config = Config { policy: Policy::new(nobody, vec![], vec![]), ..Config::default() };
    let poller = Arc::new(Poller::new().expect("a poller"));
    let mut stack = Stack::new(config, poller).expect("a network");
    stack.reset(offload);
    let mut link = Checked { room: room.into() };
    for (whole, bytes) in &frames {
        if *whole {
            stack.input(bytes, &mut link);
        } else {
            // Past the addresses, where there is more to find.
            let frame = [&GATEWAY_MAC[..], &GUEST_MAC[..], bytes].concat();
            stack.input(&frame, &mut link);
        }
        stack.tick(&mut link);
        stack.unblocked(&mut link);
    }
    assert!(stack.flows() <= MAX_TCP + MAX_UDP + MAX_ECHO + MAX_QUERIES);
});
