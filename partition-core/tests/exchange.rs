//! Mailboxes and status between two partitions of which one may write anything.

use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

use handoff_abi::*;
use iommu::Deadline;
use partition_core::ledger::{LedgerView, Steward};
use partition_core::mailbox::*;
use partition_core::watch::*;
use proptest::prelude::*;

const PRIME: PartitionId = PartitionId(1);
const NEXT: PartitionId = PartitionId(2);

/// A clock that runs out after a number of looks.
struct Looks(u32);

impl Deadline for Looks {
    fn start(&mut self, microseconds: u32) {
        self.0 = microseconds;
    }

    fn expired(&mut self) -> bool {
        self.0 = self.0.saturating_sub(1);
        self.0 == 0
    }
}

proptest! {
    #[test]
    fn a_mailbox_is_a_bounded_queue(actions in proptest::collection::vec(any::<bool>(), 0..200), start: u32) {
        let mailbox = Mailbox::default();
        mailbox.head.store(start, SeqCst);
        mailbox.tail.store(start, SeqCst);
        let (mut sender, mut receiver) = (Sender::new(&mailbox), Receiver::new(&mailbox));
        let mut model = VecDeque::new();
        for (number, send) in actions.into_iter().enumerate() {
            if send {
                let message = [number as u64; 8];
                let sent = sender.send(&message);
                if model.len() == MAILBOX_SLOTS {
                    prop_assert_eq!(sent, Err(MailboxError::Full));
                } else {
                    prop_assert_eq!(sent, Ok(()));
                    model.push_back(message);
                }
            } else {
                prop_assert_eq!(receiver.receive(), Ok(model.pop_front()));
            }
        }
    }

    #[test]
    fn indices_that_lie_are_noticed_and_never_read_out_of_bounds(head: u32, tail: u32) {
        let mailbox = Mailbox::default();
        let mut receiver = Receiver::new(&mailbox);
        let mut sender = Sender::new(&mailbox);
        mailbox.head.store(head, SeqCst);
        mailbox.tail.store(tail, SeqCst);
        match receiver.receive() {
            Ok(None) => prop_assert_eq!(head, 0),
            Ok(Some(_)) => prop_assert!(head as usize <= MAILBOX_SLOTS),
            Err(error) => prop_assert_eq!(error, MailboxError::Corrupt { head, tail: 0 }),
        }
        let sent = sender.send(&[0; 8]);
        prop_assert_eq!(sent.is_ok(), mailbox.tail.load(SeqCst).wrapping_neg() < MAILBOX_SLOTS as u32);
    }
}

#[test]
fn messages_cross_between_threads_whole_and_in_order() {
    let mailbox = Mailbox::default();
    // An interpreter takes a thousand times as long.
    let count = if cfg!(miri) { 100 } else { 10_000_u64 };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut sender = Sender::new(&mailbox);
            for number in 0..count {
                while sender.send(&[number; 8]) == Err(MailboxError::Full) {
                    std::thread::yield_now();
                }
            }
        });
        let mut receiver = Receiver::new(&mailbox);
        for number in 0..count {
            let message = loop {
                match receiver.receive().unwrap() {
                    Some(message) => break message,
                    None => std::thread::yield_now(),
                }
            };
            assert_eq!(message, [number; 8]);
        }
    });
}

#[test]
fn a_partition_that_comes_up_is_followed() {
    let exchange = Exchange::default();
    let mut watch = Watch::prepare(&exchange, NEXT).unwrap();
    let own = OwnStatus::new(&exchange, NEXT).unwrap();
    own.enter(state::ENTERED, 5);
    own.speak(AbiVersion::V0_1, Features::VT_D);
    own.enter(state::NEGOTIATED, 6);
    own.enter(state::READY, 7);
    assert_eq!(watch.wait(state::READY, 1, &mut Looks(0)), Ok(()));
    assert_eq!(watch.since(), 7);
    assert_eq!(
        watch.negotiated(AbiVersion::V0_2),
        Ok((AbiVersion::V0_1, Features::VT_D))
    );
    assert_eq!(
        watch.negotiated(AbiVersion { major: 1, minor: 0 }),
        Err(WatchError::Version {
            found: AbiVersion::V0_1
        })
    );
}

