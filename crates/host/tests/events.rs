//! Events, timers and the poller, together.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use host::{Event, Interest, Poller, Ready, Timer, fill_random};

fn wait(poller: &Poller, timeout: Option<Duration>) -> Vec<Ready> {
    let mut ready = Vec::new();
    poller.wait(&mut ready, timeout).unwrap();
    ready
}

const NOW: Option<Duration> = Some(Duration::ZERO);

#[test]
fn an_event_is_raised_once_and_wakes_another_thread() {
    let (event, poller) = (Event::new().unwrap(), Poller::new().unwrap());
    assert!(!event.clear());
    event.signal();
    event.signal();
    assert!(event.clear() && !event.clear());
    poller.add(&event, 7, Interest::READ).unwrap();
    std::thread::scope(|s| {
        s.spawn(|| event.signal());
        assert_eq!(wait(&poller, None)[0].token, 7);
    });
    assert_eq!(wait(&poller, NOW), [], "told once");
}

#[test]
fn a_timer_fires_when_set_and_not_when_taken_back() {
    let (timer, poller) = (Timer::new().unwrap(), Poller::new().unwrap());
    poller.add(&timer, 1, Interest::READ).unwrap();
    timer.set(Some(Duration::from_secs(3600))).unwrap();
    timer.set(None).unwrap();
    assert_eq!(wait(&poller, NOW), []);
    timer.set(Some(Duration::ZERO)).unwrap();
    assert!(wait(&poller, None)[0].readable);
    assert!(timer.clear() && !timer.clear());
}

#[test]
fn a_stream_is_readable_writable_and_closed() {
    let (mut a, mut b) = UnixStream::pair().unwrap();
    let poller = Poller::new().unwrap();
    poller.add(&a, 3, Interest::READ).unwrap();
    assert_eq!(wait(&poller, NOW), []);
    b.write_all(b"x").unwrap();
    let ready = Ready { token: 3, readable: true, writable: false, drain: false, closed: false };
    assert_eq!(wait(&poller, None), [ready]);
    a.read_exact(&mut [0]).unwrap();
    poller.modify(&a, 3, Interest::BOTH).unwrap();
    assert_eq!(wait(&poller, None), [Ready { readable: false, writable: true, ..ready }]);
    b.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(wait(&poller, None).iter().any(|r| r.drain && r.readable && !r.closed));
    drop(b);
    assert!(wait(&poller, None).iter().any(|r| r.closed && r.drain && r.readable));
    poller.remove(&a).unwrap();
    assert_eq!(wait(&poller, NOW), []);
}

#[test]
fn random_bytes_differ() {
    let (mut a, mut b) = ([0; 1000], [0; 1000]);
    fill_random(&mut a).unwrap();
    fill_random(&mut b).unwrap();
    assert!(a != b && a[990..] != [0; 10]);
}
