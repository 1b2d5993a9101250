//! The reader of archives: no panic, no more data than there is, no memory without end.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    condenser_fuzz::read_archive(bytes);
    condenser_fuzz::read_archive(&condenser_fuzz::mend(bytes));
});
