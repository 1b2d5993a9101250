//! What the instructions of a build file do: stages, variables, users, mounts, secrets, archives, downloads.

use std::io::{Read, Write};
use std::net::TcpListener;

use base64::Engine;
use serde_json::{Value, json};
use sha2::Digest;
use tar::EntryType;

use crate::builds::{Context, output, status};
use crate::lab_with_busybox;
use crate::support::{ImageSpec, Lab, Layer, OUTSIDE, Place};

/// The configuration document of an image.
pub fn configuration(lab: &Lab, image: &str) -> Value {
    let id = status(lab, image)["id"].as_str().unwrap().to_owned();
    let path = format!("/etc/raind/image/blobs/sha256/{}", id.strip_prefix("sha256:").unwrap());
    serde_json::from_str(&lab.machine().read(&path)).unwrap()
}

fn build(lab: &Lab, context: Context, query: &str) {
    lab.api().ok(context.post(query));
}

#[test]
fn stages_are_built_when_they_are_needed() {
    let (lab, image) = lab_with_busybox();
    let tool = ImageSpec::busybox().layer(Layer::new().owned("tool", 0o755, (5, 6), "of an image\n"));
    let tool = lab.push(&tool, "lab/tool:1");
    let file = format!(
        "ARG BASE=wrong\nARG TAG\nFROM ${{BASE}} AS Builder\nRUN mkdir /out && echo built > /out/a && chown 7:8 /out/a\n\
         FROM builder AS unused\nRUN false\n\
         FROM scratch AS empty\nCOPY --from=0 /out/a /from-number\n\
         FROM builder AS final\nARG BASE\nARG TAG\nCOPY --from=BUILDER /out /two\nCOPY --from=empty / /three\n\
         COPY --from={tool} /tool /tool\nRUN echo \"$BASE $TAG\" > /args\n\
         CMD cat /two/a /three/from-number /tool /args; stat -c %u:%g /two/a /tool /args\n"
    );
    let query = format!("?tag=x:1&tag=x:2&buildarg=BASE={image}&buildarg=TAG=t");
    build(&lab, Context::new(&file), &query);
    for tag in ["x:1", "x:2"] {
        let said = output(&lab, tag, &[]);
        assert_eq!(said, format!("built\nbuilt\nof an image\n{image} t\n7:8\n5:6\n0:0\n"));
    }
    let query = format!("?tag=empty:1&target=EMPTY&buildarg=BASE={image}");
    build(&lab, Context::new(&file), &query);
    let layers = configuration(&lab, "empty:1");
    assert_eq!(layers["rootfs"]["diff_ids"].as_array().unwrap().len(), 1);
    let refused = lab.api().call(Context::new(&file).post("?tag=x:3&target=none"));
    let known = "build failed: there is no stage \"none\"; the build file has builder, unused, empty, final";
    refused.refused(400, known);
}

