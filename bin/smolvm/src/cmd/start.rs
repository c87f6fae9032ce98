//! `start`: a frozen machine goes on, a stopped one boots on its disk.

use std::sync::Arc;

use anyhow::{Result, bail};
use instance::{Instance, Phase};

use crate::args::{Global, Names};
use crate::cmd::{update, vmm};
use crate::launch::{Home, Mode};

pub fn start(names: &Names, global: &Global, home: &Home) -> Result<u8> {
    let mut code = 0;
    for name in &names.names {
        let instance = Instance::open(&home.dirs, name)?;
        update::undo_half(&instance)?;
        let mut plan = vmm::read_plan(&instance)?;
        plan.mode = match instance.phase() {
            Phase::Running => bail!("`{name}` is running already; `smolvm exec {name} …` runs in it"),
            Phase::Frozen => Mode::Frozen,
            Phase::Stopped => Mode::Stopped,
            // Its process was killed: it starts from where it came from.
            Phase::Dead => plan.mode,
        };
        plan.lost = instance.phase() == Phase::Dead;
        vmm::replace_plan(&instance, &plan)?;
        code = vmm::detach(Arc::new(instance), global, None)?.max(code);
    }
    Ok(code)
}
