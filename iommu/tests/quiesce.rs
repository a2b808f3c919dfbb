//! Making functions quiet, against a model of configuration space whose functions misbehave.

use handoff_abi::{PciFunction, RequesterId};
use iommu::quiesce::{BusMaster, QuiesceError, quiesce, stop_bus_master};
use iommu::{ConfigError, Deadline};
use iommu_model::pci::{ConfigAccess, ConfigSpaces, Misbehaviour, NoWindow};
use proptest::prelude::*;

/// PCI Express and MSI at usual places.
const EXPRESS: &[(u8, u8)] = &[(0x01, 0x40), (0x05, 0x50), (0x10, 0x70), (0x11, 0xb0)];
/// MSI alone.
const CONVENTIONAL: &[(u8, u8)] = &[(0x05, 0x40)];

/// A clock that is over after so many looks.
struct Looks {
    left: u32,
    allowed: u32,
}

impl Deadline for Looks {
    fn start(&mut self, microseconds: u32) {
        self.left = microseconds;
        self.allowed = 2;
    }

    fn expired(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            self.allowed = self
                .allowed
                .checked_sub(1)
                .expect("polled past the deadline");
        }
        self.left == 0
    }
}

/// A clock that has not been started.
const fn clock() -> Looks {
    Looks {
        left: 0,
        allowed: 0,
    }
}

fn function(number: u16) -> PciFunction {
    PciFunction {
        segment: 1,
        requester: RequesterId(0x0300 | number << 3),
    }
}

/// So many functions with these capabilities, and what was found out about them.
fn machine(count: u16, capabilities: &[(u8, u8)]) -> (ConfigSpaces, Vec<BusMaster>) {
    let mut spaces = ConfigSpaces::default();
    let masters = (0..count)
        .map(|number| {
            spaces.add(function(number), capabilities);
            BusMaster::find(&mut spaces, function(number)).unwrap()
        })
        .collect();
    drop(spaces.take_accesses());
    (spaces, masters)
}

fn all_off(spaces: &ConfigSpaces, count: u16) -> bool {
    (0..count).all(|number| !spaces.is_bus_master(function(number)))
}

#[test]
fn the_pci_express_capability_is_found_and_nothing_is_written_for_that() {
    for (capabilities, expected) in [
        (EXPRESS, Some(0x70)),
        (CONVENTIONAL, None),
        (&[], None),
        (&[(0x10, 0x40)], Some(0x40)),
        (&[(0x10, 0xf4)], Some(0xf4)),
    ] {
        let mut spaces = ConfigSpaces::default();
        spaces.add(function(0), capabilities);
        let found = BusMaster::find(&mut spaces, function(0)).unwrap();
        assert_eq!(found.express_capability(), expected);
        assert_eq!(found.function(), function(0));
        assert!(spaces.take_accesses().iter().all(|a| a.written.is_none()));
    }
    // As many as there is room for, and none of them is it.
    let many: Vec<_> = (0..48).map(|i| (9, 0x40 + 4 * i)).collect();
    let mut spaces = ConfigSpaces::default();
    spaces.add(function(0), &many);
    let found = BusMaster::find(&mut spaces, function(0)).unwrap();
    assert_eq!(found.express_capability(), None);
}

#[test]
fn reserved_bits_of_capability_pointers_are_ignored() {
    let mut spaces = ConfigSpaces::default();
    spaces.add(function(0), EXPRESS);
    spaces.poke(function(0), 0x34, 0x43);
    spaces.poke(function(0), 0x41, 0x52);
    let found = BusMaster::find(&mut spaces, function(0)).unwrap();
    assert_eq!(found.express_capability(), Some(0x70));
}

#[test]
fn a_cardbus_bridge_has_no_list_where_others_have_it() {
    let mut spaces = ConfigSpaces::default();
    spaces.add(function(0), EXPRESS);
    for header in [0x02, 0x82] {
        spaces.poke(function(0), 0x0e, header);
        let found = BusMaster::find(&mut spaces, function(0)).unwrap();
        assert_eq!(found.express_capability(), None);
    }
    for header in [0x01, 0x80, 0x81] {
        spaces.poke(function(0), 0x0e, header);
        let found = BusMaster::find(&mut spaces, function(0)).unwrap();
        assert_eq!(found.express_capability(), Some(0x70));
    }
}

