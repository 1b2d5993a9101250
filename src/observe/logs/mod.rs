//! Logs that are written elsewhere: reading them, following them, keeping them within a size.
//!
//! ```text
//! logs/init.log       the current file: appended to, never truncated
//! logs/init.log.1     put aside when it had grown too long, .2 before it, …   (generations)
//! logs/times/4711     when the file with inode 4711 grew                      (times)
//! ```
//!
//! A log goes through its files in that order, oldest first; no line is spread over two of them. A writer that finds
//! its file renamed ends the line it is in, then goes on in a new file under the old name; so the next file begins
//! where a file ends for good. With several writers (`exec.log`) one of them may end its line a little later, which
//! whoever reads the files sees and who follows may not.
//!
//! A [`LogReader`] is a place in a log. It reads what is there, blocking only for the disk, and never waits; a
//! [`stream`] of it waits for more with a [`Watcher`]. Neither keeps more than one piece in memory, and neither can
//! hold the writer up: who reads slowly reads older files, and who is slower than files are deleted is told by an
//! error, because a log with a hole in it looks like a log without.
//!
//! What this module never does: write logs (that is the runtime), or know what a container is.

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
