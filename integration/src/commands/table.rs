//! The table of commands and flags in `integration/README.md`: read, compared, written.
//!
//! A row names a command or a flag and, for each client, a test that uses it, or says why none
//! does. `CORTEN_TABLE=write` with a full run fills in and corrects the tests and keeps the
//! reasons.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::{Node, Uses, uses};
use crate::ctr::Client;

const BEGIN: &str = "<!-- commands: begin -->";
const END: &str = "<!-- commands: end -->";
/// The cell of a client that does not have the command or flag.
const ABSENT: &str = "-";
/// What a cell begins with if no test uses the flag; the reason follows.
const OPEN: &str = "no test: ";

/// Cells by row: what the table says for ctr 2.4 and for ctr 1.6.
#[derive(Debug, Default)]
pub struct Table {
    rows: BTreeMap<String, [String; 2]>,
    order: Vec<String>,
}

const CLIENTS: [Client; 2] = [Client::New, Client::Old];

fn readme() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")
}

// === impl Table ===

impl Table {
    /// The table as it stands in the README.
    #[must_use]
    pub fn read() -> Self {
        let text = fs::read_to_string(readme()).expect("integration/README.md is there");
        let table = text.split_once(BEGIN).and_then(|(_, t)| t.split_once(END));
        let (table, _) = table.expect("integration/README.md has the table of commands");
        let mut read = Self::default();
        for line in table.lines().filter(|l| l.starts_with("| `")) {
            let mut cells = line.trim_matches('|').split('|').map(str::trim);
            let mut next = || {
                cells
                    .next()
                    .unwrap_or_default()
                    .trim_matches('`')
                    .to_owned()
            };
            let name = next();
            let row = name.strip_prefix("ctr ").unwrap_or(&name).to_owned();
            read.rows.insert(row.clone(), [next(), next()]);
            read.order.push(row);
        }
        read
    }

    /// Commands and flags of either client that the table lacks, or has though they are gone.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (column, client) in CLIENTS.into_iter().enumerate() {
            let real: BTreeSet<_> = Node::of(client).rows().into_iter().collect();
            let says = |row: &str| self.rows.get(row).map_or(ABSENT, |cells| &cells[column]);
            for row in &real {
                if matches!(says(row), ABSENT | "") {
                    faults.push(format!("{}: `ctr {row}` is not listed", client.label()));
                }
            }
            for row in self.rows.keys() {
                if says(row) != ABSENT && !real.contains(row) {
                    faults.push(format!("{}: there is no `ctr {row}`", client.label()));
                }
            }
        }
        for (row, cells) in &self.rows {
            if cells.iter().any(|c| c.trim() == OPEN.trim()) {
                faults.push(format!("`ctr {row}` has neither test nor reason"));
            }
        }
        faults
    }

    /// Tests that the table names and that have not used what they are said to use.
    fn lies(&self, column: usize, used: &Uses) -> Vec<String> {
        let claims = self.rows.iter().map(|(row, cells)| (row, &cells[column]));
        claims
            .filter(|(_, cell)| cell.contains("::"))
            .filter(|(row, test)| !used.get(*row).is_some_and(|tests| tests.contains(*test)))
            .map(|(row, test)| format!("`ctr {row}` is not used by {test}"))
            .collect()
    }

    /// Names a test for each row that one uses. A row keeps its test as long as that is true; a
    /// new one gets the test that uses the fewest other things.
    fn fill(&mut self, column: usize, rows: &[String], used: &Uses) {
        let mut breadth: BTreeMap<&str, usize> = BTreeMap::new();
        for test in used.values().flatten() {
            *breadth.entry(test).or_default() += 1;
        }
        for row in rows {
            let cells = self
                .rows
                .entry(row.clone())
                .or_insert_with(|| [ABSENT.to_owned(), ABSENT.to_owned()]);
            let cell = &mut cells[column];
            let tests = used.get(row);
            if tests.is_some_and(|tests| tests.contains(cell)) {
                continue;
            }
            let best = tests.and_then(|all| all.iter().min_by_key(|t| breadth[t.as_str()]));
            match best {
                Some(test) => test.clone_into(cell),
                None if cell.starts_with(OPEN) => {}
                None => OPEN.clone_into(cell),
            }
        }
    }

    fn markdown(&self) -> String {
        let mut text = "| | with ctr 2.4 | with ctr 1.6 |\n|---|---|---|\n".to_owned();
        let show = |cell: &str| {
            if cell.contains("::") {
                format!("`{cell}`")
            } else {
                cell.trim_end().to_owned()
            }
        };
        for row in &self.order {
            let [new, old] = &self.rows[row];
            text += &format!("| `ctr {row}` | {} | {} |\n", show(new), show(old));
        }
        text
    }

    fn write(&self) {
        let text = fs::read_to_string(readme()).expect("integration/README.md is there");
        let (head, rest) = text.split_once(BEGIN).expect("the README has a table");
        let (_, tail) = rest.split_once(END).expect("the table ends");
        let text = format!("{head}{BEGIN}\n{}{END}{tail}", self.markdown());
        fs::write(readme(), text).expect("the README can be written");
    }
}

/// After a full run: what the table says and is not so. Writes the table if that is asked for.
#[must_use]
pub fn verify() -> Vec<String> {
    let mut table = Table::read();
    let trees = CLIENTS.map(Node::of);
    let used = [0, 1].map(|n| uses(CLIENTS[n], &trees[n]));
    if std::env::var("CORTEN_TABLE").is_ok_and(|v| v == "write") {
        // The newer client's order, then what only the older one has.
        let rows = trees.each_ref().map(Node::rows);
        let mut order = rows[0].clone();
        order.extend(rows[1].iter().filter(|r| !rows[0].contains(r)).cloned());
        table.rows.retain(|row, _| order.contains(row));
        for column in [0, 1] {
            table.fill(column, &rows[column], &used[column]);
        }
        table.order = order;
        table.write();
    }
    let mut lies = table.lies(0, &used[0]);
    lies.extend(table.lies(1, &used[1]));
    lies
}
