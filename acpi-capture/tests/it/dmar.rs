//! The DMAR table and the question which unit covers a device.

use std::collections::HashMap;

use acpi_capture::table::*;
use handoff_abi::{DeviceScope, PathHop, PciFunction, PhysAddr, RequesterId, ScopeKind};
use proptest::prelude::*;

use crate::build::{self, BRIDGE, ENDPOINT, HPET, IO_APIC, dmar, drhd, range, rmrr, scope};

/// Bridges by segment group, bus, device and function, with their secondary and subordinate bus.
#[derive(Clone, Debug, Default)]
pub(crate) struct Topology(pub(crate) HashMap<PciFunction, (u8, u8)>);

impl Topology {
    pub(crate) fn with(bridges: &[(PciFunction, u8, u8)]) -> Self {
        Self(bridges.iter().map(|&(f, a, b)| (f, (a, b))).collect())
    }
}

impl PciTopology for Topology {
    fn bridge_buses(&self, function: PciFunction) -> Option<BridgeBuses> {
        let &(secondary, subordinate) = self.0.get(&function)?;
        Some(BridgeBuses {
            secondary,
            subordinate,
        })
    }
}

pub(crate) fn function(bus: u8, device: u8, function: u8) -> PciFunction {
    PciFunction {
        segment: 0,
        requester: RequesterId::new(bus, device, function).unwrap(),
    }
}

fn covered(dmar: &[u8], of: PciFunction, topology: &Topology) -> Result<(u64, Via), Uncovered> {
    match Dmar::parse(dmar).unwrap().unit_for(of, topology) {
        UnitMatch::Covered(covered) => {
            // The index is the place among the units.
            let unit = Dmar::parse(dmar)
                .unwrap()
                .units()
                .nth(covered.index)
                .unwrap();
            assert_eq!(unit, covered.unit);
            Ok((unit.registers.base().0, covered.via))
        }
        UnitMatch::Uncovered(why) => Err(why),
    }
}

#[test]
fn structures_of_every_type_are_read() {
    let scopes = [scope(ENDPOINT, 0, 0, &[(2, 0)])];
    let table = dmar(
        39,
        0b101,
        &[
            drhd(true, 0, 0xfed9_0000, &[scope(IO_APIC, 8, 0xf0, &[(31, 0)])]),
            rmrr(0, 0x7d00_0000, 0x7f7f_ffff, &scopes),
            build::structure(2, &[1, 0, 3, 0], &[]),
            build::structure(
                3,
                &build::Bytes::new().u32(0).u64(0xfed9_0000).u32(5).0,
                &[],
            ),
            build::structure(4, b"\0\0\0\x07\\_SB.I2C0\0junk", &[]),
            build::structure(5, &[1, 0, 0, 0], &scopes),
            build::structure(6, &[0, 0, 0, 0], &[vec![1, 8, 0x55, 0, 0, 0, 2, 0]]),
            build::structure(0xff, &[1, 2, 3], &[]),
        ],
    );
    let dmar = Dmar::parse(&table).unwrap();
    assert_eq!(dmar.host_address_width(), 39);
    assert!(dmar.flags().contains(DmarFlags::INTR_REMAP));
    let structures: Vec<_> = dmar.structures().map(Result::unwrap).collect();
    let [
        DmarStructure::Unit(unit),
        DmarStructure::ReservedMemory(region),
        DmarStructure::RootPortAts(ats),
        DmarStructure::StaticAffinity(affinity),
        DmarStructure::NamespaceDevice(device),
        DmarStructure::TranslationCache(cache),
        DmarStructure::DeviceProperties(properties),
        DmarStructure::Unknown(unknown),
    ] = structures[..]
    else {
        panic!("{structures:?}")
    };
    assert!(unit.description.include_all && unit.is_usable());
    assert_eq!(unit.description.registers, range(0xfed9_0000, 0xfed9_1000));
    let hop = PathHop {
        device: 31,
        function: 0,
    };
    assert_eq!(
        unit.scopes().collect::<Vec<_>>(),
        [Ok(
            DeviceScope::new(ScopeKind::IoApic, 8, 0xf0, &[hop]).unwrap()
        )]
    );
    assert_eq!(
        region.region().unwrap().range,
        range(0x7d00_0000, 0x7f80_0000)
    );
    assert!(ats.all_ports && ats.segment == 3);
    assert_eq!((affinity.registers.0, affinity.domain), (0xfed9_0000, 5));
    assert_eq!((device.number, device.name), (7, &b"\\_SB.I2C0"[..]));
    assert!(cache.atc_required && cache.scopes().count() == 1);
    assert!(properties.scopes().all(|scope| scope.is_ok()));
    assert_eq!((unknown.kind, unknown.bytes.len()), (0xff, 7));
}

