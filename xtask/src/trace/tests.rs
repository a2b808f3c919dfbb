//! Traces made up of lines as the emulator writes them.

use super::Trace;

const ANYTIME: (u64, u64) = (0, u64::MAX);

/// Builds a trace: each line is given a time of its own, one microsecond after the one before.
fn trace(threads: &[u32], lines: &[(u32, &str)]) -> Trace {
    let mut text = String::new();
    for (number, (thread, line)) in lines.iter().enumerate() {
        // What the plugin writes has no time.
        if line.starts_with("baton-") {
            text.push_str(&format!("{line}\n"));
        } else {
            text.push_str(&format!("{thread}@1.{number:06}:{line}\n"));
        }
    }
    Trace::from_lines(text.as_bytes(), threads).unwrap()
}

fn at(number: u64) -> u64 {
    1_000_000_000 + number * 1_000
}

const COMMON: &str = "memory_region_ops_write cpu 0 mr 0x1 addr 0xfea00014 value 0x0 size 1 name 'virtio-pci-common-virtio-net'";
const BELL: &str = "virtio_queue_notify vdev 0xaa n 1 vq 0x1";

fn notify(cpu: u32) -> String {
    format!(
        "memory_region_ops_write cpu {cpu} mr 0x1 addr 0xfea03004 value 0x1 size 2 name 'virtio-pci-notify-virtio-net'"
    )
}

#[test]
fn a_reset_counts_only_for_a_device_in_service() {
    let status = |value: u8| format!("virtio_set_status vdev 0xaa val {value}");
    let (zero, acknowledged, ok) = (status(0), status(1), status(15));
    let trace = trace(
        &[],
        &[
            (7, COMMON),
            (7, &zero),
            (7, &acknowledged),
            (7, &ok),
            (7, &zero),
            (7, &zero),
            (7, &ok),
        ],
    );
    let resets = trace.device_resets_between(ANYTIME);
    assert_eq!(resets.get("virtio-net"), Some(&1));
    assert!(trace.device_resets_between((0, at(3))).is_empty());
}

#[test]
fn the_hand_over_lies_between_two_cpus_doorbells() {
    let (old, new) = (notify(0), notify(2));
    let trace = trace(
        &[],
        &[
            (7, &old),
            (7, BELL),
            (7, &old),
            (7, BELL),
            (9, &new),
            (9, BELL),
            (9, &new),
            (9, BELL),
        ],
    );
    let (last, first) = trace.handed_over("virtio-net", ANYTIME, &[0, 1]).unwrap();
    assert_eq!((last.at, first.at), (at(3), at(5)));
    assert_eq!((last.cpu, first.cpu), (Some(0), Some(2)));
}

#[test]
fn two_kernels_that_both_ring_are_no_hand_over() {
    let (old, new) = (notify(0), notify(2));
    let trace = trace(
        &[],
        &[
            (7, &old),
            (7, BELL),
            (9, &new),
            (9, BELL),
            (7, &old),
            (7, BELL),
        ],
    );
    assert_eq!(trace.handed_over("virtio-net", ANYTIME, &[0, 1]), None);
    assert_eq!(trace.handed_over("virtio-net", ANYTIME, &[2]), None);
    assert!(trace.handed_over("virtio-net", (0, at(3)), &[0]).is_some());
}

#[test]
fn without_traced_accesses_the_thread_names_the_cpu() {
    let first = notify(0);
    let trace = trace(&[70, 71, 72], &[(70, &first), (70, BELL), (72, BELL)]);
    let (last, first) = trace.handed_over("virtio-net", ANYTIME, &[0]).unwrap();
    assert_eq!((last.cpu, first.cpu), (Some(0), Some(2)));
}

#[test]
fn one_thread_for_all_cpus_names_none_of_them() {
    let second = notify(1);
    let trace = trace(&[70, 70], &[(70, &second), (70, BELL)]);
    let bells: Vec<_> = trace.transmit_doorbells("virtio-net", ANYTIME).collect();
    assert_eq!(bells[0].cpu, Some(1));
}

