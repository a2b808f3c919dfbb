//! The same tables as the `acpi` crate reads them. It reads through pointers and trusts lengths, so
//! it is given sound tables only. It is no judge of the SRAT, whose entries it takes to have lengths
//! of 16 bits.

use core::pin::Pin;

use acpi::sdt::madt::MadtEntry as Other;
use acpi_capture::table::*;
use handoff_abi::PhysAddr;

use crate::build;
use crate::corpus::{corpus, say};

/// Views the bytes of a table as the other crate's structure.
fn other<T>(bytes: &[u8]) -> Pin<&T> {
    assert_eq!(align_of::<T>(), 1);
    assert!(bytes.len() >= size_of::<T>());
    // SAFETY: the structure is packed, so any address will do; it consists of integers, for which
    // all bytes are valid; and the assertion above says that there are bytes enough. What follows
    // it is read by the structure's own length, which the caller has checked to be that of `bytes`.
    let table = unsafe { &*bytes.as_ptr().cast::<T>() };
    // SAFETY: it is behind a shared reference and never moved.
    unsafe { Pin::new_unchecked(table) }
}

/// What both readings of an entry are brought to.
#[derive(Debug, PartialEq, Eq)]
enum Plain {
    Processor(u32, u32, u32),
    IoApic(u8, u64, u32),
    Override(u8, u8, u32, u16),
    NmiSource(u16, u32),
    Nmi(u32, u16, u8),
    Address(u64),
    Wakeup(u64),
}

fn ours(entry: MadtEntry<'_>) -> Option<Plain> {
    Some(match entry {
        MadtEntry::LocalApic(cpu) => Plain::Processor(cpu.apic_id.0, cpu.uid, cpu.flags.bits()),
        MadtEntry::IoApic(io) => Plain::IoApic(io.id, io.address.0, io.interrupt_base),
        MadtEntry::SourceOverride(o) => Plain::Override(o.bus, o.source, o.interrupt, o.flags),
        MadtEntry::NmiSource(nmi) => Plain::NmiSource(nmi.flags, nmi.interrupt),
        MadtEntry::LocalApicNmi(nmi) => {
            let uid = match nmi.target {
                NmiTarget::Processor(uid) => uid,
                NmiTarget::All if nmi.x2apic => u32::MAX,
                NmiTarget::All => 0xff,
            };
            Plain::Nmi(uid, nmi.flags, nmi.lint)
        }
        MadtEntry::LocalApicOverride(address) => Plain::Address(address.0),
        MadtEntry::Wakeup(wakeup) => Plain::Wakeup(wakeup.mailbox.0),
        _ => return None,
    })
}

fn theirs(entry: Other<'_>) -> Option<Plain> {
    Some(match entry {
        Other::LocalApic(e) => Plain::Processor(e.apic_id.into(), e.processor_id.into(), e.flags),
        Other::LocalX2Apic(e) => Plain::Processor(e.x2apic_id, e.processor_uid, e.flags),
        Other::IoApic(e) => Plain::IoApic(
            e.io_apic_id,
            e.io_apic_address.into(),
            e.global_system_interrupt_base,
        ),
        Other::InterruptSourceOverride(e) => {
            Plain::Override(e.bus, e.irq, e.global_system_interrupt, e.flags)
        }
        Other::NmiSource(e) => Plain::NmiSource(e.flags, e.global_system_interrupt),
        Other::LocalApicNmi(e) => Plain::Nmi(e.processor_id.into(), e.flags, e.nmi_line),
        Other::X2ApicNmi(e) => Plain::Nmi(e.processor_uid, e.flags, e.nmi_line),
        Other::LocalApicAddressOverride(e) => Plain::Address(e.local_apic_address),
        Other::MultiprocessorWakeup(e) => Plain::Wakeup(e.mailbox_address),
        _ => return None,
    })
}

fn compare_madt(bytes: &[u8]) -> usize {
    let madt = Madt::parse(bytes).unwrap();
    assert_eq!(madt.sdt().bytes().len(), bytes.len());
    if madt.entries().any(|entry| entry.is_err()) {
        return 0;
    }
    let oracle: Pin<&acpi::sdt::madt::Madt> = other(bytes);
    assert_eq!(u64::from(oracle.local_apic_address), madt.local_apic_32().0);
    assert_eq!(
        oracle.supports_8259(),
        madt.flags().contains(MadtFlags::PCAT_COMPAT)
    );
    let ours: Vec<_> = madt
        .entries()
        .filter_map(|entry| ours(entry.unwrap()))
        .collect();
    let theirs: Vec<_> = oracle.entries().filter_map(theirs).collect();
    assert_eq!(ours, theirs);
    ours.len()
}

