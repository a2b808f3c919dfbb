//! One line of the emulator's trace (log backend with time stamps, QEMU 7.2):
//! `thread@seconds.microseconds:event arguments`.

/// A line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    /// Nanoseconds since 1970; the trace has microseconds.
    pub(crate) at: u64,
    /// The host's thread.
    pub(crate) thread: u32,
    /// What happened.
    pub(crate) what: What<'a>,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What<'a> {
    /// A CPU (or, with -1, the emulator itself) accessed a device.
    Access {
        /// Direction.
        write: bool,
        /// The CPU.
        cpu: i32,
        /// The region's name.
        region: &'a str,
    },
    /// A driver wrote a virtio device's status. Zero resets the device.
    VirtioStatus {
        /// The emulator's name for the device: a pointer.
        device: u64,
        /// The status.
        value: u8,
    },
    /// A driver rang a virtqueue's doorbell.
    VirtioNotify {
        /// The emulator's name for the device: a pointer.
        device: u64,
        /// The queue.
        queue: u16,
    },
    /// The IOMMU took a descriptor from its queue.
    Descriptor {
        /// The low quadword; its low four bits are the type.
        low: u64,
    },
    /// The IOMMU wrote a wait descriptor's status.
    WaitDone,
    /// A device's request was blocked.
    Fault {
        /// Requester id.
        source: u16,
        /// Fault reason.
        reason: u8,
        /// The address the device asked for.
        address: u64,
        /// Direction.
        write: bool,
    },
    /// A device asked for an interrupt in remappable or compatibility format.
    InterruptRequest {
        /// The message's address: it holds the handle.
        address: u64,
    },
    /// The request before it on the same thread was allowed and became an interrupt.
    InterruptRemapped,
    /// A CPU read a register of the IOMMU.
    IommuRead,
    /// A CPU wrote a register of the IOMMU.
    IommuWrite {
        /// The register's offset.
        offset: u64,
        /// The value.
        value: u64,
    },
    /// An access to configuration space of a device that is there.
    Config {
        /// Direction.
        write: bool,
        /// Bus, device and function as a requester id.
        function: u16,
        /// Offset.
        offset: u16,
        /// The value.
        value: u32,
    },
}

/// Reads a line; `None` for one that is no event, or none that matters here.
pub(crate) fn parse(line: &str) -> Option<Record<'_>> {
    let (stamp, rest) = line.split_once(':')?;
    let (thread, time) = stamp.split_once('@')?;
    let (seconds, micros) = time.split_once('.')?;
    let at = seconds
        .parse::<u64>()
        .ok()?
        .checked_mul(1_000_000_000)?
        .checked_add(micros.parse::<u64>().ok()?.checked_mul(1_000)?)?;
    let (event, arguments) = rest.split_once(' ').unwrap_or((rest, ""));
    Some(Record {
        at,
        thread: thread.parse().ok()?,
        what: what(event, Words(arguments))?,
    })
}

fn what<'a>(event: &str, mut words: Words<'a>) -> Option<What<'a>> {
    Some(match event {
        "memory_region_ops_write" | "memory_region_ops_read" => What::Access {
            write: event.ends_with("write"),
            cpu: words.after("cpu")?.parse().ok()?,
            region: words.0.split_once("name '")?.1.strip_suffix('\'')?,
        },
        "virtio_set_status" => What::VirtioStatus {
            device: hex(words.after("vdev")?)?,
            value: words.after("val")?.parse().ok()?,
        },
        "virtio_queue_notify" => What::VirtioNotify {
            device: hex(words.after("vdev")?)?,
            queue: words.after("n")?.parse().ok()?,
        },
        "vtd_inv_desc" => What::Descriptor {
            low: hex(words.after("low")?)?,
        },
        "vtd_inv_desc_wait_sw" => What::WaitDone,
        "vtd_dmar_fault" => What::Fault {
            source: u16::try_from(hex(words.after("sid")?)?).ok()?,
            reason: words.after("fault")?.parse().ok()?,
            address: hex(words.after("addr")?)?,
            write: words.after("write")? == "1",
        },
        "vtd_ir_remap_msi_req" => What::InterruptRequest {
            address: hex(words.after("addr")?)?,
        },
        "vtd_ir_remap_msi" => What::InterruptRemapped,
        "vtd_reg_read" => What::IommuRead,
        "vtd_reg_write" => What::IommuWrite {
            offset: hex(words.after("addr")?)?,
            value: hex(words.after("value")?)?,
        },
        "pci_cfg_read" | "pci_cfg_write" => {
            let mut parts = words.0.split(' ');
            let function = function(parts.nth(1)?)?;
            let offset = parts.next()?.strip_prefix('@')?;
            What::Config {
                write: event.ends_with("write"),
                function,
                offset: u16::try_from(hex(offset)?).ok()?,
                value: u32::try_from(hex(parts.nth(1)?)?).ok()?,
            }
        }
        _ => return None,
    })
}

/// Words that are taken from the left.
struct Words<'a>(&'a str);

impl<'a> Words<'a> {
    /// The word after the word `key`; what came before is gone.
    fn after(&mut self, key: &str) -> Option<&'a str> {
        loop {
            let (word, rest) = self.0.split_once(' ')?;
            self.0 = rest;
            if word == key {
                let (value, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                self.0 = rest;
                return Some(value);
            }
        }
    }
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
}

