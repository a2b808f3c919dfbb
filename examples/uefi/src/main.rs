//! Boots an example kernel on a machine with UEFI.
//!
//! It loads a kernel and its modules from the disk it was started from, writes down what firmware says
//! (configuration tables, SMBIOS, frame buffer, system table, and, after `ExitBootServices`, the
//! memory map) as Multiboot2's boot information, and enters the kernel as Multiboot2 prescribes. So the
//! kernel is the same that GRUB boots, and reads what it is told with the same code. It never calls
//! `SetVirtualAddressMap`: the runtime services stay where firmware put them, for any kernel.
#![no_std]
#![no_main]

extern crate alloc;

mod image;
mod information;
mod leave;
mod memory;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use image::{Image, ImageError};
use information::{Information, Overflow};
use memory::{NoMemory, Pages};
use uefi::fs::{self, FileSystem};
use uefi::prelude::*;
use uefi::proto::console::gop::{GraphicsOutput, PixelFormat};
use uefi::table::cfg::ConfigTableEntry;
use uefi::{CStr16, cstr16, println, system};

/// What is read from the disk.
const KERNEL: &CStr16 = cstr16!("\\baton\\kernel.elf");
/// Read if it is there.
const MODULES: &CStr16 = cstr16!("\\baton\\modules.tar");
/// Read if it is there.
const COMMAND_LINE: &CStr16 = cstr16!("\\baton\\cmdline");

/// Why no kernel was entered. Firmware goes on with whatever it would boot next.
#[derive(Debug)]
enum Failure {
    /// A call of firmware's failed.
    Firmware(&'static str, Status),
    /// A file cannot be read.
    File(fs::Error),
    /// The kernel is none that Multiboot2 can load.
    Image(ImageError),
    /// There is no memory where it is needed.
    Memory(NoMemory),
    /// Firmware says more than there is room for.
    Overflow(Overflow),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Firmware(call, status) => write!(f, "{call}: {status}"),
            Self::File(error) => fmt::Display::fmt(error, f),
            Self::Image(error) => fmt::Display::fmt(error, f),
            Self::Memory(error) => fmt::Display::fmt(error, f),
            Self::Overflow(error) => fmt::Display::fmt(error, f),
        }
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

impl From<NoMemory> for Failure {
    fn from(error: NoMemory) -> Self {
        Self::Memory(error)
    }
}

impl From<Overflow> for Failure {
    fn from(error: Overflow) -> Self {
        Self::Overflow(error)
    }
}

#[entry]
fn main() -> Status {
    let Err(failure) = boot();
    println!("uefi-boot: {failure}");
    Status::LOAD_ERROR
}

/// Boots the kernel: comes back only where it cannot.
fn boot() -> Result<core::convert::Infallible, Failure> {
    let volume = boot::get_image_file_system(boot::image_handle())
        .map_err(|error| Failure::Firmware("the disk this was started from", error.status()))?;
    let mut files = FileSystem::new(volume);
    let kernel = files.read(KERNEL).map_err(Failure::File)?;
    let modules = optional(&mut files, MODULES)?;
    let line = optional(&mut files, COMMAND_LINE)?.unwrap_or_default();
    let line = String::from_utf8_lossy(&line);

    let image = Image::parse(&kernel)?;
    image.load()?;
    let mut information = Information::new()?;
    information.command_line(line.trim())?;
    if let Some(bytes) = modules {
        let mut pages = Pages::low(bytes.len())?;
        pages.bytes()[..bytes.len()].copy_from_slice(&bytes);
        information.module(pages.base(), bytes.len())?;
    }
    tables(&mut information)?;
    screen(&mut information)?;
    println!(
        "uefi-boot: UEFI {} of {}, kernel of {} bytes, entry {:#x}",
        system::uefi_revision(),
        system::firmware_vendor(),
        kernel.len(),
        image.entry
    );
    let jump = leave::Jump::prepare(image.entry)?;
    // The file system protocol is closed before boot services end.
    drop(files);
    // SAFETY: nothing of boot services is used after this: what is allocated stays, and no protocol is
    // open.
    let map = unsafe { boot::exit_boot_services(None) };
    // There is no way to say so any more; the kernel would miss its memory map and say that.
    let told = information.memory_map(&map).is_ok();
    let at = information.finish();
    core::mem::forget(map);
    jump.enter(at, told)
}

/// The file's bytes, if there is such a file.
fn optional(files: &mut FileSystem, path: &CStr16) -> Result<Option<Vec<u8>>, Failure> {
    match files.read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(fs::Error::Io(error)) if error.uefi_error.status() == Status::NOT_FOUND => Ok(None),
        Err(error) => Err(Failure::File(error)),
    }
}

/// What the configuration tables lead to, and where the system table is.
fn tables(information: &mut Information) -> Result<(), Failure> {
    let mut told = Ok(());
    system::with_config_table(|entries| {
        for entry in entries {
            let address = entry.address.addr();
            let one = match entry.guid {
                ConfigTableEntry::ACPI2_GUID => information.rsdp(address, 15, 36),
                ConfigTableEntry::ACPI_GUID => information.rsdp(address, 14, 20),
                ConfigTableEntry::SMBIOS3_GUID => information.smbios(address, 6, 7),
                ConfigTableEntry::SMBIOS_GUID => information.smbios(address, 5, 6),
                _ => Ok(()),
            };
            if told.is_ok() {
                told = one;
            }
        }
    });
    told?;
    let table = uefi::table::system_table_raw()
        .ok_or(Failure::Firmware("the system table", Status::NOT_FOUND))?;
    Ok(information.system_table(table.as_ptr().addr())?)
}

/// The frame buffer, if there is one that can be written to.
fn screen(information: &mut Information) -> Result<(), Failure> {
    let Ok(handle) = boot::get_handle_for_protocol::<GraphicsOutput>() else {
        return Ok(());
    };
    let Ok(mut output) = boot::open_protocol_exclusive::<GraphicsOutput>(handle) else {
        return Ok(());
    };
    let mode = output.current_mode_info();
    // Only these two have a fixed size of pixel.
    if !matches!(mode.pixel_format(), PixelFormat::Rgb | PixelFormat::Bgr) {
        return Ok(());
    }
    let (width, height) = mode.resolution();
    let base = output.frame_buffer().as_mut_ptr().addr();
    let red_first = mode.pixel_format() == PixelFormat::Rgb;
    Ok(information.frame_buffer(base, mode.stride() * 4, width, height, red_first)?)
}
