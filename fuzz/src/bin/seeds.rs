//! Writes the seeds of each target below the directory it is given: `corpus/TARGET/seed-N`, where
//! cargo-fuzz looks for them.

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let root = std::env::args_os()
        .nth(1)
        .map_or("corpus".into(), PathBuf::from);
    for (name, _, seeds) in baton_fuzz::seeds::TARGETS {
        let directory = root.join(name);
        std::fs::create_dir_all(&directory)?;
        for (number, seed) in seeds().iter().enumerate() {
            std::fs::write(directory.join(format!("seed-{number}")), seed)?;
        }
    }
    Ok(())
}
