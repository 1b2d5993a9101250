//! Makes untrusted names safe for messages and logs.

/// Maximum number of bytes of a name that are shown.
const SHOWN: usize = 200;

/// The name on one line. Characters that are special to a terminal or a log are escaped, as are bytes that are not
/// UTF-8. Long names are truncated.
pub(crate) fn printable(name: &[u8]) -> String {
    let mut text = String::new();
    for chunk in name[..name.len().min(SHOWN)].utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                // Messages put names in quotes.
                '"' => text.push_str("\\\""),
                '\'' => text.push('\''),
                // Also escapes bidirectional control characters.
                letter => text.extend(letter.escape_debug()),
            }
        }
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    if name.len() > SHOWN {
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_letters_comes_out() {
        assert_eq!(
            printable("usr/bin/\u{65e5}\u{672c} it's".as_bytes()),
            "usr/bin/\u{65e5}\u{672c} it's"
        );
        assert_eq!(
            printable(b"a\nINFO b\x1b[2J\0\r\x7f"),
            "a\\nINFO b\\u{1b}[2J\\0\\r\\u{7f}"
        );
        assert_eq!(
            printable("a\u{202e}b\u{85}\u{2028}".as_bytes()),
            "a\\u{202e}b\\u{85}\\u{2028}"
        );
        assert_eq!(printable(b"\xff\\x\"\xc3"), "\\xff\\\\x\\\"\\xc3");
        assert_eq!(printable(&[b'n'; 1 << 20]), "n".repeat(200) + "...");
        // The truncation splits a character.
        assert_eq!(
            printable("\u{65e5}".repeat(100).as_bytes()).matches('\u{65e5}').count(),
            66
        );
    }
}
