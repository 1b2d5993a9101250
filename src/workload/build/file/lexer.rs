//! Variables, quotes and escapes within a word, by the rules of `BuildKit`'s shell lexer.
//!
//! `'…'` is as it is. In `"…"` variables are replaced, and the escape character keeps its meaning before `"`, `$` and
//! itself. Elsewhere it makes any character an ordinary one. A variable that is not set is empty.

use std::iter::Peekable;
use std::str::Chars;

use super::budget::Budget;
use super::limits::DEPTH;
use super::substitute::Glob;

/// The value of a variable, or `None` if it is not set.
pub type Vars<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// What quotes become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quotes {
    /// They do their work and vanish.
    Removed,
    /// They do their work and stay.
    Kept,
    /// They are ordinary characters: in a heredoc.
    Ordinary,
}

/// Where values come from.
#[derive(Clone, Copy)]
pub(super) enum Lookup<'a> {
    /// From here.
    Values(&'a Vars<'a>),
    /// Nowhere: variables stay as they are written.
    Written,
    /// Nowhere: only the syntax matters.
    Syntax,
}

/// How a text is read.
#[derive(Clone, Copy)]
pub(super) struct Lexer<'a> {
    pub escape: char,
    pub quotes: Quotes,
    /// Whether the escape character stays before what it has escaped.
    pub keep_escapes: bool,
    pub lookup: Lookup<'a>,
}

impl Lexer<'_> {
    /// The text with its variables replaced, as one word.
    pub(super) fn word(&self, text: &str, budget: &mut Budget) -> Result<String, String> {
        Ok(self.run(text, budget)?.text)
    }

    /// The text with its variables replaced, split at the blanks that are not quoted. Empty words are left out.
    pub(super) fn words(&self, text: &str, budget: &mut Budget) -> Result<Vec<String>, String> {
        let output = self.run(text, budget)?;
        let mut words = output.words;
        if !output.word.is_empty() {
            words.push(output.word);
        }
        Ok(words)
    }

    fn run(&self, text: &str, budget: &mut Budget) -> Result<Output, String> {
        let mut scan = Scan {
            lexer: self,
            keep_escapes: self.keep_escapes,
            text: text.chars().peekable(),
            budget,
            depth: 0,
        };
        scan.until(None)
    }
}

/// What has been read.
#[derive(Default)]
struct Output {
    text: String,
    words: Vec<String>,
    word: String,
}

impl Output {
    /// Characters at whose blanks words end.
    fn open(&mut self, text: &str) {
        self.text.push_str(text);
        for c in text.chars() {
            match c.is_whitespace() {
                false => self.word.push(c),
                true if self.word.is_empty() => {}
                true => self.words.push(std::mem::take(&mut self.word)),
            }
        }
    }

    fn quoted(&mut self, text: &str) {
        self.text.push_str(text);
        self.word.push_str(text);
    }

    fn quoted_char(&mut self, c: char) {
        self.text.push(c);
        self.word.push(c);
    }
}

struct Scan<'a> {
    lexer: &'a Lexer<'a>,
    keep_escapes: bool,
    text: Peekable<Chars<'a>>,
    budget: &'a mut Budget,
    depth: usize,
}

