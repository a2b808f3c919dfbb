//! Devices that are plugged while the machine runs, when the kernel on it asks for them.
//!
//! The emulated AMD unit takes the bus number that a device has when it is plugged for the device's
//! for good. So on such a machine everything below a root port comes after firmware, or the kernel,
//! has given the bridge above it its bus number.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use handoff_abi::RequesterId;
use serde_json::{Value, json};

use super::devices::Device;
use crate::qmp::Qmp;

/// Where a device is, as the emulator says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    /// Its bus.
    bus: u64,
    /// Its slot there, and its function in it.
    slot: (u64, u64),
    /// The bus behind it, if it is a bridge; 0 as long as that has no number.
    secondary: Option<u64>,
}

impl Place {
    /// Its own requester id, if it can have one.
    fn requester(self) -> Option<RequesterId> {
        let part = |value: u64| u8::try_from(value).ok();
        RequesterId::new(part(self.bus)?, part(self.slot.0)?, part(self.slot.1)?)
    }
}

/// The requester ids of the devices that have names, as the emulator has them.
pub(super) fn requesters(qmp: &mut Qmp) -> Result<BTreeMap<String, RequesterId>> {
    let places = places(&qmp.execute("query-pci", json!({}))?);
    Ok(places
        .into_iter()
        .filter_map(|(name, place)| Some((name, place.requester()?)))
        .collect())
}

/// Devices that wait to be plugged, in their order.
#[derive(Debug, Default)]
pub(super) struct Plugs {
    waiting: Vec<Device>,
}

impl Plugs {
    /// These, none of them plugged yet.
    pub(super) fn new(waiting: Vec<Device>) -> Self {
        Self { waiting }
    }

    /// The names of those that still wait.
    pub(super) fn waiting(&self) -> Vec<&str> {
        self.waiting.iter().map(Device::id).collect()
    }

    /// Plugs whatever lies on a bus that has a number by now, and what is below it, and says how
    /// many those were. Each function is there afterwards, on the bus that it was meant for.
    pub(super) fn round(&mut self, qmp: &mut Qmp) -> Result<usize> {
        let before = places(&qmp.execute("query-pci", json!({}))?);
        let behind = |device: &Device| {
            let bridge = before.get(device.bus())?;
            bridge.secondary.filter(|&bus| bus != 0)
        };
        let mut ready: Vec<Device> = Vec::new();
        for device in std::mem::take(&mut self.waiting) {
            let is_ready = match device.parent() {
                Some(parent) => ready.iter().any(|device| device.id() == parent),
                None => behind(&device).is_some(),
            };
            let list = if is_ready {
                &mut ready
            } else {
                &mut self.waiting
            };
            list.push(device);
        }
        for device in &ready {
            qmp.execute("device_add", device.arguments())
                .with_context(|| format!("{} cannot be plugged", device.id()))?;
        }
        let after = places(&qmp.execute("query-pci", json!({}))?);
        for device in ready.iter().filter(|device| device.parent().is_none()) {
            let place = after.get(device.id());
            ensure!(
                place.map(|place| place.bus) == behind(device),
                "{} was plugged below {} and is at {place:?}",
                device.id(),
                device.bus()
            );
        }
        Ok(ready.len())
    }
}

/// The devices in an answer to `query-pci` that have names.
fn places(told: &Value) -> BTreeMap<String, Place> {
    let mut found = BTreeMap::new();
    for bus in told.as_array().into_iter().flatten() {
        collect(&bus["devices"], &mut found);
    }
    found
}

fn collect(devices: &Value, found: &mut BTreeMap<String, Place>) {
    for device in devices.as_array().into_iter().flatten() {
        let bridge = &device["pci_bridge"];
        if let (Some(id), Some(bus), Some(slot), Some(function)) = (
            device["qdev_id"].as_str().filter(|id| !id.is_empty()),
            device["bus"].as_u64(),
            device["slot"].as_u64(),
            device["function"].as_u64(),
        ) {
            let place = Place {
                bus,
                slot: (slot, function),
                secondary: bridge["bus"]["secondary"].as_u64(),
            };
            found.insert(id.to_owned(), place);
        }
        collect(&bridge["devices"], found);
    }
}