#[test]
fn a_list_that_runs_in_a_circle_or_out_of_bounds_is_an_error_and_ends() {
    let broken = |pokes: &[(u16, u8)]| {
        let mut spaces = ConfigSpaces::default();
        spaces.add(function(0), CONVENTIONAL);
        for &(offset, value) in pokes {
            spaces.poke(function(0), offset, value);
        }
        let found = BusMaster::find(&mut spaces, function(0));
        assert!(spaces.take_accesses().len() < 60);
        found
    };
    let error = |offset| {
        Err(ConfigError::CapabilityList {
            function: function(0),
            offset,
        }
        .into())
    };
    // Onto itself, round two, into the header, from the start into the header.
    assert_eq!(broken(&[(0x41, 0x40)]), error(0x40));
    assert_eq!(broken(&[(0x41, 0x60), (0x61, 0x40)]), error(0x60));
    assert_eq!(broken(&[(0x41, 0x3c)]), error(0x40));
    assert_eq!(broken(&[(0x34, 0x04)]), error(0x34));
    // Device Status would lie beyond the 256 bytes.
    assert_eq!(broken(&[(0x41, 0xf8), (0xf8, 0x10)]), error(0x40));
    // Nothing there.
    assert_eq!(
        broken(&[(0x40, 0xff), (0x41, 0xff)]),
        Err(ConfigError::Gone {
            function: function(0),
            offset: 0x40,
        }
        .into())
    );
}

#[test]
fn bus_mastering_is_off_in_all_before_it_is_read_back_from_any() {
    let count = 5;
    let (mut spaces, masters) = machine(count, EXPRESS);
    quiesce(&mut spaces, &mut clock(), 100, &masters).unwrap();
    let accesses = spaces.take_accesses();
    let last_write = accesses.iter().rposition(|a| a.written.is_some()).unwrap();
    let (before, after) = accesses.split_at(last_write + 1);
    for number in 0..count {
        let at = function(number);
        let of = |part: &[ConfigAccess]| -> Vec<_> {
            let own = part.iter().filter(|a| a.function == at);
            own.map(|a| (a.offset, a.written)).collect()
        };
        // Memory space and SERR# stay enabled; Status is not written.
        assert_eq!(of(before), [(0x04, None), (0x04, Some(0x0102))]);
        assert_eq!(of(after), [(0x04, None), (0x7a, None)]);
        assert_eq!(spaces.command(at), 0x0102);
    }
    // Those that were off already are read back all the same: they may have something under way.
    quiesce(&mut spaces, &mut clock(), 100, &masters).unwrap();
    let accesses = spaces.take_accesses();
    assert!(accesses.iter().all(|a| a.written.is_none()));
    assert_eq!(accesses.len(), 3 * usize::from(count));
}

#[test]
fn a_conventional_function_is_read_back_and_no_more() {
    let (mut spaces, masters) = machine(2, CONVENTIONAL);
    spaces.misbehave(function(0), Misbehaviour::PendingForEver);
    quiesce(&mut spaces, &mut clock(), 100, &masters).unwrap();
    assert!(all_off(&spaces, 2));
    assert!(spaces.take_accesses().iter().all(|a| a.offset == 0x04));
}

#[test]
fn pending_transactions_are_awaited_until_the_time_is_over() {
    let mut clock = clock();
    let (mut spaces, masters) = machine(3, EXPRESS);
    spaces.misbehave(function(1), Misbehaviour::PendingFor(40));
    quiesce(&mut spaces, &mut clock, 100, &masters).unwrap();

    let (mut spaces, masters) = machine(3, EXPRESS);
    spaces.misbehave(function(1), Misbehaviour::PendingForEver);
    let result = quiesce(&mut spaces, &mut clock, 100, &masters);
    assert_eq!(
        result,
        Err(QuiesceError::StillPending {
            function: function(1),
            device_status: 0x20,
        })
    );
    assert!(all_off(&spaces, 3), "and they stay off");

    // The time is one for all, not one for each.
    for (reads, late) in [(30, None), (40, Some(2))] {
        let (mut spaces, masters) = machine(3, EXPRESS);
        for number in 0..3 {
            spaces.misbehave(function(number), Misbehaviour::PendingFor(reads));
        }
        let result = quiesce(&mut spaces, &mut clock, 100, &masters);
        assert_eq!(result.err().map(|e| e.function()), late.map(function));
        assert!(spaces.take_accesses().len() < 9 + 3 + 101);
    }
}

#[test]
fn what_became_quiet_when_the_time_was_just_over_is_quiet() {
    let (mut spaces, masters) = machine(1, EXPRESS);
    // The look that finds the time over is followed by one at the register.
    spaces.misbehave(function(0), Misbehaviour::PendingFor(1));
    quiesce(&mut spaces, &mut clock(), 1, &masters).unwrap();
    let (mut spaces, masters) = machine(1, EXPRESS);
    spaces.misbehave(function(0), Misbehaviour::PendingFor(2));
    assert!(quiesce(&mut spaces, &mut clock(), 1, &masters).is_err());
}

