//! Memory that changes while it is read. Each byte counts as what the first read of it gave: no
//! check is passed with one value and used with another.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use acpi_capture::memory::SetupData;
use acpi_capture::table::{Sdt, checksum};
use acpi_capture::*;
use handoff_abi::PhysAddr;
use proptest::prelude::*;

use crate::build::{self, Hole, Memory};
use crate::build_small::setup_data;
use crate::capture::machine;

const RSDP: u64 = 0xf_5a40;

/// Memory whose every byte is another one once it was read.
struct Fickle<'a> {
    memory: &'a Memory,
    /// How often each byte was read.
    reads: RefCell<HashMap<u64, u32>>,
    /// What a byte is changed by.
    change: u8,
}

impl<'a> Fickle<'a> {
    fn new(memory: &'a Memory, change: u8) -> Self {
        Self {
            memory,
            reads: RefCell::default(),
            change,
        }
    }
}

impl ReadPhys for Fickle<'_> {
    type Error = Hole;

    fn read(&self, at: PhysAddr, into: &mut [u8]) -> Result<(), Hole> {
        self.memory.read(at, into)?;
        let mut reads = self.reads.borrow_mut();
        for (offset, byte) in into.iter_mut().enumerate() {
            let count = reads.entry(at.0 + offset as u64).or_default();
            *byte ^= self.change.wrapping_mul(*count as u8);
            *count += 1;
        }
        Ok(())
    }
}

