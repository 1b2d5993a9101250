//! Long operations tell how far they are, line by line, whoever asks for it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::builds::Context;
use crate::support::{Call, ImageSpec, Lab, Layer, REGISTRY, get, post, send, wait_for};

const LINES: &str = "application/x-ndjson";

fn pull(image: &str) -> Call {
    post("/v1/images", json!({ "image": image })).header("Accept", LINES)
}

/// All lines of an answer; the empty ones are left out.
fn lines(lab: &Lab, call: Call) -> Vec<Value> {
    let reply = lab.api().call(call);
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.headers["content-type"], LINES);
    let text = reply.text();
    let lines = text.lines().filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn of<'a>(lines: &'a [Value], event: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["event"] == event).collect()
}

/// The outcomes of pulls in the audit log: code and reason.
fn audited(lab: &Lab) -> Vec<(u64, String)> {
    let log = lab.machine().read("/var/log/raind/raind_audit.jsonl");
    let records = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let pulls = records.filter(|record| record["action"] == "image.pull");
    pulls
        .map(|record| {
            let result = &record["result"];
            (
                result["code"].as_u64().unwrap(),
                result["reason"].as_str().unwrap_or_default().to_owned(),
            )
        })
        .collect()
}

#[test]
fn a_pull_tells_its_phases_and_every_layer() {
    let lab = Lab::running();
    let noise: Vec<u8> = (0u32..3 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let spec = ImageSpec::busybox().layer(Layer::new().file("noise", 0o644, noise));
    let pushed = lab.registry().push(&spec, "lab/told:1");
    let image = format!("{REGISTRY}/lab/told:1");
    let told = lines(&lab, pull(&image));
    let phases: Vec<_> = of(&told, "phase").iter().map(|line| line["phase"].clone()).collect();
    assert_eq!(phases, ["resolving", "layers", "committing"]);
    let mut last: BTreeMap<String, &Value> = BTreeMap::new();
    for line in of(&told, "transfer") {
        let digest = line["digest"].as_str().unwrap();
        let before = last.insert(digest.to_owned(), line);
        if let Some(before) = before {
            assert!(before["done"].as_u64() <= line["done"].as_u64(), "{before} {line}");
        }
        assert!(line["rate"].is_u64(), "{line}");
    }
    assert_eq!(last.len(), pushed.layers.len());
    for (digest, line) in last {
        assert!(pushed.layers.contains(&digest), "{digest}");
        assert_eq!(
            (&line["state"], &line["done"]),
            (&json!("done"), &line["total"]),
            "{line}"
        );
    }
    let result =
        json!({ "event": "result", "message": "pull completed", "data": { "image": image, "os": "", "arch": "" } });
    assert_eq!(told.last().unwrap(), &result);

    // A second time nothing has to come.
    let again = lines(&lab, pull(&image));
    let states: Vec<_> = of(&again, "transfer")
        .iter()
        .map(|line| line["state"].clone())
        .collect();
    assert!(
        states.contains(&json!("present")) && !states.contains(&json!("downloading")),
        "{again:?}"
    );

    // Who does not ask is answered as ever.
    let plain = lab
        .api()
        .call(post("/v1/images", json!({ "image": image })).header("Accept", "*/*"));
    assert_eq!(
        (plain.status, &plain.headers["content-type"]),
        (200, &"application/json".parse().unwrap())
    );
    assert_eq!(plain.json()["message"], "pull completed");
}

#[test]
fn a_pull_that_fails_says_why_in_its_last_line() {
    let lab = Lab::running();
    lab.push(&ImageSpec::busybox(), "lab/other:1");
    let missing = format!("{REGISTRY}/lab/missing:1");
    let told = lines(&lab, pull(&missing));
    let plain = lab.api().call(post("/v1/images", json!({ "image": missing }))).json();
    let error = json!({ "event": "error", "status": 404, "code": plain["code"], "message": plain["message"] });
    assert_eq!(told.last().unwrap(), &error);
    // What is wrong before anything begins is an ordinary failure.
    for body in ["{\"image\": 1}", "{}", "", "{\"image\": \"A B\"}"] {
        let call = send("POST", "/v1/images", body).header("Accept", LINES);
        lab.api().call(call).refused(400, "");
    }
    let records = wait_for("the audit log", Duration::from_secs(5), || {
        let records = audited(&lab);
        if records.len() == 6 {
            Ok(records)
        } else {
            Err(format!("{records:?}"))
        }
    });
    assert_eq!(
        records[0], records[1],
        "the record of a streamed answer has its outcome"
    );
    assert_eq!(
        (records[0].0, &records[0].1),
        (404, &plain["message"].as_str().unwrap().to_owned())
    );
}

#[test]
fn a_pull_goes_on_without_its_client() {
    let lab = Lab::running();
    let spec = ImageSpec::busybox().layer(Layer::new().file("large", 0o644, vec![b'x'; 64 << 20]));
    let image = lab.push(&spec, "lab/left:1");
    let api = lab.api();
    let mut answer = api.open(pull(&image));
    assert_eq!(answer.until("\n"), "{\"event\":\"phase\",\"phase\":\"resolving\"}\n");
    drop(answer);
    wait_for("the image", Duration::from_secs(60), || {
        let images = api.ok(get("/v1/images"));
        if images.as_array().unwrap().is_empty() {
            Err(images)
        } else {
            Ok(())
        }
    });
    let record = wait_for("the audit log", Duration::from_secs(5), || {
        audited(&lab).first().cloned().ok_or("nothing yet")
    });
    assert_eq!(record, (200, String::new()));
}

fn build(dripfile: &str, tag: &str) -> Call {
    Context::new(dripfile)
        .post(&format!("?tag={tag}"))
        .header("Accept", LINES)
}

/// What came out of a step, all of it.
fn output_of(lines: &[Value], step: &Value) -> String {
    let outputs = of(lines, "output").into_iter().filter(|line| &line["step"] == step);
    outputs.map(|line| line["text"].as_str().unwrap()).collect()
}

#[test]
fn a_build_tells_its_steps_and_what_they_print() {
    let lab = Lab::running();
    let base = lab.push(&ImageSpec::busybox(), "lab/base:1");
    let file = format!("FROM {base}\nENV A=1\nRUN printf 'h\\303\\244\\377\\n' && echo done > /made\n");
    let told = lines(&lab, build(&file, "told:1"));
    let phases: Vec<_> = of(&told, "phase").iter().map(|line| line["phase"].clone()).collect();
    assert_eq!(phases, ["context", "steps", "committing"]);
    assert!(!of(&told, "transfer").is_empty(), "the base was not pulled: {told:?}");
    let steps = |lines: &[Value], state: &str| -> Vec<String> {
        let steps = of(lines, "step").into_iter().filter(|line| line["state"] == state);
        steps
            .map(|line| line["text"].as_str().unwrap().split(' ').next().unwrap().to_owned())
            .collect()
    };
    // A step that only changes the configuration takes no time.
    assert_eq!(steps(&told, "started"), ["FROM", "RUN"]);
    assert_eq!(steps(&told, "done"), ["FROM", "ENV", "RUN"]);
    let run = *of(&told, "step").last().unwrap();
    assert_eq!(run["step"], run["total"]);
    assert_eq!(output_of(&told, &run["step"]), "h\u{e4}\u{fffd}\n");
    let result = told.last().unwrap();
    assert_eq!(
        (&result["event"], &result["message"]),
        (&json!("result"), &json!("build completed"))
    );
    let plain = lab.api().ok(Context::new(&file).post("?tag=told:1"));
    assert_eq!(result["data"], plain);
    let again = lines(&lab, build(&file, "told:1"));
    assert!(steps(&again, "cached").contains(&"RUN".to_owned()), "{again:?}");
    assert!(of(&again, "output").is_empty());

    // A failing step, and a wrong file.
    let failing = format!("FROM {base}\nRUN echo sorry; exit 3\n");
    let told = lines(&lab, build(&failing, "told:2"));
    let failed = *of(&told, "step").last().unwrap();
    assert_eq!(failed["state"], "failed");
    assert_eq!(output_of(&told, &failed["step"]), "sorry\n");
    let error = told.last().unwrap();
    let plain = lab.api().call(Context::new(&failing).post("?tag=told:2"));
    assert_eq!((error["status"].as_u64().unwrap(), plain.status), (400, 400));
    assert_eq!(
        (&error["code"], &error["message"]),
        (&plain.json()["code"], &json!(plain.message()))
    );
    lab.api()
        .call(Context::new("FROM scratch\n").post("").header("Accept", LINES))
        .refused(400, "");
}

#[test]
fn output_comes_while_the_step_runs_and_a_client_that_leaves_ends_the_build() {
    let lab = Lab::running();
    let base = lab.pull(&ImageSpec::busybox(), "lab/base:1");
    let api = lab.api();
    let mut answer = api.open(build(&format!("FROM {base}\nRUN echo first; sleep 1000\n"), "left:1"));
    answer.until("\"text\":\"first\\n\"");
    let builds = || {
        let all = api.ok(get("/v1/containers"));
        let all = all.as_array().unwrap().iter();
        all.filter(|c| c["containerId"].as_str().unwrap().starts_with("build-"))
            .count()
    };
    assert_eq!(builds(), 1);
    drop(answer);
    wait_for("the end of the build", Duration::from_secs(30), || match builds() {
        0 => Ok(()),
        n => Err(n),
    });
    let images = api.ok(get("/v1/images"));
    assert_eq!(images.as_array().unwrap().len(), 1, "{images}");
}
