//! What instructions were spent on: blocks of code, by the crate and the function they are of.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use elf::ElfBytes;
use elf::abi::STT_FUNC;
use elf::endian::LittleEndian;
use serde::Serialize;

/// Instructions by crate, and by function, most first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Spent {
    /// By crate.
    pub(super) crates: Vec<(String, u64)>,
    /// By function.
    pub(super) functions: Vec<(String, u64)>,
}

/// What was executed of one kernel.
pub(super) struct Part {
    /// Instructions by the address of the block.
    pub(super) blocks: Vec<(u64, u64)>,
    /// The kernel's image.
    pub(super) kernel: Vec<u8>,
}

impl Spent {
    /// Of the kernels' parts.
    pub(super) fn of(parts: &[Part]) -> Result<Self> {
        let mut by_crate = BTreeMap::new();
        let mut by_function = BTreeMap::new();
        for part in parts {
            let symbols = functions(&part.kernel)?;
            for &(address, instructions) in &part.blocks {
                let name = symbols
                    .range(..=address)
                    .next_back()
                    .filter(|(start, (length, _))| address - **start < *length)
                    .map_or("?", |(_, (_, name))| name);
                *by_crate.entry(crate_of(name).to_owned()).or_insert(0) += instructions;
                *by_function.entry(name.to_owned()).or_insert(0) += instructions;
            }
        }
        Ok(Self {
            crates: sorted(by_crate),
            functions: sorted(by_function),
        })
    }
}

fn sorted(counts: BTreeMap<String, u64>) -> Vec<(String, u64)> {
    let mut sorted: Vec<_> = counts.into_iter().collect();
    sorted.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
    sorted
}

/// The crate that a function is written in: `smoltcp` for `<smoltcp::iface::Interface as T>::f`.
fn crate_of(name: &str) -> &str {
    let path = name.trim_start_matches(['<', '&', '*', '(', '[']);
    let path = path.strip_prefix("mut ").unwrap_or(path);
    match path.split_once("::") {
        Some((first, _)) => first,
        // Functions that the compiler calls, such as memcpy, have no path.
        None => "compiler_builtins",
    }
}

/// Start, length and name of every function.
fn functions(image: &[u8]) -> Result<BTreeMap<u64, (u64, String)>> {
    let image = ElfBytes::<LittleEndian>::minimal_parse(image).context("the image is no ELF")?;
    let (symbols, names) = image
        .symbol_table()?
        .context("the image has no symbol table")?;
    let mut functions = BTreeMap::new();
    for symbol in symbols {
        if symbol.st_symtype() == STT_FUNC && symbol.st_size > 0 {
            let name = names.get(symbol.st_name as usize)?;
            let name = format!("{:#}", rustc_demangle::demangle(name));
            functions.insert(symbol.st_value, (symbol.st_size, name));
        }
    }
    Ok(functions)
}

#[cfg(test)]
mod tests {
    use super::{crate_of, sorted};
    use std::collections::BTreeMap;

    #[test]
    fn a_function_is_its_crates() {
        assert_eq!(crate_of("smoltcp::iface::poll"), "smoltcp");
        assert_eq!(
            crate_of("<baton_support::net::Net as smoltcp::phy::Device>::receive"),
            "baton_support"
        );
        assert_eq!(crate_of("<&mut core::fmt::X as core::fmt::Y>::z"), "core");
        assert_eq!(crate_of("memcpy"), "compiler_builtins");
    }

    #[test]
    fn most_comes_first() {
        let counts = [("a", 1), ("b", 3), ("c", 1)];
        let counts: BTreeMap<String, u64> =
            counts.map(|(name, count)| (name.to_owned(), count)).into();
        let names: Vec<_> = sorted(counts).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["b", "a", "c"]);
    }
}
