//! The emulator's command line.

use std::ffi::OsString;
use std::fs::File;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Files;
use super::boot::{self, BootPath, Loaded};
use super::devices::{Device, Devices, Edu};
use super::iommu::Iommu;

/// The service's UDP port in the guest.
const GUEST_PORT: u16 = 7777;

/// The disk's size.
const DISK_BYTES: u64 = 1 << 20;

/// The word on the first kernel's command line that has it ask for its devices.
const PLUG: &str = "plug=operator";

/// Trace events that come with every access to a device by a CPU.
pub(crate) const TRACE_MMIO: &str = "memory_region_ops_*";

/// A machine whose time is instructions, one nanosecond each, and whose load comes from inside.
#[derive(Clone, Debug)]
pub(crate) struct Counted {
    /// The plugin that counts.
    pub(crate) plugin: PathBuf,
    /// The marks between which it also says where the instructions were.
    pub(crate) kept: (u8, u8),
}

/// What the devices of a Linux are made of.
#[derive(Clone, Debug)]
pub(crate) struct LinuxFiles {
    /// Its disk.
    pub(crate) disk: PathBuf,
    /// What its console says.
    pub(crate) console: PathBuf,
    /// Where the host reaches it.
    pub(crate) service: SocketAddrV4,
}

/// What the machine is to be.
#[derive(Clone, Debug)]
pub(crate) struct MachineOptions {
    /// CPUs.
    pub(crate) cpus: u32,
    /// RAM in MiB.
    pub(crate) memory_mib: u64,
    /// CPU model.
    pub(crate) cpu_model: String,
    /// Remapping hardware.
    pub(crate) iommu: Iommu,
    /// From power-on to the first kernel.
    pub(crate) boot: BootPath,
    /// Further properties of the remapping hardware, such as `,caching-mode=on`.
    pub(crate) iommu_properties: String,
    /// Devices below root ports are plugged when the first kernel asks for them, not there at start.
    pub(crate) plug: bool,
    /// Devices that copy memory, each on a bus of its own from bus 3 on.
    pub(crate) edu: Vec<Edu>,
    /// The first kernel.
    pub(crate) kernel: PathBuf,
    /// The archive with all images.
    pub(crate) modules: Option<PathBuf>,
    /// The first kernel's command line.
    pub(crate) append: String,
    /// Count instructions. A second network device on the same wire makes the load then, and the
    /// host reaches the service no more.
    pub(crate) counted: Option<Counted>,
    /// The Linux that is to have devices of its own.
    pub(crate) linux: Option<LinuxFiles>,
    /// Trace events that are on from the start, beside those that always are.
    pub(crate) trace: Vec<String>,
    /// Anything else.
    pub(crate) extra: Vec<String>,
}

impl MachineOptions {
    /// The demo's machine with `kernel`, on VT-d.
    pub(crate) fn demo(kernel: &Path, modules: Option<&Path>) -> Self {
        Self {
            cpus: 4,
            memory_mib: 2048,
            cpu_model: "max".to_owned(),
            iommu: Iommu::VtD,
            boot: BootPath::DIRECT,
            iommu_properties: String::new(),
            plug: false,
            edu: vec![Edu::Alone, Edu::Alone, Edu::Alone, Edu::Pair],
            kernel: kernel.to_path_buf(),
            modules: modules.map(Path::to_path_buf),
            append: String::new(),
            counted: None,
            linux: None,
            trace: Vec::new(),
            extra: Vec::new(),
        }
    }

    /// The same behind `iommu`, with the devices coming when that hardware needs them to.
    pub(crate) fn behind(self, iommu: Iommu) -> Self {
        Self {
            iommu,
            plug: iommu.wants_devices_late(),
            ..self
        }
    }

    fn all_devices(&self) -> Devices {
        let (counted, linux) = (self.counted.is_some(), self.linux.is_some());
        Devices::of(&self.edu, counted, linux, self.plug)
    }

    /// The devices that are to be plugged while the machine runs.
    pub(super) fn late_devices(&self) -> Vec<Device> {
        if self.plug {
            self.all_devices().below
        } else {
            Vec::new()
        }
    }

    /// The arguments, and the disk among the files.
    pub(super) fn arguments(
        &self,
        files: &Files,
        sockets: &Path,
        service: SocketAddrV4,
    ) -> Result<Vec<OsString>> {
        let disk = files.directory.join("disk.img");
        File::create(&disk)
            .and_then(|file| file.set_len(DISK_BYTES))
            .with_context(|| format!("cannot write {}", disk.display()))?;

        let mut line = Line(Vec::new());
        line.pair("-machine", "q35,accel=tcg");
        line.pair("-cpu", &self.cpu_model);
        line.pair("-smp", &self.cpus.to_string());
        line.pair("-m", &format!("{}M", self.memory_mib));
        line.one("-nodefaults").one("-no-user-config").one("-S");
        line.pair("-display", "none");
        line.pair("-msg", "timestamp=on");
        if let Some(counted) = &self.counted {
            line.pair("-icount", "shift=0");
            let (from, to) = counted.kept;
            let plugin = escaped(&counted.plugin);
            line.pair("-plugin", &format!("file={plugin},from={from},to={to}"));
        }
        self.devices(&mut line, &disk, service);
        line.pair(
            "-object",
            &format!(
                "filter-dump,id=packets,netdev=net,file={}",
                escaped(&files.packets())
            ),
        );
        for name in ["qmp", "com1", "com2"] {
            let path = escaped(&sockets.join(name));
            line.pair("-chardev", &format!("socket,id={name},path={path}"));
        }
        line.pair("-mon", "chardev=qmp,mode=control");
        line.pair("-serial", "chardev:com1");
        line.pair("-serial", "chardev:com2");
        let firmware = escaped(&files.firmware());
        line.pair("-chardev", &format!("file,id=firmware,path={firmware}"));
        line.pair("-device", "isa-debugcon,iobase=0x402,chardev=firmware");

        line.pair("-d", "guest_errors,plugin");
        for pattern in self.iommu.trace_always() {
            line.pair("-trace", pattern);
        }
        for pattern in &self.trace {
            line.pair("-trace", pattern);
        }
        line.one("-D").path(&files.trace());
        let plug = if self.plug { PLUG } else { "" };
        let append = format!("{} {plug}", self.append);
        let loaded = Loaded {
            kernel: &self.kernel,
            modules: self.modules.as_deref(),
            command_line: append.trim(),
        };
        line.0.extend(boot::arguments(self.boot, &loaded, files)?);
        line.0.extend(self.extra.iter().map(OsString::from));
        Ok(line.0)
    }

