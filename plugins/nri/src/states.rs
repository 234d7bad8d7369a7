//! What plugins believe of pods and containers: so that each hears of an end once, whoever tells of it.

use std::collections::HashMap;

use corten_core::nri::{Container, ContainerState, PodSandbox};

/// Pods and containers by id.
#[derive(Debug, Default)]
pub(crate) struct States(HashMap<String, State>);

/// How far along one is. What is unknown is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Created,
    Running,
    Stopped,
}

// === impl States ===

impl States {
    /// Forgets all: there is no plugin that believes anything.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Takes over what a new plugin is told.
    pub(crate) fn learn(&mut self, pods: &[PodSandbox], containers: &[Container]) {
        for pod in pods {
            self.0.entry(pod.id.clone()).or_insert(State::Running);
        }
        for c in containers {
            let state = match c.state() {
                ContainerState::ContainerCreated => State::Created,
                ContainerState::ContainerRunning | ContainerState::ContainerPaused => {
                    State::Running
                }
                ContainerState::ContainerStopped => State::Stopped,
                ContainerState::ContainerUnknown => {
                    self.0.remove(&c.id);
                    continue;
                }
            };
            self.0.insert(c.id.clone(), state);
        }
    }

    pub(crate) fn created(&mut self, id: &str) {
        self.0.insert(id.to_owned(), State::Created);
    }

    pub(crate) fn running(&mut self, id: &str) {
        self.0.insert(id.to_owned(), State::Running);
    }

    pub(crate) fn stopped(&mut self, id: &str) {
        self.0.insert(id.to_owned(), State::Stopped);
    }

    pub(crate) fn removed(&mut self, id: &str) {
        self.0.remove(id);
    }

    /// Whether its stop has yet to be told.
    pub(crate) fn stops(&self, id: &str) -> bool {
        matches!(self.0.get(id), Some(State::Created | State::Running))
    }

    /// Whether its removal has yet to be told.
    pub(crate) fn is_known(&self, id: &str) -> bool {
        self.0.contains_key(id)
    }
}