#[test]
fn settings_of_the_image() {
    let (lab, image) = lab_with_busybox();
    let base = ImageSpec::busybox()
        .cmd(&["base"])
        .set("Labels", json!({ "kept": "1", "changed": "1" }));
    let base = lab.pull(&base, "lab/base:1");
    let file = format!(
        "FROM {base}\nMAINTAINER Somebody <a@b>\nARG DIR=srv\nENV ROOT=/$DIR PATH=\"$PATH:/opt\"\nWORKDIR $ROOT/${{NONE:-deep}}\n\
         LABEL changed=\"2 3\" own=$DIR\nEXPOSE 80 53/udp\nVOLUME /data [\"/x\"]\nSTOPSIGNAL SIGINT\nSHELL [\"/bin/sh\",\"-ec\"]\n\
         HEALTHCHECK --interval=5s --retries=2 CMD test -e /ok\nUSER 7:8\nENTRYPOINT [\"/bin/echo\"]\n"
    );
    let file = file.replace(" [\"/x\"]", "");
    build(&lab, Context::new(&file), "?tag=s:1&label=asked=x%3Dy");
    let document = configuration(&lab, "s:1");
    assert_eq!(document["author"], "Somebody <a@b>");
    let config = &document["config"];
    assert_eq!(config["WorkingDir"], "/srv/deep");
    assert_eq!(
        config["Labels"],
        json!({ "kept": "1", "changed": "2 3", "own": "srv", "asked": "x=y" })
    );
    assert_eq!(config["ExposedPorts"], json!({ "80/tcp": {}, "53/udp": {} }));
    assert_eq!(config["Volumes"], json!({ "/data": {} }));
    assert_eq!(
        (&config["StopSignal"], &config["User"]),
        (&json!("SIGINT"), &json!("7:8"))
    );
    assert_eq!(config["Healthcheck"]["Test"], json!(["CMD-SHELL", "test -e /ok"]));
    assert_eq!(config["Cmd"], json!([]), "an ENTRYPOINT resets the base's CMD");
    let env = config["Env"].as_array().unwrap();
    assert!(env.contains(&json!("ROOT=/srv")), "{env:?}");
    assert!(
        env.iter().any(|entry| entry.as_str().unwrap().ends_with(":/opt")),
        "{env:?}"
    );
    // In the order of the file, one entry an instruction.
    let history = document["history"].as_array().unwrap();
    let own: Vec<&str> = history
        .iter()
        .rev()
        .take(12)
        .rev()
        .map(|h| h["created_by"].as_str().unwrap())
        .collect();
    assert!(
        own[0].starts_with("MAINTAINER") && own[11].starts_with("ENTRYPOINT"),
        "{own:?}"
    );
    drop(image);
}

#[test]
fn a_command_has_the_user_the_variables_and_the_shell_of_its_stage() {
    let (lab, image) = lab_with_busybox();
    let file = format!(
        "FROM {image}\nRUN echo 'app:x:70:80::/home/app:/bin/sh' >> /etc/passwd; echo 'more:x:90:app' >> /etc/group\n\
         ARG NAME=default\nARG TARGETARCH\nENV SET=env\nUSER app\nWORKDIR /home/app\n\
         RUN (id -u; id -g; id -G; echo \"$NAME $SET $http_proxy\"; pwd; stat -c %u:%g .) > said\n\
         COPY --chown=app:more --chmod=u=rw,go= f owned/\nCOPY --chown=9 f nine\nSHELL [\"/bin/sh\", \"-ec\"]\n\
         RUN false; echo no > /tmp/x || true\n"
    );
    let context = Context::new(&file).file("f", "f");
    let refused = lab
        .api()
        .call(context.post("?tag=u:1&buildarg=NAME=given&buildarg=http_proxy=p"));
    refused.refused(400, "build failed: RUN command failed: exit_code=1");
    let file = file.replace(
        "RUN false; echo no > /tmp/x || true\n",
        "CMD cat said; stat -c '%u:%g %a' owned owned/f nine\n",
    );
    let context = Context::new(&file).file("f", "f");
    build(&lab, context, "?tag=u:1&buildarg=NAME=given&buildarg=http_proxy=p");
    let said = output(&lab, "u:1", &[]);
    let wanted = "70\n80\n80 90\ngiven env p\n/home/app\n70:80\n70:90 755\n70:90 600\n9:9 644\n";
    assert_eq!(said, wanted);
    let document = configuration(&lab, "u:1").to_string();
    assert!(!document.contains("http_proxy=p"), "{document}");
}

