//! The language as a whole.

use std::time::Duration;

use rstest::rstest;

use super::*;

mod variables;

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| word.to_string()).collect()
}

fn file(text: &str) -> BuildFile {
    parse("Dripfile", text.as_bytes()).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// The instructions after a `FROM`.
fn steps(text: &str) -> Vec<Instruction> {
    let mut file = file(&format!("FROM scratch\n{text}"));
    let steps = file.stages.remove(0).steps.into_iter();
    steps.map(|step| step.instruction).collect()
}

/// The only instruction after a `FROM`.
fn one(text: &str) -> Instruction {
    let mut steps = steps(text);
    assert_eq!(steps.len(), 1, "{text}: {steps:?}");
    steps.remove(0)
}

fn shell(line: &str) -> Command {
    Command::Shell(line.into())
}

fn run(text: &str) -> Run {
    match one(text) {
        Instruction::Run(run) => *run,
        other => panic!("{other:?}"),
    }
}

fn copy(text: &str) -> Copy {
    match one(text) {
        Instruction::Copy(copy) => *copy,
        other => panic!("{other:?}"),
    }
}

/// Pairs of `ENV` or `LABEL`.
fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
}

#[test]
fn a_whole_file() {
    let text = "\u{feff}# syntax=docker/dockerfile:1\r\n# a comment\r\n\r\nARG VERSION=1 EMPTY\r\n\
                from --platform=$BUILDPLATFORM busybox:$VERSION AS Build.1\r\nENV A=1 B=two\nworkdir /app\n\
                FROM build.1\nCOPY --from=BUILD.1 a b\n";
    let file = file(text);
    assert_eq!((file.escape, &file.name[..]), ('\\', "Dripfile"));
    let globals: Vec<_> = file
        .global_args
        .iter()
        .map(|global| (global.line, &global.arg.name[..], global.arg.default.as_deref()))
        .collect();
    assert_eq!(globals, [(4, "VERSION", Some("1")), (4, "EMPTY", None)]);
    let stages: Vec<_> = file
        .stages
        .iter()
        .map(|stage| {
            (
                stage.line,
                &stage.base[..],
                stage.platform.as_deref(),
                stage.name.as_deref(),
            )
        })
        .collect();
    let first = (5, "busybox:$VERSION", Some("$BUILDPLATFORM"), Some("build.1"));
    assert_eq!(stages, [first, (8, "build.1", None, None)]);
    assert_eq!(
        file.stages[0].text,
        "from --platform=$BUILDPLATFORM busybox:$VERSION AS Build.1"
    );
    let texts: Vec<_> = file.stages[0]
        .steps
        .iter()
        .map(|step| (step.line, &step.text[..]))
        .collect();
    assert_eq!(texts, [(6, "ENV A=1 B=two"), (7, "workdir /app")]);
    // Names without case, numbers, and only stages before.
    for (name, before, stage) in [
        ("Build.1", 1, Some(0)),
        ("0", 1, Some(0)),
        ("1", 1, None),
        ("1", 2, Some(1)),
        ("build.1", 0, None),
        ("busybox", 2, None),
    ] {
        assert_eq!(file.stage(name, before), stage, "{name} {before}");
    }
}