#[test]
fn the_size_field_of_a_unit_is_an_exponent_of_pages() {
    for (size, pages) in [(0, 1), (1, 2), (4, 16), (0xf, 0x8000), (0xf1, 2)] {
        let fixed = build::Bytes::new().u8(0).u8(size).u16(0).u64(0x1_0000_0000);
        let table = dmar(39, 0, &[build::structure(0, &fixed.0, &[])]);
        let unit = Dmar::parse(&table).unwrap().units().next().unwrap();
        assert_eq!(unit.registers.length(), pages * 4096, "{size:#x}");
    }
}

#[test]
fn a_scope_wins_over_include_all_in_either_order() {
    let graphics = drhd(false, 0, 0xfed9_0000, &[scope(ENDPOINT, 0, 0, &[(2, 0)])]);
    let rest = drhd(true, 0, 0xfed9_1000, &[scope(IO_APIC, 2, 0xf0, &[(31, 0)])]);
    let none = Topology::default();
    for structures in [
        [graphics.clone(), rest.clone()],
        [rest.clone(), graphics.clone()],
    ] {
        let table = dmar(39, 1, &structures);
        assert_eq!(
            covered(&table, function(0, 2, 0), &none),
            Ok((0xfed9_0000, Via::Scope))
        );
        for other in [function(0, 2, 1), function(3, 2, 0), function(0xf0, 31, 0)] {
            assert_eq!(
                covered(&table, other, &none),
                Ok((0xfed9_1000, Via::IncludeAll))
            );
        }
        let elsewhere = PciFunction {
            segment: 1,
            ..function(0, 2, 0)
        };
        assert_eq!(covered(&table, elsewhere, &none), Err(Uncovered::NoUnit));
    }
}

#[test]
fn a_scope_of_a_bridge_covers_all_buses_below_and_nothing_beside() {
    let table = dmar(
        39,
        1,
        &[drhd(
            false,
            0,
            0xfed9_0000,
            &[scope(BRIDGE, 0, 0, &[(3, 0)])],
        )],
    );
    let topology = Topology::with(&[(function(0, 3, 0), 5, 7)]);
    let bridge = function(0, 3, 0);
    assert_eq!(
        covered(&table, bridge, &topology),
        Ok((0xfed9_0000, Via::Scope))
    );
    for bus in 0..=255 {
        let expected = match bus {
            5..=7 => Ok((0xfed9_0000, Via::Bridge(bridge))),
            _ => Err(Uncovered::NoUnit),
        };
        assert_eq!(covered(&table, function(bus, 1, 2), &topology), expected);
    }
    // An endpoint scope does not reach below.
    let table = dmar(
        39,
        1,
        &[drhd(
            false,
            0,
            0xfed9_0000,
            &[scope(ENDPOINT, 0, 0, &[(3, 0)])],
        )],
    );
    assert_eq!(
        covered(&table, function(5, 0, 0), &topology),
        Err(Uncovered::NoUnit)
    );
    // A bridge that nobody set up has nothing below it, least of all bus 0.
    let table = dmar(
        39,
        1,
        &[drhd(
            false,
            0,
            0xfed9_0000,
            &[scope(BRIDGE, 0, 0, &[(3, 0)])],
        )],
    );
    let topology = Topology::with(&[(function(0, 3, 0), 0, 0)]);
    assert_eq!(
        covered(&table, function(0, 4, 0), &topology),
        Err(Uncovered::NoUnit)
    );
}

#[test]
fn the_nearest_scoped_bridge_wins() {
    let outer = drhd(false, 0, 0x1000_0000, &[scope(BRIDGE, 0, 0, &[(1, 0)])]);
    let inner = drhd(
        false,
        0,
        0x2000_0000,
        &[scope(BRIDGE, 0, 0, &[(1, 0), (0, 0)])],
    );
    let topology = Topology::with(&[(function(0, 1, 0), 1, 9), (function(1, 0, 0), 2, 4)]);
    for structures in [[outer.clone(), inner.clone()], [inner, outer]] {
        let table = dmar(39, 1, &structures);
        let unit = |bus| covered(&table, function(bus, 5, 0), &topology).unwrap().0;
        assert_eq!(
            (unit(1), unit(3), unit(9)),
            (0x1000_0000, 0x2000_0000, 0x1000_0000)
        );
    }
}

