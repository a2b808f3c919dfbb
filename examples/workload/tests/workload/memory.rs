//! The workload's memory as a whole: created, adopted, corrupted.

use std::collections::HashMap;

use crate::device::{Device, Region};
use baton_workload::layout::area;
use baton_workload::protocol::{MAX_DATAGRAM, MAX_VALUE, Reply, Request, op, status};
use baton_workload::store::PutError;
use baton_workload::{AdoptError, CreateError, Geometry, Network, Nic, Server, Workload, answer};
use proptest::prelude::*;

const BASE: u64 = 0x1234_5000;
const SMALL: Geometry = Geometry {
    store_slots: 16,
    receive: 8,
    transmit: 4,
};
const NETWORK: Network = Network {
    mac: [0x52, 0x54, 0, 1, 2, 3],
    address: [10, 0, 2, 15],
    prefix: 24,
    gateway: Some([10, 0, 2, 2]),
    port: 7777,
};
const NIC: Nic = Nic {
    function: 0x0100,
    features: 0x3_0000_0020,
    common: 0xfe00_0000,
    isr: 0xfe00_1000,
    device: 0xfe00_2000,
    notify: [0xfe00_3000, 0xfe00_3004],
    msix_table: 0xfe10_0000,
    msix_entries: 4,
    msix_entry: [0, 0xffff],
};

fn region() -> Region {
    Region::new(SMALL.length().unwrap())
}

fn create(region: &Region) -> Workload<'_> {
    let mut workload = Workload::create(&region.memory(), &SMALL, &NETWORK, BASE).unwrap();
    workload.set_nic(&NIC);
    workload
}

/// CRC-32 as in ISO-HDLC, bit by bit.
fn crc(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { 0xedb8_8320 } else { 0 };
        }
    }
    !crc
}

fn reseal(region: &Region) {
    region.write(132, &[0; 4]);
    let checksum = crc(&region.read::<256>(0));
    region.write(132, &checksum.to_le_bytes());
}

#[test]
fn the_header_is_laid_out_as_described() {
    let region = region();
    create(&region);
    assert_eq!(region.read(0), *b"BATONKV1");
    assert_eq!(region.read32(8), 1);
    assert_eq!(region.read32(12), 4096);
    assert_eq!(region.read64(16), SMALL.length().unwrap());
    assert_eq!(region.read64(24), BASE);
    let mut end = 4096;
    for area in 0..area::COUNT as u64 {
        assert_eq!(region.read64(32 + 16 * area), end);
        assert_eq!(region.read64(40 + 16 * area) % 4096, 0);
        end += region.read64(40 + 16 * area);
    }
    assert_eq!(end, region.bytes());
    assert_eq!(region.read(136), [0x52, 0x54, 0, 1, 2, 3, 0, 0]);
    assert_eq!(region.read(144), [10, 0, 2, 15]);
    assert_eq!(region.read32(160), 0x0100);
    let stated = region.read32(132);
    reseal(&region);
    assert_eq!(region.read32(132), stated, "the checksum is what it says");
}

#[test]
fn who_adopts_finds_everything_and_changes_nothing() {
    let region = region();
    let mut first = create(&region);
    first.store.put(7, b"seven").unwrap();
    first.learn([10, 0, 2, 2], [2, 0, 0, 0, 0, 1]);
    let segment = first.transmit_segment(2, 60);
    first.transmit.submit_at(2, &segment).unwrap();

    let before: Vec<u8> = (0..region.bytes()).map(|at| region.get(at)).collect();
    let second = Workload::adopt(&region.memory(), BASE).unwrap();
    second.check_rings().unwrap();
    second.store.check().unwrap();
    let after: Vec<u8> = (0..region.bytes()).map(|at| region.get(at)).collect();
    assert!(before == after);

    assert_eq!(second.network(), NETWORK);
    assert_eq!(second.nic(), Some(NIC));
    assert_eq!(second.length(), region.bytes());
    assert!(
        second
            .neighbours()
            .eq([([10, 0, 2, 2], [2, 0, 0, 0, 0, 1])])
    );
    let mut value = [0; MAX_VALUE];
    let found = second.store.get(7, &mut value).unwrap();
    assert_eq!((&value[..found.length], found.writes), (&b"seven"[..], 1));
    assert_eq!(second.receive.free_count(), 0);
    assert_eq!(second.transmit.free_count(), 3);
    assert!(!second.transmit.interrupts() && second.receive.interrupts());

    // A view made earlier sees what happens later.
    first.store.put(8, b"eight").unwrap();
    first.learn([10, 0, 2, 3], [2, 0, 0, 0, 0, 2]);
    assert_eq!(second.store.applied(), 2);
    assert_eq!(second.neighbours().count(), 2);
}

