//! Tells the crate which host and toolchain build it.

fn main() {
    println!("cargo:rerun-if-changed=../../rust-toolchain.toml");
    let toolchain = std::fs::read_to_string("../../rust-toolchain.toml").expect("rust-toolchain.toml is in the repository");
    let channel =
        toolchain.lines().find_map(|line| line.strip_prefix("channel = ")).expect("rust-toolchain.toml names a channel").trim_matches('"');
    println!("cargo:rustc-env=SEKISHO_TOOLCHAIN={channel}");
    println!("cargo:rustc-env=SEKISHO_HOST={}", std::env::var("HOST").expect("cargo sets HOST"));
}
