/*
 * A reader of handoffs that knows baton.h and nothing else of Baton.
 *
 *   reader layout            size of every structure, offset and size of every field
 *   reader elements          places inside the arrays of the live areas
 *   reader words             for each 64-bit number on standard input, its parts
 *   reader read FILE ADDRESS NEWEST_MINOR FEATURES
 *                            what the handoff found at ADDRESS means, or why it is refused
 *   reader many FILE ADDRESS NEWEST_MINOR FEATURES
 *                            the same for each of many, in front of each its length in 4 bytes
 */
#include "baton.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned char byte;

#define VERSION(F, S) F(S, major) F(S, minor)
#define HEADER(F, S)                                                                             \
	F(S, magic) F(S, version) F(S, header_length) F(S, length) F(S, self_address)            \
	F(S, features) F(S, required) F(S, record_count) F(S, checksum) F(S, epoch) F(S, writer) \
	F(S, reader) F(S, reserved) F(S, swaps)
#define RECORD(F, S) F(S, kind) F(S, flags) F(S, length) F(S, reserved)
#define PCI_FUNCTION(F, S) F(S, segment) F(S, requester)
#define EXTENT(F, S) F(S, purpose) F(S, reserved) F(S, base) F(S, length)
#define CPU(F, S) F(S, apic_id) F(S, acpi_uid)
#define MEMORY(F, S) F(S, base) F(S, length) F(S, kind) F(S, reserved)
#define FUNCTION(F, S) F(S, function) F(S, domain) F(S, workload) F(S, reserved)
#define INTERRUPT_HANDLE(F, S)                                                               \
	F(S, function) F(S, unit) F(S, handle) F(S, message_address) F(S, message_data)      \
	F(S, destination) F(S, vector) F(S, message)
#define FIRMWARE(F, S) F(S, rsdp) F(S, smbios)
#define UNIT_DOMAIN(F, S) F(S, root) F(S, id) F(S, attached)
#define VTD_UNIT(F, S)                                                                           \
	F(S, register_base) F(S, register_length) F(S, capability) F(S, extended_capability)     \
	F(S, root_table_address) F(S, queue_address) F(S, interrupt_table_address)               \
	F(S, status_address) F(S, arena_base) F(S, arena_length) F(S, global_status)             \
	F(S, queue_tail) F(S, sequence) F(S, levels) F(S, host_address_bits) F(S, domain_count)  \
	F(S, domains)
#define AMD_VI_UNIT(F, S)                                                                         \
	F(S, register_base) F(S, register_length) F(S, extended_feature) F(S, control)            \
	F(S, device_table_base) F(S, command_buffer_base) F(S, event_log_base)                    \
	F(S, status_address) F(S, arena_base) F(S, arena_length) F(S, sequence)                   \
	F(S, capability_header) F(S, ivhd_flags) F(S, command_tail) F(S, levels)                  \
	F(S, host_address_bits) F(S, domain_count) F(S, domains)
#define WORKLOAD(F, S)                                                                       \
	F(S, id) F(S, domain) F(S, ledger_slot) F(S, base) F(S, length) F(S, layout)         \
	F(S, layout_version)
#define CONSOLE(F, S) F(S, port) F(S, baud)
#define CLOCK(F, S) F(S, tsc_hertz)
#define ECAM(F, S) F(S, base) F(S, segment) F(S, first_bus) F(S, last_bus) F(S, reserved)
#define HISTORY(F, S) F(S, frozen_at) F(S, committed_at) F(S, previous) F(S, reserved) F(S, swap)
#define DOMAIN(F, S) F(S, domain) F(S, reserved) F(S, owner)
#define PLATFORM(F, S) F(S, bootstrap) F(S, reserved)
#define LEDGER_SLOT(F, S) F(S, kind) F(S, parent) F(S, base) F(S, length) F(S, word)
#define LEDGER(F, S) F(S, magic) F(S, stewardship) F(S, used) F(S, reserved) F(S, slots)
#define PARTITION_STATUS(F, S)                                                               \
	F(S, partition) F(S, state) F(S, heartbeat) F(S, version) F(S, failure)              \
	F(S, features) F(S, detail) F(S, since) F(S, reserved)
