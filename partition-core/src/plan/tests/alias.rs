//! Requester ids and groups.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::sample::select;

use super::super::alias::{AliasError, Requesters};
use super::*;

fn conventional(bus: u8, device: u8) -> Facts {
    Facts {
        port: None,
        ..endpoint(bus, device, 0)
    }
}

fn place(facts: &[Facts], wanted: PciFunction) -> usize {
    facts.iter().position(|f| f.function == wanted).unwrap()
}

fn ids(facts: &[Facts], wanted: PciFunction) -> Vec<u16> {
    let isolation = solve(facts)[place(facts, wanted)];
    let ids = isolation.requesters.as_slice().iter();
    ids.map(|id| id.0).collect()
}

fn together(facts: &[Facts], a: PciFunction, b: PciFunction) -> bool {
    let results = solve(facts);
    results[place(facts, a)].group == results[place(facts, b)].group
}

#[test]
fn functions_behind_a_pcie_to_pci_bridge_share_function_zero_of_its_secondary_bus() {
    let facts = [
        root_port(3, 2, 3),
        bridge(2, 0, Some(PortType::PcieToPciBridge), 3, 3),
        conventional(3, 4),
        conventional(3, 5),
    ];
    assert_eq!(ids(&facts, function(3, 4, 0)), [0x0320, 0x0300, 0x0200]);
    assert_eq!(ids(&facts, function(3, 5, 0)), [0x0328, 0x0300, 0x0200]);
    assert!(together(&facts, function(3, 4, 0), function(3, 5, 0)));
    assert!(!together(&facts, function(3, 4, 0), function(0, 3, 0)));
    assert_eq!(
        solve(&facts)[2].below,
        Some(function(0, 3, 0)),
        "below the root port"
    );
}

#[test]
fn functions_behind_a_conventional_bridge_share_its_id() {
    let facts = [
        bridge(0, 6, None, 4, 4),
        conventional(4, 7),
        conventional(4, 8),
        conventional(0, 9),
    ];
    assert_eq!(ids(&facts, function(4, 7, 0)), [0x0438, 0x0030]);
    assert!(together(&facts, function(4, 7, 0), function(4, 8, 0)));
    assert!(!together(&facts, function(4, 7, 0), function(0, 9, 0)));
}

#[test]
fn a_reverse_bridge_gives_its_own_id() {
    let facts = [
        root_port(3, 1, 3),
        bridge(1, 0, Some(PortType::PcieToPciBridge), 2, 3),
        bridge(2, 1, Some(PortType::PciToPcieBridge), 3, 3),
        endpoint(3, 0, 0),
    ];
    assert_eq!(
        ids(&facts, function(3, 0, 0)),
        [0x0300, 0x0208, 0x0200, 0x0100]
    );
}

#[test]
fn a_root_port_with_access_control_keeps_its_device_apart() {
    let mut facts = [
        root_port(3, 1, 1),
        endpoint(1, 0, 0),
        root_port(4, 2, 2),
        endpoint(2, 0, 0),
    ];
    assert!(!together(&facts, function(1, 0, 0), function(0, 3, 0)));
    assert!(!together(&facts, function(1, 0, 0), function(2, 0, 0)));
    for missing in [
        Acs::SOURCE_VALIDATION,
        Acs::REQUEST_REDIRECT,
        Acs::COMPLETION_REDIRECT,
        Acs::UPSTREAM_FORWARDING,
    ] {
        facts[0].acs = Acs::all().difference(missing);
        assert!(together(&facts, function(1, 0, 0), function(0, 3, 0)));
        assert!(!together(&facts, function(1, 0, 0), function(2, 0, 0)));
    }
}

#[test]
fn root_ports_of_one_device_without_access_control_mix_what_is_below_all_of_them() {
    let second = Facts {
        function: function(0, 3, 1),
        acs: Acs::empty(),
        ..root_port(3, 2, 2)
    };
    let facts = [
        root_port(3, 1, 1),
        endpoint(1, 0, 0),
        second,
        endpoint(2, 0, 0),
    ];
    assert!(together(&facts, function(1, 0, 0), function(2, 0, 0)));
}

