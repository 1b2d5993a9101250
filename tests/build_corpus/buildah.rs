//! buildah in a lab: one store, no cache, commands in a chroot.

use std::path::Path;
use std::process::Output;
use std::sync::Arc;

use super::Fixture;
use super::image::Image;
use crate::support::{Machine, Place};

/// Where it has its files, in the lab.
const HOME: &str = "/run/buildah";

pub struct Buildah(Arc<Machine>);

impl Buildah {
    pub fn new(machine: &Arc<Machine>) -> Self {
        Self(machine.clone())
    }

    /// Pulls an image over plain HTTP and gives it the name that build files say.
    pub fn pull(&self, address: &str, name: &str) {
        let transport = format!("docker://{address}");
        for arguments in [&["pull", "--tls-verify=false", &transport][..], &["tag", address, name]] {
            let output = self.run(arguments);
            assert!(output.status.success(), "{arguments:?}: {}", said(&output));
        }
    }

    /// Builds a fixture.
    pub fn build(&self, fixture: &Fixture, context: &Path) -> Result<Image, String> {
        let file = ["Dockerfile.buildah", "Dockerfile"].map(|name| context.join(name));
        let file = file.into_iter().find(|file| file.exists()).unwrap();
        let directory = format!("{HOME}/out/{}", fixture.name);
        std::fs::create_dir_all(self.0.path(&directory)).unwrap();
        let mut arguments: Vec<String> = ["build", "--isolation=chroot", "--format=docker", "--pull-never"]
            .iter()
            .chain(&["--layers=false", "--identity-label=false", "--disable-compression"])
            .map(|argument| argument.to_string())
            .collect();
        arguments.extend([format!("--tag=dir:{directory}"), format!("--file={}", file.display())]);
        let settings = &fixture.settings;
        for (key, value) in &settings.args {
            arguments.push(format!("--build-arg={key}={value}"));
        }
        for (key, value) in &settings.labels {
            arguments.push(format!("--label={key}={value}"));
        }
        if !settings.target.is_empty() {
            arguments.push(format!("--target={}", settings.target));
        }
        for (id, value) in &settings.secrets {
            let path = format!("{HOME}/secrets/{}/{id}", fixture.name);
            self.0.write(&path, value);
            arguments.push(format!("--secret=id={id},src={path}"));
        }
        arguments.push(context.display().to_string());
        let output = self.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        match output.status.success() {
            true => Ok(Image::of_directory(&self.0.path(&directory))),
            false => Err(format!("not built by buildah: {}", said(&output))),
        }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let store = [
            "--storage-driver=vfs",
            "--root",
            "/run/buildah/root",
            "--runroot",
            "/run/buildah/run",
        ];
        let mut command = self.0.command(Place::Host, "timeout");
        command.args(["-k", "1", "120", "buildah"]).args(store).args(arguments);
        // Instructions see what is given to the build only.
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root");
        command.output().unwrap()
    }
}

/// The last lines of both outputs.
fn said(output: &Output) -> String {
    let said = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    let lines: Vec<_> = said.iter().flat_map(|text| text.lines()).collect();
    lines[lines.len().saturating_sub(6)..].join("; ")
}