#[test]
fn the_device_can_use_every_receive_buffer_of_a_new_workload() {
    let region = region();
    let mut workload = create(&region);
    let addresses = workload.receive.addresses(BASE);
    let mut device = Device::new(
        &region,
        BASE,
        8,
        addresses.descriptors,
        addresses.available,
        addresses.used,
    );
    let mut seen = vec![];
    while let Some((head, pieces)) = device.take() {
        assert_eq!(pieces.len(), 1);
        assert!(pieces[0].writable && pieces[0].length == 2048);
        device.fill(&pieces[0], &[head as u8 + 1; 100]);
        seen.push((head, pieces[0].address));
        device.give_back(u32::from(head), 100);
    }
    assert_eq!(seen.len(), 8);
    for (head, _) in seen {
        let used = workload.receive.take_used().unwrap().unwrap();
        assert_eq!((used.head, used.length), (head, 100));
        let mut bytes = [0; 101];
        workload.receive_buffers.copy_out(used.head, &mut bytes);
        assert_eq!(bytes[..100], [head as u8 + 1; 100]);
        assert_eq!(bytes[100], 0);
    }
}

#[test]
fn a_change_of_any_fixed_byte_is_noticed() {
    let region = region();
    create(&region);
    for at in 0..256 {
        let old = region.get(at);
        for mask in [1, 0x80, 0xff] {
            region.set(at, old ^ mask);
            assert!(
                Workload::adopt(&region.memory(), BASE).is_err(),
                "byte {at} with {mask:#x}"
            );
        }
        region.set(at, old);
    }
    Workload::adopt(&region.memory(), BASE).unwrap();
}

#[test]
fn each_wrong_field_is_named_even_under_a_right_checksum() {
    let region = region();
    create(&region);
    let original = region.read::<256>(0);
    let refused = |at: u64, bytes: &[u8]| {
        region.write(0, &original);
        region.write(at, bytes);
        reseal(&region);
        Workload::adopt(&region.memory(), BASE).expect_err("refused")
    };
    assert!(matches!(refused(0, b"X"), AdoptError::Magic(_)));
    assert_eq!(refused(8, &[2]), AdoptError::Version(2));
    assert_eq!(refused(12, &[1]), AdoptError::Geometry);
    assert!(matches!(refused(18, &[9]), AdoptError::Length { .. }));
    assert!(matches!(refused(25, &[0]), AdoptError::DmaBase { .. }));
    for area in 0..area::COUNT {
        let at = 32 + 16 * area as u64;
        for bad in [u64::MAX, 0, 4096 * 1000, 8] {
            assert!(matches!(
                refused(at, &bad.to_le_bytes()),
                AdoptError::Area { area: found, .. } if found == area
            ));
            assert!(matches!(
                refused(at + 8, &bad.to_le_bytes()),
                AdoptError::Area { area: found, .. } if found == area
            ));
        }
    }
    for bad in [0_u32, 3, 1 << 21, u32::MAX] {
        assert_eq!(refused(112, &bad.to_le_bytes()), AdoptError::Geometry);
        assert_eq!(refused(120, &bad.to_le_bytes()), AdoptError::Geometry);
        assert_eq!(refused(124, &bad.to_le_bytes()), AdoptError::Geometry);
    }
    // A size that is possible, and would need other memory.
    assert!(matches!(refused(112, &[32]), AdoptError::Length { .. }));
    assert!(matches!(refused(120, &[16]), AdoptError::Length { .. }));
    assert_eq!(refused(116, &[1]), AdoptError::Geometry);
    assert_eq!(refused(128, &[1]), AdoptError::Geometry);
    assert_eq!(refused(136, &[1]), AdoptError::Network);
    assert_eq!(refused(136, &[0; 6]), AdoptError::Network);
    assert_eq!(refused(142, &[1]), AdoptError::Network);
    assert_eq!(refused(144, &[224]), AdoptError::Network);
    assert_eq!(refused(148, &[33]), AdoptError::Network);
    assert_eq!(refused(152, &[255]), AdoptError::Network);
    assert_eq!(refused(156, &[0, 0]), AdoptError::Network);
    assert_eq!(refused(158, &[1]), AdoptError::Network);
    assert_eq!(refused(164, &[2]), AdoptError::Nic);
    assert_eq!(refused(230, &[1]), AdoptError::Nic);
}

