//! The workload of the demonstration: the key-value service, in memory of its own.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering};

use acpi_capture::Capture;
use baton_workload::Workload;
use baton_workload::layout::{Geometry, MAGIC, VERSION};
use baton_workload::memory::Memory;
use handoff_abi::{
    InterruptTarget, Owner, PciFunction, PhysAddr, PhysRange, RequesterId, resource, state,
};
use spin::Mutex;

use super::first::set_aside;
use super::kernel::{Failure, Kernel, copy_out, failure};
use super::serving::{self, Order};
use super::{NIC_VECTOR, devices};
use crate::mmio::Mmio;
use crate::net::{self, Address, Net};
use crate::paging::Access;
use crate::pci::Ecam;
use crate::service::Service;
use crate::virtio::{self, Places};
use crate::{clock, mmio};

/// What a handoff says of the workload's layout.
pub const LAYOUT: u64 = MAGIC;
/// And of its version.
pub const LAYOUT_VERSION: u64 = VERSION as u64;

/// A register of the network device: what no other device may reach.
static REGISTER: AtomicU64 = AtomicU64::new(0);
/// The service, for the processor that serves.
static SERVICE: Mutex<Option<Box<Service<'static>>>> = Mutex::new(None);

/// Bytes of the workload's memory.
#[must_use]
pub fn length() -> u64 {
    Geometry::DEMO
        .length()
        .map_or(0, |length| length.next_multiple_of(2 << 20))
}

fn memory(range: PhysRange) -> Result<Memory<'static>, Failure> {
    // SAFETY: the window maps the workload's memory for good, and it is reached through this type
    // only.
    unsafe { Memory::new(mmio::pointer(range.base()), range.length()) }
        .ok_or_else(|| failure!("the workload's memory does not begin at a page"))
}

/// Lays the workload out, sets the network device up for it, and serves.
///
/// # Errors
/// Where there is no such device, or it does not come up.
pub fn create(kernel: &mut Kernel, range: PhysRange) -> Result<(), Failure> {
    let owner = Owner::Workload(kernel.workload.id);
    let function = kernel
        .view()
        .into_iter()
        .flat_map(|view| view.owned_by(owner))
        .find(|entry| entry.kind == resource::FUNCTION)
        .map(|entry| PciFunction {
            segment: 0,
            requester: RequesterId(entry.base as u16),
        })
        .ok_or_else(|| failure!("there is no network device"))?;
    let target = InterruptTarget {
        destination: kernel.service_cpu,
        vector: NIC_VECTOR,
    };
    set_aside(kernel, function, 1, target)?;
    let message = kernel
        .handles
        .iter()
        .find(|handle| handle.function == function)
        .map(|handle| (handle.message_address, handle.message_data))
        .ok_or_else(|| failure!("the network device has no interrupt entry"))?;
    let device = devices::function(function)?;
    let places = Places::find(&device)?;
    for window in places.windows() {
        kernel.map(window, Access::Device)?;
    }
    let address = Address {
        address: [10, 0, 2, 15],
        prefix: 24,
        gateway: Some([10, 0, 2, 2]),
        port: 7777,
    };
    // SAFETY: the function is the workload's network device, its windows are mapped, and the memory
    // is at its physical address for the device: the domain maps it so.
    let net = unsafe {
        Net::create(
            &device,
            places,
            &memory(range)?,
            range.base().0,
            &Geometry::DEMO,
            &address,
            message,
        )
    }?;
    take(kernel, net)?;
    serving::give(Order::Serve);
    kernel.status.enter(state::SERVING, clock::tsc());
    Ok(())
}

/// Makes a service of this kernel's own over the workload where it lies; nothing is changed before
/// the commit.
///
/// # Errors
/// Where the memory does not hold what this kernel knows, or names registers that are not the
/// workload's device's.
pub fn adopt(kernel: &mut Kernel) -> Result<(), Failure> {
    let record = kernel.workload;
    if (record.layout, record.layout_version) != (LAYOUT, LAYOUT_VERSION) {
        return Err(failure!(
            "the workload's layout is {:#x}, version {}",
            record.layout,
            record.layout_version
        ));
    }
    let range = PhysRange::new(record.base, record.length)?;
    kernel.map(range, Access::Data)?;
    let workload = Workload::adopt(&memory(range)?, range.base().0)?;
    let nic = workload
        .nic()
        .ok_or_else(|| failure!("the workload has no network device"))?;
    let owned = kernel
        .view()
        .and_then(|view| view.find(resource::FUNCTION, nic.function.into(), 1))
        .is_some_and(|entry| entry.word.owner == Owner::Workload(record.id));
    if !owned {
        return Err(failure!(
            "function {:#x} is not the workload's",
            nic.function
        ));
    }
    let function = PciFunction {
        segment: (nic.function >> 16) as u16,
        requester: RequesterId(nic.function as u16),
    };
    nic.check(&look_at(kernel, function)?.registers())?;
    for window in net::windows(&nic) {
        kernel.map(super::kernel::page_of(window.base()), Access::Device)?;
    }
    // SAFETY: the windows are mapped; the ledger says that the function is the workload's, and the
    // function's own configuration space that these are its registers.
    let net = unsafe { Net::adopt(workload) }?;
    take(kernel, net)
}

