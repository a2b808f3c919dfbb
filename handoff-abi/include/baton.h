/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * baton.h: the wire format of Baton, version 0.2, for kernels that are not written in Rust.
 *
 * A handoff is a header and records that the running kernel (the prime) writes into memory and that
 * its successor copies out, checks and only then believes. Beside it are the live areas, the ledger
 * and the exchange, which both kernels read and write at the same time. The rules are in docs/abi.md,
 * what may be concluded from a live value in docs/swap.md, the processor's state in docs/entry.md.
 *
 * Needs C11 or C++11 and nothing of a library: <stdint.h> and <stddef.h>, in C++ also <atomic>.
 * Everything is little-endian and naturally aligned. There is no pointer, no bool, no enum, no
 * bit-field and no padding in any structure; the asserts below each of them hold that.
 *
 * How a handoff is read: copy the first BATON_HEADER_LENGTH_0_1 bytes out, take `length` from there,
 * copy that many bytes out, and never look at the shared memory again. Then check, in this order:
 * magic, length, version, header_length, checksum, self_address, reserved, required, and for each
 * record its length, that its kind is known or that it is not critical, and that it is not shorter
 * than its structure; at last the count. Nothing may be touched before all of that holds.
 */
#ifndef BATON_H
#define BATON_H

#include <stddef.h>
#include <stdint.h>

#if defined(__BYTE_ORDER__) && defined(__ORDER_LITTLE_ENDIAN__)
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the wire format is little-endian and is read in place"
#endif
#endif

/*
 * A field of a live area: one atomic of 4 or 8 bytes, which is lock-free on x86-64. Whoever has
 * atomics of their own may define BATON_ATOMIC before this file is included, for example as
 * `volatile type`, and must then order the accesses as the comments say.
 */
#ifndef BATON_ATOMIC
#ifdef __cplusplus
#include <atomic>
#define BATON_ATOMIC(type) std::atomic<type>
#else
#define BATON_ATOMIC(type) _Atomic(type)
#endif
#endif

#ifdef __cplusplus
#define BATON_ASSERT(condition) static_assert(condition, #condition)
#else
#define BATON_ASSERT(condition) _Static_assert(condition, #condition)
#endif
#define BATON_SIZE(name, bytes) BATON_ASSERT(sizeof(struct name) == (bytes))
#define BATON_AT(name, field, bytes) BATON_ASSERT(offsetof(struct name, field) == (bytes))

/* ---- The header ---------------------------------------------------------------------------- */

/* The first eight bytes of a handoff: `BATON`, 0, 1Ah, 0Ah. */
#define BATON_MAGIC UINT64_C(0x0a1a004e4f544142)
/* The longest handoff that is read, in bytes. */
#define BATON_MAX_LENGTH UINT64_C(0x100000)
/* The version that this file describes, and the oldest that it describes too. */
#define BATON_VERSION_MAJOR 0
#define BATON_VERSION_MINOR 2
#define BATON_VERSION_MINOR_OLDEST 1
/* Bytes of the header in version 0.1 and in version 0.2. */
#define BATON_HEADER_LENGTH_0_1 72
#define BATON_HEADER_LENGTH_0_2 80

/* Features: abilities of a kernel that the other side may ask for. A bit that is not known is kept. */
/* Adopts the queues of a workload's device where they lie, without a reset. */
#define BATON_FEATURE_ADOPT_DEVICES UINT64_C(0x1)
/* Drives VT-d units from the tables in the baton. */
#define BATON_FEATURE_VT_D UINT64_C(0x2)
/* Drives AMD-Vi units from the tables in the baton. */
#define BATON_FEATURE_AMD_VI UINT64_C(0x4)
/* Can stay as a warm standby and take the workload back. */
#define BATON_FEATURE_STANDBY UINT64_C(0x8)

/* A version of the wire format. */
struct baton_version {
	uint16_t major; /* A different major version is a different format. */
	uint16_t minor; /* A greater minor version has everything of the smaller ones. */
};
BATON_SIZE(baton_version, 4);
BATON_AT(baton_version, major, 0);
BATON_AT(baton_version, minor, 2);

/*
 * The head of a handoff, at an 8-byte boundary. `header_length` says where the first record begins;
 * what lies between the fields of the handoff's version and there is ignored, and a field that its
 * version does not have counts as zero.
 */
struct baton_header {
	uint64_t magic; /* BATON_MAGIC. */
	struct baton_version version; /* The version this handoff is written in. */
	uint32_t header_length; /* Bytes of this header. A multiple of 8. */
	uint64_t length; /* Bytes of the whole handoff, header and records. A multiple of 8. */
	uint64_t self_address; /* Where it was written; found anywhere else it is refused. */
	uint64_t features; /* What the writer can do. */
	uint64_t required; /* What the reader must be able to do. */
	uint32_t record_count; /* How many records follow. */
	uint32_t checksum; /* CRC-32/ISO-HDLC of all `length` bytes, with this field as zero. */
	uint64_t epoch; /* The stewardship's epoch in which it was written. */
	uint16_t writer; /* The partition that wrote it. */
	uint16_t reader; /* The partition that it is for. */
	uint32_t reserved; /* Zero. */
	uint64_t swaps; /* From version 0.2: swaps this machine has been through since power-on. */
};
BATON_SIZE(baton_header, BATON_HEADER_LENGTH_0_2);
BATON_AT(baton_header, magic, 0);
BATON_AT(baton_header, version, 8);
BATON_AT(baton_header, header_length, 12);
BATON_AT(baton_header, length, 16);
BATON_AT(baton_header, self_address, 24);
BATON_AT(baton_header, features, 32);
BATON_AT(baton_header, required, 40);
BATON_AT(baton_header, record_count, 48);
BATON_AT(baton_header, checksum, 52);
BATON_AT(baton_header, epoch, 56);
BATON_AT(baton_header, writer, 64);
BATON_AT(baton_header, reader, 66);
BATON_AT(baton_header, reserved, 68);
BATON_AT(baton_header, swaps, BATON_HEADER_LENGTH_0_1);

