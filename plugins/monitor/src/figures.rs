//! A table of figures and its text: one family for each figure, one sample for each task (and device, page, CPU).

use std::fmt::Write as _;

use corten_core::metrics::{escape, family};

/// A value with the values of the figure's own labels.
pub(crate) type Sample = (Vec<String>, u64);

/// One figure of statistics `M`.
pub(crate) struct Figure<M> {
    /// Without the prefix `container_`, with the unit.
    pub(crate) name: &'static str,
    /// The kernel's file and field.
    pub(crate) source: &'static str,
    /// Beside `container_id` and `namespace`.
    pub(crate) labels: &'static [&'static str],
    pub(crate) values: Values<M>,
}

/// How a figure is found.
pub(crate) enum Values<M> {
    One(fn(&M) -> Option<u64>),
    Many(fn(&M) -> Vec<Sample>),
}

/// A figure with one value.
pub(crate) fn one<M>(
    name: &'static str,
    source: &'static str,
    value: fn(&M) -> Option<u64>,
) -> Figure<M> {
    Figure {
        name,
        source,
        labels: &[],
        values: Values::One(value),
    }
}

/// Statistics and whose they are.
pub(crate) struct Task<M> {
    pub(crate) namespace: String,
    pub(crate) id: String,
    pub(crate) stats: M,
}

/// Writes what `tasks` have; a family without samples is left out.
pub(crate) fn encode<M>(out: &mut String, version: &str, figures: &[Figure<M>], tasks: &[Task<M>]) {
    for figure in figures {
        let mut first = true;
        for task in tasks {
            let samples = match figure.values {
                Values::One(value) => value(&task.stats)
                    .map(|v| (Vec::new(), v))
                    .into_iter()
                    .collect(),
                Values::Many(values) => values(&task.stats),
            };
            for (labels, value) in samples {
                let name = format!("container_{}", figure.name);
                if std::mem::take(&mut first) {
                    let help = format!("cgroup {version} {}", figure.source);
                    family(out, &name, "gauge", &help);
                }
                sample(
                    out,
                    &name,
                    &task.namespace,
                    &task.id,
                    figure.labels,
                    &labels,
                    value,
                );
            }
        }
    }
}

/// Writes one sample.
pub(crate) fn sample(
    out: &mut String,
    name: &str,
    namespace: &str,
    id: &str,
    labels: &[&str],
    values: &[String],
    value: u64,
) {
    let _ = write!(
        out,
        "{name}{{container_id=\"{}\",namespace=\"{}\"",
        escape(id),
        escape(namespace)
    );
    for (label, text) in labels.iter().zip(values) {
        let _ = write!(out, ",{label}=\"{}\"", escape(text));
    }
    let _ = writeln!(out, "}} {value}");
}
