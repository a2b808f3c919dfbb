//! What the golden blobs are written from. Nothing here is ever changed: a new version of the wire
//! format adds blobs of its own. No two fields of a structure have the same value, so that two that
//! change places are noticed.

use handoff_abi::*;

/// Where every golden blob says that it was written.
pub(crate) const AT: PhysAddr = PhysAddr(0x0123_4000);

/// A reader of everything this crate reads.
pub(crate) const SPEAKS: Speaks = Speaks {
    newest: AbiVersion::NEWEST,
    oldest: AbiVersion::OLDEST,
    features: Features::ADOPT_DEVICES.union(Features::VT_D),
};

/// A kind that no version will ever give a meaning to: the golden blobs hold it as unknown.
pub(crate) const UNKNOWN: u32 = 0x7fff_0001;

/// A golden blob: its name in `tests/golden`, and what is written into it.
pub(crate) struct Blob {
    pub(crate) name: &'static str,
    pub(crate) version: AbiVersion,
    fill: fn(&mut Writer<'_>) -> Result<(), WriteError>,
}

impl Blob {
    /// The bytes that today's writer makes of it.
    pub(crate) fn write(&self) -> Vec<u8> {
        // Not zeroed: what the writer leaves alone would show.
        let mut buffer = [0xa5; 8192];
        let envelope = Envelope {
            version: self.version,
            self_address: AT,
            features: Features::VT_D
                .union(Features::STANDBY)
                .union(Features::from_bits_retain(1 << 60)),
            required: Features::ADOPT_DEVICES,
            epoch: 0x0102_0304_0506_0708,
            writer: PartitionId(0x1112),
            reader: PartitionId(0x2122),
            swaps: 0x3132_3334_3536_3738,
        };
        let mut writer = Writer::new(&mut buffer, envelope).unwrap();
        (self.fill)(&mut writer).unwrap();
        writer.finish().to_vec()
    }
}

const fn blob(
    name: &'static str,
    version: AbiVersion,
    fill: fn(&mut Writer<'_>) -> Result<(), WriteError>,
) -> Blob {
    Blob {
        name,
        version,
        fill,
    }
}

/// Every golden blob that is kept.
pub(crate) const BLOBS: [Blob; 10] = [
    blob("0.1-minimal", AbiVersion::V0_1, |_| Ok(())),
    blob("0.1-full", AbiVersion::V0_1, first_version),
    blob("0.1-unknown-optional", AbiVersion::V0_1, unknown_optional),
    blob("0.1-unknown-critical", AbiVersion::V0_1, unknown_critical),
    blob("0.1-longer-records", AbiVersion::V0_1, longer_records),
    blob("0.2-minimal", AbiVersion::V0_2, |_| Ok(())),
    blob("0.2-full", AbiVersion::V0_2, second_version),
    blob("0.2-unknown-optional", AbiVersion::V0_2, unknown_optional),
    blob("0.2-unknown-critical", AbiVersion::V0_2, unknown_critical),
    blob("0.2-longer-records", AbiVersion::V0_2, longer_records),
];

const CLOCK: Clock = Clock {
    tsc_hertz: 2_400_000_000,
};

const CPU: Cpu = Cpu {
    apic_id: ApicId(0x0102_0304),
    acpi_uid: 0x1112_1314,
};

fn unknown_optional(writer: &mut Writer<'_>) -> Result<(), WriteError> {
    writer.critical(&CLOCK)?;
    writer.append(UNKNOWN, 0, b"from later on")?;
    writer.append(UNKNOWN + 1, 0, &[])?;
    writer.critical(&CPU)
}

fn unknown_critical(writer: &mut Writer<'_>) -> Result<(), WriteError> {
    writer.critical(&CLOCK)?;
    writer.append(UNKNOWN, RecordHeader::CRITICAL, b"from later on")?;
    writer.critical(&CPU)
}

/// Two records as a later minor version may write them: with fields appended.
fn longer_records(writer: &mut Writer<'_>) -> Result<(), WriteError> {
    let mut payload = CLOCK.tsc_hertz.to_le_bytes().to_vec();
    payload.extend([0xee; 8]);
    writer.append(kind::CLOCK, RecordHeader::CRITICAL, &payload)?;
    let mut payload = [0xdd; 24];
    payload[..4].copy_from_slice(&CPU.apic_id.0.to_le_bytes());
    payload[4..8].copy_from_slice(&CPU.acpi_uid.to_le_bytes());
    writer.append(kind::CPU, RecordHeader::CRITICAL, &payload)
}

fn domains(first: u64) -> [VtdDomain; 64] {
    std::array::from_fn(|index| VtdDomain {
        root: first + 0x1000 * index as u64,
        id: 0x100 + index as u32,
        attached: 3 * index as u32,
    })
}

/// A record of every kind that version 0.1 has.
fn first_version(writer: &mut Writer<'_>) -> Result<(), WriteError> {
    let function = PciFunction {
        segment: 0x0102,
        requester: RequesterId(0x0348),
    };
    for (index, purpose) in (purpose::HANDOFF..=purpose::FILTERED).enumerate() {
        let index = index as u64;
        writer.critical(&Extent {
            purpose,
            reserved: 0,
            base: PhysAddr(0x1_2345_6000 + 0x10_0000 * index),
            length: 0x1000 * (index + 1),
        })?;
    }
    writer.critical(&CPU)?;
    writer.critical(&Cpu {
        apic_id: ApicId(0x0506_0708),
        acpi_uid: 0x1516_1718,
    })?;
    writer.critical(&Memory {
        base: PhysAddr(0x0102_0304_0506_0000),
        length: 0x1112_1314_1516_0000,
        kind: 0x2122_2324,
        reserved: 0,
    })?;
    writer.critical(&Function {
        function,
        domain: DomainId(0x1112),
        workload: 0x2122,
        reserved: 0,
    })?;
    writer.critical(&InterruptHandle {
        function,
        unit: 0x1112,
        handle: 0x2122,
        message_address: PhysAddr(0x3132_3334_3536_3738),
        message_data: 0x4142_4344,
        destination: ApicId(0x5152_5354),
        vector: 0x6162_6364,
        message: 0x7172_7374,
    })?;
    writer.critical(&Firmware {
        rsdp: PhysAddr(0x0102_0304_0506_0708),
        smbios: PhysAddr(0x1112_1314_1516_1718),
    })?;
    writer.critical(&VtdUnit {
        register_base: 0x0102_0304_0506_0708,
        register_length: 0x1112_1314_1516_1718,
        capability: 0x2122_2324_2526_2728,
        extended_capability: 0x3132_3334_3536_3738,
        root_table_address: 0x4142_4344_4546_4748,
        queue_address: 0x5152_5354_5556_5758,
        interrupt_table_address: 0x6162_6364_6566_6768,
        status_address: 0x7172_7374_7576_7778,
        arena_base: 0x8182_8384_8586_8788,
        arena_length: 0x9192_9394_9596_9798,
        global_status: 0xa1a2_a3a4,
        queue_tail: 0xb1b2_b3b4,
        sequence: 0xc1c2_c3c4,
        levels: 0xd1d2_d3d4,
        host_address_bits: 0xe1e2_e3e4,
        domain_count: 0xf1f2_f3f4,
        domains: domains(0x0a00_0000),
    })?;
    writer.critical(&Workload {
        id: WorkloadId(0x0102),
        domain: DomainId(0x1112),
        ledger_slot: 0x2122_2324,
        base: PhysAddr(0x3132_3334_3536_3738),
        length: 0x4142_4344_4546_4748,
        layout: 0x5152_5354_5556_5758,
        layout_version: 0x6162_6364_6566_6768,
    })?;
    writer.critical(&Console {
        port: 0x02f8,
        baud: 115_200,
    })?;
    writer.critical(&CLOCK)?;
    writer.critical(&Ecam {
        base: PhysAddr(0x0102_0304_0506_0708),
        segment: 0x1112,
        first_bus: 0x21,
        last_bus: 0x31,
        reserved: 0,
    })?;
    writer.critical(&Domain {
        domain: DomainId(0x0102),
        reserved: 0,
        owner: Owner::Workload(WorkloadId(0x1112)).to_wire(),
    })?;
    writer.optional(&Platform {
        bootstrap: ApicId(0x0102_0304),
        reserved: 0,
    })
}

/// A record of every kind that version 0.2 has.
fn second_version(writer: &mut Writer<'_>) -> Result<(), WriteError> {
    first_version(writer)?;
    writer.optional(&History {
        frozen_at: 0x0102_0304_0506_0708,
        committed_at: 0x1112_1314_1516_1718,
        previous: PartitionId(0x2122),
        reserved: [0; 3],
        swap: 0x3132_3334_3536_3738,
    })?;
    writer.critical(&AmdViState {
        register_base: 0x0102_0304_0506_0708,
        register_length: 0x1112_1314_1516_1718,
        extended_feature: 0x2122_2324_2526_2728,
        control: 0x3132_3334_3536_3738,
        device_table_base: 0x4142_4344_4546_4748,
        command_buffer_base: 0x5152_5354_5556_5758,
        event_log_base: 0x6162_6364_6566_6768,
        status_address: 0x7172_7374_7576_7778,
        arena_base: 0x8182_8384_8586_8788,
        arena_length: 0x9192_9394_9596_9798,
        sequence: 0xa1a2_a3a4_a5a6_a7a8,
        capability_header: 0xb1b2_b3b4,
        ivhd_flags: 0xc1c2_c3c4,
        command_tail: 0xd1d2_d3d4,
        levels: 0xe1e2_e3e4,
        host_address_bits: 0xf1f2_f3f4,
        domain_count: 0x0a0b_0c0d,
        domains: domains(0x0b00_0000),
    })
}