fn compare_mcfg(bytes: &[u8]) -> usize {
    let mcfg = Mcfg::parse(bytes).unwrap();
    assert_eq!(mcfg.sdt().bytes().len(), bytes.len());
    let oracle: Pin<&acpi::sdt::mcfg::Mcfg> = other(bytes);
    let theirs: Vec<_> = oracle
        .entries()
        .iter()
        .map(|entry| EcamAllocation {
            base: PhysAddr(entry.base_address),
            segment: entry.pci_segment_group,
            first_bus: entry.bus_number_start,
            last_bus: entry.bus_number_end,
        })
        .collect();
    assert_eq!(mcfg.allocations().collect::<Vec<_>>(), theirs);
    theirs.len()
}

fn compare_fadt(bytes: &[u8]) {
    let fadt = Fadt::parse(bytes).unwrap();
    let oracle: Pin<&acpi::sdt::fadt::Fadt> = other(bytes);
    let (facs, dsdt, timer) = (
        oracle.firmware_ctrl,
        oracle.dsdt_address,
        oracle.pm_timer_block,
    );
    assert_eq!(fadt.facs_32().0, u64::from(facs));
    assert_eq!(fadt.dsdt_32().0, u64::from(dsdt));
    assert_eq!(fadt.pm_timer(), timer);
    assert_eq!(fadt.sci_interrupt(), { oracle.sci_interrupt });
    assert_eq!(fadt.smi_command(), { oracle.smi_cmd_port });
    assert_eq!(fadt.pm1a_control(), { oracle.pm1a_control_block });
    let flags = oracle.flags;
    assert_eq!(
        fadt.flags().contains(FadtFlags::HW_REDUCED_ACPI),
        flags.system_is_hw_reduced_acpi()
    );
    assert_eq!(
        fadt.reset().is_some(),
        flags.supports_system_reset_via_fadt()
    );
    if let (Some((register, value)), Ok(theirs)) = (fadt.reset(), oracle.reset_register()) {
        assert_eq!(
            (register.address, value),
            (theirs.address, oracle.reset_value)
        );
    }
}

#[test]
fn built_tables_read_alike() {
    let read = compare_madt(&build::madt(
        0xfee0_0000,
        1,
        &[
            build::local_apic(1, 2, 3),
            build::local_x2apic(0x1_0002, 0x3_0004, 1),
            build::io_apic(5, 0xfec0_1000, 24),
            build::source_override(9, 20, 13),
            build::nmi_source(7, 8),
            build::local_apic_nmi(0xff, 5, 1),
            build::local_x2apic_nmi(0xffff_ffff, 5, 0),
            build::local_apic_override(0x1_fee0_0000),
            build::wakeup(0x1234_5000),
            vec![0x7f, 4, 0, 0],
        ],
    ));
    assert_eq!(read, 9);
    assert_eq!(
        compare_mcfg(&build::mcfg(&[(0xe000_0000, 3, 1, 9), (1, 2, 3, 4)])),
        2
    );
    compare_fadt(&build::fadt((1, 2), (3, 4)));
}

#[test]
fn the_corpus_reads_alike() {
    let Some(corpus) = corpus() else { return };
    let (mut madt, mut mcfg, mut fadt) = (0, 0, 0);
    for entry in corpus {
        match entry.kind.as_str() {
            "acpi:APIC" => madt += compare_madt(&entry.bytes),
            "acpi:MCFG" => mcfg += compare_mcfg(&entry.bytes),
            "acpi:FACP" if entry.bytes.len() >= 276 => {
                compare_fadt(&entry.bytes);
                fadt += 1;
            }
            _ => {}
        }
    }
    say(&format!(
        "corpus: {madt} MADT entries, {mcfg} MCFG allocations and {fadt} FADTs read alike"
    ));
    assert!(madt > 4000 && mcfg > 400 && fadt > 100);
}