#[cfg(test)]
mod tests {
    use super::{Plugs, places};
    use crate::machine::devices::{Devices, Edu};
    use crate::qmp::Qmp;
    use serde_json::{Value, json};
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;

    /// An emulator with `devices` on the bus `behind` the only port; it plugs what it is told to, but
    /// for `deaf`, which it only says it has. Its bridge gets a bus number after the first round.
    fn emulator(deaf: Option<&'static str>) -> Qmp {
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut out = theirs.try_clone().unwrap();
            writeln!(out, "{}", json!({"QMP": {}})).unwrap();
            let mut plugged: Vec<(String, String)> = Vec::new();
            let mut rounds = 0;
            for line in BufReader::new(theirs).lines() {
                let command: Value = serde_json::from_str(&line.unwrap()).unwrap();
                let mut told = json!({});
                match command["execute"].as_str().unwrap() {
                    "device_add" => {
                        let word = |key: &str| command["arguments"][key].as_str().unwrap().into();
                        plugged.push((word("id"), word("bus")));
                    }
                    "query-pci" => {
                        rounds += 1;
                        // Two questions in each round.
                        let second = if rounds > 2 { 2 } else { 0 };
                        told = bus(&plugged, deaf, second);
                    }
                    _ => {}
                }
                writeln!(out, "{}", json!({"return": told, "id": command["id"]})).unwrap();
            }
        });
        Qmp::new(ours, &std::env::temp_dir()).unwrap()
    }

    fn bus(plugged: &[(String, String)], deaf: Option<&str>, second: u64) -> Value {
        let on = |bridge: &str, bus: u64| -> Vec<Value> {
            plugged
                .iter()
                .filter(|(id, on)| on == bridge && Some(id.as_str()) != deaf)
                .map(|(id, _)| json!({"qdev_id": id, "bus": bus, "slot": 2, "function": 0}))
                .collect()
        };
        let mut below = on("port3", 1);
        for device in &mut below {
            if device["qdev_id"] == "bridge1" {
                device["pci_bridge"] =
                    json!({"bus": {"secondary": second}, "devices": on("bridge1", second)});
            }
        }
        json!([{"bus": 0, "devices": [
            {"qdev_id": "", "bus": 0, "slot": 0, "function": 0},
            {"qdev_id": "port3", "bus": 0, "slot": 4, "function": 0,
             "pci_bridge": {"bus": {"secondary": 1}, "devices": below}},
        ]}])
    }

    fn pair() -> Plugs {
        let mut below = Devices::of(&[Edu::Pair], false, false, true).below;
        // The network device and the disk.
        below.drain(..2);
        Plugs::new(below)
    }

    #[test]
    fn what_is_behind_a_bridge_waits_until_the_bridge_has_its_number() {
        let mut qmp = emulator(None);
        let mut plugs = pair();
        assert_eq!(plugs.round(&mut qmp).unwrap(), 1);
        assert_eq!(plugs.waiting(), ["edu1a", "edu1b"]);
        assert_eq!(plugs.round(&mut qmp).unwrap(), 2);
        assert!(plugs.waiting().is_empty());
    }

    #[test]
    fn a_device_that_is_not_where_it_was_plugged_is_an_error() {
        let mut qmp = emulator(Some("bridge1"));
        let error = pair().round(&mut qmp).unwrap_err().to_string();
        assert!(error.contains("bridge1"), "{error}");
    }

    #[test]
    fn devices_are_found_behind_bridges() {
        let told = bus(
            &[
                ("bridge1".into(), "port3".into()),
                ("edu1a".into(), "bridge1".into()),
            ],
            None,
            2,
        );
        let found = places(&told);
        assert_eq!(found.len(), 3);
        let secondary = |name: &str| found[name].secondary;
        assert_eq!(
            (secondary("port3"), secondary("bridge1")),
            (Some(1), Some(2))
        );
        assert_eq!(secondary("edu1a"), None);
        let requester = |name: &str| found[name].requester().map(|id| id.0);
        assert_eq!(requester("port3"), Some(0x20));
        assert_eq!(requester("edu1a"), Some(0x210));
    }
}
