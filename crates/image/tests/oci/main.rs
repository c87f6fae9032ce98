//! Container images through the public surface: what honest ones become, and what hostile ones
//! cannot do.

mod hostile;
mod layers;
mod made;
mod registry;
mod transports;
