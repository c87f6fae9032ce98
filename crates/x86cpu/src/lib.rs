//! iced-x86
