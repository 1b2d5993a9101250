//! What variables become.

use proptest::prelude::*;

use super::super::budget::Budget;
use super::super::lexer::{Lexer, Lookup, Quotes};
use super::*;

fn value(name: &str) -> Option<String> {
    let values = [
        ("PWD", "/home"),
        ("SHELL", "bash"),
        ("NULL", ""),
        ("PATH", "/usr/bin:/bin"),
        ("FILE", "a/b/c.tar.gz"),
        ("PORTS", "80 81/udp"),
        ("한", "국어"),
        ("X", "x"),
    ];
    values
        .iter()
        .find(|(own, _)| *own == name)
        .map(|(_, value)| value.to_string())
}

fn word(text: &str) -> Result<String, String> {
    let lexer = Lexer {
        escape: '\\',
        quotes: Quotes::Removed,
        keep_escapes: false,
        lookup: Lookup::Values(&value),
    };
    lexer.word(text, &mut Budget::default())
}

#[rstest]
#[case("hello", "hello")]
#[case("he'll'o", "hello")]
#[case(r"he\'llo", "he'llo")]
#[case(r"abc\tdef", "abctdef")]
#[case(r#""abc\tdef""#, r"abc\tdef")]
#[case(r#""abc\\tdef""#, r"abc\tdef")]
#[case(r"'abc\tdef'", r"abc\tdef")]
#[case(r"hello\", "hello")]
#[case(r"hello\\", r"hello\")]
#[case(r#""hel'lo""#, "hel'lo")]
#[case(r"'hello\'", r"hello\")]
#[case(r#""''""#, "''")]
#[case("$.", "$.")]
#[case("he$1x", "hex")]
#[case("he$PWD.", "he/home.")]
#[case("he$pwd.", "he.")]
#[case(r"he\$PWD", "he$PWD")]
#[case(r"he\\$PWD", r"he\/home")]
#[case(r#""he\$PWD""#, "he$PWD")]
#[case(r#""he'$PWD'""#, "he'/home'")]
#[case("'$PWD'", "$PWD")]
#[case(r"\${}", "${}")]
#[case("he${hi}xx", "hexx")]
#[case("he${PWD}x", "he/homex")]
#[case("he${XXX:-000}xx", "he000xx")]
#[case("he${PWD:-000}xx", "he/homexx")]
#[case("${NULL:-a}${NULL-b}", "a")]
#[case("he${XXX:-${YYY:-yyy}}xx", "heyyyxx")]
#[case("he${XXX:-$PWD}xx", "he/homexx")]
#[case("he${XXX:+${PWD}}xx", "hexx")]
#[case("he${PWD:+${SHELL}}xx", "hebashxx")]
#[case("${NULL:+a}${NULL+b}${NONE+c}", "b")]
#[case("he${PWD?}${NULL?}", "he/home")]
#[case(r"he${XXX:-\$PWD:}xx", "he$PWD:xx")]
#[case(r"he${XXX:-\${PWD}z}xx", "he${PWDz}xx")]
#[case("$한.안녕${한}", "국어.안녕국어")]
#[case("${aaa}}", "}")]
#[case("${aaa:-bbb {foo}", "bbb {foo")]
#[case("$@@@$*$#$?$-$$$!$0", "@@")]
#[case("${1:-a}${@:-b}$001x", "abx")]
#[case("${FILE#*/}", "b/c.tar.gz")]
#[case("${FILE##*/}", "c.tar.gz")]
#[case("${FILE%.*}", "a/b/c.tar")]
#[case("${FILE%%.*}", "a/b/c")]
#[case("${FILE%\".gz\"}", "a/b/c.tar")]
#[case("${FILE#$NONE}", "a/b/c.tar.gz")]
#[case(r"${FILE/\//-}", "a-b/c.tar.gz")]
#[case(r"${FILE//\//-}", "a-b-c.tar.gz")]
#[case("${PATH//bin/${X}}", "/usr/x:/x")]
#[case("${NONE#x}${NONE//a/b}", "")]
#[case("<<a <b <<", "<<a <b <<")]
fn words_become(#[case] text: &str, #[case] becomes: &str) {
    assert_eq!(word(text), Ok(becomes.to_owned()));
}

