//! A launched kernel: from the handoff to `READY`.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use acpi_capture::{Capture, CaptureRequest, ReadPhys, SmbiosSource, capture};
use handoff_abi::{
    AbiVersion, Clock, Console, Cpu, Ecam as EcamRecord, Exchange, Extent, Features, Firmware,
    Function, Handoff, HandoffError, Header, InterruptHandle, Ledger, Memory, PhysAddr, PhysRange,
    Platform, Workload, memory, purpose, state, stated_length,
};
use partition_core::baton::{Baton, BatonError};
use partition_core::ledger::{LedgerError, LedgerView};
use partition_core::park::ParkArea;
use partition_core::trampoline::Trampoline;
use partition_core::watch::{ArrivalError, OwnStatus};

use super::bring_up::{Start, bring_up, set_clock};
use super::faults::Faults;
use super::handoff::{REQUIRED, state_of};
use super::kernel::{Config, Failure, KERNEL, Kernel, failure, page_of, shared};
use super::launch::timing;
use super::misbehave::{Misbehaviour, Point};
use super::processors::{self, Role};
use super::serving::{self, Order};
use super::{command_line, control, devices, domain_of, first, own_devices, work};
use crate::boot::Image;
use crate::mark::{READY, WAITED, mark};
use crate::paging::{Access, AddressSpace};
use crate::pci::Ecam;
use crate::{clock, console, cpu, mmio, println};

/// The console a kernel complains on when it cannot learn which is its own.
const LAST_RESORT: u16 = 0x2f8;
/// The longest handoff these kernels read.
const LONGEST: usize = 8192;
/// How long the service processor may take until it waits for the commit, in microseconds.
const STAND: u64 = 2_000_000;
/// The kernel's own number, in the exchange, for a start that failed.
const BRING_UP_FAILED: u32 = 1;
/// Likewise, for a handoff that turned out to be wrong after `ENTERED`.
const HANDOFF_REFUSED: u32 = 2;

/// Enters as a successor; `argument` is where the handoff is said to be, `receipt` the word that a
/// refusal is left in.
///
/// # Safety
/// Called once, from the successor's entry, on its first processor, in the state of `docs/entry.md`.
pub unsafe fn enter(config: &'static Config, argument: u64, receipt: u64) -> ! {
    // The processor may have been halted, waiting, when it was taken for this.
    mark::<WAITED>();
    let at = PhysAddr(argument);
    let mut copy = [0_u8; LONGEST];
    // SAFETY: the entry tables map the baton at its physical address.
    let parsed = match unsafe { copy_handoff(at, &mut copy) } {
        Ok(length) => Handoff::parse(copy.get(..length).unwrap_or(&[]), at, &config.speaks),
        Err(error) => Err(error),
    };
    let found = parsed.map_err(Refusal::Unreadable).and_then(|handoff| {
        let baton = Baton::find(&handoff).map_err(Refusal::NoBaton)?;
        let status = arrive(&handoff, &baton)?;
        Ok((handoff, baton, status))
    });
    let (handoff, baton, status) = match found {
        Ok(found) => found,
        // SAFETY: the caller's promise.
        Err(refusal) => unsafe { refuse(config, receipt, &refusal) },
    };
    let port = handoff
        .first::<Console>()
        .map_or(LAST_RESORT, |console| console.port as u16);
    // SAFETY: the handoff gives this kernel the UART at that port.
    unsafe { console::init(port) };
    let misbehaviour = Misbehaviour::of(command_line::of(&handoff));
    misbehaviour.at(Point::Launched, &status);
    status.enter(state::ENTERED, clock::tsc());
    println!(
        "@entered kernel={} partition={} version={} bytes={}",
        config.name,
        handoff.header().reader,
        handoff.header().version,
        handoff.header().length
    );
    misbehaviour.at(Point::Entered, &status);
    // SAFETY: as for this function.
    match unsafe { come_up(config, &handoff, baton, misbehaviour) } {
        Ok(()) => processors::run_first(cpu::apic_id(), Role::Control),
        Err(error) => {
            let reason = if error.refused {
                println!("@handoff-refused kernel={} text=\"{error}\"", config.name);
                HANDOFF_REFUSED
            } else {
                println!("@failed kernel={} text=\"{error}\"", config.name);
                BRING_UP_FAILED
            };
            // The place is reached another way by now than when it was taken, or it is not.
            // SAFETY: the window in force maps the baton, and the exchange is made of atomics.
            let exchange: &'static Exchange = unsafe { shared(baton.exchange) };
            if let Some(status) = OwnStatus::new(exchange, handoff.header().reader) {
                status.fail(reason, 0);
            }
            cpu::halt_forever()
        }
    }
}