#[test]
fn a_switch_with_one_port_without_access_control_is_one_group() {
    let down = |device, bus, acs| Facts {
        acs,
        ..bridge(2, device, Some(PortType::DownstreamPort), bus, bus)
    };
    let switch = |acs| {
        [
            root_port(3, 1, 5),
            bridge(1, 0, Some(PortType::UpstreamPort), 2, 5),
            down(0, 3, Acs::PORT),
            down(1, 4, acs),
            down(2, 5, Acs::PORT),
            endpoint(3, 0, 0),
            endpoint(4, 0, 0),
            endpoint(5, 0, 0),
        ]
    };
    let (a, b, c) = (function(3, 0, 0), function(4, 0, 0), function(5, 0, 0));
    let facts = switch(Acs::FUNCTION);
    assert!(together(&facts, a, b) && together(&facts, a, c));
    let facts = switch(Acs::PORT);
    assert!(!together(&facts, a, b) && !together(&facts, a, c) && !together(&facts, b, c));
}

#[test]
fn functions_of_a_device_are_one_group_unless_all_of_them_have_access_control() {
    let of = |number, acs| Facts {
        acs,
        ..endpoint(1, 0, number)
    };
    let device = |last| {
        [
            root_port(3, 1, 1),
            of(0, Acs::FUNCTION),
            of(1, Acs::FUNCTION),
            of(2, last),
        ]
    };
    let (a, b, c) = (function(1, 0, 0), function(1, 0, 1), function(1, 0, 2));
    let facts = device(Acs::REQUEST_REDIRECT);
    assert!(together(&facts, a, b) && together(&facts, a, c));
    let facts = device(Acs::FUNCTION);
    assert!(!together(&facts, a, b) && !together(&facts, a, c));
}

#[test]
fn functions_with_alternative_routing_ids_are_of_one_device() {
    let facts = [
        root_port(3, 1, 1),
        endpoint(1, 0, 0),
        endpoint(1, 5, 3),
        conventional(0, 5),
        conventional(0, 6),
    ];
    assert!(together(&facts, function(1, 0, 0), function(1, 5, 3)));
    assert!(!together(&facts, function(0, 5, 0), function(0, 6, 0)));
}

#[test]
fn phantom_functions_differ_in_the_highest_bits() {
    let with = |number, bits| {
        let facts = [
            root_port(3, 1, 1),
            Facts {
                phantom_functions: bits,
                ..endpoint(1, 0, number)
            },
        ];
        ids(&facts, function(1, 0, number))
    };
    assert_eq!(with(0, 0), [0x100]);
    assert_eq!(with(2, 1), [0x102, 0x106]);
    assert_eq!(with(1, 2), [0x101, 0x103, 0x105, 0x107]);
    // A number that no such device should have still stands for both.
    assert_eq!(with(6, 1), [0x106, 0x102]);
    assert_eq!(
        with(0, 3),
        [0x100, 0x101, 0x102, 0x103, 0x104, 0x105, 0x106, 0x107]
    );
}

#[test]
fn a_known_further_id_joins_whoever_has_it() {
    let mut facts = [
        root_port(3, 1, 1),
        endpoint(1, 0, 0),
        root_port(4, 2, 2),
        endpoint(2, 0, 0),
    ];
    facts[1].quirk = Some(RequesterId(0x0200));
    assert_eq!(ids(&facts, function(1, 0, 0)), [0x100, 0x200]);
    assert!(together(&facts, function(1, 0, 0), function(2, 0, 0)));
    // The same id in another segment is another id.
    facts[3].function.segment = 1;
    assert!(!together(&facts, function(1, 0, 0), facts[3].function));
}

