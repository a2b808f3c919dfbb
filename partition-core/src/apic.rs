//! The local APIC as a sender of interprocessor interrupts: a ready [`SendIpi`] for kernels that
//! have none of their own.

use core::ptr::NonNull;

use handoff_abi::ApicId;
use volatile::VolatilePtr;
use x86::apic::{
    DeliveryMode, DeliveryStatus, DestinationMode, DestinationShorthand, Icr, Level, TriggerMode,
};

use crate::cpu::SendIpi;

/// ICR in the xAPIC's page (Intel SDM volume 3, table 12-1).
const ICR_LOW: usize = 0x300;
const ICR_HIGH: usize = 0x310;
/// ICR bit 12: the last interrupt has not been accepted yet.
const DELIVERY_PENDING: u32 = 1 << 12;
/// Looks at the delivery status before the interrupt is sent regardless: an xAPIC accepts within a
/// few bus cycles or never.
const ACCEPT_LOOKS: u32 = 10_000;

/// The xAPIC of the processor that uses this, through its memory mapped page.
#[derive(Debug)]
pub struct XApic {
    page: NonNull<u32>,
}

impl XApic {
    /// Uses the local APIC whose page is mapped at `page`.
    ///
    /// # Safety
    /// `page` maps the local APIC's 4 KiB of registers uncached for as long as the value lives,
    /// and whoever else on this processor writes the ICR, an interrupt handler for one, does not
    /// do so in between.
    #[must_use]
    pub const unsafe fn new(page: NonNull<u8>) -> Self {
        Self { page: page.cast() }
    }

    fn register(&self, offset: usize) -> VolatilePtr<'_, u32> {
        // SAFETY: both offsets are inside the page that `new` was promised.
        let register = unsafe { self.page.byte_add(offset) };
        // SAFETY: the register is mapped for as long as `self` lives, at a multiple of 4.
        unsafe { VolatilePtr::new(register) }
    }

    fn send(&mut self, to: ApicId, vector: u8, mode: DeliveryMode) {
        // An xAPIC has 8 bits of destination; 255 would be everybody.
        let Some(id) = u8::try_from(to.0).ok().filter(|&id| id != u8::MAX) else {
            return;
        };
        let icr = Icr::for_xapic(
            vector,
            x86::apic::ApicId::XApic(id),
            DestinationShorthand::NoShorthand,
            mode,
            DestinationMode::Physical,
            DeliveryStatus::Idle,
            Level::Assert,
            TriggerMode::Edge,
        );
        self.accepted();
        self.register(ICR_HIGH).write(icr.upper());
        self.register(ICR_LOW).write(icr.lower());
        self.accepted();
    }

    fn accepted(&self) {
        for _ in 0..ACCEPT_LOOKS {
            if self.register(ICR_LOW).read() & DELIVERY_PENDING == 0 {
                return;
            }
            core::hint::spin_loop();
        }
    }
}

impl SendIpi for XApic {
    fn init(&mut self, to: ApicId) {
        self.send(to, 0, DeliveryMode::Init);
    }

    fn startup(&mut self, to: ApicId, page: u8) {
        self.send(to, page, DeliveryMode::StartUp);
    }

    fn nmi(&mut self, to: ApicId) {
        self.send(to, 0, DeliveryMode::NMI);
    }
}