#define MAILBOX(F, S) F(S, head) F(S, reserved) F(S, tail) F(S, reserved_too) F(S, slots)
#define EXCHANGE(F, S) F(S, status) F(S, mailboxes)
#define PARK_SLOT(F, S)                                                                      \
	F(S, word) F(S, entry) F(S, page_table) F(S, stack) F(S, argument)                   \
	F(S, nmi_count) F(S, machine_check_count) F(S, stack_area)
#define NOTE(F, S) F(S, version) F(S, reserved) F(S, features) F(S, entry)

#define PRINT_FIELD(S, field)                                                                \
	printf(#S "." #field " %zu %zu\n", offsetof(struct baton_##S, field),                \
	       sizeof(((struct baton_##S *)0)->field));
#define PRINT_STRUCTURE(S, FIELDS)                     \
	printf(#S " %zu\n", sizeof(struct baton_##S)); \
	FIELDS(PRINT_FIELD, S)

static void layout(void)
{
	PRINT_STRUCTURE(version, VERSION)
	PRINT_STRUCTURE(header, HEADER)
	PRINT_STRUCTURE(record, RECORD)
	PRINT_STRUCTURE(pci_function, PCI_FUNCTION)
	PRINT_STRUCTURE(extent, EXTENT)
	PRINT_STRUCTURE(cpu, CPU)
	PRINT_STRUCTURE(memory, MEMORY)
	PRINT_STRUCTURE(function, FUNCTION)
	PRINT_STRUCTURE(interrupt_handle, INTERRUPT_HANDLE)
	PRINT_STRUCTURE(firmware, FIRMWARE)
	PRINT_STRUCTURE(unit_domain, UNIT_DOMAIN)
	PRINT_STRUCTURE(vtd_unit, VTD_UNIT)
	PRINT_STRUCTURE(amd_vi_unit, AMD_VI_UNIT)
	PRINT_STRUCTURE(workload, WORKLOAD)
	PRINT_STRUCTURE(console, CONSOLE)
	PRINT_STRUCTURE(clock, CLOCK)
	PRINT_STRUCTURE(ecam, ECAM)
	PRINT_STRUCTURE(history, HISTORY)
	PRINT_STRUCTURE(domain, DOMAIN)
	PRINT_STRUCTURE(platform, PLATFORM)
	PRINT_STRUCTURE(ledger_slot, LEDGER_SLOT)
	PRINT_STRUCTURE(ledger, LEDGER)
	PRINT_STRUCTURE(partition_status, PARTITION_STATUS)
	PRINT_STRUCTURE(mailbox, MAILBOX)
	PRINT_STRUCTURE(exchange, EXCHANGE)
	PRINT_STRUCTURE(park_slot, PARK_SLOT)
	PRINT_STRUCTURE(note, NOTE)
}

static void elements(void)
{
	static struct baton_ledger ledger;
	static struct baton_exchange exchange;
	printf("%td\n", (byte *)&ledger.slots[1021].word - (byte *)&ledger);
	printf("%td\n", (byte *)&exchange.status[3].state - (byte *)&exchange);
	printf("%td\n", (byte *)&exchange.mailboxes[1][2].slots[3][4] - (byte *)&exchange);
	printf("%td\n", (byte *)&exchange.mailboxes[2][1].tail - (byte *)&exchange);
}

static void words(void)
{
	uint64_t bits;
	while (scanf("%" SCNx64, &bits) == 1) {
		uint32_t phase = baton_word_phase(bits), owner = baton_word_owner(bits);
		uint32_t next = baton_word_next(bits), epoch = baton_word_epoch(bits);
		printf("word %" PRIu32 " 0x%" PRIx32 " 0x%" PRIx32 " %" PRIu32 " %016" PRIx64 "\n",
		       phase, owner, next, epoch, baton_word(phase, owner, next, epoch));
		uint16_t holder = baton_stewardship_holder(bits);
		uint16_t heir = baton_stewardship_next(bits), slot = baton_stewardship_slot(bits);
		uint32_t raised = baton_stewardship_epoch(bits);
		if (baton_stewardship_follows(bits))
			printf("stewardship %d %d %d %" PRIu32 " %016" PRIx64 "\n", holder, heir,
			       slot, raised,
			       baton_stewardship_following(holder, raised, heir, slot));
		else
			printf("stewardship %d %" PRIu32 " %016" PRIx64 "\n", holder, raised,
			       baton_stewardship(holder, raised));
		uint32_t cpu = baton_park_cpu(bits), state = baton_park_state(bits);
		printf("park %" PRIu32 " %" PRIu32 " %016" PRIx64 "\n", cpu, state,
		       baton_park_word(cpu, state));
	}
}

static void value(const char *structure, const char *field, const void *at, size_t size)
{
	const byte *bytes = at;
	printf("  %s.%s ", structure, field);
	uint64_t number = 0;
	switch (size) {
	case 1:
	case 2:
	case 4:
	case 8:
		memcpy(&number, bytes, size);
		printf("0x%" PRIx64, number);
		break;
	default:
		for (size_t i = 0; i < size; i++)
			printf("%02x", bytes[i]);
	}
	printf("\n");
}

static void domains(const char *structure, const struct baton_unit_domain *from)
{
	for (size_t i = 0; i < BATON_MAX_DOMAINS; i++)
		printf("  %s.domains[%zu] 0x%" PRIx64 " 0x%" PRIx32 " 0x%" PRIx32 "\n", structure,
		       i, from[i].root, from[i].id, from[i].attached);
}

static uint32_t crc32(const byte *bytes, size_t length)
{
	uint32_t crc = UINT32_MAX;
	for (size_t i = 0; i < length; i++) {
		size_t field = offsetof(struct baton_header, checksum);
		crc ^= i >= field && i < field + 4 ? 0 : bytes[i];
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? UINT32_C(0xedb88320) : 0);
	}
	return ~crc;
}

static size_t size_of_kind(uint32_t kind)
{
	switch (kind) {
	case BATON_KIND_EXTENT:
		return sizeof(struct baton_extent);
	case BATON_KIND_CPU:
		return sizeof(struct baton_cpu);
	case BATON_KIND_MEMORY:
		return sizeof(struct baton_memory);
	case BATON_KIND_FUNCTION:
		return sizeof(struct baton_function);
	case BATON_KIND_INTERRUPT_HANDLE:
		return sizeof(struct baton_interrupt_handle);
	case BATON_KIND_FIRMWARE:
		return sizeof(struct baton_firmware);
	case BATON_KIND_VTD_UNIT:
		return sizeof(struct baton_vtd_unit);
	case BATON_KIND_WORKLOAD:
		return sizeof(struct baton_workload);
	case BATON_KIND_CONSOLE:
		return sizeof(struct baton_console);
	case BATON_KIND_CLOCK:
		return sizeof(struct baton_clock);
	case BATON_KIND_ECAM:
		return sizeof(struct baton_ecam);
	case BATON_KIND_HISTORY:
		return sizeof(struct baton_history);
	case BATON_KIND_DOMAIN:
		return sizeof(struct baton_domain);
	case BATON_KIND_PLATFORM:
		return sizeof(struct baton_platform);
	case BATON_KIND_AMD_VI_UNIT:
		return sizeof(struct baton_amd_vi_unit);
	default:
		return 0;
	}
}

#define PRINT_VALUE(S, field)                                \
	if (strcmp(#field, "domains") != 0)                  \
		value(#S, #field, &copy.field, sizeof copy.field);
#define PRINT_RECORD(K, S, FIELDS)                   \
	case BATON_KIND_##K: {                       \
		struct baton_##S copy;               \
		memcpy(&copy, payload, sizeof copy); \
		FIELDS(PRINT_VALUE, S)               \
		break;                               \
	}
#define PRINT_UNIT(K, S, FIELDS)                     \
	case BATON_KIND_##K: {                       \
		struct baton_##S copy;               \
		memcpy(&copy, payload, sizeof copy); \
		FIELDS(PRINT_VALUE, S)               \
		domains(#S, copy.domains);           \
		break;                               \
	}

static void print_record(uint32_t kind, const byte *payload, size_t length)
{
	switch (kind) {
		PRINT_RECORD(EXTENT, extent, EXTENT)
		PRINT_RECORD(CPU, cpu, CPU)
		PRINT_RECORD(MEMORY, memory, MEMORY)
		PRINT_RECORD(FUNCTION, function, FUNCTION)
		PRINT_RECORD(INTERRUPT_HANDLE, interrupt_handle, INTERRUPT_HANDLE)
		PRINT_RECORD(FIRMWARE, firmware, FIRMWARE)
		PRINT_UNIT(VTD_UNIT, vtd_unit, VTD_UNIT)
		PRINT_RECORD(WORKLOAD, workload, WORKLOAD)
		PRINT_RECORD(CONSOLE, console, CONSOLE)
		PRINT_RECORD(CLOCK, clock, CLOCK)
		PRINT_RECORD(ECAM, ecam, ECAM)
		PRINT_RECORD(HISTORY, history, HISTORY)
		PRINT_RECORD(DOMAIN, domain, DOMAIN)
		PRINT_RECORD(PLATFORM, platform, PLATFORM)
		PRINT_UNIT(AMD_VI_UNIT, amd_vi_unit, AMD_VI_UNIT)
	default:
		printf("  unknown\n");
	}
	size_t known = size_of_kind(kind);
	if (length > known) {
		printf("  more ");
		for (size_t i = known; i < length; i++)
			printf("%02x", payload[i]);
		printf("\n");
	}
}

#define REFUSE(...)                     \
	do {                            \
		printf("refused: ");    \
		printf(__VA_ARGS__);    \
		printf("\n");           \
		return;                 \
	} while (0)

/* The whole of the check comes before the first field of a record is used. */
static void read_handoff(const byte *bytes, size_t have, uint64_t found_at, uint16_t newest,
			 uint64_t able)
{
	struct baton_header header;
	memset(&header, 0, sizeof header);
	if (have < BATON_HEADER_LENGTH_0_1)
		REFUSE("handoff has %zu bytes and needs %d", have, BATON_HEADER_LENGTH_0_1);
	memcpy(&header, bytes, BATON_HEADER_LENGTH_0_1);
	if (header.magic != BATON_MAGIC)
		REFUSE("handoff begins with 0x%016" PRIx64 ", which is not its magic", header.magic);
	if (header.length < BATON_HEADER_LENGTH_0_1 || header.length > BATON_MAX_LENGTH ||
	    header.length % 8 != 0)
		REFUSE("handoff states a length of %" PRIu64 " bytes", header.length);
	if (have < header.length)
		REFUSE("handoff has %zu bytes and needs %" PRIu64, have, header.length);
	size_t whole = (size_t)header.length;
	uint16_t minor = header.version.minor;
	if (header.version.major != BATON_VERSION_MAJOR || minor < BATON_VERSION_MINOR_OLDEST ||
	    minor > newest)
		REFUSE("handoff version %u.%u, this kernel reads %d.%d to %d.%u",
		       header.version.major, minor, BATON_VERSION_MAJOR,
		       BATON_VERSION_MINOR_OLDEST, BATON_VERSION_MAJOR, newest);
	size_t least = minor < 2 ? BATON_HEADER_LENGTH_0_1 : BATON_HEADER_LENGTH_0_2;
	if (header.header_length < least || header.header_length % 8 != 0 ||
	    header.header_length > whole)
		REFUSE("handoff header states a length of %" PRIu32 " bytes", header.header_length);
	memcpy(&header, bytes, least);
	uint32_t sum = crc32(bytes, whole);
	if (header.checksum != sum)
		REFUSE("handoff checksum is 0x%08" PRIx32 ", stated 0x%08" PRIx32, sum,
		       header.checksum);
	if (header.self_address != found_at)
		REFUSE("handoff was written for 0x%" PRIx64 " and found at 0x%" PRIx64,
		       header.self_address, found_at);
	if (header.reserved != 0)
		REFUSE("handoff header has a reserved field that is not zero");
	if ((header.required & ~able) != 0)
		REFUSE("handoff requires what this kernel has not: 0x%" PRIx64,
		       header.required & ~able);
	uint32_t count = 0;
	struct baton_record record;
	for (size_t at = header.header_length; at < whole; at += record.length) {
		record.length = 0;
		if (whole - at >= sizeof record)
			memcpy(&record, bytes + at, sizeof record);
		if (record.length < sizeof record || record.length % 8 != 0 ||
		    record.length > whole - at)
			REFUSE("record at offset 0x%zx states a length of %" PRIu32 " bytes", at,
			       record.length);
		size_t known = size_of_kind(record.kind);
		if (known == 0 && (record.flags & BATON_RECORD_CRITICAL) != 0)
			REFUSE("critical record at offset 0x%zx is of unknown kind 0x%" PRIx32, at,
			       record.kind);
		if (record.length - sizeof record < known)
			REFUSE("record of kind 0x%" PRIx32 " at offset 0x%zx has only %" PRIu32
			       " bytes",
			       record.kind, at, record.length);
		count++;
	}
	if (count != header.record_count)
		REFUSE("handoff states %" PRIu32 " records and has %" PRIu32, header.record_count,
		       count);

	struct baton_header copy = header;
	printf("header\n");
	HEADER(PRINT_VALUE, header)
	for (size_t at = header.header_length; at < whole; at += record.length) {
		memcpy(&record, bytes + at, sizeof record);
		printf("record at 0x%zx: kind 0x%" PRIx32 " flags 0x%" PRIx32 " length 0x%" PRIx32
		       " reserved 0x%" PRIx32 "\n",
		       at, record.kind, record.flags, record.length, record.reserved);
		print_record(record.kind, bytes + at + sizeof record,
			     record.length - sizeof record);
	}
}

int main(int count, char **arguments)
{
	static byte bytes[1 << 16];
	if (count == 2 && strcmp(arguments[1], "layout") == 0) {
		layout();
	} else if (count == 2 && strcmp(arguments[1], "elements") == 0) {
		elements();
	} else if (count == 2 && strcmp(arguments[1], "words") == 0) {
		words();
	} else if (count == 6) {
		FILE *file = fopen(arguments[2], "rb");
		if (file == NULL)
			return 1;
		uint64_t found_at = strtoull(arguments[3], NULL, 0);
		uint16_t newest = (uint16_t)strtoul(arguments[4], NULL, 0);
		uint64_t able = strtoull(arguments[5], NULL, 0);
		uint32_t length = sizeof bytes;
		if (strcmp(arguments[1], "read") == 0) {
			size_t have = fread(bytes, 1, length, file);
			read_handoff(bytes, have, found_at, newest, able);
		} else {
			while (fread(&length, sizeof length, 1, file) == 1) {
				if (length > sizeof bytes || fread(bytes, 1, length, file) != length)
					return 1;
				read_handoff(bytes, length, found_at, newest, able);
				printf("end\n");
			}
		}
		fclose(file);
	} else {
		return 2;
	}
	return 0;
}
