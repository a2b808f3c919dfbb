//! The namespace of the smaller machine: host bridges and the configuration space they need.

use super::PartitionView;
use crate::aml::{Encoder, Full, NameSeg, Space, Usage, Width, pnp_id};
use crate::partition::{HostBridge, Window, WindowKind};

const PCI_BUS: u32 = pnp_id(0x0a03);
const PCI_EXPRESS_BUS: u32 = pnp_id(0x0a08);
const MOTHERBOARD_RESOURCES: u32 = pnp_id(0x0c02);

/// `PB` and the host bridge's place in two hexadecimal digits.
fn bridge_name(place: u8) -> NameSeg {
    let digit = |nibble: u8| match nibble {
        0..=9 => b'0'.saturating_add(nibble),
        _ => b'A'.saturating_add(nibble.saturating_sub(10)),
    };
    [b'P', b'B', digit(place >> 4), digit(place & 0xf)]
}

/// Writes the definition block's terms and says how many bytes they take.
pub(super) fn write(view: &PartitionView<'_>, buffer: &mut [u8]) -> Result<usize, Full> {
    let mut aml = Encoder::new(buffer);
    aml.scope(*b"_SB_", |aml| {
        for (place, bridge) in view.bridges.iter().enumerate() {
            let place = u8::try_from(place).map_err(|_| Full)?;
            aml.device(bridge_name(place), |aml| host_bridge(aml, place, bridge))?;
        }
        if view.bridges.is_empty() {
            return Ok(());
        }
        aml.device(*b"CFGS", |aml| config_space(aml, view))
    })?;
    Ok(aml.length())
}

fn host_bridge(aml: &mut Encoder<'_>, place: u8, bridge: &HostBridge<'_>) -> Result<(), Full> {
    aml.name_integer(*b"_HID", PCI_EXPRESS_BUS)?;
    aml.name_integer(*b"_CID", PCI_BUS)?;
    aml.name_integer(*b"_UID", u32::from(place))?;
    aml.name_integer(*b"_SEG", u32::from(bridge.segment))?;
    aml.name_integer(*b"_BBN", u32::from(bridge.first_bus))?;
    aml.name_resources(*b"_CRS", |aml| {
        let first = u64::from(bridge.first_bus);
        let count = u64::from(bridge.last_bus)
            .saturating_sub(first)
            .saturating_add(1);
        aml.address_space(Width::Word, Space::BusNumber, Usage::Producer, first, count)?;
        for window in bridge.windows {
            host_window(aml, window)?;
        }
        Ok(())
    })
}

fn host_window(aml: &mut Encoder<'_>, window: &Window) -> Result<(), Full> {
    let (base, length) = (window.range.base().0, window.range.length());
    let fits = |width: u64| window.range.end().0 <= width && length < width;
    let width = if fits(1 << 16) && window.kind == WindowKind::Io {
        Width::Word
    } else if fits(1 << 32) {
        Width::DWord
    } else {
        Width::QWord
    };
    let space = match window.kind {
        WindowKind::Io => Space::Io,
        WindowKind::Memory32 => Space::Memory,
        WindowKind::Memory64Prefetchable => Space::Prefetchable,
    };
    aml.address_space(width, space, Usage::Producer, base, length)
}

/// Configuration space as the resource of a motherboard device, without which kernels do not
/// believe MCFG (PCI Firmware Specification 3.3, section 4.1.2).
fn config_space(aml: &mut Encoder<'_>, view: &PartitionView<'_>) -> Result<(), Full> {
    aml.name_integer(*b"_HID", MOTHERBOARD_RESOURCES)?;
    aml.name_integer(*b"_UID", 0)?;
    aml.name_resources(*b"_CRS", |aml| {
        for bridge in view.bridges {
            let memory = bridge.config_space().ok_or(Full)?;
            let (base, length) = (memory.base().0, memory.length());
            match (u32::try_from(base), u32::try_from(memory.end().0)) {
                (Ok(base), Ok(_)) => {
                    let length = u32::try_from(length).map_err(|_| Full)?;
                    aml.memory_32_fixed(base, length)?;
                }
                _ => {
                    aml.address_space(Width::QWord, Space::Memory, Usage::Consumer, base, length)?
                }
            }
        }
        Ok(())
    })
}
