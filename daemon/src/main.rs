//! See the house notes.
fn main() {}
