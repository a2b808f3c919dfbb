//! What is left when a session is over: everything that was said, recorded and counted.

use anyhow::Result;

use super::{Session, nanoseconds};
use crate::client::{LoadReport, Snapshot};
use crate::console::Console;
use crate::event::Line;
use crate::machine::{Files, Iommu};
use crate::pcap::Packets;
use crate::report::{Attempt, Reclaimed, Swap, Version};
use crate::trace::Trace;

/// The evidence.
pub(crate) struct Evidence {
    /// The remapping hardware of the machine.
    pub(crate) iommu: Iommu,
    /// The emulator's trace.
    pub(crate) trace: Trace,
    /// The emulator's packets.
    pub(crate) packets: Packets,
    /// The client's books, closed.
    pub(crate) load: LoadReport,
    /// The client's books at each hand-over's command.
    pub(crate) books: Vec<Snapshot>,
    /// Attempts to get through the fence, with the time between which they were made.
    pub(crate) attempts: Vec<(Attempt, (u64, u64))>,
    /// Everything that was said on each console.
    pub(crate) said: [Vec<Line>; 2],
    /// Transfers of the service, with what was known at the time.
    pub(crate) swaps: Vec<Swap>,
    /// Versions seen.
    pub(crate) versions: Vec<Version>,
    /// Bytes of the largest handoff.
    pub(crate) handoff_bytes: u64,
    /// The last reclaim.
    pub(crate) reclaimed: Option<Reclaimed>,
    /// From when on the first kernel served, nanoseconds since 1970.
    pub(crate) began: u64,
    /// How often the machine went back to its firmware.
    pub(crate) reboots: u64,
    /// The machine's files.
    pub(crate) files: Files,
}

impl Session {
    /// Ends the load and then the machine, and reads what they left.
    pub(crate) fn close(self) -> Result<Evidence> {
        let load = self.load.finish()?;
        let resets = self.machine.resets() as u64;
        let said = self.machine.consoles.each_ref().map(Console::history);
        let cpu_threads = self.machine.cpu_threads.clone();
        let iommu = self.machine.iommu;
        let files = self.machine.quit()?;
        Ok(Evidence {
            iommu,
            trace: Trace::read(&files.trace(), &cpu_threads)?,
            packets: Packets::read(&files.packets())?,
            load,
            books: self.books,
            attempts: self.attempts,
            said,
            swaps: self.swaps,
            versions: self.versions,
            handoff_bytes: self.handoff_bytes,
            reclaimed: self.reclaimed,
            began: nanoseconds(self.began),
            reboots: resets.max(files.firmware_reentries()?),
            files,
        })
    }
}