/* ---- Records ------------------------------------------------------------------------------- */

/* Flag of a record: a reader that does not know its kind must refuse the handoff. */
#define BATON_RECORD_CRITICAL 0x1

/* The head of a record; its structure follows. The next record begins `length` bytes further on. */
struct baton_record {
	uint32_t kind; /* One of BATON_KIND_*, or unknown. */
	uint32_t flags; /* BATON_RECORD_CRITICAL or 0. */
	uint32_t length; /* Bytes of the record, this header included. A multiple of 8, at least 16. */
	uint32_t reserved; /* Zero. */
};
BATON_SIZE(baton_record, 16);
BATON_AT(baton_record, kind, 0);
BATON_AT(baton_record, flags, 4);
BATON_AT(baton_record, length, 8);
BATON_AT(baton_record, reserved, 12);

/* What a record is. Numbers are never used again for something else. */
#define BATON_KIND_EXTENT 1 /* struct baton_extent */
#define BATON_KIND_CPU 2 /* struct baton_cpu */
#define BATON_KIND_MEMORY 3 /* struct baton_memory */
#define BATON_KIND_FUNCTION 4 /* struct baton_function */
#define BATON_KIND_INTERRUPT_HANDLE 5 /* struct baton_interrupt_handle */
#define BATON_KIND_FIRMWARE 6 /* struct baton_firmware */
#define BATON_KIND_VTD_UNIT 7 /* struct baton_vtd_unit */
#define BATON_KIND_WORKLOAD 8 /* struct baton_workload */
#define BATON_KIND_CONSOLE 9 /* struct baton_console */
#define BATON_KIND_CLOCK 10 /* struct baton_clock */
#define BATON_KIND_ECAM 11 /* struct baton_ecam */
#define BATON_KIND_HISTORY 12 /* struct baton_history, from version 0.2 */
#define BATON_KIND_DOMAIN 13 /* struct baton_domain */
#define BATON_KIND_PLATFORM 14 /* struct baton_platform */
#define BATON_KIND_AMD_VI_UNIT 0x103 /* struct baton_amd_vi_unit, from version 0.2 */
/* Set aside, without a structure so far: a reader treats them as unknown. */
#define BATON_KIND_VCPU 0x100
#define BATON_KIND_WORKLOAD_DEVICE 0x101
#define BATON_KIND_HOST_MANAGED_IOMMU 0x102
#define BATON_KIND_CRASH_RECOVERY 0x104
#define BATON_KIND_LINUX_PRIME 0x105
#define BATON_KIND_UEFI 0x106

/* What a piece of the baton holds. */
#define BATON_PURPOSE_HANDOFF 1 /* Handoff blobs. */
#define BATON_PURPOSE_CAPTURE 2 /* The firmware tables as captured. */
#define BATON_PURPOSE_LEDGER 3 /* struct baton_ledger. */
#define BATON_PURPOSE_EXCHANGE 4 /* struct baton_exchange. */
#define BATON_PURPOSE_PARK 5 /* The park page and its slots. */
#define BATON_PURPOSE_IOMMU 6 /* Tables and queues of the remapping units. */
#define BATON_PURPOSE_TRAMPOLINE 7 /* A page below 1 MiB that starts the reader's processors. */
#define BATON_PURPOSE_MODULES 8 /* The archive of kernel images. */
#define BATON_PURPOSE_FILTERED 9 /* The filtered tables of the smaller machines. */

/*
 * The type of an entry of the memory map for what the loader filled: image, page tables and firmware
 * tables. The reader's own, and not free; it may use what it does not need any more.
 */
#define BATON_MEMORY_LOADED UINT32_C(0xf0000001)

/* A PCI function: bus in bits 15:8 of `requester`, device in 7:3, function in 2:0. */
struct baton_pci_function {
	uint16_t segment; /* The PCI segment group. */
	uint16_t requester; /* The id it makes requests with. */
};
BATON_SIZE(baton_pci_function, 4);
BATON_AT(baton_pci_function, segment, 0);
BATON_AT(baton_pci_function, requester, 2);

/* A piece of the baton. No kernel of the chain ever owns it as ordinary memory. */
struct baton_extent {
	uint32_t purpose; /* One of BATON_PURPOSE_*. */
	uint32_t reserved; /* Zero. */
	uint64_t base; /* The first byte, at a page boundary. */
	uint64_t length; /* Bytes, whole pages. */
};
BATON_SIZE(baton_extent, 24);
BATON_AT(baton_extent, purpose, 0);
BATON_AT(baton_extent, reserved, 4);
BATON_AT(baton_extent, base, 8);
BATON_AT(baton_extent, length, 16);

