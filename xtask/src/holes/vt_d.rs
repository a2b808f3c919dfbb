//! What QEMU's VT-d unit is known not to enforce or not to record.

use super::{Catalogue, Known};

/// Where the tests are that prove it, from the workspace.
const TESTS: &str = "iommu/tests/strict_vtd/holes.rs";

pub(super) const CATALOGUE: Catalogue = Catalogue {
    known: KNOWN,
    // VT-d, section 7.1.3.
    record: |reason| format!("a fault record of reason {reason:X}h"),
    log_is_written: true,
};

const KNOWN: &[Known] = &[
    Known {
        name: "handle-of-another",
        what: "an interrupt message with another device's handle",
        reason: 0x26,
        worst: "none",
        recorded: false,
        proved_by: (
            TESTS,
            "a_message_of_another_device_is_blocked_and_recorded_however_it_is_written",
        ),
    },
    Known {
        name: "handle-not-set",
        what: "an interrupt message with a handle that is not set",
        reason: 0x22,
        worst: "none",
        recorded: false,
        proved_by: (
            TESTS,
            "a_message_with_a_handle_that_is_not_set_is_blocked_and_recorded",
        ),
    },
    Known {
        name: "handle-beyond-table",
        what: "an interrupt message with a handle beyond the table's end",
        reason: 0x21,
        worst: "none",
        recorded: false,
        proved_by: (
            TESTS,
            "a_message_with_a_handle_that_is_not_set_is_blocked_and_recorded",
        ),
    },
    Known {
        name: "compatible-format",
        what: "an interrupt message in compatibility format, with remapping on and that format off",
        reason: 0x25,
        worst: "delivered",
        recorded: false,
        proved_by: (
            TESTS,
            "a_message_in_compatibility_format_is_blocked_and_recorded",
        ),
    },
    Known {
        name: "handle-of-another-by-dma",
        what: "a DMA write of another device's interrupt message to FEExxxxxh",
        reason: 0x26,
        worst: "delivered",
        recorded: false,
        proved_by: (
            TESTS,
            "a_message_of_another_device_is_blocked_and_recorded_however_it_is_written",
        ),
    },
    Known {
        name: "compatible-format-by-dma",
        what: "a DMA write of a message in compatibility format to FEExxxxxh",
        reason: 0x25,
        worst: "delivered",
        recorded: false,
        proved_by: (
            TESTS,
            "a_message_in_compatibility_format_is_blocked_and_recorded",
        ),
    },
    Known {
        name: "compatible-format-of-blocked",
        what: "the same by a device that is in no domain",
        reason: 0x25,
        worst: "delivered",
        recorded: false,
        proved_by: (
            TESTS,
            "a_message_in_compatibility_format_is_blocked_and_recorded",
        ),
    },
    Known {
        name: "read-only",
        what: "a DMA write to memory that the device may only read",
        reason: 0x5,
        worst: "none",
        recorded: true,
        proved_by: (
            TESTS,
            "a_write_through_a_cached_read_only_translation_is_blocked_and_recorded",
        ),
    },
    Known {
        name: "read-only-cached",
        what: "the same when the unit has the translation cached",
        reason: 0x5,
        worst: "none",
        recorded: false,
        proved_by: (
            TESTS,
            "a_write_through_a_cached_read_only_translation_is_blocked_and_recorded",
        ),
    },
];