#[test]
fn a_ring_of_another_size_is_named() {
    let region = region();
    create(&region);
    let state = region.read64(32 + 16) + region.read64(40 + 16) - 4096;
    region.set(state, 4);
    assert!(matches!(
        Workload::adopt(&region.memory(), BASE),
        Err(AdoptError::Queue {
            area: area::RECEIVE_QUEUE,
            ..
        })
    ));
}

#[test]
fn memory_that_is_too_small_is_refused() {
    let region = region();
    create(&region);
    let bytes = region.bytes();
    let smaller = Region::new(bytes - 4096);
    for at in 0..smaller.bytes() {
        smaller.set(at, region.get(at));
    }
    assert_eq!(
        Workload::adopt(&smaller.memory(), BASE).unwrap_err(),
        AdoptError::Length {
            stated: bytes,
            have: bytes - 4096
        }
    );
    assert!(matches!(
        Workload::create(&smaller.memory(), &SMALL, &NETWORK, BASE),
        Err(CreateError::Room { .. })
    ));
    assert_eq!(
        Workload::adopt(&Region::new(0).memory(), BASE).unwrap_err(),
        AdoptError::Short(0)
    );
}

#[test]
fn what_cannot_be_is_not_created() {
    let region = region();
    for base in [1, !4095] {
        assert_eq!(
            Workload::create(&region.memory(), &SMALL, &NETWORK, base).unwrap_err(),
            CreateError::DmaBase(base)
        );
    }
    let odd = Geometry {
        store_slots: 5,
        ..SMALL
    };
    assert!(matches!(
        Workload::create(&region.memory(), &odd, &NETWORK, BASE),
        Err(CreateError::Geometry(_))
    ));
    let multicast = Network {
        mac: [1, 0, 0, 0, 0, 0],
        ..NETWORK
    };
    assert!(matches!(
        Workload::create(&region.memory(), &SMALL, &multicast, BASE),
        Err(CreateError::Network(_))
    ));
}

#[test]
fn a_descriptor_that_names_foreign_memory_is_found() {
    let region = region();
    let workload = create(&region);
    workload.check_rings().unwrap();
    let table = region.read64(32 + 16);
    for (at, byte) in [(1, 0xff), (7, 0x80), (9, 0xff), (12, 0)] {
        let at = table + 16 * 3 + at;
        let old = region.get(at);
        region.set(at, byte);
        assert!(
            matches!(
                workload.check_rings(),
                Err(AdoptError::Descriptor {
                    area: area::RECEIVE_QUEUE,
                    id: 3,
                    ..
                })
            ),
            "{at:#x}"
        );
        region.set(at, old);
    }
    workload.check_rings().unwrap();
}

#[test]
fn a_full_table_of_neighbours_forgets_one_of_them() {
    let region = region();
    let mut workload = create(&region);
    for last in 1..=40 {
        workload.learn([10, 0, 2, last], [2, 0, 0, 0, 0, last]);
        assert!(
            workload
                .neighbours()
                .any(|known| known == ([10, 0, 2, last], [2, 0, 0, 0, 0, last]))
        );
    }
    assert_eq!(workload.neighbours().count(), 16);
    workload.learn([10, 0, 2, 40], [2, 0, 0, 0, 0, 99]);
    assert_eq!(workload.neighbours().count(), 16);
    assert!(
        workload
            .neighbours()
            .any(|known| known == ([10, 0, 2, 40], [2, 0, 0, 0, 0, 99]))
    );
}

