//! A machine that goes on after a freeze, from a file or as one of many copies, goes on right: its random numbers and
//! names are its own, its clock is the world's, its connections are alive or told dead, its hooks know why they run,
//! and what it was in the midst of comes out as if nothing had been.

mod common;

mod clocks;
mod connections;
mod editor;
mod hooks;
mod identity;
mod load;
mod randomness;
mod refusals;
