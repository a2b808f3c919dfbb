//! Which modules a driver needs, in loading order.
//!
//! The package carries no `modules.dep` (that is made when it is installed), so the
//! dependencies are read where `depmod` finds them: in each module.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use elf::ElfBytes;
use elf::endian::AnyEndian;

/// The modules of one kernel.
pub(super) struct Modules {
    files: BTreeMap<String, PathBuf>,
    builtin: HashSet<String>,
}

impl Modules {
    /// Finds the modules below a kernel's module directory.
    pub(super) fn find(directory: &Path) -> Result<Self> {
        let list = directory.join("modules.builtin");
        let builtin = fs::read_to_string(&list)
            .with_context(|| format!("cannot read {}", list.display()))?
            .lines()
            .filter_map(|line| module_name(Path::new(line)))
            .collect();
        let mut files = BTreeMap::new();
        let mut directories = vec![directory.join("kernel")];
        while let Some(directory) = directories.pop() {
            let entries = fs::read_dir(&directory)
                .with_context(|| format!("cannot read {}", directory.display()))?;
            for entry in entries {
                let entry = entry?;
                let path = entry.path();
                if entry.file_type()?.is_dir() {
                    directories.push(path);
                } else if let Some(name) = module_name(&path) {
                    files.insert(name, path);
                }
            }
        }
        Ok(Self { files, builtin })
    }

    /// The files to load for `wanted`, each after those it needs, without what is
    /// built in and without what `loaded` has.
    pub(super) fn order(&self, wanted: &[&str], loaded: &[PathBuf]) -> Result<Vec<PathBuf>> {
        self.order_by(wanted, loaded, dependencies)
    }

    fn order_by(
        &self,
        wanted: &[&str],
        loaded: &[PathBuf],
        dependencies: impl Fn(&Path) -> Result<Vec<String>>,
    ) -> Result<Vec<PathBuf>> {
        let mut order = Vec::new();
        let mut entered = HashSet::new();
        // Depth first; a module is emitted when it is met for the second time, after
        // all it needs.
        let mut work: Vec<(String, bool)> = wanted
            .iter()
            .rev()
            .map(|name| ((*name).to_owned(), false))
            .collect();
        while let Some((name, needs_are_done)) = work.pop() {
            let Some(path) = self.files.get(&name) else {
                if self.builtin.contains(&name) {
                    continue;
                }
                bail!("there is no module {name}.ko, nor is it built in");
            };
            if needs_are_done {
                order.push(path.clone());
            } else if !loaded.contains(path) && entered.insert(name.clone()) {
                work.push((name, true));
                for need in dependencies(path)?.into_iter().rev() {
                    work.push((need, false));
                }
            }
        }
        Ok(order)
    }
}

/// A module's name as the kernel writes it, where `-` and `_` are the same.
fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.strip_suffix(".ko")?;
    Some(name.replace('-', "_"))
}

fn dependencies(path: &Path) -> Result<Vec<String>> {
    read_dependencies(path).with_context(|| format!("cannot read the module {}", path.display()))
}

fn read_dependencies(path: &Path) -> Result<Vec<String>> {
    let bytes = fs::read(path)?;
    let file = ElfBytes::<AnyEndian>::minimal_parse(&bytes)?;
    let header = file
        .section_header_by_name(".modinfo")?
        .context("it has no section .modinfo")?;
    let (information, _) = file.section_data(&header)?;
    Ok(depends(information))
}

/// The value of `depends=` among the zero-terminated strings of `.modinfo`.
fn depends(information: &[u8]) -> Vec<String> {
    information
        .split(|byte| *byte == 0)
        .filter_map(|text| text.strip_prefix(b"depends="))
        .flat_map(|list| list.split(|byte| *byte == b','))
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Modules {
        let file = |name: &str| (name.to_owned(), PathBuf::from(format!("/{name}.ko")));
        Modules {
            files: ["bus", "ring", "pci", "net", "failover"]
                .map(file)
                .into_iter()
                .collect(),
            builtin: HashSet::from(["core".to_owned()]),
        }
    }

    fn needs(path: &Path) -> Result<Vec<String>> {
        let needs: &[&str] = match path.to_str().unwrap() {
            "/pci.ko" => &["ring", "bus", "core"],
            "/ring.ko" => &["bus"],
            "/net.ko" => &["failover", "ring"],
            _ => &[],
        };
        Ok(needs.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn every_module_comes_once_and_after_all_it_needs() {
        let modules = example();
        let order = modules.order_by(&["pci", "net"], &[], needs).unwrap();
        assert_eq!(order.len(), 5);
        for (index, path) in order.iter().enumerate() {
            for need in needs(path).unwrap() {
                let need = PathBuf::from(format!("/{need}.ko"));
                assert!(need == Path::new("/core.ko") || order[..index].contains(&need));
            }
        }
    }

    #[test]
    fn what_is_loaded_is_not_loaded_again() {
        let modules = example();
        let loaded = modules.order_by(&["pci"], &[], needs).unwrap();
        let order = modules.order_by(&["net"], &loaded, needs).unwrap();
        assert_eq!(
            order,
            ["/failover.ko", "/net.ko"].map(PathBuf::from).to_vec()
        );
    }

    #[test]
    fn a_module_that_is_nowhere_is_an_error() {
        let error = example().order_by(&["absent"], &[], needs).unwrap_err();
        assert!(error.to_string().contains("absent.ko"), "{error}");
    }

    #[test]
    fn dependencies_are_the_names_behind_depends() {
        let information = b"license=GPL\0depends=virtio,net-failover\0name=x\0";
        assert_eq!(depends(information), ["virtio", "net_failover"]);
        assert!(depends(b"license=GPL\0depends=\0").is_empty());
    }
}