#[test]
fn files_that_are_mounted_while_a_command_runs() {
    let (lab, image) = lab_with_busybox();
    let before = |tag: &str, extra: &str| {
        format!(
            "FROM {image} AS other\nRUN mkdir /deps && echo dep > /deps/d\n\
             FROM {image}\nWORKDIR /w\n\
             RUN --mount=target=ctx --mount=type=bind,source=sub/f,target=/one,rw \
                 --mount=type=bind,from=other,source=/deps,target=/deps --mount=type=tmpfs,target=/scratch,size=1m \
                 --mount=type=cache,target=/cache,id=shared,mode=1777 --network=none {extra}\
                 (cat ctx/sub/f /one /deps/d; echo more >> /one; touch ctx/x 2>&1 | grep -c Read-only; \
                 df /scratch | grep -c tmpfs; cat /cache/* || true; echo {tag} >> /cache/log; ls /sys/class/net) > said\n\
             CMD cat said; ls / | tr '\\n' ' '; echo; ls -A /w\n"
        )
    };
    let context = |file: &str| Context::new(file).file("sub/f", "of the context\n");
    build(&lab, context(&before("first", "")), "?tag=m:1");
    let said = output(&lab, "m:1", &[]);
    assert!(
        said.starts_with("of the context\nof the context\ndep\n1\n1\n"),
        "{said}"
    );
    assert!(said.contains("\nlo\n") && !said.contains("eth0"), "{said}");
    // What was only mounted is not in the image.
    for name in ["one", "deps", "scratch", "cache", "ctx"] {
        let line = said.lines().find(|line| line.starts_with("bin ")).unwrap();
        assert!(!line.split(' ').any(|word| word == name), "{name}: {line}");
    }
    assert!(said.ends_with("\nsaid\n"), "{said}");
    // The cache stays, the rest does not.
    build(&lab, context(&before("second", "")), "?tag=m:2");
    let said = output(&lab, "m:2", &[]);
    assert!(said.contains("1\n1\nfirst\n"), "{said}");
    let refused = |extra: &str, message: &str| {
        let file = before("x", extra);
        lab.api().call(context(&file).post("?tag=m:3")).refused(400, message)
    };
    let place = "build failed: Dripfile line 5 (RUN): ";
    refused(
        "--mount=type=ssh,required=true ",
        &format!("{place}--mount=type=ssh,required=true: ssh agents"),
    );
    refused(
        "--mount=type=bind,source=none,target=/n ",
        &format!("{place}none: no such file"),
    );
    refused("--security=insecure ", place);
    let file = format!("FROM {image}\nRUN --network=host true\n");
    let host = lab.api().call(Context::new(&file).post("?tag=m:3"));
    host.refused(
        400,
        "build failed: Dripfile line 2 (RUN): --network=host is not supported",
    );
}

#[test]
fn a_secret_is_seen_by_its_command_and_kept_nowhere() {
    let (lab, image) = lab_with_busybox();
    const SECRET: &str = "correct-horse-battery-staple";
    let encoded = base64::engine::general_purpose::STANDARD.encode(SECRET);
    let file = format!(
        "FROM {image}\nUSER 7\nRUN --mount=type=secret,id=token,uid=7 test \"$(cat /run/secrets/token)\" = {} && \
         stat -c %a /run/secrets/token > /tmp/mode\n\
         RUN --mount=type=secret,id=token,env=TOKEN,required=true [ ${{#TOKEN}} = {} ] && echo \"$1\" > /tmp/ok\n\
         RUN --mount=type=secret,id=absent [ ! -e /run/secrets/absent ]\nCMD cat /tmp/mode; ls -A /run\n",
        SECRET.split_at(7).0.to_owned() + "\"\"" + SECRET.split_at(7).1,
        SECRET.len()
    );
    let header = format!("token={encoded}");
    let call = Context::new(&file)
        .post("?tag=secret:1")
        .header("X-Build-Secret", &header);
    lab.api().ok(call);
    assert_eq!(output(&lab, "secret:1", &[]), "400\n");
    let places = ["/etc/raind", "/run/raind", "/var/log/raind", "/var/log"];
    for wanted in [SECRET, &encoded] {
        let found = lab
            .machine()
            .output(&[&["grep", "-rlaF", wanted][..], &places].concat());
        assert_eq!(String::from_utf8_lossy(&found.stdout), "");
        assert!(!lab.daemon().log().contains(wanted));
    }
    let left = lab.machine().run(&["find", "/run/raind/build-secrets"]);
    assert_eq!(left.trim(), "/run/raind/build-secrets");
    let file = format!("FROM {image}\nRUN --mount=type=secret,id=token,required true\n");
    let refused = lab.api().call(Context::new(&file).post("?tag=secret:2"));
    refused.refused(
        400,
        "build failed: Dripfile line 2 (RUN): the secret \"token\" was not given",
    );
    let call = Context::new(&file)
        .post("?tag=secret:2")
        .header("X-Build-Secret", "token");
    lab.api().call(call).refused(400, "invalid header X-Build-Secret");
}

