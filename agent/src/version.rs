//! Which build this is.

/// The version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that was built, in full; `unknown` where neither a repository nor `SEKISHO_COMMIT` said it. Changes that are
/// not committed do not show.
pub const COMMIT: &str = env!("SEKISHO_COMMIT");

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{COMMIT, VERSION};

    #[test]
    fn the_commit_is_what_git_says() {
        assert!(!VERSION.is_empty());
        let git = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(env!("CARGO_MANIFEST_DIR")).output();
        match git {
            Ok(output) if output.status.success() && std::env::var_os("SEKISHO_COMMIT").is_none() => {
                assert_eq!(COMMIT, String::from_utf8_lossy(&output.stdout).trim());
            }
            // Built outside a clone.
            _ => assert!(COMMIT == "unknown" || COMMIT.bytes().all(|byte| byte.is_ascii_hexdigit()), "{COMMIT}"),
        }
    }
}