#[test]
fn one_that_fails_does_not_keep_the_others_bus_masters() {
    type Expected = fn(&QuiesceError<NoWindow>) -> bool;
    let cases: [(Misbehaviour, Expected); 3] = [
        (Misbehaviour::Gone, |e| {
            matches!(
                e,
                QuiesceError::Config(ConfigError::Gone { offset: 0x04, .. })
            )
        }),
        (Misbehaviour::ReadOnly, |e| {
            matches!(
                e,
                QuiesceError::StillBusMaster {
                    command: 0x0106,
                    ..
                }
            )
        }),
        (Misbehaviour::Unreachable, |e| {
            matches!(
                e,
                QuiesceError::Config(ConfigError::Unreachable {
                    error: NoWindow,
                    ..
                })
            )
        }),
    ];
    for (misbehaviour, expected) in cases {
        for bad in 0..4 {
            let (mut spaces, masters) = machine(4, EXPRESS);
            spaces.misbehave(function(bad), misbehaviour);
            let error = quiesce(&mut spaces, &mut clock(), 100, &masters).unwrap_err();
            assert!(expected(&error), "{error:?}");
            assert_eq!(error.function(), function(bad));
            let text = error.to_string();
            assert!(text.starts_with(&function(bad).to_string()), "{text}");
            for number in (0..4).filter(|&n| n != bad) {
                assert!(!spaces.is_bus_master(function(number)), "{number}");
            }
            assert_eq!(stop_bus_master(&mut spaces, function(bad)), Err(error));
        }
    }
}

#[test]
fn a_function_that_goes_in_the_middle_is_gone_wherever_that_is() {
    for accesses in 0..6 {
        let (mut spaces, masters) = machine(2, EXPRESS);
        spaces.misbehave(function(0), Misbehaviour::GoneAfter(accesses));
        spaces.misbehave(function(0), Misbehaviour::PendingFor(1));
        let result = quiesce(&mut spaces, &mut clock(), 100, &masters);
        // Read, write, read back, device status twice.
        let offset = if accesses < 3 { 0x04 } else { 0x7a };
        if accesses < 5 {
            let function = function(0);
            assert_eq!(result, Err(ConfigError::Gone { function, offset }.into()));
        } else {
            assert_eq!(result, Ok(()));
        }
        assert!(!spaces.is_bus_master(function(1)));
    }
}

#[test]
fn one_that_is_not_there_is_gone() {
    let mut spaces = ConfigSpaces::default();
    let function = function(9);
    assert_eq!(
        BusMaster::find(&mut spaces, function),
        Err(ConfigError::Gone {
            function,
            offset: 0x06,
        }
        .into())
    );
}

proptest! {
    /// Whatever a function's configuration space holds, the walk ends, writes nothing, and names a
    /// capability only where there is one.
    #[test]
    fn any_configuration_space_is_walked_to_an_end(
        bytes in prop::collection::vec(prop_oneof![Just(0x10_u8), any::<u8>()], 256),
    ) {
        let mut spaces = ConfigSpaces::default();
        spaces.add(function(0), &[]);
        for (offset, &value) in (0..=255).zip(&bytes) {
            spaces.poke(function(0), offset, value);
        }
        let found = BusMaster::find(&mut spaces, function(0));
        let accesses = spaces.take_accesses();
        prop_assert!(accesses.len() <= 3 + 48);
        prop_assert!(accesses.iter().all(|a| a.written.is_none()));
        if let Ok(found) = found
            && let Some(at) = found.express_capability()
        {
            prop_assert!((0x40..=0xf4).contains(&at));
            prop_assert_eq!(bytes[usize::from(at)], 0x10);
        }
    }

    /// Functions that misbehave anyhow: a function that answers ends up off, success means that all
    /// are off and none is pending, and the accesses are bounded.
    #[test]
    fn whatever_functions_do_those_that_answer_are_no_bus_masters(
        kinds in prop::collection::vec((0_u8..8, 0_u32..12, any::<bool>()), 1..12),
    ) {
        let mut spaces = ConfigSpaces::default();
        let mut masters = Vec::new();
        for (number, &(_, _, express)) in (0..).zip(&kinds) {
            let capabilities = if express { EXPRESS } else { CONVENTIONAL };
            spaces.add(function(number), capabilities);
            masters.push(BusMaster::find(&mut spaces, function(number)).unwrap());
        }
        drop(spaces.take_accesses());
        let mut bad = false;
        for (number, &(kind, count, express)) in (0..).zip(&kinds) {
            let how = match kind {
                0 => Misbehaviour::Gone,
                1 => Misbehaviour::GoneAfter(count),
                2 => Misbehaviour::ReadOnly,
                3 => Misbehaviour::PendingFor(count),
                4 => Misbehaviour::PendingForEver,
                5 => Misbehaviour::Unreachable,
                _ => continue,
            };
            bad |= matches!(kind, 0 | 2 | 5) || kind == 4 && express || kind == 1 && count < 3;
            spaces.misbehave(function(number), how);
        }
        let result = quiesce(&mut spaces, &mut clock(), 200, &masters);
        prop_assert!(!bad || result.is_err(), "{:?}", result);
        for (number, &(kind, ..)) in (0..).zip(&kinds) {
            if matches!(kind, 3 | 4 | 6 | 7) || result.is_ok() {
                prop_assert!(!spaces.is_bus_master(function(number)));
            }
        }
        prop_assert!(spaces.take_accesses().len() <= 4 * kinds.len() + 202);
    }
}
