//! What a build says while it works.

/// Hears of a build's progress; called from several threads.
pub trait Progress: Sync {
    /// A step begins; the one before is done.
    fn step(&self, what: &str);
    /// A detail of the present step (a package, a file, output of a command).
    fn detail(&self, line: &str);
    /// Something odd that does not stop the build.
    fn warn(&self, line: &str);
    /// Output of a command that runs inside the machine.
    fn output(&self, bytes: &[u8]);
}

/// Says nothing.
pub struct Silent;

impl Progress for Silent {
    fn step(&self, _: &str) {}
    fn detail(&self, _: &str) {}
    fn warn(&self, _: &str) {}
    fn output(&self, _: &[u8]) {}
}
