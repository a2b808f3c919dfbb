//! Layout and meaning as text: what the golden files hold and the C program prints as well.

use std::fmt::Write;
use std::mem::{offset_of, size_of};

use handoff_abi::*;
use zerocopy::IntoBytes;

/// A field of a structure, in bytes.
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) offset: usize,
    pub(crate) size: usize,
}

/// A structure of the wire format, by its name in C.
pub(crate) struct Structure {
    pub(crate) name: &'static str,
    pub(crate) size: usize,
    pub(crate) fields: Vec<Field>,
}

fn size_behind<S, F>(_: fn(&S) -> &F) -> usize {
    size_of::<F>()
}

macro_rules! structures {
    ($( $name:ident = $type:ident { $( $field:ident ),* } )*) => {
        /// Every structure of the wire format.
        pub(crate) fn structures() -> Vec<Structure> {
            vec![$({
                // Without `..`: a field that is not listed here does not compile.
                let _complete = |value: &$type| { let $type { $( $field: _ ),* } = value; };
                Structure {
                    name: stringify!($name),
                    size: size_of::<$type>(),
                    fields: vec![$( Field {
                        name: stringify!($field),
                        offset: offset_of!($type, $field),
                        size: size_behind(|value: &$type| &value.$field),
                    } ),*],
                }
            }),*]
        }
    };
}

structures! {
    version = AbiVersion { major, minor }
    header = Header {
        magic, version, header_length, length, self_address, features, required, record_count,
        checksum, epoch, writer, reader, reserved, swaps
    }
    record = RecordHeader { kind, flags, length, reserved }
    pci_function = PciFunction { segment, requester }
    extent = Extent { purpose, reserved, base, length }
    cpu = Cpu { apic_id, acpi_uid }
    memory = Memory { base, length, kind, reserved }
    function = Function { function, domain, workload, reserved }
    interrupt_handle = InterruptHandle {
        function, unit, handle, message_address, message_data, destination, vector, message
    }
    firmware = Firmware { rsdp, smbios }
    unit_domain = VtdDomain { root, id, attached }
    vtd_unit = VtdUnit {
        register_base, register_length, capability, extended_capability, root_table_address,
        queue_address, interrupt_table_address, status_address, arena_base, arena_length,
        global_status, queue_tail, sequence, levels, host_address_bits, domain_count, domains
    }
    amd_vi_unit = AmdViState {
        register_base, register_length, extended_feature, control, device_table_base,
        command_buffer_base, event_log_base, status_address, arena_base, arena_length, sequence,
        capability_header, ivhd_flags, command_tail, levels, host_address_bits, domain_count,
        domains
    }
    workload = Workload { id, domain, ledger_slot, base, length, layout, layout_version }
    console = Console { port, baud }
    clock = Clock { tsc_hertz }
    ecam = Ecam { base, segment, first_bus, last_bus, reserved }
    history = History { frozen_at, committed_at, previous, reserved, swap }
    domain = Domain { domain, reserved, owner }
    platform = Platform { bootstrap, reserved }
    ledger_slot = LedgerSlot { kind, parent, base, length, word }
    ledger = Ledger { magic, stewardship, used, reserved, slots }
    partition_status = PartitionStatus {
        partition, state, heartbeat, version, failure, features, detail, since, reserved
    }
    mailbox = Mailbox { head, reserved, tail, reserved_too, slots }
    exchange = Exchange { status, mailboxes }
    park_slot = ParkSlot {
        word, entry, page_table, stack, argument, nmi_count, machine_check_count, stack_area
    }
}

/// Size of every structure; offset and size of every field.
pub(crate) fn layout() -> String {
    let mut text = String::new();
    for structure in structures() {
        writeln!(text, "{} {}", structure.name, structure.size).unwrap();
        for field in structure.fields {
            let Field { name, offset, size } = field;
            writeln!(text, "{}.{name} {offset} {size}", structure.name).unwrap();
        }
    }
    text
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn values(text: &mut String, name: &str, bytes: &[u8]) {
    let structure = structures()
        .into_iter()
        .find(|known| known.name == name)
        .unwrap();
    for field in structure.fields {
        let value = &bytes[field.offset..field.offset + field.size];
        let name = format!("{name}.{}", field.name);
        match field.size {
            1 | 2 | 4 | 8 => writeln!(text, "  {name} {:#x}", number(value)).unwrap(),
            _ if field.name == "domains" => {
                for (index, domain) in value.chunks(size_of::<VtdDomain>()).enumerate() {
                    writeln!(
                        text,
                        "  {name}[{index}] {:#x} {:#x} {:#x}",
                        number(&domain[..8]),
                        number(&domain[8..12]),
                        number(&domain[12..])
                    )
                    .unwrap();
                }
            }
            _ => writeln!(text, "  {name} {}", hex(value)).unwrap(),
        }
    }
}

/// The value of the `nth` record of type `R`, as bytes.
fn typed<R: Record>(handoff: &Handoff<'_>, nth: usize) -> Vec<u8> {
    handoff.records::<R>().nth(nth).unwrap().as_bytes().to_vec()
}

/// What a reader takes from a handoff: every field of the header and of every record, or why it
/// refuses.
pub(crate) fn meaning(read: &Result<Handoff<'_>, HandoffError>) -> String {
    let handoff = match read {
        Ok(handoff) => handoff,
        Err(error) => return format!("refused: {error}\n"),
    };
    let mut text = String::from("header\n");
    values(&mut text, "header", handoff.header().as_bytes());
    let mut seen = std::collections::BTreeMap::<u32, usize>::new();
    for raw in handoff.raw_records() {
        let RecordHeader {
            kind,
            flags,
            length,
            reserved,
        } = raw.header;
        writeln!(
            text,
            "record at {:#x}: kind {kind:#x} flags {flags:#x} length {length:#x} reserved {reserved:#x}",
            raw.offset
        )
        .unwrap();
        let nth = seen.entry(kind).or_default();
        macro_rules! records {
            ($( $kind:ident $name:literal $type:ident, )*) => {
                match kind {
                    $( kind::$kind => Some(($name, typed::<$type>(handoff, *nth))), )*
                    _ => None,
                }
            };
        }
        use handoff_abi::kind;
        let known = records! {
            EXTENT "extent" Extent,
            CPU "cpu" Cpu,
            MEMORY "memory" Memory,
            FUNCTION "function" Function,
            INTERRUPT_HANDLE "interrupt_handle" InterruptHandle,
            FIRMWARE "firmware" Firmware,
            VTD_UNIT "vtd_unit" VtdUnit,
            WORKLOAD "workload" Workload,
            CONSOLE "console" Console,
            CLOCK "clock" Clock,
            ECAM "ecam" Ecam,
            HISTORY "history" History,
            DOMAIN "domain" Domain,
            PLATFORM "platform" Platform,
            AMD_VI_UNIT "amd_vi_unit" AmdViState,
        };
        *nth += 1;
        let rest = match &known {
            Some((name, bytes)) => {
                values(&mut text, name, bytes);
                &raw.payload[bytes.len()..]
            }
            None => {
                text.push_str("  unknown\n");
                raw.payload
            }
        };
        if !rest.is_empty() {
            writeln!(text, "  more {}", hex(rest)).unwrap();
        }
    }
    text
}