/// Writes nonsense into the workload's memory, as a device or a former owner could. For tests.
///
/// `ring`: the receive ring seems to have been used for more frames than there are descriptors. The
/// service ends with it. `registers`: the header names registers as the device's that are not; once
/// more, and it names the right ones again. Nobody but a kernel that adopts the workload reads them.
///
/// # Errors
/// Where this kernel does not serve the workload, or `what` is neither.
pub fn wreck(kernel: &Kernel, what: &str) -> Result<(), Failure> {
    if serving::order() != Order::Serve {
        return Err(failure!("this kernel does not serve").refusal());
    }
    let range = PhysRange::new(kernel.workload.base, kernel.workload.length)?;
    let mut workload = Workload::adopt(&memory(range)?, range.base().0)?;
    match (what, workload.nic()) {
        ("ring", _) => {}
        ("registers", Some(mut nic)) => {
            nic.notify[1] ^= 1 << 40;
            workload.set_nic(&nic);
            return Ok(());
        }
        _ => return Err(failure!("there is no '{what}' to wreck").refusal()),
    }
    let used = workload.receive.addresses(range.base().0).used;
    // SAFETY: the used ring lies in the workload's memory, which is mapped for good; others access
    // it with atomics only, and what is stored is two bytes of a ring that nobody trusts.
    let ring = unsafe { Mmio::new(PhysAddr(used), 4) };
    // The index is behind the flags (Virtual I/O Device 1.2, section 2.7.8).
    ring.write16(2, ring.read16(2).wrapping_add(1 << 14));
    super::processors::wake(kernel.service_cpu);
    Ok(())
}

/// Where the registers of the workload's device are. Its configuration space is none of this
/// partition's: it is only read, nothing of it is kept, and where it is says the captured MCFG.
fn look_at(kernel: &mut Kernel, function: PciFunction) -> Result<Places, Failure> {
    // SAFETY: the window maps the baton.
    let bytes = unsafe { copy_out(kernel.baton.capture) };
    let captured = Capture::parse(&bytes)?;
    let mcfg = captured
        .mcfg()
        .ok_or_else(|| failure!("there is no MCFG table"))??;
    let bus = function.requester.bus();
    let allocation = mcfg
        .allocation_of(function.segment, bus)
        .ok_or_else(|| failure!("function {function} has no configuration space"))?;
    kernel.map(Ecam::range(allocation.base, bus, bus), Access::Device)?;
    // SAFETY: just mapped, for good.
    let ecam = unsafe { Ecam::new(allocation.base, bus, bus) };
    let device = ecam
        .function(function.requester)
        .ok_or_else(|| failure!("function {function} does not answer"))?;
    if (device.vendor(), device.device()) != (virtio::VENDOR, virtio::NET) {
        return Err(failure!("function {function} is no network device"));
    }
    Ok(Places::find(&device)?)
}

/// A register of the network device.
#[must_use]
pub fn register() -> PhysAddr {
    PhysAddr(REGISTER.load(Ordering::Relaxed))
}

fn take(kernel: &Kernel, net: Net<'static>) -> Result<(), Failure> {
    let nic = net.workload().nic();
    REGISTER.store(nic.map_or(0, |nic| nic.common), Ordering::Relaxed);
    let service = Service::new(net, kernel.config.letter)
        .ok_or_else(|| failure!("the network stack does not take the workload's configuration"))?;
    *SERVICE.lock() = Some(Box::new(service));
    Ok(())
}

/// How often the workload that was adopted has changed hands, as it says itself.
#[must_use]
pub fn swaps() -> Option<u64> {
    let service = SERVICE.lock();
    service.as_ref().map(|service| service.workload().swaps())
}

/// The service processor's loop.
pub fn serve() {
    let Some(mut service) = SERVICE.lock().take() else {
        return;
    };
    serving::run(&mut service);
    *SERVICE.lock() = Some(service);
}
