//! See the house notes.
