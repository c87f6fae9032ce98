//! Frames as they travel: whole, in pieces, and wild.

use agent_protocol::frame::{self, Frame, FrameDecoder, FrameKind, HEADER, MAX_CONTROL, MAX_DATA};
use agent_protocol::{
    ErrorKind, ExecSpec, Exit, Failure, LogRecord, LogStream, MountSource, MountSpec, Pong, ProtocolError,
    Reply, Request, RestoreReason, RestoredSpec, WinSize,
};
use proptest::prelude::*;

fn all(decoder: &mut FrameDecoder) -> Result<Vec<Frame>, ProtocolError> {
    let mut frames = Vec::new();
    while let Some(frame) = decoder.next_frame()? {
        frames.push(frame);
    }
    Ok(frames)
}

#[test]
fn the_wire_layout_is_fixed() {
    let bytes = frame::encode_request(&Request::Ping).expect("encoded");
    assert_eq!(bytes, [0x01, 2, 0, 0, 0, 1, 0]);
    let bytes = frame::encode(FrameKind::Resize, &WinSize { rows: 24, columns: 80 }).expect("encoded");
    assert_eq!(bytes, [0x12, 2, 0, 0, 0, 24, 80]);
    assert_eq!(frame::encode(FrameKind::Exit, &Exit::Signal(9)).expect("encoded"), [0x05, 2, 0, 0, 0, 1, 9]);
    let bytes = LogRecord::encode(0x0102, LogStream::Stderr, b"x\n");
    assert_eq!(bytes, [0x32, 11, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 2, b'x', b'\n']);
    let exec = Request::Exec(ExecSpec {
        argv: vec!["a".into()],
        tty: Some(WinSize { rows: 1, columns: 2 }),
        ..ExecSpec::default()
    });
    let bytes = frame::encode_request(&exec).expect("encoded");
    assert_eq!(&bytes[HEADER..], [1, 1, 1, 1, b'a', 0, 0, 0, 1, 1, 2, 0, 0]);
}

#[test]
fn requests_and_replies_come_back() {
    let restored = Request::Restored(RestoredSpec {
        reason: RestoreReason::Fork,
        realtime_ns: u64::MAX,
        seed: vec![7; 64],
        generation: [9; 16],
        hostname: Some("clone".into()),
        machine_id: Some([1; 16]),
        hooks: Default::default(),
        mounts: vec![
            MountSpec { source: MountSource::Volume(1), path: "/data".into(), read_only: true },
            MountSpec {
                source: MountSource::Folder { id: 3, file: false },
                path: "/srv".into(),
                read_only: true,
            },
        ],
    });
    let mut decoder = FrameDecoder::new();
    decoder.push(&frame::encode_request(&restored).expect("encoded"));
    let frames = all(&mut decoder).expect("frames");
    assert_eq!(frames[0].decode_request(), Ok(restored));
    let pong = Reply::Pong(Pong {
        version: "1".into(),
        boot_id: "b".into(),
        state: agent_protocol::AgentState::Frozen,
        monotonic_ns: 1,
        realtime_ns: 2,
        service: true,
        generation: [3; 16],
    });
    let bytes = frame::encode(FrameKind::Reply, &pong).expect("encoded");
    let frame = frame::read_frame(&mut bytes.as_slice()).expect("read").expect("a frame");
    assert_eq!(frame.decode::<Reply>(), Ok(pong));
}

#[test]
fn lengths_are_bounded_by_type() {
    for kind in [FrameKind::Data, FrameKind::Stdout, FrameKind::Request, FrameKind::Exit, FrameKind::DataEnd]
    {
        let mut decoder = FrameDecoder::new();
        decoder.push(&frame::header(kind, kind.max_payload()));
        assert_eq!(
            decoder.next_frame(),
            if kind.max_payload() == 0 { Ok(Some(Frame { kind, payload: vec![] })) } else { Ok(None) }
        );
        let mut decoder = FrameDecoder::new();
        decoder.push(&frame::header(kind, kind.max_payload() + 1));
        assert!(matches!(decoder.next_frame(), Err(ProtocolError::TooLong { .. })));
    }
    assert_eq!(
        frame::encode_bytes(FrameKind::Data, &[0; MAX_DATA + 1]),
        Err(ProtocolError::MessageTooLarge(MAX_DATA + 1))
    );
    let huge = Request::Exec(ExecSpec { argv: vec!["x".repeat(MAX_CONTROL)], ..ExecSpec::default() });
    assert!(matches!(frame::encode_request(&huge), Err(ProtocolError::MessageTooLarge(_))));
    let long = frame::encode_failure(&Failure::new(ErrorKind::Other, "y".repeat(2 * MAX_CONTROL)));
    assert!(long.len() > 4096 && long.len() < 8192);
    assert!(frame::read_frame(&mut [2u8, 0xff, 0xff, 0xff, 0xff].as_slice()).is_err());
}

#[test]
fn an_end_between_frames_is_none_and_inside_one_an_error() {
    let bytes = frame::encode_bytes(FrameKind::Stdout, b"text").expect("encoded");
    assert!(frame::read_frame(&mut [].as_slice()).expect("an end").is_none());
    for cut in 1..bytes.len() {
        assert!(frame::read_frame(&mut &bytes[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn a_taken_over_stream_gives_up_what_it_holds() {
    let mut decoder = FrameDecoder::new();
    decoder.push(&frame::encode_request(&Request::Ping).expect("encoded"));
    decoder.push(b"raw bytes");
    assert!(decoder.next_frame().expect("a frame").is_some());
    assert_eq!(decoder.take_rest(), b"raw bytes");
    assert_eq!(decoder.pending(), 0);
}

#[test]
fn counts_that_lie_allocate_nothing() {
    // A vector of 2^60 strings, in a payload of a dozen bytes.
    let payload = [1, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f];
    let frame = Frame { kind: FrameKind::Request, payload: payload.to_vec() };
    assert_eq!(frame.decode_request(), Err(ProtocolError::BadPayload(1)));
}

proptest! {
    #[test]
    fn frames_survive_any_cutting(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..8),
        cuts in proptest::collection::vec(1usize..64, 1..40),
    ) {
        let mut bytes = Vec::new();
        frame::write_data(&mut bytes, FrameKind::Stdin, &[]).expect("written");
        for piece in &pieces {
            bytes.extend(frame::encode_bytes(FrameKind::Stdin, piece).expect("encoded"));
        }
        let mut decoder = FrameDecoder::new();
        let mut frames = Vec::new();
        let mut rest = bytes.as_slice();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() { break }
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            decoder.push(now);
            frames.extend(all(&mut decoder).expect("frames"));
            rest = later;
        }
        let payloads: Vec<_> = frames.into_iter().map(|frame| frame.payload).collect();
        prop_assert_eq!(payloads, pieces);
        prop_assert_eq!(decoder.pending(), 0);
    }

    #[test]
    fn any_bytes_decode_or_are_refused(noise in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut decoder = FrameDecoder::new();
        decoder.push(&noise);
        if let Ok(frames) = all(&mut decoder) {
            for frame in frames {
                let _ = frame.decode_request();
                let _ = frame.decode::<Reply>();
            }
        }
        let _ = frame::read_frame(&mut noise.as_slice());
        let frame = Frame { kind: FrameKind::Request, payload: [&[1], noise.as_slice()].concat() };
        let _ = frame.decode_request();
        let _ = frame.decode::<Failure>();
        let _ = LogRecord::decode(&noise);
    }
}
