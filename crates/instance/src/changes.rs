//! What happened to an instance between two looks at it.

use serde::Serialize;

use crate::record::{Health, Phase, Record};

/// Something that happened to an instance. As JSON it is an object whose `event` is [`Change::word`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Change {
    Created {
        /// What the user called its machine file.
        source: String,
        /// The machine file's identity, hex.
        file: String,
        /// The instance that it is a copy of.
        #[serde(skip_serializing_if = "Option::is_none")]
        forked_from: Option<String>,
    },
    /// Its process says that it runs: booted, resumed from its machine file, or a copy.
    Started {
        source: String,
    },
    /// It goes on from its own freeze.
    Resumed {
        source: String,
    },
    Frozen,
    /// Its disk is saved.
    Stopped {
        /// Of its service or command, where that ended.
        exit_code: Option<u8>,
    },
    /// Its process ended, or was killed, without saving anything.
    Died {
        /// What it left; nothing of a process that was killed.
        exit_code: Option<u8>,
    },
    /// The service, or the whole machine, was started again by its restart policy.
    Restarted {
        /// How often since it was run.
        restarts: u32,
        /// What the one before ended with, where that was seen.
        exit_code: Option<u8>,
    },
    /// Its health check found something else than before.
    Health {
        health: Health,
    },
    /// It belongs to another machine file now.
    Updated {
        source: String,
        file: String,
    },
    Removed,
}

impl Change {
    /// The word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Change::Created { .. } => "created",
            Change::Started { .. } => "started",
            Change::Resumed { .. } => "resumed",
            Change::Frozen => "frozen",
            Change::Stopped { .. } => "stopped",
            Change::Died { .. } => "died",
            Change::Restarted { .. } => "restarted",
            Change::Health { .. } => "health",
            Change::Updated { .. } => "updated",
            Change::Removed => "removed",
        }
    }
}

/// Where an instance is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It has not run since it was made or moved to another file.
    New,
    Running,
    Frozen,
    Stopped,
    Dead,
}

/// One look at an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    pub state: State,
    pub record: Record,
}

impl Look {
    /// `lives`: whether the process that the record names does.
    pub fn new(record: Record, lives: bool) -> Self {
        // Whoever makes it for another process leaves the process to that one.
        let nobodys = record.fresh || record.pid == 0;
        let state = match record.phase {
            Phase::Running if record.pid == 0 => State::New,
            Phase::Dead if nobodys && record.exit_code.is_none() => State::New,
            Phase::Running if lives => State::Running,
            Phase::Running | Phase::Dead => State::Dead,
            Phase::Frozen => State::Frozen,
            Phase::Stopped => State::Stopped,
        };
        Self { state, record }
    }
}

/// What happened between two looks, in order; `None` is an instance that is not there.
pub(crate) fn changes(old: Option<&Look>, new: Option<&Look>) -> Vec<Change> {
    match (old, new) {
        (None, None) => Vec::new(),
        (Some(_), None) => vec![Change::Removed],
        (None, Some(new)) => {
            let record = &new.record;
            let created = Change::Created {
                source: record.source.clone(),
                file: record.file.clone(),
                forked_from: record.forked_from.clone(),
            };
            let first = Look { state: State::New, record: Record { health: None, ..record.clone() } };
            std::iter::once(created).chain(between(&first, new)).collect()
        }
        // Another one of the same name.
        (Some(old), Some(new)) if old.record.created_ms != new.record.created_ms => {
            std::iter::once(Change::Removed).chain(changes(None, Some(new))).collect()
        }
        (Some(old), Some(new)) => between(old, new),
    }
}

