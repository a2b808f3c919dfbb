//! Affinities of the smaller machine: SRAT and SLIT cut to its processors and memory.
//!
//! Proximity domains are numbered anew, from 0 without gaps, in the order of their old numbers.

use handoff_abi::{ApicId, PhysAddr, PhysRange};
use zerocopy::FromZeros;

use super::output::Output;
use super::{PartitionError, PartitionView};
use crate::Capture;
use crate::table::raw::{SlitRaw, SratApicRaw, SratMemoryRaw, SratRaw, SratX2ApicRaw};
use crate::table::{
    Affinity, MemoryAffinity, MemoryAffinityFlags, Signature, Slit, Srat, srat_kind,
};

/// The most proximity domains that one partition may span.
const MAX_NODES: usize = 64;
/// The distance of a domain to itself, and a customary one to any other (ACPI 6.5, section
/// 5.2.17), where the captured matrix lacks a domain.
const LOCAL: u8 = 10;
const REMOTE: u8 = 20;

/// The old numbers of the domains the partition uses, sorted.
struct Nodes {
    domains: [u32; MAX_NODES],
    count: usize,
}

impl Nodes {
    fn used(&self) -> &[u32] {
        self.domains.get(..self.count).unwrap_or(&[])
    }

    fn add(&mut self, domain: u32) -> Result<(), PartitionError> {
        let Err(at) = self.used().binary_search(&domain) else {
            return Ok(());
        };
        let end = self.count.saturating_add(1);
        let tail = self
            .domains
            .get_mut(at..end)
            .ok_or(PartitionError::TooManyNodes { limit: MAX_NODES })?;
        tail.rotate_right(1);
        if let Some(first) = tail.first_mut() {
            *first = domain;
        }
        self.count = end;
        Ok(())
    }

    /// The new number.
    fn number(&self, domain: u32) -> u32 {
        let at = self.used().binary_search(&domain).unwrap_or(0);
        u32::try_from(at).unwrap_or(0)
    }
}

/// The domain of a processor.
fn domain_of(srat: &Srat<'_>, cpu: ApicId) -> Option<(u32, bool)> {
    srat.entries().flatten().find_map(|entry| match entry {
        Affinity::Processor {
            apic_id,
            domain,
            enabled: true,
            x2apic,
            ..
        } if apic_id == cpu => Some((domain, x2apic)),
        _ => None,
    })
}

/// The pieces of the partition's memory that the table gives a domain to.
fn memory_of<'v>(
    srat: &Srat<'v>,
    memory: &'v [PhysRange],
) -> impl Iterator<Item = (u32, PhysRange, MemoryAffinityFlags)> + use<'v> {
    let affinities = srat.entries().flatten().filter_map(|entry| match entry {
        Affinity::Memory(affinity) if affinity.flags.contains(MemoryAffinityFlags::ENABLED) => {
            Some(affinity)
        }
        _ => None,
    });
    affinities.flat_map(
        move |MemoryAffinity {
                  domain,
                  range,
                  flags,
              }| {
            memory
                .iter()
                .map(move |own| own.intersection(range))
                .filter(|piece| !piece.is_empty())
                .map(move |piece| (domain, piece, flags))
        },
    )
}

/// Writes SRAT and SLIT, as far as they were captured and say something of this partition.
pub(super) fn write(
    view: &PartitionView<'_>,
    capture: &Capture<'_>,
    output: &mut Output<'_>,
) -> Result<(Option<PhysAddr>, Option<PhysAddr>), PartitionError> {
    // A table that cannot be read is left out: a kernel can do without affinities.
    let Some(Ok(srat)) = capture.srat() else {
        return Ok((None, None));
    };
    let mut nodes = Nodes {
        domains: [0; MAX_NODES],
        count: 0,
    };
    for &cpu in view.cpus {
        if let Some((domain, _)) = domain_of(&srat, cpu) {
            nodes.add(domain)?;
        }
    }
    if nodes.count == 0 {
        return Ok((None, None));
    }
    for (domain, _, _) in memory_of(&srat, view.memory) {
        nodes.add(domain)?;
    }
    let srat = write_srat(view, &srat, &nodes, output)?;
    let slit = match capture.slit() {
        Some(Ok(slit)) => Some(write_slit(&slit, &nodes, output)?),
        _ => None,
    };
    Ok((Some(srat), slit))
}

fn write_srat(
    view: &PartitionView<'_>,
    srat: &Srat<'_>,
    nodes: &Nodes,
    output: &mut Output<'_>,
) -> Result<PhysAddr, PartitionError> {
    let mut fixed = SratRaw::new_zeroed();
    fixed.one = 1.into();
    output.table(Signature::SRAT, 3, &fixed, |body| {
        for &cpu in view.cpus {
            let Some((domain, x2apic)) = domain_of(srat, cpu) else {
                continue;
            };
            let domain = nodes.number(domain);
            let [low, high @ ..] = domain.to_le_bytes();
            match u8::try_from(cpu.0) {
                Ok(apic_id) if !x2apic => body.push(&SratApicRaw {
                    kind: srat_kind::LOCAL_APIC,
                    length: size_of::<SratApicRaw>() as u8,
                    domain_low: low,
                    apic_id,
                    flags: 1.into(),
                    sapic_eid: 0,
                    domain_high: high,
                    clock_domain: 0.into(),
                })?,
                _ => body.push(&SratX2ApicRaw {
                    kind: srat_kind::LOCAL_X2APIC,
                    length: size_of::<SratX2ApicRaw>() as u8,
                    reserved1: 0.into(),
                    domain: domain.into(),
                    apic_id: cpu.0.into(),
                    flags: 1.into(),
                    clock_domain: 0.into(),
                    reserved2: 0.into(),
                })?,
            }
        }
        for (domain, piece, flags) in memory_of(srat, view.memory) {
            // No memory of the partition comes or goes by hot plug.
            let flags = flags & (MemoryAffinityFlags::ENABLED | MemoryAffinityFlags::NON_VOLATILE);
            body.push(&SratMemoryRaw {
                kind: srat_kind::MEMORY,
                length: size_of::<SratMemoryRaw>() as u8,
                domain: nodes.number(domain).into(),
                reserved1: 0.into(),
                base: piece.base().0.into(),
                size: piece.length().into(),
                reserved2: 0.into(),
                flags: flags.bits().into(),
                reserved3: 0.into(),
            })?;
        }
        Ok(())
    })
}

fn write_slit(
    slit: &Slit<'_>,
    nodes: &Nodes,
    output: &mut Output<'_>,
) -> Result<PhysAddr, PartitionError> {
    let mut fixed = SlitRaw::new_zeroed();
    fixed.localities = (nodes.count as u64).into();
    output.table(Signature::SLIT, 1, &fixed, |body| {
        for &from in nodes.used() {
            for &to in nodes.used() {
                let missing = if from == to { LOCAL } else { REMOTE };
                body.push(&slit.distance(from, to).unwrap_or(missing))?;
            }
        }
        Ok(())
    })
}
