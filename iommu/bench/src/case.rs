//! What is measured.

use core::fmt;

use handoff_abi::RequesterId;

/// The numbers of devices.
pub const COUNTS: [usize; 5] = [1, 8, 32, 128, 512];

const MOST: usize = COUNTS[COUNTS.len() - 1];

/// The kind of unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// Intel VT-d.
    VtD,
    /// AMD-Vi.
    AmdVi,
}

impl Vendor {
    /// Both.
    pub const ALL: [Self; 2] = [Self::VtD, Self::AmdVi];

    /// The ways that there are on such a unit.
    #[must_use]
    pub const fn ways(self) -> &'static [Way] {
        match self {
            Self::VtD => &[Way::Batch, Way::Switch, Way::Linux, Way::Xen, Way::Acrn],
            Self::AmdVi => &[Way::Batch, Way::Switch, Way::Linux, Way::Xen],
        }
    }
}

impl fmt::Display for Vendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::VtD => "VT-d",
            Self::AmdVi => "AMD-Vi",
        })
    }
}

/// How devices are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Baton's, without preparation: all are blocked, and one batch of invalidations proves it.
    Batch,
    /// Baton's, prepared: second tables are written before, and are exchanged for those in force.
    /// Left to itself Baton does so for more than eight devices.
    Switch,
    /// As Linux attaches a device to another domain.
    Linux,
    /// As Xen assigns a device to another domain.
    Xen,
    /// As ACRN assigns a device to another domain.
    Acrn,
}

impl Way {
    /// Whether it is one of Baton's.
    #[must_use]
    pub const fn is_ours(self) -> bool {
        matches!(self, Self::Batch | Self::Switch)
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Batch => "batch",
            Self::Switch => "switch",
            Self::Linux => "Linux",
            Self::Xen => "Xen",
            Self::Acrn => "ACRN",
        })
    }
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// On what.
    pub vendor: Vendor,
    /// How.
    pub way: Way,
    /// How many.
    pub devices: usize,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}, {} devices", self.vendor, self.way, self.devices)
    }
}

/// Everything that is measured on one kind of unit with up to `most` devices, in the order in which
/// it is.
pub fn cases(vendor: Vendor, most: usize) -> impl Iterator<Item = Case> {
    vendor.ways().iter().flat_map(move |&way| {
        let counts = COUNTS.into_iter().filter(move |&count| count <= most);
        counts.map(move |devices| Case {
            vendor,
            way,
            devices,
        })
    })
}

/// A device that is in the domain [`B`](crate::B) from the start, and stays there.
pub(crate) const RESIDENT: RequesterId = RequesterId(0x01ff);

/// The first `count` devices, of at most 512, over three buses.
#[must_use]
pub fn devices(count: usize) -> heapless::Vec<RequesterId, MOST> {
    let places = 0..u16::try_from(count.min(MOST)).unwrap_or(0);
    places
        .map(|i| RequesterId((i % 3 + 1) << 8 | (i / 3)))
        .collect()
}
