//! `GET /v1/events`.

use serde_json::{Value, json};

use crate::support::{Answer, Api, ImageSpec, get};
use crate::{lab_with_busybox, until_term};

fn watch(api: &Api, query: &str) -> Answer {
    api.open(get(&format!("/v1/events?{query}")))
}

/// The next block: id, name and data.
fn block(events: &mut Answer) -> (u64, String, Value) {
    let block = events.until("\n\n");
    let field = |name: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().to_owned()
    };
    let data = serde_json::from_str(&field("data: ")).unwrap_or(Value::Null);
    (field("id: ").parse().unwrap(), field("event: "), data)
}

fn change(events: &mut Answer) -> (u64, Value) {
    let (id, name, data) = block(events);
    assert_eq!((name.as_str(), &data["sequence"]), ("change", &json!(id)), "{data}");
    (id, data)
}

#[test]
fn the_life_of_a_container_is_told() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let mut events = watch(&api, "kind=container");
    let (place, _, data) = block(&mut events);
    assert_eq!(data, Value::Null);
    let id = api.run(json!({ "image": image, "name": "web", "command": until_term(3) }));
    let steps = |events: &mut Answer| {
        let (_, change) = change(events);
        assert_eq!(
            (&change["kind"], &change["id"], &change["name"]),
            (&json!("container"), &json!(id), &json!("web"))
        );
        (
            change["action"].as_str().unwrap().to_owned(),
            change["oldState"].as_str().unwrap_or("-").to_owned(),
            change["newState"].as_str().unwrap_or("-").to_owned(),
            change["exitCode"].as_i64(),
        )
    };
    let step = |action: &str, old: &str, new: &str, code| (action.to_owned(), old.to_owned(), new.to_owned(), code);
    let life = [
        step("created", "-", "creating", None),
        step("changed", "creating", "created", None),
    ];
    for expected in life.iter().chain([&step("changed", "created", "running", None)]) {
        assert_eq!(&steps(&mut events), expected);
    }
    crate::support::wait_for("the trap", std::time::Duration::from_secs(5), || {
        let said = api.log(&id);
        if said.contains("started") { Ok(()) } else { Err(said) }
    });
    api.stop(&id);
    assert_eq!(steps(&mut events), step("changed", "running", "stopped", Some(3)));
    api.delete(&id);
    assert_eq!(steps(&mut events), step("removed", "stopped", "-", None));

    // Who comes back misses nothing.
    let mut again = api.open(get("/v1/events?since=1").header("Last-Event-ID", &place.to_string()));
    assert_eq!(block(&mut again).0, place);
    let (_, first) = change(&mut again);
    assert_eq!(
        (&first["action"], &first["newState"]),
        (&json!("created"), &json!("creating"))
    );
    let mut one = watch(&api, &format!("since={place}&id=web"));
    block(&mut one);
    assert_eq!(change(&mut one).1["id"], json!(id), "a name is as good as an id");
}

#[test]
fn who_comes_back_too_late_is_told() {
    let (lab, _) = lab_with_busybox();
    let (place, ..) = block(&mut watch(&lab.api(), ""));
    let mut running = watch(&lab.api(), "");
    block(&mut running);
    assert!(lab.daemon().stop().success());
    assert_eq!(running.piece(), Ok(None), "an orderly end");
    lab.daemon().start();
    let api = lab.api();
    let mut events = watch(&api, &format!("since={place}"));
    let (now, ..) = block(&mut events);
    assert!(now > place);
    let (id, name, _) = block(&mut events);
    assert_eq!((id, name.as_str()), (now, "reset"));
    lab.pull(&ImageSpec::busybox(), "library/other:1");
    let (_, pulled) = change(&mut events);
    assert_eq!(
        (&pulled["kind"], &pulled["action"]),
        (&json!("image"), &json!("created"))
    );
    api.call(get("/v1/events?since=x")).refused(400, "invalid since");
    api.call(get("/v1/events?kind=nothing"))
        .refused(400, "invalid kind: unknown variant `nothing`, expected one of");
}
