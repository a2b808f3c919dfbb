//! Requester ids and the groups of functions that cannot be kept apart.
//!
//! A remapping unit tells devices apart by the requester id of a request. What partitions can be
//! given is therefore not a function but a *group*: all functions that can send the same id, and
//! all that can reach each other without passing the unit.
//!
//! Ids (PCI Express to PCI/PCI-X Bridge Specification 1.0, section 2.3; PCI Express Base
//! Specification 6.0, sections 2.2.6.2 and 7.5.3.4):
//! * a function sends its own id, and with phantom functions those of the function numbers it
//!   borrows;
//! * a PCI Express to PCI bridge sends requests from below as device 0, function 0 of its
//!   secondary bus, and may send them as itself;
//! * any other bridge to or from conventional PCI sends them as itself.
//!
//! Reach (section 6.12, Access Control Services):
//! * functions behind such a bridge share a bus, or the bridge's id;
//! * functions of one device, where one of them lacks P2P Request Redirect or P2P Completion
//!   Redirect;
//! * everything below a switch, where one of its downstream ports lacks Source Validation, either
//!   redirect or Upstream Forwarding;
//! * everything below a root port that lacks them, together with the port. Whether a root complex
//!   passes requests from one root port to another is up to the implementation; as is general
//!   practice, root ports that are not functions of one device are taken to be apart.
//!
//! The services have to be enabled, too, before the fence stands. That is the steward's part
//! (`iommu::isolation`).

use core::fmt;

use handoff_abi::{PciFunction, RequesterId};

use super::machine::{Buses, FunctionKind};

bitflags::bitflags! {
    /// The bits of the ACS Capability Register (section 7.7.11.2).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Acs: u16 {
        /// ACS Source Validation.
        const SOURCE_VALIDATION = 1 << 0;
        /// ACS Translation Blocking.
        const TRANSLATION_BLOCKING = 1 << 1;
        /// ACS P2P Request Redirect.
        const REQUEST_REDIRECT = 1 << 2;
        /// ACS P2P Completion Redirect.
        const COMPLETION_REDIRECT = 1 << 3;
        /// ACS Upstream Forwarding.
        const UPSTREAM_FORWARDING = 1 << 4;
        /// ACS P2P Egress Control.
        const EGRESS_CONTROL = 1 << 5;
        /// ACS Direct Translated P2P.
        const DIRECT_TRANSLATED = 1 << 6;
        const _ = !0;
    }
}

impl Acs {
    /// What a function of a device with several has to have.
    pub const FUNCTION: Self = Self::REQUEST_REDIRECT.union(Self::COMPLETION_REDIRECT);
    /// What a root port or a downstream port has to have.
    pub const PORT: Self = Self::FUNCTION
        .union(Self::SOURCE_VALIDATION)
        .union(Self::UPSTREAM_FORWARDING);
}

/// Device/Port Type, bits 7:4 of the PCI Express Capabilities Register (section 7.5.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum PortType {
    /// 0000b: endpoint.
    Endpoint,
    /// 0001b: legacy endpoint.
    LegacyEndpoint,
    /// 0100b: root port.
    RootPort,
    /// 0101b: upstream port of a switch.
    UpstreamPort,
    /// 0110b: downstream port of a switch.
    DownstreamPort,
    /// 0111b: PCI Express to PCI or PCI-X bridge.
    PcieToPciBridge,
    /// 1000b: PCI or PCI-X to PCI Express bridge.
    PciToPcieBridge,
    /// 1001b: endpoint integrated into the root complex.
    IntegratedEndpoint,
    /// 1010b: event collector of the root complex.
    EventCollector,
}

impl PortType {
    /// The type that these 4 bits stand for; `None` where they are reserved. A function of an
    /// unknown type is treated like one without the capability, which keeps least apart.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0b0000 => Self::Endpoint,
            0b0001 => Self::LegacyEndpoint,
            0b0100 => Self::RootPort,
            0b0101 => Self::UpstreamPort,
            0b0110 => Self::DownstreamPort,
            0b0111 => Self::PcieToPciBridge,
            0b1000 => Self::PciToPcieBridge,
            0b1001 => Self::IntegratedEndpoint,
            0b1010 => Self::EventCollector,
            _ => return None,
        })
    }
}