/* A processor of the reader's partition. The first such record is the one that runs at entry. */
struct baton_cpu {
	uint32_t apic_id; /* Its local APIC id. */
	uint32_t acpi_uid; /* The processor's unique id in the ACPI tables. */
};
BATON_SIZE(baton_cpu, 8);
BATON_AT(baton_cpu, apic_id, 0);
BATON_AT(baton_cpu, acpi_uid, 4);

/* An entry of the reader's memory map. */
struct baton_memory {
	uint64_t base; /* The first byte. */
	uint64_t length; /* Bytes. */
	uint32_t kind; /* As in ACPI 6.5, table 15.5: 1 usable, 2 reserved, 3 ACPI, 4 NVS; or
			  BATON_MEMORY_LOADED. */
	uint32_t reserved; /* Zero. */
};
BATON_SIZE(baton_memory, 24);
BATON_AT(baton_memory, base, 0);
BATON_AT(baton_memory, length, 8);
BATON_AT(baton_memory, kind, 16);
BATON_AT(baton_memory, reserved, 20);

/* A PCI function that the reader may drive. */
struct baton_function {
	struct baton_pci_function function; /* Which. */
	uint16_t domain; /* The domain it is attached to. */
	uint16_t workload; /* 0 where it is the partition's own, else 1 + the workload's number. */
	uint64_t reserved; /* Zero. */
};
BATON_SIZE(baton_function, 16);
BATON_AT(baton_function, function, 0);
BATON_AT(baton_function, domain, 4);
BATON_AT(baton_function, workload, 6);
BATON_AT(baton_function, reserved, 8);

/*
 * An interrupt remapping entry that is set aside for a function. The reader programs the function
 * with the message given here; where the interrupt goes, the steward decides.
 */
struct baton_interrupt_handle {
	struct baton_pci_function function; /* The function whose requests the entry accepts. */
	uint16_t unit; /* The unit that holds the entry: its place among the unit records, from 0. */
	uint16_t handle; /* The entry's index. */
	uint64_t message_address; /* What goes into the function's message address registers. */
	uint32_t message_data; /* What goes into its message data register. */
	uint32_t destination; /* The APIC id it is sent to now. */
	uint32_t vector; /* With which vector, in the low 8 bits. */
	uint32_t message; /* Which of the function's messages it serves, from 0. */
};
BATON_SIZE(baton_interrupt_handle, 32);
BATON_AT(baton_interrupt_handle, function, 0);
BATON_AT(baton_interrupt_handle, unit, 4);
BATON_AT(baton_interrupt_handle, handle, 6);
BATON_AT(baton_interrupt_handle, message_address, 8);
BATON_AT(baton_interrupt_handle, message_data, 16);
BATON_AT(baton_interrupt_handle, destination, 20);
BATON_AT(baton_interrupt_handle, vector, 24);
BATON_AT(baton_interrupt_handle, message, 28);

/* The firmware tables of the reader's machine. */
struct baton_firmware {
	uint64_t rsdp; /* The filtered RSDP. */
	uint64_t smbios; /* The SMBIOS entry point as captured, or 0. */
};
BATON_SIZE(baton_firmware, 16);
BATON_AT(baton_firmware, rsdp, 0);
BATON_AT(baton_firmware, smbios, 8);

/* The most domains that a unit has. */
#define BATON_MAX_DOMAINS 64

/* A domain of a VT-d or an AMD-Vi unit. */
struct baton_unit_domain {
	uint64_t root; /* The physical address of the root of its tables. */
	uint32_t id; /* Its id. */
	uint32_t attached; /* How many devices are attached. For people; whoever adopts counts them. */
};
BATON_SIZE(baton_unit_domain, 16);
BATON_AT(baton_unit_domain, root, 0);
BATON_AT(baton_unit_domain, id, 8);
BATON_AT(baton_unit_domain, attached, 12);

/*
 * A VT-d unit whose tables and queue lie in the baton, as one steward leaves it to the next: plain
 * numbers, compared with the unit's registers by whoever adopts it, never believed alone. Registers
 * are those of VT-d, chapter 11.
 */
