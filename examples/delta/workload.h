/*
 * The layout of the demonstration's workload, version 1, as examples/workload has it in Rust. It is
 * between kernels that serve this workload, and no part of Baton. Everything is reached through
 * atomics: a device writes there too.
 */
#ifndef WORKLOAD_H
#define WORKLOAD_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define WORKLOAD_MAGIC UINT64_C(0x31564b4e4f544142) /* BATONKV1 */
#define WORKLOAD_VERSION 1
#define WORKLOAD_FIXED 256 /* Bytes of the header under its checksum. */
#define WORKLOAD_NEIGHBOURS 16
#define VALUE_MAX 1024
#define BUFFER UINT64_C(2048)
#define RING_MAX 256

enum area { STORE, RECEIVE_QUEUE, TRANSMIT_QUEUE, RECEIVE_BUFFERS, TRANSMIT_BUFFERS, AREAS };

typedef _Atomic(uint16_t) shared16;
typedef _Atomic(uint32_t) shared32;
typedef _Atomic(uint64_t) shared64;

struct workload_header {
	shared64 magic;
	shared32 version, header_length;
	shared64 length;
	shared64 dma_base; /* Where the memory begins for the device. */
	struct {
		shared64 offset, length;
	} areas[AREAS];
	shared32 store_slots, value_capacity;
	shared32 queue_size[2];
	shared32 buffer_size;
	shared32 checksum; /* CRC-32/ISO-HDLC of the fixed bytes, with these as zero. */
	shared64 mac;	   /* First byte lowest, as in all addresses here. */
	shared32 address, prefix, gateway, port;
	struct {
		shared32 function, present;
		shared64 features, common, isr, device, notify[2], msix_table;
		shared32 msix_entries, msix_entry[2], reserved;
		shared64 reserved2;
	} nic;
	shared64 reserved;
	/* Live from here on. */
	struct {
		shared32 address, reserved;
		shared64 mac;
	} neighbours[WORKLOAD_NEIGHBOURS];
	struct {
		shared64 applied, occupied;
	} store;
	struct {
		shared64 frames_received, frames_sent, answered, refused, malformed, dropped;
		shared64 doorbells, last_doorbell, first_doorbell, swaps;
	} counters;
	shared64 reserved2[436];
};
_Static_assert(sizeof(struct workload_header) == 4096, "the header is a page");
_Static_assert(offsetof(struct workload_header, checksum) == 132, "checksum");
_Static_assert(offsetof(struct workload_header, nic) == 160, "nic");
_Static_assert(offsetof(struct workload_header, neighbours) == WORKLOAD_FIXED, "neighbours");
_Static_assert(offsetof(struct workload_header, counters) == 528, "counters");

struct store_slot {
	shared64 writes; /* 0 while the slot is free. */
	shared32 key, length;
	shared64 value[VALUE_MAX / 8];
};
_Static_assert(sizeof(struct store_slot) == 1040, "a slot of the store");

/* A split virtqueue (Virtual I/O Device 1.2, section 2.7), each part at a page of its own. */
struct descriptor {
	shared64 address;
	shared32 length;
	shared16 flags, next;
};
struct used_element {
	shared32 id, length;
};
struct available {
	shared16 flags, index, ring[RING_MAX];
};
struct used {
	shared16 flags, index;
	struct used_element ring[RING_MAX];
};
/* What its driver remembers. */
struct driver_state {
	shared32 size, last_used;
	shared64 violations;
	shared64 busy[4], heads[4]; /* One bit for each descriptor. */
};
_Static_assert(sizeof(struct driver_state) == 80, "the driver's state");

/* Requests and answers, little-endian. */
#define REQUEST_MAGIC UINT32_C(0x31564b42)
#define REPLY_MAGIC UINT32_C(0x31564b52)
enum { OP_WRITE = 1, OP_READ = 2, OP_REPLY = 0x80 };
enum { STATUS_OK, STATUS_NOT_FOUND, STATUS_REFUSED };

struct request {
	uint32_t magic;
	uint8_t op, reserved[3];
	uint64_t sequence;
	uint32_t key, value_length;
	uint64_t reserved2;
};
_Static_assert(sizeof(struct request) == 32, "a request");

struct reply {
	uint32_t magic;
	uint8_t op, status, kernel, swap;
	uint64_t sequence;
	uint32_t key, value_length;
	uint64_t writes, applied;
};
_Static_assert(sizeof(struct reply) == 40, "a reply");

#endif
