//! Kernels that are not smolvm's: as vmlinux and bzImage, and what is said of those that no machine can use.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use e2e::{Home, debian, engines, text};

/// smolvm's own, as if somebody else had built it: another release of the same length.
fn kernel() -> Vec<u8> {
    let (mut kernel, ours) = (assets::kernel(), assets::kernel_release().as_bytes());
    let theirs: Vec<u8> = [&ours[..ours.len() - 6], b"theirs"].concat();
    let places: Vec<usize> =
        kernel.windows(ours.len()).enumerate().filter(|(_, at)| *at == ours).map(|(at, _)| at).collect();
    assert!(!places.is_empty(), "the kernel does not say its release");
    places.into_iter().for_each(|at| kernel[at..at + ours.len()].copy_from_slice(&theirs));
    kernel
}

fn release() -> String {
    let ours = assets::kernel_release();
    format!("{}theirs", &ours[..ours.len() - 6])
}

/// A bzImage of boot protocol 2.15 around this payload (Linux: Documentation/arch/x86/boot.rst).
fn bzimage(packed: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 0x400];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    image[0x236] = 1;
    image[0x24c..0x250].copy_from_slice(&(packed.len() as u32).to_le_bytes());
    image.extend_from_slice(packed);
    image
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

fn define(home: &Home, kernel: &str) {
    fs::write(home.path("Smolfile"), format!("name = \"x\"\nmemory = \"128MiB\"\n[kernel]\n{kernel}\n"))
        .unwrap();
}

#[test]
fn a_machine_runs_on_the_kernel_that_its_definition_names() {
    for engine in engines() {
        let home = Home::new(engine);
        fs::create_dir(home.path("out")).unwrap();
        fs::write(home.path("out/bzImage"), bzimage(&gzip(&kernel()))).unwrap();
        define(&home, "image = \"out/bzImage\"\ncommand_line = \"their.word=1\"");
        let checked = home.run(&["check"]);
        let (out, err) = (text(&checked.stdout), text(&checked.stderr));
        assert!(out.contains(&format!("Linux {} (bzImage)", release())), "{out}");
        assert!(err.contains("neither in it nor beside it"), "{err}");
        home.ok(&["build", "-q"]);
        let look =
            ["run", "./x.smolmachine", "--", "sh", "-c", "uname -r; grep -o their.word=1 /proc/cmdline"];
        assert_eq!(home.ok(&look), format!("{}\ntheir.word=1\n", release()));
        // It travels in the file, is the same after a freeze, and nobody calls it an old one of ours.
        fs::remove_dir_all(home.path("out")).unwrap();
        home.ok(&["run", "-d", "--name", "m", "./x.smolmachine"]);
        home.ok(&["freeze", "-q", "m"]);
        home.ok(&["start", "m"]);
        assert_eq!(home.ok(&["exec", "m", "uname", "-r"]), format!("{}\n", release()));
        assert!(!home.ok(&["outdated", "--json", "./x.smolmachine"]).contains("\"kernel\""));
        let lock = fs::read_to_string(home.path("Smolfile.lock")).unwrap();
        assert!(lock.contains(&format!("[kernel]\nrelease = \"{}\"", release())), "{lock}");
        assert!(!lock.contains("vmlinux_blake3"), "{lock}");
        // Built again, it is taken from where its user says, and from nowhere else.
        let said = home.fails(&["rebuild", "x.smolmachine"], 125);
        assert!(said.contains("out/bzImage") && said.contains("--sources"), "{said}");
    }
}

#[test]
fn kernels_come_as_elf_and_in_every_packing_of_linux_s_build() {
    let home = Home::new("soft");
    fs::write(home.path("vmlinux"), kernel()).unwrap();
    // As scripts/Makefile.lib of Linux calls them, but for how hard they try; all but gzip get the size behind them.
    let packed = |words: &[&str]| {
        let output = Command::new(words[0]).args(&words[1..]).arg(home.path("vmlinux")).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
        let size = (kernel().len() as u32).to_le_bytes();
        [&output.stdout[..], if words[0] == "gzip" { &[] } else { &size }].concat()
    };
    for (image, form) in [
        (kernel(), "vmlinux"),
        (bzimage(&packed(&["gzip", "-c", "-1"])), "bzImage"),
        (
            bzimage(&packed(&["xz", "-c", "-1", "--check=crc32", "--x86", "--lzma2=preset=0,dict=32MiB"])),
            "bzImage",
        ),
        (bzimage(&packed(&["zstd", "-c", "-1"])), "bzImage"),
        (bzimage(&packed(&["xz", "-c", "-0", "--format=lzma"])), "bzImage"),
        (bzimage(&packed(&["lz4", "-l", "-c", "-1"])), "bzImage"),
    ] {
        fs::write(home.path("image"), image).unwrap();
        define(&home, "image = \"image\"");
        let said = home.ok(&["check"]);
        assert!(said.contains(&format!("Linux {} ({form})", release())), "{said}");
    }
}

