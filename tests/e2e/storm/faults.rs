//! The same with other things that break.