#[test]
fn a_state_that_was_missed_on_the_way_up_was_reached() {
    let exchange = Exchange::default();
    let own = OwnStatus::new(&exchange, NEXT).unwrap();
    for reached in [state::NEGOTIATED, state::READY] {
        let mut watch = Watch::prepare(&exchange, NEXT).unwrap();
        own.enter(reached, 0);
        assert_eq!(watch.wait(state::ENTERED, 1, &mut Looks(0)), Ok(()));
    }
    // Who serves is past being ready, and no hand-over is waited for by looking for less.
    own.enter(state::SERVING, 0);
    let mut watch = Watch::join(&exchange, NEXT).unwrap();
    assert!(watch.wait(state::READY, 1, &mut Looks(0)).is_err());
}

#[test]
fn a_refusal_on_the_receipt_is_noticed_at_once() {
    let exchange = Exchange::default();
    let receipt = AtomicU64::new(0);
    let mut watch = Watch::prepare(&exchange, NEXT)
        .unwrap()
        .with_receipt(&receipt);
    assert_eq!(watch.look(), Ok(state::LAUNCHED));
    receipt.store(3, SeqCst);
    let refused = Err(WatchError::Refused { reason: 3 });
    assert_eq!(watch.wait(state::ENTERED, 1_000, &mut Looks(0)), refused);
}

/// A ledger in which NEXT has processor 2, and a place that is prepared for it.
fn launched(test: impl FnOnce(&Ledger, &Exchange, Header)) {
    let ledger = new_ledger();
    let mut steward = Steward::format(&ledger, PRIME);
    for (cpu, owner) in [(0, PRIME), (2, NEXT)] {
        let owner = Owner::Partition(owner);
        steward.add(resource::CPU, cpu, 1, owner).unwrap();
    }
    let exchange = Exchange::default();
    OwnStatus::new(&exchange, PRIME).unwrap();
    Watch::prepare(&exchange, NEXT).unwrap();
    let mut buffer = [0; 128];
    let written = Writer::new(
        &mut buffer,
        Envelope {
            version: AbiVersion::V0_2,
            self_address: PhysAddr(0x1000),
            features: Features::empty(),
            required: Features::empty(),
            epoch: 1,
            writer: PRIME,
            reader: NEXT,
            swaps: 0,
        },
    )
    .unwrap()
    .finish();
    let speaks = Speaks {
        newest: AbiVersion::V0_2,
        oldest: AbiVersion::V0_1,
        features: Features::empty(),
    };
    let handoff = Handoff::parse(written, PhysAddr(0x1000), &speaks).unwrap();
    test(&ledger, &exchange, *handoff.header());
}

fn new_ledger() -> Box<Ledger> {
    Box::new(Ledger {
        magic: 0.into(),
        stewardship: 0.into(),
        used: 0.into(),
        reserved: Default::default(),
        slots: std::array::from_fn(|_| LedgerSlot::default()),
    })
}

#[test]
fn who_arrives_with_the_right_handoff_takes_its_place_and_writes_nothing_yet() {
    launched(|ledger, exchange, header| {
        let view = LedgerView::new(ledger).unwrap();
        let own = OwnStatus::arrive(exchange, view, &header, ApicId(2)).unwrap();
        assert_eq!(own.state(), state::LAUNCHED);
        own.enter(state::ENTERED, 0);
        // Nobody arrives twice.
        assert_eq!(
            OwnStatus::arrive(exchange, view, &header, ApicId(2)).unwrap_err(),
            ArrivalError::Place {
                stated: NEXT,
                found: 0x1_0002,
                state: state::ENTERED
            }
        );
    });
}

