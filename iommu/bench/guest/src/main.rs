//! A kernel that measures: it brings up the machine's remapping unit again and again, has each way
//! move devices, and leaves a mark where each phase begins. Whoever runs the machine counts the
//! instructions between the marks and what the unit was told there.
//!
//! The devices need not be there: the unit does not look whether they are. It says through port
//! E9h what it did, and ends the machine through port F4h.
#![no_std]
#![no_main]

mod machine;

use core::arch::global_asm;
use core::fmt::Write;

use baton_mark::mark;
use iommu_bench::{COUNTS, Observer, Phase, cases, run};

use machine::{Console, Machine, end};

global_asm!(
    include_str!("../../../../examples/minimal/src/boot.s"),
    prime = sym measure
);

/// Leaves a mark where a phase begins.
struct Marks;

impl Observer for Marks {
    #[inline(always)]
    fn begin(&mut self, phase: Phase) {
        match phase {
            Phase::Prepare => mark::<20>(),
            Phase::Move => mark::<21>(),
            Phase::Settle => mark::<22>(),
            Phase::Done => mark::<23>(),
        }
    }
}

extern "C" fn measure() -> ! {
    let machine = Machine::find();
    let most = COUNTS[COUNTS.len() - 1];
    for case in cases(machine.vendor(), most) {
        machine.switch_off();
        match run(&machine, case, &mut Marks) {
            Ok(method) => {
                let _ = writeln!(Console, "{case}: {method:?}");
            }
            Err(failure) => {
                let _ = writeln!(Console, "{case}: {failure}");
                end(false)
            }
        }
    }
    end(true)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let _ = writeln!(Console, "{info}");
    end(false)
}