#[rstest]
#[case("RUN a\\\nb", "ab")]
#[case("RUN a \\\n  b", "a   b")]
#[case("RUN a \\ \t\n b", "a  b")]
#[case("RUN a \\\n# x \\\n\n   # y\n\t\nb", "a b")]
#[case("RUN a\\\\\nUSER b", "a\\\\")]
#[case("RUN a \\", "a")]
#[case("  \t RUN  a", "a")]
#[case("\\\nRUN a", "a")]
#[case("RUN a # b", "a # b")]
#[case("RUN a\\\r\nb\r\n", "ab")]
#[case("RUN echo \\\n\\\nb", "echo b")]
fn lines_are_joined_as_they_are(#[case] text: &str, #[case] line: &str) {
    let steps = steps(text);
    match &steps[0] {
        Instruction::Run(run) => assert_eq!(run.command, RunCommand::Command(shell(line))),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_escape_character_can_be_a_backtick() {
    let text = "#escape = `\nFROM scratch\nRUN dir C:\\\nENV A=C:\\x B=`$y\nRUN a `\n  b\n";
    let file = file(text);
    assert_eq!(file.escape, '`');
    let texts: Vec<_> = file.stages[0].steps.iter().map(|step| &step.text[..]).collect();
    assert_eq!(texts, ["RUN dir C:\\", "ENV A=C:\\x B=`$y", "RUN a   b"]);
    let resolved = file.stages[0].steps[1].resolve(&|_| Some("z".into())).unwrap();
    assert_eq!(resolved, Instruction::Env(pairs(&[("A", "C:\\x"), ("B", "$y")])));
}

#[rstest]
#[case("# x\n# escape=`\n")]
#[case("\n# escape=`\n")]
#[case("# unknown=1\n# escape=`\n")]
fn a_directive_after_anything_else_is_a_comment(#[case] beginning: &str) {
    assert_eq!(file(&format!("{beginning}FROM x")).escape, '\\');
}

#[rstest]
#[case("RUN echo  'a  b' && true", RunCommand::Command(shell("echo  'a  b' && true")))]
#[case("RUN [\"/bin/true\", \"a b\"]", RunCommand::Command(Command::Exec(strings(&["/bin/true", "a b"]))))]
#[case("RUN [ -d x ] && true", RunCommand::Command(shell("[ -d x ] && true")))]
#[case("RUN ['a']", RunCommand::Command(shell("['a']")))]
#[case("RUN [\"a\"] # c", RunCommand::Command(shell("[\"a\"] # c")))]
#[case("RUN [", RunCommand::Command(shell("[")))]
#[case("RUN $A '${B'", RunCommand::Command(shell("$A '${B'")))]
#[case(
    "RUN <<EOF\necho a\n\n# b\n  c\nEOF",
    RunCommand::Command(shell("echo a\n\n# b\n  c\n"))
)]
#[case("RUN <<-EOF\n\t\techo a\n\tEOF", RunCommand::Command(shell("echo a\n")))]
#[case("RUN << EOF\na\nEOF", RunCommand::Command(shell("a\n")))]
#[case("RUN <<EOF\r\na\r\nEOF\r\n", RunCommand::Command(shell("a\r\n")))]
#[case("RUN 3<<E\na\nE", RunCommand::Command(shell("a\n")))]
#[case("RUN cat <<EOF > /x\n$a\nEOF", RunCommand::Command(shell("cat <<EOF > /x\n$a\nEOF")))]
#[case(
    "RUN cat <<-A <<'B'\n\ta\n\tA\nb\nB",
    RunCommand::Command(shell("cat <<-A <<'B'\n\ta\nA\nb\nB"))
)]
#[case("RUN cat <<<\"x\" y", RunCommand::Command(shell("cat <<<\"x\" y")))]
#[case("RUN [\"cat\", \"<<EOF\"]", RunCommand::Command(Command::Exec(strings(&["cat", "<<EOF"]))))]
fn what_is_run(#[case] text: &str, #[case] command: RunCommand) {
    assert_eq!(run(text).command, command);
}

#[test]
fn a_heredoc_with_an_interpreter_is_a_program() {
    let run = run("RUN --mount=type=cache,target=/c <<\"EOF\"\n#!/usr/bin/env python3\nprint()\nEOF\n");
    let script = Heredoc {
        name: "EOF".into(),
        content: "#!/usr/bin/env python3\nprint()\n".into(),
        expand: false,
    };
    assert_eq!(run.command, RunCommand::Script(script));
    assert_eq!(run.mounts.len(), 1);
}

#[test]
fn flags_of_run() {
    let found =
        run("RUN --mount=type=cache,target=/a --mount=type=tmpfs,target=/b --network=none --security=insecure x");
    let kinds: Vec<_> = found.mounts.iter().map(|mount| mount.kind).collect();
    assert_eq!(kinds, [MountKind::Cache, MountKind::Tmpfs]);
    assert_eq!(
        (found.network, found.security),
        (RunNetwork::None, RunSecurity::Insecure)
    );
    let found = run("RUN -- --network=none");
    assert_eq!(found.command, RunCommand::Command(shell("--network=none")));
    assert_eq!(
        (found.network, found.security),
        (RunNetwork::Default, RunSecurity::Sandbox)
    );
}

