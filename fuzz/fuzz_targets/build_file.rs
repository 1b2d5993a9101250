//! The build file, and what matches paths: no panic, no error of more than a line, no memory or time without end.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| condenser_fuzz::read_build_file(bytes));
