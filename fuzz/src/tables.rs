//! ACPI tables.

use acpi_capture::table::*;
use handoff_abi::{PciFunction, RequesterId};

use crate::grammar::{self, EntryShape, Input};

/// A topology in which some functions are bridges, by their numbers alone.
struct Topology;

impl PciTopology for Topology {
    fn bridge_buses(&self, function: PciFunction) -> Option<BridgeBuses> {
        let number = function.requester.0;
        number.is_multiple_of(3).then_some(BridgeBuses {
            secondary: (number >> 3) as u8,
            subordinate: (number >> 2) as u8,
        })
    }
}

fn functions() -> impl Iterator<Item = PciFunction> {
    (0..=u16::MAX).step_by(4099).map(|number| PciFunction {
        segment: number % 2,
        requester: RequesterId(number),
    })
}

/// Reads a table in every way there is.
pub fn read(bytes: &[u8]) {
    let Ok(sdt) = Sdt::parse_any_sum(bytes) else {
        return;
    };
    assert_eq!(sdt.body().len() + 36, sdt.bytes().len());
    if let Ok(madt) = Madt::from_sdt(sdt) {
        assert!(madt.entries().count() <= bytes.len());
        let mut seen = std::collections::HashSet::new();
        for cpu in madt.processors() {
            assert!(seen.insert(cpu.apic_id), "a processor twice");
            assert_eq!(madt.processor(cpu.apic_id), Some(cpu));
        }
        let _ = (madt.io_apics().count(), madt.local_apic());
    }
    if let Ok(srat) = Srat::from_sdt(sdt) {
        assert!(srat.entries().count() <= bytes.len());
    }
    if let Ok(slit) = Slit::from_sdt(sdt) {
        let size = slit.localities();
        assert!(size * size <= bytes.len() as u64);
        for (from, to) in [(0, 0), (0, size), (size, 0), (size / 2, size / 3)] {
            let there = from < size && to < size;
            assert_eq!(slit.distance(from as u32, to as u32).is_some(), there);
        }
    }
    if let Ok(mcfg) = Mcfg::from_sdt(sdt) {
        for allocation in mcfg.allocations() {
            if let Some(memory) = allocation.memory() {
                assert_eq!(memory.length() % EcamAllocation::BUS_LENGTH, 0);
            }
        }
    }
    if let Ok(fadt) = Fadt::from_sdt(sdt) {
        let _ = (fadt.reset(), fadt.facs(), fadt.dsdt(), fadt.flags());
        let _ = (
            fadt.block(FadtBlock::Gpe0),
            fadt.block(FadtBlock::SleepStatus),
        );
    }
    if let Ok(hmat) = Hmat::from_sdt(sdt) {
        for structure in hmat.structures().flatten() {
            if let HmatStructure::Performance(matrix) = structure {
                let cells = matrix.initiators().count() * matrix.targets().count();
                assert!(cells * 2 <= bytes.len());
                let _ = (matrix.value(0, 0), matrix.value(1, u32::MAX));
            }
        }
    }
    if let Ok(spcr) = Spcr::from_sdt(sdt) {
        assert!(spcr.path().len() <= bytes.len());
        let _ = format!("{spcr:?}");
    }
    if let Ok(dbg2) = Dbg2::from_sdt(sdt) {
        for port in dbg2.ports().flatten() {
            assert!(port.registers().count() * 16 <= 2 * bytes.len());
        }
        // Each port has bytes of its own.
        assert!(dbg2.ports().count() <= bytes.len() / 22 + 1);
    }
    let _ = (
        Hpet::from_sdt(sdt),
        Bgrt::from_sdt(sdt),
        Waet::from_sdt(sdt),
    );
    let _ = (Tpm2::from_sdt(sdt), Ecdt::from_sdt(sdt));
    let _ = RootTable::parse(bytes).map(|root| root.addresses().count());
    if let Ok(dmar) = Dmar::from_sdt(sdt) {
        let units = dmar.units().count();
        dmar.findings(|finding| assert!(!format!("{finding}").is_empty()));
        for function in functions() {
            if let Some(covered) = dmar.unit_for(function, &Topology).covered() {
                assert!(covered.index < units);
                assert_eq!(dmar.units().nth(covered.index), Some(covered.unit));
            }
            let _ = dmar.reserved_for(function, &Topology).count();
        }
        let _ = dmar.interrupt_sources(&Topology).count();
    }
    if let Ok(ivrs) = Ivrs::from_sdt(sdt) {
        read_ivrs(&ivrs, functions());
    }
}

