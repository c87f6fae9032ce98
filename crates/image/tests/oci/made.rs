//! Images made by hand, so that each byte can be wrong.

use std::fs;
use std::path::{Path, PathBuf};

use image::oci::{Image, ImageName, OciError, OciOptions, RegistryOptions};
use image::tree::{Limits, Tree};
use image::{Spool, hex};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// A layer: members are put in, then it is a plain tar.
pub struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    /// A member of this kind; `link` for links. The path is written as it is, however odd.
    pub fn add(mut self, kind: tar::EntryType, path: &str, data: &[u8], link: &str) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1000);
        header.set_size(data.len() as u64);
        let bytes = header.as_mut_bytes();
        bytes[..path.len()].copy_from_slice(path.as_bytes());
        bytes[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    pub fn file(self, path: &str, text: &str) -> Self {
        self.add(tar::EntryType::Regular, path, text.as_bytes(), "")
    }

    pub fn dir(self, path: &str) -> Self {
        self.add(tar::EntryType::Directory, path, b"", "")
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.add(tar::EntryType::Symlink, path, b"", target)
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.add(tar::EntryType::Link, path, b"", target)
    }

    /// An attribute of the member that follows.
    pub fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        let key = format!("SCHILY.xattr.{name}");
        self.0.append_pax_extensions([(key.as_str(), value)]).unwrap();
        self
    }

    /// Extended headers (POSIX pax) of the member that follows.
    pub fn pax(mut self, pairs: &[(&str, &str)]) -> Self {
        self.0.append_pax_extensions(pairs.iter().map(|(key, value)| (*key, value.as_bytes()))).unwrap();
        self
    }

    pub fn tar(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// A home of layouts and caches.
pub struct World {
    pub dir: tempfile::TempDir,
}

impl World {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Keeps a blob in the layout; its descriptor.
    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        let blobs = self.path("layout/blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(&digest[7..]), bytes).unwrap();
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    /// Keeps an image of plain layers, each transferred as `pack` makes it; its manifest's
    /// descriptor.
    pub fn image(&self, layers: &[Vec<u8>], config: Value, pack: impl Fn(&[u8]) -> Vec<u8>) -> Value {
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let config = json!({
            "os": "linux", "architecture": "amd64", "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids }, "history": [],
        });
        let layers: Vec<Value> = layers.iter().map(|layer| self.blob(LAYER, &pack(layer))).collect();
        self.manifest(
            self.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes()),
            layers,
        )
    }

    pub fn manifest(&self, config: Value, layers: Vec<Value>) -> Value {
        let manifest =
            json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
        self.blob(MANIFEST, manifest.to_string().as_bytes())
    }

    /// Names manifests in the layout.
    pub fn index(&self, manifests: Vec<Value>) {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
        fs::create_dir_all(self.path("layout")).unwrap();
        fs::write(self.path("layout/index.json"), index.to_string()).unwrap();
    }

    pub fn options(&self, registry: RegistryOptions) -> OciOptions {
        OciOptions { cache: self.path("cache"), registry }
    }

    pub fn open(&self, word: &str) -> Result<Image, OciError> {
        let name = ImageName::parse(word, self.dir.path())?;
        Image::open(&name, &self.options(RegistryOptions::default()), None)
    }

    pub fn unpack(&self, image: &Image) -> Result<(Tree, Spool), OciError> {
        let spool = Spool::new(self.dir.path(), 1 << 30).unwrap();
        let mut tree = Tree::new(Limits::default());
        image.unpack(&mut tree, &spool, &|_| {})?;
        Ok((tree, spool))
    }

    /// The tree of an image of these layers.
    pub fn tree_of(&self, layers: &[Vec<u8>]) -> Result<Tree, OciError> {
        self.index(vec![self.image(layers, json!({}), <[u8]>::to_vec)]);
        Ok(self.unpack(&self.open("oci:layout")?)?.0)
    }
}

/// Every path of the tree but what each image is furnished with.
pub fn paths(tree: &Tree) -> Vec<String> {
    let all = tree.walk().map(|(path, _)| String::from_utf8_lossy(&path).into_owned());
    all.filter(|path| !["", "etc", "etc/hosts", "etc/mtab"].contains(&path.as_str())).collect()
}

pub fn text(tree: &Tree, path: impl AsRef<Path>) -> String {
    let id = tree.lookup_follow(path.as_ref().to_str().unwrap()).expect("the path");
    match tree.get(id).unwrap().kind() {
        image::tree::Kind::File(content) => String::from_utf8(content.to_vec(1 << 20).unwrap()).unwrap(),
        other => panic!("{other:?} is no file"),
    }
}
