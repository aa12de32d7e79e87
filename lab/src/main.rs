//! The programs that run inside a lab's places, and a broom for what dead labs left.

fn main() -> std::process::ExitCode {
    sekisho_lab::tool::main(&std::env::args().skip(1).collect::<Vec<_>>())
}
