//! What QEMU's AMD-Vi unit is known not to enforce or not to record. It never writes its event log, so
//! nothing is recorded there at all.

use super::{Catalogue, Known};

/// The event that each attempt asks for (AMD 48882, section 2.5.3: IO_PAGE_FAULT).
const IO_PAGE_FAULT: u64 = 2;

/// Where the tests are that prove it, from the workspace.
const INTERRUPTS: &str = "iommu/tests/strict_amd/interrupts.rs";
const EVENTS: &str = "iommu/tests/strict_amd/events.rs";

pub(super) const CATALOGUE: Catalogue = Catalogue {
    known: KNOWN,
    record: |code| format!("an event of code {code:X}h"),
    log_is_written: false,
};

const fn interrupt(name: &'static str, what: &'static str) -> Known {
    Known {
        name,
        what,
        reason: IO_PAGE_FAULT,
        worst: "none",
        recorded: false,
        proved_by: (
            INTERRUPTS,
            "indices_that_are_not_set_and_other_delivery_modes_are_blocked",
        ),
    }
}

const fn read_only(name: &'static str, what: &'static str) -> Known {
    Known {
        name,
        what,
        reason: IO_PAGE_FAULT,
        worst: "none",
        recorded: false,
        proved_by: (EVENTS, "where_the_page_is_there_the_direction_is_told"),
    }
}

const KNOWN: &[Known] = &[
    interrupt("handle-of-another", "another device's interrupt message"),
    interrupt(
        "handle-not-set",
        "an interrupt message that selects an entry that is not set",
    ),
    interrupt(
        "handle-beyond-table",
        "an interrupt message that selects an entry beyond the table's end",
    ),
    interrupt(
        "compatible-format",
        "an interrupt message with a vector that the device has no entry for",
    ),
    interrupt(
        "handle-of-another-by-dma",
        "a DMA write of another device's interrupt message to FEExxxxxh",
    ),
    interrupt(
        "compatible-format-by-dma",
        "a DMA write of a message with a vector that the device has no entry for to FEExxxxxh",
    ),
    interrupt(
        "compatible-format-of-blocked",
        "the same by a device that is in no domain",
    ),
    read_only(
        "read-only",
        "a DMA write to memory that the device may only read",
    ),
    read_only(
        "read-only-cached",
        "the same when the unit has the translation cached",
    ),
];