#[rstest]
#[case("he'llo", "a quote (') that does not end")]
#[case(r"he\\'llo", "a quote (') that does not end")]
#[case("\"hello", "a quote (\") that does not end")]
#[case(r#""hello\""#, "a quote (\") that does not end")]
#[case("${", "a ${ without }")]
#[case("${}", "a ${ without the name of a variable")]
#[case("${{a}", "a ${ without the name of a variable")]
#[case("${:-b}", "a ${ without the name of a variable")]
#[case("he${.}", "${.: no such form of a variable")]
#[case("he${PWD", "a ${ without }")]
#[case("he${PWD:=000}xx", "${PWD:=: no such form of a variable")]
#[case("he${XXX:YYY}", "${XXX:Y: no such form of a variable")]
#[case("${XXX?}", "XXX: is not allowed to be unset")]
#[case("${XXX:?}", "XXX: is not allowed to be empty")]
#[case("${NULL:?}", "NULL: is not allowed to be empty")]
#[case("${XXX?set $X}", "XXX: set x")]
#[case("${aaa:-bbb ${foo}", "a ${ without }")]
#[case("${PWD/a}", "a ${ without /")]
#[case("${PWD/a/b", "a ${ without }")]
#[case(r"${PWD#\a}", r"invalid escape in the pattern \a")]
fn what_is_no_word(#[case] text: &str, #[case] message: &str) {
    let error = word(text).unwrap_err();
    assert!(error.starts_with(message), "{error}");
}

/// The instruction with its variables replaced.
fn resolved(text: &str) -> Result<Instruction, String> {
    let file = file(&format!("FROM scratch\n{text}"));
    file.stages[0].steps[0].resolve(&value).map_err(|e| e.to_string())
}

#[rstest]
#[case("ENV A=\"$PWD b\" $X='$PWD'", "ENV A='/home b' x=\"\\$PWD\"")]
#[case("ENV A $PWD  \"b\" c", "ENV A='/home  b c'")]
#[case("LABEL \"a b\"=$PWD", "LABEL 'a b'=/home")]
#[case("EXPOSE $PORTS 9000-9002/udp", "EXPOSE 80 81/udp 9000/udp 9001/udp 9002/udp")]
#[case("EXPOSE $NONE", "EXPOSE $NONE")]
#[case("VOLUME $PWD/a [x]", "VOLUME /home/a [x]")]
#[case("USER ${NONE:-$SHELL}:$X", "USER bash:x")]
#[case("WORKDIR \"$PWD/a b\"", "WORKDIR '/home/a b'")]
#[case("STOPSIGNAL ${NONE:-SIGQUIT}", "STOPSIGNAL SIGQUIT")]
#[case("ARG A=$PWD B", "ARG A=/home B")]
#[case(
    "COPY --chown=$SHELL --chmod=${NONE:-755} --exclude=$X $X/a $PWD/",
    "COPY --chown=bash --chmod=755 --exclude=$X x/a /home/"
)]
#[case(
    "ADD --checksum=${NONE:-sha256:0000000000000000000000000000000000000000000000000000000000000000} http://$X /a",
    "ADD --checksum=sha256:0000000000000000000000000000000000000000000000000000000000000000 http://x /a"
)]
#[case("COPY <<a /x\n$X \"$X\" \\$X '$X' \\n\na", "COPY <<'a' /x\nx \"x\" $X 'x' n\na")]
#[case("COPY <<'a' /x\n$X \\$X\na", "COPY <<'a' /x\n$X \\$X\na")]
#[case("RUN echo $PWD", "RUN echo $PWD")]
#[case("CMD [\"$PWD\"]", "CMD [\"$PWD\"]")]
#[case("ENTRYPOINT $PWD", "ENTRYPOINT $PWD")]
#[case("SHELL [\"$SHELL\"]", "SHELL [\"$SHELL\"]")]
#[case("HEALTHCHECK CMD $X", "HEALTHCHECK CMD $X")]
#[case("ONBUILD USER $X", "ONBUILD USER $X")]
#[case("MAINTAINER $X", "MAINTAINER $X")]
fn instructions_become(#[case] text: &str, #[case] becomes: &str) {
    let becomes = match one(becomes) {
        // What is compared is written with quotes, too.
        Instruction::Expose(_) if becomes.ends_with("$NONE") => Instruction::Expose(vec![]),
        expected => {
            let file = file(&format!("FROM scratch\n{becomes}"));
            match expected {
                Instruction::Copy(_) => expected,
                _ => file.stages[0].steps[0].resolve(&|_| None).unwrap(),
            }
        }
    };
    let mut found = resolved(text).unwrap();
    if let Instruction::Copy(copy) = &mut found {
        for source in &mut copy.sources {
            if let Source::Heredoc(heredoc) = source {
                heredoc.expand = false;
            }
        }
    }
    assert_eq!(found, becomes);
}