struct baton_vtd_unit {
	uint64_t register_base; /* Physical address of the register window. */
	uint64_t register_length; /* Its length in bytes. */
	uint64_t capability; /* CAP. */
	uint64_t extended_capability; /* ECAP. */
	uint64_t root_table_address; /* RTADDR. */
	uint64_t queue_address; /* IQA. */
	uint64_t interrupt_table_address; /* IRTA. */
	uint64_t status_address; /* Physical address of the 4 bytes that waits write to. */
	uint64_t arena_base; /* Physical address of the arena. */
	uint64_t arena_length; /* Its length in bytes. */
	uint32_t global_status; /* GSTS. */
	uint32_t queue_tail; /* The slot at the queue's tail. For people; the register counts. */
	uint32_t sequence; /* The number of the last wait. */
	uint32_t levels; /* How many levels the domains' tables have. */
	uint32_t host_address_bits; /* How many bits the machine's physical addresses have. */
	uint32_t domain_count; /* How many of `domains` count: check that there are as many. */
	struct baton_unit_domain domains[BATON_MAX_DOMAINS]; /* The domains. */
};
BATON_SIZE(baton_vtd_unit, 1128);
BATON_AT(baton_vtd_unit, register_base, 0);
BATON_AT(baton_vtd_unit, register_length, 8);
BATON_AT(baton_vtd_unit, capability, 16);
BATON_AT(baton_vtd_unit, extended_capability, 24);
BATON_AT(baton_vtd_unit, root_table_address, 32);
BATON_AT(baton_vtd_unit, queue_address, 40);
BATON_AT(baton_vtd_unit, interrupt_table_address, 48);
BATON_AT(baton_vtd_unit, status_address, 56);
BATON_AT(baton_vtd_unit, arena_base, 64);
BATON_AT(baton_vtd_unit, arena_length, 72);
BATON_AT(baton_vtd_unit, global_status, 80);
BATON_AT(baton_vtd_unit, queue_tail, 84);
BATON_AT(baton_vtd_unit, sequence, 88);
BATON_AT(baton_vtd_unit, levels, 92);
BATON_AT(baton_vtd_unit, host_address_bits, 96);
BATON_AT(baton_vtd_unit, domain_count, 100);
BATON_AT(baton_vtd_unit, domains, 104);

/*
 * From version 0.2: an AMD-Vi unit whose tables and rings lie in the baton, with the same standing as
 * struct baton_vtd_unit. Registers are those of AMD-Vi, section 3.4.
 */
struct baton_amd_vi_unit {
	uint64_t register_base; /* Physical address of the register window. */
	uint64_t register_length; /* Its length in bytes. */
	uint64_t extended_feature; /* Extended Feature Register; 0 where the unit has none. */
	uint64_t control; /* IOMMU Control Register. */
	uint64_t device_table_base; /* Device Table Base Address Register. */
	uint64_t command_buffer_base; /* Command Buffer Base Address Register. */
	uint64_t event_log_base; /* Event Log Base Address Register. */
	uint64_t status_address; /* Physical address of the 8 bytes that waits write to. */
	uint64_t arena_base; /* Physical address of the arena. */
	uint64_t arena_length; /* Its length in bytes. */
	uint64_t sequence; /* The number of the last wait. For people: the next steward counts anew. */
	uint32_t capability_header; /* The first four bytes of its capability block on PCI. */
	uint32_t ivhd_flags; /* The flags of the unit's IVHD. */
	uint32_t command_tail; /* The slot at the command buffer's tail. For people. */
	uint32_t levels; /* How many levels the domains' tables have. */
	uint32_t host_address_bits; /* How many bits the machine's physical addresses have. */
	uint32_t domain_count; /* How many of `domains` count: check that there are as many. */
	struct baton_unit_domain domains[BATON_MAX_DOMAINS]; /* The domains. */
};
BATON_SIZE(baton_amd_vi_unit, 1136);
BATON_AT(baton_amd_vi_unit, register_base, 0);
BATON_AT(baton_amd_vi_unit, register_length, 8);
BATON_AT(baton_amd_vi_unit, extended_feature, 16);
BATON_AT(baton_amd_vi_unit, control, 24);
BATON_AT(baton_amd_vi_unit, device_table_base, 32);
BATON_AT(baton_amd_vi_unit, command_buffer_base, 40);
BATON_AT(baton_amd_vi_unit, event_log_base, 48);
BATON_AT(baton_amd_vi_unit, status_address, 56);
BATON_AT(baton_amd_vi_unit, arena_base, 64);
BATON_AT(baton_amd_vi_unit, arena_length, 72);
BATON_AT(baton_amd_vi_unit, sequence, 80);
BATON_AT(baton_amd_vi_unit, capability_header, 88);
BATON_AT(baton_amd_vi_unit, ivhd_flags, 92);
BATON_AT(baton_amd_vi_unit, command_tail, 96);
BATON_AT(baton_amd_vi_unit, levels, 100);
BATON_AT(baton_amd_vi_unit, host_address_bits, 104);
BATON_AT(baton_amd_vi_unit, domain_count, 108);
BATON_AT(baton_amd_vi_unit, domains, 112);

/* A workload: it stays where it is and moves by the commit. */
struct baton_workload {
	uint16_t id; /* Which. */
	uint16_t domain; /* The domain its devices are attached to. */
	uint32_t ledger_slot; /* The ledger slot whose word the commit stores to. */
	uint64_t base; /* The first byte of its memory. */
	uint64_t length; /* Bytes of its memory. */
	uint64_t layout; /* What the memory holds: a magic number that both kernels know. */
	uint64_t layout_version; /* The version of that layout. */
};
BATON_SIZE(baton_workload, 40);
BATON_AT(baton_workload, id, 0);
BATON_AT(baton_workload, domain, 2);
BATON_AT(baton_workload, ledger_slot, 4);
BATON_AT(baton_workload, base, 8);
BATON_AT(baton_workload, length, 16);
BATON_AT(baton_workload, layout, 24);
BATON_AT(baton_workload, layout_version, 32);

