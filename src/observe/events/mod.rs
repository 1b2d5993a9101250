//! What happened to objects, as told to clients that watch.
//!
//! A commit of the store becomes one [`Event`] per object of which a client can see a change; what only the daemon
//! needs to know (operations in progress, certificates due) makes none. Events are numbered and kept in memory, as many
//! as fit; a [`Subscription`] is a number, the next one to read, so a client that reads slowly costs nothing. It is told
//! when it is too late:
//!
//! ```text
//! subscribe(since) ── still kept ──> events after `since` ─┬─> … each new one
//!        └─ not kept, or of another time ──> Reset ────────┤
//!                                                          └─ too slow ──> Lagged ──> the oldest kept …
//! ```
//!
//! After `Reset` and `Lagged` a client has to look at the lists again. Numbers begin with the time at which the daemon
//! started, in microseconds, so those of different runs do not overlap.
//!
//! What this module never does: store events, or decide who may see them.

mod event;
mod ring;

pub use event::{Action, Event, Observed, events_of};
pub use ring::{Events, Filter, Item, KEPT, Subscription};
