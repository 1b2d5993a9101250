//! What builds keep for later ones, and that it is never more than it may be.

use std::time::Instant;

use serde_json::{Value, json};

use crate::builds::{Context, output, remove};
use crate::crash::{interrupted, moments};
use crate::lab_with_busybox;
use crate::support::{Lab, wait_for};

/// Each run of it says something else.
const UNIQUE: &str = "cat /proc/sys/kernel/random/uuid";

fn build(lab: &Lab, context: Context, query: &str) {
    lab.api().ok(context.post(query));
}

/// The instructions of a build that were carried out, and those whose results were known.
fn steps(lab: &Lab, context: Context, query: &str) -> (Vec<String>, Vec<String>) {
    let reply = lab
        .api()
        .call(context.post(query).header("Accept", "application/x-ndjson"));
    let text = reply.text();
    let lines = text.lines().filter(|line| !line.is_empty());
    let events: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.last().unwrap()["event"], "result", "{text}");
    let in_state = |state: &str| {
        let steps = events
            .iter()
            .filter(|event| event["event"] == "step" && event["state"] == state);
        let texts = steps.map(|step| step["text"].as_str().unwrap().to_owned());
        texts.filter(|text| !text.starts_with("FROM")).collect::<Vec<_>>()
    };
    (in_state("started"), in_state("cached"))
}

/// A build of three commands and a copy between them.
fn three(image: &str, last: &str) -> Context {
    let file = format!(
        "FROM {image}\nWORKDIR /w\nRUN {UNIQUE} > first\nCOPY f .\nENV A=1\nRUN {UNIQUE} > second\nRUN {UNIQUE} > third # {last}\n\
         CMD cat first second third f\n"
    );
    Context::new(&file)
}

fn lines(lab: &Lab, image: &str) -> Vec<String> {
    output(lab, image, &[]).lines().map(str::to_owned).collect()
}

#[test]
fn only_what_has_changed_is_run_again() {
    let (lab, image) = lab_with_busybox();
    build(&lab, three(&image, "a").file("f", "1"), "?tag=c:1");
    let first = lines(&lab, "c:1");
    // Another time of the context is no change, and neither is a restart of the daemon.
    lab.daemon().restart();
    build(&lab, three(&image, "a").file("f", "1"), "?tag=c:2");
    assert_eq!(lines(&lab, "c:2"), first);
    build(&lab, three(&image, "b").file("f", "1"), "?tag=c:3");
    let third = lines(&lab, "c:3");
    assert_eq!(third[..2], first[..2]);
    assert_ne!(third[2], first[2]);
    build(&lab, three(&image, "a").file("f", "2"), "?tag=c:4");
    let fourth = lines(&lab, "c:4");
    assert_eq!((&fourth[0], &fourth[3][..]), (&first[0], "2"));
    assert_ne!(fourth[1], first[1]);
    build(&lab, three(&image, "a").file("f", "1"), "?tag=c:5&no_cache=true");
    let fifth = lines(&lab, "c:5");
    assert!((0..3).all(|n| fifth[n] != first[n]), "{fifth:?} {first:?}");
    // The newest result counts from now on.
    build(&lab, three(&image, "a").file("f", "1"), "?tag=c:6");
    assert_eq!(lines(&lab, "c:6"), fifth);
}

#[test]
fn a_changed_last_step_is_the_only_one_that_runs() {
    let (lab, image) = lab_with_busybox();
    let (run, known) = steps(&lab, three(&image, "a").file("f", "1"), "?tag=c:1");
    assert_eq!((run.len(), known.len()), (5, 0), "{run:?} {known:?}");
    let (run, known) = steps(&lab, three(&image, "b").file("f", "1"), "?tag=c:1");
    assert_eq!((run.len(), known.len()), (1, 4), "{run:?} {known:?}");
    assert!(run[0].ends_with("# b"), "{run:?}");
}

#[test]
fn a_failed_build_leaves_its_good_steps() {
    let (lab, image) = lab_with_busybox();
    let file = |last: &str| Context::new(&format!("FROM {image}\nRUN {UNIQUE} > /a\nRUN {last}\nCMD cat /a\n"));
    let fails = format!("cat /a; {UNIQUE}; false");
    let said = lab.api().call(file(&fails).post("?tag=f:1"));
    let said = said.refused(400, "build failed: RUN command failed: exit_code=1");
    let first = said
        .split("--- build log tail ---\n")
        .nth(1)
        .unwrap()
        .lines()
        .next()
        .unwrap()
        .to_owned();
    build(&lab, file("true"), "?tag=f:1");
    assert_eq!(output(&lab, "f:1", &[]).trim(), first);
    // It is there without any image, and what a removed image had is still there for the next build.
    remove(&lab, "f:1");
    build(&lab, file("true"), "?tag=f:2");
    assert_eq!(output(&lab, "f:2", &[]).trim(), first);
}

