//! The machine: the unit's registers, memory, ports. All is identity mapped.

use core::arch::asm;
use core::fmt;
use core::ptr::NonNull;

use handoff_abi::{AmdViUnit, PhysAddr, PhysRange, RequesterId, UnitDescription, UnitKind};
use iommu::mmio::{CacheFlush, DirectMemory, Mmio};
use iommu::{Deadline, RegisterIo, TableMemory};
use iommu_bench::{ARENA, Platform, STATUS, Vendor, WideMemory};
use x86_64::instructions::port::Port;

/// Where QEMU has the units.
const VTD: PhysRange = range(0xfed9_0000, 0x1000);
const AMD_VI: PhysRange = range(0xfed8_0000, 0x4000);

/// The PCI function that an AMD-Vi unit is on this machine: device 1 on bus 0.
const AMD_FUNCTION: RequesterId = RequesterId(1 << 3);

const fn range(base: u64, length: u64) -> PhysRange {
    PhysRange::from_bounds(PhysAddr(base), PhysAddr(base + length))
}

fn at(address: PhysAddr) -> NonNull<u8> {
    let pointer = core::ptr::with_exposed_provenance_mut(address.0 as usize);
    NonNull::new(pointer).unwrap()
}

/// The machine, with one unit.
pub(crate) struct Machine {
    vendor: Vendor,
    /// Where the AMD-Vi unit's capability block is in its configuration space.
    capability_offset: u16,
}

impl Machine {
    /// Looks which unit the machine has. Where there is no AMD-Vi unit it is a VT-d one.
    pub(crate) fn find() -> Self {
        let there = configuration(AMD_FUNCTION, 0) != u32::MAX;
        let mut offset = configuration(AMD_FUNCTION, 0x34) as u16 & 0xfc;
        while there && offset != 0 {
            let head = configuration(AMD_FUNCTION, offset);
            if head & 0xff == 0x0f {
                return Self {
                    vendor: Vendor::AmdVi,
                    capability_offset: offset,
                };
            }
            offset = (head >> 8) as u16 & 0xfc;
        }
        Self {
            vendor: Vendor::VtD,
            capability_offset: 0,
        }
    }

    pub(crate) const fn vendor(&self) -> Vendor {
        self.vendor
    }

    const fn window(&self) -> PhysRange {
        match self.vendor {
            Vendor::VtD => VTD,
            Vendor::AmdVi => AMD_VI,
        }
    }

    fn registers(&self) -> Mmio {
        let window = self.window();
        // SAFETY: the unit's registers are there on this machine, identity mapped; whoever has them
        // gave back what it had before.
        unsafe { Mmio::new(at(window.base()), window.length() as usize) }
    }

    fn memory(&self) -> Memory {
        let all = PhysRange::from_bounds(ARENA.base(), STATUS.end());
        // SAFETY: the machine has this memory, identity mapped and above the kernel's image, and
        // nothing but the unit's user has it. The emulated processor has CLFLUSH.
        Memory(unsafe { DirectMemory::new(all, at(ARENA.base()), CacheFlush::Clflush) })
    }

    /// Switches the unit off, as nobody does who has devices behind it: what was measured before
    /// must not be seen in what is measured next.
    pub(crate) fn switch_off(&self) {
        let mut registers = self.registers();
        match self.vendor {
            Vendor::VtD => {
                // GCMD and GSTS: translation, interrupt remapping, the queue, one by one.
                for bit in [31, 25, 26] {
                    let on = registers.read32(0x1c) & (1 << 31 | 1 << 26 | 1 << 25);
                    registers.write32(0x18, on & !(1 << bit));
                    while registers.read32(0x1c) & 1 << bit != 0 {
                        core::hint::spin_loop();
                    }
                }
            }
            Vendor::AmdVi => registers.write64(0x18, 0),
        }
    }
}

impl Platform for Machine {
    type Registers = Mmio;
    type Memory = Memory;
    type Clock = Clock;

    fn parts(&self) -> (Mmio, Memory, Clock) {
        (self.registers(), self.memory(), Clock(0))
    }

    fn description(&self) -> UnitDescription {
        UnitDescription {
            kind: match self.vendor {
                Vendor::VtD => UnitKind::VtD,
                Vendor::AmdVi => UnitKind::AmdVi,
            },
            segment: 0,
            registers: self.window(),
            include_all: true,
            amd_vi: (self.vendor == Vendor::AmdVi).then_some(AmdViUnit {
                function: AMD_FUNCTION,
                capability_offset: self.capability_offset,
                // Coherent, whatever the table says of it: this machine has no caches.
                flags: 1 << 5,
            }),
        }
    }

    fn capability_header(&self) -> u32 {
        configuration(AMD_FUNCTION, self.capability_offset)
    }
}

/// The memory of tables.
pub(crate) struct Memory(DirectMemory);

impl TableMemory for Memory {
    fn load(&self, at: PhysAddr) -> u64 {
        self.0.load(at)
    }

    fn store(&mut self, at: PhysAddr, value: u64) {
        self.0.store(at, value);
    }

    fn write_back(&mut self, at: PhysAddr, length: u64) {
        self.0.write_back(at, length);
    }
}

impl WideMemory for Memory {
    fn store_pair(&mut self, place: PhysAddr, low: u64, high: u64) {
        assert!(ARENA.contains(place) && place.is_aligned_to(16));
        let pointer = at(place).as_ptr();
        // SAFETY: the 16 bytes are aligned and in the arena, which is the unit's user's; RBX, which
        // the compiler keeps, is put back.
        unsafe {
            asm!(
                "xchg rbx, {low}",
                "mov rax, [{at}]",
                "mov rdx, [{at} + 8]",
                "2: lock cmpxchg16b [{at}]",
                "jne 2b",
                "xchg rbx, {low}",
                low = inout(reg) low => _,
                at = in(reg) pointer,
                in("rcx") high,
                out("rax") _,
                out("rdx") _,
                options(nostack)
            );
        }
    }
}

/// A clock over the time stamp counter, which is one nanosecond on this machine.
pub(crate) struct Clock(u64);

fn now() -> u64 {
    // SAFETY: every processor with 64-bit mode has the instruction, and nothing here disables it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

impl Deadline for Clock {
    fn start(&mut self, microseconds: u32) {
        self.0 = now() + u64::from(microseconds) * 1000;
    }

    fn expired(&mut self) -> bool {
        core::hint::spin_loop();
        now() > self.0
    }
}

/// Reads 4 bytes of a function's configuration space, through ports CF8h and CFCh.
fn configuration(function: RequesterId, offset: u16) -> u32 {
    let mut address = Port::<u32>::new(0xcf8);
    let mut data = Port::<u32>::new(0xcfc);
    // SAFETY: the ports are those of configuration space on every PC, and nobody else uses them.
    unsafe { address.write(1 << 31 | u32::from(function.0) << 8 | u32::from(offset)) };
    // SAFETY: as above; reading configuration space has no effect on these functions.
    unsafe { data.read() }
}

/// What is said goes to port E9h, byte by byte.
pub(crate) struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut port = Port::<u8>::new(0xe9);
        for byte in text.bytes() {
            // SAFETY: the port is the emulator's debug console.
            unsafe { port.write(byte) };
        }
        Ok(())
    }
}

/// Ends the machine. Its emulator's status is odd: 2 for good and 3 for ill, doubled, and 1 more.
pub(crate) fn end(well: bool) -> ! {
    let mut port = Port::<u32>::new(0xf4);
    loop {
        // SAFETY: the port is the emulator's own, to end it.
        unsafe { port.write(if well { 2 } else { 3 }) };
    }
}
