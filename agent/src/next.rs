//! The binary `sekisho` with the layout of a next version, under a name of its own: the upgrade test runs both.

use std::process::ExitCode;

fn main() -> ExitCode {
    sekisho::cli::main(&sekisho::daemon::Node)
}