/* The reader's console: a 16550-compatible UART in port space. */
struct baton_console {
	uint32_t port; /* The first of its eight ports. */
	uint32_t baud; /* Bits a second. */
};
BATON_SIZE(baton_console, 8);
BATON_AT(baton_console, port, 0);
BATON_AT(baton_console, baud, 4);

/* The rate of the time stamp counter, measured once. */
struct baton_clock {
	uint64_t tsc_hertz; /* Ticks a second. */
};
BATON_SIZE(baton_clock, 8);
BATON_AT(baton_clock, tsc_hertz, 0);

/* Configuration space of some buses of a segment, memory mapped. */
struct baton_ecam {
	uint64_t base; /* Where bus 0 of the segment would be, whether it is in the range or not. */
	uint16_t segment; /* The segment group. */
	uint8_t first_bus; /* The first bus. */
	uint8_t last_bus; /* The last bus. */
	uint32_t reserved; /* Zero. */
};
BATON_SIZE(baton_ecam, 16);
BATON_AT(baton_ecam, base, 0);
BATON_AT(baton_ecam, segment, 8);
BATON_AT(baton_ecam, first_bus, 10);
BATON_AT(baton_ecam, last_bus, 11);
BATON_AT(baton_ecam, reserved, 12);

/* From version 0.2, not critical: what the last swap cost, for the people who watch. */
struct baton_history {
	uint64_t frozen_at; /* Time stamp counter at the last freeze. */
	uint64_t committed_at; /* Time stamp counter at the last commit. */
	uint16_t previous; /* The partition that held the machine before. */
	uint16_t reserved[3]; /* Zero. */
	uint64_t swap; /* The swap's number since power-on. */
};
BATON_SIZE(baton_history, 32);
BATON_AT(baton_history, frozen_at, 0);
BATON_AT(baton_history, committed_at, 8);
BATON_AT(baton_history, previous, 16);
BATON_AT(baton_history, reserved, 18);
BATON_AT(baton_history, swap, 24);

/* An IOMMU domain and who owns it. */
struct baton_domain {
	uint16_t domain; /* Which. */
	uint16_t reserved; /* Zero. */
	uint32_t owner; /* The owner: BATON_OWNER_* and a number. */
};
BATON_SIZE(baton_domain, 8);
BATON_AT(baton_domain, domain, 0);
BATON_AT(baton_domain, reserved, 2);
BATON_AT(baton_domain, owner, 4);

/* What every kernel has to know of the whole machine. */
struct baton_platform {
	uint32_t bootstrap; /* APIC id of the bootstrap processor, which nobody sends INIT. */
	uint32_t reserved; /* Zero. */
};
BATON_SIZE(baton_platform, 8);
BATON_AT(baton_platform, bootstrap, 0);
BATON_AT(baton_platform, reserved, 4);

/* ---- Owners -------------------------------------------------------------------------------- */

/* An owner is 32 bits: one of these in 31:16, and the partition's or workload's number in 15:0. */
#define BATON_OWNER_FIRMWARE UINT32_C(0x10000)
#define BATON_OWNER_PARTITION UINT32_C(0x20000)
#define BATON_OWNER_WORKLOAD UINT32_C(0x30000)
#define BATON_OWNER_PARKED UINT32_C(0x40000)
#define BATON_OWNER_QUARANTINED UINT32_C(0x50000)
#define BATON_OWNER_BATON UINT32_C(0x60000)

/* ---- The ledger ---------------------------------------------------------------------------- */

/* What kind of thing a ledger slot is about. */
#define BATON_RESOURCE_CPU 1 /* base is the APIC id, length 1. */
#define BATON_RESOURCE_MEMORY 2 /* base and length in bytes. */
#define BATON_RESOURCE_FUNCTION 3 /* base is segment in 31:16, requester id in 15:0; length 1. */
#define BATON_RESOURCE_WORKLOAD 4 /* base is its number, length 1; the commit stores to its word. */
#define BATON_RESOURCE_SINGLETON 5 /* base is one of BATON_SINGLETON_*, length 1. */
#define BATON_RESOURCE_REMAPPING_UNIT 6 /* base is its register address, length the window's. */

#define BATON_SINGLETON_UART_0 1 /* The first UART of the ISA bus. */
#define BATON_SINGLETON_UART_1 2 /* The second UART of the ISA bus. */
#define BATON_SINGLETON_RESET 3 /* The authority to reset the machine. */
#define BATON_SINGLETON_INTERRUPT_CONTROLLERS 4 /* The I/O APICs and the 8259 pair. */
#define BATON_SINGLETON_RTC 5 /* Real time clock and CMOS. */
#define BATON_SINGLETON_ACPI_FIXED_HARDWARE 6 /* The ACPI fixed hardware, its timer included. */
#define BATON_SINGLETON_PCI_BRIDGES 7 /* Configuration space of the bridges above partitions. */
#define BATON_SINGLETON_PCI_CONFIG_PORTS 8 /* Configuration mechanism #1, ports CF8h and CFCh. */

