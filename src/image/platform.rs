//! Platforms: selects the matching manifest of an index. Pure.

use std::fmt;

use super::index_entry::IndexEntry;
use super::printable::printable;

/// The platform of an image, in Go's naming, which the OCI image specification uses.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    /// Operating system, such as `linux`.
    pub os: String,
    /// Architecture, such as `amd64`.
    pub architecture: String,
    /// Variant of the architecture, such as `v7`; empty for any that runs here.
    pub variant: String,
}

impl Platform {
    /// The platform that this program was built for.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "aarch64" => ("arm64", ""),
            "x86" => ("386", ""),
            "arm" => ("arm", "v7"),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", ""),
            other => (other, ""),
        };
        Self {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: variant.into(),
        }
    }

    /// The platform that a client requested; `""` is the host's. `arch` may include a variant: `arm/v7`. Nothing is
    /// checked: an unknown platform simply has no image.
    pub fn parse(os: &str, arch: &str) -> Self {
        let mut platform = Self::host();
        if !os.is_empty() {
            os.clone_into(&mut platform.os);
        }
        if !arch.is_empty() {
            let (architecture, variant) = arch.split_once('/').unwrap_or((arch, ""));
            architecture.clone_into(&mut platform.architecture);
            variant.clone_into(&mut platform.variant);
        }
        platform
    }

    /// Whether an image with that platform is acceptable. An image without a platform is.
    pub fn accepts(&self, os: &str, architecture: &str) -> bool {
        (os.is_empty() || os == self.os) && (architecture.is_empty() || architecture == self.architecture)
    }

    /// Whether a host with this platform can run programs of another one: its own, and those of the 32-bit predecessor,
    /// which its kernel usually supports. An image without a platform is for any.
    pub fn runs(&self, os: &str, architecture: &str) -> bool {
        let older = match &self.architecture[..] {
            "amd64" => "386",
            "arm64" => "arm",
            own => own,
        };
        (os.is_empty() || os == self.os)
            && (architecture.is_empty() || architecture == self.architecture || architecture == older)
    }

    /// How well an entry matches: higher is better, `None` is no match.
    fn rank(&self, entry: &IndexEntry) -> Option<u32> {
        if !entry.may_be_image() {
            return None;
        }
        // An entry without a platform may be for any. It is tried last, and its configuration decides.
        let Some(platform) = &entry.platform else {
            return Some(0);
        };
        if platform.os != self.os || platform.architecture != self.architecture {
            return None;
        }
        let offered = level(&self.architecture, platform.variant.as_deref().unwrap_or_default());
        match level(&self.architecture, &self.variant) {
            wanted if offered == wanted => Some(1000),
            // The newest of the older variants: v7 runs v6 code, but not vice versa.
            wanted if offered < wanted => Some(1 + offered),
            _ if self.variant.is_empty() => Some(1),
            _ => None,
        }
    }
}

/// The platforms that the entries of an index are for, each once.
pub(super) fn offered(entries: &[IndexEntry]) -> Vec<String> {
    let images = entries.iter().filter(|entry| entry.may_be_image());
    let platforms = images.filter_map(|entry| entry.platform.as_ref());
    let known = platforms.filter(|platform| !matches!(&platform.os[..], "" | "unknown"));
    let mut names: Vec<String> = known
        .map(|platform| {
            let variant = platform.variant.clone().unwrap_or_default();
            let (os, architecture) = (platform.os.clone(), platform.architecture.clone());
            printable(
                Platform {
                    os,
                    architecture,
                    variant,
                }
                .to_string()
                .as_bytes(),
            )
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

/// A variant as a number. No variant is the baseline of the architecture: v8 for arm64, v7 for arm, v1 for amd64.
fn level(architecture: &str, variant: &str) -> u32 {
    let number = variant.strip_prefix('v').unwrap_or(variant);
    number.parse().ok().filter(|n| *n < 100).unwrap_or(match architecture {
        "arm64" => 8,
        "arm" => 7,
        "amd64" => 1,
        _ => 0,
    })
}

/// The best matching index entry; the first among equals. If no entry matches the platform, all entries without a
/// platform, in order: their configurations decide.
pub(super) fn choose<'a>(wanted: &Platform, entries: &'a [IndexEntry]) -> Vec<&'a IndexEntry> {
    let ranked: Vec<(u32, &IndexEntry)> = entries
        .iter()
        .filter_map(|e| wanted.rank(e).map(|rank| (rank, e)))
        .collect();
    let best = ranked
        .iter()
        .copied()
        .reduce(|best, next| if next.0 > best.0 { next } else { best });
    match best {
        Some((rank, entry)) if rank > 0 => vec![entry],
        _ => ranked.into_iter().map(|(_, entry)| entry).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(wanted: &Platform, offered: &[&str]) -> Option<usize> {
        let entries: Vec<IndexEntry> = offered
            .iter()
            .map(|text| {
                let mut parts = text.split('/').map(str::to_owned);
                let platform = (!text.is_empty()).then(|| super::super::index_entry::EntryPlatform {
                    os: parts.next().unwrap(),
                    architecture: parts.next().unwrap(),
                    variant: parts.next(),
                });
                IndexEntry {
                    digest: String::new(),
                    platform,
                    artifact_type: String::new(),
                    annotations: Default::default(),
                }
            })
            .collect();
        let found = *choose(wanted, &entries).first()?;
        entries.iter().position(|e| std::ptr::eq(e, found))
    }

    #[rstest::rstest]
    #[case("amd64", &["linux/arm64", "windows/amd64", "linux/amd64"], Some(2))]
    #[case("amd64", &["linux/amd64/v3", "linux/amd64"], Some(1))]
    #[case("amd64", &["linux/amd64", "linux/amd64"], Some(0))]
    #[case("arm/v7", &["linux/arm/v5", "linux/arm/v6", "linux/arm64"], Some(1))]
    #[case("arm/v6", &["linux/arm/v7", "linux/arm/v5"], Some(1))]
    #[case("arm/v6", &["linux/arm/v7"], None)]
    #[case("arm64", &["linux/arm/v8", "linux/arm64/v8"], Some(1))]
    #[case("arm64", &["unknown/unknown", "linux/amd64"], None)]
    #[case("amd64", &["", "linux/amd64"], Some(1))]
    #[case("amd64", &["", "linux/arm64"], Some(0))]
    #[case("amd64", &[], None)]
    fn the_best_variant_is_chosen(#[case] arch: &str, #[case] offered: &[&str], #[case] expected: Option<usize>) {
        assert_eq!(chosen(&Platform::parse("linux", arch), offered), expected);
    }

    #[test]
    fn a_host_runs_its_own_and_what_its_kernel_still_knows() {
        let host = Platform::parse("linux", "amd64");
        for (os, architecture, runs) in [
            ("linux", "amd64", true),
            ("linux", "386", true),
            ("", "", true),
            ("linux", "arm64", false),
            ("windows", "amd64", false),
        ] {
            assert_eq!(host.runs(os, architecture), runs, "{os}/{architecture}");
        }
        assert!(Platform::parse("linux", "arm64").runs("linux", "arm"));
    }

    #[test]
    fn empty_means_the_host() {
        assert_eq!(Platform::parse("", ""), Platform::host());
        assert_eq!(Platform::parse("", "arm/v7").to_string(), "linux/arm/v7");
    }
}
