/* The handoff: copied out once, checked in the order of docs/abi.md, and only then believed. */
#include "delta.h"

/* The longest handoff that delta reads. */
#define LONGEST 8192

static union {
	uint8_t bytes[LONGEST];
	uint64_t aligned;
} copy;
/* The header with the fields of versions that the handoff has; the others are zero. */
static struct baton_header header;

uint32_t crc32(uint32_t crc, const void *bytes, size_t length)
{
	const uint8_t *at = bytes;
	crc = ~crc;
	while (length--) {
		crc ^= *at++;
		for (int bit = 0; bit < 8; bit++)
			crc = (crc >> 1) ^ (UINT32_C(0xedb88320) & (0 - (crc & 1)));
	}
	return ~crc;
}

static void copy_out(uint64_t from, size_t begin, size_t end)
{
	const volatile uint8_t *bytes = pointer(from);
	for (size_t i = begin; i < end; i++)
		copy.bytes[i] = bytes[i];
}

const struct baton_header *handoff_header(void)
{
	return &header;
}

static const struct baton_record *record_at(uint64_t offset)
{
	return (const struct baton_record *)(copy.bytes + offset);
}

/* Bytes that the structure of a kind has, or 0 for a kind that delta does not know. */
static size_t structure(uint32_t kind)
{
	switch (kind) {
	case BATON_KIND_EXTENT: return sizeof(struct baton_extent);
	case BATON_KIND_CPU: return sizeof(struct baton_cpu);
	case BATON_KIND_MEMORY: return sizeof(struct baton_memory);
	case BATON_KIND_FUNCTION: return sizeof(struct baton_function);
	case BATON_KIND_INTERRUPT_HANDLE: return sizeof(struct baton_interrupt_handle);
	case BATON_KIND_FIRMWARE: return sizeof(struct baton_firmware);
	case BATON_KIND_VTD_UNIT: return sizeof(struct baton_vtd_unit);
	case BATON_KIND_WORKLOAD: return sizeof(struct baton_workload);
	case BATON_KIND_CONSOLE: return sizeof(struct baton_console);
	case BATON_KIND_CLOCK: return sizeof(struct baton_clock);
	case BATON_KIND_ECAM: return sizeof(struct baton_ecam);
	case BATON_KIND_HISTORY: return sizeof(struct baton_history);
	case BATON_KIND_DOMAIN: return sizeof(struct baton_domain);
	case BATON_KIND_PLATFORM: return sizeof(struct baton_platform);
	case BATON_KIND_AMD_VI_UNIT: return sizeof(struct baton_amd_vi_unit);
	default: return 0;
	}
}

static const char *check_records(uint64_t length)
{
	uint64_t offset = header.header_length;
	uint32_t count = 0;
	while (offset < length) {
		if (length - offset < sizeof(struct baton_record))
			return "a record has no room for its head";
		const struct baton_record *record = record_at(offset);
		if (record->length < sizeof *record || record->length % 8 != 0 ||
		    record->length > length - offset)
			return "the length of a record is wrong";
		size_t wanted = structure(record->kind);
		if (wanted == 0 && (record->flags & BATON_RECORD_CRITICAL))
			return "a critical record is of an unknown kind";
		if (wanted > record->length - sizeof *record)
			return "a record is shorter than its structure";
		offset += record->length;
		count++;
	}
	return count == header.record_count ? NULL : "there is another number of records";
}

const char *handoff_read(uint64_t at, uint64_t features)
{
	copy_out(at, 0, BATON_HEADER_LENGTH_0_1);
	const struct baton_header *stated = (const struct baton_header *)copy.bytes;
	uint64_t length = stated->length;
	if (stated->magic != BATON_MAGIC)
		return "there is no handoff";
	if (length < BATON_HEADER_LENGTH_0_1 || length > LONGEST || length % 8 != 0)
		return "the length of the handoff is wrong";
	if (stated->version.major != BATON_VERSION_MAJOR ||
	    stated->version.minor < BATON_VERSION_MINOR_OLDEST ||
	    stated->version.minor > BATON_VERSION_MINOR)
		return "the handoff is of another version";
	copy_out(at, BATON_HEADER_LENGTH_0_1, length);
	uint32_t known = stated->version.minor == 1 ? BATON_HEADER_LENGTH_0_1
						     : BATON_HEADER_LENGTH_0_2;
	if (stated->header_length < known || stated->header_length % 8 != 0 ||
	    stated->header_length > length)
		return "the length of the header is wrong";
	memcpy(&header, copy.bytes, known);

	const size_t field = offsetof(struct baton_header, checksum);
	static const uint32_t zero;
	uint32_t crc = crc32(0, copy.bytes, field);
	crc = crc32(crc, &zero, sizeof zero);
	crc = crc32(crc, copy.bytes + field + sizeof zero, length - field - sizeof zero);
	if (crc != header.checksum)
		return "the checksum of the handoff is wrong";
	if (header.self_address != at)
		return "the handoff was written elsewhere";
	if (header.reserved != 0)
		return "a reserved field of the handoff is not zero";
	if (header.required & ~features)
		return "the handoff requires what this kernel has not";
	return check_records(length);
}

const void *handoff_next(uint32_t kind, const void *from)
{
	const struct baton_record *record = record_at(header.header_length);
	if (from != NULL) {
		record = (const struct baton_record *)from - 1;
		record = (const struct baton_record *)((const uint8_t *)record + record->length);
	}
	const uint8_t *end = copy.bytes + header.length;
	while ((const uint8_t *)record < end) {
		if (record->kind == kind)
			return record + 1;
		record = (const struct baton_record *)((const uint8_t *)record + record->length);
	}
	return NULL;
}