/// Holds a handoff that reads well against what the steward says, and takes this partition's place.
fn arrive(handoff: &Handoff<'_>, baton: &Baton) -> Result<OwnStatus<'static>, Refusal> {
    let missing = REQUIRED.difference(handoff.header().features);
    if !missing.is_empty() {
        return Err(Refusal::Features(missing));
    }
    // SAFETY: the entry tables map the baton at its physical address, and the ledger is made of
    // atomics.
    let ledger: &'static Ledger = unsafe { shared(baton.ledger) };
    // SAFETY: as above, for the exchange.
    let exchange: &'static Exchange = unsafe { shared(baton.exchange) };
    let view = LedgerView::new(ledger).map_err(Refusal::NoLedger)?;
    let cpu = cpu::apic_id();
    OwnStatus::arrive(exchange, view, handoff.header(), cpu).map_err(Refusal::Disagrees)
}

/// Why the handoff cannot be honoured. There is no heap yet to make a sentence in.
#[derive(Debug)]
enum Refusal {
    /// It cannot be read.
    Unreadable(HandoffError),
    /// It does not say where the baton is.
    NoBaton(BatonError),
    /// There is no ledger where it says.
    NoLedger(LedgerError),
    /// The prime cannot do what this kernel needs of it.
    Features(Features),
    /// It is not what the ledger and the exchange say.
    Disagrees(ArrivalError),
}

impl Refusal {
    /// What is left on the receipt.
    const fn number(&self) -> u64 {
        match self {
            Self::Unreadable(_) => 1,
            Self::NoBaton(_) => 2,
            Self::NoLedger(_) => 3,
            Self::Features(_) => 4,
            Self::Disagrees(_) => 5,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => error.fmt(f),
            Self::NoBaton(error) => error.fmt(f),
            Self::NoLedger(error) => error.fmt(f),
            Self::Features(missing) => {
                write!(f, "the prime lacks what this kernel needs: {missing}")
            }
            Self::Disagrees(error) => error.fmt(f),
        }
    }
}

/// Says why the handoff cannot be honoured, leaves the number of that on the receipt, and halts.
/// Nothing that the handoff says is relied on.
///
/// # Safety
/// `receipt` is RSI at entry: the word of the trampoline page that `docs/entry.md` promises.
unsafe fn refuse(config: &Config, receipt: u64, refusal: &Refusal) -> ! {
    // SAFETY: the second UART of a PC is at this port. Whose it is cannot be known here, and one
    // line on the wrong console is better than none on any.
    unsafe { console::init(LAST_RESORT) };
    println!("@handoff-refused kernel={} text=\"{refusal}\"", config.name);
    let receipt = mmio::pointer(PhysAddr(receipt)).cast::<AtomicU64>();
    // SAFETY: the entry tables map the page at its physical address; the word is aligned, and the
    // prime reads it as an atomic too.
    let receipt = unsafe { receipt.as_ref() };
    // The last act: the prime takes the processor as soon as it sees this.
    receipt.store(refusal.number(), Ordering::Release);
    cpu::halt_forever()
}

/// Copies the handoff at `at` out, as long as it says that it is, and says how long that was.
///
/// # Safety
/// The handoff's place, [`LONGEST`] bytes, is mapped in the window.
unsafe fn copy_handoff(at: PhysAddr, into: &mut [u8; LONGEST]) -> Result<usize, HandoffError> {
    let mut copied = 0;
    let mut copy_to = |end: usize, into: &mut [u8; LONGEST]| {
        for (offset, byte) in (0_u64..).zip(into.iter_mut()).take(end).skip(copied) {
            // SAFETY: inside the place, by the caller's promise; volatile, because the other side
            // may still write.
            *byte = unsafe { mmio::pointer(PhysAddr(at.0 + offset)).read_volatile() };
        }
        copied = end;
    };
    let head = Header::LENGTH_V0_1 as usize;
    copy_to(head, into);
    let length = stated_length(into.get(..head).unwrap_or(&[]))?;
    let length = usize::try_from(length).unwrap_or(usize::MAX).min(LONGEST);
    copy_to(length, into);
    Ok(length)
}

/// Reads the filtered tables.
struct Window(Vec<PhysRange>);

impl ReadPhys for Window {
    type Error = PhysAddr;

    fn read(&self, at: PhysAddr, into: &mut [u8]) -> Result<(), PhysAddr> {
        let wanted = PhysRange::new(at, into.len() as u64).map_err(|_| at)?;
        if !self.0.iter().any(|range| range.contains_range(wanted)) {
            return Err(at);
        }
        for (offset, byte) in (0_u64..).zip(into) {
            // SAFETY: the window maps all ranges of the list.
            *byte = unsafe { mmio::pointer(PhysAddr(at.0 + offset)).read_volatile() };
        }
        Ok(())
    }
}

/// # Safety
/// As for [`enter`].
unsafe fn come_up(
    config: &'static Config,
    handoff: &Handoff<'_>,
    baton: Baton,
    misbehaviour: Misbehaviour,
) -> Result<(), Failure> {
    let me = handoff.header().reader;
    let record = |name: &str| failure!("the handoff has no {name}").refusal();
    let workload = handoff
        .first::<Workload>()
        .ok_or_else(|| record("workload"))?;
    let trampoline_page = handoff
        .records::<Extent>()
        .find(|extent| extent.purpose == purpose::TRAMPOLINE)
        .ok_or_else(|| record("trampoline"))?
        .base;
    let modules = handoff
        .records::<Extent>()
        .find(|extent| extent.purpose == purpose::MODULES)
        .map_or(
            Ok(PhysRange::from_bounds(PhysAddr(0), PhysAddr(0))),
            |extent| PhysRange::new(extent.base, extent.length),
        )?;
    let mut start = Start::default();
    for entry in handoff.records::<Memory>() {
        let range = PhysRange::new(entry.base, entry.length)?;
        match entry.kind {
            1 => drop(start.free.push(range)),
            memory::LOADED => drop(start.window.push((range, Access::Data))),
            _ => {}
        }
    }
    let mut readable = Vec::new();
    for extent in baton.extents() {
        let range = PhysRange::new(extent.base, extent.length)?;
        let _ = start.window.push((range, Access::Data));
    }
    let _ = start.window.push((page_of(trampoline_page), Access::Data));
    let _ = start.identity.push(page_of(trampoline_page));
    let _ = start.identity.push(baton.park);
    // SAFETY: the entry tables are in force and nobody changes them.
    let physical = unsafe { AddressSpace::current() }
        .translate(Image::own().start)
        .ok_or_else(|| failure!("the image is not mapped"))?;
    // SAFETY: the handoff was checked; the prime made the entry tables accordingly.
    let footing = unsafe { bring_up(config, physical, &start) }?;
    let hertz = handoff
        .first::<Clock>()
        .ok_or_else(|| record("clock"))?
        .tsc_hertz;
    set_clock(hertz);

    // SAFETY: the window maps the baton for good, and the areas are made of atomics.
    let ledger: &'static Ledger = unsafe { shared(baton.ledger) };
    // SAFETY: as above.
    let exchange: &'static Exchange = unsafe { shared(baton.exchange) };
    let status = OwnStatus::new(exchange, me).ok_or_else(|| failure!("there is no place"))?;
    status.speak(handoff.header().version, config.speaks.features);
    status.enter(state::NEGOTIATED, clock::tsc());
    println!(
        "@negotiated version={} features={}",
        handoff.header().version,
        config.speaks.features.bits()
    );
    misbehaviour.at(Point::Negotiated, &status);

    let bootstrap = handoff
        .first::<Platform>()
        .ok_or_else(|| record("platform"))?
        .bootstrap;
    // SAFETY: the window maps the area for good; the first kernel made it.
    let park = unsafe { ParkArea::adopt(mmio::pointer(baton.park.base()), baton.park.base()) }?;
    // SAFETY: the page is this partition's, mapped, and its one processor has left it.
    let trampoline = unsafe {
        Trampoline::install(
            mmio::pointer(trampoline_page),
            trampoline_page,
            bootstrap,
            timing(),
        )
    }?;
    // It is the prime's to drive until the commit, and must be there by then.
    let unit = state_of(handoff).ok();
    let mut kernel = Kernel {
        config,
        me,
        version: handoff.header().version,
        baton,
        ledger,
        exchange,
        status,
        park,
        trampoline,
        trampoline_page,
        bootstrap,
        space: footing.space,
        frames: footing.frames,
        memory: footing.memory,
        steward: None,
        unit: None,
        unit_window: unit.map_or(PhysRange::from_bounds(PhysAddr(0), PhysAddr(0)), |unit| {
            page_of(PhysAddr(unit.register_base()))
        }),
        unit_kind: unit.map(|unit| unit.kind()),
        faults: Faults::default(),
        domain: domain_of(me),
        workload,
        functions: handoff
            .records::<Function>()
            .map(|record| record.function)
            .collect(),
        handles: handoff.records::<InterruptHandle>().collect(),
        successor: None,
        launches: me.0,
        prime: Some(handoff.header().writer),
        modules,
        swaps: handoff.header().swaps,
        console: handoff
            .first::<Console>()
            .ok_or_else(|| record("console"))?,
        service_cpu: cpu::apic_id(),
        held: false,
        misbehaviour,
    };
    readable.push(kernel.baton.filtered);
    smaller_machine(&mut kernel, handoff, readable)?;

    processors::init(park);
    let own = cpu::apic_id();
    for cpu in handoff.records::<Cpu>() {
        if cpu.apic_id != own {
            first::start(&mut kernel, cpu.apic_id)?;
            kernel.service_cpu = cpu.apic_id;
        }
    }
    own_devices::take_up(&mut kernel)?;
    work::adopt(&mut kernel)?;
    let (version, swaps) = (handoff.header().version, handoff.header().swaps);
    let counted = work::swaps();
    if version >= AbiVersion::V0_2 && counted.is_some_and(|counted| counted != swaps) {
        return Err(failure!(
            "the handoff states {swaps} swaps and the workload has counted {}",
            counted.unwrap_or(0)
        )
        .refusal());
    }
    serving::init(serving::Shared {
        ledger,
        exchange,
        me,
    });
    serving::give(Order::Stand);
    processors::assign(kernel.service_cpu, Role::Service);
    if !clock::wait_for_other(STAND, serving::stands) {
        return Err(failure!(
            "the service processor does not wait for the commit"
        ));
    }
    control::announce(&kernel);
    kernel.status.enter(state::READY, clock::tsc());
    mark::<READY>();
    *KERNEL.lock() = Some(Box::new(kernel));
    misbehaviour.at(
        Point::Ready,
        &OwnStatus::new(exchange, me).ok_or_else(|| failure!("there is no place"))?,
    );
    Ok(())
}

/// Reads the filtered tables as any kernel would, and holds them against the handoff: exactly its
/// processors, buses and memory.
fn smaller_machine(
    kernel: &mut Kernel,
    handoff: &Handoff<'_>,
    readable: Vec<PhysRange>,
) -> Result<(), Failure> {
    let firmware = handoff
        .first::<Firmware>()
        .ok_or_else(|| failure!("the handoff has no firmware tables"))?;
    let mut buffer = vec![0; 64 << 10];
    let request = CaptureRequest::new(firmware.rsdp, SmbiosSource::None);
    capture(&Window(readable), &request, &mut buffer)?;
    let tables = Capture::parse(&buffer)?;
    let madt = tables
        .madt()
        .ok_or_else(|| failure!("the smaller machine has no MADT"))??;
    let mut cpus: Vec<_> = madt.processors().map(|cpu| cpu.apic_id).collect();
    let mut given: Vec<_> = handoff.records::<Cpu>().map(|cpu| cpu.apic_id).collect();
    cpus.sort();
    given.sort();
    let mcfg = tables
        .mcfg()
        .ok_or_else(|| failure!("the smaller machine has no MCFG table"))??;
    let mut buses: Vec<_> = mcfg
        .allocations()
        .map(|allocation| (allocation.first_bus, allocation.last_bus))
        .collect();
    let mut given_buses: Vec<_> = handoff
        .records::<EcamRecord>()
        .map(|ecam| (ecam.first_bus, ecam.last_bus))
        .collect();
    buses.sort_unstable();
    given_buses.sort_unstable();
    println!(
        "@filtered cpus={} buses={} dmar={} ivrs={} hpet={} agrees={}",
        cpus.len(),
        buses.len(),
        tables.dmar().is_some(),
        tables.ivrs().is_some(),
        tables.hpet().is_some(),
        cpus == given && buses == given_buses
    );
    let remapping = tables.dmar().is_some() || tables.ivrs().is_some();
    if cpus != given || buses != given_buses || remapping {
        return Err(failure!(
            "the smaller machine is not the handoff's: processors {cpus:?}, buses {buses:?}"
        )
        .refusal());
    }
    for allocation in mcfg.allocations() {
        let range = allocation
            .memory()
            .ok_or_else(|| failure!("configuration space lies nowhere"))?;
        kernel.map(range, Access::Device)?;
        // SAFETY: just mapped, for good.
        devices::add(unsafe {
            Ecam::new(allocation.base, allocation.first_bus, allocation.last_bus)
        });
    }
    Ok(())
}
