//! Translations as data: where they are, how they hang together, when they are void.

use std::collections::HashMap;

use host::CodeMemory;

use super::lower::{Exit, Site, Thunks};
use crate::op::Op;

/// One piece of host code.
pub(super) struct Translation {
    pub rip: u64,
    /// The interpreter's block that begins there.
    pub block: u32,
    /// Offset in the code memory.
    pub at: u32,
    pub flags_dead: bool,
    pub alive: bool,
    /// Where the map epoch is that its entry asks for.
    epoch: Option<u32>,
    /// Exits that lead here.
    incoming: Vec<u32>,
}

/// What is known of a new translation.
pub(super) struct Made {
    pub rip: u64,
    pub block: u32,
    /// guestmem's page index, and its code generation when it was read.
    pub page: u32,
    pub generation: u32,
    /// The same of the second page that it is in.
    pub second: Option<(u32, u32)>,
    /// Offset in its code of the map epoch that its entry asks for.
    pub epoch: Option<u32>,
    pub flags_dead: bool,
}

/// An exit and what it is linked to.
pub(super) struct Linked {
    pub exit: Exit,
    to: Option<u32>,
    /// What stood where the stores of the flags are jumped over.
    replaced: [u8; 2],
}

/// Translations of one page.
struct Page {
    generation: u32,
    translations: Vec<u32>,
}

/// Everything that lives as long as the code memory is not recycled.
pub(super) struct Store {
    pub code: CodeMemory,
    pub thunks: Thunks,
    /// Bytes in use.
    pub used: usize,
    pub sites: Vec<Site>,
    pub exits: Vec<Linked>,
    pub ops: Vec<Op>,
    pub translations: Vec<Translation>,
    pages: HashMap<u32, Page>,
    /// Code was written since it was last run.
    pub unserialised: bool,
}

impl Store {
    /// `head`: what stands at the beginning of the code memory.
    pub fn new(mut code: CodeMemory, head: &[u8], thunks: Thunks) -> Self {
        code.write(0, head);
        Self {
            code,
            thunks,
            used: head.len().next_multiple_of(64),
            sites: Vec::new(),
            exits: Vec::new(),
            ops: Vec::new(),
            translations: Vec::new(),
            pages: HashMap::new(),
            unserialised: true,
        }
    }

    /// Forgets all translations; the shared code stays.
    pub fn clear(&mut self, head: usize) {
        self.used = head.next_multiple_of(64);
        self.sites.clear();
        self.exits.clear();
        self.ops.clear();
        self.translations.clear();
        self.pages.clear();
    }

    /// Takes in a translation; its code is written at [`Store::used`].
    pub fn add(&mut self, made: Made, code: &[u8]) -> u32 {
        let Made { rip, block, page, generation, second, epoch, flags_dead } = made;
        let at = self.used as u32;
        self.code.write(self.used, code);
        self.used = (self.used + code.len()).next_multiple_of(16);
        self.unserialised = true;
        let number = self.translations.len() as u32;
        let epoch = epoch.map(|place| at + place);
        let incoming = Vec::new();
        self.translations.push(Translation { rip, block, at, flags_dead, alive: true, epoch, incoming });
        for (page, generation) in [Some((page, generation)), second].into_iter().flatten() {
            let entry = self.pages.entry(page).or_insert(Page { generation, translations: Vec::new() });
            entry.translations.push(number);
        }
        number
    }

    /// The dispatcher has found the translation's pages mapped as they were, under this map epoch.
    pub fn confirm(&mut self, number: u32, epoch: u32) {
        if let Some(place) = self.translations[number as usize].epoch {
            self.code.write(place as usize, &epoch.to_le_bytes());
            self.unserialised = true;
        }
    }

    pub fn add_exit(&mut self, exit: Exit) {
        self.exits.push(Linked { exit, to: None, replaced: [0; 2] });
    }

    fn patch(&mut self, at: u32, target: u32) {
        let rel = target.wrapping_sub(at + 4);
        self.code.write(at as usize, &rel.to_le_bytes());
        self.unserialised = true;
    }

    /// Lets an exit lead to a translation, while the map epoch is `epoch`. `bytes`: the two at the start
    /// of the exit's stub.
    pub fn link(&mut self, exit: u32, to: u32, epoch: u32) {
        self.unlink(exit);
        let Some(target) = self.translations.get_mut(to as usize).filter(|t| t.alive) else { return };
        target.incoming.push(exit);
        let (at, dead) = (target.at, target.flags_dead);
        let linked = &mut self.exits[exit as usize];
        linked.to = Some(to);
        let e = linked.exit.clone();
        self.patch(e.jump, at);
        if let Some(place) = e.epoch {
            self.code.write(place as usize, &epoch.to_le_bytes());
        }
        if !dead {
            return;
        }
        if let Some(branch) = e.branch {
            self.patch(branch, e.bare);
        } else if let Ok(skip) = u8::try_from(e.bare - e.stub)
            && (2..0x80).contains(&skip)
        {
            let mut old = [0; 2];
            self.code.read(e.stub as usize, &mut old);
            self.exits[exit as usize].replaced = old;
            self.code.write(e.stub as usize, &[0xeb, skip - 2]);
        }
    }

    fn unlink(&mut self, exit: u32) {
        let linked = &mut self.exits[exit as usize];
        if linked.to.take().is_none() {
            return;
        }
        let e = linked.exit.clone();
        let old = std::mem::take(&mut linked.replaced);
        self.patch(e.jump, e.unlinked);
        if let Some(branch) = e.branch {
            self.patch(branch, e.stub);
        } else if old != [0; 2] {
            self.code.write(e.stub as usize, &old);
        }
    }

    /// Drops the translations of pages whose code generation is not what `now` says; true when there were
    /// any.
    pub fn revalidate(&mut self, now: impl Fn(usize) -> u32) -> bool {
        let stale: Vec<u32> =
            self.pages.iter().filter(|(p, s)| now(**p as usize) != s.generation).map(|(p, _)| *p).collect();
        for page in &stale {
            let Some(gone) = self.pages.remove(page) else { continue };
            for number in gone.translations {
                let t = &mut self.translations[number as usize];
                t.alive = false;
                for exit in std::mem::take(&mut t.incoming) {
                    if self.exits[exit as usize].to == Some(number) {
                        self.unlink(exit);
                    }
                }
            }
        }
        !stale.is_empty()
    }
}