#[test]
fn a_function_that_no_bridge_leads_to_is_on_a_root_bus() {
    let facts = [root_port(3, 0, 0), endpoint(5, 0, 0), root_port(4, 1, 1)];
    assert!(
        solve(&facts)
            .iter()
            .all(|isolation| isolation.below.is_none())
    );
}

#[test]
fn contradictions_are_refused() {
    let error = |facts: &[Facts]| {
        let mut results = vec![Isolation::alone(function(0, 0, 0), 0); facts.len()];
        groups(facts, &mut results).unwrap_err()
    };
    let (port, other) = (root_port(3, 1, 1), root_port(4, 1, 1));
    assert_eq!(
        error(&[port, port]),
        AliasError::FunctionTwice(port.function)
    );
    assert_eq!(
        error(&[port, other]),
        AliasError::BusTwice {
            bridge: other.function,
            other: port.function
        }
    );
    // Bridges in a circle, a bridge to its own bus, and one whose buses end before they begin.
    let up = bridge(2, 0, None, 1, 1);
    assert_eq!(error(&[up]), AliasError::BusNumbers(up.function));
    let own = bridge(1, 0, None, 1, 1);
    assert_eq!(error(&[own]), AliasError::BusNumbers(own.function));
    let backwards = root_port(3, 5, 4);
    assert_eq!(
        error(&[backwards]),
        AliasError::BusNumbers(backwards.function)
    );
    let port = bridge(0, 3, Some(PortType::DownstreamPort), 1, 1);
    assert_eq!(error(&[port]), AliasError::PortWithoutSwitch(port.function));
    let chain: Vec<_> = (0..17)
        .map(|bus| bridge(bus, 1, None, bus + 1, 17))
        .collect();
    assert!(matches!(error(&chain), AliasError::TooManyIds(_)));
    let mut results = [Isolation::alone(function(0, 0, 0), 0)];
    assert_eq!(
        groups(&[], &mut results),
        Err(AliasError::Lengths {
            facts: 0,
            results: 1
        })
    );
}

#[test]
fn a_list_of_ids_ends() {
    let mut ids = Requesters::only(RequesterId(0));
    for id in 1..Requesters::CAPACITY as u16 {
        ids = ids.with(RequesterId(id)).unwrap();
    }
    assert_eq!(ids.with(RequesterId(5)), Some(ids));
    assert_eq!(ids.with(RequesterId(99)), None);
}

#[test]
fn port_types_have_the_numbers_of_the_specification() {
    for (bits, port) in [
        (0, PortType::Endpoint),
        (1, PortType::LegacyEndpoint),
        (4, PortType::RootPort),
        (5, PortType::UpstreamPort),
        (6, PortType::DownstreamPort),
        (7, PortType::PcieToPciBridge),
        (8, PortType::PciToPcieBridge),
        (9, PortType::IntegratedEndpoint),
        (10, PortType::EventCollector),
    ] {
        assert_eq!(PortType::from_bits(bits), Some(port));
    }
    for bits in [2, 3, 11, 15, 16, 255] {
        assert_eq!(PortType::from_bits(bits), None);
    }
}

/// What may be on a bus, by what leads to it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bus {
    Root,
    Link,
    Switch,
    Conventional,
}

