//! The driver's end of a ring against an independent device.

use std::collections::{HashMap, VecDeque};

use crate::device::{Device, Piece, Region};
use baton_workload::Queue;
use baton_workload::queue::{DeviceError, QueueError, Segment, SubmitError};
use proptest::prelude::*;

const BASE: u64 = 0x4000_0000;
const OFFSET: u64 = 0x1000;

fn ring(size: u16) -> Region {
    Region::new(OFFSET + Queue::bytes(size))
}

fn device<'a>(region: &'a Region, queue: &Queue<'_>) -> Device<'a> {
    let addresses = queue.addresses(BASE);
    Device::new(
        region,
        BASE,
        queue.size(),
        addresses.descriptors,
        addresses.available,
        addresses.used,
    )
}

fn segment(number: u64, device_writes: bool) -> Segment {
    Segment {
        address: BASE + number * 64,
        length: 1 + (number % 63) as u32,
        device_writes,
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// The driver submits a chain of so many pieces to read and to write.
    Submit(usize, usize),
    /// The device takes a chain.
    Take,
    /// The device gives back one of those it has taken.
    GiveBack(usize, u32),
    /// The driver takes back what there is.
    Reclaim,
    /// Another kernel takes the ring over.
    Swap,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_usize..3, 0_usize..3).prop_map(|(read, write)| Step::Submit(read, write)),
        4 => Just(Step::Take),
        4 => (any::<usize>(), any::<u32>()).prop_map(|(which, length)| Step::GiveBack(which, length)),
        2 => Just(Step::Reclaim),
        1 => Just(Step::Swap),
    ]
}

