//! Whether a view makes sense, before anything is written.

use handoff_abi::PhysRange;

use super::{HostBridge, PartitionError, PartitionView, Window, WindowKind};
use crate::table::Madt;

/// Host bridges are named by two hexadecimal digits.
pub(super) const MAX_BRIDGES: usize = 256;

impl PartitionView<'_> {
    pub(super) fn check(&self, madt: &Madt<'_>) -> Result<(), PartitionError> {
        self.check_cpus(madt)?;
        self.check_memory()?;
        if self.bridges.len() > MAX_BRIDGES {
            return Err(PartitionError::TooManyBridges { limit: MAX_BRIDGES });
        }
        for (place, bridge) in self.bridges.iter().enumerate() {
            self.check_buses(place, bridge)?;
            for (number, &window) in bridge.windows.iter().enumerate() {
                self.check_window(place, number, window)?;
            }
        }
        Ok(())
    }

    fn check_cpus(&self, madt: &Madt<'_>) -> Result<(), PartitionError> {
        if self.cpus.is_empty() {
            return Err(PartitionError::NoCpu);
        }
        for (place, &id) in self.cpus.iter().enumerate() {
            if self.cpus.iter().take(place).any(|&other| other == id) {
                return Err(PartitionError::DuplicateCpu(id));
            }
            madt.processor(id).ok_or(PartitionError::UnknownCpu(id))?;
        }
        Ok(())
    }

    fn check_memory(&self) -> Result<(), PartitionError> {
        for (place, &second) in self.memory.iter().enumerate() {
            let earlier = self.memory.iter().take(place);
            if let Some(first) = earlier.copied().find(|first| first.overlaps(second)) {
                return Err(PartitionError::MemoryOverlap { first, second });
            }
        }
        Ok(())
    }

    fn check_buses(&self, place: usize, bridge: &HostBridge<'_>) -> Result<(), PartitionError> {
        bridge
            .config_space()
            .ok_or(PartitionError::Buses { bridge: place })?;
        let clash = self.bridges.iter().take(place).position(|other| {
            other.segment == bridge.segment
                && other.first_bus <= bridge.last_bus
                && bridge.first_bus <= other.last_bus
        });
        match clash {
            Some(first) => Err(PartitionError::BusOverlap {
                first,
                second: place,
            }),
            None => Ok(()),
        }
    }

    fn check_window(
        &self,
        bridge: usize,
        number: usize,
        window: Window,
    ) -> Result<(), PartitionError> {
        let limit = match window.kind {
            WindowKind::Io => 1 << 16,
            WindowKind::Memory32 => 1 << 32,
            WindowKind::Memory64Prefetchable => u64::MAX,
        };
        if window.range.is_empty() || window.range.end().0 > limit {
            return Err(PartitionError::Window { bridge, window });
        }
        match self.overlap(bridge, number, window) {
            Some(with) => Err(PartitionError::WindowOverlap {
                bridge,
                window,
                with,
            }),
            None => Ok(()),
        }
    }

    /// What overlaps window `number` of host bridge `bridge`: an earlier window of the same space,
    /// or, for memory, the partition's own memory or configuration space.
    fn overlap(&self, bridge: usize, number: usize, window: Window) -> Option<PhysRange> {
        let is_io = window.kind == WindowKind::Io;
        let earlier = self.bridges.iter().enumerate().flat_map(|(place, other)| {
            let count = match place.cmp(&bridge) {
                core::cmp::Ordering::Less => other.windows.len(),
                core::cmp::Ordering::Equal => number,
                core::cmp::Ordering::Greater => 0,
            };
            other.windows.iter().take(count)
        });
        let windows = earlier
            .filter(|other| (other.kind == WindowKind::Io) == is_io)
            .map(|other| other.range);
        let memory = self.memory.iter().copied();
        let config = self.bridges.iter().filter_map(HostBridge::config_space);
        let others = memory.chain(config).filter(|_| !is_io);
        windows
            .chain(others)
            .find(|other| other.overlaps(window.range))
    }
}
