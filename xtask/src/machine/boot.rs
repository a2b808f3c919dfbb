//! How the first kernel gets into memory: by the emulator itself, or by firmware and a boot loader
//! from a disk.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Files;
use crate::build::UEFI_BOOT;
use crate::process::{Run, find};
use crate::setup::{Tool, UEFI_TARGET, has_target};

/// The firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Firmware {
    /// A PC BIOS.
    #[value(name = "seabios")]
    SeaBios,
    /// UEFI.
    Ovmf,
}

/// Who loads the first kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Loader {
    /// The emulator, by PVH.
    Pvh,
    /// GRUB, from a disk, by Multiboot2.
    Multiboot2,
    /// Baton's own UEFI application, from a disk.
    Uefi,
}

/// From power-on to the first kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub(crate) struct BootPath {
    /// The firmware.
    #[arg(long, value_enum, default_value = "seabios")]
    pub(crate) firmware: Firmware,
    /// Who loads the first kernel.
    #[arg(id = "boot", long = "boot", value_enum, default_value = "pvh")]
    pub(crate) loader: Loader,
}

impl BootPath {
    /// The shortest one.
    pub(crate) const DIRECT: Self = Self {
        firmware: Firmware::SeaBios,
        loader: Loader::Pvh,
    };

    /// What has to be there for it, beside the emulator.
    pub(crate) fn tools(self) -> impl Iterator<Item = Tool> {
        let grub = (self.loader == Loader::Multiboot2).then_some(Tool::Grub);
        let target = (self.loader == Loader::Uefi).then_some(Tool::UefiTarget);
        let ovmf = (self.firmware == Firmware::Ovmf).then_some(Tool::Ovmf);
        grub.into_iter().chain(target).chain(ovmf)
    }

    /// That it can be gone at all.
    pub(crate) fn check(self) -> Result<()> {
        match (self.firmware, self.loader) {
            (Firmware::Ovmf, Loader::Pvh) => bail!(
                "UEFI knows nothing of PVH: choose --boot multiboot2 or uefi with --firmware ovmf"
            ),
            (Firmware::SeaBios, Loader::Uefi) => {
                bail!("a PC BIOS starts no UEFI application: choose --firmware ovmf")
            }
            _ => Ok(()),
        }
    }
}

/// The first kernel and what it gets.
pub(super) struct Loaded<'a> {
    pub(super) kernel: &'a Path,
    pub(super) modules: Option<&'a Path>,
    pub(super) command_line: &'a str,
}

/// The emulator's arguments; what they name is made among the files.
pub(super) fn arguments(
    path: BootPath,
    loaded: &Loaded<'_>,
    files: &Files,
) -> Result<Vec<OsString>> {
    path.check()?;
    let mut line: Vec<OsString> = Vec::new();
    if path.firmware == Firmware::Ovmf {
        // Its variables change, so each machine has its own.
        let variables = files.variables();
        fs::copy(Tool::OVMF_VARIABLES, &variables).with_context(|| {
            let from = Tool::OVMF_VARIABLES;
            format!("cannot copy {from} to {}", variables.display())
        })?;
        line.push("-drive".into());
        line.push(
            format!(
                "if=pflash,unit=0,format=raw,readonly=on,file={}",
                Tool::OVMF_CODE
            )
            .into(),
        );
        line.push("-drive".into());
        let variables = super::command_line::escaped(&variables);
        line.push(format!("if=pflash,unit=1,format=raw,file={variables}").into());
    }
    match path.loader {
        Loader::Pvh => {
            line.push("-kernel".into());
            line.push(loaded.kernel.into());
            if let Some(modules) = loaded.modules {
                line.push("-initrd".into());
                line.push(modules.into());
            }
            if !loaded.command_line.is_empty() {
                line.push("-append".into());
                line.push(loaded.command_line.into());
            }
        }
        Loader::Multiboot2 | Loader::Uefi => {
            let disk = files.boot_disk();
            match path.loader {
                Loader::Uefi => uefi_disk(loaded, &disk)?,
                _ => grub_disk(path.firmware, loaded, &disk)?,
            }
            let disk = super::command_line::escaped(&disk);
            line.push("-drive".into());
            line.push(format!("if=none,id=boot,format=raw,file={disk}").into());
            line.push("-device".into());
            line.push("ide-hd,drive=boot,bus=ide.0,bootindex=0".into());
        }
    }
    Ok(line)
}