    fn devices(&self, line: &mut Line, disk: &Path, service: SocketAddrV4) {
        // It must stand before the devices: some choose their address space when plugged.
        if let Some(driver) = self.iommu.driver() {
            let properties = &self.iommu_properties;
            line.pair("-device", &format!("{driver},intremap=on{properties}"));
        }
        if self.counted.is_some() {
            line.pair("-netdev", "hubport,id=net,hubid=0");
            line.pair("-netdev", "hubport,id=load,hubid=0");
        } else {
            line.pair(
                "-netdev",
                &format!(
                    "user,id=net,hostfwd=udp:{}:{}-:{GUEST_PORT}",
                    service.ip(),
                    service.port()
                ),
            );
        }
        line.pair(
            "-drive",
            &format!("if=none,id=disk,format=raw,file={}", escaped(disk)),
        );
        if let Some(linux) = &self.linux {
            line.pair(
                "-netdev",
                &format!(
                    "user,id=linuxnet,hostfwd=udp:{}-:{GUEST_PORT}",
                    linux.service
                ),
            );
            let (disk, console) = (escaped(&linux.disk), escaped(&linux.console));
            let drive = format!("if=none,id=linuxdisk,format=raw,file={disk}");
            line.pair("-drive", &drive);
            line.pair("-chardev", &format!("file,id=linuxconsole,path={console}"));
        }
        let devices = self.all_devices();
        for port in &devices.ports {
            line.pair("-device", &port.argument());
        }
        if !self.plug {
            for device in &devices.below {
                line.pair("-device", &device.argument());
            }
        }
    }
}

/// A command line as it grows.
struct Line(Vec<OsString>);

impl Line {
    fn one(&mut self, argument: &str) -> &mut Self {
        self.0.push(argument.into());
        self
    }

    fn path(&mut self, argument: &Path) {
        self.0.push(argument.into());
    }

    fn pair(&mut self, option: &str, value: &str) {
        self.one(option).one(value);
    }
}

/// A path inside an option: a comma is doubled.
pub(super) fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::{Files, Iommu, MachineOptions};
    use std::net::{Ipv4Addr, SocketAddrV4};
    use std::path::Path;

    fn shown(options: &MachineOptions, name: &str) -> String {
        let directory =
            std::env::temp_dir().join(format!("baton-line-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let files = Files {
            directory: directory.clone(),
        };
        let service = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 4711);
        let line = options.arguments(&files, Path::new("/s"), service).unwrap();
        std::fs::remove_dir_all(directory).unwrap();
        let words: Vec<String> = line
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        words.join(" ")
    }

    #[test]
    fn the_remapping_hardware_stands_before_every_device_behind_it() {
        let line = shown(&MachineOptions::demo(Path::new("k"), None), "order");
        let iommu = line.find("intel-iommu").unwrap();
        for device in ["virtio-net-pci", "virtio-blk-pci", "edu,"] {
            assert!(iommu < line.find(device).unwrap(), "{device}");
        }
        assert!(line.contains("hostfwd=udp:127.0.0.1:4711-:7777"));
        assert_eq!(line.matches("dma_mask=0xffffffffffffffff").count(), 5);
    }

    #[test]
    fn without_remapping_hardware_there_is_none() {
        let options = MachineOptions::demo(Path::new("k"), None).behind(Iommu::None);
        let line = shown(&options, "none");
        assert!(!line.contains("-iommu"), "{line}");
        assert!(line.contains("edu,"), "{line}");
    }

    #[test]
    fn behind_amd_vi_the_kernel_asks_for_what_is_below_the_root_ports() {
        let mut options = MachineOptions::demo(Path::new("k"), None).behind(Iommu::AmdVi);
        options.append = "intx=firmware".to_owned();
        let line = shown(&options, "late");
        assert!(line.contains("amd-iommu,intremap=on"), "{line}");
        assert_eq!(line.matches("pcie-root-port").count(), 6);
        for device in [
            "virtio-net-pci",
            "virtio-blk-pci",
            "edu,",
            "pcie-pci-bridge",
        ] {
            assert!(!line.contains(device), "{device}");
        }
        assert!(
            line.contains("-append intx=firmware plug=operator"),
            "{line}"
        );
        assert_eq!(options.late_devices().len(), 8);
        let early = MachineOptions::demo(Path::new("k"), None);
        assert!(early.late_devices().is_empty());
        assert!(!shown(&early, "early").contains("-append"));
    }
}
