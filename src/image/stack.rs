//! The layers of an image as a stack, each with the chain id that names the stack up to it (OCI image specification, "Layer
//! ChainID"). Pure.

use std::collections::HashSet;

use super::digest::Digest;

/// A layer in a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Link {
    pub(super) diff_id: Digest,
    /// Names the stack up to this layer. That of the lowest one is its diff id.
    pub(super) chain_id: Digest,
}

/// A stack, bottom first. overlayfs refuses one directory twice: of equal layers the upper one decides alone, since it shows
/// and hides all that the lower one does.
pub(super) fn stack(diff_ids_bottom_first: &[String]) -> Vec<Link> {
    let mut seen = HashSet::new();
    let topmost_first = diff_ids_bottom_first.iter().rev().filter(|id| seen.insert(*id));
    let mut distinct: Vec<Digest> = topmost_first.filter_map(|id| id.parse().ok()).collect();
    distinct.reverse();
    let mut below: Option<Digest> = None;
    let link = |diff_id| {
        let chain_id = below.map_or(diff_id, |below| Digest::of(format!("{below} {diff_id}").as_bytes()));
        below = Some(chain_id);
        Link { diff_id, chain_id }
    };
    distinct.into_iter().map(link).collect()
}

/// All that a stack may have in the store.
pub(super) fn digests(diff_ids_bottom_first: &[String]) -> Vec<Digest> {
    let links = stack(diff_ids_bottom_first);
    links.iter().flat_map(|link| [link.diff_id, link.chain_id]).collect()
}
