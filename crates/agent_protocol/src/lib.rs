//! postcard
