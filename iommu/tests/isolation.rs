//! Having functions send their requests upstream, against a model of configuration space. Registers are
//! given by the PCI Express Base Specification's offsets.

use handoff_abi::{PciFunction, RequesterId};
use iommu::ConfigError;
use iommu::isolation::{IsolationError, isolate};
use iommu_model::pci::{ConfigSpaces, Misbehaviour, NoWindow};
use proptest::prelude::*;

const AT: PciFunction = PciFunction {
    segment: 0,
    requester: RequesterId(0x0208),
};
/// Where the model's functions have their capabilities.
const ACS: u16 = 0x140;
const ATS: u16 = 0x180;
const PRI: u16 = 0x190;
const PASID: u16 = 0x1a0;
const ALL: &[(u16, u16)] = &[
    (0x0001, 0x100),
    (0x0d, ACS),
    (0x0f, ATS),
    (0x13, PRI),
    (0x1b, PASID),
];

/// An express function with these extended capabilities.
fn function(extended: &[(u16, u16)]) -> ConfigSpaces {
    let spaces = ConfigSpaces::default();
    spaces.add(AT, &[(0x01, 0x40), (0x10, 0x70)]);
    spaces.extend(AT, extended);
    spaces
}

/// A port that can do all of ACS, does what lets requests to peers through, and has every service on.
fn open_port() -> ConfigSpaces {
    let spaces = function(ALL);
    spaces.register(AT, ACS + 4, 0x087f, 0);
    spaces.register(AT, ACS + 6, 0x0061, 0x007f);
    spaces.register(AT, ATS + 6, 0x8005, 0x801f);
    spaces.register(AT, PRI + 4, 0x0001, 0x0003);
    spaces.register(AT, PASID + 6, 0x0007, 0x0007);
    spaces
}

/// What was written, in order.
fn written(spaces: &ConfigSpaces) -> Vec<(u16, u16)> {
    let accesses = spaces.take_accesses().into_iter();
    accesses
        .filter_map(|access| Some((access.offset, access.written?)))
        .collect()
}

#[test]
fn an_open_port_sends_everything_upstream_afterwards() {
    let mut spaces = open_port();
    isolate(&mut spaces, AT).unwrap();
    // Source Validation, Translation Blocking, both redirects, Upstream Forwarding; neither Egress
    // Control nor Direct Translated.
    assert_eq!(spaces.word(AT, ACS + 6), 0b001_1111);
    assert_eq!(spaces.word(AT, ATS + 6), 0x0005);
    assert_eq!(spaces.word(AT, PRI + 4), 0x0000);
    assert_eq!(spaces.word(AT, PASID + 6), 0x0006);
    // Nobody asks for pages any more when translations go, nor for translations when PASIDs go.
    let order: Vec<_> = written(&spaces).into_iter().map(|(at, _)| at).collect();
    assert_eq!(order, [PRI + 4, ATS + 6, PASID + 6, ACS + 6]);
}

#[test]
fn only_what_a_function_can_do_is_switched_on() {
    for able in 0..=0x7f_u16 {
        let mut spaces = function(&[(0x0d, 0x100)]);
        spaces.register(AT, 0x104, able, 0);
        spaces.register(AT, 0x106, 0, able);
        isolate(&mut spaces, AT).unwrap();
        assert_eq!(spaces.word(AT, 0x106), able & 0x1f, "{able:#x}");
    }
}

#[test]
fn what_is_right_already_is_not_written() {
    let mut spaces = open_port();
    isolate(&mut spaces, AT).unwrap();
    drop(written(&spaces));
    isolate(&mut spaces, AT).unwrap();
    assert_eq!(written(&spaces), []);
}

#[test]
fn a_function_with_nothing_to_switch_is_left_alone() {
    for capabilities in [&[(0x05, 0x40)][..], &[]] {
        let mut spaces = ConfigSpaces::default();
        spaces.add(AT, capabilities);
        // Behind the 256 bytes of a conventional function there is nothing that counts.
        spaces.poke(AT, 0x100, 0x0d);
        isolate(&mut spaces, AT).unwrap();
        assert_eq!(written(&spaces), []);
    }
    for first in [0x0000_u16, 0xffff] {
        let mut spaces = function(&[]);
        spaces.register(AT, 0x100, first, 0);
        isolate(&mut spaces, AT).unwrap();
        assert_eq!(written(&spaces), []);
    }
    let mut spaces = function(&[(0x0001, 0x100), (0x0003, 0x200)]);
    isolate(&mut spaces, AT).unwrap();
    assert_eq!(written(&spaces), []);
}

