//! The words of what lies beside machines and outlives them: volumes, deltas, updates.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  smolvm volume create data --size 4GiB
  smolvm run -d -v data:/var/lib/data search.smolmachine
  smolvm run -v data:/data:ro -- ls /data
  smolvm volume snapshot data data-monday")]
pub struct Volume {
    #[command(subcommand)]
    pub verb: VolumeVerb,
}

#[derive(Debug, Subcommand)]
pub enum VolumeVerb {
    /// Make an empty volume; it costs what is written
    Create {
        /// Its name
        name: String,
        /// What it can hold, like 4GiB
        #[arg(long, default_value = "16GiB")]
        size: String,
    },
    /// List volumes
    Ls,
    /// Remove volumes with their data
    Rm {
        /// Volumes
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Show what a volume is, where it lies and which machines have it
    Inspect {
        /// The volume
        name: String,
    },
    /// Copy a volume that no machine writes; shares its blocks where the file system can
    Snapshot {
        /// The volume
        name: String,
        /// The copy's name
        copy: String,
    },
    /// Make a volume larger
    Grow {
        /// The volume
        name: String,
        /// What it can hold then, like 32GiB
        size: String,
    },
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  smolvm delta create app-1.smolmachine app-2.smolmachine -o app-1-2.smoldelta
  smolvm delta apply app-1.smolmachine app-1-2.smoldelta -o app-2.smolmachine")]
pub struct Delta {
    #[command(subcommand)]
    pub verb: DeltaVerb,
}

#[derive(Debug, Subcommand)]
pub enum DeltaVerb {
    /// Write what leads from one machine file to another
    Create {
        /// The machine file that others have
        old: PathBuf,
        /// The one that they are to have
        new: PathBuf,
        /// The delta to write
        #[arg(short, long)]
        output: PathBuf,
    },
    /// Make the new machine file of the old one; every byte is checked
    Apply {
        /// The machine file that the delta was made from
        old: PathBuf,
        /// The delta
        delta: PathBuf,
        /// The machine file to write
        #[arg(short, long)]
        output: PathBuf,
    },
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "What the machine wrote to its own disk goes; its volumes, ports and settings stay.
Examples:
  smolvm update web --to web-2.smolmachine")]
pub struct Update {
    /// The machine
    pub name: String,
    /// The machine file, or its name in the store
    #[arg(long, value_name = "FILE")]
    pub to: String,
}
