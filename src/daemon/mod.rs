//! Joins everything up.