fn ask(workload: &mut Workload<'_>, datagram: &[u8]) -> Option<Vec<u8>> {
    let mut out = [0; MAX_DATAGRAM];
    let counters = workload.counters();
    let server = Server { kernel: b'a' };
    let length = answer(server, &mut workload.store, counters, datagram, &mut out)?;
    Some(out[..length].to_vec())
}

#[test]
fn requests_are_answered_and_counted_across_a_swap() {
    let region = region();
    let mut workload = create(&region);
    let mut datagram = [0; MAX_DATAGRAM];
    let write = |datagram: &mut [u8], sequence| {
        Request::Write {
            sequence,
            key: 3,
            value: b"abc",
        }
        .encode(datagram)
        .unwrap()
    };
    let length = write(&mut datagram, 1);
    let reply = ask(&mut workload, &datagram[..length]).unwrap();
    let reply = Reply::decode(&reply).unwrap();
    assert_eq!((reply.op, reply.status), (op::WRITE, status::OK));
    assert_eq!((reply.sequence, reply.key), (1, 3));
    assert_eq!((reply.kernel, reply.swap), (b'a', 0));
    assert_eq!((reply.writes, reply.applied), (1, 1));

    let mut workload = Workload::adopt(&region.memory(), BASE).unwrap();
    workload.count_swap();
    let length = write(&mut datagram, 2);
    let reply = ask(&mut workload, &datagram[..length]).unwrap();
    let reply = Reply::decode(&reply).unwrap();
    assert_eq!((reply.swap, reply.writes, reply.applied), (1, 2, 2));

    let read = |datagram: &mut [u8], key| Request::Read { sequence: 9, key }.encode(datagram);
    let length = read(&mut datagram, 3).unwrap();
    let reply = ask(&mut workload, &datagram[..length]).unwrap();
    let reply = Reply::decode(&reply).unwrap();
    assert_eq!((reply.status, reply.value), (status::OK, &b"abc"[..]));
    assert_eq!((reply.writes, reply.applied), (2, 2));
    let length = read(&mut datagram, 4).unwrap();
    let reply = ask(&mut workload, &datagram[..length]).unwrap();
    assert_eq!(Reply::decode(&reply).unwrap().status, status::NOT_FOUND);

    // Something that begins like a request is refused, anything else ignored; neither counts.
    datagram[4] = 77;
    let reply = ask(&mut workload, &datagram[..length]).unwrap();
    let reply = Reply::decode(&reply).unwrap();
    assert_eq!((reply.status, reply.applied), (status::REFUSED, 2));
    datagram[0] = 0;
    assert_eq!(ask(&mut workload, &datagram[..length]), None);
    assert_eq!(ask(&mut workload, &[]), None);
}

#[test]
fn a_store_that_is_full_refuses_new_keys_and_keeps_the_old() {
    let region = region();
    let mut store = create(&region).store;
    for key in 0..14 {
        store.put(key * 1000, b"x").unwrap();
    }
    assert_eq!(store.put(99, b"x"), Err(PutError::Full));
    assert_eq!(
        store.put(0, &[0; MAX_VALUE + 1]),
        Err(PutError::TooLong(1025))
    );
    assert_eq!(store.put(0, b"y"), Ok(2));
    assert_eq!((store.keys(), store.applied()), (14, 15));
    store.check().unwrap();
}