#[test]
fn mounts_become() {
    match resolved("RUN --mount=type=cache,target=$PWD/c,id=$X,uid=${NONE:-5} $X").unwrap() {
        Instruction::Run(run) => {
            let mount = &run.mounts[0];
            assert_eq!(
                (mount.target.as_deref(), mount.id.as_deref()),
                (Some("/home/c"), Some("x"))
            );
            assert_eq!((mount.kind, mount.uid), (MountKind::Cache, Some(5)));
            assert_eq!(run.command, RunCommand::Command(shell("$X")));
        }
        other => panic!("{other:?}"),
    }
}

#[rstest]
#[case("ENV $NONE=1", "ENV requires key=value, and $NONE is no key")]
#[case("VOLUME $NONE", "VOLUME requires a path, and one is empty")]
#[case("EXPOSE $SHELL", "invalid port: bash")]
#[case("STOPSIGNAL $X", "invalid signal: x")]
#[case("COPY $X/../../y z", "invalid path: x/../../y")]
#[case("COPY --chmod=$X y z", "--chmod is a mode such as 755 or u=rwX,go=rX, not x")]
#[case("ADD --checksum=$X http://y z", "--checksum is sha256:")]
#[case("RUN --mount=type=$X,target=/y z", "--mount has no type x")]
#[case("RUN --mount=type=cache,target=$NONE z", "--mount=type=cache needs target=PATH")]
#[case("USER ${NONE:?no user}", "NONE: no user, in ${NONE:?no user}")]
#[case("COPY <<a /x\n${NONE?b}\na", "NONE: b, in the heredoc a")]
fn what_values_make_wrong(#[case] text: &str, #[case] message: &str) {
    let error = resolved(text).unwrap_err();
    let name = text.split(' ').next().unwrap();
    assert!(
        error.starts_with(&format!("Dripfile line 2 ({name}): {message}")),
        "{error}"
    );
}

#[test]
fn stages_and_globals_become() {
    let file = file("ARG A=$PWD\nFROM --platform=$X $SHELL:$NONE\nFROM $NONE\nFROM --platform=$NONE a");
    assert_eq!(
        file.resolve_global(&file.global_args[0], &value),
        Ok(Some("/home".into()))
    );
    let stage = |index: usize| {
        file.resolve_stage(&file.stages[index], &value)
            .map_err(|e| e.to_string())
    };
    assert_eq!(stage(0), Ok(("bash:".into(), Some("x".into()))));
    let error = "Dripfile line 3 (FROM): FROM requires an image, and $NONE is empty";
    assert_eq!(stage(1), Err(error.into()));
    let error = "Dripfile line 4 (FROM): --platform is empty: $NONE";
    assert_eq!(stage(2), Err(error.into()));
}

#[test]
fn defaults_of_args_may_be_wrong_where_they_are_not_used() {
    let file = file("FROM x\nARG A=${B?} C=\"d");
    let step = &file.stages[0].steps[0];
    assert!(step.resolve(&value).is_err());
    assert_eq!(step.resolve_default("$X", &value), Ok("x".into()));
}