#[test]
fn a_base_says_what_is_done_on_top_of_it() {
    let (lab, image) = lab_with_busybox();
    let file = format!("FROM {image}\nONBUILD COPY app /app\nONBUILD RUN echo triggered >> /app\n");
    build(&lab, Context::new(&file), "?tag=onbuild:1");
    let triggers = configuration(&lab, "onbuild:1")["config"]["OnBuild"].clone();
    assert_eq!(triggers, json!(["COPY app /app", "RUN echo triggered >> /app"]));
    let context = Context::new("FROM onbuild:1\nCMD cat /app\n").file("app", "app\n");
    build(&lab, context, "?tag=child:1");
    assert_eq!(output(&lab, "child:1", &[]), "app\ntriggered\n");
    let config = configuration(&lab, "child:1");
    assert_eq!(config["config"].get("OnBuild"), None);
    build(&lab, Context::new("FROM child:1\nRUN true\n"), "?tag=grandchild:1");
    let refused = lab.api().call(Context::new("FROM onbuild:1\n").post("?tag=x:1"));
    refused.refused(400, "build failed: app: no such file or directory in the build context");
}

#[test]
fn what_is_ignored_is_not_in_the_context() {
    let (lab, image) = lab_with_busybox();
    let file = format!("FROM {image}\nCOPY . /c\nCMD cd /c && find . | sort\n");
    let context = Context::new(&file)
        .file(
            ".dockerignore",
            "# comment\nDripfile\n.dockerignore\n*.log\nnode\n!node/kept\n",
        )
        .file("a.log", "")
        .file("node/gone", "")
        .file("node/kept", "")
        .file("b", "");
    build(&lab, context.clone(), "?tag=i:1");
    assert_eq!(output(&lab, "i:1", &[]), ".\n./b\n./node\n./node/kept\n");
    let file = format!("FROM {image}\nCOPY a.log /\n");
    let context = context.file("Other", &file);
    let refused = lab.api().call(context.clone().post("?tag=i:2&dripfile=Other"));
    let said = refused.refused(400, "build failed: Other line 2 (COPY): a.log: no such file");
    assert!(said.contains(".dockerignore may leave it out"), "{said}");
    let context = context.file("Other.dockerignore", "b\n");
    build(&lab, context, "?tag=i:2&dripfile=Other");
}

/// A server of files on the outside: each path is answered once for each entry.
fn serve(lab: &Lab, body: &'static [u8]) -> String {
    let listener = lab
        .machine()
        .at(Place::Outside, || TcpListener::bind((OUTSIDE, 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..read]).into_owned();
            let status = if request.starts_with("GET /dir/file") {
                "200 OK"
            } else {
                "404 Not Found"
            };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
                 Connection: close\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        }
    });
    format!("http://{OUTSIDE}:{port}")
}