#[test]
fn doorbells_of_other_queues_and_devices_do_not_count() {
    let notify = notify(0);
    let trace = trace(
        &[],
        &[
            (7, &notify),
            (7, "virtio_queue_notify vdev 0xaa n 0 vq 0x1"),
            (
                7,
                "memory_region_ops_write cpu 0 mr 0x1 addr 0xfe803000 value 0x0 size 2 name 'virtio-pci-notify-virtio-blk'",
            ),
            (7, "virtio_queue_notify vdev 0xbb n 1 vq 0x1"),
        ],
    );
    assert_eq!(trace.transmit_doorbells("virtio-net", ANYTIME).count(), 0);
    assert_eq!(trace.transmit_doorbells("virtio-blk", ANYTIME).count(), 1);
}

#[test]
fn the_fence_is_counted_between_marks() {
    let iotlb = "vtd_inv_desc invalidate desc type iotlb high 0x0 low 0xd2";
    let wait = "vtd_inv_desc invalidate desc type wait high 0x7000 low 0x100000025";
    let trace = trace(
        &[],
        &[
            (7, iotlb),
            (7, "baton-mark 1 0"),
            (7, "vtd_reg_write addr 0x88 size 0x8 value 0x20"),
            (7, iotlb),
            (7, iotlb),
            (7, wait),
            (
                7,
                "vtd_inv_desc_wait_sw wait invalidate status write addr 0x7000 data 0x1",
            ),
            (7, "vtd_reg_read addr 0x34 size 0x4"),
            (7, "baton-mark 2 0"),
            (7, wait),
        ],
    );
    let [first, second] = trace.marks() else {
        panic!("two marks: {:?}", trace.marks());
    };
    assert_eq!((first.number, second.number), (1, 2));
    let places = first.place..second.place;
    let counts = trace.fence_in(&places);
    assert_eq!((counts.invalidation_commands, counts.waits), (2, 1));
    assert_eq!((counts.mmio_writes, counts.mmio_reads), (Some(1), Some(1)));
    assert_eq!(counts.mmio_accesses, 2);
    assert_eq!(trace.fence().waits, 2);
    assert_eq!(trace.fence_between((at(9), at(9))).waits, 1);
}

#[test]
fn the_fence_of_amd_is_counted_between_marks() {
    let wait = |address: u64| {
        format!(
            "amdvi_completion_wait completion wait requested with store address {address:#x} and store data 0x1"
        )
    };
    let (order, wait) = (wait(0), wait(0x7000));
    let pages = "amdvi_pages_inval AMD-Vi pages for domain 0x2 invalidated";
    let tail = "amdvi_mmio_read AMDVI_MMIO_COMMAND_TAIL read addr 0x2008, size 4 offset 0x2008";
    let trace = trace(
        &[],
        &[
            (7, pages),
            (7, "baton-mark 1 0"),
            (7, tail),
            (
                7,
                "amdvi_devtab_inval device table entry for devid: 03:00.0 invalidated",
            ),
            (7, &order),
            (7, pages),
            (7, &wait),
            (7, "baton-mark 2 0"),
            (7, tail),
        ],
    );
    let places = trace.marks()[0].place..trace.marks()[1].place;
    let counts = trace.fence_in(&places);
    assert_eq!((counts.invalidation_commands, counts.waits), (3, 1));
    assert_eq!(counts.mmio_accesses, 1);
    assert_eq!((counts.mmio_writes, counts.mmio_reads), (None, None));
    assert_eq!(trace.fence().mmio_accesses, 2);
}

#[test]
fn what_was_blocked_on_amd_names_who_asked_and_which_way() {
    let asked = |function: &str, address: u64, found: u64| {
        format!("amdvi_translation_result devid: {function} gpa {address:#x} hpa {found:#x}")
    };
    let (absent, allowed) = (
        asked("03:00.0", 0x1040, 0),
        asked("04:00.0", 0x2040, 0x2000),
    );
    let read_only = asked("05:00.0", 0x3040, 0x3000);
    let rejected = |direction: &str, address: u64| {
        format!(
            "Invalid {direction} at addr {address:#X}, size 4, region '(null)', reason: rejected"
        )
        .replace("0X", "0x")
    };
    let mut text = String::new();
    for (number, (thread, line)) in [
        (7, absent.clone()),
        (0, rejected("read", 0x1040)),
        (7, allowed),
        (8, read_only),
        (9, asked("06:00.0", 0x9000, 0)),
        (0, rejected("write", 0x3040)),
        // A CPU's, of which the IOMMU was not asked.
        (0, rejected("write", 0x2044)),
        // The one from the beginning was told of already.
        (0, rejected("read", 0x1040)),
    ]
    .iter()
    .enumerate()
    {
        match thread {
            0 => text.push_str(&format!("{line}\n")),
            _ => text.push_str(&format!("{thread}@1.{number:06}:{line}\n")),
        }
    }
    let trace = Trace::from_lines(text.as_bytes(), &[]).unwrap();
    let blocked: Vec<_> = trace
        .faults_between(ANYTIME)
        .map(|fault| (fault.source, fault.address, fault.write))
        .collect();
    assert_eq!(blocked, [(0x300, 0x1040, false), (0x500, 0x3040, true)]);
    let requesters: Vec<u16> = trace.requesters().iter().copied().collect();
    assert_eq!(requesters, [0x300, 0x400, 0x500, 0x600]);
}