/// What the configuration space of a function says about its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The function.
    pub function: PciFunction,
    /// Header type 0 or 1, and for the latter the bus numbers. A bridge whose secondary bus is 0
    /// was never configured and leads nowhere.
    pub kind: FunctionKind,
    /// Its Device/Port Type; `None` for conventional PCI, without a PCI Express capability.
    pub port: Option<PortType>,
    /// Its ACS Capability Register, without the bits that cannot be enabled; empty where it has
    /// none.
    pub acs: Acs,
    /// How many bits of the function number are used for phantom functions, 0 to 3: Phantom
    /// Functions Supported of the Device Capabilities Register, or 0 where they are disabled.
    pub phantom_functions: u8,
    /// A further id that the device is known to send requests with.
    pub quirk: Option<RequesterId>,
}

/// Requester ids of a function: each once, its own first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Requesters {
    ids: [RequesterId; Self::CAPACITY],
    count: u8,
}

impl Requesters {
    /// The most ids a function can have.
    pub const CAPACITY: usize = 16;

    /// Only this id.
    #[must_use]
    pub const fn only(id: RequesterId) -> Self {
        let mut ids = [RequesterId(0); Self::CAPACITY];
        ids[0] = id;
        Self { ids, count: 1 }
    }

    /// Adds an id, unless it is there already; `None` where there is no room.
    #[must_use]
    pub fn with(mut self, id: RequesterId) -> Option<Self> {
        if !self.as_slice().contains(&id) {
            *self.ids.get_mut(usize::from(self.count))? = id;
            self.count = self.count.checked_add(1)?;
        }
        Some(self)
    }

    /// The ids.
    #[must_use]
    pub fn as_slice(&self) -> &[RequesterId] {
        self.ids.get(..usize::from(self.count)).unwrap_or(&[])
    }

    /// An id that both have.
    #[must_use]
    pub fn common(&self, other: &Self) -> Option<RequesterId> {
        self.as_slice()
            .iter()
            .find(|id| other.as_slice().contains(id))
            .copied()
    }
}

/// How far a function can be kept apart from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Isolation {
    /// The group. Functions with the same number cannot be kept apart.
    pub group: u16,
    /// Every id that its requests can have.
    pub requesters: Requesters,
    /// The bridge on the root bus that it is below: as a rule a root port.
    pub below: Option<PciFunction>,
}

impl Isolation {
    /// A function on a root bus that is apart from all that have another group number.
    #[must_use]
    pub const fn alone(function: PciFunction, group: u16) -> Self {
        Self {
            group,
            requesters: Requesters::only(function.requester),
            below: None,
        }
    }
}

/// Why the groups cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum AliasError {
    /// There are more functions than group numbers.
    TooMany(usize),
    /// Functions and results are not the same number.
    Lengths {
        /// How many functions there are.
        facts: usize,
        /// How many places for results.
        results: usize,
    },
    /// The function is in the list twice.
    FunctionTwice(PciFunction),
    /// A bridge's secondary bus is not above the bus that the bridge is on, or above its
    /// subordinate bus.
    BusNumbers(PciFunction),
    /// Two bridges lead to the same bus.
    BusTwice {
        /// One.
        bridge: PciFunction,
        /// The other.
        other: PciFunction,
    },
    /// A downstream port is not below an upstream port, so there is no telling what else its
    /// switch connects.
    PortWithoutSwitch(PciFunction),
    /// A function has more ids than [`Requesters::CAPACITY`].
    TooManyIds(PciFunction),
}

