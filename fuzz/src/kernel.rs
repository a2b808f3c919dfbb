//! What the other kernel says: its handoff, its image, its ledger, its mailbox.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::SeqCst;

use handoff_abi::{
    AbiVersion, Clock, Cpu, Envelope, Extent, Features, Handoff, Ledger, LedgerSlot, MAILBOX_SLOTS,
    Mailbox, PartitionId, Phase, PhysAddr, PhysRange, Speaks, Workload, Writer, purpose, resource,
};
use partition_core::image::Image;
use partition_core::ledger::{LedgerView, Steward};
use partition_core::mailbox::{Receiver, Sender};

use crate::grammar::Input;

const AT: PhysAddr = PhysAddr(0x1000);
const SPEAKS: Speaks = Speaks {
    newest: AbiVersion::NEWEST,
    oldest: AbiVersion::OLDEST,
    features: Features::all(),
};

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

/// A handoff of any bytes, and of the same under a right head, so that the records are reached too.
pub fn handoff(bytes: &[u8]) {
    let _ = Handoff::parse(bytes, AT, &SPEAKS);
    let mut blob = bytes.to_vec();
    if blob.len() < 72 {
        return;
    }
    let length = (blob.len() as u64).to_le_bytes();
    blob[..8].copy_from_slice(b"BATON\0\x1a\n");
    blob[16..24].copy_from_slice(&length);
    blob[24..32].copy_from_slice(&AT.0.to_le_bytes());
    blob[52..56].fill(0);
    let sum = crc32(&blob).to_le_bytes();
    blob[52..56].copy_from_slice(&sum);
    if let Ok(handoff) = Handoff::parse(&blob, AT, &SPEAKS) {
        let count = handoff.raw_records().count();
        assert_eq!(count, handoff.header().record_count as usize);
        assert!(
            handoff.records::<Extent>().count() + handoff.records::<Workload>().count() <= count
        );
    }
}

/// A successor's image of any bytes.
pub fn image(bytes: &[u8]) {
    let Ok(image) = Image::parse(bytes) else {
        return;
    };
    for segment in image.segments() {
        assert!(image.segment_bytes(segment).len() as u64 <= segment.memory_size);
    }
    let room = PhysRange::new(PhysAddr(0x4000_0000), 0x1000_0000).expect("a small range");
    if let Ok(layout) = image.place(room) {
        assert!(room.contains_range(layout.range()));
        let _ = layout.entry();
    }
}

/// How many slots of a ledger an input can fill.
const FILLED: usize = 64;

thread_local! {
    /// Made once: to make 32 KiB anew takes longer than all that is done with them.
    static LEDGER: Box<Ledger> = Box::new(Ledger {
        magic: Ledger::MAGIC.into(),
        stewardship: 0.into(),
        used: 0.into(),
        reserved: Default::default(),
        slots: std::array::from_fn(|_| LedgerSlot::default()),
    });
}

/// A ledger that another kernel filled with anything: reading it must neither panic nor hang, and a
/// survivor must be able to bring it to rest.
pub fn ledger(bytes: &[u8]) {
    LEDGER.with(|ledger| ledger_of(bytes, ledger));
}

fn ledger_of(bytes: &[u8], ledger: &Ledger) {
    let mut input = Input(bytes);
    ledger.stewardship.store(input.quad(), SeqCst);
    // As many as are filled, as a rule: whatever is said, up to all 1022 are gone through.
    let used = input.double();
    let used = if used >> 28 == 0xf { used } else { used % 80 };
    ledger.used.store(used, SeqCst);
    let mut filled = 0;
    for slot in &ledger.slots[..FILLED] {
        if input.is_empty() {
            break;
        }
        filled += 1;
        slot.kind.store(u32::from(input.byte()) % 8, SeqCst);
        slot.parent.store(input.double(), SeqCst);
        slot.base.store(input.quad(), SeqCst);
        slot.length.store(input.quad(), SeqCst);
        slot.word.store(input.quad(), SeqCst);
    }
    let view = LedgerView::new(ledger).expect("the magic is right");
    let _ = (view.steward(), view.entries().count(), view.free_slots());
    let _ = view.find(resource::MEMORY, input.quad(), input.quad());
    if let Ok(steward) = Steward::seize(ledger, PartitionId(9), &[]) {
        assert!(
            steward
                .view()
                .entries()
                .all(|entry| entry.word.phase == Phase::Settled)
        );
        assert_eq!(steward.view().steward(), PartitionId(9));
    }
    for slot in &ledger.slots[..filled] {
        for half in [&slot.kind, &slot.parent] {
            half.store(0, SeqCst);
        }
        for whole in [&slot.base, &slot.length, &slot.word] {
            whole.store(0, SeqCst);
        }
    }
}

