//! What an image's configuration means for a machine.

use spec::{ImageDefaults, parse, signal_number};

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|w| (*w).to_owned()).collect()
}

fn image() -> ImageDefaults {
    ImageDefaults {
        entrypoint: words(&["/entry"]),
        cmd: words(&["serve"]),
        env: vec![("A".into(), "1".into()), ("B".into(), "2".into())],
        user: Some("app".into()),
        workdir: Some("/srv".into()),
        stop_signal: Some(3),
        ports: words(&["53/udp", "80", "8080/tcp"]),
    }
}

#[test]
fn an_image_brings_its_service() {
    let spec = parse("[root]\nimage = \"oci:x\"").unwrap().resolve("x").unwrap().over_image(image());
    let service = spec.service.unwrap();
    assert_eq!(service.argv, ["/entry", "serve"]);
    assert_eq!((service.user.as_deref(), service.workdir.as_deref()), (Some("app"), Some("/srv")));
    assert_eq!(service.stop_signal, Some(3));
    assert_eq!(spec.image.unwrap().tcp_ports(), [80, 8080]);
}

#[test]
fn the_definition_wins_over_the_image() {
    let text = "[root]\nimage = \"oci:x\"\n[run]\ncommand = [\"/own\"]\nuser = \"0\"\nenv = { B = \"3\" }";
    let service = parse(text).unwrap().resolve("x").unwrap().over_image(image()).service.unwrap();
    assert_eq!(service.argv, ["/own"]);
    assert_eq!((service.user.as_deref(), service.workdir.as_deref()), (Some("0"), Some("/srv")));
    assert_eq!(service.env.last().unwrap(), &("B".to_owned(), "3".to_owned()));
}

#[test]
fn words_take_the_place_of_cmd_behind_the_entrypoint() {
    assert_eq!(image().argv(&words(&["x", "y"])), ["/entry", "x", "y"]);
    assert!(ImageDefaults::default().argv(&[]).is_empty());
    let spec = parse("[root]\nimage = \"oci:x\"").unwrap().resolve("x").unwrap();
    assert!(spec.over_image(ImageDefaults::default()).service.is_none());
}

#[test]
fn signals_by_name_and_number() {
    for (word, number) in [("SIGTERM", 15), ("quit", 3), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX-1", 63)] {
        assert_eq!(signal_number(word), Some(number), "{word}");
    }
    for bad in ["", "0", "65", "SIGNOT", "RTMIN-1", "RTMIN+99", "-1"] {
        assert_eq!(signal_number(bad), None, "{bad}");
    }
}