impl fmt::Display for AliasError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany(count) => write!(f, "{count} PCI functions are too many"),
            Self::Lengths { facts, results } => {
                write!(f, "{facts} PCI functions do not fit {results} results")
            }
            Self::FunctionTwice(function) => write!(f, "function {function} is listed twice"),
            Self::BusNumbers(bridge) => write!(f, "bridge {bridge} has impossible bus numbers"),
            Self::BusTwice { bridge, other } => {
                write!(f, "bridges {bridge} and {other} lead to the same bus")
            }
            Self::PortWithoutSwitch(port) => {
                write!(f, "downstream port {port} is not below an upstream port")
            }
            Self::TooManyIds(function) => {
                write!(f, "function {function} has too many requester ids")
            }
        }
    }
}

impl core::error::Error for AliasError {}

/// Works out ids and groups of all functions of the machine; `results[i]` becomes the answer for
/// `facts[i]`. A group's number is the place of its first function.
///
/// # Errors
/// Where the topology contradicts itself. No answer is to be used then.
pub fn groups(facts: &[Facts], results: &mut [Isolation]) -> Result<(), AliasError> {
    if facts.len() != results.len() {
        return Err(AliasError::Lengths {
            facts: facts.len(),
            results: results.len(),
        });
    }
    let topology = Topology { facts };
    topology.check()?;
    for (index, (node, result)) in facts.iter().zip(results.iter_mut()).enumerate() {
        *result = Isolation {
            group: u16::try_from(index).map_err(|_| AliasError::TooMany(facts.len()))?,
            requesters: topology.requesters(node)?,
            below: topology
                .above(node)
                .last()
                .map(|(_, bridge)| bridge.function),
        };
    }
    for (index, node) in facts.iter().enumerate() {
        for (above, bridge) in topology.above(node) {
            if topology.mixes(bridge) {
                merge(results, index, above);
            }
        }
        for (other_index, other) in facts.iter().enumerate().take(index) {
            let same_id = || {
                let ids = |at: usize| results.get(at).map(|result| result.requesters);
                node.function.segment == other.function.segment
                    && ids(index)
                        .zip(ids(other_index))
                        .is_some_and(|(a, b)| a.common(&b).is_some())
            };
            let same_device =
                || topology.same_device(node, other) && (node.lacks_acs() || other.lacks_acs());
            if same_id() || same_device() {
                merge(results, index, other_index);
            }
        }
    }
    Ok(())
}

fn merge(results: &mut [Isolation], a: usize, b: usize) {
    let group = |at: usize| results.get(at).map(|result| result.group);
    let Some((a, b)) = group(a).zip(group(b)) else {
        return;
    };
    let (low, high) = (a.min(b), a.max(b));
    if low == high {
        return;
    }
    for result in results.iter_mut().filter(|result| result.group == high) {
        result.group = low;
    }
}

impl Facts {
    const fn buses(&self) -> Option<Buses> {
        match self.kind {
            FunctionKind::Bridge(buses) if buses.secondary != 0 => Some(buses),
            _ => None,
        }
    }

    const fn is_port(&self) -> bool {
        matches!(
            self.port,
            Some(PortType::RootPort | PortType::UpstreamPort | PortType::DownstreamPort)
        )
    }

    fn lacks_acs(&self) -> bool {
        !self.acs.contains(match self.port {
            Some(PortType::RootPort | PortType::DownstreamPort) => Acs::PORT,
            _ => Acs::FUNCTION,
        })
    }
}

#[derive(Clone, Copy)]
struct Topology<'a> {
    facts: &'a [Facts],
}