#[test]
fn what_variables_add_is_bounded() {
    let long = "x".repeat(100_000);
    let resolve = |text: &str| {
        let file = file(&format!("FROM scratch\n{text}"));
        let resolved = file.stages[0].steps[0].resolve(&|_| Some(long.clone()));
        resolved.map_err(|e| e.to_string())
    };
    assert!(resolve("ENV A=$A").is_ok());
    let error = resolve("ENV A=$A$A").unwrap_err();
    assert!(error.contains("more than 131072 bytes"), "{error}");
    let error = resolve(&format!("COPY <<a /x\n{}\na", "$A".repeat(11))).unwrap_err();
    assert!(error.contains("longer than 1048576 bytes"), "{error}");
    let error = resolve(&format!("ENV A=${{A##{}y}}", "*x".repeat(1000))).unwrap_err();
    assert!(error.contains("take too long"), "{error}");
    let nul = file("FROM scratch\nENV A=$A").stages[0].steps[0].resolve(&|_| Some("\0".into()));
    assert!(nul.unwrap_err().to_string().contains("a value with NUL"));
}

/// Texts that are often nearly right.
fn text() -> impl Strategy<Value = String> {
    let pieces = [
        "FROM ",
        "RUN ",
        "COPY ",
        "ADD ",
        "ENV ",
        "ARG ",
        "LABEL ",
        "EXPOSE ",
        "VOLUME ",
        "ONBUILD ",
        "HEALTHCHECK ",
        "SHELL ",
        "STOPSIGNAL ",
        "USER ",
        "WORKDIR ",
        "CMD ",
        "ENTRYPOINT ",
        "# escape=`",
        "--mount=",
        "--from=",
        "--chmod=",
        "--interval=",
        "--exclude=",
        "type=cache,",
        "target=/a,",
        "size=",
        "<<EOF",
        "EOF",
        "<<-'A'",
        "\nA\n",
        "[\"a\"",
        ", \"b\"]",
        "$A",
        "${A",
        ":-",
        "#*",
        "%%",
        "//",
        "}",
        "\"",
        "'",
        "\\",
        "`",
        "\n",
        "\r\n",
        "\t",
        " ",
        "=",
        "AS x",
        "80-90/udp",
        "*",
        "**/",
        "[a-",
        "!",
        "ä",
        "\u{feff}",
        "1h",
        "CMD",
        "NONE",
    ];
    let piece = prop_oneof![
        8 => proptest::sample::select(pieces.to_vec()).prop_map(str::to_owned),
        1 => any::<String>(),
    ];
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

/// Everything that can be done with a text.
fn use_all(text: &str) {
    let _ = parse_trigger("x", text);
    let ignore = Ignore::parse(text.as_bytes()).unwrap_or_default();
    assert!(!ignore.skips(b"a/b") || ignore.is_ignored(b"a/b"));
    if let Ok(pattern) = Pattern::parse(text) {
        assert!(!pattern.matches(b"a/b") || pattern.depth() == 2);
    }
    let file = match parse("x", text.as_bytes()) {
        Ok(file) => file,
        Err(error) => return assert!(!error.to_string().contains(char::is_control), "{error:?}"),
    };
    for stage in &file.stages {
        let _ = file.resolve_stage(stage, &value);
        for step in &stage.steps {
            if let Err(error) = step.resolve(&value) {
                assert!(!error.to_string().contains(char::is_control), "{error:?}");
            }
        }
    }
}

proptest! {
    #[test]
    fn no_text_is_too_much(text in text()) {
        use_all(&text);
        use_all(&format!("FROM x\n{text}"));
    }

    /// What is checked without values is right with any values, but for what only values can make wrong.
    #[test]
    fn a_word_without_variables_is_checked_at_once(text in "[a-z \"'\\\\]{0,20}") {
        let checked = parse("x", format!("FROM x\nWORKDIR a{text}").as_bytes());
        let word = word(&format!("a{}", text.trim_end()));
        prop_assert_eq!(checked.is_ok(), word.is_ok());
    }
}