#[test]
fn a_register_that_does_not_take_it_is_told() {
    let refused = |offset, written, found| {
        Err(IsolationError::Refused {
            function: AT,
            offset,
            written,
            found,
        })
    };
    // Upstream Forwarding stays off; Direct Translated stays on.
    for (writable, found) in [(0x006f, 0x000f), (0x003f, 0x005f)] {
        let mut spaces = open_port();
        spaces.register(AT, ACS + 6, 0x0061, writable);
        assert_eq!(isolate(&mut spaces, AT), refused(ACS + 6, 0x001f, found));
    }
    let mut spaces = open_port();
    spaces.register(AT, ATS + 6, 0x8000, 0);
    assert_eq!(isolate(&mut spaces, AT), refused(ATS + 6, 0, 0x8000));
    let mut spaces = open_port();
    spaces.register(AT, PASID + 6, 0x0001, 0);
    assert_eq!(isolate(&mut spaces, AT), refused(PASID + 6, 0, 1));
    // What does not matter may read as it likes: reserved bits, and those of other purposes.
    let mut spaces = open_port();
    spaces.register(AT, ACS + 6, 0xff00, 0x007f);
    isolate(&mut spaces, AT).unwrap();
}

#[test]
fn a_broken_list_is_told_and_nothing_is_written() {
    // Back to itself; in a circle; below the extended space; past the end.
    for (from, next) in [(ACS, ACS), (PASID, ACS), (ATS, 0x0fc), (ATS, 0xffc)] {
        let mut spaces = open_port();
        spaces.register(AT, from + 2, next << 4 | 1, 0);
        let result = isolate(&mut spaces, AT);
        assert!(
            matches!(
                result,
                Err(IsolationError::Config(ConfigError::CapabilityList {
                    function: AT,
                    ..
                }))
            ),
            "{from:#x} to {next:#x}: {result:?}"
        );
        assert_eq!(written(&spaces), []);
    }
    let mut spaces = open_port();
    spaces.poke(AT, 0x34, 0x20);
    let offset = 0x34;
    let broken = ConfigError::CapabilityList {
        function: AT,
        offset,
    };
    assert_eq!(isolate(&mut spaces, AT), Err(broken.into()));
}

#[test]
fn a_function_that_goes_or_was_never_there_is_told() {
    let mut spaces = open_port();
    isolate(&mut spaces, AT).unwrap();
    let accesses = spaces.take_accesses().len() as u32;
    for after in 0..accesses {
        let mut spaces = open_port();
        spaces.misbehave(AT, Misbehaviour::GoneAfter(after));
        let result = isolate(&mut spaces, AT);
        // At 100h ones also mean that there are no extended capabilities.
        let at_extended = spaces
            .take_accesses()
            .last()
            .is_some_and(|access| access.offset == 0x100 && result.is_ok());
        assert!(
            at_extended
                || matches!(
                    result,
                    Err(IsolationError::Config(ConfigError::Gone {
                        function: AT,
                        ..
                    }))
                ),
            "{after}: {result:?}"
        );
    }
    let mut spaces = open_port();
    spaces.misbehave(AT, Misbehaviour::Unreachable);
    let unreachable = ConfigError::Unreachable {
        function: AT,
        error: NoWindow,
    };
    assert_eq!(isolate(&mut spaces, AT), Err(unreachable.into()));
}

proptest! {
    /// Whatever lies in configuration space, the walk ends.
    #[test]
    fn any_configuration_space_is_walked_to_an_end(
        pokes in prop::collection::vec((0x100..0x1000_u16, any::<u8>()), 0..400),
    ) {
        let mut spaces = function(ALL);
        for (offset, value) in pokes {
            spaces.poke(AT, offset, value);
        }
        let _ = isolate(&mut spaces, AT);
        prop_assert!(spaces.take_accesses().len() < 2500);
    }
}
