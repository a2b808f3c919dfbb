//! Builds the example kernels and the archive that the first of them finds beside itself.
//!
//! Each kernel is built with compiler flags of its own: a swap must not depend on two kernels being
//! built alike. They share a target directory, apart from everything else's: cargo keeps what was
//! built with other flags beside each other.

mod broken;
mod c;
pub(crate) mod elf;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

pub(crate) use broken::Broken;

use crate::paths;
use crate::setup::{KERNEL_TARGET, Toolchain, UEFI_TARGET};
use crate::ui::{Screen, Step, bytes};

/// How long one kernel may take to build, from nothing and with core from source.
const DEADLINE: Duration = Duration::from_secs(12 * 60);

/// The environment variable that tells a kernel's sources which kernel they make.
const NAME_VARIABLE: &str = "BATON_KERNEL";

/// How one kernel is built.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recipe {
    /// Its name, and that of its image without `.elf`.
    pub(crate) name: &'static str,
    /// The package with its sources.
    pub(crate) package: &'static str,
    /// Optimisation level.
    opt_level: &'static str,
    /// Further flags of the compiler.
    flags: &'static [&'static str],
}

/// The kernels of the demo. The first one boots through PVH.
pub(crate) const KERNELS: [Recipe; 3] = [
    Recipe {
        name: "alpha",
        package: "alpha",
        opt_level: "3",
        flags: &[],
    },
    Recipe {
        name: "beta",
        package: "beta",
        opt_level: "s",
        flags: &["-Cforce-frame-pointers=yes", "-Ccodegen-units=1"],
    },
    Recipe {
        name: "gamma",
        package: "beta",
        opt_level: "2",
        flags: &["-Crelocation-model=static", "-Ccodegen-units=4"],
    },
];

/// The minimal embedding, which is no kernel of the demo.
pub(crate) const MINIMAL: Recipe = Recipe {
    name: "minimal",
    package: "minimal",
    opt_level: "3",
    flags: &[],
};

/// The kernel that moves devices for the bench.
pub(crate) const MOVES: Recipe = Recipe {
    name: "moves",
    package: "moves",
    opt_level: "3",
    flags: &[],
};

/// What UEFI starts, beside the kernels.
pub(crate) const UEFI_BOOT: &str = "uefi-boot.efi";

/// The images, built.
#[derive(Clone, Debug)]
pub(crate) struct Images {
    /// The kernel that boots first.
    pub(crate) first: PathBuf,
    /// The archive with all images, whole and broken.
    pub(crate) modules: PathBuf,
}

impl Images {
    /// Where the image called `name` is.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.first.with_file_name(name)
    }

    /// The whole image called `name`.
    pub(crate) fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.path(name);
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    }
}

/// Builds kernels and the archive. The first recipe is that of the kernel that boots first.
pub(crate) fn run(toolchain: &Toolchain, recipes: &[Recipe], screen: &Screen) -> Result<Images> {
    let step = screen.step("Build");
    let directory = paths::target().join("kernels").join(toolchain.tag());
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let mut kernels = Vec::new();
    for recipe in recipes {
        let built = kernel(toolchain, recipe, &directory, &step)?;
        let image = directory.join(format!("{}.elf", recipe.name));
        fs::copy(&built, &image).with_context(|| format!("cannot copy {}", built.display()))?;
        kernels.push((recipe.name, image));
    }
    kernels.push(("delta", c::delta(&directory)?));
    let Some((_, first)) = kernels.first() else {
        bail!("there is no kernel to build");
    };
    let modules = directory.join("modules.tar");
    let mut archive = Archive::create(&modules)?;
    for (name, path) in &kernels {
        archive.add(&format!("{name}.elf"), &fs::read(path)?)?;
    }
    // The broken images are made from a real successor: all that is wrong with one is what its name
    // says.
    if let Some((_, successor)) = kernels.get(1).filter(|_| recipes.len() > 1) {
        let whole = fs::read(successor)?;
        for broken in Broken::ALL {
            archive.add(broken.file_name(), &broken.made_from(&whole)?)?;
        }
    }
    let size = archive.finish()?;
    let first = first.clone();
    let names: Vec<&str> = kernels.iter().map(|(name, _)| *name).collect();
    step.done(&format!("{}; archive of {}", names.join(", "), bytes(size)));
    Ok(Images { first, modules })
}