/// What happened to one that is still there.
fn between(old: &Look, new: &Look) -> Vec<Change> {
    let (was, is) = (&old.record, &new.record);
    let mut all = Vec::new();
    let moved = (&was.file, &was.source) != (&is.file, &is.source);
    if moved {
        all.push(Change::Updated { source: is.source.clone(), file: is.file.clone() });
    }
    let source = || is.source.clone();
    let restarted = is.restarts > was.restarts;
    let exit_code = is.exit_code;
    all.extend(match (old.state, new.state) {
        (_, State::Running) if restarted => {
            Some(Change::Restarted { restarts: is.restarts, exit_code: was.exit_code })
        }
        // Its end in between was not seen.
        (State::Running, State::Running) if was.pid != is.pid => Some(Change::Started { source: source() }),
        (was, is) if was == is => None,
        // An update that was undone: it is again what it was.
        (State::New, State::Frozen | State::Stopped) if moved => None,
        (_, State::New) => None,
        (State::Frozen, State::Running) => Some(Change::Resumed { source: source() }),
        (_, State::Running) => Some(Change::Started { source: source() }),
        (_, State::Frozen) => Some(Change::Frozen),
        (_, State::Stopped) => Some(Change::Stopped { exit_code }),
        (_, State::Dead) => Some(Change::Died { exit_code }),
    });
    if let Some(health) = is.health.filter(|_| new.state == State::Running && was.health != is.health) {
        all.push(Change::Health { health });
    }
    all
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn record() -> Record {
        Record {
            name: "m".into(),
            file: "aa".into(),
            source: "m.smolmachine".into(),
            created_ms: 1,
            phase: Phase::Running,
            pid: 7,
            engine: "soft".into(),
            command: Vec::new(),
            kept: true,
            ports: Vec::new(),
            labels: BTreeMap::new(),
            exit_code: None,
            forked_from: None,
            networks: Vec::new(),
            restarts: 0,
            health: None,
            session: None,
            fresh: false,
            udp_ports: Vec::new(),
        }
    }

    fn look(change: impl FnOnce(&mut Record)) -> Look {
        let mut record = record();
        change(&mut record);
        Look::new(record, true)
    }

    fn created(forked_from: Option<&str>) -> Change {
        let forked_from = forked_from.map(str::to_owned);
        Change::Created { source: "m.smolmachine".into(), file: "aa".into(), forked_from }
    }

    fn started() -> Change {
        Change::Started { source: "m.smolmachine".into() }
    }

    fn told(old: &Look, new: &Look) -> Vec<Change> {
        changes(Some(old), Some(new))
    }

    #[test]
    fn a_new_one_is_created_and_started_when_its_process_says_so() {
        let running = look(|_| {});
        assert_eq!(changes(None, Some(&running)), [created(None), started()]);
        let detached = look(|r| r.pid = 0);
        assert_eq!(changes(None, Some(&detached)), [created(None)]);
        assert_eq!(told(&detached, &running), [started()]);
        let copy = look(|r| (r.phase, r.pid, r.forked_from) = (Phase::Dead, 0, Some("web".into())));
        assert_eq!(changes(None, Some(&copy)), [created(Some("web"))]);
        let failed = look(|r| (r.phase, r.pid, r.exit_code) = (Phase::Dead, 0, Some(125)));
        assert_eq!(told(&copy, &failed), [Change::Died { exit_code: Some(125) }]);
        assert_eq!(changes(Some(&running), None), [Change::Removed]);
        assert_eq!(changes(None, None), []);
        let other = look(|r| r.created_ms = 2);
        assert_eq!(told(&running, &other), [Change::Removed, created(None), started()]);
    }

    #[test]
    fn ends_are_told_apart_and_so_is_what_follows_them() {
        let running = look(|_| {});
        let frozen = look(|r| r.phase = Phase::Frozen);
        let stopped = look(|r| (r.phase, r.exit_code) = (Phase::Stopped, Some(3)));
        let killed = Look::new(record(), false);
        assert_eq!(told(&running, &running), []);
        assert_eq!(told(&running, &frozen), [Change::Frozen]);
        assert_eq!(told(&running, &stopped), [Change::Stopped { exit_code: Some(3) }]);
        assert_eq!(told(&running, &killed), [Change::Died { exit_code: None }]);
        let dead = look(|r| r.phase = Phase::Dead);
        assert_eq!(told(&running, &dead), [Change::Died { exit_code: None }]);
        // Who killed it notes it later: it died once.
        assert_eq!(told(&killed, &dead), []);
        let again = look(|r| r.pid = 8);
        assert_eq!(told(&frozen, &again), [Change::Resumed { source: "m.smolmachine".into() }]);
        assert_eq!(told(&stopped, &again), [started()]);
        assert_eq!(told(&killed, &again), [started()]);
        assert_eq!(told(&running, &again), [started()]);
    }

    #[test]
    fn a_service_that_ended_is_restarted() {
        let (running, ended) = (look(|_| {}), look(|r| r.exit_code = Some(9)));
        assert_eq!(told(&running, &ended), []);
        let restarted = Change::Restarted { restarts: 1, exit_code: Some(9) };
        assert_eq!(told(&ended, &look(|r| r.restarts = 1)), [restarted]);
    }

    #[test]
    fn health_is_told_when_it_changes_in_one_that_runs() {
        let unknown = look(|_| {});
        let well = look(|r| r.health = Some(Health::Healthy));
        let ill = look(|r| r.health = Some(Health::Unhealthy));
        assert_eq!(told(&unknown, &well), [Change::Health { health: Health::Healthy }]);
        assert_eq!(told(&well, &ill), [Change::Health { health: Health::Unhealthy }]);
        assert_eq!(told(&ill, &ill), []);
        assert_eq!(told(&ill, &unknown), []);
        let frozen = look(|r| (r.phase, r.health) = (Phase::Frozen, Some(Health::Healthy)));
        assert_eq!(told(&unknown, &frozen), [Change::Frozen]);
    }

    #[test]
    fn an_update_is_one_whether_or_not_it_is_undone() {
        let stopped = look(|r| r.phase = Phase::Stopped);
        let moved = |r: &mut Record| (r.file, r.source) = ("bb".into(), "n.smolmachine".into());
        let fresh = look(|r| {
            moved(r);
            (r.phase, r.fresh) = (Phase::Dead, true);
        });
        let updated = |file: &str, source: &str| Change::Updated { source: source.into(), file: file.into() };
        assert_eq!(told(&stopped, &fresh), [updated("bb", "n.smolmachine")]);
        let runs = look(|r| {
            moved(r);
            r.pid = 8;
        });
        assert_eq!(told(&fresh, &runs), [Change::Started { source: "n.smolmachine".into() }]);
        assert_eq!(told(&fresh, &stopped), [updated("aa", "m.smolmachine")]);
    }

    #[test]
    fn as_json_the_word_is_the_event() {
        let all = [
            created(Some("web")),
            started(),
            Change::Frozen,
            Change::Stopped { exit_code: Some(3) },
            Change::Health { health: Health::Healthy },
            Change::Restarted { restarts: 1, exit_code: None },
            Change::Removed,
        ];
        for change in all {
            let json = serde_json::to_value(&change).unwrap();
            assert_eq!(json["event"], change.word());
        }
    }
}