#[test]
fn paths_of_many_hops_follow_the_bridges() {
    let path = [(1, 0), (2, 0), (3, 0)];
    let table = dmar(
        39,
        1,
        &[drhd(false, 0, 0xfed9_0000, &[scope(ENDPOINT, 0, 0, &path)])],
    );
    let topology = Topology::with(&[
        (function(0, 1, 0), 0x10, 0x2f),
        (function(0x10, 2, 0), 0x20, 0x2f),
    ]);
    assert_eq!(
        covered(&table, function(0x20, 3, 0), &topology),
        Ok((0xfed9_0000, Via::Scope))
    );
    // The same path when the bridges have other numbers names another function.
    let renumbered = Topology::with(&[(function(0, 1, 0), 1, 2), (function(1, 2, 0), 2, 2)]);
    assert_eq!(
        covered(&table, function(0x20, 3, 0), &renumbered),
        Err(Uncovered::NoUnit)
    );
    assert_eq!(
        covered(&table, function(2, 3, 0), &renumbered),
        Ok((0xfed9_0000, Via::Scope))
    );
    // Bridges that lead back or to themselves end the path.
    for (secondary, back) in [(0, 0), (5, 0), (5, 5)] {
        let looping = Topology::with(&[
            (function(0, 1, 0), secondary, 9),
            (function(secondary, 2, 0), back, 9),
        ]);
        for bus in 0..=9 {
            assert_eq!(
                covered(&table, function(bus, 3, 0), &looping),
                Err(Uncovered::NoUnit)
            );
        }
    }
}

#[test]
fn two_units_that_name_one_function_cover_it_neither() {
    let named = [scope(ENDPOINT, 0, 0, &[(2, 0)])];
    let table = dmar(
        39,
        1,
        &[
            drhd(true, 0, 0x1000_0000, &[]),
            drhd(false, 0, 0x2000_0000, &named),
            drhd(false, 0, 0x3000_0000, &named),
        ],
    );
    let none = Topology::default();
    assert_eq!(
        covered(&table, function(0, 2, 0), &none),
        Err(Uncovered::Conflict {
            first: 1,
            second: 2
        })
    );
    assert!(covered(&table, function(0, 3, 0), &none).is_ok());
}

#[test]
fn a_unit_that_is_listed_twice_is_one_unit_with_the_scopes_of_both() {
    let table = dmar(
        46,
        1,
        &[
            drhd(false, 0, 0x1000_0000, &[scope(ENDPOINT, 0, 0, &[(2, 0)])]),
            drhd(true, 0, 0x2000_0000, &[]),
            drhd(false, 0, 0x1000_0000, &[scope(ENDPOINT, 0, 0, &[(2, 0)])]),
            drhd(true, 0, 0x2000_0000, &[]),
            drhd(false, 0, 0x1000_0000, &[scope(ENDPOINT, 0, 0, &[(4, 0)])]),
            drhd(true, 0, 0x3000_0000, &[]),
            drhd(true, 1, 0x4000_0000, &[]),
        ],
    );
    let units: Vec<_> = Dmar::parse(&table)
        .unwrap()
        .units()
        .map(|unit| unit.registers.base().0)
        .collect();
    assert_eq!(units, [0x1000_0000, 0x2000_0000, 0x3000_0000, 0x4000_0000]);
    let none = Topology::default();
    for device in [2, 4] {
        assert_eq!(
            covered(&table, function(0, device, 0), &none),
            Ok((0x1000_0000, Via::Scope))
        );
    }
    // Two units that are to cover the rest cover it neither; those of another segment group, and
    // one that says so twice, do.
    let both = Uncovered::Conflict {
        first: 1,
        second: 2,
    };
    assert_eq!(covered(&table, function(0, 9, 0), &none), Err(both));
    let elsewhere = PciFunction {
        segment: 1,
        ..function(0, 9, 0)
    };
    let found = covered(&table, elsewhere, &none);
    assert_eq!(found, Ok((0x4000_0000, Via::IncludeAll)));
    let mut findings = Vec::new();
    Dmar::parse(&table)
        .unwrap()
        .findings(|finding| findings.push(finding));
    let duplicates = findings
        .iter()
        .filter(|finding| matches!(finding, DmarFinding::DuplicateUnit { .. }))
        .count();
    let second = findings
        .iter()
        .filter(|finding| matches!(finding, DmarFinding::SecondIncludeAll { .. }))
        .count();
    assert_eq!((duplicates, second, findings.len()), (3, 1, 4));
}

