//! The remapping hardware that a machine can have, and how the emulator speaks of each.

use std::fmt;

/// Trace events that are cheap enough to be on all the time, whatever the machine.
const TRACE_ALWAYS: &[&str] = &[
    "virtio_set_status",
    "virtio_queue_notify",
    "pci_cfg_*",
    "runstate_set",
];

/// The remapping hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Iommu {
    /// Intel VT-d with interrupt remapping.
    #[value(name = "vt-d", alias = "vtd")]
    VtD,
    /// AMD-Vi with interrupt remapping. Devices are plugged when the first kernel asks for them.
    #[value(name = "amd-vi", alias = "amdvi")]
    AmdVi,
    /// None at all.
    None,
}

impl Iommu {
    /// Its name, as on the command line and in reports.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::VtD => "vt-d",
            Self::AmdVi => "amd-vi",
            Self::None => "none",
        }
    }

    /// The emulator's device; `None` where there is none.
    pub(super) const fn driver(self) -> Option<&'static str> {
        match self {
            Self::VtD => Some("intel-iommu"),
            Self::AmdVi => Some("amd-iommu"),
            Self::None => None,
        }
    }

    /// Whether functions behind bridges have to be plugged after the bridges have their bus numbers.
    /// The emulated AMD unit takes the number that a device's bus has when the device is plugged.
    pub(super) const fn wants_devices_late(self) -> bool {
        matches!(self, Self::AmdVi)
    }

    /// Trace events that are on from the start.
    pub(crate) fn trace_always(self) -> impl Iterator<Item = &'static str> {
        let own: &'static [&'static str] = match self {
            Self::VtD => &[
                "vtd_inv_desc*",
                "vtd_dmar_fault",
                "vtd_reg_read",
                "vtd_reg_write",
            ],
            // Its reads and its writes of registers are both traced as reads.
            Self::AmdVi => &[
                "amdvi_mmio_read",
                "amdvi_*_inval",
                "amdvi_prefetch_pages",
                "amdvi_ppr_exec",
                "amdvi_unhandled_command",
                "amdvi_completion_wait",
                "amdvi_page_fault",
            ],
            Self::None => &[],
        };
        TRACE_ALWAYS.iter().chain(own).copied()
    }

    /// Trace events that come with every request of a device, and are on while the fence is attacked.
    pub(crate) const fn trace_requests(self) -> &'static [&'static str] {
        match self {
            Self::VtD => &["vtd_ir_remap_msi*"],
            Self::AmdVi => &["amdvi_ir_remap_msi*", "amdvi_translation_result"],
            Self::None => &[],
        }
    }
}

impl fmt::Display for Iommu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::VtD => "VT-d",
            Self::AmdVi => "AMD-Vi",
            Self::None => "no IOMMU",
        })
    }
}