#[test]
fn a_handoff_of_another_time_or_for_another_reader_is_refused() {
    let stranger = PartitionId(0x77);
    type Change = fn(&mut Header);
    let cases: [(Change, u32, ArrivalError); 5] = [
        (
            |header| header.writer = PartitionId(0x77),
            2,
            ArrivalError::Writer {
                stated: stranger,
                steward: PRIME,
            },
        ),
        (
            |header| header.epoch += 1 << 20,
            2,
            ArrivalError::Epoch {
                stated: 1 + (1 << 20),
                ledger: 1,
            },
        ),
        (
            |header| header.reader = PRIME,
            2,
            ArrivalError::Reader {
                stated: PRIME,
                cpu: ApicId(2),
                owner: Some(Owner::Partition(NEXT)),
            },
        ),
        (
            |_| (),
            5,
            ArrivalError::Reader {
                stated: NEXT,
                cpu: ApicId(5),
                owner: None,
            },
        ),
        // The prime's own processor reads a handoff for the prime, whose place lives.
        (
            |header| header.reader = PRIME,
            0,
            ArrivalError::Place {
                stated: PRIME,
                found: 0x1_0001,
                state: state::EMPTY,
            },
        ),
    ];
    for (change, cpu, wanted) in cases {
        launched(|ledger, exchange, mut header| {
            change(&mut header);
            let view = LedgerView::new(ledger).unwrap();
            let refused = OwnStatus::arrive(exchange, view, &header, ApicId(cpu));
            assert_eq!(refused.unwrap_err(), wanted);
            assert_eq!(
                exchange.status[Exchange::place(NEXT)].state.load(SeqCst),
                state::LAUNCHED
            );
        });
    }
}

#[test]
fn a_partition_that_hangs_is_told_from_one_that_is_slow() {
    let exchange = Exchange::default();
    let mut watch = Watch::prepare(&exchange, NEXT).unwrap();
    let own = OwnStatus::new(&exchange, NEXT).unwrap();
    own.enter(state::ENTERED, 0);
    let timeout = |alive| {
        Err(WatchError::Timeout {
            reached: state::ENTERED,
            alive,
        })
    };
    assert_eq!(watch.wait(state::READY, 3, &mut Looks(0)), timeout(false));
    struct Beating<'a>(Looks, &'a OwnStatus<'a>);
    impl Deadline for Beating<'_> {
        fn start(&mut self, microseconds: u32) {
            self.0.start(microseconds);
        }
        fn expired(&mut self) -> bool {
            self.1.beat();
            self.0.expired()
        }
    }
    assert_eq!(
        watch.wait(state::READY, 3, &mut Beating(Looks(0), &own)),
        timeout(true)
    );
}

#[test]
fn a_state_that_came_while_nobody_looked_is_seen() {
    let exchange = Exchange::default();
    let mut watch = Watch::prepare(&exchange, NEXT).unwrap();
    let own = OwnStatus::new(&exchange, NEXT).unwrap();
    /// The time is over at once, and the partition enters a state meanwhile.
    struct Slept<'a>(&'a OwnStatus<'a>);
    impl Deadline for Slept<'_> {
        fn start(&mut self, _: u32) {}
        fn expired(&mut self) -> bool {
            self.0.enter(state::ENTERED, 0);
            true
        }
    }
    assert_eq!(watch.wait(state::ENTERED, 3, &mut Slept(&own)), Ok(()));
}

#[test]
fn a_partition_that_gives_up_or_lies_is_named() {
    let exchange = Exchange::default();
    let own = OwnStatus::new(&exchange, NEXT).unwrap();
    let mut watch = Watch::prepare(&exchange, NEXT).unwrap();
    own.fail(7, 0x99);
    assert_eq!(
        watch.look(),
        Err(WatchError::Failed {
            reason: 7,
            detail: 0x99
        })
    );
    for (from, to) in [
        (state::LAUNCHED, state::SERVING),
        (state::READY, state::ENTERED),
        (state::READY, state::EMPTY),
        (state::LAUNCHED, 99),
        (state::NEGOTIATED, state::LAUNCHED),
        (state::RETIRED, state::SERVING),
    ] {
        let mut watch = Watch::prepare(&exchange, NEXT).unwrap();
        for on_the_way in [state::NEGOTIATED, state::READY, state::RETIRED] {
            if on_the_way <= from {
                own.enter(on_the_way, 0);
                watch.look().unwrap();
            }
        }
        own.enter(to, 0);
        assert_eq!(watch.look(), Err(WatchError::Order { from, to }));
    }
    let mut watch = Watch::prepare(&exchange, NEXT).unwrap();
    let place = &exchange.status[Exchange::place(NEXT)];
    place.partition.store(0x1_0000 | u32::from(PRIME.0), SeqCst);
    assert_eq!(watch.look(), Err(WatchError::Stranger { found: 0x1_0001 }));
}
