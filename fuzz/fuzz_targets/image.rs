//! A successor's image of any bytes.
#![no_main]

use handoff_abi::{PhysAddr, PhysRange};
use libfuzzer_sys::fuzz_target;
use partition_core::image::Image;

fuzz_target!(|bytes: &[u8]| {
    let Ok(image) = Image::parse(bytes) else {
        return;
    };
    for segment in image.segments() {
        assert!(image.segment_bytes(segment).len() as u64 <= segment.memory_size);
    }
    let room = PhysRange::new(PhysAddr(0x4000_0000), 0x1000_0000).expect("a small range");
    if let Ok(layout) = image.place(room) {
        assert!(room.contains_range(layout.range()));
        let _ = layout.entry();
    }
});
