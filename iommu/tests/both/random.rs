//! Any sequence of operations, against a naive account of who may reach what.

use std::collections::BTreeMap;

use handoff_abi::{DomainId, RequesterId};
use iommu::{Access, InterruptHandle, Pending, Submitted};
use iommu_model::Schedule;
use proptest::prelude::*;

use crate::rig::*;

const DOMAINS: u16 = 3;
const DEVICES: u16 = 12;
const SLOTS: u64 = 6;

#[derive(Clone, Debug)]
enum Step {
    Map {
        domain: u16,
        slot: u64,
        pages: u64,
        access: u8,
    },
    Unmap {
        domain: u16,
        slot: u64,
    },
    Attach {
        device: u16,
        domain: u16,
    },
    Block {
        device: u16,
    },
    Move {
        first: u16,
        count: u16,
        to: Option<u16>,
        way: Way,
    },
    Interrupt {
        device: u16,
        vector: u8,
    },
    Retarget {
        index: usize,
        vector: u8,
    },
    Clear {
        index: usize,
    },
    Flush,
    Submit,
    Wait {
        index: usize,
    },
    Everything,
    Trouble {
        kind: u8,
    },
    Hand,
}

fn step() -> impl Strategy<Value = Step> {
    let domain = 1..=DOMAINS;
    let device = 0..DEVICES;
    prop_oneof![
        3 => (domain.clone(), 0..SLOTS, prop::sample::select(vec![1_u64, 2, 512, 513]), 1_u8..4)
            .prop_map(|(domain, slot, pages, access)| Step::Map { domain, slot, pages, access }),
        2 => (domain.clone(), 0..SLOTS).prop_map(|(domain, slot)| Step::Unmap { domain, slot }),
        4 => (device.clone(), domain.clone())
            .prop_map(|(device, domain)| Step::Attach { device, domain }),
        2 => device.clone().prop_map(|device| Step::Block { device }),
        3 => (device.clone(), 1_u16..12, prop::option::of(domain), prop::sample::select(WAYS))
            .prop_map(|(first, count, to, way)| Step::Move { first, count, to, way }),
        2 => (device, 16_u8..255).prop_map(|(device, vector)| Step::Interrupt { device, vector }),
        1 => (any::<usize>(), 16_u8..255)
            .prop_map(|(index, vector)| Step::Retarget { index, vector }),
        1 => any::<usize>().prop_map(|index| Step::Clear { index }),
        4 => Just(Step::Flush),
        2 => Just(Step::Submit),
        3 => any::<usize>().prop_map(|index| Step::Wait { index }),
        1 => Just(Step::Everything),
        1 => (0_u8..4).prop_map(|kind| Step::Trouble { kind }),
        1 => Just(Step::Hand),
    ]
}

fn requester(device: u16) -> RequesterId {
    // Over three buses.
    RequesterId((device % 3 + 1) << 8 | device)
}

/// What a naive reader of the calls expects once everything is flushed.
#[derive(Default)]
struct Account {
    /// By domain and slot: pages and access.
    maps: BTreeMap<(u16, u64), (u64, u8)>,
    attached: BTreeMap<u16, u16>,
    /// By device and index: the vector.
    interrupts: BTreeMap<(u16, u16), u8>,
}

fn iova(slot: u64) -> u64 {
    // Some slots begin at 2 MiB, some do not; pages of one never reach the next.
    slot << 32 | if slot.is_multiple_of(2) { 0 } else { 0x3000 }
}

fn memory(domain: u16, slot: u64) -> u64 {
    u64::from(domain) << 41 | iova(slot)
}

struct World {
    rig: Rig,
    account: Account,
    pending: Pending,
    submitted: Vec<Submitted>,
    model: UnitConfig,
}

