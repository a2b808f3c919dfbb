//! What is refused of either vendor's unit before anything is written.

use iommu::PrepareError;
use iommu_model::Schedule;

use crate::rig::*;

#[test]
fn a_machine_whose_addresses_have_an_impossible_width_is_refused() {
    let model = UnitConfig::default();
    for bits in [0, 11, 53, 64, 255] {
        let machine = machine(Schedule::Lazy, std::slice::from_ref(&model));
        let config = Config {
            host_address_bits: bits,
            ..config(&model)
        };
        let error = prepare(&machine, 0, &model, config).unwrap_err();
        assert_eq!(error, PrepareError::HostAddressBits(bits));
        assert_eq!(machine.counters(0).mmio_writes, 0);
        assert_eq!(machine.memory_counters().stores, 0);
    }
}
