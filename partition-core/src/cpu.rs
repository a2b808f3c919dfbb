//! Processors: how one is reached, and the proof that one has stopped.

use handoff_abi::ApicId;

/// Interprocessor interrupts to exactly one processor, in physical destination mode: by xAPIC,
/// x2APIC or a hypercall. No broadcast, no logical destination.
///
/// Each call returns once the local APIC has accepted the interrupt, or after a bounded time
/// (Intel SDM volume 3, section 11.6.1, delivery status).
pub trait SendIpi {
    /// INIT, level triggered assert. Never called for the bootstrap processor.
    fn init(&mut self, to: ApicId);
    /// Start-up with the vector `page`: the processor begins at physical address `page << 12`.
    fn startup(&mut self, to: ApicId, page: u8);
    /// A non-maskable interrupt.
    fn nmi(&mut self, to: ApicId);
}

/// The state a processor is started in; the rest is in `docs/entry.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct StartState {
    /// CR3: the physical address of a PML4 table, below 4 GiB for the trampoline. It must map the
    /// page that the processor comes from (trampoline or park page) at its physical address.
    pub page_table: u64,
    /// RIP.
    pub entry: u64,
    /// RSP.
    pub stack: u64,
    /// RDI.
    pub argument: u64,
}

/// How a processor was proved stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Proof {
    /// It went into the park page by itself and said so.
    Parked,
    /// It was taken by INIT and start-up into the park page, and stored a fresh nonce.
    Taken,
}

/// The proof that a processor executes none of its former owner's code: only
/// [`ParkArea::confirm`](crate::park::ParkArea::confirm) and
/// [`Trampoline::take`](crate::trampoline::Trampoline::take) make one.
#[derive(Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct CpuStopped {
    cpu: ApicId,
    proof: Proof,
}

impl CpuStopped {
    pub(crate) const fn new(cpu: ApicId, proof: Proof) -> Self {
        Self { cpu, proof }
    }

    /// Which processor.
    #[must_use]
    pub const fn cpu(&self) -> ApicId {
        self.cpu
    }

    /// How it was proved.
    #[must_use]
    pub const fn proof(&self) -> Proof {
        self.proof
    }
}