/// Builds what UEFI starts, and puts it beside the kernels.
pub(crate) fn uefi_boot(toolchain: &Toolchain, images: &Images, screen: &Screen) -> Result<()> {
    let step = screen.step("Build for UEFI");
    let to = images.path(UEFI_BOOT);
    let target = to.with_file_name("build");
    toolchain
        .uefi_cargo("build")
        .arguments(["--release", "--package", "uefi-boot"])
        .set("CARGO_TARGET_DIR", &target)
        .unset("RUSTFLAGS")
        .deadline(DEADLINE)
        .succeed(|line| step.progress(line.trim()))?;
    let built = target.join(UEFI_TARGET).join("release").join(UEFI_BOOT);
    fs::copy(&built, &to).with_context(|| format!("cannot copy {}", built.display()))?;
    step.done(UEFI_BOOT);
    Ok(())
}

/// Builds one kernel and returns its image.
pub(crate) fn kernel(
    toolchain: &Toolchain,
    recipe: &Recipe,
    directory: &Path,
    step: &Step,
) -> Result<PathBuf> {
    let target = directory.join("build");
    let run = toolchain
        .kernel_cargo("build")
        .arguments(["--release", "--package", recipe.package])
        .set("CARGO_TARGET_DIR", &target)
        // Two kernels may come from one package: the sources read their name from here.
        .set(NAME_VARIABLE, recipe.name)
        .set("CARGO_PROFILE_RELEASE_OPT_LEVEL", recipe.opt_level)
        // An image is copied more than once: what only a debugger reads is left out.
        .set("CARGO_PROFILE_RELEASE_STRIP", "debuginfo")
        .set("CARGO_ENCODED_RUSTFLAGS", recipe.flags.join("\x1f"))
        .unset("RUSTFLAGS")
        .deadline(DEADLINE);
    run.succeed(|line| step.progress(&format!("{}: {}", recipe.name, line.trim())))?;
    let image = target
        .join(KERNEL_TARGET)
        .join("release")
        .join(recipe.package);
    if !image.is_file() {
        bail!(
            "{} was built, but {} is not there",
            recipe.name,
            image.display()
        );
    }
    Ok(image)
}

/// Writes an archive of files as the first kernel reads them.
pub(crate) fn archive(to: &Path, files: &[(&str, &[u8])]) -> Result<()> {
    let mut archive = Archive::create(to)?;
    for (name, contents) in files {
        archive.add(name, contents)?;
    }
    archive.finish().map(drop)
}

/// An archive in the ustar format.
struct Archive {
    builder: tar::Builder<File>,
    path: PathBuf,
}

impl Archive {
    fn create(path: &Path) -> Result<Self> {
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self {
            builder: tar::Builder::new(file),
            path: path.to_path_buf(),
        })
    }

    fn add(&mut self, name: &str, contents: &[u8]) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        self.builder.append_data(&mut header, name, contents)?;
        Ok(())
    }

    fn finish(self) -> Result<u64> {
        self.builder.into_inner()?.sync_all()?;
        Ok(fs::metadata(&self.path)?.len())
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;
    use std::io::Read;

    #[test]
    fn an_archive_is_the_same_every_time_and_reads_back() {
        let path = std::env::temp_dir().join(format!("baton-archive-{}.tar", std::process::id()));
        let make = || {
            let mut archive = Archive::create(&path).unwrap();
            archive.add("one.elf", b"contents").unwrap();
            archive.add("two.elf", &[7; 1000]).unwrap();
            let size = archive.finish().unwrap();
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(size, bytes.len() as u64);
            bytes
        };
        let bytes = make();
        assert_eq!(bytes, make());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(&bytes[257..263], b"ustar\0");
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut names = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut contents = Vec::new();
            entry.read_to_end(&mut contents).unwrap();
            names.push((entry.path().unwrap().display().to_string(), contents.len()));
        }
        assert_eq!(
            names,
            [("one.elf".to_owned(), 8), ("two.elf".to_owned(), 1000)]
        );
    }
}
