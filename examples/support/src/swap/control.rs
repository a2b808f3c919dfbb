//! The control processor: it follows the console, the mailboxes and the protocol.

use alloc::boxed::Box;
use alloc::vec;

use handoff_abi::{Owner, message, resource, state};

use super::handover::{self, Manner};
use super::inventory::{Inventory, Wish, next_partition};
use super::kernel::{Failure, KERNEL, Kernel, failure};
use super::processors::{self, Role, role};
use super::serving::{self, Order};
use super::{
    asked, attack, bad_plans, faults, generator, holes, launch, linux, reclaim, undo, work,
};
use crate::cpu::{apic_id, wait_for_interrupt};
use crate::{apic, clock, console, interrupts, net, println};

/// The vector of the control processor's tick.
const TICK_VECTOR: u8 = 0xf1;
/// How often the control processor looks, in microseconds.
const TICK: u64 = 1000;

/// Says who is there, once its console is ready.
pub fn announce(kernel: &Kernel) {
    let owner = kernel.owner();
    let memory: u64 = kernel
        .memory_of(owner)
        .iter()
        .map(|range| range.length())
        .sum();
    println!(
        "@up kernel={} letter={} abi={} partition={} cpus={} memory={memory} tsc_hertz={}",
        kernel.config.name,
        char::from(kernel.config.letter),
        kernel.config.speaks.newest,
        kernel.me,
        kernel.cpus_of(owner).len(),
        clock::hertz()
    );
}

/// The control loop, until the processor's role is another.
pub fn run() {
    let Some(mut kernel) = KERNEL.lock().take() else {
        wait_for_interrupt(|| false);
        return;
    };
    apic::start_tick(TICK_VECTOR, TICK);
    // A command may be there before the loop waits for the first time.
    x86_64::instructions::interrupts::enable();
    if kernel.status.state() == state::SERVING && kernel.swaps == 0 {
        println!("@serving kernel={} swap=0", kernel.config.name);
        owners(&kernel, "now");
    }
    while role(apic_id()) == Role::Control {
        // A kernel that is alone has nobody to show that it lives, and runs without the libraries.
        if handover::peers(&kernel)
            .into_iter()
            .flatten()
            .next()
            .is_some()
        {
            kernel.status.beat();
            for looked in [linux::look(&mut kernel), faults::look(&mut kernel)] {
                if let Err(error) = looked {
                    println!("@trouble text=\"{error}\"");
                }
            }
        }
        follow(&mut kernel);
        if let Some(line) = console::read_line() {
            // Nothing has to be looked for meanwhile, and a step takes the same time every time.
            apic::start_tick(TICK_VECTOR, 0);
            command(&mut kernel, line.trim());
            apic::start_tick(TICK_VECTOR, TICK);
        }
        let ticks = interrupts::count(TICK_VECTOR);
        wait_for_interrupt(|| interrupts::count(TICK_VECTOR) != ticks);
    }
    apic::start_tick(TICK_VECTOR, 0);
    put_back(kernel);
}

/// Waits as [`clock::wait_until`], but halted, and looks at every tick: for what another processor
/// of this kernel does and had better not be disturbed in.
pub fn wait_halted(microseconds: u64, mut done: impl FnMut() -> bool) -> bool {
    let deadline = clock::Deadline::after(microseconds);
    apic::start_tick(TICK_VECTOR, TICK);
    loop {
        if done() {
            return true;
        }
        if deadline.expired() {
            return false;
        }
        let ticks = interrupts::count(TICK_VECTOR);
        wait_for_interrupt(|| interrupts::count(TICK_VECTOR) != ticks);
    }
}

/// Leaves the kernel to the processor that has the control role now.
fn put_back(kernel: Box<Kernel>) {
    *KERNEL.lock() = Some(kernel);
    for cpu in processors::present() {
        if role(cpu) == Role::Control {
            processors::wake(cpu);
        }
    }
}

/// Says what a queue of the network device held that cannot be.
fn report_queue(nonsense: net::Nonsense) {
    println!(
        "@queue name={} state={} text=\"{}\"",
        nonsense.queue,
        if nonsense.ends_service {
            "broken"
        } else {
            "skipped"
        },
        nonsense.error
    );
}

/// What happens without anybody asking: messages of the other kernels, and the commit.
fn follow(kernel: &mut Kernel) {
    net::news().for_each(report_queue);
    for peer in handover::peers(kernel).into_iter().flatten() {
        if let Err(error) = handover::answer(kernel, peer) {
            println!("@trouble text=\"{error}\"");
        }
    }
    if serving::order() == Order::Held {
        if !kernel.held {
            kernel.held = true;
            println!("@committed partition={}", kernel.me);
        }
    } else {
        kernel.held = false;
    }
    if handover::has_come(kernel) {
        let (_, committed, served) = serving::times();
        let took = clock::nanoseconds(served.wrapping_sub(committed));
        if let Err(error) = reclaim::take_up(kernel) {
            println!("@trouble text=\"{error}\"");
        }
        println!(
            "@serving kernel={} swap={} commit_to_service_ns={took}",
            kernel.config.name, kernel.swaps
        );
        owners(kernel, "served");
    }
}

fn command(kernel: &mut Kernel, line: &str) {
    let mut words = line.split_ascii_whitespace();
    let word = words.next().unwrap_or("");
    let rest: vec::Vec<&str> = words.collect();
    let result = obey(kernel, word, &rest);
    match &result {
        Ok(()) => println!("@done command={word} result=ok"),
        Err(error) => println!(
            "@done command={word} result={} text=\"{error}\"",
            if error.refused { "refused" } else { "failed" }
        ),
    }
    if result.is_ok() && word == "handover" && kernel.steward.is_none() && !rest.contains(&"stay") {
        owners(kernel, "retired");
        handover::retire(kernel);
    }
}

