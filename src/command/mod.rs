//! Messages become meaning, and meaning becomes messages.