impl World {
    fn flush(&mut self) {
        let pending = core::mem::take(&mut self.pending);
        self.rig.flush(pending);
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Map {
                domain,
                slot,
                pages,
                access,
            } => {
                let at = memory(domain, slot);
                let free = !self.account.maps.contains_key(&(domain, slot));
                let result = self.rig.units[0].map(
                    DomainId(domain),
                    iova(slot),
                    range(at, pages * 4096),
                    Access::from_bits_retain(access),
                );
                assert_eq!(result.is_ok(), free, "{step:?}: {result:?}");
                if let Ok(pending) = result {
                    self.add(pending);
                    self.account.maps.insert((domain, slot), (pages, access));
                }
            }
            Step::Unmap { domain, slot } => {
                let Some((pages, _)) = self.account.maps.remove(&(domain, slot)) else {
                    return;
                };
                let pending = self.rig.units[0]
                    .unmap(DomainId(domain), iova(slot), pages * 4096)
                    .unwrap();
                self.add(pending);
            }
            Step::Attach { device, domain } => {
                let result = self.rig.units[0].attach(requester(device), DomainId(domain));
                if let Ok(pending) = result {
                    assert!(!self.account.attached.contains_key(&device));
                    self.add(pending);
                    self.account.attached.insert(device, domain);
                }
            }
            Step::Block { device } => {
                let pending = self.rig.units[0].block(requester(device));
                self.add(pending);
                self.account.attached.remove(&device);
            }
            Step::Move {
                first,
                count,
                to,
                way,
            } => {
                let devices: Vec<_> = (first..(first + count).min(DEVICES)).collect();
                let requesters: Vec<_> = devices.iter().map(|&d| requester(d)).collect();
                let with = core::mem::take(&mut self.pending);
                let to_domain = to.map(DomainId);
                self.rig
                    .try_move(&requesters, to_domain, way, with, |_| ())
                    .unwrap();
                for device in devices {
                    match to {
                        Some(to) => drop(self.account.attached.insert(device, to)),
                        None => drop(self.account.attached.remove(&device)),
                    }
                }
                self.check();
            }
            Step::Interrupt { device, vector } => {
                let source = requester(device);
                let result = self.rig.units[0].allocate_interrupt(source, target(1, vector));
                let (handle, pending) = result.unwrap();
                self.add(pending);
                let key = (device, handle.index);
                let old = self.account.interrupts.insert(key, vector);
                assert!(old.is_none(), "a handle given out twice");
            }
            Step::Retarget { index, vector } => {
                let Some((key, handle)) = self.pick(index) else {
                    return;
                };
                let pending = self.rig.units[0]
                    .retarget(handle, target(1, vector))
                    .unwrap();
                self.add(pending);
                self.account.interrupts.insert(key, vector);
            }
            Step::Clear { index } => {
                let Some((key, handle)) = self.pick(index) else {
                    return;
                };
                let pending = self.rig.units[0].clear_interrupt(handle).unwrap();
                self.add(pending);
                self.account.interrupts.remove(&key);
            }
            Step::Flush => {
                self.flush();
                self.check();
            }
            Step::Submit => {
                let pending = core::mem::take(&mut self.pending);
                self.submitted
                    .push(self.rig.units[0].submit(pending).unwrap());
            }
            // In any order.
            Step::Wait { index } => {
                let count = self.submitted.len();
                if let Some(index) = index.checked_rem(count) {
                    let submitted = self.submitted.swap_remove(index);
                    self.rig.units[0].wait(submitted).unwrap();
                }
            }
            Step::Everything => {
                self.submitted.clear();
                self.pending = Pending::none();
                self.rig.units[0].invalidate_everything().unwrap();
                self.check();
            }
            Step::Trouble { kind } => {
                let what = PASSING.get(usize::from(kind)).copied();
                self.rig
                    .machine
                    .inject(0, what.unwrap_or(Injection::Nothing));
            }
            Step::Hand => {
                self.flush();
                self.submitted.clear();
                self.rig.hand_on(&self.model);
                self.check();
            }
        }
    }

    fn add(&mut self, more: Pending) {
        let pending = core::mem::take(&mut self.pending);
        self.pending = pending.merge(more);
    }

    fn pick(&self, index: usize) -> Option<((u16, u16), InterruptHandle)> {
        let count = self.account.interrupts.len();
        let (&key, _) = self
            .account
            .interrupts
            .iter()
            .nth(index.checked_rem(count)?)?;
        let handle = InterruptHandle::new(KIND, requester(key.0), key.1);
        Some((key, handle))
    }

    /// With nothing pending, exactly what the account says is within reach.
    fn check(&mut self) {
        if !self.submitted.is_empty() {
            return;
        }
        let unit = &self.rig.units[0];
        for device in 0..DEVICES {
            let sid = requester(device).0;
            let domain = self.account.attached.get(&device).copied();
            assert_eq!(unit.domain_of(requester(device)), domain.map(DomainId));
            let mut expected = BTreeMap::new();
            for (&(d, slot), &(pages, access)) in &self.account.maps {
                if Some(d) == domain {
                    for page in 0..pages {
                        let offset = page * 4096;
                        expected.insert(iova(slot) + offset, (memory(d, slot) + offset, access));
                    }
                }
            }
            let mut found = BTreeMap::new();
            for run in self.rig.machine.reach(0, sid) {
                for offset in (0..run.length).step_by(4096) {
                    let access = u8::from(run.read) | u8::from(run.write) << 1;
                    found.insert(run.iova + offset, (run.at + offset, access));
                }
            }
            assert_eq!(found, expected, "device {device}");
            for slot in 0..SLOTS {
                let at = iova(slot) + 8;
                let want = expected.get(&iova(slot));
                let got = self.rig.machine.dma_write(0, sid, at, b"w").landed;
                let may = want.filter(|w| w.1 & 2 != 0).map(|w| (w.0 + 8, 1));
                assert_eq!(got.first().copied(), may);
            }
        }
        for device in 0..DEVICES {
            let sid = requester(device).0;
            // Its own, those of others, and some that are nobody's.
            let set = self.account.interrupts.keys().map(|key| key.1);
            for index in set.chain((0..24).chain((24..0x200).step_by(7))) {
                let message = InterruptHandle::new(KIND, requester(device), index).message();
                let (address, data) = (message.address.0, message.data);
                let got = self.rig.machine.msi(0, sid, address, data);
                let vector = self.account.interrupts.get(&(device, index));
                match (got, vector) {
                    (Interrupt::Blocked(_), None) => {}
                    (
                        Interrupt::Delivered {
                            destination: 1,
                            vector,
                            ..
                        },
                        Some(&wanted),
                    ) => assert_eq!(vector, wanted),
                    other => panic!("{index} from {device}: {other:?}"),
                }
            }
        }
        self.rig.units[0].drain_faults(|_| ()).unwrap();
    }
}

proptest! {
    #![proptest_config(cases())]
    #[test]
    fn any_sequence_of_operations_gives_what_was_asked_for(
        which in 0..models().len(),
        schedule in prop_oneof![
            Just(Schedule::Lazy),
            Just(Schedule::Eager),
            any::<u64>().prop_map(Schedule::Random),
        ],
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let model = random_model(which);
        let mut rig = Rig::prepared(schedule, std::slice::from_ref(&model));
        for id in 1..=DOMAINS {
            rig.units[0].create_domain(DomainId(id)).unwrap();
        }
        rig.units[0].enable().unwrap();
        let mut world = World {
            rig,
            account: Account::default(),
            pending: Pending::none(),
            submitted: Vec::new(),
            model,
        };
        for step in &steps {
            world.apply(step);
        }
        world.flush();
        while !world.submitted.is_empty() {
            world.apply(&Step::Wait { index: 0 });
        }
        world.check();
        world.rig.sound();
    }
}
