//! What an operator changes in the usual plan of a dry run.

use handoff_abi::ApicId;
use partition_core::plan::FunctionRequest;

use super::inventory::{Topology, Wish};
use super::kernel::{Failure, failure};

/// Whether a word of a `plan` command changes the plan, and is not its name.
#[must_use]
pub fn is_change(word: &str) -> bool {
    word == "strict" || word.contains('=')
}

/// Changes a wish as the words say: `cpus=2,3` (APIC ids), `devices=8086:100e,1234:11e8` (every
/// function with these ids, in hexadecimal, with one interrupt each) and `strict`.
///
/// # Errors
/// Where a word says nothing that can be done.
pub fn change(topology: &Topology, wish: &mut Wish<'_>, words: &[&str]) -> Result<(), Failure> {
    for word in words.iter().filter(|word| is_change(word)) {
        match word.split_once('=') {
            None => wish.strict = true,
            Some(("cpus", list)) => {
                wish.cpus = list
                    .split(',')
                    .map(|id| id.parse().map(ApicId))
                    .collect::<Result<_, _>>()
                    .map_err(|_| bad(word))?;
            }
            Some(("devices", list)) => {
                wish.functions.clear();
                for ids in list.split(',') {
                    let (vendor, device) = ids.split_once(':').ok_or_else(|| bad(word))?;
                    let number = |text| u16::from_str_radix(text, 16).map_err(|_| bad(word));
                    let (vendor, device) = (number(vendor)?, number(device)?);
                    let found = topology.of_device(vendor, device);
                    wish.functions.extend(found.map(|function| FunctionRequest {
                        function,
                        interrupts: 1,
                    }));
                }
            }
            Some(_) => return Err(bad(word)),
        }
    }
    Ok(())
}

fn bad(word: &str) -> Failure {
    failure!("'{word}' changes no plan").refusal()
}
