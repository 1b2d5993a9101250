//! Hostile images through the API: the answer says what is wrong, nothing is left, and the name can be used again.

use serde_json::json;
use tar::EntryType;

use crate::support::{ImageSpec, Lab, Layer, post};

#[test]
fn a_hostile_image_is_refused_with_a_reason_and_leaves_nothing() {
    let lab = Lab::start();
    lab.daemon()
        .set("CONDENSER_MAX_LAYER_RATIO", "50")
        .set("CONDENSER_LAYER_RATIO_FROM", "1048576")
        .set("CONDENSER_MAX_LAYER_ENTRIES", "1000")
        .start();
    let before = lab.inventory();
    let link = |path: &str, target: &str| Layer::new().hardlink(path, target);
    let many = (0..1001).fold(Layer::new(), |layer, n| layer.file(&n.to_string(), 0o644, ""));
    let attacks = [
        (
            Layer::new().file("../../escape", 0o644, ""),
            r#"invalid entry "../../escape": path escapes root"#,
        ),
        (
            link("a", "/etc/passwd"),
            r#"invalid entry "a": hard link to /etc/passwd, which is not in this layer"#,
        ),
        (
            Layer::new().file("a/.wh...", 0o644, ""),
            r#"invalid entry "a/.wh...": a whiteout of nothing"#,
        ),
        (
            Layer::new().entry(EntryType::GNUSparse, "f", "", 0o644, (0, 0), &[]),
            "sparse file is not supported: f",
        ),
        (many, "it has more than 1000 entries (max_layer_entries)"),
        (
            Layer::new().file("f", 0o644, vec![0; 8 << 20]),
            "it unpacks to more than 1048576 bytes (layer_ratio_from) and 50 times its size (max_layer_ratio)",
        ),
    ];
    for (attack, reason) in attacks {
        let image = ImageSpec::scratch()
            .layer(Layer::new().file("good", 0o644, ""))
            .layer(attack);
        let reference = lab.push(&image, "lab/hostile:1");
        let said = lab
            .api()
            .call(post("/v1/images", json!({ "image": reference })))
            .refused(502, "");
        assert!(said.contains("bad layer sha256:") && said.contains(reason), "{said}");
        lab.assert_unchanged(&before);
    }
    lab.pull(
        &ImageSpec::scratch().layer(Layer::new().file("good", 0o644, "")),
        "lab/hostile:1",
    );
}
