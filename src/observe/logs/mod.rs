//! Logs that others write: reading, following and rotating them.
//!
//! ```text
//! logs/init.log       the current file: appended to, never truncated
//! logs/init.log.1     rotated when it had grown too long, .2 before it, …   (generations)
//! logs/times/4711     when the file with inode 4711 grew                    (times)
//! ```
//!
//! A log consists of its files in that order, oldest first; no line spans two of them. When a writer finds its file
//! renamed, it ends the current line and continues in a new file under the old name; so the next file begins where a
//! file has ended for good. With several writers (`exec.log`) one of them may end its line a little later; readers
//! see that line, followers may miss it.
//!
//! A [`LogReader`] is a position in a log. It reads what is available, blocks only on the disk, and never waits; a
//! [`stream`] of it waits for more with a [`Watcher`]. Neither keeps more than one chunk in memory, and neither can
//! block the writer: a slow reader reads older files, and a reader that is slower than the deletion of files gets an
//! error, because a gap in a log would go unnoticed.
//!
//! This module never writes logs (the runtime does) and knows nothing about containers.

mod bound;
mod follow;
mod generations;
mod reader;
mod select;
mod stamp;
pub mod times;
mod watch;

pub use bound::{LogLimits, bound};
pub use follow::{Follow, stream};
pub use generations::rotate;
pub use reader::{LogReader, View};
pub use select::Selection;
pub use watch::{Armed, Watcher};
