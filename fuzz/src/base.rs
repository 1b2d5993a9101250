#[path = "../../src/base/cause.rs"]
pub(crate) mod cause;