#[test]
fn what_no_machine_can_use_is_refused_with_its_line() {
    let home = Home::new("soft");
    let mut of_32_bits = bzimage(&gzip(&kernel()));
    of_32_bits[0x236] = 0;
    let bomb = vec![0; 300 << 20];
    for (image, why) in [
        (Vec::new(), "neither a vmlinux"),
        (b"#!/bin/sh\n".to_vec(), "neither a vmlinux"),
        (kernel()[..100_000].to_vec(), "lies beyond the file"),
        (assets::busybox(), "no Linux kernel"),
        (of_32_bits, "32-bit"),
        (bzimage(b"\x02\x21\x4c\x18......"), "LZ4 frame is cut short"),
        (bzimage(b"BZh9......"), "bzip2"),
        (bzimage(&gzip(&kernel())[..50_000]), "cannot be unpacked"),
        (bzimage(&gzip(&bomb)), "more than 256 MiB"),
    ] {
        fs::write(home.path("image"), image).unwrap();
        define(&home, "image = \"image\"");
        let said = home.fails(&["check"], 125);
        assert!(said.contains("line 4") && said.contains(why), "{why}: {said}");
    }
    define(&home, "image = \"gone\"");
    assert!(home.fails(&["check"], 125).contains("it is not there"));
    define(&home, "image = \".\"");
    assert!(home.fails(&["check"], 125).contains("it is no file"));
    fs::write(home.path("image"), kernel()).unwrap();
    define(&home, "imag = \"image\"");
    assert!(home.fails(&["check"], 125).contains("did you mean `image`"));
    // One that is configured otherwise, found beside it or named.
    let version = assets::kernel_release().split('-').next().unwrap();
    let head = format!("# Linux/x86 {version} Kernel Configuration\n");
    fs::write(home.path("config"), format!("{head}CONFIG_EROFS_FS=m\n")).unwrap();
    define(&home, "image = \"image\"");
    let said = home.fails(&["check"], 125);
    assert!(
        said.contains("CONFIG_EROFS_FS=y, not =m") && said.contains("CONFIG_VIRTIO_VSOCKETS=y: "),
        "{said}"
    );
    fs::rename(home.path("config"), home.path("theirs")).unwrap();
    home.ok(&["check"]);
    define(&home, "image = \"image\"\nconfig = \"theirs\"");
    assert!(home.fails(&["check"], 125).contains("lacks what a machine needs"));
    fs::write(home.path("theirs"), "# Linux/x86 5.4.1 Kernel Configuration\n").unwrap();
    let said = home.fails(&["check"], 125);
    assert!(said.contains("line 5") && said.contains("5.4.1"), "{said}");
}

/// Debian's own kernel for clouds (packed with LZ4) has what the root needs as modules: it is said, and what to do.
#[test]
fn a_distributions_kernel_is_refused_with_the_reason() {
    let depends =
        Command::new("apt-cache").args(["depends", "--important", "linux-image-cloud-amd64"]).output();
    let depends = depends.map(|output| text(&output.stdout)).unwrap_or_default();
    let Some(package) = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: ")) else {
        eprintln!("skipped: apt knows no kernel of Debian's here");
        return;
    };
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kernel-{package}"));
    let Some(root) = debian::root(&dir, &[package]) else { return };
    let home = Home::new("soft");
    let image = root.join("boot").join(package.replace("linux-image", "vmlinuz"));
    define(&home, &format!("image = \"{}\"", image.display()));
    let said = home.fails(&["check"], 125);
    for word in ["CONFIG_EROFS_FS=y, not =m", "a distribution's kernel cannot", "smolvm's own"] {
        assert!(said.contains(word), "{said}");
    }
}