#[rstest]
#[case("CMD a b", Instruction::Cmd(shell("a b")))]
#[case("CMD []", Instruction::Cmd(Command::Exec(vec![])))]
#[case("CMD ['a']", Instruction::Cmd(shell("['a']")))]
#[case("CMD [\"a\"] # c", Instruction::Cmd(shell("[\"a\"] # c")))]
#[case("CMD [\"a\\u0062\", \"\"]", Instruction::Cmd(Command::Exec(strings(&["ab", ""]))))]
#[case("ENTRYPOINT exec x", Instruction::Entrypoint(shell("exec x")))]
#[case("entrypoint [\"\"]", Instruction::Entrypoint(Command::Exec(strings(&[""]))))]
#[case("ENTRYPOINT []", Instruction::Entrypoint(Command::Exec(vec![])))]
#[case("ENV A=1 B=\"x y\" C='$z'", Instruction::Env(pairs(&[("A", "1"), ("B", "\"x y\""), ("C", "'$z'")])))]
#[case("ENV A b C d", Instruction::Env(pairs(&[("A", "b C d")])))]
#[case("ENV A  \"b\"   c ", Instruction::Env(pairs(&[("A", "\"b\"   c")])))]
#[case("ENV A b=c", Instruction::Env(pairs(&[("A", "b=c")])))]
#[case("ENV A= B==x", Instruction::Env(pairs(&[("A", ""), ("B", "=x")])))]
#[case("ENV X \\\n 1", Instruction::Env(pairs(&[("X", "1")])))]
#[case("ENV A=b\\ c", Instruction::Env(pairs(&[("A", "b\\ c")])))]
#[case("LABEL a=b \"c.d\"=\"e f\"", Instruction::Label(pairs(&[("a", "b"), ("\"c.d\"", "\"e f\"")])))]
#[case("LABEL a b c", Instruction::Label(pairs(&[("a", "b c")])))]
#[case("EXPOSE 80 443/udp $P", Instruction::Expose(strings(&["80", "443/udp", "$P"])))]
#[case("VOLUME /a /b", Instruction::Volume(strings(&["/a", "/b"])))]
#[case("VOLUME [\"/a b\", \" /c \"]", Instruction::Volume(strings(&["/a b", "/c"])))]
#[case("USER a:b", Instruction::User("a:b".into()))]
#[case("WORKDIR \"/a b\"", Instruction::Workdir("\"/a b\"".into()))]
#[case("SHELL [\"/bin/ash\", \"-c\"]", Instruction::Shell(strings(&["/bin/ash", "-c"])))]
#[case("STOPSIGNAL SIGQUIT", Instruction::StopSignal("SIGQUIT".into()))]
#[case("MAINTAINER A B <a@b>", Instruction::Maintainer("A B <a@b>".into()))]
#[case("HEALTHCHECK NONE", Instruction::HealthCheck(HealthCheck::None))]
#[case("ONBUILD  COPY . /x", Instruction::OnBuild("COPY . /x".into()))]
#[case("ONBUILD RUN <<A\nx\nA", Instruction::OnBuild("RUN <<A\nx\nA".into()))]
fn other_instructions(#[case] text: &str, #[case] instruction: Instruction) {
    assert_eq!(one(text), instruction);
}

#[test]
fn several_args_in_one_line() {
    let arg = |name: &str, default: Option<&str>| Arg {
        name: name.into(),
        default: default.map(str::to_owned),
    };
    let args = vec![arg("A", None), arg("B", Some("")), arg("C", Some("\"x y\""))];
    assert_eq!(one("ARG A B= C=\"x y\""), Instruction::Arg(args));
}

