//! stub
#[derive(Default)]
pub(crate) struct CodeCache {}