fn read_ivrs(ivrs: &Ivrs<'_>, functions: impl Iterator<Item = PciFunction>) {
    let units: Vec<_> = ivrs.units().collect();
    ivrs.findings(None, |finding| assert!(!format!("{finding}").is_empty()));
    for function in functions {
        if let Some(covered) = ivrs.unit_for(function).covered() {
            let unit = units[covered.index];
            assert_eq!(unit.description, covered.unit);
            assert!(unit.is_usable() && unit.requester != function.requester);
        }
        for map in ivrs.reserved_for(function).flatten() {
            assert!(map.region.range.is_empty() || map.region.range.is_aligned_to(4096));
        }
    }
    for source in ivrs.interrupt_sources() {
        assert!(source.index < units.len());
    }
    let _ = ivrs.lost_memory();
}

/// A table that the input asks for.
pub fn table(bytes: &[u8]) {
    let table = grammar::table(bytes);
    assert!(Sdt::parse(&table).is_ok());
    read(&table);
    // And the bytes as they are.
    read(bytes);
}

/// Where a look-up leads: the unit's registers and the id on arrival.
fn outcome(ivrs: &Ivrs<'_>, function: PciFunction) -> Result<(u64, u16, u8), ()> {
    match ivrs.unit_for(function) {
        IvrsMatch::Covered(found) => Ok((
            found.unit.registers.base().0,
            found.arrives_as.0,
            found.settings.bits(),
        )),
        IvrsMatch::Uncovered(_) => Err(()),
    }
}

/// Blocks with right lengths, in two orders: what covers a device must be the same.
pub fn ivrs_in_any_order(bytes: &[u8]) {
    const SHAPE: EntryShape = EntryShape {
        header: 4,
        length_at: 2,
        length_bytes: 2,
    };
    let mut input = Input(bytes);
    let turn = usize::from(input.byte());
    // The ids to ask for come first: what they are compared with is all that tells ids apart.
    let mut functions = [0, 8, 0x40, 0, 0, 0].map(|number| PciFunction {
        segment: 0,
        requester: RequesterId(number),
    });
    for function in &mut functions[3..] {
        function.requester = RequesterId(input.word());
    }
    let mut blocks = Vec::new();
    // Beyond the limit on blocks the order does count: those past it are not read.
    while !input.is_empty() && blocks.len() < 100 {
        let kind = [0x10, 0x11, 0x40, 0x21, 0x22, 0x20, 0x51][usize::from(input.byte()) % 7];
        let unit = u64::from(input.byte() % 4);
        let mut content = Vec::new();
        if kind & 0xf0 == 0x20 {
            content.extend_from_slice(input.take(28));
            content.resize(28, 0);
        } else {
            // A unit that makes sense, so that what it names is reached.
            content.extend_from_slice(&[2, unit as u8 * 0x40, 0x40, 0]);
            content.extend_from_slice(&(0xfd00_0000 + unit * 0x10_0000).to_le_bytes());
            content.extend_from_slice(&[0; 8]);
            if kind != 0x10 {
                content.extend_from_slice(&[0; 16]);
            }
            let count = usize::from(input.byte());
            content.extend_from_slice(input.take(count));
        }
        let mut block = vec![0; SHAPE.header];
        block[0] = kind;
        block.extend_from_slice(&content);
        let length = block.len() as u16;
        block[SHAPE.length_at..][..SHAPE.length_bytes].copy_from_slice(&length.to_le_bytes());
        blocks.push(block);
    }
    let table = |blocks: &[Vec<u8>]| {
        let mut body = vec![0; 12];
        body.extend(blocks.concat());
        grammar::sdt(b"IVRS", 2, &body)
    };
    let straight = table(&blocks);
    blocks.reverse();
    if !blocks.is_empty() {
        let middle = turn % blocks.len();
        blocks.rotate_left(middle);
    }
    let turned = table(&blocks);
    let parsed = |table| Ivrs::parse(table).expect("an IVRS table was put together");
    let (straight, turned) = (parsed(&straight), parsed(&turned));
    for function in functions {
        assert_eq!(
            outcome(&straight, function),
            outcome(&turned, function),
            "{function}"
        );
    }
    // One of them is enough here: any table is read in every way by another target.
    read_ivrs(&straight, functions.into_iter().skip(3).take(1));
}
