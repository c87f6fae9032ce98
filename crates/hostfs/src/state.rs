//! What of a session travels in a snapshot: paths, numbers, and which files were open; no place of the host.
//!
//! A restore names its own folders. One at the same path in the guest takes the old one's place; an old one that has no
//! successor stays as an empty slot, so that what a guest still knows of it answers ESTALE. Open files are opened
//! again when they are next used.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use rustix::fs::FileType;
use serde::{Deserialize, Serialize};

use crate::folder::MAX_FOLDERS;
use crate::handles::{ELSEWHERE, Handle, Handles, MAX_HANDLES, Was};
use crate::nodes::{FIRST, Node, Nodes, folder_node};
use crate::server::{Server, Slot};
use crate::wire::check_name;

/// The highest number that a session gives out.
pub(crate) const LAST: u64 = u64::MAX / 2;

/// A session between two requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionState {
    /// Between INIT and DESTROY.
    live: bool,
    folders: Vec<FolderState>,
    /// Folders' own first, then each after the one that it is in.
    nodes: Vec<(u64, Node)>,
    next_node: u64,
    handles: Vec<HandleState>,
    next_handle: u64,
    devices: Vec<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FolderState {
    id: u32,
    /// Where it is in the guest.
    guest: String,
    file: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct HandleState {
    id: u64,
    node: u64,
    flags: u32,
    dir: bool,
    was: Option<Was>,
}

impl Server {
    /// The session as it is.
    pub fn save(&self) -> SessionState {
        let folders = self.slots.iter();
        SessionState {
            live: self.live,
            folders: folders
                .map(|(id, slot)| FolderState { id: *id, guest: slot.guest.clone(), file: slot.file })
                .collect(),
            nodes: self.saved_nodes(),
            next_node: self.nodes.next(),
            handles: self.handles.all().map(saved_handle).collect(),
            next_handle: self.handles.next(),
            devices: self.devices.clone(),
        }
    }

    /// Parents first; what hangs on something forgotten has no place.
    fn saved_nodes(&self) -> Vec<(u64, Node)> {
        let mut below: HashMap<u64, Vec<u64>> = HashMap::new();
        let mut queue = VecDeque::new();
        for (id, node) in self.nodes.all() {
            match Node::is_folder(id) {
                true => queue.push_back(id),
                false => below.entry(node.parent).or_default().push(id),
            }
        }
        let mut nodes = Vec::new();
        while let Some(id) = queue.pop_front() {
            let mut children = below.remove(&id).unwrap_or_default();
            children.sort_unstable();
            queue.extend(children);
            nodes.extend(self.nodes.get(id).ok().map(|node| (id, node.clone())));
        }
        let mut lost: Vec<u64> = below.into_values().flatten().collect();
        lost.sort_unstable();
        nodes.extend(lost.into_iter().filter_map(|id| {
            let node = self.nodes.get(id).ok()?.clone();
            Some((id, Node { parent: 0, ..node }))
        }));
        nodes
    }

    /// Takes a session over, with this server's own folders in it.
    ///
    /// # Errors
    /// What no server saves.
    pub fn restore(&mut self, state: &SessionState) -> Result<(), String> {
        let slots = self.joined(state)?;
        let nodes = restored_nodes(state)?;
        let handles = restored_handles(state)?;
        if state.devices.len() > 1 << 12 {
            return Err("too many devices".into());
        }
        (self.slots, self.nodes, self.handles) = (slots, nodes, handles);
        self.devices.clone_from(&state.devices);
        self.live = state.live;
        let new = self.slots.keys().filter(|id| self.nodes.get(folder_node(**id)).is_err());
        for id in new.copied().collect::<Vec<_>>() {
            if self.live {
                self.add_folder_node(id).map_err(|_| "no room for a folder".to_owned())?;
            }
        }
        Ok(())
    }

    /// The state's slots with this server's folders in those of the same place, and in new ones.
    fn joined(&mut self, state: &SessionState) -> Result<BTreeMap<u32, Slot>, String> {
        let most = MAX_FOLDERS - self.slots.len().min(MAX_FOLDERS);
        if state.folders.len() > most {
            return Err(format!("{} folders; at most {most} fit", state.folders.len()));
        }
        let mut slots = BTreeMap::new();
        for folder in &state.folders {
            let slot = Slot { guest: folder.guest.clone(), file: folder.file, folder: None };
            if folder.id >= MAX_FOLDERS as u32 || slots.insert(folder.id, slot).is_some() {
                return Err(format!("folder number {} is wrong", folder.id));
            }
        }
        for own in std::mem::take(&mut self.slots).into_values() {
            let same = slots
                .values_mut()
                .find(|slot| slot.folder.is_none() && (&slot.guest, slot.file) == (&own.guest, own.file));
            match same {
                Some(slot) => *slot = own,
                None => {
                    let free = (0..).find(|id| !slots.contains_key(id)).unwrap_or_default();
                    slots.insert(free, own);
                }
            }
        }
        Ok(slots)
    }
}

fn restored_nodes(state: &SessionState) -> Result<Nodes, String> {
    let folders: HashSet<u32> = state.folders.iter().map(|folder| folder.id).collect();
    let mut nodes = Nodes::default();
    for (id, node) in &state.nodes {
        let bad = |what: &str| Err(format!("file {id}: {what}"));
        if !folders.contains(&node.folder) || *id > LAST || nodes.get(*id).is_ok() {
            return bad("its folder or number is wrong");
        }
        let placed = match Node::is_folder(*id) {
            true => *id == folder_node(node.folder),
            false => {
                let parent = nodes.get(node.parent).map(|parent| parent.folder);
                *id >= FIRST
                    && check_name(&node.name).is_ok()
                    && (node.parent == 0 || parent == Ok(node.folder))
            }
        };
        if !placed || FileType::from_raw_mode(node.kind).as_raw_mode() != node.kind {
            return bad("it has no place");
        }
        let node = Node { unsure: true, ..node.clone() };
        nodes.insert(*id, node).map_err(|_| "too many files".to_owned())?;
    }
    nodes.skip_to(state.next_node);
    Ok(nodes)
}

fn restored_handles(state: &SessionState) -> Result<Handles, String> {
    let mut handles = Handles::default();
    if state.handles.len() > MAX_HANDLES {
        return Err("too many open files".into());
    }
    for saved in &state.handles {
        if saved.id > LAST || handles.get(saved.id).is_ok() {
            return Err(format!("open file {}: its number is wrong", saved.id));
        }
        let handle = Handle {
            node: saved.node,
            flags: saved.flags & crate::ops::LASTING,
            dir: saved.dir,
            fd: None,
            at: ELSEWHERE,
            size: 0,
            was: saved.was,
        };
        handles.insert(saved.id, handle);
    }
    handles.skip_to(state.next_handle);
    Ok(handles)
}

fn saved_handle((id, handle): (u64, &Handle)) -> HandleState {
    let was = handle.fd.as_ref().and_then(|fd| Was::of(fd)).or(handle.was);
    HandleState { id, node: handle.node, flags: handle.flags, dir: handle.dir, was }
}
