//! Where the host puts files and where the guest looks for them.

/// In the initramfs: the file names of the modules the service needs (network),
/// one in a line, in loading order.
pub const SERVICE_MODULES: &str = "service.modules";
/// In the initramfs: the same for the modules that give access to the disk. They
/// are loaded only when the guest is asked to prepare a kexec.
pub const DISK_MODULES: &str = "disk.modules";
/// On the disk (a cpio archive in `newc` format): the kernel.
pub const KERNEL: &str = "kernel";
/// On the disk: the initramfs.
pub const INITRAMFS: &str = "initramfs";
/// The serial number of that disk: the machine has another one.
pub const DISK_SERIAL: &str = "baseline";

/// On the command line: this machine is a partition, and what Linux finds there is to be told.
pub const PARTITION: &str = "baton.partition";
/// In the initramfs: the modules for the devices of a partition.
pub const PARTITION_MODULES: &str = "partition.modules";
/// The console of a partition.
pub const CONSOLE: &str = "/dev/hvc0";
/// The disk of a partition, the only one it has.
pub const PARTITION_DISK: &str = "/dev/vda";
/// Where a partition writes to its disk.
pub const PATTERN_AT: u64 = 64 << 10;
/// How many bytes it writes.
pub const PATTERN_BYTES: u64 = 8192;

/// The byte that it writes at an offset.
#[must_use]
pub const fn pattern(offset: u64) -> u8 {
    (offset ^ (offset >> 8) ^ 0x4c) as u8
}
