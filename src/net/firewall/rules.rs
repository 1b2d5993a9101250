//! All rules of a state, as data. Pure.
//!
//! `H` is the uplink, `B` a bridge. Rules that name `H` are the contract's (`docs/spec/network.md` 13,
//! `docs/spec/policy.md` 2). They are followed by rules for every other interface that is not a bridge of ours (N-28,
//! P-21): traffic between our bridges was dropped before, so the rest is traffic with the outside.

use super::rule::Table;
use super::state::DesiredRules;
use super::{forward, host, nat, published};

/// The tables of both families.
pub(super) struct Rules {
    pub v4: [Table; 2],
    pub v6: [Table; 1],
}

/// The rules of a state.
pub(super) fn rules(state: &DesiredRules) -> Rules {
    let mut chains = Vec::from(host::chains(state));
    chains.push(published::hairpin(state));
    chains.extend(forward::chains(state));
    chains.push(published::forwarded(state));
    let filter = Table { name: "filter", chains };
    let nat = Table {
        name: "nat",
        chains: nat::chains(state),
    };
    let filter6 = Table {
        name: "filter",
        chains: forward::chains6(state),
    };
    Rules {
        v4: [filter, nat],
        v6: [filter6],
    }
}