#[test]
fn downloads_and_archives_are_added() {
    let (lab, image) = lab_with_busybox();
    let url = serve(&lab, b"downloaded\n");
    let digest = format!("sha256:{}", hex::encode(sha2::Sha256::digest(b"downloaded\n")));
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(3);
    header.set_mode(0o640);
    header.set_uid(11);
    header.set_gid(12);
    archive.append_data(&mut header, "in/side", &b"in\n"[..]).unwrap();
    let archive = archive.into_inner().unwrap();
    let packed = zstd::encode_all(&archive[..], 1).unwrap();
    let file = format!(
        "FROM {image}\nADD {url}/dir/file.txt /d/\nADD --checksum={digest} --chmod=644 {url}/dir/file?x=1 /named\n\
         ADD a.tar.zst plain.gz /u/\nCOPY a.tar.zst /u/\n\
         CMD cat /d/file.txt /named /u/in/side; stat -c '%a %Y %u:%g' /d/file.txt /named /u/in/side; ls /u\n"
    );
    let context = |file: &str| {
        Context::new(file)
            .entry(EntryType::Regular, "a.tar.zst", "", 0o644, &packed)
            .file("plain.gz", "no archive")
    };
    build(&lab, context(&file), "?tag=a:1");
    let said = output(&lab, "a:1", &[]);
    let wanted =
        "downloaded\ndownloaded\nin\n600 784111777 0:0\n644 784111777 0:0\n640 0 11:12\na.tar.zst\nin\nplain.gz\n";
    assert_eq!(said, wanted);
    let refused = |line: &str, message: &str| {
        let file = format!("FROM {image}\n{line}\n");
        let place = "build failed: Dripfile line 2 (ADD): ";
        lab.api()
            .call(context(&file).post("?tag=a:2"))
            .refused(400, &format!("{place}{message}"))
    };
    let wrong = format!("sha256:{}", "0".repeat(64));
    let said = refused(
        &format!("ADD --checksum={wrong} {url}/dir/file /x"),
        &format!("{url}/dir/file: its checksum is"),
    );
    assert!(said.contains(&digest), "{said}");
    refused(
        &format!("ADD {url}/none /x"),
        &format!("{url}/none: the server answers 404"),
    );
    refused(
        "ADD git@host:repository.git /x",
        "git@host:repository.git: git repositories",
    );
}

#[test]
fn texts_in_the_build_file() {
    let (lab, image) = lab_with_busybox();
    let file = format!(
        "# syntax=docker/dockerfile:1\nFROM {image}\nENV NAME=world\nCOPY <<one <<-\"two\" /texts/\nhello $NAME\none\n\
         \tas it is $NAME\ntwo\nRUN <<EOF\nset -e\necho from a script > /texts/three\nfalse || true\nEOF\n\
         RUN <<EOF cat > /texts/four\nlines $NAME\nEOF\nRUN <<EOF\n#!/bin/busybox sh\necho \"$0\" | grep -c script > /texts/five\n\
         EOF\nCMD cat /texts/*; stat -c %a /texts/one; ls -A / | grep -c script\n"
    );
    build(&lab, Context::new(&file), "?tag=h:1");
    let api = lab.api();
    let id = api.run(json!({ "image": "h:1" }));
    api.wait_state(&id, "stopped");
    let said = api.log(&id);
    let wanted = "1\nlines world\nhello world\nfrom a script\nas it is $NAME\n644\n0\n";
    assert_eq!(said, wanted);
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let (lab, image) = lab_with_busybox();
    let refused = |rest: &str, message: &str| {
        let file = format!("# a comment\nFROM {image}\n\n{rest}\n");
        let context = Context::new(&file).file("f", "").file("g", "");
        lab.api()
            .call(context.post("?tag=x:1"))
            .refused(400, &format!("build failed: {message}"))
    };
    refused(
        "COPY none /x",
        "Dripfile line 4 (COPY): none: no such file or directory in the build context",
    );
    refused("COPY f \\\n g /x", "Dripfile line 4 (COPY): ");
    refused(
        "COPY --chown=nobody:nogroup f /x",
        "Dripfile line 4 (COPY): the image has no user \"nobody\"",
    );
    refused("COPY --chmod=9 f /x", "Dripfile line 4 (COPY): ");
    refused(
        "USER ghost\nRUN true",
        "Dripfile line 5 (RUN): the image has no user \"ghost\"",
    );
    refused("WORKDIR /f\nCOPY f /f/x\nCOPY f /f/x/y", "Dripfile line 6 (COPY): ");
    let said = refused("RUN exit 3", "RUN command failed: exit_code=3");
    assert!(said.contains(", at=Dripfile:4\n"), "{said}");
    let other = Context::new("FROM --platform=linux/s390x scratch\n").post("?tag=x:1");
    lab.api().call(other).refused(
        404,
        "build failed: Dripfile line 1 (FROM): platform linux/s390x cannot be built here",
    );
    let other = Context::new("FROM scratch\n").post("?tag=x:1&platform=plan9/mips");
    lab.api()
        .call(other)
        .refused(404, "build failed: platform plan9/mips cannot be built here");
}
