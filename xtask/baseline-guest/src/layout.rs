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
