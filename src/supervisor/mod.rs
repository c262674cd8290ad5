//! Owns workers.
