//! Machines that nobody has looked at yet. `BATON_STRANGERS` names a directory that has one for each
//! machine, with its tables as files: what `acpidump -b` and `acpixtract -a` write.

use std::path::Path;
use std::time::Duration;

use crate::corpus::{Entry, assemble, say};
use crate::machines::divide_at_random;
use crate::work::reading;

fn sets() -> Option<Vec<(String, Vec<Entry>)>> {
    let Some(root) = std::env::var_os("BATON_STRANGERS") else {
        say("strangers: SKIPPED, BATON_STRANGERS names no directory of machines");
        return None;
    };
    let listed = |directory: &Path| {
        let entries = std::fs::read_dir(directory).unwrap();
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    };
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let machines = listed(Path::new(&root)).into_iter();
    let sets = machines.filter(|path| path.is_dir()).map(|path| {
        let machine = name(&path);
        let files = listed(&path).into_iter().filter(|path| path.is_file());
        let tables = files.map(|path| {
            let bytes = std::fs::read(&path).unwrap();
            Entry::of_stranger(&machine, format!("{machine}/{}", name(&path)), bytes)
        });
        let tables = tables.collect();
        (machine, tables)
    });
    Some(sets.collect())
}

#[test]
fn strangers_are_read_in_time_and_their_parts_are_the_machine() {
    let Some(sets) = sets() else { return };
    let (mut files, mut bytes, mut worst) = (0, 0, (Duration::ZERO, String::new()));
    let (mut machines, mut written) = (0, 0);
    for (place, (machine, entries)) in sets.iter().enumerate() {
        for entry in entries {
            let each = reading(&entry.name, &entry.bytes);
            if each > worst.0 {
                worst = (each, entry.name.clone());
            }
            files += 1;
            bytes += entry.bytes.len();
        }
        let tables: Vec<_> = entries.iter().collect();
        if let Some((memory, _)) = assemble(place, &tables)
            && let Some(parts) = divide_at_random(machine, &memory, 12)
        {
            machines += 1;
            written += parts;
        }
    }
    say(&format!(
        "strangers: {} sets with {files} tables of {bytes} bytes; {machines} machines with \
         processors, cut into {written} partitions; slowest {:?} for a KiB ({})",
        sets.len(),
        worst.0,
        worst.1
    ));
    assert!(files > 0, "BATON_STRANGERS has no table");
}
