//! The `tableforge` program.
fn main() {}