#[test]
fn the_devices_of_a_unit_without_registers_are_uncovered() {
    for base in [0, u64::MAX, 0xfed9_0010, u64::MAX - 0xfff] {
        let table = dmar(
            39,
            1,
            &[
                drhd(false, 0, base, &[scope(ENDPOINT, 0, 0, &[(2, 0)])]),
                drhd(true, 0, 0xfed9_1000, &[]),
            ],
        );
        let none = Topology::default();
        assert_eq!(
            covered(&table, function(0, 2, 0), &none),
            Err(Uncovered::DeadUnit { index: 0 }),
            "{base:#x}"
        );
        assert!(covered(&table, function(0, 3, 0), &none).is_ok());
    }
}

#[test]
fn what_cannot_be_read_casts_doubt_on_include_all_but_not_on_scopes() {
    let none = Topology::default();
    let named = scope(ENDPOINT, 0, 0, &[(2, 0)]);
    let rest = drhd(true, 0, 0x2000_0000, &[]);
    let broken_scopes: [&[u8]; 6] = [
        &[1, 0, 0, 0, 0, 0],
        &[1, 5, 0, 0, 0, 0],
        &[1, 6, 0, 0, 0, 0],
        &[1, 7, 0, 0, 0, 0, 2],
        &[1, 10, 0, 0, 0, 0, 2, 0],
        &[1, 8, 0, 0, 0, 0, 2, 8],
    ];
    for broken in broken_scopes {
        let unit = drhd(false, 0, 0x1000_0000, &[named.clone(), broken.to_vec()]);
        let table = dmar(39, 1, &[unit, rest.clone()]);
        assert_eq!(
            covered(&table, function(0, 2, 0), &none),
            Ok((0x1000_0000, Via::Scope)),
            "{broken:?}"
        );
        assert_eq!(
            covered(&table, function(0, 3, 0), &none),
            Err(Uncovered::Unreadable { offset: 48 }),
            "{broken:?}"
        );
        let mut findings = 0;
        Dmar::parse(&table).unwrap().findings(|_| findings += 1);
        assert_eq!(findings, 1);
    }
    // A short unit definition, and structures whose length makes no sense.
    for broken in [
        vec![0, 0, 15, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        vec![0, 0, 0, 0],
        vec![9, 0, 3, 0],
        vec![9, 0, 5, 0],
        vec![1],
    ] {
        let table = dmar(39, 1, &[rest.clone(), broken.clone()]);
        assert_eq!(
            covered(&table, function(0, 3, 0), &none),
            Err(Uncovered::Unreadable { offset: 64 }),
            "{broken:?}"
        );
    }
    // A structure of another kind that is too short says nothing of units.
    let table = dmar(39, 1, &[vec![1, 0, 8, 0, 0, 0, 0, 0], rest]);
    assert!(covered(&table, function(0, 3, 0), &none).is_ok());
}

#[test]
fn units_past_the_limit_do_not_count_and_leave_the_rest_uncovered() {
    let many = |count: u64| {
        let unit = |n: u64| drhd(n == 0, 0, 0x1000 * (n + 1), &[]);
        dmar(39, 1, &(0..count).map(unit).collect::<Vec<_>>())
    };
    let none = Topology::default();
    assert!(covered(&many(128), function(0, 3, 0), &none).is_ok());
    let table = many(129);
    let offset = 48 + 128 * 16;
    assert_eq!(
        covered(&table, function(0, 3, 0), &none),
        Err(Uncovered::Unreadable { offset })
    );
    assert_eq!(Dmar::parse(&table).unwrap().units().count(), 128);
    let mut findings = Vec::new();
    Dmar::parse(&table).unwrap().findings(|f| findings.push(f));
    assert_eq!(findings, [DmarFinding::TooManyUnits { offset }]);
    // A table of the greatest length does not take for ever.
    let huge = many(0xffff);
    assert!(covered(&huge, function(0, 3, 0), &none).is_err());
}

#[test]
fn a_path_of_more_hops_than_are_followed_is_an_error_and_the_next_scope_is_read() {
    let longest = [(1, 0); DeviceScope::MAX_HOPS];
    let too_long = [(1, 0); DeviceScope::MAX_HOPS + 1];
    let scopes = [
        scope(ENDPOINT, 0, 0, &longest),
        scope(ENDPOINT, 0, 0, &too_long),
        scope(9, 0, 0, &[(1, 0)]),
        scope(HPET, 3, 0, &[(15, 0)]),
    ];
    let table = dmar(39, 1, &[drhd(false, 0, 0x1000_0000, &scopes)]);
    let dmar = Dmar::parse(&table).unwrap();
    let Some(Ok(DmarStructure::Unit(unit))) = dmar.structures().next() else {
        panic!()
    };
    let read: Vec<_> = unit.scopes().collect();
    assert_eq!(read[0].unwrap().path().len(), DeviceScope::MAX_HOPS);
    assert_eq!(read[1], Err(ScopeError::Path { length: 18 }));
    assert_eq!(read[2], Err(ScopeError::Kind { kind: 9 }));
    assert_eq!(read[3].unwrap().enumeration_id, 3);
}

#[test]
fn interrupt_sources_come_with_the_id_their_path_leads_to() {
    let table = dmar(
        39,
        1,
        &[
            drhd(
                false,
                0,
                0x1000_0000,
                &[
                    scope(IO_APIC, 8, 0xf0, &[(31, 0)]),
                    scope(ENDPOINT, 0, 0, &[(2, 0)]),
                ],
            ),
            drhd(
                true,
                0,
                0x2000_0000,
                &[
                    scope(HPET, 0, 0, &[(1, 0), (15, 0)]),
                    scope(IO_APIC, 9, 0, &[(4, 0), (15, 1)]),
                ],
            ),
        ],
    );
    let topology = Topology::with(&[(function(0, 1, 0), 7, 7)]);
    let sources: Vec<_> = Dmar::parse(&table)
        .unwrap()
        .interrupt_sources(&topology)
        .map(|source| (source.kind, source.index, source.function))
        .collect();
    assert_eq!(
        sources,
        [
            (
                InterruptSourceKind::IoApic(8),
                0,
                Some(function(0xf0, 31, 0))
            ),
            (InterruptSourceKind::Hpet(0), 1, Some(function(7, 15, 0))),
            (InterruptSourceKind::IoApic(9), 1, None),
        ]
    );
}

#[test]
fn reserved_regions_are_grown_to_pages_and_belong_to_their_devices() {
    let graphics = [scope(ENDPOINT, 0, 0, &[(2, 0)])];
    let below = [scope(BRIDGE, 0, 0, &[(3, 0)])];
    let table = dmar(
        39,
        1,
        &[
            rmrr(0, 0x7d00_0000, 0x7f7f_ffff, &graphics),
            rmrr(0, 0, 0, &graphics),
            rmrr(0, 0x1234, 0x2fff, &graphics),
            rmrr(0, 0x9000, 0x8fff, &graphics),
            rmrr(0, 0x9000, 0x8ffe, &graphics),
            rmrr(0, 0x9000, u64::MAX, &graphics),
            rmrr(1, 0xa000, 0xafff, &graphics),
            rmrr(0, 0xb000, 0xbfff, &below),
        ],
    );
    let topology = Topology::with(&[(function(0, 3, 0), 5, 6)]);
    let dmar = Dmar::parse(&table).unwrap();
    let regions: Vec<_> = dmar
        .reserved_for(function(0, 2, 0), &topology)
        .map(|region| region.map(|region| region.range))
        .collect();
    let wrong = |limit: u64| (PhysAddr(0x9000), PhysAddr(limit));
    let (base, limit) = wrong(0x8ffe);
    let reversed = RegionFault::Reversed { base, limit };
    let (base, limit) = wrong(u64::MAX);
    let wraps = RegionFault::Wraps { base, limit };
    assert_eq!(
        regions,
        [
            Ok(range(0x7d00_0000, 0x7f80_0000)),
            Ok(range(0, 0x1000)),
            Ok(range(0x1000, 0x3000)),
            Ok(range(0x9000, 0x9000)),
            Err(reversed),
            Err(wraps),
        ]
    );
    let below: Vec<_> = dmar
        .reserved_for(function(6, 0, 0), &topology)
        .map(|region| region.unwrap().range)
        .collect();
    assert_eq!(below, [range(0xb000, 0xc000)]);
}

#[test]
fn a_unit_that_names_nothing_is_listed_and_covers_nothing() {
    let table = dmar(39, 1, &[drhd(false, 0, 0xfed9_0000, &[])]);
    let units: Vec<_> = Dmar::parse(&table).unwrap().units().collect();
    assert_eq!(units.len(), 1);
    assert_eq!(units[0].registers, range(0xfed9_0000, 0xfed9_1000));
    let none = Topology::default();
    for bus in [0, 1, 255] {
        assert_eq!(
            covered(&table, function(bus, 2, 0), &none),
            Err(Uncovered::NoUnit)
        );
    }
}

#[test]
fn a_namespace_device_s_name_may_lack_its_end() {
    for (bytes, expected) in [
        (&b"\0\0\0\x07\\_SB.I2C0"[..], &b"\\_SB.I2C0"[..]),
        (b"\0\0\0\x07\0", b""),
        (b"\0\0\0\x07", b""),
    ] {
        let table = dmar(39, 1, &[build::structure(4, bytes, &[])]);
        let structure = Dmar::parse(&table).unwrap().structures().next();
        let Some(Ok(DmarStructure::NamespaceDevice(device))) = structure else {
            panic!("{structure:?}")
        };
        assert_eq!((device.number, device.name), (7, expected));
    }
}

#[test]
fn any_host_address_width_is_read_as_it_is() {
    // Whether a machine can have it is for the driver to judge.
    for width in [1, 11, 12, 52, 255] {
        let table = dmar(width, 0, &[]);
        let width = u16::from(width);
        assert_eq!(Dmar::parse(&table).unwrap().host_address_width(), width);
    }
}

/// A unit for the model: segment group 0, some endpoints on bus 0, and whether it covers the rest.
#[derive(Clone, Debug)]
struct ModelUnit {
    base: u64,
    include_all: bool,
    endpoints: Vec<u8>,
    bridges: Vec<u8>,
}

prop_compose! {
    fn model_unit()(
        base in 1_u64..5,
        include_all in prop::bool::weighted(0.3),
        endpoints in prop::collection::vec(0_u8..6, 0..4),
        bridges in prop::collection::vec(6_u8..9, 0..3),
    ) -> ModelUnit {
        ModelUnit { base: base * 0x1000, include_all, endpoints, bridges }
    }
}

proptest! {
    /// Devices 0 to 5 of bus 0 are endpoints, 6 to 8 are root ports with one bus each.
    #[test]
    fn lookup_agrees_with_a_model_whatever_the_order(
        units in prop::collection::vec(model_unit(), 0..6),
        device in 0_u8..9,
        below: bool,
    ) {
        let topology = Topology::with(
            &[6, 7, 8].map(|device| (function(0, device, 0), device + 10, device + 10)),
        );
        let asked = if below && device >= 6 {
            function(device + 10, 0, 0)
        } else {
            function(0, device, 0)
        };
        let structures: Vec<_> = units
            .iter()
            .map(|unit| {
                let endpoints = unit.endpoints.iter().map(|&d| scope(ENDPOINT, 0, 0, &[(d, 0)]));
                let bridges = unit.bridges.iter().map(|&d| scope(BRIDGE, 0, 0, &[(d, 0)]));
                drhd(unit.include_all, 0, unit.base, &endpoints.chain(bridges).collect::<Vec<_>>())
            })
            .collect();
        let table = dmar(39, 1, &structures);
        let naming: std::collections::BTreeSet<_> = units
            .iter()
            .filter(|unit| unit.endpoints.contains(&device) || unit.bridges.contains(&device))
            .map(|unit| unit.base)
            .collect();
        let rest: std::collections::BTreeSet<_> = units
            .iter()
            .filter(|unit| unit.include_all)
            .map(|unit| unit.base)
            .collect();
        let found = covered(&table, asked, &topology).map(|(base, _)| base);
        let turned: Vec<_> = structures.iter().rev().cloned().collect();
        let again = covered(&dmar(39, 1, &turned), asked, &topology).map(|(base, _)| base);
        prop_assert_eq!(found.ok(), again.ok());
        match (naming.len(), rest.len()) {
            (0, 0) => prop_assert_eq!(found, Err(Uncovered::NoUnit)),
            (0, 1) => prop_assert_eq!(found.ok(), rest.first().copied()),
            (1, _) => prop_assert_eq!(found.ok(), naming.first().copied()),
            _ => {
                let is_conflict = matches!(found, Err(Uncovered::Conflict { .. }));
                prop_assert!(is_conflict);
            }
        }
    }
}