#[test]
fn accesses_are_counted_by_region_and_not_the_emulators_own() {
    let trace = trace(
        &[],
        &[
            (
                7,
                "memory_region_ops_read cpu 1 mr 0x1 addr 0x3fd value 0x60 size 1 name 'serial'",
            ),
            (
                7,
                "memory_region_ops_write cpu 1 mr 0x1 addr 0x3f8 value 0x41 size 1 name 'serial'",
            ),
            (
                1,
                "memory_region_ops_write cpu -1 mr 0x1 addr 0xfee00000 value 0x0 size 4 name 'vtd-ir'",
            ),
        ],
    );
    let counts = trace.accesses_in(&(0..u64::MAX), &[0, 1]);
    assert_eq!(counts.len(), 1);
    assert_eq!((counts["serial"].reads, counts["serial"].writes), (1, 1));
    assert!(trace.accesses_in(&(0..u64::MAX), &[0]).is_empty());
}

#[test]
fn a_secondary_bus_reset_is_seen() {
    let trace = trace(
        &[],
        &[
            (7, "pci_cfg_write pcie-root-port 00:04.0 @0x3e <- 0x2"),
            (7, "pci_cfg_write pcie-root-port 00:04.0 @0x3e <- 0x42"),
        ],
    );
    assert_eq!(trace.bus_resets_between(ANYTIME), 1);
}

#[test]
fn faults_are_told_apart_by_time() {
    let trace = trace(
        &[],
        &[
            (7, "vtd_dmar_fault sid 0x300 fault 5 addr 0x1000 write 1"),
            (7, "vtd_dmar_fault sid 0x400 fault 6 addr 0x2000 write 0"),
        ],
    );
    let later: Vec<_> = trace.faults_between((at(1), at(9))).collect();
    assert_eq!(later.len(), 1);
    assert_eq!(
        (later[0].source, later[0].address, later[0].write),
        (0x400, 0x2000, false)
    );
}

#[test]
fn an_interrupt_is_delivered_where_its_own_thread_says_so() {
    let asked = |handle: u32| {
        format!(
            "vtd_ir_remap_msi_req addr {:#x} data 0x0",
            0xfee0_0010 | handle << 5
        )
    };
    let (first, second) = (asked(1), asked(2));
    let allowed = "vtd_ir_remap_msi (addr 0xfee00030, data 0x0) -> (addr 0xfee01004, data 0x40)";
    let trace = trace(
        &[],
        &[(7, &first), (8, &second), (7, allowed), (7, allowed)],
    );
    let all: Vec<_> = trace.interrupts_between(ANYTIME).collect();
    assert_eq!(all.len(), 2);
    assert!(all[0].delivered && !all[1].delivered);
}

#[test]
fn an_interrupt_on_amd_is_told_by_its_data() {
    let asked =
        |vector: u32| format!("amdvi_ir_remap_msi_req addr 0xfee00000 data {vector:#x} devid 0x0");
    let (first, second) = (asked(0x41), asked(0x42));
    let allowed = "amdvi_ir_remap_msi (addr 0xfee00000, data 0x42) -> (addr 0xfee01004, data 0x42)";
    let trace = trace(&[], &[(7, &first), (7, &second), (7, allowed)]);
    let all: Vec<_> = trace.interrupts_between(ANYTIME).collect();
    let told: Vec<_> = all.iter().map(|one| (one.data, one.delivered)).collect();
    assert_eq!(told, [(0x41, false), (0x42, true)]);
}