/// GRUB's configuration.
fn grub_configuration(loaded: &Loaded<'_>) -> Result<String> {
    // GRUB's own language has variables, quotes and separators.
    let plain = |c: char| c.is_ascii_alphanumeric() || " =:,._-".contains(c);
    if !loaded.command_line.chars().all(plain) {
        bail!(
            "the command line `{}` cannot be given to GRUB as it is",
            loaded.command_line
        );
    }
    let module = loaded.modules.map_or("", |_| "  module2 /modules\n");
    Ok(format!(
        "set timeout=0\nmenuentry baton {{\n  multiboot2 /kernel {}\n{module}}}\n",
        loaded.command_line
    ))
}

/// A disk from which GRUB boots the kernel.
fn grub_disk(firmware: Firmware, loaded: &Loaded<'_>, disk: &Path) -> Result<()> {
    let tree = disk.with_extension("tree");
    let configuration = tree.join("boot/grub");
    let put = |from: &Path, name: &str| {
        let to = tree.join(name);
        // A copy only where the two are on different file systems.
        fs::hard_link(from, &to)
            .or_else(|_| fs::copy(from, &to).map(drop))
            .with_context(|| format!("cannot put {} on the disk", from.display()))
    };
    let made = (|| {
        fs::create_dir_all(&configuration)?;
        fs::write(configuration.join("grub.cfg"), grub_configuration(loaded)?)?;
        put(loaded.kernel, "kernel")?;
        if let Some(modules) = loaded.modules {
            put(modules, "modules")?;
        }
        let platform = match firmware {
            Firmware::SeaBios => Tool::GRUB_BIOS,
            Firmware::Ovmf => Tool::GRUB_UEFI,
        };
        Run::new("grub-mkrescue")
            .arguments(["-d", platform, "-o"])
            .arguments([disk, &tree])
            .deadline(Duration::from_secs(60))
            .succeed(|_| ())
            .map(drop)
    })();
    // The tree is of no use any more, and what it links to stays.
    let _ = fs::remove_dir_all(&tree);
    made.context("cannot make the disk that GRUB boots from")
}

/// A disk from which UEFI starts Baton's application: a FAT file system (UEFI 2.10, section 13.3).
fn uefi_disk(loaded: &Loaded<'_>, disk: &Path) -> Result<()> {
    /// Bytes of the file system beside those of the files; FAT32 is no smaller than 33 MiB.
    const REST: u64 = 48 << 20;
    let line = disk.with_extension("cmdline");
    let application = loaded.kernel.with_file_name(UEFI_BOOT);
    let run = |program: &str, arguments: &[&OsStr]| {
        Run::new(program)
            .arguments(["-i".as_ref(), disk.as_os_str()])
            .arguments(arguments)
            .deadline(Duration::from_secs(60))
            .succeed(|_| ())
    };
    let made = (|| {
        fs::write(&line, loaded.command_line)?;
        let mut files = vec![
            (application.as_path(), "::/EFI/BOOT/BOOTX64.EFI"),
            (loaded.kernel, "::/baton/kernel.elf"),
            (line.as_path(), "::/baton/cmdline"),
        ];
        files.extend(loaded.modules.map(|from| (from, "::/baton/modules.tar")));
        let mut length = REST;
        for (from, _) in &files {
            length += fs::metadata(from)
                .with_context(|| format!("cannot read {}", from.display()))?
                .len();
        }
        File::create(disk)?.set_len(length)?;
        run("mformat", &["-F".as_ref(), "::".as_ref()])?;
        for directory in ["::/EFI", "::/EFI/BOOT", "::/baton"] {
            run("mmd", &[directory.as_ref()])?;
        }
        for (from, to) in files {
            run("mcopy", &[from.as_os_str(), to.as_ref()])?;
        }
        anyhow::Ok(())
    })();
    // It is on the disk now, or nothing is.
    let _ = fs::remove_file(&line);
    made.context("cannot make the disk that UEFI boots from")
}