/* How far a transfer in a ledger slot has come. */
#define BATON_PHASE_FREE 0 /* The slot is not in use. */
#define BATON_PHASE_PENDING 1 /* It counts only once the slot it was split from says so. */
#define BATON_PHASE_SETTLED 2 /* The owner owns it. */
#define BATON_PHASE_INTENT 3 /* The owner still owns it. A survivor undoes. */
#define BATON_PHASE_EFFECT 4 /* The next owner may use it already. A survivor completes. */
#define BATON_PHASE_SPLIT 5 /* The slots that name it as their parent stand in its place. */

/*
 * The word of a ledger slot: bits 3:0 phase; 27:4 owner and 51:28 next owner, each as the low 24 bits
 * of an owner; 63:52 the low bits of the writer's epoch. A word whose phase or owners are none of the
 * above has no meaning: take it as an error, not as free.
 */
static inline uint32_t baton_word_phase(uint64_t word)
{
	return (uint32_t)(word & 0xf);
}
static inline uint32_t baton_word_owner(uint64_t word)
{
	return (uint32_t)(word >> 4 & 0xffffff);
}
static inline uint32_t baton_word_next(uint64_t word)
{
	return (uint32_t)(word >> 28 & 0xffffff);
}
static inline uint32_t baton_word_epoch(uint64_t word)
{
	return (uint32_t)(word >> 52);
}
static inline uint64_t baton_word(uint32_t phase, uint32_t owner, uint32_t next, uint32_t epoch)
{
	return (uint64_t)(phase & 0xf) | (uint64_t)(owner & 0xffffff) << 4 |
	       (uint64_t)(next & 0xffffff) << 28 | (uint64_t)(epoch & 0xfff) << 52;
}

/*
 * One resource and its owner. Load `word` with acquire, then the other fields (relaxed will do,
 * `parent` with acquire), then `word` again: where it changed, begin anew. `kind`, `base`, `length`
 * and `parent` do not change while the slot is in use. Only the steward stores: the fields first, then
 * `word` with release; where it changes a word, by compare and exchange.
 */
struct baton_ledger_slot {
	BATON_ATOMIC(uint32_t) kind; /* One of BATON_RESOURCE_*. */
	BATON_ATOMIC(uint32_t) parent; /* 0, or 1 + the slot it was split from. */
	BATON_ATOMIC(uint64_t) base; /* Where the resource begins. */
	BATON_ATOMIC(uint64_t) length; /* How much of it there is. */
	BATON_ATOMIC(uint64_t) word; /* Owner, next owner, phase and epoch. */
};
BATON_SIZE(baton_ledger_slot, 32);
BATON_AT(baton_ledger_slot, kind, 0);
BATON_AT(baton_ledger_slot, parent, 4);
BATON_AT(baton_ledger_slot, base, 8);
BATON_AT(baton_ledger_slot, length, 16);
BATON_AT(baton_ledger_slot, word, 24);

/* `BATLEDGR`. */
#define BATON_LEDGER_MAGIC UINT64_C(0x524744454c544142)
/* How many slots there are: with the head they fill 32 KiB. */
#define BATON_LEDGER_SLOTS 1022

/*
 * The record of the one owner of every resource. Only the steward writes it: whoever
 * `stewardship` names, or, where it follows a workload, the owner of that workload. Load `magic`,
 * `stewardship` and `used` with acquire. The commit is one store with release (compare and exchange)
 * to the workload's word.
 */
struct baton_ledger {
	BATON_ATOMIC(uint64_t) magic; /* BATON_LEDGER_MAGIC. */
	BATON_ATOMIC(uint64_t) stewardship; /* See baton_stewardship_*. */
	BATON_ATOMIC(uint32_t) used; /* Slots at this index and above are free. */
	BATON_ATOMIC(uint32_t) reserved[11]; /* Zero. */
	struct baton_ledger_slot slots[BATON_LEDGER_SLOTS]; /* The slots. */
};
BATON_SIZE(baton_ledger, 32768);
BATON_AT(baton_ledger, magic, 0);
BATON_AT(baton_ledger, stewardship, 8);
BATON_AT(baton_ledger, used, 16);
BATON_AT(baton_ledger, reserved, 20);
BATON_AT(baton_ledger, slots, 64);

/*
 * Who may write the ledger, the remapping units and shared configuration space: bits 15:0 holder,
 * 31:16 next holder, 42:32 ledger slot of the workload, 43 follows, 63:44 epoch. Where `follows` is 0
 * the holder is the steward. Where it is 1, the next holder is if it owns the workload of that slot,
 * and otherwise the holder.
 */
static inline uint16_t baton_stewardship_holder(uint64_t bits)
{
	return (uint16_t)(bits & 0xffff);
}
static inline uint16_t baton_stewardship_next(uint64_t bits)
{
	return (uint16_t)(bits >> 16 & 0xffff);
}
static inline uint16_t baton_stewardship_slot(uint64_t bits)
{
	return (uint16_t)(bits >> 32 & 0x7ff);
}
static inline uint16_t baton_stewardship_follows(uint64_t bits)
{
	return (uint16_t)(bits >> 43 & 1);
}
static inline uint32_t baton_stewardship_epoch(uint64_t bits)
{
	return (uint32_t)(bits >> 44);
}
/* A stewardship that follows nothing; the epoch is cut to 20 bits. */
static inline uint64_t baton_stewardship(uint16_t holder, uint32_t epoch)
{
	return (uint64_t)holder | (uint64_t)(epoch & 0xfffff) << 44;
}
/* One that passes to `next` with the commit of the workload in `slot`. */
static inline uint64_t baton_stewardship_following(uint16_t holder, uint32_t epoch, uint16_t next,
						   uint16_t slot)
{
	return baton_stewardship(holder, epoch) | (uint64_t)next << 16 |
	       (uint64_t)(slot & 0x7ff) << 32 | (uint64_t)1 << 43;
}

