//! The clients' own commands and flags, against the table in `integration/README.md`.

use corten_integration::case::Case;
use corten_integration::commands::Table;
use corten_integration::runner::Test;
use corten_integration::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![are_all_listed]
}

fn are_all_listed(_: &Case) {
    let faults = Table::read().faults();
    assert!(faults.is_empty(), "\n  {}", faults.join("\n  "));
}
