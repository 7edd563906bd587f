//! The executable, once more: so that cargo tells the tests of this package where it is.

fn main() -> std::process::ExitCode {
    palisade_cli::run()
}