impl Files {
    /// The disk that a boot loader boots from.
    fn boot_disk(&self) -> PathBuf {
        self.directory.join("boot.img")
    }

    /// UEFI's variables.
    fn variables(&self) -> PathBuf {
        self.directory.join("variables.fd")
    }

    /// Everything that is made for booting.
    pub(super) fn for_booting(&self) -> [PathBuf; 2] {
        [self.boot_disk(), self.variables()]
    }
}

impl Tool {
    /// GRUB for a PC BIOS.
    const GRUB_BIOS: &str = "/usr/lib/grub/i386-pc";
    /// GRUB for UEFI.
    const GRUB_UEFI: &str = "/usr/lib/grub/x86_64-efi";
    const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
    const OVMF_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

    /// Whether it is there.
    pub(crate) fn is_there(self) -> bool {
        let files: &[&str] = match self {
            Self::Grub => &[Self::GRUB_BIOS, Self::GRUB_UEFI],
            Self::Ovmf => &[Self::OVMF_CODE, Self::OVMF_VARIABLES],
            Self::UefiTarget => return has_target(Path::new("rustc"), UEFI_TARGET),
        };
        let commands: &[&str] = match self {
            Self::Grub => &["grub-mkrescue", "xorriso", "mformat"],
            Self::Ovmf => &["mformat", "mcopy"],
            Self::UefiTarget => &[],
        };
        files.iter().all(|file| Path::new(file).exists())
            && commands.iter().all(|command| find(command).is_some())
    }

    /// Debian's packages that bring it.
    pub(crate) const fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Grub => &[
                "grub-common",
                "grub-pc-bin",
                "grub-efi-amd64-bin",
                "xorriso",
                "mtools",
            ],
            Self::Ovmf => &["ovmf", "mtools"],
            // rustup's, or built from the distribution's sources.
            Self::UefiTarget => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BootPath, Firmware, Loaded, Loader, grub_configuration};
    use std::path::Path;

    fn loaded(command_line: &str) -> Loaded<'_> {
        Loaded {
            kernel: Path::new("k"),
            modules: Some(Path::new("m")),
            command_line,
        }
    }

    #[test]
    fn grub_is_told_to_load_the_kernel_and_its_modules() {
        let told = grub_configuration(&loaded("plug=operator x=1:2")).unwrap();
        assert!(told.contains("multiboot2 /kernel plug=operator x=1:2\n"));
        assert!(told.contains("module2 /modules\n"));
    }

    #[test]
    fn what_grub_would_read_otherwise_is_refused() {
        for line in ["a;b", "a$b", "a'b", "{", "a\nb", "#"] {
            assert!(grub_configuration(&loaded(line)).is_err(), "{line}");
        }
    }

    #[test]
    fn firmware_loads_only_what_it_can() {
        for (firmware, loader, can) in [
            (Firmware::SeaBios, Loader::Pvh, true),
            (Firmware::SeaBios, Loader::Multiboot2, true),
            (Firmware::SeaBios, Loader::Uefi, false),
            (Firmware::Ovmf, Loader::Pvh, false),
            (Firmware::Ovmf, Loader::Multiboot2, true),
            (Firmware::Ovmf, Loader::Uefi, true),
        ] {
            let path = BootPath { firmware, loader };
            assert_eq!(path.check().is_ok(), can, "{path:?}");
        }
    }
}
