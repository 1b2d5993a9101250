//! The syntax of names; resolving them is done elsewhere. Pure.

/// Prefix of the names of infra containers; clients may not use it.
pub const INFRA_PREFIX: &str = "condenser-pod-infra-";
/// Maximum length of the names of containers, services and manifest objects.
pub const MAX_NAME: usize = 128;
/// Names that collide with a route.
const RESERVED: &[&str] = &["stats", "prune"];
/// Names that the kernel reserves for parameters of all interfaces.
const ALL_INTERFACES: &[&str] = &["all", "default"];

/// The syntax common to all names: `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, up to `most` characters.
pub fn is_name(text: &str, most: usize) -> bool {
    text.len() <= most
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// Whether a client may give a container this name: it is not reserved.
pub fn is_container_name(text: &str) -> bool {
    is_name(text, MAX_NAME) && !RESERVED.contains(&text) && !text.starts_with(INFRA_PREFIX)
}

/// The name of a network is also that of its bridge (`docs/spec/network.md` N-18).
pub fn is_network_name(text: &str) -> bool {
    is_name(text, 15) && !ALL_INTERFACES.contains(&text)
}

/// A container id: 12 characters of the ULID alphabet, in lower case.
pub fn is_container_id(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(is_of_ulid)
}

/// A ULID in lower case, such as the id of a pod.
pub fn is_ulid(text: &str) -> bool {
    text.len() == 26 && text.bytes().all(is_of_ulid)
}

/// RFC 1123: labels of letters, digits and hyphens, separated by dots; at most 63 characters, the kernel's limit.
pub fn is_host_name(text: &str) -> bool {
    let is_label = |label: &str| {
        label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 63 && text.split('.').all(is_label)
}

fn is_of_ulid(b: u8) -> bool {
    b.is_ascii_digit() || (b.is_ascii_lowercase() && !b"ilou".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_grammar() {
        for good in ["a", "web", "Web_1.x-y", "0", &"n".repeat(128)] {
            assert!(is_container_name(good), "{good}");
        }
        for bad in [
            "",
            "-a",
            ".a",
            "a b",
            "a/b",
            "é",
            "stats",
            "condenser-pod-infra-1",
            &"n".repeat(129),
        ] {
            assert!(!is_container_name(bad), "{bad}");
        }
    }

    #[test]
    fn ids_follow_the_grammar() {
        assert!(is_container_id("01m856fs771d") && !is_container_id("01m856fs771") && !is_container_id("01M856FS771D"));
        let ulid = "01m85d7b3jwrme4n5rva5tfyap";
        assert!(is_ulid(ulid) && !is_ulid(&ulid[1..]) && !is_ulid(&ulid.replace('m', "l")));
    }

    #[test]
    fn host_names_follow_the_grammar() {
        for good in ["web", "a-b.c", "1", &"n".repeat(63)] {
            assert!(is_host_name(good), "{good}");
        }
        for bad in ["", "-a", "a-", "a..b", "a_b", &"n".repeat(64)] {
            assert!(!is_host_name(bad), "{bad}");
        }
    }
}