/// A random tree of up to 7 buses, grown from choices; each is a bus, a device and a kind.
fn grow(choices: &[(u8, u8, u8, bool)]) -> Vec<Facts> {
    let mut buses = vec![Bus::Root];
    let mut facts: Vec<Facts> = vec![];
    for &(at, device, kind, acs) in choices {
        let bus = at % buses.len() as u8;
        let next = buses.len() as u8;
        let acs = if acs {
            Acs::PORT
        } else {
            Acs::REQUEST_REDIRECT
        };
        let (port, below) = match (buses[usize::from(bus)], kind % 4) {
            (Bus::Root, 0 | 1) => (Some(PortType::RootPort), Some(Bus::Link)),
            (Bus::Root | Bus::Conventional, 2) => (None, Some(Bus::Conventional)),
            (Bus::Conventional, 1) => (Some(PortType::PciToPcieBridge), Some(Bus::Link)),
            (Bus::Link, 0) => (Some(PortType::UpstreamPort), Some(Bus::Switch)),
            (Bus::Link, 1) => (Some(PortType::PcieToPciBridge), Some(Bus::Conventional)),
            (Bus::Switch, 0..=2) => (Some(PortType::DownstreamPort), Some(Bus::Link)),
            (Bus::Conventional, _) => (None, None),
            _ => (Some(PortType::Endpoint), None),
        };
        let number = function(bus, device % 3, kind / 4 % 3);
        if facts.iter().any(|f| f.function == number) || (below.is_some() && next > 7) {
            continue;
        }
        let kind = match below {
            Some(below) => {
                buses.push(below);
                FunctionKind::Bridge(Buses {
                    secondary: next,
                    subordinate: 255,
                })
            }
            None => FunctionKind::Endpoint,
        };
        facts.push(Facts {
            function: number,
            kind,
            port,
            acs,
            phantom_functions: 0,
            quirk: None,
        });
    }
    facts
}

/// The groups once more: who can reach whom, followed as a request would go, and all that is
/// reached either way is one group.
struct Model<'a> {
    facts: &'a [Facts],
}

impl Model<'_> {
    fn bus(&self, at: usize) -> u8 {
        self.facts[at].function.requester.bus()
    }

    fn leads_to(&self, bus: u8) -> Option<usize> {
        (0..self.facts.len()).find(|&at| match self.facts[at].kind {
            FunctionKind::Bridge(buses) => buses.secondary == bus,
            FunctionKind::Endpoint => false,
        })
    }

    fn everything_below(&self, bridge: usize) -> BTreeSet<usize> {
        let FunctionKind::Bridge(buses) = self.facts[bridge].kind else {
            return BTreeSet::new();
        };
        let mut all = BTreeSet::new();
        for at in (0..self.facts.len()).filter(|&at| self.bus(at) == buses.secondary) {
            all.insert(at);
            all.extend(self.everything_below(at));
        }
        all
    }

    fn is_bridge(&self, at: usize) -> bool {
        matches!(self.facts[at].kind, FunctionKind::Bridge(_))
    }

    fn device(&self, at: usize) -> Vec<usize> {
        let link = self.leads_to(self.bus(at)).is_some_and(|parent| {
            use PortType::{DownstreamPort, PciToPcieBridge, RootPort};
            let port = self.facts[parent].port;
            [RootPort, DownstreamPort, PciToPcieBridge]
                .contains(&port.unwrap_or(PortType::Endpoint))
        });
        let number = |at: usize| self.facts[at].function.requester.device();
        (0..self.facts.len())
            .filter(|&other| self.bus(other) == self.bus(at))
            .filter(|&other| link || number(other) == number(at))
            .collect()
    }

    /// In this test, a function has either all that could be asked for or too little of it, but
    /// what is asked for of a port is more.
    fn controls(&self, at: usize) -> bool {
        self.facts[at].acs == Acs::PORT
    }

    fn turns_around(&self, from: usize) -> BTreeSet<usize> {
        let mut reached = BTreeSet::new();
        let device = self.device(from);
        if device.len() > 1 && !device.iter().all(|&at| self.controls(at)) {
            reached.extend(device);
        }
        // A port also speaks for what may be plugged in below it.
        let mut way: Vec<usize> = [from]
            .into_iter()
            .filter(|&at| self.is_bridge(at))
            .collect();
        while let Some(bridge) = self.leads_to(self.bus(*way.last().unwrap_or(&from))) {
            way.push(bridge);
        }
        for bridge in way {
            let mixed = match self.facts[bridge].port {
                Some(PortType::UpstreamPort) => None,
                Some(PortType::DownstreamPort) => {
                    (!self.controls(bridge)).then(|| self.leads_to(self.bus(bridge)).unwrap())
                }
                Some(PortType::RootPort) => {
                    let open = self.device(bridge).iter().any(|&at| !self.controls(at));
                    open.then_some(bridge)
                }
                _ => Some(bridge),
            };
            if let Some(top) = mixed {
                reached.insert(top);
                reached.extend(self.everything_below(top));
            }
        }
        reached
    }

    /// Ids, from the root down.
    fn ids(&self, bus: u8, taken: &BTreeSet<u16>, out: &mut BTreeMap<usize, BTreeSet<u16>>) {
        for at in (0..self.facts.len()).filter(|&at| self.bus(at) == bus) {
            let own = self.facts[at].function.requester.0;
            let mut ids = taken.clone();
            ids.insert(own);
            out.insert(at, ids);
            if let FunctionKind::Bridge(buses) = self.facts[at].kind {
                let mut taken = taken.clone();
                match self.facts[at].port {
                    Some(
                        PortType::RootPort | PortType::UpstreamPort | PortType::DownstreamPort,
                    ) => {}
                    Some(PortType::PcieToPciBridge) => {
                        taken.extend([own, u16::from(buses.secondary) << 8]);
                    }
                    _ => {
                        taken.insert(own);
                    }
                }
                self.ids(buses.secondary, &taken, out);
            }
        }
    }

    fn groups(&self) -> Vec<usize> {
        let mut ids = BTreeMap::new();
        self.ids(0, &BTreeSet::new(), &mut ids);
        let count = self.facts.len();
        let mut edges = vec![BTreeSet::new(); count];
        for a in 0..count {
            let mut near = self.turns_around(a);
            near.extend((0..count).filter(|b| !ids[&a].is_disjoint(&ids[b])));
            for b in near {
                edges[a].insert(b);
                edges[b].insert(a);
            }
        }
        let mut group = vec![usize::MAX; count];
        for start in 0..count {
            let mut open = vec![start];
            while let Some(at) = open.pop() {
                if group[at] == usize::MAX {
                    group[at] = start;
                    open.extend(&edges[at]);
                }
            }
        }
        group
    }
}