/// `bus:device.function` in hexadecimal.
fn function(text: &str) -> Option<u16> {
    let (bus, rest) = text.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    let part = |text: &str, bits: u32| {
        u16::from_str_radix(text, 16)
            .ok()
            .filter(|value| *value < 1 << bits)
    };
    Some(part(bus, 8)? << 8 | part(device, 5)? << 3 | part(function, 3)?)
}

#[cfg(test)]
mod tests {
    use super::{What, parse};
    use proptest::prelude::*;

    fn what(line: &str) -> Option<What<'_>> {
        parse(line).map(|record| record.what)
    }

    // The lines below are QEMU 7.2.22's own.

    #[test]
    fn a_line_has_a_time_and_a_thread() {
        let record = parse(
            "14842@1795269802.839642:virtio_queue_notify vdev 0x55e3ca544030 n 1 vq 0x7fb6cbed8010",
        )
        .unwrap();
        assert_eq!(record.thread, 14842);
        assert_eq!(record.at, 1_795_269_802_839_642_000);
        assert_eq!(
            record.what,
            What::VirtioNotify {
                device: 0x55e3_ca54_4030,
                queue: 1
            }
        );
    }

    #[test]
    fn accesses_name_cpu_and_region() {
        let line = "14842@1795269802.839631:memory_region_ops_write cpu 3 mr 0x55e3ca53cb00 addr 0xfe803000 value 0x1 size 2 name 'virtio-pci-notify-virtio-blk'";
        assert_eq!(
            what(line),
            Some(What::Access {
                write: true,
                cpu: 3,
                region: "virtio-pci-notify-virtio-blk"
            })
        );
        let line = "14838@1795269802.629682:memory_region_ops_read cpu -1 mr 0x55e3c9eb9790 addr 0xfee00000 value 0x0 size 4 name 'a b'";
        assert_eq!(
            what(line),
            Some(What::Access {
                write: false,
                cpu: -1,
                region: "a b"
            })
        );
    }

    #[test]
    fn a_status_write_of_zero_is_seen() {
        assert_eq!(
            what("14838@1795269802.629707:virtio_set_status vdev 0x55e3ca544030 val 0"),
            Some(What::VirtioStatus {
                device: 0x55e3_ca54_4030,
                value: 0
            })
        );
    }

    #[test]
    fn faults_name_source_reason_and_address() {
        assert_eq!(
            what("1@2.000003:vtd_dmar_fault sid 0x300 fault 5 addr 0x12345000 write 1"),
            Some(What::Fault {
                source: 0x300,
                reason: 5,
                address: 0x1234_5000,
                write: true
            })
        );
    }

    #[test]
    fn interrupts_are_asked_for_and_allowed() {
        assert_eq!(
            what("1@2.000003:vtd_ir_remap_msi_req addr 0xfee000d0 data 0x0"),
            Some(What::InterruptRequest {
                address: 0xfee0_00d0
            })
        );
        assert_eq!(
            what(
                "1@2.000003:vtd_ir_remap_msi (addr 0xfee000d0, data 0x0) -> (addr 0xfee01004, data 0x40)"
            ),
            Some(What::InterruptRemapped)
        );
    }

    #[test]
    fn descriptors_keep_their_low_half() {
        assert_eq!(
            what("1@2.000003:vtd_inv_desc invalidate desc type wait high 0x7f000 low 0x25"),
            Some(What::Descriptor { low: 0x25 })
        );
    }

    #[test]
    fn configuration_accesses_name_the_function() {
        assert_eq!(
            what("14842@1795269802.672273:pci_cfg_read virtio-net-pci 01:00.0 @0xe -> 0x1af4"),
            Some(What::Config {
                write: false,
                function: 0x100,
                offset: 0xe,
                value: 0x1af4
            })
        );
        assert_eq!(
            what("14842@1795269802.672273:pci_cfg_write pcie-root-port 00:03.1 @0x3e <- 0x40"),
            Some(What::Config {
                write: true,
                function: 0x19,
                offset: 0x3e,
                value: 0x40
            })
        );
    }

    #[test]
    fn other_lines_are_passed_over() {
        for line in [
            "",
            "virtio-blk: Guest error",
            "2026-11-21T14:03:22.559783Z qemu-system-x86_64: warning: no x2apic",
            "1@2.000003:vtd_context_cache_reset ",
            "1@2.000003:vtd_dmar_fault sid",
            "1@99999999999999999999.000003:vtd_inv_desc low 0",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_line_makes_the_parser_panic(line in ".{0,120}") {
            let _ = parse(&line);
        }

        #[test]
        fn no_arguments_make_the_parser_panic(
            event in "(memory_region_ops_read|virtio_set_status|vtd_inv_desc|vtd_dmar_fault|pci_cfg_write)",
            arguments in "([a-z0-9@:.' -]|0x[0-9a-f]{1,18}|addr|cpu|low|name '){0,30}",
        ) {
            let line = format!("1@2.000003:{event} {arguments}");
            let _ = parse(&line);
        }
    }
}