#[test]
fn a_store_that_was_tampered_with_is_found_and_does_no_harm() {
    let region = region();
    let mut store = create(&region).store;
    store.put(5, b"five").unwrap();
    let slot = (0..16)
        .map(|slot| 4096 + 1040 * slot)
        .find(|&at| region.read64(at) != 0)
        .unwrap();
    for (at, byte) in [
        (slot, 9),
        (slot + 8, 6),
        (slot + 15, 0xff),
        (512, 0),
        (520, 7),
    ] {
        let old = region.get(at);
        region.set(at, byte);
        // Whatever is read, nothing is read that is not there.
        let mut value = [0; MAX_VALUE];
        let found = store.get(5, &mut value);
        assert!(found.is_none_or(|found| found.length <= MAX_VALUE));
        assert!(store.check().is_err(), "{byte} at {at:#x}");
        region.set(at, old);
        store.check().unwrap();
    }
}

proptest! {
    #[test]
    fn the_store_is_a_map_that_counts(
        operations in proptest::collection::vec(
            (0_u32..20, proptest::option::of(0_usize..=MAX_VALUE), any::<u8>(), 0_u8..10),
            1..120,
        ),
    ) {
        let region = region();
        create(&region);
        let mut store = Workload::adopt(&region.memory(), BASE).unwrap().store;
        let mut model = HashMap::<u32, (Vec<u8>, u64)>::new();
        let mut applied = 0;
        for (key, length, byte, swap) in operations {
            // Keys far apart, so that they collide in 16 slots.
            let key = key.wrapping_mul(0x0100_0193);
            if let Some(length) = length {
                let value: Vec<_> = (0..length).map(|at| byte.wrapping_add(at as u8)).collect();
                let full = model.len() == 14 && !model.contains_key(&key);
                match store.put(key, &value) {
                    Ok(writes) => {
                        prop_assert!(!full);
                        applied += 1;
                        let entry = model.entry(key).or_insert((vec![], 0));
                        *entry = (value, entry.1 + 1);
                        prop_assert_eq!(writes, entry.1);
                    }
                    Err(error) => {
                        prop_assert!(full);
                        prop_assert_eq!(error, PutError::Full);
                    }
                }
            }
            if swap == 0 {
                store = Workload::adopt(&region.memory(), BASE).unwrap().store;
            }
            let mut out = [0; MAX_VALUE];
            let found = store.get(key, &mut out).map(|found| {
                (out[..found.length].to_vec(), found.writes)
            });
            prop_assert_eq!(found.as_ref(), model.get(&key));
            prop_assert_eq!(store.writes(key), model.get(&key).map_or(0, |entry| entry.1));
            prop_assert_eq!((store.applied(), store.keys()), (applied, model.len() as u64));
        }
        prop_assert_eq!(store.check(), Ok(()));
    }

    #[test]
    fn no_header_makes_who_adopts_fall_over(
        changes in proptest::collection::vec((0_u64..64, any::<u32>()), 1..4),
        seal: bool,
    ) {
        let region = region();
        create(&region);
        let original = region.read::<256>(0);
        for (word, value) in changes {
            region.write(4 * word, &value.to_le_bytes());
        }
        if seal {
            reseal(&region);
        }
        if let Ok(workload) = Workload::adopt(&region.memory(), BASE) {
            // Then it is of the one arrangement that this memory can have.
            prop_assert_eq!(region.read::<136>(0)[..132].to_vec(), original[..132].to_vec());
            workload.check_rings().unwrap();
        }
    }

    #[test]
    fn no_live_word_makes_a_check_fall_over(
        changes in proptest::collection::vec((any::<u64>(), any::<u64>()), 1..20),
    ) {
        let region = region();
        let mut workload = create(&region);
        workload.store.put(1, b"one").unwrap();
        for (at, value) in changes {
            let at = 256 + at % ((region.bytes() - 256) / 8) * 8;
            region.write(at.min(region.bytes() - 8), &value.to_le_bytes());
        }
        // Right or wrong, both end.
        let _ = workload.check_rings();
        let _ = workload.store.check();
        let mut value = [0; MAX_VALUE];
        let _ = workload.store.get(1, &mut value);
        let _ = workload.store.put(2, b"two");
        let _ = workload.neighbours().count();
        while let Ok(Some(_)) | Err(_) = workload.transmit.take_used() {
            if workload.transmit.violations() > 0 {
                break;
            }
        }
    }
}