/// A machine with SMBIOS of both kinds.
fn whole_machine() -> Memory {
    let mut memory = machine();
    let structures = [
        build::smbios_structure(0, 0, &[1; 20], &["vendor", "version"]),
        build::smbios_structure(127, 1, &[], &[]),
    ]
    .concat();
    let length = structures.len();
    // All that is scanned, with the two entry points in it.
    let mut segment = vec![0; 0x1_0000];
    let entries = [
        (0x100, build::smbios_entry_64(0x7fd_0000, 0x1000)),
        (0x220, build::smbios_entry_32(0x7fd_8000, length as u16, 2)),
        (0x5a40, build::rsdp(0x7fe_0001, 0x1_0000_0003)),
    ];
    for (at, bytes) in entries {
        segment[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    memory.0.remove(&RSDP);
    memory.put(0xf_0000, segment);
    memory.put(0x7fd_0000, structures.clone());
    memory.put(0x7fd_8000, structures);
    memory
}

/// Whether a capture agrees with itself: all it says of a table is so in the bytes it has.
fn check(blob: &[u8]) -> usize {
    let capture = Capture::parse(blob).unwrap();
    let copied = capture.tables().filter(|table| table.state.is_copied());
    copied
        .map(|table| match table.kind {
            CapturedKind::Sdt => {
                let sdt = Sdt::parse_any_sum(table.bytes).unwrap();
                assert_eq!(sdt.signature(), table.signature);
                assert_eq!(sdt.bytes().len(), table.bytes.len());
                assert_eq!(table.stated_length as usize, table.bytes.len());
                assert_eq!(table.state == State::Sound, checksum(table.bytes) == 0);
            }
            CapturedKind::Facs => {
                assert!(table.bytes.starts_with(b"FACS"));
                let length = u32::from_le_bytes(table.bytes[4..8].try_into().unwrap());
                assert_eq!(length as usize, table.bytes.len());
            }
            CapturedKind::Rsdp => assert_eq!(checksum(table.bytes), 0),
            CapturedKind::SmbiosEntry => {
                let entry = SmbiosEntry::parse(table.bytes).unwrap();
                assert_eq!(entry.length, table.bytes.len());
            }
            _ => {}
        })
        .count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn what_is_captured_is_what_was_read_first(change in 1_u8..=255, scan: bool) {
        let memory = whole_machine();
        let fickle = Fickle::new(&memory, change);
        let smbios = match scan {
            true => SmbiosSource::Scan,
            false => SmbiosSource::At {
                entry_32: Some(PhysAddr(0xf_0220)),
                entry_64: Some(PhysAddr(0xf_0100)),
            },
        };
        let request = CaptureRequest::new(PhysAddr(RSDP), smbios);
        let mut buffer = vec![0; 1 << 20];
        let summary = capture(&fickle, &request, &mut buffer).unwrap();
        prop_assert!(check(&buffer[..summary.length]) >= 10);
        let capture = Capture::parse(&buffer).unwrap();
        for table in capture.tables().filter(|table| table.state.is_copied()) {
            let mut first = vec![0; table.bytes.len()];
            memory.read(table.address, &mut first).unwrap();
            prop_assert_eq!(table.bytes, &first[..], "{}", table.signature);
        }
        // A table is read once. Only the scan passes by places that something else was read from.
        if !scan {
            let twice = fickle.reads.borrow().iter().filter(|&(_, &count)| count > 1).count();
            prop_assert_eq!(twice, 0);
        }
    }

    #[test]
    fn setup_data_is_what_was_read_first(change in 1_u8..=255) {
        let mut memory = Memory::default();
        memory.put(0x1000, setup_data(0x2000, 9, &[1; 8]));
        memory.put(0x2000, setup_data(0, 1, &[2; 8]));
        let fickle = Fickle::new(&memory, change);
        let items = |memory: &dyn ReadPhys<Error = Hole>| -> Vec<_> {
            SetupData::new(memory, PhysAddr(0x1000)).collect()
        };
        prop_assert_eq!(items(&fickle), items(&memory));
    }
}

/// Memory that another thread writes.
struct Shared {
    base: u64,
    bytes: Vec<AtomicU8>,
}

impl ReadPhys for Shared {
    type Error = ();

    fn read(&self, at: PhysAddr, into: &mut [u8]) -> Result<(), ()> {
        let start = at.0.checked_sub(self.base).ok_or(())? as usize;
        let from = self.bytes.get(start..start + into.len()).ok_or(())?;
        for (byte, from) in into.iter_mut().zip(from) {
            *byte = from.load(Ordering::Relaxed);
        }
        Ok(())
    }
}

#[test]
fn a_thread_that_rewrites_the_tables_makes_no_capture_that_contradicts_itself() {
    // Two machines at the same addresses, each sound; the thread puts one over the other, byte by
    // byte, as fast as it can.
    let machine = |shift: u64, entries: usize| {
        let at = |place: u64| 0x1000 + place * 0x400 + shift;
        let mut memory = vec![0_u8; 0x4000];
        let mut put = |address: u64, bytes: &[u8]| {
            let start = (address - 0x1000) as usize + 0x1000;
            memory[start..start + bytes.len()].copy_from_slice(bytes);
        };
        let cpus: Vec<_> = (0..entries as u8)
            .map(|id| build::local_apic(id, id, 1))
            .collect();
        put(at(2), &build::madt(0xfee0_0000, 1, &cpus));
        put(at(3), &build::fadt((0, 0), (0, at(4))));
        put(at(4), &build::sdt(b"DSDT", 2, &vec![0x10; entries * 7]));
        let pointers: Vec<_> = [at(2), at(3), at(2)].into_iter().take(entries).collect();
        put(0x1400, &build::xsdt(&pointers));
        put(0x1000, &build::rsdp(0, 0x1400));
        memory
    };
    let machines = [
        machine(0, 2),
        machine(0, 40),
        machine(8, 3),
        vec![0xff; 0x4000],
    ];
    let shared = Shared {
        base: 0,
        bytes: machines[0]
            .iter()
            .map(|&byte| AtomicU8::new(byte))
            .collect(),
    };
    let done = AtomicBool::new(false);
    let (mut taken, mut refused, mut mixed) = (0, 0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0_usize;
            while !done.load(Ordering::Relaxed) {
                round += 1;
                // The RSDP and the root table stay, or nearly nothing would be captured.
                let from = if round.is_multiple_of(3) {
                    0x1000
                } else {
                    0x1800
                };
                let next = &machines[round % machines.len()];
                for (byte, &value) in shared.bytes.iter().zip(next).skip(from) {
                    byte.store(value, Ordering::Relaxed);
                }
            }
        });
        let request = CaptureRequest::new(PhysAddr(0x1000), SmbiosSource::None);
        let mut buffer = vec![0; 0x1_0000];
        while taken < 2000 && refused < 200_000 {
            match capture(&shared, &request, &mut buffer) {
                Ok(summary) => {
                    check(&buffer[..summary.length]);
                    taken += 1;
                    mixed += usize::from(summary.bad_checksum > 0);
                }
                Err(_) => refused += 1,
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    println!("{taken} captures, {mixed} of them with torn tables, {refused} refused");
    assert!(taken > 0);
}
