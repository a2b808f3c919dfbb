//! Fetching Debian's kernel: downloaded and unpacked, never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Progress;
use crate::process::Run;

/// The package that always depends on Debian's current kernel for virtual machines.
const META_PACKAGE: &str = "linux-image-cloud-amd64";
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(300);
const LIMIT: Duration = Duration::from_secs(60);

/// An unpacked kernel package.
pub(super) struct Kernel {
    /// Name of the package.
    pub(super) package: String,
    /// The bootable image.
    pub(super) image: PathBuf,
    /// The directory with this kernel's modules.
    pub(super) modules: PathBuf,
}

/// Brings the current kernel package to `directory`, unless it is there.
pub(super) fn fetch(directory: &Path, progress: Progress<'_>) -> Result<Kernel> {
    let package = match current() {
        Ok(name) => name,
        Err(_) => {
            update(progress)?;
            current()?
        }
    };
    let root = directory.join(&package);
    if !root.exists() {
        progress(&format!("downloading {package}"));
        let archive = match download(directory, &package) {
            Ok(archive) => archive,
            // An old package list names a file that the mirror no longer has.
            Err(_) => {
                update(progress)?;
                download(directory, &package)?
            }
        };
        // Renamed when complete, so that an interrupted run leaves nothing that
        // looks finished.
        let partial = directory.join("unpacking");
        if partial.exists() {
            fs::remove_dir_all(&partial)
                .with_context(|| format!("cannot remove {}", partial.display()))?;
        }
        Run::new("dpkg-deb")
            .arguments(["-x".as_ref(), archive.as_os_str(), partial.as_os_str()])
            .deadline(LIMIT)
            .succeed(|_| ())?;
        fs::rename(&partial, &root).with_context(|| format!("cannot make {}", root.display()))?;
        fs::remove_file(&archive)
            .with_context(|| format!("cannot remove {}", archive.display()))?;
    }
    locate(package, &root)
}

fn current() -> Result<String> {
    let answer = Run::new("apt-cache")
        .arguments(["depends", META_PACKAGE])
        .set("LC_ALL", "C")
        .deadline(LIMIT)
        .succeed(|_| ())?;
    dependency(&answer.lines)
        .with_context(|| format!("{META_PACKAGE} depends on no kernel: {}", answer.tail()))
}

/// The kernel in what `apt-cache depends` prints for the meta package.
fn dependency(lines: &[String]) -> Option<String> {
    lines
        .iter()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .map(str::to_owned)
}

fn update(progress: Progress<'_>) -> Result<()> {
    progress("updating the package lists");
    Run::new("apt-get")
        .arguments(["update"])
        .deadline(DOWNLOAD_LIMIT)
        .succeed(|_| ())
        .context("Debian's package lists are needed: run `apt-get update` as root")?;
    Ok(())
}

fn download(directory: &Path, package: &str) -> Result<PathBuf> {
    Run::new("apt-get")
        // apt's own unprivileged user cannot write to this directory.
        .arguments(["-o", "APT::Sandbox::User=", "download", package])
        .directory(directory)
        .deadline(DOWNLOAD_LIMIT)
        .succeed(|_| ())?;
    let prefix = format!("{package}_");
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&prefix) && name.ends_with(".deb") {
            return Ok(entry.path());
        }
    }
    bail!("apt-get left no {prefix}*.deb");
}

fn locate(package: String, root: &Path) -> Result<Kernel> {
    // Debian 13 moved the modules below /usr.
    let parent = ["lib/modules", "usr/lib/modules"]
        .iter()
        .map(|path| root.join(path))
        .find(|path| path.is_dir())
        .with_context(|| format!("{package} holds no modules"))?;
    let release = fs::read_dir(&parent)?
        .next()
        .with_context(|| format!("{} is empty", parent.display()))??
        .file_name();
    let image = root
        .join("boot")
        .join(format!("vmlinuz-{}", release.display()));
    if !image.is_file() {
        bail!("{} is missing", image.display());
    }
    Ok(Kernel {
        package,
        image,
        modules: parent.join(release),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_read_from_the_dependencies_of_the_meta_package() {
        let lines = |text: &str| -> Vec<String> { text.lines().map(str::to_owned).collect() };
        let output = lines(
            "linux-image-cloud-amd64\n  Depends: linux-base\n  \
             Depends: linux-image-6.1.0-1-cloud-amd64\n  Suggests: other\n",
        );
        assert_eq!(
            dependency(&output).as_deref(),
            Some("linux-image-6.1.0-1-cloud-amd64")
        );
        let output = lines("linux-image-cloud-amd64\n  Depends: other\n");
        assert_eq!(dependency(&output), None);
    }
}
