//! A handoff of any bytes, under a right checksum so that the records are reached too.
#![no_main]

use handoff_abi::{AbiVersion, Extent, Features, Handoff, PhysAddr, Speaks, Workload};
use libfuzzer_sys::fuzz_target;

const AT: PhysAddr = PhysAddr(0x1000);
const SPEAKS: Speaks = Speaks {
    newest: AbiVersion::NEWEST,
    oldest: AbiVersion::OLDEST,
    features: Features::all(),
};

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

fuzz_target!(|bytes: &[u8]| {
    let _ = Handoff::parse(bytes, AT, &SPEAKS);
    let mut blob = bytes.to_vec();
    if blob.len() < 72 {
        return;
    }
    let length = (blob.len() as u64).to_le_bytes();
    blob[..8].copy_from_slice(b"BATON\0\x1a\n");
    blob[16..24].copy_from_slice(&length);
    blob[24..32].copy_from_slice(&AT.0.to_le_bytes());
    blob[52..56].fill(0);
    let sum = crc32(&blob).to_le_bytes();
    blob[52..56].copy_from_slice(&sum);
    if let Ok(handoff) = Handoff::parse(&blob, AT, &SPEAKS) {
        let count = handoff.raw_records().count();
        assert_eq!(count, handoff.header().record_count as usize);
        assert!(
            handoff.records::<Extent>().count() + handoff.records::<Workload>().count() <= count
        );
    }
});
