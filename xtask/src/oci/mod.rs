//! Container images as one file, written without a container engine: an OCI image layout in a tar archive, as
//! `ctr images import`, `podman load` and `skopeo` read it. The same content makes the same bytes.
//!
//! Nouns: an [`Image`] is for one platform and has one layer and a [`Weight`]; an [`Archive`] holds images under their names.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write as _};

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

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
        let unpacked = pack([(name, 0o755, program)]).context("the layer cannot be packed")?;
        let layer = gzip(&unpacked).context("the layer cannot be compressed")?;
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
    pub(crate) fn finish(self) -> Result<Vec<u8>> {
        let layout = json!({"imageLayoutVersion": "1.0.0"}).to_string().into_bytes();
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": self.index}).to_string().into_bytes();
        let own = [("oci-layout".to_owned(), layout), ("index.json".to_owned(), index)];
        let blobs = self.blobs.into_iter().map(|(digest, bytes)| (format!("blobs/{}", digest.replace(':', "/")), bytes));
        let files: Vec<_> = own.into_iter().chain(blobs).collect();
        pack(files.iter().map(|(name, bytes)| (name.as_str(), 0o644, bytes.as_slice()))).context("the archive cannot be packed")
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

/// Files with their modes as a tar archive, in the given order. Owner root, no times: the same files make the same bytes.
fn pack<'a>(files: impl IntoIterator<Item = (&'a str, u32, &'a [u8])>) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, mode, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        archive.append_data(&mut header, name, content)?;
    }
    archive.into_inner()
}

/// Without a name and a time in it: the same content makes the same bytes.
fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().write(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    encoder.finish()
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
    use std::collections::BTreeMap;
    use std::io::{Read as _, Write as _};
    use std::process::{Command, Stdio};

    use serde_json::Value;

    use super::{Archive, Image, digest, pack};

    fn archive(images: &[Image]) -> Vec<u8> {
        let mut archive = Archive::new();
        archive.add("example.dev/program:7", images);
        archive.finish().unwrap()
    }

    /// The archive's files, as another reader of the format sees them.
    fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (entry.path().unwrap().display().to_string(), bytes)
        });
        entries.collect()
    }

    /// Follows a descriptor to its bytes and checks digest and size.
    fn follow<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
        let name = descriptor["digest"].as_str().unwrap();
        let bytes = &files[&format!("blobs/{}", name.replace(':', "/"))];
        assert_eq!((digest(bytes).as_str(), bytes.len() as u64), (name, descriptor["size"].as_u64().unwrap()));
        bytes
    }

    #[test]
    fn an_archive_leads_from_its_index_to_the_program() {
        // Larger than one buffer of any writer, and not a multiple of a block.
        let program: Vec<u8> = (0..300_007_u64).map(|n| u8::try_from(n * n % 251).unwrap()).collect();
        let image = Image::of_program("amd64", "program", &program, &["/program"]).unwrap();
        let packed = archive(&[image]);
        let files = files(&packed);
        let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        assert_eq!(json(&files["oci-layout"])["imageLayoutVersion"], "1.0.0");
        let manifest = json(follow(&files, &json(&files["index.json"])["manifests"][0]));
        let config = json(follow(&files, &manifest["config"]));
        let mut layer = Vec::new();
        let compressed = follow(&files, &manifest["layers"][0]);
        flate2::read::GzDecoder::new(compressed).read_to_end(&mut layer).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], digest(&layer));
        let mut layer = tar::Archive::new(layer.as_slice());
        let mut entry = layer.entries().unwrap().next().unwrap().unwrap();
        let header = entry.header().clone();
        let what = (header.mode().unwrap(), header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap());
        assert_eq!(what, (0o755, 0, 0, 0));
        assert_eq!(entry.path().unwrap().to_str(), Some("program"));
        let mut unpacked = Vec::new();
        entry.read_to_end(&mut unpacked).unwrap();
        assert_eq!(unpacked, program);
        // No time and no name in the compressed layer either.
        assert_eq!((&compressed[..4], &compressed[4..8]), (&[0x1f, 0x8b, 8, 0][..], &[0; 4][..]));
    }

    #[test]
    fn tar_itself_reads_it() {
        let packed = pack([("a/b", 0o755, b"hello".as_slice()), ("c", 0o644, [7_u8; 1000].as_slice())]).unwrap();
        let mut child = Command::new("tar")
            .args(["--list", "--verbose", "--numeric-owner", "--file", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&packed).unwrap();
        let list = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&list.stdout).into_owned();
        assert!(list.status.success() && list.stderr.is_empty(), "{text} {}", String::from_utf8_lossy(&list.stderr));
        assert!(text.contains("-rwxr-xr-x 0/0") && text.contains(" a/b") && text.contains("1000"), "{text}");
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
