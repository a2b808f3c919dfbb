//! The smaller machine.

use acpi_capture::memory::{MemoryKind, MemoryMap};
use acpi_capture::partition::{HostBridge, PartitionView, ResetWord, Window, WindowKind};
use acpi_capture::{Capture, CaptureRequest, SmbiosSource, State, capture};
use handoff_abi::{ApicId, PhysAddr, PhysRange};

use crate::firmware::Piece;
use crate::grammar::{self, Input, fix_sum};

const RSDP: u64 = 0xf_0000;

/// The capture of a machine that has a MADT, and affinities if the input has some.
fn machine(input: &mut Input<'_>) -> Vec<u8> {
    let mut memory = vec![0; 0x40];
    let mut pointers = Vec::new();
    for kind in [0_u8, 1, 7] {
        let length = usize::from(input.byte()) * 2;
        let mut asked = vec![kind, 3];
        asked.extend_from_slice(input.take(length));
        pointers.push(RSDP + memory.len() as u64);
        memory.extend(grammar::table(&asked));
    }
    let body: Vec<u8> = pointers.iter().flat_map(|p| p.to_le_bytes()).collect();
    let root = RSDP + memory.len() as u64;
    memory.extend(grammar::sdt(b"XSDT", 1, &body));
    let mut rsdp = b"RSD PTR \0VENDOR\x02\0\0\0\0\x24\0\0\0".to_vec();
    rsdp.extend_from_slice(&root.to_le_bytes());
    rsdp.extend_from_slice(&[0; 4]);
    fix_sum(&mut rsdp[..20], 8);
    fix_sum(&mut rsdp, 32);
    memory[..36].copy_from_slice(&rsdp);
    captured(RSDP, &memory)
}

fn captured(base: u64, bytes: &[u8]) -> Vec<u8> {
    let mut buffer = vec![0; 0x1_0000];
    let request = CaptureRequest::new(PhysAddr(base), SmbiosSource::None);
    let memory = Piece { base, bytes };
    let summary = capture(&memory, &request, &mut buffer).expect("the tables are sound");
    buffer.truncate(summary.length);
    buffer
}

fn range(input: &mut Input<'_>, shift: u32) -> PhysRange {
    let base = u64::from(input.word()) << shift;
    let length = u64::from(input.byte()) << shift;
    PhysRange::from_bounds(PhysAddr(base), PhysAddr(base.saturating_add(length)))
}

/// Any view of any machine: refused, or exactly itself.
pub fn partition(bytes: &[u8]) {
    let mut input = Input(bytes);
    let blob = machine(&mut input);
    let whole = Capture::parse(&blob).expect("it was captured");
    let Some(Ok(madt)) = whole.madt() else { return };
    let known: Vec<_> = madt.processors().map(|cpu| cpu.apic_id).collect();
    let cpus: Vec<ApicId> = (0..input.byte() % 6)
        .map(|_| {
            let pick = input.byte();
            let place = usize::from(pick) % (known.len() + 1);
            known.get(place).copied().unwrap_or(ApicId(pick.into()))
        })
        .collect();
    let memory: Vec<_> = (0..input.byte() % 4)
        .map(|_| range(&mut input, 16))
        .collect();
    let count = input.byte() % 4;
    let windows: Vec<Vec<Window>> = (0..count)
        .map(|_| {
            (0..input.byte() % 3)
                .map(|_| {
                    let (kind, shift) = match input.byte() % 3 {
                        0 => (WindowKind::Io, 2),
                        1 => (WindowKind::Memory32, 17),
                        _ => (WindowKind::Memory64Prefetchable, 40),
                    };
                    Window {
                        kind,
                        range: range(&mut input, shift),
                    }
                })
                .collect()
        })
        .collect();
    let bridges: Vec<_> = windows
        .iter()
        .map(|windows| HostBridge {
            segment: u16::from(input.byte() % 2),
            first_bus: input.byte(),
            last_bus: input.byte(),
            ecam: PhysAddr(u64::from(input.word()) << 20),
            windows,
        })
        .collect();
    let place = PhysAddr(u64::from(input.double()) << 4);
    let view = PartitionView {
        cpus: &cpus,
        memory: &memory,
        reserved: &[],
        bridges: &bridges,
        reset: ResetWord {
            address: PhysAddr(input.quad()),
            value: input.byte(),
        },
        wakeup: (input.byte() % 2 == 1).then_some(PhysAddr(input.quad())),
        place,
    };
    let mut buffer = vec![0xee; usize::from(input.word()) % 0x3000];
    let Ok(tables) = view.write(&whole, &mut buffer) else {
        return;
    };
    let length = tables.range.length() as usize;
    assert!(tables.rsdp == place && length <= buffer.len());
    let blob = captured(place.0, &buffer[..length]);
    let small = Capture::parse(&blob).expect("it was captured");
    assert!(small.tables().all(|table| table.state == State::Sound));
    let seen = small.madt().expect("a MADT").expect("a readable one");
    assert!(seen.entries().all(|entry| entry.is_ok()));
    let ids: Vec<_> = seen.processors().map(|cpu| cpu.apic_id).collect();
    assert_eq!(ids, cpus);
    for bridge in &bridges {
        let mcfg = small.mcfg().expect("an MCFG").expect("a readable one");
        let found = mcfg.allocation_of(bridge.segment, bridge.first_bus);
        assert_eq!(found.map(|found| found.last_bus), Some(bridge.last_bus));
    }
    if let Ok(map) = view.memory_map::<64>(&tables) {
        for own in &memory {
            for kind in map.of_kind(MemoryKind::Usable) {
                assert!(!kind.overlaps(tables.range));
            }
            let _ = MemoryMap::<64>::is_all(&map, *own, MemoryKind::Usable);
        }
        assert!(map.total(MemoryKind::Usable) <= memory.iter().map(|m| m.length()).sum::<u64>());
    }
}
