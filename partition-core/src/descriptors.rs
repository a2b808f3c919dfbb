//! Segment and gate descriptors for the code that runs outside every kernel.

/// A 64-bit code segment of privilege level 0 (Intel SDM volume 3, section 3.4.5), accessed bit
/// set so that a processor never writes to the table.
pub(crate) const CODE_SEGMENT: u64 = 0x00af_9b00_0000_ffff;
/// A writable data segment of privilege level 0.
pub(crate) const DATA_SEGMENT: u64 = 0x00cf_9300_0000_ffff;

/// A 64-bit interrupt gate to `handler` in segment 8, on the current stack (Intel SDM volume 3,
/// section 7.14.1).
pub(crate) fn interrupt_gate(handler: u64) -> [u8; 16] {
    const PRESENT_INTERRUPT_GATE: u128 = 0x8e;
    const SELECTOR: u128 = 0x08;
    let offset = u128::from(handler);
    let gate = offset & 0xffff
        | SELECTOR << 16
        | PRESENT_INTERRUPT_GATE << 40
        | (offset >> 16 & 0xffff) << 48
        | (offset >> 32) << 64;
    gate.to_le_bytes()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_gate_has_the_three_parts_of_the_offset_where_the_manual_has_them() {
        let gate = super::interrupt_gate(0x1122_3344_5566_7788);
        assert_eq!(
            gate,
            [
                0x88, 0x77, 8, 0, 0, 0x8e, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0, 0, 0, 0
            ]
        );
    }
}
