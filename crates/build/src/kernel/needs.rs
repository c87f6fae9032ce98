//! What a machine needs of its kernel, and what it can do without: options of Linux, each with the reason.

use spec::MachineSpec;

use super::config::Config;

/// Without these no machine comes up, or none can be frozen and resumed.
const REQUIRED: &[(&str, &str)] = &[
    ("64BIT", "the machine is entered in 64-bit mode"),
    ("BLK_DEV_INITRD", "smolvm's agent comes in an initramfs"),
    ("BINFMT_ELF", "the agent is an ELF program"),
    ("ACPI", "devices are found in ACPI tables"),
    ("PCI", "Linux gives ACPI up where PCI is left out (the machine has none)"),
    ("VIRTIO_MMIO", "every device is on virtio-mmio"),
    ("VIRTIO_BLK", "the root and the machine's own disk"),
    ("VSOCKETS", "the agent is spoken to over vsock"),
    ("VIRTIO_VSOCKETS", "the agent is spoken to over vsock"),
    ("UNIX", "sockets of the guest's own programs and of the agent"),
    ("EPOLL", "the agent waits with it"),
    ("SIGNALFD", "the agent hears of its children with it"),
    ("TIMERFD", "the agent's time limits"),
    ("EROFS_FS", "the root image"),
    ("OVERLAY_FS", "what the machine writes lies over the root image"),
    ("EXT4_FS", "the machine's own disk, and volumes"),
    ("TMPFS", "/run, /dev/shm"),
    ("DEVTMPFS", "/dev"),
    ("PROC_FS", "/proc"),
    ("SYSFS", "/sys"),
    ("CGROUPS", "tasks are frozen by cgroup before a snapshot"),
    ("KVM_GUEST", "kvmclock: the clock that goes on right after a resume"),
];

/// Without these something is lacking that not every machine uses.
const ADVISED: &[(&str, &str)] = &[
    ("SERIAL_8250_CONSOLE", "`logs --kernel` stays empty, and a panic is silent"),
    ("SERIAL_8250_PNP", "the serial port of the ACPI tables is not found"),
    ("VMGENID", "the kernel hears of a resume from the agent alone"),
    ("HW_RANDOM_VIRTIO", "its random numbers start from one seed of the host only"),
    ("VIRTIO_CONSOLE", "there is no hvc0"),
    ("VIRTIO_BALLOON", "memory that the guest frees stays with it"),
    ("PAGE_REPORTING", "memory that the guest frees stays with it"),
    ("VIRTIO_FS", "no shared folders"),
    ("UNIX98_PTYS", "no terminals (`exec -t`)"),
    ("INET", "no network, no published ports"),
    ("INET_DIAG_DESTROY", "TCP connections that a freeze cut hang until they time out"),
    ("NAMESPACES", "no `shell --rescue`"),
];

/// Of this machine: the options that its kernel lacks.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Missing {
    /// `CONFIG_X=y: why`, with what it is now.
    pub(super) required: Vec<String>,
    /// Some of these are there as modules, as distributions have them.
    pub(super) has_modules: bool,
    /// The same as notes.
    pub(super) advised: Vec<String>,
}

/// Compares a configuration with what `spec` needs.
pub(super) fn missing(config: &Config, spec: &MachineSpec) -> Missing {
    let mut required = REQUIRED.to_vec();
    if spec.vcpus > 1 {
        required.push(("SMP", "the definition asks for more than one CPU"));
    }
    if spec.net.is_some() {
        required
            .extend([("INET", "the definition asks for a network"), ("VIRTIO_NET", "its network device")]);
    }
    let lacks = |(option, why): &(&str, &str)| match config.get(option) {
        Some("y") => None,
        // Nothing is loaded before the root is there, and the root needs these.
        Some("m") => Some(format!("CONFIG_{option}=y, not =m: {why}")),
        _ => Some(format!("CONFIG_{option}=y: {why}")),
    };
    Missing {
        has_modules: required.iter().any(|(option, _)| config.get(option) == Some("m")),
        required: required.iter().filter_map(lacks).collect(),
        advised: ADVISED
            .iter()
            .filter_map(|need| Some(format!("the kernel lacks {}", lacks(need)?)))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(lines: &str) -> Config {
        Config::parse(format!("# Linux/x86 6.1.9 Kernel Configuration\n{lines}").as_bytes()).unwrap()
    }

    fn whole() -> String {
        REQUIRED.iter().chain(ADVISED).map(|(option, _)| format!("CONFIG_{option}=y\n")).collect()
    }

    fn spec(text: &str) -> MachineSpec {
        spec::parse(text).unwrap().resolve("x").unwrap()
    }

    #[test]
    fn each_option_is_missed() {
        assert_eq!(missing(&config(&whole()), &spec("")), Missing::default());
        for (option, _) in REQUIRED {
            let without = whole().replace(&format!("CONFIG_{option}=y\n"), "");
            let found = missing(&config(&without), &spec(""));
            assert!(
                matches!(&found.required[..], [line] if line.starts_with(&format!("CONFIG_{option}=y: ")))
            );
            let module = whole().replace(&format!("CONFIG_{option}=y\n"), &format!("CONFIG_{option}=m\n"));
            let found = missing(&config(&module), &spec(""));
            assert!(found.has_modules && found.required[0].contains("not =m"));
        }
        for (option, _) in ADVISED {
            let without = whole().replace(&format!("CONFIG_{option}=y\n"), "");
            let found = missing(&config(&without), &spec(""));
            assert!(found.required.is_empty() && found.advised.len() == 1, "{option}: {found:?}");
        }
    }

    #[test]
    fn what_the_definition_asks_for_counts() {
        let of = |text: &str| missing(&config(&whole()), &spec(text)).required.len();
        assert_eq!((of("cpus = 2"), of("net = true"), of("")), (1, 1, 0));
    }
}
