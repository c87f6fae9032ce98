//! The edge to the kernel: errors, capabilities, register and MSR access that the wrappers lack.

#![allow(unsafe_code)] // KVM_SET_XSAVE is an unsafe wrapper (it may read more than it is given).

use hv::Error;
use kvm_bindings::{Msrs, kvm_enable_cap, kvm_msr_entry, kvm_xsave};
use kvm_ioctls::VcpuFd;

pub(crate) const ENGINE: &str = "kvm";

/// Turns a failed call into the engine's error.
pub(crate) fn host(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |error| Error::Host {
        engine: ENGINE,
        what,
        source: std::io::Error::from_raw_os_error(error.errno()),
    }
}

/// A state that KVM refuses: EINVAL says so, anything else is the host's failure.
pub(crate) fn refused(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |error| {
        if error.errno() == libc::EINVAL {
            Error::BadState { engine: ENGINE, what: format!("KVM refuses it ({what})") }
        } else {
            host(what)(error)
        }
    }
}

/// A `kvm_enable_cap` with up to one argument (KVM: Documentation/virt/kvm/api.rst).
pub(crate) fn capability(cap: u32, argument: u64) -> kvm_enable_cap {
    kvm_enable_cap { cap, args: [argument, 0, 0, 0], ..Default::default() }
}

/// Reads MSRs; one that KVM does not know reads as `None`.
pub(crate) fn get_msrs<const N: usize>(fd: &VcpuFd, numbers: [u32; N]) -> Result<[Option<u64>; N], Error> {
    let mut out = [None; N];
    let mut from = 0;
    while from < N {
        let entries: Vec<_> = numbers[from..]
            .iter()
            .map(|index| kvm_msr_entry { index: *index, ..Default::default() })
            .collect();
        let mut msrs = Msrs::from_entries(&entries).map_err(|_| too_many())?;
        // KVM stops at the first that it refuses and says how many it did.
        let done = fd.get_msrs(&mut msrs).map_err(host("KVM_GET_MSRS"))?.min(N - from);
        for (slot, entry) in out[from..].iter_mut().zip(&msrs.as_slice()[..done]) {
            *slot = Some(entry.data);
        }
        from += done + 1;
    }
    Ok(out)
}

/// Writes MSRs; gives back the numbers and values of those that KVM refuses.
pub(crate) fn set_msrs(fd: &VcpuFd, pairs: &[(u32, u64)]) -> Result<Vec<(u32, u64)>, Error> {
    let mut refused = Vec::new();
    let mut rest = pairs;
    while !rest.is_empty() {
        let entries: Vec<_> = rest
            .iter()
            .map(|(index, data)| kvm_msr_entry { index: *index, data: *data, ..Default::default() })
            .collect();
        let msrs = Msrs::from_entries(&entries).map_err(|_| too_many())?;
        let done = fd.set_msrs(&msrs).map_err(host("KVM_SET_MSRS"))?;
        let Some((first, after)) = rest.get(done..).and_then(<[_]>::split_first) else { break };
        refused.push(*first);
        rest = after;
    }
    Ok(refused)
}

fn too_many() -> Error {
    Error::Host {
        engine: ENGINE,
        what: "making a list of MSRs",
        source: std::io::ErrorKind::OutOfMemory.into(),
    }
}

/// Loads an XSAVE area of 4 KiB.
pub(crate) fn set_xsave(fd: &VcpuFd, area: &kvm_xsave) -> Result<(), Error> {
    // SAFETY: the kernel reads more than `kvm_xsave` holds only for processes that asked for dynamic
    // XSAVE features (arch_prctl ARCH_REQ_XCOMP_GUEST_PERM); nothing in this program does.
    unsafe { fd.set_xsave(area) }.map_err(refused("FPU state"))
}
