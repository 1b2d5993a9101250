//! `sha256:<64 hex>`, the only digest algorithm that registries use and this store keeps.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

/// A SHA-256 content digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Digest([u8; 32]);

/// The text is not a digest.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a digest of the form sha256:<64 lower-case hex digits>")]
pub(crate) struct NotADigest(String);

impl Digest {
    /// The digest of `data`.
    pub(crate) fn of(data: &[u8]) -> Self {
        Self(Sha256::digest(data).into())
    }

    /// The digest of everything that was fed to `hasher`.
    pub(crate) fn finish(hasher: Sha256) -> Self {
        Self(hasher.finalize().into())
    }

    /// The hexadecimal part.
    pub(crate) fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The first 55 bits in lower-case Crockford base32: 11 characters.
    ///
    /// Short enough that 127 paths fit into one mount option. Two digests with the same prefix can be found, so users
    /// of this must compare the whole digest as well.
    pub(crate) fn short(&self) -> String {
        const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        let bits = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        (0..11)
            .map(|n| char::from(ALPHABET[(bits >> (59 - 5 * n)) as usize & 31]))
            .collect()
    }
}

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let hex = text.strip_prefix("sha256:").unwrap_or_default();
        let mut bytes = [0; 32];
        // `hex` also accepts upper case, which would give one object two names.
        if hex.bytes().any(|b| b.is_ascii_uppercase()) || hex::decode_to_slice(hex, &mut bytes).is_err() {
            return Err(NotADigest(text.to_owned()));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let digest = Digest::of(b"abc");
        let text = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse::<Digest>().unwrap(), digest);
    }

    #[test]
    fn anything_else_is_refused() {
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        for text in [
            hex.to_owned(),
            format!("sha256:{}", hex.to_uppercase()),
            format!("sha256:{hex}00"),
            format!("sha256:{}", &hex[1..]),
            format!("sha512:{hex}{hex}"),
            "sha256:../../../../../../../../../../../../../../../../../../../../etc".into(),
            String::new(),
        ] {
            text.parse::<Digest>().unwrap_err();
        }
    }

    #[test]
    fn the_short_name_is_the_first_55_bits() {
        let zero: Digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
        assert_eq!(zero.short(), "00000000000");
        let one: Digest = format!("sha256:{}{}", "f".repeat(13), "0".repeat(51)).parse().unwrap();
        assert_eq!(one.short(), "zzzzzzzzzzr", "52 ones and three zeros");
    }
}
