//! The guest's agent: PID 1 of every machine, and the other end of `agent_protocol`.
//!
//! One thread, one epoll loop ([`agent::Agent::run`]), nothing that polls: an idle machine has no wake-ups of ours.
//! What takes long and may block (tar streams, readiness, freezing, shutdown) is done by a forked copy
//! ([`worker`]), so the loop always answers, and a fault in there costs one operation.
//!
//! - [`boot`]: the duties of PID 1 until the first line
//! - [`agent`]: the loop; [`dispatch`]: a request to who serves it; [`conn`], [`poll`]: descriptors
//! - [`sessions`], [`session`]: processes with streams; [`spawn`], [`users`], [`environment`]: how they are made
//! - [`service`], [`log`], [`ready`]: the main service, its output, when it counts as ready
//! - [`forward`]: ports; [`copy`], [`walk`], [`unpack`], [`tar`]: files; [`stats`]: a look at the machine
//! - [`folders`] of the host, [`mounts`] of volumes; [`network`]: the network device
//! - [`freeze`], [`restored`], [`identity`], [`shutdown`], [`command`]: the machine's own life
//! - [`sys`]: the only place with `unsafe`
//!
//! Next: `main` below, `boot::boot`, `agent::Agent::run`.

pub mod agent;
pub mod boot;
pub mod cgroup;
pub mod command;
pub mod conn;
pub mod copy;
pub mod dispatch;
pub mod environment;
pub mod folders;
pub mod forward;
pub mod freeze;
pub mod identity;
pub mod log;
pub mod mounts;
pub mod network;
pub mod options;
pub mod poll;
pub mod ready;
pub mod restored;
pub mod service;
pub mod session;
pub mod sessions;
pub mod shutdown;
pub mod spawn;
pub mod stats;
pub mod sys;
pub mod tar;
pub mod unpack;
pub mod users;
pub mod walk;
pub mod worker;
pub mod world;

pub use options::main;
