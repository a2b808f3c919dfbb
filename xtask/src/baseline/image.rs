//! What the guest boots from: its program, the initramfs and the disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use baseline_guest::layout;
use cpio::newc;

use super::Progress;
use super::modules::Modules;
use super::package::Kernel;
use crate::paths;
use crate::process::Run;

const BUILD_LIMIT: Duration = Duration::from_secs(600);
const TARGET: &str = "x86_64-unknown-linux-gnu";
const SECTOR: u64 = 512;

/// The files the emulator is given.
pub(super) struct Images {
    pub(super) initramfs: PathBuf,
    pub(super) disk: PathBuf,
}

/// Builds the guest's program, the initramfs around it, and the disk with the
/// kernel and the initramfs that the guest itself starts by kexec.
pub(super) fn build(directory: &Path, kernel: &Kernel, progress: Progress<'_>) -> Result<Images> {
    let program = build_program(directory, progress)?;
    let modules = Modules::find(&kernel.modules)?;
    let service = modules.order(&["virtio_pci", "virtio_net"], &[])?;
    let disk_modules = modules.order(&["virtio_blk"], &service)?;

    let mut files = vec![
        member("init", 0o755, read(&program)?),
        member(layout::SERVICE_MODULES, 0o644, names(&service)),
        member(layout::DISK_MODULES, 0o644, names(&disk_modules)),
    ];
    for path in service.iter().chain(&disk_modules) {
        files.push(member(&name(path), 0o644, read(path)?));
    }
    let initramfs = directory.join("initramfs.cpio");
    write_archive(&initramfs, files)?;

    let disk = directory.join("kernels.img");
    let files = vec![
        member(layout::KERNEL, 0o644, read(&kernel.image)?),
        member(layout::INITRAMFS, 0o644, read(&initramfs)?),
    ];
    write_archive(&disk, files)?;
    pad(&disk).with_context(|| format!("cannot write {}", disk.display()))?;
    Ok(Images { initramfs, disk })
}

/// Builds the initramfs of a Linux that has a partition.
pub(super) fn partition(
    directory: &Path,
    kernel: &Kernel,
    progress: Progress<'_>,
) -> Result<PathBuf> {
    let program = build_program(directory, progress)?;
    let modules = Modules::find(&kernel.modules)?;
    // The console first: what fails after it is told there.
    let drivers = ["virtio_pci", "virtio_console", "virtio_net", "virtio_blk"];
    let drivers = modules.order(&drivers, &[])?;
    // There is no console before its driver is loaded, and a program needs something to be open.
    let mut files = vec![
        (
            newc::Builder::new("dev")
                .mode(0o755)
                .set_mode_file_type(newc::ModeFileType::Directory),
            Vec::new(),
        ),
        (
            newc::Builder::new("dev/null")
                .mode(0o666)
                .set_mode_file_type(newc::ModeFileType::Char)
                .rdev_major(1)
                .rdev_minor(3),
            Vec::new(),
        ),
        member("init", 0o755, read(&program)?),
        member(layout::PARTITION_MODULES, 0o644, names(&drivers)),
    ];
    for path in &drivers {
        files.push(member(&name(path), 0o644, read(path)?));
    }
    let initramfs = directory.join("partition.cpio");
    write_archive(&initramfs, files)?;
    Ok(initramfs)
}

/// A static program: the initramfs has no libraries. It gets a target directory of
/// its own, because other flags in the shared one would rebuild everything twice.
fn build_program(directory: &Path, progress: Progress<'_>) -> Result<PathBuf> {
    progress("building the guest's program");
    let target = directory.join("build");
    Run::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .arguments(["build", "--release", "--package", "baseline-guest"])
        .arguments(["--target", TARGET, "--target-dir"])
        .arguments([&target])
        .directory(paths::workspace())
        .set(
            "RUSTFLAGS",
            "-C target-feature=+crt-static -C strip=symbols",
        )
        // This one would take precedence.
        .unset("CARGO_ENCODED_RUSTFLAGS")
        .log(directory.join("build.log"))
        .deadline(BUILD_LIMIT)
        .succeed(|_| ())?;
    Ok(target.join(TARGET).join("release").join("baseline-guest"))
}

/// Makes a whole number of sectors of it: QEMU cuts or refuses anything else.
fn pad(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    let length = file.metadata()?.len();
    file.set_len(length.next_multiple_of(SECTOR))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn names(paths: &[PathBuf]) -> Vec<u8> {
    let names: Vec<String> = paths.iter().map(|path| name(path)).collect();
    names.join("\n").into_bytes()
}

fn member(name: &str, mode: u32, content: Vec<u8>) -> (newc::Builder, Vec<u8>) {
    let header = newc::Builder::new(name)
        .mode(mode)
        .set_mode_file_type(newc::ModeFileType::Regular);
    (header, content)
}

fn write_archive(path: &Path, members: Vec<(newc::Builder, Vec<u8>)>) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut file = File::create(path)?;
        for (header, content) in members {
            let length = u32::try_from(content.len()).map_err(io::Error::other)?;
            let mut writer = header.write(file, length);
            writer.write_all(&content)?;
            file = writer.finish()?;
        }
        newc::trailer(file)?.flush()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