fn obey(kernel: &mut Kernel, word: &str, rest: &[&str]) -> Result<(), Failure> {
    match word {
        "status" => {
            announce(kernel);
            owners(kernel, "now");
            net::nonsense().for_each(report_queue);
            Ok(())
        }
        "help" => {
            println!(
                "status, plan [NAME] [cpus=A,B] [devices=VVVV:DDDD] [strict], launch IMAGE [KEY=VALUE ...], linux [open-interrupts] [WORD ...], undo, attack [holes|storm [unasked]], wreck ring|registers, handover [inspect] [stay] [load=N], return, reclaim, load ROUNDS, go"
            );
            Ok(())
        }
        "plan" => plan(kernel, rest),
        "launch" => {
            let name = rest.first().ok_or_else(|| failure!("launch what?"))?;
            let wish = usual(kernel)?;
            let line = rest.get(1..).unwrap_or(&[]).join(" ");
            launch::launch(kernel, name, &wish, &line)?;
            owners(kernel, "launched");
            Ok(())
        }
        "linux" => {
            linux::launch(kernel, rest)?;
            owners(kernel, "launched");
            Ok(())
        }
        "load" => generator::rounds(kernel, number(rest.first())?),
        "undo" => undo::undo(kernel),
        "attack" if rest.contains(&"holes") => holes::attack(kernel),
        "attack" if rest.contains(&"storm") => attack::storm(kernel, !rest.contains(&"unasked")),
        "attack" => attack::attack(kernel),
        "wreck" => work::wreck(kernel, rest.first().copied().unwrap_or("")),
        "handover" => {
            let next = kernel
                .successor
                .as_ref()
                .map(|launched| launched.partition)
                .ok_or_else(|| failure!("there is nobody to hand over to"))?;
            let manner = Manner {
                inspect: rest.contains(&"inspect"),
                stay: rest.contains(&"stay"),
                requests: requests(rest)?,
            };
            handover::hand_over(kernel, next, manner)?;
            if manner.requests > 0
                && let Err(error) = generator::settle(kernel, manner.requests)
            {
                // The workload is the next kernel's: this is no failure of the hand-over.
                println!("@trouble text=\"{error}\"");
            }
            if manner.stay {
                kernel.status.enter(state::STANDBY, clock::tsc());
                serving::give(Order::Stand);
            }
            Ok(())
        }
        "return" => {
            let from = kernel
                .successor
                .as_ref()
                .map(|launched| launched.partition)
                .ok_or_else(|| failure!("there is nobody to take the service back from"))?;
            handover::send(kernel, from, &[message::RETURN, 0, 0, 0, 0, 0, 0, 0])
        }
        "reclaim" => {
            reclaim::reclaim(kernel)?;
            owners(kernel, "reclaimed");
            Ok(())
        }
        "go" => {
            serving::give(Order::Serve);
            processors::wake(kernel.service_cpu);
            Ok(())
        }
        other => Err(failure!("there is no command '{other}'")),
    }
}

fn number(word: Option<&&str>) -> Result<u64, Failure> {
    let word = word.copied().unwrap_or("");
    word.parse()
        .map_err(|_| failure!("'{word}' is no number").refusal())
}

/// How many requests are to be in the ring at the freeze: `load=N`.
fn requests(rest: &[&str]) -> Result<u64, Failure> {
    let Some(word) = rest.iter().find_map(|word| word.strip_prefix("load=")) else {
        return Ok(0);
    };
    let count = number(Some(&word))?;
    if count > generator::MOST {
        return Err(failure!("at most {} at a time", generator::MOST).refusal());
    }
    Ok(count)
}

fn usual(kernel: &mut Kernel) -> Result<Wish<'static>, Failure> {
    let inventory = Inventory::take(kernel)?;
    Ok(Wish::usual(kernel, "successor", &inventory.topology))
}

/// Dry runs: the usual plan, those that are refused, and what the operator changes in them.
fn plan(kernel: &mut Kernel, words: &[&str]) -> Result<(), Failure> {
    let inventory = Inventory::take(kernel)?;
    let mut wish = Wish::usual(kernel, "successor", &inventory.topology);
    let mut names = words.iter().filter(|word| !asked::is_change(word));
    let name = names.next().copied().unwrap_or("good");
    bad_plans::spoil(kernel, &mut wish, name)?;
    asked::change(&inventory.topology, &mut wish, words)?;
    let free = next_partition(kernel);
    println!("plan '{name}' for partition {free}");
    launch::dry_run(kernel, &wish)
}

/// Who owns each processor, each range of memory and each device.
fn owners(kernel: &Kernel, phase: &str) {
    let Some(view) = kernel.view() else {
        return;
    };
    for entry in view.entries() {
        let kind = match entry.kind {
            resource::CPU => "cpu",
            resource::MEMORY => "memory",
            resource::FUNCTION => "device",
            resource::WORKLOAD => "workload",
            resource::SINGLETON => "singleton",
            _ => continue,
        };
        let (who, number) = match entry.word.owner {
            Owner::Firmware => ("firmware", 0),
            Owner::Partition(partition) => ("partition", partition.0),
            Owner::Workload(workload) => ("workload", workload.0),
            Owner::Parked => ("parked", 0),
            Owner::Quarantined => ("quarantined", 0),
            Owner::Baton => ("baton", 0),
        };
        println!(
            "@owner phase={phase} kind={kind} base={:#x} length={:#x} owner={who}-{number}",
            entry.base, entry.length
        );
    }
}