/* ---- The exchange -------------------------------------------------------------------------- */

/* How far a partition has come. It states so itself; the steward states EMPTY and LAUNCHED. */
#define BATON_STATE_EMPTY 0 /* Nobody is there. */
#define BATON_STATE_LAUNCHED 1 /* Its first processor is being started. */
#define BATON_STATE_ENTERED 2 /* It runs and has found the baton. */
#define BATON_STATE_NEGOTIATED 3 /* It has checked the handoff, stated version and features. */
#define BATON_STATE_READY 4 /* All its processors and devices are up; it waits for the commit. */
#define BATON_STATE_SERVING 5 /* It owns the workload and serves. */
#define BATON_STATE_FROZEN 6 /* It has stopped serving; all is in the workload's memory. */
#define BATON_STATE_STANDBY 7 /* It has given the workload away and lives on to take it back. */
#define BATON_STATE_RETIRED 8 /* It has given everything away. */
#define BATON_STATE_FAILED 0xff /* It gave up by itself; `failure` says why. */

/* What `partition` of a place says beside the partition's number, where the place is in use. */
#define BATON_PLACE_IN_USE UINT32_C(0x10000)
/* How many places there are. A partition's place is its number modulo this. */
#define BATON_MAX_PARTITIONS 8
/* Messages that fit one mailbox. */
#define BATON_MAILBOX_SLOTS 16
/* Words of a message: a kind, and seven whose meaning follows from it. */
#define BATON_MESSAGE_WORDS 8

/*
 * Kinds of messages, word 0. Words that a kind does not name are zero. Word 7 of a question is a number
 * that its answer repeats. From 8000000000000000h on they are private to kernels that know each other.
 */
/* To the next owner of the workload: the commit is about to come. Word 1: hold after it (1) or not. */
#define BATON_MESSAGE_EXPECT 1
/*
 * Back: a processor waits for the commit and does nothing else. Word 1: its APIC id. Word 2: the vector,
 * 20h to FFh, that it wants the interrupts of the workload's devices with.
 */
#define BATON_MESSAGE_EXPECTING 2
/* To the steward: drain the fault records of the remapping units, and say what they were. */
#define BATON_MESSAGE_DRAIN 3
/*
 * Back. Word 1: how many there were. Of the first, word 2: the requester id; 3: the address; 4: the
 * unit's code for the reason; 5: whether it was a write.
 */
#define BATON_MESSAGE_DRAINED 4
/* To the next owner: the commit does not come; wait as before. */
#define BATON_MESSAGE_STAND 5
/* To the owner of the workload: hand it to the sender, which is in BATON_STATE_STANDBY. */
#define BATON_MESSAGE_RETURN 6

/*
 * What a partition says of itself; an allegation, like all that another kernel writes. Its owner
 * stores `since`, and with FAILED `failure` and `detail`, relaxed, and then `state` with release;
 * `version` relaxed and then `features` with release, before NEGOTIATED. A watcher loads `partition`
 * and `state` with acquire before it looks at the rest.
 */
struct baton_partition_status {
	BATON_ATOMIC(uint32_t) partition; /* 0, or BATON_PLACE_IN_USE + the partition's number. */
	BATON_ATOMIC(uint32_t) state; /* One of BATON_STATE_*. */
	BATON_ATOMIC(uint64_t) heartbeat; /* Grows while the partition lives. Relaxed. */
	BATON_ATOMIC(uint32_t) version; /* The version it speaks: major in 31:16, minor in 15:0. */
	BATON_ATOMIC(uint32_t) failure; /* With FAILED: the kernel's own number for why. */
	BATON_ATOMIC(uint64_t) features; /* The features it has. */
	BATON_ATOMIC(uint64_t) detail; /* Memory for others to look at, or what `failure` is about. */
	BATON_ATOMIC(uint64_t) since; /* Time stamp counter when `state` was written last. */
	BATON_ATOMIC(uint64_t) reserved[2]; /* Zero. */
};
BATON_SIZE(baton_partition_status, 64);
BATON_AT(baton_partition_status, partition, 0);
BATON_AT(baton_partition_status, state, 4);
BATON_AT(baton_partition_status, heartbeat, 8);
BATON_AT(baton_partition_status, version, 16);
BATON_AT(baton_partition_status, failure, 20);
BATON_AT(baton_partition_status, features, 24);
BATON_AT(baton_partition_status, detail, 32);
BATON_AT(baton_partition_status, since, 40);
BATON_AT(baton_partition_status, reserved, 48);

/*
 * A queue from one partition to one other: one producer, one consumer. Both counts wrap at 32 bits.
 * The producer loads `tail` with acquire, stores the words of slot `head` modulo BATON_MAILBOX_SLOTS
 * relaxed, and then `head + 1` with release. The consumer loads `head` with acquire, copies the words
 * out once, relaxed, and then stores `tail + 1` with release. Each keeps its own count and reads back
 * only the other's; where they are more than BATON_MAILBOX_SLOTS apart the other wrote nonsense.
 */