#[test]
fn a_health_check() {
    let text = "HEALTHCHECK --interval=30s --timeout=1m --start-period=5s --start-interval=500ms --retries=3 cmd [\"a\", \"b\"]";
    let test = Test {
        command: Command::Exec(strings(&["a", "b"])),
        interval: Some(Duration::from_secs(30)),
        timeout: Some(Duration::from_secs(60)),
        start_period: Some(Duration::from_secs(5)),
        start_interval: Some(Duration::from_millis(500)),
        retries: Some(3),
    };
    assert_eq!(one(text), Instruction::HealthCheck(HealthCheck::Test(test)));
    match one("HEALTHCHECK --retries=0 CMD wget $X || exit 1") {
        Instruction::HealthCheck(HealthCheck::Test(test)) => {
            assert_eq!((test.command, test.retries), (shell("wget $X || exit 1"), None));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn copies() {
    let found = copy("COPY --from=Build --chown=1:2 --chmod=644 --link --parents --exclude=*.o --exclude=b a c/ /d/");
    let path = |path: &str| Source::Path(path.into());
    assert_eq!(found.sources, [path("a"), path("c/")]);
    assert_eq!(found.destination, "/d/");
    assert_eq!(found.from.as_deref(), Some("Build"));
    assert_eq!(
        (found.chown.as_deref(), found.chmod.as_deref()),
        (Some("1:2"), Some("644"))
    );
    assert!(found.link && found.parents && !found.is_add);
    assert_eq!(found.exclude, ["*.o", "b"]);

    let digest = format!("sha256:{}", "0".repeat(64));
    let found = copy(&format!(
        "ADD --checksum={digest} --keep-git-dir --unpack=false --link=false https://a/b /c"
    ));
    assert!(found.is_add && found.keep_git_dir && !found.link);
    assert_eq!((found.checksum, found.unpack), (Some(digest), Some(false)));

    let found = copy("COPY [\"a b\", \"c\", \"/d e\"]");
    assert_eq!(
        (found.sources, &found.destination[..]),
        (vec![path("a b"), path("c")], "/d e")
    );

    let found = copy("COPY a <<EOF <<-'b.txt' /x/\n$v \"q\"\nEOF\n\tc\n\tb.txt");
    let heredoc = |name: &str, content: &str, expand| {
        Source::Heredoc(Heredoc {
            name: name.into(),
            content: content.into(),
            expand,
        })
    };
    let sources = [
        path("a"),
        heredoc("EOF", "$v \"q\"\n", true),
        heredoc("b.txt", "c\n", false),
    ];
    assert_eq!(found.sources, sources);
}

/// Errors of a whole file.
#[rstest]
#[case("", "Dripfile: missing FROM instruction")]
#[case("# only a comment", "Dripfile: missing FROM instruction")]
#[case("ARG A", "Dripfile: missing FROM instruction")]
#[case("ENV A=1\n", "Dripfile line 1 (ENV): missing FROM instruction")]
#[case("\n\nCOPY a b\nFROM x", "Dripfile line 3 (COPY): missing FROM instruction")]
#[case("FROM", "Dripfile line 1 (FROM): FROM requires an image")]
#[case("FROM \\\n", "Dripfile line 1 (FROM): FROM requires an image")]
#[case("FROM a b", "Dripfile line 1 (FROM): FROM requires an image, or an image AS a name")]
#[case("FROM a AS 1x", "Dripfile line 1 (FROM): invalid name of a stage: 1x")]
#[case("FROM a AS ä", "Dripfile line 1 (FROM): invalid name of a stage: ä")]
#[case(
    "FROM --platfrom=x a",
    "Dripfile line 1 (FROM): unknown flag: --platfrom; did you mean --platform?"
)]
#[case("FROM ${", "Dripfile line 1 (FROM): a ${ without }")]
#[case("FROM ''", "Dripfile line 1 (FROM): FROM requires an image")]
#[case(
    "FROM x\nEXPOS 80\n",
    "Dripfile line 2: unsupported instruction: EXPOS; did you mean EXPOSE?"
)]
#[case(
    "FROM x\n\n# c\nRUN a \\\n b\nfrobnicate",
    "Dripfile line 6: unsupported instruction: FROBNICATE"
)]
#[case("# escape=x\nFROM x", "Dripfile line 1: the directive escape is \\ or `, not x")]
#[case("# escape=`\n# escape=`\nFROM x", "Dripfile line 2: a second directive escape")]
#[case("FROM x\nRUN <<EOF\na\n", "Dripfile line 2: the heredoc EOF does not end")]
#[case(
    "FROM x\nUSER\u{1b}[1m a",
    "Dripfile line 2: unsupported instruction: USER\\u{1b}[1M"
)]
fn what_is_no_build_file(#[case] text: &str, #[case] message: &str) {
    let error = parse("Dripfile", text.as_bytes()).unwrap_err().to_string();
    assert!(error.starts_with(message), "{error}");
}

