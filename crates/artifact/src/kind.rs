//! What a section holds. The numbers are part of the format and never change meaning.

use std::fmt;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $label:literal;)*) => {
        /// The kinds of section that this version knows; several sections of one kind differ in their
        /// instance number. What the bytes mean is the business of the crate named with each kind.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum SectionKind {
            $($(#[$doc])* $name = $number,)*
        }

        impl SectionKind {
            /// Every known kind, in the order of the numbers.
            pub const ALL: &'static [SectionKind] = &[$(SectionKind::$name,)*];

            /// The kind with this number, if this version knows it.
            pub fn from_number(number: u32) -> Option<SectionKind> {
                match number {
                    $($number => Some(SectionKind::$name),)*
                    _ => None,
                }
            }

            /// The kind's name in messages, and a section's name where its writer gives none.
            pub fn label(self) -> &'static str {
                match self {
                    $(SectionKind::$name => $label,)*
                }
            }
        }
    };
}

kinds! {
    /// The machine's description (crate `spec`).
    Spec = 1, "spec";
    /// The guest kernel, as crate `boot` loads it.
    Kernel = 2, "kernel";
    /// The initial RAM file system with the guest agent.
    Initramfs = 3, "initramfs";
    /// A root file system image (crate `image`), raw, so that it can be mapped and shared.
    RootImage = 4, "root-image";
    /// The lock: versions and hashes of everything the base was built from.
    Lock = 5, "lock";
    /// Who built it, with what, when.
    BuildInfo = 6, "build-info";
    /// The definition that `build` made the file of, as its user wrote it (crate `build`).
    Definition = 7, "definition";
    /// Which guest pages lie where in `MemoryPages`: an [`crate::ExtentMap`].
    MemoryMap = 16, "memory-map";
    /// Raw 4 KiB guest pages.
    MemoryPages = 17, "memory-pages";
    /// vCPU state (crate `snapshot`).
    CpuState = 18, "cpu-state";
    /// Device state (crate `snapshot`).
    DeviceState = 19, "device-state";
    /// Which disk pages lie where in `DiskDeltaPages`: an [`crate::ExtentMap`].
    DiskDeltaMap = 20, "disk-delta-map";
    /// Raw 4 KiB pages of a disk that differ from its base.
    DiskDeltaPages = 21, "disk-delta-pages";
    /// Which pages a resume touches first.
    WorkingSet = 22, "working-set";
    /// What a snapshot is called and which root image it lies on (crate `snapshot`).
    SnapshotInfo = 23, "snapshot-info";
    /// Which code ran often (crate `snapshot`); a hint, ignorable.
    HotBlocks = 24, "hot-blocks";
}

impl SectionKind {
    /// The kind's number in the file.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// Whether each snapshot of a file has a section of this kind of its own.
    pub fn is_state(self) -> bool {
        self.number() >= SectionKind::MemoryMap.number()
    }
}

impl fmt::Display for SectionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}
