//! Container images as one file, written without a container engine: an OCI image layout in a tar archive, as
//! `ctr images import`, `podman load` and `skopeo` read it. The same content makes the same bytes.
//!
//! Nouns: an [`Image`] is for one platform and has one layer and a [`Weight`]; an [`Archive`] holds images under their names.

mod tar;

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use tar::Tar;

/// What the format calls its parts.
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// How many bytes an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Weight {
    /// Its layer, as it is fetched.
    pub(crate) compressed: usize,
    /// Its files, as they lie on a node.
    pub(crate) unpacked: usize,
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} kB compressed, {} kB unpacked", self.compressed / 1000, self.unpacked / 1000)
    }
}

/// One static program for one platform.
#[derive(Debug)]
pub(crate) struct Image {
    architecture: &'static str,
    /// The digest of the layer as it is unpacked.
    unpacked: String,
    layer: Vec<u8>,
    weight: Weight,
    entrypoint: Vec<String>,
    labels: BTreeMap<&'static str, String>,
}

impl Image {
    /// The program at the root of an empty file system, started with `words`.
    pub(crate) fn of_program(architecture: &'static str, name: &str, program: &[u8], words: &[&str]) -> Result<Self> {
        let mut layer = Tar::default();
        layer.file(name, 0o755, program);
        let unpacked = layer.finish();
        let layer = gzip(&unpacked)?;
        let weight = Weight { compressed: layer.len(), unpacked: program.len() };
        let entrypoint = words.iter().map(|&word| word.to_owned()).collect();
        Ok(Self { architecture, unpacked: digest(&unpacked), layer, weight, entrypoint, labels: BTreeMap::new() })
    }

    /// How many bytes it is.
    pub(crate) fn weight(&self) -> Weight {
        self.weight
    }

    /// Says something about it that tools show.
    pub(crate) fn label(mut self, name: &'static str, value: &str) -> Self {
        self.labels.insert(name, value.to_owned());
        self
    }

    fn platform(&self) -> Value {
        json!({"architecture": self.architecture, "os": "linux"})
    }

    fn config(&self) -> Value {
        json!({
            "architecture": self.architecture,
            "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "WorkingDir": "/", "Labels": self.labels},
            "rootfs": {"type": "layers", "diff_ids": [self.unpacked]},
            "history": [{"created_by": "cargo xtask image"}],
        })
    }
}

/// Images under construction.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    blobs: BTreeMap<String, Vec<u8>>,
    index: Vec<Value>,
}

impl Archive {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds an image for one or several platforms under a name.
    pub(crate) fn add(&mut self, name: &str, images: &[Image]) {
        let manifests: Vec<Value> = images.iter().map(|image| self.manifest(image)).collect();
        let mut top = match <[Value; 1]>::try_from(manifests) {
            Ok([only]) => only,
            Err(several) => {
                self.blob(INDEX, json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": several}).to_string().into_bytes())
            }
        };
        let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        top["annotations"] = json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag});
        self.index.push(top);
    }

    /// The archive's bytes.
    pub(crate) fn finish(self) -> Vec<u8> {
        let mut tar = Tar::default();
        tar.file("oci-layout", 0o644, json!({"imageLayoutVersion": "1.0.0"}).to_string().as_bytes());
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": self.index});
        tar.file("index.json", 0o644, index.to_string().as_bytes());
        for (digest, bytes) in &self.blobs {
            tar.file(&format!("blobs/{}", digest.replace(':', "/")), 0o644, bytes);
        }
        tar.finish()
    }

    fn manifest(&mut self, image: &Image) -> Value {
        let config = self.blob(CONFIG, image.config().to_string().into_bytes());
        let layer = self.blob(LAYER, image.layer.clone());
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
        let mut descriptor = self.blob(MANIFEST, manifest.to_string().into_bytes());
        descriptor["platform"] = image.platform();
        descriptor
    }

    /// Keeps bytes under their digest and describes them.
    fn blob(&mut self, kind: &str, bytes: Vec<u8>) -> Value {
        let digest = digest(&bytes);
        let descriptor = json!({"mediaType": kind, "digest": digest, "size": bytes.len()});
        self.blobs.insert(digest, bytes);
        descriptor
    }
}

/// Without a name and a time in it: the same content makes the same bytes.
fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new("gzip")
        .args(["--no-name", "--stdout"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("gzip does not start")?;
    let mut input = child.stdin.take().context("standard input was piped")?;
    let output = std::thread::scope(|scope| {
        let writer = scope.spawn(move || input.write_all(bytes));
        let output = child.wait_with_output();
        writer.join().expect("writing does not panic").and(output)
    })?;
    ensure!(output.status.success(), "gzip: {}", output.status);
    Ok(output.stdout)
}

fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").expect("a string takes everything");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Archive, Image, digest};

    fn archive(images: &[Image]) -> Vec<u8> {
        let mut archive = Archive::new();
        archive.add("example.dev/program:7", images);
        archive.finish()
    }

    #[test]
    fn digests_are_sha256() {
        assert_eq!(digest(b""), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn the_same_content_makes_the_same_bytes() {
        let image = || Image::of_program("amd64", "program", b"ELF", &["/program", "agent"]).unwrap().label("a", "b");
        assert_eq!(archive(&[image()]), archive(&[image()]));
    }

    #[test]
    fn several_platforms_stand_under_one_name() {
        let one = |architecture| Image::of_program(architecture, "program", b"ELF", &["/program"]).unwrap();
        let text = String::from_utf8_lossy(&archive(&[one("amd64"), one("arm64")])).into_owned();
        assert_eq!(text.matches("io.containerd.image.name").count(), 1);
        for wanted in [r#""architecture":"arm64","os":"linux""#, r#""architecture":"amd64","os":"linux""#, "example.dev/program:7"] {
            assert!(text.contains(wanted), "{wanted}");
        }
    }
}
