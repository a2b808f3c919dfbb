//! Bytes that mean harm, given to every entry point.

use acpi_capture::memory::{E820Entries, MemoryMap, UefiDescriptors};
use acpi_capture::table::*;
use acpi_capture::*;
use proptest::prelude::*;

use crate::build;
use crate::dmar::{Topology, function};

/// Reads all there is to read of `bytes`, taken for each kind of table in turn. Gives how many
/// things were read, so that nothing is optimised away.
pub(crate) fn read_everything(bytes: &[u8]) -> usize {
    let mut read = 0;
    read += Rsdp::parse(bytes).is_ok() as usize;
    read += SmbiosEntry::parse(bytes).is_ok() as usize;
    read += SmbiosStructures::new(bytes)
        .map(|structure| structure.map_or(0, |s| s.strings().count()))
        .sum::<usize>();
    if let Ok(capture) = Capture::parse(bytes) {
        read += capture.tables().count();
    }
    for size in [20, 24, 40, 48] {
        if let Ok(entries) = E820Entries::parse(bytes, size) {
            read += MemoryMap::<16>::from_regions(entries).map_or(0, |map| map.regions().len());
        }
        if let Ok(entries) = UefiDescriptors::parse(bytes, size) {
            read += entries.count();
        }
    }
    // The checksum would keep nearly all damage out, so it is waived.
    let Ok(sdt) = Sdt::parse_any_sum(bytes) else {
        return read;
    };
    read += RootTable::parse(bytes).map_or(0, |root| root.addresses().count());
    if let Ok(madt) = Madt::from_sdt(sdt) {
        read += madt.entries().count() + madt.processors().count() + madt.io_apics().count();
        read += madt.local_apic().0 as usize & 1;
    }
    if let Ok(mcfg) = Mcfg::from_sdt(sdt) {
        read += mcfg.allocations().filter_map(|a| a.memory()).count();
    }
    if let Ok(srat) = Srat::from_sdt(sdt) {
        read += srat.entries().count();
    }
    if let Ok(slit) = Slit::from_sdt(sdt) {
        read += slit.distance(0, u32::MAX).is_some() as usize;
        read += slit.distance(1, 1).is_some() as usize;
    }
    if let Ok(fadt) = Fadt::from_sdt(sdt) {
        read += 1 + fadt.reset().is_some() as usize + fadt.dsdt_64().0 as usize % 2;
    }
    read += Hpet::from_sdt(sdt).is_ok() as usize;
    read += read_small(sdt);
    if let Ok(ivrs) = Ivrs::from_sdt(sdt) {
        read += ivrs.blocks().count() + ivrs.special_devices().count();
        read += ivrs.units().flat_map(|unit| unit.devices()).count();
        read += ivrs.memory().filter(|m| m.unity_map().is_ok()).count();
        ivrs.findings(None, |_| read += 1);
        read += ivrs.lost_memory().is_some() as usize;
        for bus in [0, 1, 2, 255] {
            let function = function(bus, 1, 0);
            read += ivrs.unit_for(function).covered().is_some() as usize;
            read += ivrs.reserved_for(function).count();
        }
    }
    if let Ok(dmar) = Dmar::from_sdt(sdt) {
        let topology = Topology::with(&[(function(0, 1, 0), 1, 4), (function(1, 0, 0), 0, 255)]);
        read += dmar.structures().count() + dmar.units().count();
        dmar.findings(|_| read += 1);
        read += dmar.interrupt_sources(&topology).count();
        for bus in [0, 1, 2, 255] {
            read += dmar
                .unit_for(function(bus, 1, 0), &topology)
                .covered()
                .is_some() as usize;
            read += dmar.reserved_for(function(bus, 1, 0), &topology).count();
        }
    }
    read
}

/// The tables that have no structure worth a name.
fn read_small(sdt: Sdt<'_>) -> usize {
    let mut read = 0;
    if let Ok(hmat) = Hmat::from_sdt(sdt) {
        for structure in hmat.structures().flatten() {
            read += 1;
            if let HmatStructure::Performance(matrix) = structure {
                read += matrix.initiators().count() + matrix.targets().count();
                read += matrix.value(0, 0).is_some() as usize;
            }
        }
    }
    if let Ok(spcr) = Spcr::from_sdt(sdt) {
        read += 1 + spcr.path().len() + spcr.pci_function().is_some() as usize;
        read += format!("{spcr:?}").len();
    }
    if let Ok(dbg2) = Dbg2::from_sdt(sdt) {
        read += dbg2.ports().count();
        let ports = dbg2.ports().flatten();
        read += ports
            .map(|port| port.registers().count() + port.path.len() + port.oem_data.len())
            .sum::<usize>();
    }
    read += Bgrt::from_sdt(sdt).is_ok() as usize;
    read += Tpm2::from_sdt(sdt).is_ok_and(|tpm| tpm.log.is_some()) as usize;
    read += Waet::from_sdt(sdt).is_ok() as usize;
    read += Ecdt::from_sdt(sdt).map_or(0, |ecdt| 1 + ecdt.path.len());
    read
}

