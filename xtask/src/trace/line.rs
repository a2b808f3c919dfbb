//! One line of the emulator's trace (log backend with time stamps, QEMU 7.2):
//! `thread@seconds.microseconds:event arguments`.

/// The low four bits of a wait descriptor (VT-d, 6.5.2.8).
const WAIT_DESCRIPTOR: u64 = 5;

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
    /// The IOMMU took a command from its queue: an invalidation, or one that only orders others.
    Command,
    /// The IOMMU took a command that tells software when those before it are done.
    Wait,
    /// A device's request was blocked.
    Fault {
        /// Requester id.
        source: u16,
        /// Fault reason, where the trace tells it.
        reason: Option<u8>,
        /// The address the device asked for.
        address: u64,
        /// Direction.
        write: bool,
    },
    /// The IOMMU looked a device's request up. Whether that allowed the request shows in that it is not
    /// rejected next.
    Asked {
        /// Requester id.
        source: u16,
        /// The address the device asked for.
        address: u64,
    },
    /// A device asked for an interrupt, in any format.
    InterruptRequest {
        /// The message's address. On VT-d it holds the handle.
        address: u64,
        /// The message's data. On AMD-Vi it holds the index.
        data: u64,
    },
    /// The request before it on the same thread was allowed and became an interrupt.
    InterruptRemapped,
    /// A CPU accessed a register of the IOMMU.
    Register {
        /// Direction, where the trace tells it.
        write: Option<bool>,
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

/// A request that the emulator let nobody answer. It says so in a line without time and thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rejected {
    /// Direction.
    pub(crate) write: bool,
    /// The address that was asked for.
    pub(crate) address: u64,
}

/// Reads a line that says that a request was rejected; `None` for any other.
pub(crate) fn rejected(line: &str) -> Option<Rejected> {
    let rest = line.strip_prefix("Invalid ")?;
    let (direction, rest) = rest.split_once(" at addr ")?;
    let (address, rest) = rest.split_once(',')?;
    if !rest.ends_with("reason: rejected") {
        return None;
    }
    let write = match direction {
        "write" => true,
        "read" => false,
        _ => return None,
    };
    let address = hex(address)?;
    Some(Rejected { write, address })
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
        "vtd_inv_desc" => match hex(words.after("low")?)? & 0xf {
            WAIT_DESCRIPTOR => What::Wait,
            _ => What::Command,
        },
        "vtd_dmar_fault" => What::Fault {
            source: u16::try_from(hex(words.after("sid")?)?).ok()?,
            reason: Some(words.after("fault")?.parse().ok()?),
            address: hex(words.after("addr")?)?,
            write: words.after("write")? == "1",
        },
        "vtd_ir_remap_msi_req" | "amdvi_ir_remap_msi_req" => What::InterruptRequest {
            address: hex(words.after("addr")?)?,
            data: hex(words.after("data")?)?,
        },
        "vtd_ir_remap_msi" | "amdvi_ir_remap_msi" => What::InterruptRemapped,
        "vtd_reg_read" => What::Register { write: Some(false) },
        "vtd_reg_write" => What::Register { write: Some(true) },
        // What it says of a write is that it was a read.
        "amdvi_mmio_read" => What::Register { write: None },
        "amdvi_devtab_inval"
        | "amdvi_pages_inval"
        | "amdvi_iotlb_inval"
        | "amdvi_intr_inval"
        | "amdvi_all_inval"
        | "amdvi_prefetch_pages"
        | "amdvi_ppr_exec"
        | "amdvi_unhandled_command" => What::Command,
        // One that stores nothing only orders those around it.
        "amdvi_completion_wait" => match hex(words.after("address")?)? {
            0 => What::Command,
            _ => What::Wait,
        },
        "amdvi_translation_result" => What::Asked {
            source: function(words.after("devid:")?)?,
            address: hex(words.after("gpa")?)?,
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
    use super::{What, parse, rejected};
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
                reason: Some(5),
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
                address: 0xfee0_00d0,
                data: 0
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
    fn waits_are_told_from_other_commands() {
        for (line, expected) in [
            (
                "vtd_inv_desc invalidate desc type wait high 0x7f000 low 0x25",
                What::Wait,
            ),
            (
                "vtd_inv_desc invalidate desc type iotlb high 0x0 low 0xd2",
                What::Command,
            ),
            (
                "amdvi_devtab_inval device table entry for devid: 03:00.0 invalidated",
                What::Command,
            ),
            (
                "amdvi_completion_wait completion wait requested with store address 0x0 and store data 0x0",
                What::Command,
            ),
            (
                "amdvi_completion_wait completion wait requested with store address 0x7f000 and store data 0x9",
                What::Wait,
            ),
        ] {
            assert_eq!(
                what(&format!("1@2.000003:{line}")),
                Some(expected),
                "{line}"
            );
        }
    }

    #[test]
    fn a_request_on_amd_names_who_asked_for_what_and_a_rejection_which_way() {
        assert_eq!(
            what("1@2.000003:amdvi_translation_result devid: 07:02.0 gpa 0x5040 hpa 0x5000"),
            Some(What::Asked {
                source: 0x710,
                address: 0x5040
            })
        );
        let line = "Invalid write at addr 0x13C00004, size 4, region '(null)', reason: rejected";
        let told = rejected(line).unwrap();
        assert_eq!((told.write, told.address), (true, 0x13c0_0004));
        let line = "Invalid read at addr 0x0, size 4, region '(null)', reason: rejected";
        let told = rejected(line).unwrap();
        assert_eq!((told.write, told.address), (false, 0));
        for line in [
            "Invalid read at addr 0x0, size 4, region '(null)', reason: invalid size",
            "Invalid access at addr 0x0, reason: rejected",
            "Invalid write at addr x, reason: rejected",
            "Invalid ",
        ] {
            assert_eq!(rejected(line), None, "{line}");
        }
    }

    #[test]
    fn an_access_of_which_only_the_place_is_told_has_no_direction() {
        assert_eq!(
            what(
                "1@2.000003:amdvi_mmio_read AMDVI_MMIO_STATUS read addr 0x2020, size 4 offset 0x2020"
            ),
            Some(What::Register { write: None })
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
            let _ = rejected(&line);
        }

        #[test]
        fn no_arguments_make_the_parser_panic(
            event in "(memory_region_ops_read|virtio_set_status|vtd_inv_desc|vtd_dmar_fault|amdvi_translation_result|amdvi_completion_wait|pci_cfg_write)",
            arguments in "([a-z0-9@:.' -]|0x[0-9a-f]{1,18}|addr|cpu|low|devid:|gpa|hpa|name '){0,30}",
        ) {
            let line = format!("1@2.000003:{event} {arguments}");
            let _ = parse(&line);
        }
    }
}