struct baton_mailbox {
	BATON_ATOMIC(uint32_t) head; /* Messages ever put in; the producer writes it. */
	BATON_ATOMIC(uint32_t) reserved[15]; /* Zero. */
	BATON_ATOMIC(uint32_t) tail; /* Messages ever taken out; the consumer writes it. */
	BATON_ATOMIC(uint32_t) reserved_too[15]; /* Zero. */
	BATON_ATOMIC(uint64_t) slots[BATON_MAILBOX_SLOTS][BATON_MESSAGE_WORDS]; /* The messages. */
};
BATON_SIZE(baton_mailbox, 1152);
BATON_AT(baton_mailbox, head, 0);
BATON_AT(baton_mailbox, reserved, 4);
BATON_AT(baton_mailbox, tail, 64);
BATON_AT(baton_mailbox, reserved_too, 68);
BATON_AT(baton_mailbox, slots, 128);

/* What partitions tell each other. */
struct baton_exchange {
	struct baton_partition_status status[BATON_MAX_PARTITIONS]; /* The status of each. */
	struct baton_mailbox mailboxes[BATON_MAX_PARTITIONS][BATON_MAX_PARTITIONS]; /* [from][to] */
};
BATON_SIZE(baton_exchange, 74240);
BATON_AT(baton_exchange, status, 0);
BATON_AT(baton_exchange, mailboxes, 512);

/* ---- The park area ------------------------------------------------------------------------- */

/* Bytes of the area, the place of its first slot, and how many slots there are. */
#define BATON_PARK_AREA 36864
#define BATON_PARK_FIRST 4096
#define BATON_PARK_COUNT 64

/* How far the processor of a slot has come. */
#define BATON_PARK_STATE_EMPTY 0 /* Nobody is there. */
#define BATON_PARK_STATE_ARRIVING 1 /* A processor is on its way; its kernel wrote that. */
#define BATON_PARK_STATE_PARKED 2 /* It executes nothing but the area; it wrote that itself. */
#define BATON_PARK_STATE_CLAIMED 3 /* Somebody wants it; it leaves at its next look. */
#define BATON_PARK_STATE_LEFT 4 /* It has left as the claim asked; it wrote that itself. */

/* A slot's word: the processor's APIC id in bits 63:32, its state in 31:0. */
static inline uint32_t baton_park_state(uint64_t word)
{
	return (uint32_t)word;
}
static inline uint32_t baton_park_cpu(uint64_t word)
{
	return (uint32_t)(word >> 32);
}
static inline uint64_t baton_park_word(uint32_t cpu, uint32_t state)
{
	return (uint64_t)cpu << 32 | state;
}

/*
 * One processor's slot. To claim a processor that is PARKED and belongs to the claimer: store where it
 * is to go on (relaxed), change the word from PARKED to CLAIMED by compare and exchange, send the
 * processor an NMI, and wait until it is LEFT. The page table maps the area at its physical address.
 */
struct baton_park_slot {
	BATON_ATOMIC(uint64_t) word; /* Processor and state. */
	BATON_ATOMIC(uint64_t) entry; /* Where it is to go on. */
	BATON_ATOMIC(uint64_t) page_table; /* With which CR3. */
	BATON_ATOMIC(uint64_t) stack; /* With which RSP. */
	BATON_ATOMIC(uint64_t) argument; /* With which RDI. */
	BATON_ATOMIC(uint32_t) nmi_count; /* NMIs taken while parked. */
	BATON_ATOMIC(uint32_t) machine_check_count; /* Machine checks taken while parked. */
	BATON_ATOMIC(uint64_t) stack_area[26]; /* The processor's stack while parked. */
};
BATON_SIZE(baton_park_slot, 256);
BATON_AT(baton_park_slot, word, 0);
BATON_AT(baton_park_slot, entry, 8);
BATON_AT(baton_park_slot, page_table, 16);
BATON_AT(baton_park_slot, stack, 24);
BATON_AT(baton_park_slot, argument, 32);
BATON_AT(baton_park_slot, nmi_count, 40);
BATON_AT(baton_park_slot, machine_check_count, 44);
BATON_AT(baton_park_slot, stack_area, 48);

/* ---- The image's note ---------------------------------------------------------------------- */

/*
 * What an ELF image says of itself: the descriptor of a note in a segment of type PT_NOTE, with the
 * name `Baton` and the type BATON_NOTE_TYPE. Later versions append.
 */
#define BATON_NOTE_TYPE 1

struct baton_note {
	struct baton_version version; /* The newest version of the handoff that it reads. */
	uint32_t reserved; /* Zero. */
	uint64_t features; /* What it can do. */
	uint64_t entry; /* The virtual address at which it is entered, as linked. */
};
BATON_SIZE(baton_note, 24);
BATON_AT(baton_note, version, 0);
BATON_AT(baton_note, reserved, 4);
BATON_AT(baton_note, features, 8);
BATON_AT(baton_note, entry, 16);

#undef BATON_AT
#undef BATON_SIZE
#undef BATON_ASSERT

#endif /* BATON_H */