pub(crate) fn tables() -> Vec<Vec<u8>> {
    use crate::build_small::*;
    use build::*;
    vec![
        madt(
            0xfee0_0000,
            1,
            &[
                local_apic(0, 0, 1),
                local_x2apic(1, 500, 1),
                io_apic(1, 0xfec0_0000, 0),
                source_override(0, 2, 0),
                nmi_source(0, 1),
                local_apic_nmi(255, 0, 1),
                local_x2apic_nmi(1, 0, 1),
                local_apic_override(0x1000),
                wakeup(0x2000),
            ],
        ),
        mcfg(&[(0xb000_0000, 0, 0, 255)]),
        srat(
            3,
            &[
                srat_apic(0, 1, 1),
                srat_memory(0, 0, 0x1000, 1),
                srat_x2apic(1, 2, 1),
            ],
        ),
        slit(&[vec![10, 20], vec![20, 10]]),
        hpet(0xfed0_0000, 0),
        fadt((0x1000, 0), (0x2000, 0)),
        dmar(
            39,
            1,
            &[
                drhd(
                    false,
                    0,
                    0xfed9_0000,
                    &[
                        scope(ENDPOINT, 0, 0, &[(1, 0), (0, 0), (2, 0)]),
                        scope(BRIDGE, 0, 0, &[(1, 0)]),
                    ],
                ),
                rmrr(0, 0x1000, 0x1fff, &[scope(ENDPOINT, 0, 1, &[(1, 0)])]),
                drhd(true, 0, 0xfed9_1000, &[scope(IO_APIC, 1, 0xf0, &[(1, 0)])]),
                structure(4, b"\0\0\0\x01\\_SB", &[]),
            ],
        ),
        ivrs(&[
            ivhd(
                0x40,
                0,
                2,
                0xfd50_0000,
                &[
                    device_range(8, 0xfffe, 0),
                    device_alias(0xff00, Some(0xffff), 0xa5),
                    device(2, 0x10, 1),
                    special(1, 1, 0xa0, 0xd7),
                    acpi_device(0xa5, b"AMDI0020", 2, b"\\_SB.FUR0"),
                ],
            ),
            ivmd(0x22, 8, (0, 0xfff), 0x1000, 1),
        ]),
        hmat_sample(),
        spcr(4, b"\\_SB.UAR1"),
        dbg2(&[(0x8000, 0, b"\\_SB.UAR1", &[(0x3f8, 8)])]),
        bgrt(0b101, 0x7000_0000),
        tpm2(7, Some((0x1_0000, 0x7100_0000))),
        waet(3),
        ecdt(0x66, 0x62, b"\\_SB.PCI0.LPCB.EC0"),
        rsdp(1, 2),
        xsdt(&[1, 2, 3]),
        smbios_entry_64(1, 2),
        smbios_entry_32(1, 2, 3),
        [
            smbios_structure(0, 0, &[1; 20], &["a", "b"]),
            smbios_structure(127, 1, &[], &[]),
        ]
        .concat(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        read_everything(&bytes);
    }

    #[test]
    fn damaged_tables_are_read_without_panic(
        which: prop::sample::Index,
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut: prop::sample::Index,
    ) {
        let tables = tables();
        let mut bytes = tables[which.index(tables.len())].clone();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            // The signature and the upper half of the length stay, or little would be read.
            if !(0..4).contains(&at) && !(6..8).contains(&at) {
                bytes[at] = value;
            }
        }
        read_everything(&bytes);
        bytes.truncate(cut.index(bytes.len()));
        read_everything(&bytes);
    }
}

#[test]
fn every_prefix_of_every_table_is_read_without_panic() {
    for table in tables() {
        let whole = read_everything(&table);
        assert!(whole > 0, "{table:?}");
        for length in 0..table.len() {
            read_everything(&table[..length]);
        }
    }
}