proptest! {
    #[test]
    fn every_chain_reaches_the_device_as_submitted_and_comes_back_once_whoever_drives(
        log_size in 0_u32..5,
        steps in proptest::collection::vec(step(), 1..400),
    ) {
        let size = 1_u16 << log_size;
        let region = ring(size);
        let memory = region.memory();
        let mut queue = Queue::create(&memory, OFFSET, size).unwrap();
        let mut device = device(&region, &queue);
        let mut submitted = VecDeque::<(u16, Vec<Piece>)>::new();
        let mut taken = vec![];
        let mut returned = VecDeque::new();
        let mut lengths = HashMap::new();
        let mut number = 0;
        for step in steps {
            match step {
                Step::Submit(read, write) => {
                    let chain: Vec<_> = (0..read + write)
                        .map(|piece| {
                            number += 1;
                            segment(number, piece >= read)
                        })
                        .collect();
                    let busy: usize = lengths.values().sum();
                    match queue.submit(&chain) {
                        Ok(head) => {
                            prop_assert!(busy + chain.len() <= usize::from(size));
                            prop_assert_eq!(lengths.insert(head, chain.len()), None);
                            let pieces = chain
                                .iter()
                                .map(|segment| Piece {
                                    address: segment.address,
                                    length: segment.length,
                                    writable: segment.device_writes,
                                })
                                .collect();
                            submitted.push_back((head, pieces));
                        }
                        Err(SubmitError::Full) => {
                            prop_assert!(busy + chain.len() > usize::from(size));
                        }
                        Err(SubmitError::Chain) => {
                            prop_assert!(chain.is_empty() || chain.len() > usize::from(size));
                        }
                        Err(error) => prop_assert!(false, "{error}"),
                    }
                }
                Step::Take => {
                    let chain = device.take();
                    prop_assert_eq!(&chain, &submitted.pop_front());
                    taken.extend(chain.map(|(head, _)| head));
                }
                Step::GiveBack(which, length) => {
                    if !taken.is_empty() {
                        let head = taken.swap_remove(which % taken.len());
                        device.give_back(u32::from(head), length);
                        returned.push_back((head, length));
                    }
                }
                Step::Reclaim => {
                    while let Some((head, length)) = returned.pop_front() {
                        prop_assert!(queue.has_used());
                        let used = queue.take_used().unwrap().unwrap();
                        prop_assert_eq!((used.head, used.length), (head, length));
                        lengths.remove(&head);
                    }
                    prop_assert!(!queue.has_used());
                    prop_assert_eq!(queue.take_used(), Ok(None));
                }
                Step::Swap => queue = Queue::adopt(&memory, OFFSET, size).unwrap(),
            }
            prop_assert_eq!(queue.check(), Ok(()));
            let busy: usize = lengths.values().sum();
            prop_assert_eq!(usize::from(queue.free_count()), usize::from(size) - busy);
            prop_assert_eq!(queue.free().is_none(), busy == usize::from(size));
            prop_assert_eq!(queue.violations(), 0);
        }
    }

    #[test]
    fn a_device_that_lies_gains_nothing(
        lies in proptest::collection::vec((any::<u8>(), any::<u32>(), any::<u32>()), 1..100),
    ) {
        let size = 8;
        let region = ring(size);
        let mut queue = Queue::create(&region.memory(), OFFSET, size).unwrap();
        let mut device = device(&region, &queue);
        let mut owned = vec![];
        for (kind, id, length) in lies {
            if kind % 3 == 0
                && let Ok(head) = queue.submit(&[segment(1, false), segment(2, true)])
            {
                owned.push(head);
            }
            let id = if kind % 5 == 0 { id } else { id % 10 };
            let (available, used, last) = queue.cursors();
            prop_assert_eq!(used, last);
            device.give_back(id, length);
            let before = queue.violations();
            match queue.take_used() {
                Ok(Some(used)) => {
                    let place = owned.iter().position(|&head| head == used.head);
                    prop_assert!(place.is_some());
                    owned.swap_remove(place.unwrap());
                }
                Ok(None) => prop_assert!(false, "something had been given back"),
                Err(DeviceError::NotOwned { id: named }) => {
                    prop_assert_eq!(named, id);
                    prop_assert!(!owned.iter().any(|&head| u32::from(head) == id));
                    prop_assert_eq!(queue.violations(), before + 1);
                }
                Err(_) => {
                    // It claims more than it was given. Nothing to go on with.
                    prop_assert!(used.wrapping_add(1).wrapping_sub(last) > available.wrapping_sub(last));
                    return Ok(());
                }
            }
            prop_assert_eq!(usize::from(queue.free_count()), 8 - 2 * owned.len());
        }
    }

    #[test]
    fn a_table_that_was_tampered_with_frees_each_descriptor_at_most_once(
        nexts in proptest::array::uniform8((any::<u16>(), any::<u16>())),
    ) {
        let region = ring(8);
        let mut queue = Queue::create(&region.memory(), OFFSET, 8).unwrap();
        let mut device = device(&region, &queue);
        let first = queue.submit(&[segment(1, false), segment(2, true), segment(3, true)]).unwrap();
        let second = queue.submit(&[segment(4, false), segment(5, false)]).unwrap();
        for (id, (flags, next)) in nexts.iter().enumerate() {
            let at = OFFSET + 16 * id as u64;
            region.write(at + 12, &flags.to_le_bytes());
            region.write(at + 14, &(next % 9).to_le_bytes());
        }
        for head in [first, second] {
            device.give_back(u32::from(head), 0);
            let before = queue.free_count();
            if queue.take_used().is_ok() {
                prop_assert!(queue.free_count() > before);
            }
            prop_assert!(queue.free_count() <= 8);
        }
    }
}

#[test]
fn the_indices_wrap() {
    let region = ring(4);
    let mut queue = Queue::create(&region.memory(), OFFSET, 4).unwrap();
    let mut device = device(&region, &queue);
    for round in 0..70_000_u32 {
        let chain = [segment(u64::from(round % 1000), false)];
        // Two at a time, so that the cursors differ when they wrap.
        for _ in 0..2 {
            queue.submit(&chain).unwrap();
        }
        for _ in 0..2 {
            let (head, pieces) = device.take().unwrap();
            assert_eq!(pieces[0].address, chain[0].address);
            device.give_back(u32::from(head), round);
        }
        for _ in 0..2 {
            assert_eq!(queue.take_used().unwrap().unwrap().length, round);
        }
        assert_eq!(queue.check(), Ok(()));
    }
}

