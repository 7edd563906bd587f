//! `palisade`: the one executable. See [`palisade_cli`].

fn main() -> std::process::ExitCode {
    palisade_cli::run()
}
