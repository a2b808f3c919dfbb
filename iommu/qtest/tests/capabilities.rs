//! What the emulated unit reports, for each of its options, and that the driver brings it up.

use iommu::vtd::spec::{AddressWidth, Capability, ExtendedCapability, LeafSize};
use iommu::vtd::{Capabilities, Config, PrepareError, ProbeError};
use iommu_qtest::{Board, Fence, Machine, Observer, raw};

fn board(unit: &str) -> Board<'_> {
    Board {
        unit,
        ..Board::default()
    }
}

fn capabilities(machine: &Machine) -> Capabilities {
    let (mut registers, _) = machine.platform(&Observer::default());
    let capabilities = Capabilities::read(&mut registers).unwrap();
    let raw = machine.raw();
    assert_eq!(capabilities.capability.bits(), raw.capability());
    assert_eq!(capabilities.extended.bits(), raw.extended_capability());
    capabilities
}

/// Brings the unit up with these options and checks what is on afterwards, and what it reports.
fn comes_up(unit: &str, capability: u64, extended: u64) -> Capabilities {
    let fence = Fence::new(&board(unit));
    let on = raw::TES | raw::QIES | raw::IRES;
    assert_eq!(
        fence.raw().status() & (on | raw::CFIS),
        on,
        "translation, queue and interrupt remapping on, compatibility format off"
    );
    let found = capabilities(fence.machine());
    assert_eq!(
        (found.capability.bits(), found.extended.bits()),
        (capability, extended),
        "{:#x} {:#x}",
        found.capability.bits(),
        found.extended.bits()
    );
    // What every version and option of this unit has.
    assert_eq!(found.capability.domains(), 0x1_0000);
    assert_eq!(found.capability.fault_records(), 1);
    assert_eq!(found.capability.fault_record_offset(), 0x220);
    assert_eq!(found.extended.iotlb_offset(), 0xf0);
    assert_eq!(found.largest_leaf(), LeafSize::Size1G);
    assert_eq!(found.window_length(), 0x1000);
    assert!(!found.capability.intersects(
        Capability::RWBF
            | Capability::PLMR
            | Capability::PHMR
            | Capability::ESRTPS
            | Capability::ESIRTPS
    ));
    assert!(
        found
            .extended
            .contains(ExtendedCapability::QI | ExtendedCapability::IR)
    );
    found
}

#[test]
fn the_default_unit_has_three_levels_and_does_not_snoop() {
    let found = comes_up("intremap=on", 0x00d2_008c_2226_0206, 0x00f0_0f4a);
    assert_eq!(found.capability.supported_widths(), 0b00010);
    assert_eq!(found.capability.guest_address_bits(), 39);
    assert!(!found.capability.contains(Capability::CM));
    assert!(!found.extended.contains(ExtendedCapability::C));
    assert!(!found.extended.contains(ExtendedCapability::EIM));
    assert_eq!(found.width_for(1 << 39).map(AddressWidth::levels), Some(3));
    assert_eq!(found.width_for((1 << 39) + 1), None);
}

#[test]
fn forty_eight_address_bits_add_a_fourth_level() {
    let found = comes_up("intremap=on,aw-bits=48", 0x00d2_008c_222f_0606, 0x00f0_0f4a);
    assert_eq!(found.capability.supported_widths(), 0b00110);
    assert_eq!(found.capability.guest_address_bits(), 48);
    assert_eq!(found.width_for(1 << 39).map(AddressWidth::levels), Some(3));
    assert_eq!(found.width_for(1 << 40).map(AddressWidth::levels), Some(4));
}

#[test]
fn caching_mode_is_reported() {
    let found = comes_up(
        "intremap=on,caching-mode=on",
        0x00d2_008c_2226_0286,
        0x00f0_0f4a,
    );
    assert!(found.capability.contains(Capability::CM));
}

#[test]
fn snoop_control_is_reported() {
    // SC, bit 7 of ECAP.
    let found = comes_up(
        "intremap=on,snoop-control=on",
        0x00d2_008c_2226_0206,
        0x00f0_0fca,
    );
    assert_eq!(found.extended.bits() & 1 << 7, 1 << 7);
}

#[test]
fn device_tlbs_are_reported() {
    // DT, bit 2 of ECAP.
    let found = comes_up(
        "intremap=on,device-iotlb=on",
        0x00d2_008c_2226_0206,
        0x00f0_0f4e,
    );
    assert_eq!(found.extended.bits() & 1 << 2, 1 << 2);
}

#[test]
fn a_unit_with_scalable_mode_comes_up_in_legacy_mode() {
    let found = comes_up(
        "intremap=on,x-scalable-mode=on",
        0x00d2_008c_2226_0206,
        0x0000_4800_80f0_0f4a,
    );
    // SMTS, bit 43.
    assert_eq!(found.extended.bits() >> 43 & 1, 1);
}

#[test]
fn extended_interrupt_mode_is_reported_where_it_is_forced_on() {
    let found = comes_up(
        "intremap=on,x-buggy-eim=on,eim=on",
        0x00d2_008c_2226_0206,
        0x00f0_0f5a,
    );
    assert!(found.extended.contains(ExtendedCapability::EIM));
}

fn refusal(unit: &str, config: Config) -> PrepareError {
    let machine = Machine::start(&board(unit));
    let mut trace = machine.bus().trace();
    let refusal = machine.driver(config).map(|_| ()).unwrap_err();
    assert_eq!(
        trace.take_named("vtd_reg_write"),
        [],
        "a refused unit is left alone"
    );
    refusal
}

#[test]
fn a_unit_without_interrupt_remapping_is_refused() {
    assert_eq!(
        refusal("intremap=off", Config::default()),
        PrepareError::Probe(ProbeError::NoInterruptRemapping)
    );
}

#[test]
fn wide_apic_ids_are_refused_where_the_unit_has_none() {
    let config = Config {
        extended_interrupt_mode: true,
        ..Config::default()
    };
    assert_eq!(
        refusal("intremap=on", config),
        PrepareError::Probe(ProbeError::NoExtendedInterruptMode)
    );
}

#[test]
fn addresses_wider_than_the_unit_are_refused() {
    let config = Config {
        iova_limit: 1 << 40,
        ..Config::default()
    };
    assert_eq!(
        refusal("intremap=on", config),
        PrepareError::Probe(ProbeError::NoAddressWidth {
            iova_limit: 1 << 40,
            supported: 1 << 39,
        })
    );
}