impl Scan<'_> {
    /// Reads up to `stop`, which is consumed, or to the end.
    fn until(&mut self, stop: Option<char>) -> Result<Output, String> {
        let mut output = Output::default();
        while let Some(c) = self.text.peek().copied() {
            match c {
                c if Some(c) == stop => {
                    self.text.next();
                    return Ok(output);
                }
                '\'' if self.lexer.quotes != Quotes::Ordinary => output.quoted(&self.single_quoted()?),
                '"' if self.lexer.quotes != Quotes::Ordinary => output.quoted(&self.double_quoted()?),
                '$' => output.open(&self.dollar()?),
                '<' => output.quoted(&self.heredoc_mark()),
                c if c == self.lexer.escape => {
                    self.text.next();
                    if self.keep_escapes {
                        output.quoted_char(c);
                    }
                    if let Some(escaped) = self.text.next() {
                        output.quoted_char(escaped);
                    }
                }
                c => {
                    self.text.next();
                    output.open(c.encode_utf8(&mut [0; 4]));
                }
            }
        }
        match stop {
            None => Ok(output),
            Some(stop) => Err(format!("a ${{ without {stop}")),
        }
    }

    fn single_quoted(&mut self) -> Result<String, String> {
        let mut quoted = String::new();
        self.push_quote(&mut quoted);
        while let Some(c) = self.text.peek().copied() {
            if c == '\'' {
                self.push_quote(&mut quoted);
                return Ok(quoted);
            }
            quoted.push(c);
            self.text.next();
        }
        Err("a quote (') that does not end".into())
    }

    fn double_quoted(&mut self) -> Result<String, String> {
        let mut quoted = String::new();
        self.push_quote(&mut quoted);
        while let Some(c) = self.text.peek().copied() {
            if c == '"' {
                self.push_quote(&mut quoted);
                return Ok(quoted);
            }
            if c == '$' {
                quoted.push_str(&self.dollar()?);
                continue;
            }
            self.text.next();
            if c != self.lexer.escape {
                quoted.push(c);
                continue;
            }
            match self.text.peek().copied() {
                None => {}
                Some(escaped) if escaped == '"' || escaped == '$' || escaped == self.lexer.escape => {
                    if self.keep_escapes {
                        quoted.push(c);
                    }
                    quoted.push(escaped);
                    self.text.next();
                }
                Some(_) => quoted.push(c),
            }
        }
        Err("a quote (\") that does not end".into())
    }

    fn push_quote(&mut self, quoted: &mut String) {
        let quote = self.text.next();
        if self.lexer.quotes == Quotes::Kept {
            quoted.extend(quote);
        }
    }

    /// `<<` and the blanks after it are one word with what follows.
    fn heredoc_mark(&mut self) -> String {
        let mut mark = String::new();
        mark.extend(self.text.next());
        if self.text.peek() == Some(&'<') {
            mark.extend(self.text.next());
            while let Some(blank) = self.text.next_if(|c| matches!(c, ' ' | '\t' | '\r')) {
                mark.push(blank);
            }
        }
        mark
    }

    fn dollar(&mut self) -> Result<String, String> {
        self.text.next();
        if self.text.next_if_eq(&'{').is_none() {
            let name = self.name();
            return match name.is_empty() {
                true => Ok("$".into()),
                false => self.plain(&name, &format!("${name}")),
            };
        }
        match self.text.peek() {
            None => return Err("a ${ without }".into()),
            Some('{' | '}' | ':') => return Err("a ${ without the name of a variable".into()),
            Some(_) => {}
        }
        let name = self.name();
        if self.depth == DEPTH {
            return Err(format!("variables are nested more than {DEPTH} deep"));
        }
        self.depth += 1;
        let value = match self.text.next() {
            None => Err("a ${ without }".into()),
            Some('}') => self.plain(&name, &format!("${{{name}}}")),
            Some('/') => self.replaced(&name),
            Some(first) => self.modified(&name, first),
        };
        self.depth -= 1;
        value
    }

    fn plain(&mut self, name: &str, written: &str) -> Result<String, String> {
        match self.lexer.lookup {
            Lookup::Written => Ok(written.to_owned()),
            _ => Ok(self.value(name)?.unwrap_or_default()),
        }
    }

    fn value(&mut self, name: &str) -> Result<Option<String>, String> {
        let Lookup::Values(values) = self.lexer.lookup else {
            return Ok(None);
        };
        let value = values(name);
        self.budget.produced(value.as_ref().map_or(0, String::len))?;
        Ok(value)
    }

    /// Letters, digits and `_`; digits only if the first is one; or one of the shell's special parameters.
    fn name(&mut self) -> String {
        let mut name = String::new();
        match self.text.peek() {
            Some(c) if c.is_numeric() => {
                while let Some(digit) = self.text.next_if(|c| c.is_numeric()) {
                    name.push(digit);
                }
            }
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => name.extend(self.text.next()),
            _ => {
                while let Some(c) = self.text.next_if(|c| c.is_alphanumeric() || *c == '_') {
                    name.push(c);
                }
            }
        }
        name
    }

    /// `${x:-word}` and its like. `first` follows the name.
    fn modified(&mut self, name: &str, first: char) -> Result<String, String> {
        let colon = first == ':';
        let operator = match colon {
            true => self.text.next().ok_or("a ${ without }")?,
            false => first,
        };
        let is_pattern = matches!(operator, '#' | '%');
        let written = if colon {
            format!(":{operator}")
        } else {
            operator.to_string()
        };
        if !matches!(operator, '-' | '+' | '?' | '#' | '%') || colon && is_pattern {
            let known = "${x:-y}, ${x-y}, ${x:+y}, ${x+y}, ${x:?y}, ${x?y}, ${x#y}, ${x%y}, ${x/y/z}";
            let written = written.escape_debug();
            return Err(format!(
                "${{{name}{written}: no such form of a variable; there are {known}"
            ));
        }
        let word = self.nested('}', is_pattern)?;
        let value = match self.lexer.lookup {
            Lookup::Written => return Ok(format!("${{{name}{written}{word}}}")),
            Lookup::Syntax if operator == '?' => return Ok(String::new()),
            _ => self.value(name)?,
        };
        let set = value.filter(|value| !(colon && value.is_empty()));
        match operator {
            '-' => Ok(set.unwrap_or(word)),
            '+' => Ok(set.map(|_| word).unwrap_or_default()),
            '?' => set.ok_or_else(|| match word.is_empty() {
                true if colon => format!("{name}: is not allowed to be empty"),
                true => format!("{name}: is not allowed to be unset"),
                false => format!("{name}: {}", super::error::shown(&word)),
            }),
            side => {
                let longest = word.starts_with(side);
                let glob = Glob::parse(if longest { &word[1..] } else { &word })?;
                let set = set.unwrap_or_default();
                match side {
                    '#' => glob.without_prefix(&set, longest, self.budget),
                    _ => glob.without_suffix(&set, longest, self.budget),
                }
            }
        }
    }

    /// `${x/pattern/text}` and `${x//pattern/text}`, from the second `/` on.
    fn replaced(&mut self, name: &str) -> Result<String, String> {
        let all = self.text.next_if_eq(&'/').is_some();
        let pattern = self.nested('/', true)?;
        let text = self.nested('}', true)?;
        if let Lookup::Written = self.lexer.lookup {
            let slash = if all { "//" } else { "/" };
            return Ok(format!("${{{name}{slash}{pattern}/{text}}}"));
        }
        let glob = Glob::parse(&pattern)?;
        let value = self.value(name)?.unwrap_or_default();
        let replaced = glob.replace(&value, &text, all, self.budget)?;
        self.budget.produced(replaced.len())?;
        Ok(replaced)
    }

    fn nested(&mut self, stop: char, keep_escapes: bool) -> Result<String, String> {
        let kept = std::mem::replace(&mut self.keep_escapes, keep_escapes);
        let output = self.until(Some(stop));
        self.keep_escapes = kept;
        Ok(output?.text)
    }
}
