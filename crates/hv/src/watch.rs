//! Somebody who looks at vCPUs while they run, to hold one engine's work against another's.

use std::sync::Arc;

use crate::VcpuState;

/// A vCPU at the end of a piece of its turn.
#[derive(Debug)]
pub struct Look<'a> {
    pub vcpu: u32,
    /// How many it has executed.
    pub instructions: u64,
    pub state: &'a VcpuState,
}

/// Called after each piece; an error is why the machine cannot go on.
pub type See = dyn Fn(&Look<'_>) -> Result<(), String> + Send + Sync;

/// See the module. For machines whose runs are repeatable: in others no two looks are the same.
#[derive(Clone)]
pub struct Watch {
    /// Each instruction is executed by itself, without what an engine does to be faster.
    pub plainly: bool,
    pub see: Arc<See>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Watch {{ plainly: {} }}", self.plainly)
    }
}
