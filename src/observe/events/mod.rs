//! Events: changes of objects, for clients that watch.
//!
//! A commit of the store becomes one [`Event`] per object with a visible change; internal changes (operations in
//! progress, certificates due) cause none. Events are numbered, and a limited number is kept in memory. A
//! [`Subscription`] is only the number of the next event to read, so a slow client costs nothing. It is told if it is
//! too slow:
//!
//! ```text
//! subscribe(since) ── still kept ──> events after `since` ─┬─> … each new one
//!        └─ not kept, or of another run ───> Reset ────────┤
//!                                                          └─ too slow ──> Lagged ──> the oldest kept …
//! ```
//!
//! After `Reset` and `Lagged` a client has to list the objects again. Numbers begin with the start time of the daemon
//! in microseconds, so those of different runs do not overlap.
//!
//! This module never stores events and never decides who may see them.

mod event;
mod ring;

pub use event::{Action, Event, Observed, events_of};
pub use ring::{Events, Filter, Item, KEPT, Subscription};
