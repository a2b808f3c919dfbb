//! Invalidation queue descriptors, 128 bits each (section 6.5.2).

use handoff_abi::{DomainId, PhysAddr, RequesterId};

/// A descriptor as it lies in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Descriptor {
    /// Bits 63:0; the type is in bits 3:0.
    pub low: u64,
    /// Bits 127:64.
    pub high: u64,
}

impl Descriptor {
    /// The size in bytes.
    pub const SIZE: u64 = 16;

    const CONTEXT_CACHE: u64 = 1;
    const IOTLB: u64 = 2;
    const INTERRUPT_CACHE: u64 = 4;
    const WAIT: u64 = 5;
    /// G, bits 5:4 of the context-cache and IOTLB descriptors: everything.
    const GLOBAL: u64 = 1 << 4;
    /// G: what is tagged with one domain id.
    const DOMAIN: u64 = 2 << 4;
    /// G: what one source cached, context-cache only.
    const DEVICE: u64 = 3 << 4;
    /// DW and DR, bits 6 and 7 of the IOTLB descriptor: writes and reads under way that used old
    /// translations are finished first. Units that cannot do that ignore them.
    const DRAIN: u64 = 3 << 6;

    /// All context entries (section 6.5.2.1).
    #[must_use]
    pub const fn context_global() -> Self {
        Self {
            low: Self::GLOBAL | Self::CONTEXT_CACHE,
            high: 0,
        }
    }

    /// The context entry of one device, cached with this domain id: the *old* one, or 0 for an
    /// entry that was cached as not present (section 6.5.2.1). SID in bits 47:32, DID in 31:16, FM
    /// 00b: no function bits masked.
    #[must_use]
    pub const fn context_device(source: RequesterId, domain: DomainId) -> Self {
        Self {
            low: (source.0 as u64) << 32
                | (domain.0 as u64) << 16
                | Self::DEVICE
                | Self::CONTEXT_CACHE,
            high: 0,
        }
    }

    /// All translations (section 6.5.2.3).
    #[must_use]
    pub const fn iotlb_global() -> Self {
        Self {
            low: Self::DRAIN | Self::GLOBAL | Self::IOTLB,
            high: 0,
        }
    }

    /// All translations tagged with this domain id, and what was cached of its tables (section
    /// 6.5.2.3). DID in bits 31:16.
    #[must_use]
    pub const fn iotlb_domain(domain: DomainId) -> Self {
        Self {
            low: (domain.0 as u64) << 16 | Self::DRAIN | Self::DOMAIN | Self::IOTLB,
            high: 0,
        }
    }

    /// All interrupt remapping entries: G, bit 4, is 0 (section 6.5.2.8).
    #[must_use]
    pub const fn interrupt_global() -> Self {
        Self {
            low: Self::INTERRUPT_CACHE,
            high: 0,
        }
    }

    /// One interrupt remapping entry: G is 1, IM, bits 31:27, is 0, IIDX in bits 47:32 (section
    /// 6.5.2.8).
    #[must_use]
    pub const fn interrupt_index(index: u16) -> Self {
        Self {
            low: (index as u64) << 32 | 1 << 4 | Self::INTERRUPT_CACHE,
            high: 0,
        }
    }

    /// Writes `data` to the 4 bytes at `status`, a multiple of 4, when everything before this
    /// descriptor is done, and holds back everything after it until then (section 6.5.2.9): SW,
    /// bit 5; FN, bit 6; data in bits 63:32; address in bits 127:66.
    #[must_use]
    pub const fn wait(status: PhysAddr, data: u32) -> Self {
        Self {
            low: (data as u64) << 32 | 1 << 6 | 1 << 5 | Self::WAIT,
            high: status.0 & !3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_have_the_bits_of_the_specification() {
        let source = RequesterId::new(2, 1, 0).unwrap();
        for (descriptor, low, high) in [
            (Descriptor::context_global(), 0x11, 0),
            (
                Descriptor::context_device(source, DomainId(0x1234)),
                0x0208_1234_0031,
                0,
            ),
            (Descriptor::iotlb_global(), 0xd2, 0),
            (Descriptor::iotlb_domain(DomainId(0x1234)), 0x1234_00e2, 0),
            (Descriptor::interrupt_global(), 0x04, 0),
            (Descriptor::interrupt_index(0xabcd), 0xabcd_0000_0014, 0),
            (
                Descriptor::wait(PhysAddr(0x9008), 0xdead_beef),
                0xdead_beef_0000_0065,
                0x9008,
            ),
        ] {
            assert_eq!((descriptor.low, descriptor.high), (low, high));
        }
    }
}
