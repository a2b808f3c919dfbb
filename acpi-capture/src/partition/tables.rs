//! The tables of the smaller machine, except the namespace and the affinities.

use core::mem::size_of;

use handoff_abi::PhysAddr;
use zerocopy::FromZeros;

use super::output::Output;
use super::{PartitionError, PartitionView, dsdt, numa};
use crate::Capture;
use crate::table::raw::{
    FadtRaw, GasRaw, LocalApicNmiRaw, LocalApicOverrideRaw, LocalApicRaw, LocalX2ApicNmiRaw,
    LocalX2ApicRaw, MadtRaw, McfgAllocationRaw, McfgRaw, SdtHeader, WakeupRaw,
};
use crate::table::{
    BootArchitecture, FadtFlags, LocalApic, LocalApicNmi, Madt, MadtEntry, NmiTarget, Signature,
    madt_kind,
};

/// More tables than the root table ever lists: FADT, MADT, MCFG, SRAT, SLIT.
const MAX_LISTED: usize = 5;

pub(super) fn write_all(
    view: &PartitionView<'_>,
    capture: &Capture<'_>,
    madt: &Madt<'_>,
    output: &mut Output<'_>,
) -> Result<(), PartitionError> {
    let mut listed = [None; MAX_LISTED];
    let [fadt, madt_place, mcfg, srat, slit] = &mut listed;
    let namespace = write_dsdt(view, output)?;
    *fadt = Some(write_fadt(view, namespace, output)?);
    *madt_place = Some(write_madt(view, madt, output)?);
    if !view.bridges.is_empty() {
        *mcfg = Some(write_mcfg(view, output)?);
    }
    (*srat, *slit) = numa::write(view, capture, output)?;
    let header = SdtHeader::new_zeroed();
    let xsdt = output.table(Signature::XSDT, 1, &header, |body| {
        for place in listed.iter().flatten() {
            body.push(&place.0.to_le_bytes())?;
        }
        Ok(())
    })?;
    output.rsdp(xsdt)
}

fn write_dsdt(
    view: &PartitionView<'_>,
    output: &mut Output<'_>,
) -> Result<PhysAddr, PartitionError> {
    // From revision 2 on integers have 64 bits.
    output.table(Signature::DSDT, 2, &SdtHeader::new_zeroed(), |body| {
        body.with_room(|room| dsdt::write(view, room))
    })
}

/// A FADT of a machine without the ACPI hardware interface and without legacy devices.
fn write_fadt(
    view: &PartitionView<'_>,
    namespace: PhysAddr,
    output: &mut Output<'_>,
) -> Result<PhysAddr, PartitionError> {
    let mut fadt = FadtRaw::new_zeroed();
    fadt.minor_version = 5;
    fadt.x_dsdt = namespace.0.into();
    fadt.boot_architecture = (BootArchitecture::VGA_NOT_PRESENT
        // Link power states belong to the root port, which is someone else's.
        | BootArchitecture::PCIE_ASPM_CONTROLS
        | BootArchitecture::CMOS_RTC_NOT_PRESENT)
        .bits()
        .into();
    fadt.flags = (FadtFlags::WBINVD
        | FadtFlags::PROC_C1
        | FadtFlags::PWR_BUTTON
        | FadtFlags::SLP_BUTTON
        | FadtFlags::RESET_REG_SUP
        | FadtFlags::HEADLESS
        // Logical ids of two kernels would collide.
        | FadtFlags::FORCE_APIC_PHYSICAL_DESTINATION_MODE
        | FadtFlags::HW_REDUCED_ACPI)
        .bits()
        .into();
    fadt.reset_register = GasRaw {
        space: 0,
        bit_width: 8,
        bit_offset: 0,
        access_size: 1,
        address: view.reset.address.0.into(),
    };
    fadt.reset_value = view.reset.value;
    output.table(Signature::FADT, 6, &fadt, |_| Ok(()))
}