/// A mailbox: held against a queue for as long as both sides keep to the rules, and no panic once
/// the other side has written anything.
pub fn mailbox(bytes: &[u8]) {
    let mailbox = Box::new(Mailbox {
        head: 0.into(),
        reserved: Default::default(),
        tail: 0.into(),
        reserved_too: Default::default(),
        slots: std::array::from_fn(|_| Default::default()),
    });
    let mut sender = Sender::new(&mailbox);
    let mut receiver = Receiver::new(&mailbox);
    let mut model = VecDeque::new();
    let mut honest = true;
    let mut input = Input(bytes);
    for number in 0_u64.. {
        if input.is_empty() {
            break;
        }
        match input.byte() % 8 {
            0..=2 => {
                let message = [number; 8];
                let sent = sender.send(&message).is_ok();
                if honest {
                    assert_eq!(sent, model.len() < MAILBOX_SLOTS);
                }
                if sent {
                    model.push_back(message);
                }
            }
            3..=5 => {
                let received = receiver.receive();
                if honest {
                    assert_eq!(received.expect("nobody lied"), model.pop_front());
                }
            }
            6 => {
                honest = false;
                mailbox.head.store(input.double(), SeqCst);
            }
            _ => {
                honest = false;
                mailbox.tail.store(input.double(), SeqCst);
            }
        }
    }
}

/// Handoffs of each version.
pub(crate) fn handoff_seeds() -> Vec<Vec<u8>> {
    let written = |version| {
        let mut buffer = [0; 1024];
        let envelope = Envelope {
            version,
            self_address: AT,
            features: Features::VT_D,
            required: Features::empty(),
            epoch: 1,
            writer: PartitionId(1),
            reader: PartitionId(2),
            swaps: 1,
        };
        let extent = Extent {
            purpose: purpose::LEDGER,
            reserved: 0,
            base: PhysAddr(0x10_0000),
            length: 0x8000,
        };
        let mut writer = Writer::new(&mut buffer, envelope).expect("there is room");
        writer.critical(&extent).expect("there is room");
        for apic_id in 0..3 {
            let cpu = Cpu {
                apic_id: handoff_abi::ApicId(apic_id),
                acpi_uid: apic_id,
            };
            writer.critical(&cpu).expect("there is room");
        }
        let clock = Clock { tsc_hertz: 1 };
        writer.optional(&clock).expect("there is room");
        writer.append(0x7fff, 0, &[1; 24]).expect("there is room");
        writer.finish().to_vec()
    };
    vec![written(AbiVersion::V0_1), written(AbiVersion::V0_2)]
}

/// An image with a segment and a note (ELF-64 Object File Format).
pub(crate) fn image_seeds() -> Vec<Vec<u8>> {
    const BASE: u64 = 0x20_0000;
    let segment = |kind: u32, flags: u32, offset: u64, length: u64, align: u64| {
        let mut header = [kind.to_le_bytes(), flags.to_le_bytes()].concat();
        for number in [offset, BASE + offset, BASE + offset, length, length, align] {
            header.extend_from_slice(&number.to_le_bytes());
        }
        header
    };
    let image = |kind: u8| {
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        file.extend_from_slice(&[kind, 0, 62, 0, 1, 0, 0, 0]);
        // Entry, program headers, section headers.
        for number in [BASE + 0x200, 64, 0] {
            file.extend_from_slice(&number.to_le_bytes());
        }
        file.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 3, 0, 64, 0, 0, 0, 0, 0]);
        file.extend(segment(1, 5, 0, 0x300, 0x1000));
        file.extend(segment(4, 4, 0x100, 44, 4));
        file.extend(segment(0, 0, 0, 0, 0));
        file.resize(0x100, 0);
        file.extend_from_slice(&[6, 0, 0, 0, 24, 0, 0, 0, 1, 0, 0, 0]);
        file.extend_from_slice(b"Baton\0\0\0");
        file.extend_from_slice(&[0, 0, 2, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        file.extend_from_slice(&(BASE + 0x200).to_le_bytes());
        file.resize(0x300, 0x90);
        file
    };
    vec![image(2), image(3)]
}

/// A ledger with a few slots, one of them in the middle of a transfer.
pub(crate) fn ledger_seeds() -> Vec<Vec<u8>> {
    let mut seed = 1_u64.to_le_bytes().to_vec();
    seed.extend_from_slice(&3_u32.to_le_bytes());
    for (kind, parent, base, length, word) in [
        (1_u8, u32::MAX, 0_u64, 1_u64, 0x0001_0000_u64),
        (2, 0, 0x10_0000, 0x8000, 0x0001_0002_0001),
        (4, 1, 1, 1, 0x0002_0001_0001_0002),
    ] {
        seed.push(kind);
        seed.extend_from_slice(&parent.to_le_bytes());
        for number in [base, length, word] {
            seed.extend_from_slice(&number.to_le_bytes());
        }
    }
    vec![seed]
}

/// A mailbox that is filled and emptied, and one whose other side lies.
pub(crate) fn mailbox_seeds() -> Vec<Vec<u8>> {
    let mut filled = vec![0; MAILBOX_SLOTS + 1];
    filled.extend_from_slice(&[3; MAILBOX_SLOTS + 1]);
    vec![filled, vec![0, 0, 6, 0xff, 0, 0, 0, 3, 7, 1, 0, 0, 0, 0, 3]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_are_taken() {
        for seed in handoff_seeds() {
            let handoff = Handoff::parse(&seed, AT, &SPEAKS).unwrap();
            assert_eq!(handoff.raw_records().count(), 6);
        }
        for seed in image_seeds() {
            assert_eq!(Image::parse(&seed).unwrap().segments().count(), 1);
        }
    }
}