#[test]
fn each_side_tells_the_other_what_it_wants() {
    let region = ring(4);
    let mut queue = Queue::create(&region.memory(), OFFSET, 4).unwrap();
    let device = device(&region, &queue);
    assert!(queue.interrupts() && !device.no_interrupt());
    queue.set_interrupts(false);
    assert!(!queue.interrupts() && device.no_interrupt());
    queue.set_interrupts(true);
    assert!(queue.interrupts() && !device.no_interrupt());
    assert!(queue.wants_notification());
    device.set_no_notify(true);
    assert!(!queue.wants_notification());
    device.set_no_notify(false);
    assert!(queue.wants_notification());
}

#[test]
fn a_device_that_claims_more_than_it_was_given_is_noticed() {
    let region = ring(4);
    let mut queue = Queue::create(&region.memory(), OFFSET, 4).unwrap();
    let mut device = device(&region, &queue);
    queue.submit(&[segment(1, false)]).unwrap();
    device.skip(2);
    assert_eq!(
        queue.take_used(),
        Err(DeviceError::Index {
            used: 2,
            available: 1
        })
    );
    assert!(matches!(queue.check(), Err(QueueError::Cursors { .. })));
}

#[test]
fn a_chain_that_would_confuse_the_device_is_not_submitted() {
    let region = ring(4);
    let mut queue = Queue::create(&region.memory(), OFFSET, 4).unwrap();
    assert_eq!(queue.submit(&[]), Err(SubmitError::Chain));
    assert_eq!(
        queue.submit(&[segment(1, true), segment(2, false)]),
        Err(SubmitError::Chain)
    );
    assert_eq!(
        queue.submit(&[segment(1, true); 5]),
        Err(SubmitError::Chain)
    );
    assert_eq!(
        queue.submit_at(4, &segment(1, true)),
        Err(SubmitError::Chain)
    );
    queue.submit_at(2, &segment(1, true)).unwrap();
    assert_eq!(
        queue.submit_at(2, &segment(1, true)),
        Err(SubmitError::Busy(2))
    );
    assert_eq!(queue.submit(&[segment(1, true); 4]), Err(SubmitError::Full));
    assert_eq!(queue.cursors(), (1, 0, 0));
}

#[test]
fn a_ring_that_is_not_there_is_not_adopted() {
    let region = ring(16);
    let memory = region.memory();
    assert!(matches!(
        Queue::adopt(&memory, OFFSET, 16),
        Err(QueueError::OtherSize {
            found: 0,
            wanted: 16
        })
    ));
    Queue::create(&memory, OFFSET, 8).unwrap();
    // The state of a ring of 16 lies in the same page, and says 8.
    assert!(matches!(
        Queue::adopt(&memory, OFFSET, 16),
        Err(QueueError::OtherSize {
            found: 8,
            wanted: 16
        })
    ));
    for size in [0, 3, 512] {
        assert!(matches!(
            Queue::create(&memory, OFFSET, size),
            Err(QueueError::Size(_))
        ));
    }
    for offset in [8, 4096 * 2, !4095] {
        assert!(matches!(
            Queue::create(&memory, offset, 16),
            Err(QueueError::Place(_))
        ));
    }
}

#[test]
fn every_impossible_state_is_noticed() {
    let region = ring(4);
    let mut queue = Queue::create(&region.memory(), OFFSET, 4).unwrap();
    queue
        .submit(&[segment(1, false), segment(2, true)])
        .unwrap();
    assert_eq!(queue.check(), Ok(()));
    let addresses = queue.addresses(0);
    let state = OFFSET + Queue::bytes(4) - 4096;
    // Where, and which byte makes it impossible.
    for (at, byte) in [
        (addresses.available + 2, 0),
        (addresses.available + 2, 2),
        (addresses.used + 2, 2),
        (addresses.used + 3, 0x80),
        (state + 4, 1),
        (state + 6, 1),
        (state + 16, 0x10),
        (state + 24, 1),
        (state + 48, 0x04),
        (state + 48, 0),
    ] {
        let old = region.get(at);
        region.set(at, byte);
        assert!(queue.check().is_err(), "{byte} at {at:#x}");
        region.set(at, old);
        assert_eq!(queue.check(), Ok(()));
    }
}