fn local_apic(cpu: &LocalApic) -> (Option<LocalApicRaw>, LocalX2ApicRaw) {
    // Enabled, and nothing else: no processor of the partition comes or goes by hot plug.
    let flags = 1.into();
    let narrow = match (u8::try_from(cpu.uid), u8::try_from(cpu.apic_id.0)) {
        (Ok(uid), Ok(apic_id)) if !cpu.x2apic => Some(LocalApicRaw {
            kind: madt_kind::LOCAL_APIC,
            length: size_of::<LocalApicRaw>() as u8,
            uid,
            apic_id,
            flags,
        }),
        _ => None,
    };
    let wide = LocalX2ApicRaw {
        kind: madt_kind::LOCAL_X2APIC,
        length: size_of::<LocalX2ApicRaw>() as u8,
        reserved: 0.into(),
        apic_id: cpu.apic_id.0.into(),
        flags,
        uid: cpu.uid.into(),
    };
    (narrow, wide)
}

fn write_madt(
    view: &PartitionView<'_>,
    madt: &Madt<'_>,
    output: &mut Output<'_>,
) -> Result<PhysAddr, PartitionError> {
    let mut fixed = MadtRaw::new_zeroed();
    fixed.local_apic = u32::try_from(madt.local_apic_32().0).unwrap_or(0).into();
    output.table(Signature::MADT, 5, &fixed, |body| {
        // The boot processor comes first (ACPI 6.5, section 5.2.12.1).
        for &id in view.cpus {
            let cpu = madt.processor(id).ok_or(PartitionError::UnknownCpu(id))?;
            match local_apic(&cpu) {
                (Some(narrow), _) => body.push(&narrow)?,
                (None, wide) => body.push(&wide)?,
            }
        }
        if let Some(address) = madt.local_apic_override() {
            body.push(&LocalApicOverrideRaw {
                kind: madt_kind::LOCAL_APIC_OVERRIDE,
                length: size_of::<LocalApicOverrideRaw>() as u8,
                reserved: 0.into(),
                address: address.0.into(),
            })?;
        }
        for entry in madt.entries().flatten() {
            let MadtEntry::LocalApicNmi(nmi) = entry else {
                continue;
            };
            if is_for(view, madt, &nmi) {
                push_nmi(body, &nmi)?;
            }
        }
        if let Some(mailbox) = view.wakeup {
            body.push(&WakeupRaw {
                kind: madt_kind::WAKEUP,
                length: size_of::<WakeupRaw>() as u8,
                version: 0.into(),
                reserved: 0.into(),
                mailbox: mailbox.0.into(),
            })?;
        }
        Ok(())
    })
}

/// Whether the pin is one of a processor of the partition.
fn is_for(view: &PartitionView<'_>, madt: &Madt<'_>, nmi: &LocalApicNmi) -> bool {
    match nmi.target {
        NmiTarget::All => true,
        NmiTarget::Processor(uid) => view
            .cpus
            .iter()
            .filter_map(|&id| madt.processor(id))
            .any(|cpu| cpu.uid == uid),
    }
}

fn push_nmi(body: &mut super::output::Body<'_>, nmi: &LocalApicNmi) -> Result<(), PartitionError> {
    if nmi.x2apic {
        return body.push(&LocalX2ApicNmiRaw {
            kind: madt_kind::LOCAL_X2APIC_NMI,
            length: size_of::<LocalX2ApicNmiRaw>() as u8,
            flags: nmi.flags.into(),
            uid: match nmi.target {
                NmiTarget::All => madt_kind::ALL_PROCESSORS,
                NmiTarget::Processor(uid) => uid,
            }
            .into(),
            lint: nmi.lint,
            reserved: [0; 3],
        });
    }
    body.push(&LocalApicNmiRaw {
        kind: madt_kind::LOCAL_APIC_NMI,
        length: size_of::<LocalApicNmiRaw>() as u8,
        uid: match nmi.target {
            NmiTarget::All => madt_kind::ALL_PROCESSORS_BYTE,
            // It came from an entry of this type, so it fits.
            NmiTarget::Processor(uid) => {
                u8::try_from(uid).unwrap_or(madt_kind::ALL_PROCESSORS_BYTE)
            }
        },
        flags: nmi.flags.into(),
        lint: nmi.lint,
    })
}

fn write_mcfg(
    view: &PartitionView<'_>,
    output: &mut Output<'_>,
) -> Result<PhysAddr, PartitionError> {
    output.table(Signature::MCFG, 1, &McfgRaw::new_zeroed(), |body| {
        for bridge in view.bridges {
            body.push(&McfgAllocationRaw {
                base: bridge.ecam.0.into(),
                segment: bridge.segment.into(),
                first_bus: bridge.first_bus,
                last_bus: bridge.last_bus,
                reserved: 0.into(),
            })?;
        }
        Ok(())
    })
}
