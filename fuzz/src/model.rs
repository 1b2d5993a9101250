#[path = "../../src/model/records/container.rs"]
mod container;
#[path = "../../src/model/records/image.rs"]
mod image;

pub use container::{HealthCheck, Probe};
pub use image::{ImageLayer, ImageRunConfig};
