//! The way back: everything that a successor was given is taken from it again.

use handoff_abi::ApicId;

use super::kernel::{DMA_FLOOR, Failure, Kernel, Patience, failure};
use super::launch::{Launched, PARK, Stage, clear_interrupts, functions, requesters};
use super::processors::{self, Role};
use super::{devices, own_devices, reserved};
use crate::{clock, println};

/// Takes everything back from a partition, however far it came: its processors are taken, its
/// devices are quiet and in this kernel's domain, its memory is this kernel's again.
pub fn undo(kernel: &mut Kernel) -> Result<(), Failure> {
    let Some(launched) = kernel.successor.take() else {
        return Ok(());
    };
    let begin = clock::now();
    let partition = launched.partition;
    let me = kernel.owner();
    let root = kernel.space.root().0;
    if launched.stage >= Stage::Carved {
        for &cpu in launched.plan.cpus() {
            let running = launched.stage >= Stage::Started;
            let proof = if running {
                // SAFETY: the processor is the partition's, which is this kernel's to end; this
                // kernel's tables map its trampoline and the area at their physical addresses.
                unsafe {
                    kernel.trampoline.take(
                        cpu,
                        &kernel.park,
                        root,
                        &mut processors::ipi(),
                        &mut Patience::default(),
                    )
                }
                .map_err(Failure::from)
            } else {
                processors::assign(cpu, Role::Park);
                kernel
                    .park
                    .confirm(cpu, PARK, &mut Patience::default())
                    .map_err(Failure::from)
            };
            match proof {
                Ok(proof) => {
                    println!("@taken cpu={cpu} proof={:?}", proof.proof());
                    kernel.steward()?.release_cpu(proof, me)?;
                }
                Err(error) => {
                    println!("@quarantined partition={partition} cpu={cpu} text=\"{error}\"");
                    kernel.steward()?.quarantine(partition)?;
                    return Err(error);
                }
            }
        }
    }
    if launched.stage >= Stage::Fenced {
        take_devices_back(kernel, &launched)?;
    }
    kernel.steward()?.inherit(partition, me)?;
    kernel.steward()?.join()?;
    if launched.stage >= Stage::Fenced {
        kernel.functions.extend(functions(&launched.plan));
        own_devices::set_aside_all(kernel)?;
        own_devices::take_up(kernel)?;
    }
    if launched.stage >= Stage::Carved {
        for &range in launched.plan.memory() {
            kernel.memory.add(range);
        }
        for &cpu in launched.plan.cpus() {
            claim(kernel, cpu)?;
        }
    }
    if let Some(watch) = launched.watch {
        watch.clear();
    }
    println!("@undone partition={partition} ns={}", clock::now() - begin);
    Ok(())
}

fn take_devices_back(kernel: &mut Kernel, launched: &Launched) -> Result<(), Failure> {
    let domain = launched.domain;
    let functions = functions(&launched.plan);
    devices::quiesce(&functions)?;
    let pending = clear_interrupts(kernel, &functions)?;
    let mine = kernel.domain;
    reserved::map(kernel, mine, &reserved::of_plan(&launched.plan))?;
    let requesters = requesters(&launched.plan);
    kernel
        .unit()?
        .move_devices(&requesters, Some(mine), pending)?;
    kernel.faults.forget(&requesters);
    if kernel.unit()?.domain_ids().any(|id| id == domain) {
        kernel.unit()?.destroy_domain(domain)?;
    }
    for &range in launched.plan.memory() {
        let there = kernel
            .unit()?
            .translate(mine, range.base().0.max(DMA_FLOOR));
        if there.is_none() {
            kernel.map_dma(mine, range)?;
        }
    }
    Ok(())
}

/// Claims a parked processor for this kernel and waits until it has come up.
pub fn claim(kernel: &mut Kernel, cpu: ApicId) -> Result<(), Failure> {
    let root = kernel.space.root().0;
    let state = processors::start_state(cpu, root)
        .ok_or_else(|| failure!("there is no place for processor {cpu}"))?;
    // SAFETY: this kernel's tables map the area at its physical address, and the stack is the
    // processor's own, unused while it is absent.
    unsafe {
        kernel.park.claim(
            cpu,
            &state,
            &mut processors::ipi(),
            PARK,
            &mut Patience::default(),
        )
    }?;
    if !processors::has_come(cpu) {
        return Err(failure!("processor {cpu} was claimed and did not come up"));
    }
    Ok(())
}
