#!/usr/bin/env bash
# Measures pulls of three images against podman, skopeo with umoci, and the bound of this machine, in one run. Takes
# about ten minutes and 20 GB of disk. Arguments: rounds [5], part of the name of one image.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/packages.sh
. scripts/packages.sh

need_root "$@"
need docker-registry=docker-registry skopeo=skopeo umoci=umoci podman=podman mkfs.ext4=e2fsprogs cc=build-essential
need_cargo build
cargo bench --locked --bench pull -- "$@"
