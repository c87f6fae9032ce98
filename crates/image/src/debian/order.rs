//! In which order scripts that were not run while unpacking are run now.
//!
//! dpkg promises a `preinst` two things: the essential packages work, and what its package
//! pre-depends on is configured (Debian Policy 3.8, 7.2). On a running system the first always
//! holds; here nothing is configured at first. So: the essential packages and all they depend on
//! come first, then the others in the order of unpacking, each after its pre-dependencies.

use std::collections::{BTreeSet, HashMap};

use super::package::Package;

/// First of all: it makes /etc/passwd.
const FIRST: &str = "base-passwd";

/// One thing to do; packages by their place in the list.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    Preinst(usize),
    /// `dpkg --configure` of these together.
    Configure(Vec<usize>),
}

/// The steps before the final `dpkg --configure -a`.
pub fn steps(packages: &[Package]) -> Vec<Step> {
    let mut plan = Plan {
        packages,
        names: names(packages),
        begun: BTreeSet::new(),
        configured: BTreeSet::new(),
        steps: Vec::new(),
    };
    let essential = |package: &Package| package.control.get("Essential") == Some("yes");
    let roots = (0..packages.len()).filter(|at| essential(&packages[*at])).collect();
    plan.configure(roots);
    for at in 0..packages.len() {
        plan.preinst(at);
    }
    plan.steps
}

/// Which packages a name may mean: the one called so and those that provide it.
fn names(packages: &[Package]) -> HashMap<&str, Vec<usize>> {
    let mut names: HashMap<&str, Vec<usize>> = HashMap::new();
    for (at, package) in packages.iter().enumerate() {
        let provided = package.control.names_in("Provides");
        for name in provided.chain([package.name.as_str()]) {
            names.entry(name).or_default().push(at);
        }
    }
    names
}

struct Plan<'a> {
    packages: &'a [Package],
    names: HashMap<&'a str, Vec<usize>>,
    /// Whose `preinst` is behind or above us.
    begun: BTreeSet<usize>,
    configured: BTreeSet<usize>,
    steps: Vec<Step>,
}

impl Plan<'_> {
    /// Runs a package's `preinst`, after what that may rely on.
    fn preinst(&mut self, at: usize) {
        if !self.begun.insert(at) || self.packages[at].info("preinst").is_none() {
            return;
        }
        let wanted = self.related(at, "Pre-Depends");
        self.configure(wanted);
        self.steps.push(Step::Preinst(at));
    }

    /// Configures packages with all that they depend on, as far as that is not done yet.
    fn configure(&mut self, roots: Vec<usize>) {
        let closure = self.closure(roots);
        let first = closure.iter().copied().find(|at| self.packages[*at].name == FIRST);
        for at in first.into_iter().chain(closure.iter().copied()) {
            self.preinst(at);
        }
        // What was configured on the way is not configured twice.
        let together: Vec<usize> = closure.difference(&self.configured).copied().collect();
        if !together.is_empty() {
            self.configured.extend(&together);
            self.steps.push(Step::Configure(together));
        }
    }

    fn closure(&self, roots: Vec<usize>) -> BTreeSet<usize> {
        let mut closure = BTreeSet::new();
        let mut todo = roots;
        while let Some(at) = todo.pop() {
            if self.configured.contains(&at) || !closure.insert(at) {
                continue;
            }
            todo.extend(self.related(at, "Pre-Depends"));
            todo.extend(self.related(at, "Depends"));
        }
        closure
    }

    /// Every package here that a relation of package `at` names, whichever alternative.
    fn related(&self, at: usize, field: &str) -> Vec<usize> {
        let names = self.packages[at].control.names_in(field);
        names.filter_map(|name| self.names.get(name)).flatten().copied().collect()
    }
}
