//! Arguments in, exit code out.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(plimsoll::cli::main(std::env::args_os().collect(), std::env::vars_os().collect()))
}
