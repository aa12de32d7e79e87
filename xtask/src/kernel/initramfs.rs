//! An initial file system as the kernel unpacks it: a cpio archive in the "newc" format.

use std::io::Write as _;

/// An archive under construction.
#[derive(Debug, Default)]
pub(crate) struct Initramfs {
    bytes: Vec<u8>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

impl Initramfs {
    /// Adds a directory; its parent must be there already.
    pub(crate) fn directory(&mut self, path: &str) -> &mut Self {
        self.entry(path, DIRECTORY, (0, 0), &[])
    }

    /// Adds a file that may be executed.
    pub(crate) fn file(&mut self, path: &str, content: &[u8]) -> &mut Self {
        self.entry(path, EXECUTABLE, (0, 0), content)
    }

    /// Adds a character device.
    pub(crate) fn device(&mut self, path: &str, major: u32, minor: u32) -> &mut Self {
        self.entry(path, CHARACTER_DEVICE, (major, minor), &[])
    }

    /// The archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) -> &mut Self {
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("a file of an initramfs is below 4 GiB");
        let name_size = u32::try_from(path.len() + 1).expect("paths are short");
        // inode, mode, uid, gid, links, mtime, size, device major and minor, special's major and minor, name's size, checksum
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            write!(self.bytes, "{field:08x}").expect("a vector takes everything");
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::Initramfs;

    #[test]
    fn entries_are_aligned_and_counted() {
        let mut archive = Initramfs::default();
        archive.directory("dev").file("init", b"12345");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(text.matches("070701").count(), 3);
        // The header is 110 bytes; "dev" and its zero end at 114, the next entry begins at 116.
        assert_eq!(&bytes[110..114], b"dev\0");
        assert_eq!(&bytes[116..122], b"070701");
        assert_eq!(&text[116 + 54..116 + 62], "00000005", "the file's size");
    }
}