#[test]
fn a_copy_from_a_stage_is_known_by_its_content() {
    let (lab, image) = lab_with_busybox();
    let file = |builder: &str| {
        let text = format!(
            "FROM {image} AS b\nRUN echo {builder} > /dev/null; echo same > /out\n\
             FROM {image}\nCOPY --from=b /out /out\nRUN {UNIQUE} > /id\nCMD cat /id\n"
        );
        Context::new(&text)
    };
    build(&lab, file("one"), "?tag=s:1");
    build(&lab, file("two"), "?tag=s:2");
    assert_eq!(output(&lab, "s:1", &[]), output(&lab, "s:2", &[]));
}

#[test]
fn stages_are_built_side_by_side() {
    let (lab, image) = lab_with_busybox();
    // Each waits until the other is there, too: through the one place that both can see.
    let stage = |own: &str, other: &str| {
        format!(
            "FROM {image} AS {own}\nRUN --mount=type=cache,target=/meet touch /meet/{own} && \
             for n in $(seq 300); do [ -e /meet/{other} ] && break; sleep 0.1; done; [ -e /meet/{other} ]\n"
        )
    };
    let twice = format!("FROM {image} AS same\nRUN {UNIQUE} > /id\nFROM {image} AS same2\nRUN {UNIQUE} > /id\n");
    let file = format!(
        "{}{}{twice}FROM {image}\nCOPY --from=a /etc/passwd /a\nCOPY --from=b /etc/passwd /b\nCOPY --from=same /id /id\n\
         COPY --from=same2 /id /id2\nCMD cmp /id /id2 && echo one\n",
        stage("a", "b"),
        stage("b", "a")
    );
    build(&lab, Context::new(&file), "?tag=p:1");
    // The same step of two stages is carried out once.
    assert_eq!(output(&lab, "p:1", &[]), "one\n");
}

#[test]
fn the_cache_has_a_size() {
    let lab = Lab::start();
    lab.daemon()
        .set("CONDENSER_BUILD_CACHE_BYTES", "3000000")
        .set("CONDENSER_BUILD_CACHE_MOUNT_BYTES", "1000000");
    lab.daemon().start();
    let image = lab.pull(&crate::support::ImageSpec::busybox(), "library/busybox:1");
    let layers = || lab.machine().run(&["ls", "/etc/raind/image/l"]).lines().count();
    let before = layers();
    let mounts = || {
        lab.machine().run(&[
            "find",
            "/etc/raind/image/cachemounts",
            "-mindepth",
            "1",
            "-maxdepth",
            "1",
        ])
    };
    for n in 0..4 {
        let file = format!(
            "FROM {image}\nRUN --mount=type=cache,target=/c{n} head -c 700000 /dev/urandom > /c{n}/x; \
             head -c 1400000 /dev/urandom > /big{n}\n"
        );
        build(&lab, Context::new(&file), "?tag=b:1");
        remove(&lab, "b:1");
    }
    assert_eq!(layers() - before, 2, "two layers of 1.4 MB are below the limit");
    assert_eq!(mounts().lines().count(), 1, "{}", mounts());
}

#[test]
fn a_crash_at_any_moment_leaves_a_cache_that_is_whole() {
    let (lab, image) = lab_with_busybox();
    let context = |n: usize| {
        let file = format!(
            "FROM {image} AS a\nRUN --mount=type=cache,target=/c echo {n} > /c/x; echo whole > /a\n\
             FROM {image}\nRUN echo {n} whole > /b\nCOPY --from=a /a /a\nCMD cat /a /b\n"
        );
        Context::new(&file)
    };
    let begun = Instant::now();
    build(&lab, context(0), "?tag=x:0");
    let whole = begun.elapsed();
    for (n, moment) in moments(whole).enumerate() {
        let api = lab.api();
        let n = n + 1;
        let attempt = || drop(api.try_call(context(n).post(&format!("?tag=x:{n}"))));
        interrupted(&lab, moment, attempt, || {
            // Whatever is left of it is used, and right.
            build(&lab, context(n), &format!("?tag=x:{n}"));
            assert_eq!(output(&lab, &format!("x:{n}"), &[]), format!("whole\n{n} whole\n"));
        });
    }
    assert!(lab.machine().run(&["ls", "/etc/raind/image/staging"]).is_empty());
}

#[test]
fn a_build_in_all_of_its_phases_ends_with_its_client() {
    let (lab, image) = lab_with_busybox();
    // A download that never ends.
    let listener = lab.machine().at(crate::support::Place::Outside, || {
        std::net::TcpListener::bind((crate::support::OUTSIDE, 0)).unwrap()
    });
    let port = listener.local_addr().unwrap().port();
    let file = format!("FROM {image}\nADD http://{}:{port}/file /x\n", crate::support::OUTSIDE);
    let before = lab.inventory();
    let mut connection = None;
    lab.api().hang_up_after(Context::new(&file).post("?tag=x:1"), || {
        connection = Some(listener.accept().unwrap());
    });
    wait_for("the end of the build", crate::support::SOON, || {
        lab.inventory().same_as(&before).map_err(|e| e.to_string())
    });
    assert_eq!(
        lab.api()
            .ok(crate::support::get("/v1/images"))
            .as_array()
            .unwrap()
            .len(),
        1
    );
    drop((connection, json!(null)));
}
