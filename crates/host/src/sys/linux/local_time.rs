//! The time of day where this host is.
#![allow(unsafe_code)] // localtime_r has no safe wrapper

use std::io;
use std::mem::MaybeUninit;

/// A moment as a calendar and a clock on the wall show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalTime {
    pub year: i64,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    pub hour: u8,
    pub minute: u8,
    /// 0 to 60: there may be a leap second.
    pub second: u8,
    /// Seconds that it is ahead of UTC.
    pub offset: i32,
}

/// The local time of a moment in seconds since the Unix epoch: by `TZ`, else by the host's time zone.
///
/// # Errors
/// The year does not fit into the C library's (localtime(3), `EOVERFLOW`).
pub fn local_time(epoch: i64) -> io::Result<LocalTime> {
    let mut tm = MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers are valid for the call, which keeps neither; zeroes are a valid `tm`.
    let tm = unsafe {
        if libc::localtime_r(&raw const epoch, tm.as_mut_ptr()).is_null() {
            return Err(io::Error::last_os_error());
        }
        tm.assume_init()
    };
    // Each fits by localtime(3).
    let small = |n: i32| n as u8;
    Ok(LocalTime {
        year: i64::from(tm.tm_year) + 1900,
        month: small(tm.tm_mon + 1),
        day: small(tm.tm_mday),
        hour: small(tm.tm_hour),
        minute: small(tm.tm_min),
        second: small(tm.tm_sec),
        offset: tm.tm_gmtoff as i32,
    })
}
