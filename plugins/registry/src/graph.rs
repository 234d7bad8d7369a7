//! The order in which plugins start: dependencies first, otherwise as listed.

use std::collections::HashSet;

use crate::registration::Registration;

/// A set of registrations that has no order.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GraphError {
    /// Two plugins share a type and an id.
    #[error("plugin {0}: plugin: id already registered")]
    Duplicate(String),
    /// A chain of requirements leads back to its start.
    #[error("plugin {0}: requirement cycle")]
    Cycle(String),
    /// A plugin has no id.
    #[error("plugin of type {0}: plugin: no id")]
    NoId(&'static str),
}

/// Sorts `all` so that every plugin comes after all plugins of the kinds it requires.
///
/// # Errors
/// Duplicates, empty ids and cycles.
pub fn order(all: Vec<Registration>) -> Result<Vec<Registration>, GraphError> {
    let mut seen = HashSet::new();
    for r in &all {
        if r.id.is_empty() {
            return Err(GraphError::NoId(r.kind));
        }
        if !seen.insert(r.uri()) {
            return Err(GraphError::Duplicate(r.uri()));
        }
    }
    let mut marks = vec![Mark::New; all.len()];
    let mut sequence = Vec::with_capacity(all.len());
    for i in 0..all.len() {
        visit(i, &all, &mut marks, &mut sequence)?;
    }
    let mut slots: Vec<Option<Registration>> = all.into_iter().map(Some).collect();
    Ok(sequence
        .into_iter()
        .filter_map(|i| slots[i].take())
        .collect())
}

#[derive(Clone, Copy, PartialEq)]
enum Mark {
    New,
    Open,
    Done,
}

fn visit(
    i: usize,
    all: &[Registration],
    marks: &mut [Mark],
    sequence: &mut Vec<usize>,
) -> Result<(), GraphError> {
    match marks[i] {
        Mark::Done => return Ok(()),
        Mark::Open => return Err(GraphError::Cycle(all[i].uri())),
        Mark::New => marks[i] = Mark::Open,
    }
    for want in &all[i].requires {
        for j in 0..all.len() {
            // "*" reaches everything but itself and the others that want everything.
            let wanted = if *want == "*" {
                j != i && !all[j].requires.contains(&"*")
            } else {
                j != i && all[j].kind == *want
            };
            if wanted {
                visit(j, all, marks, sequence)?;
            }
        }
    }
    marks[i] = Mark::Done;
    sequence.push(i);
    Ok(())
}