/// Errors of an instruction in line 2.
#[rstest]
#[case("COPY a", "COPY/ADD requires src and dest")]
#[case("ADD", "COPY/ADD requires src and dest")]
#[case("COPY [\"a\"]", "COPY/ADD requires src and dest")]
#[case("COPY a <<EOF\nb\nEOF", "COPY/ADD requires src and dest, and a heredoc is no dest")]
#[case(
    "COPY ../../etc/passwd /p",
    "invalid path: ../../etc/passwd; it leaves the build context"
)]
#[case("COPY a/../../b /p", "invalid path: a/../../b")]
#[case("ADD /../b /p", "invalid path: /../b")]
#[case("COPY --from=$X a b", "--from has no variables")]
#[case("COPY --chown a b", "the flag --chown needs a value")]
#[case("COPY --checksum=x a b", "unknown flag: --checksum")]
#[case("COPY --chmod=9 a b", "--chmod is a mode such as 755")]
#[case("COPY --exclude=[a a b", "--exclude: [a: not a valid pattern")]
#[case("ADD --checksum=md5:1 http://a b", "--checksum is sha256: and 64 hexadecimal digits")]
#[case("ADD --form=x a b", "unknown flag: --form")]
#[case("WORKDIR", "WORKDIR requires path")]
#[case("ENV", "ENV requires key=value")]
#[case("ENV A=1 B", "ENV requires key=value, not B")]
#[case("ENV =1", "ENV requires key=value")]
#[case("ENV ''=1", "ENV requires key=value")]
#[case("ENV A", "ENV requires key value")]
#[case("ENV A=\"b", "a quote (\") that does not end, in \"b")]
#[case("ENV A='b", "a quote (') that does not end, in 'b")]
#[case("LABEL a", "LABEL requires key value")]
#[case("ENV A=${B", "a ${ without }, in ${B")]
#[case("ENV A=${}", "a ${ without the name of a variable")]
#[case("ENV A=${B!x}", "${B!: no such form of a variable")]
#[case("ENV A=${B:#x}", "${B:#: no such form of a variable")]
#[case("RUN", "RUN requires command")]
#[case("RUN []", "command is empty")]
#[case("RUN [\"\"]", "command is empty")]
#[case("CMD", "command is empty")]
#[case("CMD [1]", "invalid exec form: a JSON list of words has only strings, not 1")]
#[case(
    "RUN [\"a\", null]",
    "invalid exec form: a JSON list of words has only strings, not null"
)]
#[case("RUN [\"\\u0000\"]", "the build file is not UTF-8 text without NUL")]
#[case("CMD --x a", "unknown flag: --x; this instruction has no flags")]
#[case("RUN --network=x a", "--network is default, none or host, not x")]
#[case("RUN --security=x a", "--security is sandbox or insecure, not x")]
#[case("RUN --mount=type=cache a", "--mount=type=cache needs target=PATH")]
#[case("RUN --mont=type=cache a", "unknown flag: --mont; did you mean --mount?")]
#[case("EXPOSE", "EXPOSE requires a port")]
#[case("EXPOSE http", "invalid port: http")]
#[case("EXPOSE 1-65535 1-65535 1-65535 1-65535", "EXPOSE has more ports than there are")]
#[case("VOLUME", "VOLUME requires a path")]
#[case("VOLUME []", "VOLUME requires a path")]
#[case("VOLUME [\"\"]", "VOLUME requires a path")]
#[case("USER", "USER requires a user")]
#[case("SHELL bash", "SHELL requires a JSON list of words")]
#[case("SHELL []", "SHELL requires a JSON list of words")]
#[case("STOPSIGNAL SIGFOO", "invalid signal: SIGFOO")]
#[case("HEALTHCHECK", "HEALTHCHECK requires CMD and a command, or NONE")]
#[case("HEALTHCHECK wget x", "HEALTHCHECK requires CMD and a command, or NONE, not wget")]
#[case("HEALTHCHECK CMD", "HEALTHCHECK CMD requires a command")]
#[case("HEALTHCHECK CMD []", "command is empty")]
#[case("HEALTHCHECK NONE x", "HEALTHCHECK NONE has no arguments")]
#[case("HEALTHCHECK --interval=3 CMD x", "--interval is a time such as 30s or 1m30s, not 3")]
#[case("HEALTHCHECK --retries=-1 CMD x", "--retries is a number, not -1")]
#[case("ONBUILD", "ONBUILD requires an instruction")]
#[case("ONBUILD ONBUILD RUN x", "ONBUILD cannot be an instruction of ONBUILD")]
#[case("ONBUILD from x", "FROM cannot be an instruction of ONBUILD")]
#[case("ONBUILD COPY a", "COPY/ADD requires src and dest")]
#[case("ARG", "ARG requires a name")]
#[case("ARG =x", "ARG requires a name before =x")]
#[case("MAINTAINER", "MAINTAINER requires a name")]
fn what_is_no_instruction(#[case] text: &str, #[case] message: &str) {
    let error = parse("a/Dripfile", format!("FROM x\n{text}").as_bytes()).unwrap_err();
    assert_eq!((&error.file[..], error.line), ("a/Dripfile", 2));
    let name = text.split_whitespace().next().unwrap().to_ascii_uppercase();
    let expected = format!("a/Dripfile line 2 ({name}): {message}");
    assert!(error.to_string().starts_with(&expected), "{error}");
}

