//! Tar archives, the POSIX form: a header of 512 bytes, the content padded to as much, two empty blocks at the
//! end. Owner root, no times: the same files make the same bytes.

const BLOCK: usize = 512;

/// An archive under construction.
#[derive(Debug, Default)]
pub(super) struct Tar {
    bytes: Vec<u8>,
}

impl Tar {
    /// Adds a file. Its name has at most 100 bytes, and directories on its way need not be there.
    pub(super) fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        let mut header = [0u8; BLOCK];
        let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
        assert!(name.len() <= 100, "{name} is too long for a tar archive");
        put(0, name.as_bytes());
        put(100, format!("{mode:07o}\0").as_bytes());
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{:011o}\0", content.len()).as_bytes());
        put(136, b"00000000000\0");
        put(148, b"        ");
        put(156, b"0");
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
    }

    /// The archive's bytes.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::Tar;

    #[test]
    fn tar_itself_reads_it() {
        let mut tar = Tar::default();
        tar.file("a/b", 0o755, b"hello");
        tar.file("c", 0o644, &[7; 1000]);
        let file = std::env::temp_dir().join(format!("sekisho-tar-{}", std::process::id()));
        std::fs::write(&file, tar.finish()).unwrap();
        let list =
            std::process::Command::new("tar").args(["--list", "--verbose", "--numeric-owner", "--file"]).arg(&file).output().unwrap();
        std::fs::remove_file(&file).unwrap();
        let text = String::from_utf8_lossy(&list.stdout).into_owned();
        assert!(list.status.success() && list.stderr.is_empty(), "{text} {}", String::from_utf8_lossy(&list.stderr));
        assert!(text.contains("-rwxr-xr-x 0/0") && text.contains(" a/b") && text.contains("1000"), "{text}");
    }
}