impl<'a> Topology<'a> {
    fn check(self) -> Result<(), AliasError> {
        for (index, node) in self.facts.iter().enumerate() {
            let earlier = || self.facts.iter().take(index);
            if earlier().any(|other| other.function == node.function) {
                return Err(AliasError::FunctionTwice(node.function));
            }
            let Some(buses) = node.buses() else {
                continue;
            };
            // Bus numbers that grow on the way down also mean that every way up ends.
            if buses.secondary <= node.function.requester.bus()
                || buses.subordinate < buses.secondary
            {
                return Err(AliasError::BusNumbers(node.function));
            }
            if let Some(other) = earlier().find(|other| {
                other.function.segment == node.function.segment
                    && other
                        .buses()
                        .is_some_and(|theirs| theirs.secondary == buses.secondary)
            }) {
                return Err(AliasError::BusTwice {
                    bridge: node.function,
                    other: other.function,
                });
            }
        }
        for node in self.facts {
            let switch = || {
                self.parent(node)
                    .is_some_and(|(_, bridge)| bridge.port == Some(PortType::UpstreamPort))
            };
            if node.port == Some(PortType::DownstreamPort) && !switch() {
                return Err(AliasError::PortWithoutSwitch(node.function));
            }
        }
        Ok(())
    }

    /// The bridge that leads to the bus a function is on, and its place.
    fn parent(self, node: &Facts) -> Option<(usize, &'a Facts)> {
        self.facts.iter().enumerate().find(|(_, bridge)| {
            bridge.function.segment == node.function.segment
                && bridge
                    .buses()
                    .is_some_and(|buses| buses.secondary == node.function.requester.bus())
        })
    }

    /// The bridges above a function, the nearest first.
    fn above(self, node: &Facts) -> impl Iterator<Item = (usize, &'a Facts)> {
        core::iter::successors(self.parent(node), move |(_, bridge)| self.parent(bridge))
    }

    fn requesters(self, node: &Facts) -> Result<Requesters, AliasError> {
        let own = node.function.requester;
        let full = AliasError::TooManyIds(node.function);
        let mut ids = Requesters::only(own);
        let bits = u32::from(node.phantom_functions.min(3));
        for phantom in 1..1_u16 << bits {
            // The borrowed numbers differ in the highest bits of the three.
            let id = RequesterId(own.0 ^ phantom << 3_u32.saturating_sub(bits));
            ids = ids.with(id).ok_or(full)?;
        }
        if let Some(id) = node.quirk {
            ids = ids.with(id).ok_or(full)?;
        }
        for (_, bridge) in self.above(node) {
            if bridge.is_port() {
                continue;
            }
            if bridge.port == Some(PortType::PcieToPciBridge)
                && let Some(id) = bridge
                    .buses()
                    .and_then(|buses| RequesterId::new(buses.secondary, 0, 0))
            {
                ids = ids.with(id).ok_or(full)?;
            }
            ids = ids.with(bridge.function.requester).ok_or(full)?;
        }
        Ok(ids)
    }

    /// Whether what is below a bridge can reach the bridge and all else below it.
    fn mixes(self, bridge: &Facts) -> bool {
        match bridge.port {
            Some(PortType::RootPort) => self
                .facts
                .iter()
                .any(|other| self.same_device(bridge, other) && other.lacks_acs()),
            // Told by the switch's upstream port, which is above it.
            Some(PortType::DownstreamPort) => false,
            Some(PortType::UpstreamPort) => self.facts.iter().any(|port| {
                port.port == Some(PortType::DownstreamPort)
                    && port.lacks_acs()
                    && self
                        .parent(port)
                        .is_some_and(|(_, parent)| parent.function == bridge.function)
            }),
            _ => true,
        }
    }

    /// Whether two functions are of one device, or are the same. On a PCI Express link there is
    /// only one device, whose functions have all the numbers of the bus where it uses Alternative
    /// Routing-ID (section 6.13).
    fn same_device(self, a: &Facts, b: &Facts) -> bool {
        let (x, y) = (a.function, b.function);
        x.segment == y.segment
            && x.requester.bus() == y.requester.bus()
            && (x.requester.device() == y.requester.device()
                || self.parent(a).is_some_and(|(_, bridge)| {
                    matches!(
                        bridge.port,
                        Some(
                            PortType::RootPort
                                | PortType::DownstreamPort
                                | PortType::PciToPcieBridge
                        )
                    )
                }))
    }
}