proptest! {
    #[test]
    fn groups_are_who_can_reach_whom(
        choices in prop::collection::vec(
            (any::<u8>(), 0_u8..3, select((0..12).collect::<Vec<u8>>()), prop::bool::weighted(0.8)),
            1..40,
        ),
    ) {
        let facts = grow(&choices);
        let found: Vec<_> = solve(&facts)
            .iter()
            .map(|isolation| usize::from(isolation.group))
            .collect();
        let model = Model { facts: &facts };
        prop_assert_eq!(&found, &model.groups());
        let mut ids = BTreeMap::new();
        model.ids(0, &BTreeSet::new(), &mut ids);
        for (at, isolation) in solve(&facts).iter().enumerate() {
            let listed = isolation.requesters.as_slice().iter().map(|id| id.0);
            prop_assert_eq!(&listed.collect::<BTreeSet<_>>(), &ids[&at]);
        }
    }

    #[test]
    fn no_topology_makes_it_panic(
        nodes in prop::collection::vec(
            (any::<u16>(), any::<Option<(u8, u8)>>(), any::<u8>(), any::<u16>(), any::<u8>()),
            0..24,
        ),
    ) {
        let facts: Vec<_> = nodes
            .into_iter()
            .map(|(id, buses, port, acs, phantom_functions)| Facts {
                function: PciFunction { segment: id & 1, requester: RequesterId(id & 0x1fff) },
                kind: buses.map_or(FunctionKind::Endpoint, |(secondary, subordinate)| {
                    FunctionKind::Bridge(Buses {
                        secondary: secondary & 0x1f,
                        subordinate: subordinate | 0x1f,
                    })
                }),
                port: PortType::from_bits(port & 15),
                acs: Acs::from_bits_retain(acs),
                phantom_functions,
                quirk: None,
            })
            .collect();
        let mut results = vec![Isolation::alone(function(0, 0, 0), 0); facts.len()];
        let _ = groups(&facts, &mut results);
    }
}