#[test]
fn bytes_that_are_no_text() {
    for bytes in [&b"FROM \xff"[..], b"FROM a\0b"] {
        let error = parse("D", bytes).unwrap_err().to_string();
        assert_eq!(error, "D: the build file is not UTF-8 text without NUL");
    }
}

#[test]
fn sizes_are_bounded() {
    let refused = |text: String, message: &str| {
        let error = parse("D", text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    };
    refused("#".repeat((1 << 20) + 1), "it is longer than 1048576 bytes");
    refused("FROM x\n".repeat(257), "there are more than 256 stages");
    refused(
        format!("FROM x\n{}", "USER a\n".repeat(4096)),
        "there are more than 4096 instructions",
    );
    refused(format!("FROM {}x", "${a:-".repeat(100)), "nested more than 32 deep");
    assert!(parse("D", format!("FROM x\nUSER {}", "a".repeat(100_000)).as_bytes()).is_ok());
}

#[test]
fn triggers() {
    let step = parse_trigger("ONBUILD of x", "COPY . /x").unwrap();
    assert_eq!(
        (step.line, &step.text[..], step.instruction.name()),
        (0, "COPY . /x", "COPY")
    );
    assert!(matches!(
        parse_trigger("x", "RUN <<A\nb\nA").unwrap().instruction,
        Instruction::Run(_)
    ));
    for (text, message) in [
        ("", "ONBUILD of x: ONBUILD requires an instruction"),
        (
            "RUN a\nRUN b",
            "ONBUILD of x: ONBUILD has one instruction, and here are more",
        ),
        ("COPY a", "ONBUILD of x (COPY): COPY/ADD requires src and dest"),
        ("FROM a", "ONBUILD of x: FROM cannot be an instruction of ONBUILD"),
    ] {
        assert_eq!(parse_trigger("ONBUILD of x", text).unwrap_err().to_string(), message);
    }
}
