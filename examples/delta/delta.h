/*
 * Delta: an example kernel in C that knows Baton by baton.h and the pages in docs/ alone.
 *
 * It is launched beside a kernel that serves the demonstration's workload, takes the workload over
 * where it lies, serves it by polling, and then owns the machine. It programs no remapping unit: the
 * fence stays as its prime left it.
 */
#ifndef DELTA_H
#define DELTA_H

#include <baton.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE UINT64_C(4096)

/* Why delta gives up: on the receipt before it has a place in the exchange, there afterwards. */
enum reason {
	REASON_UNREADABLE = 1,
	REASON_NO_BATON = 2,
	REASON_FEATURES = 3,
	REASON_DISAGREES = 4,
	REASON_NO_RECORD = 5,
	REASON_MEMORY = 6,
	REASON_WORKLOAD = 7,
	REASON_PROCESSOR = 8,
	REASON_MAILBOX = 9,
	REASON_EXCEPTION = 10,
};

/* arch.c: the processor and its ports. */
uint64_t now(void);
void expect_hertz(uint64_t hertz);
uint64_t after(uint32_t milliseconds);
uint64_t nanoseconds(uint64_t ticks);
void pause(void);
_Noreturn void halt(void);
void out8(uint16_t port, uint8_t value);
uint8_t in8(uint16_t port);
void set_descriptors(void);
bool find_apic(void);
uint32_t apic_id(void);
void send_nmi(uint32_t to);
void *pointer(uint64_t physical);
bool map(uint64_t base, uint64_t length, bool registers);
uint64_t page_table(void);

/* console.c: one line at a time, and what it says. */
void console_init(uint16_t port);
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));
const char *read_line(void);

/* handoff.c: the handoff, copied out and checked. */
const char *handoff_read(uint64_t at, uint64_t features);
const struct baton_header *handoff_header(void);
/* The next record of a kind after `from`, or the first for NULL; NULL where there is none. */
const void *handoff_next(uint32_t kind, const void *from);
uint32_t crc32(uint32_t crc, const void *bytes, size_t length);

/* baton.c: the live areas. */
/* What a ledger slot said at one instant. */
struct entry {
	uint16_t slot;
	uint32_t kind;
	uint64_t base;
	uint64_t length;
	uint32_t phase;
	uint32_t owner;
	uint32_t next;
};
bool baton_find(void);
const char *baton_arrive(void);
bool ledger_find(uint32_t kind, uint64_t base, uint64_t length, struct entry *found);
bool ledger_overlaps(uint32_t kind, uint64_t base, uint64_t length);
uint16_t ledger_steward(void);
void ledger_take_up(void);
void status_enter(uint32_t state);
void status_speak(void);
void status_beat(void);
_Noreturn void give_up(enum reason reason, const char *why);
/* 1: there is a message; 0: there is none; -1: the other side wrote nonsense. */
int mailbox_receive(uint64_t message[BATON_MESSAGE_WORDS]);
bool mailbox_send(const uint64_t message[BATON_MESSAGE_WORDS]);
uint32_t prime_state(void);
bool claim(uint32_t cpu);
unsigned int workers(void);
/* Takes what the prime had, once its processors are parked; whether that is done. */
struct inherited {
	unsigned int cpus;
	unsigned int functions;
	uint64_t memory;
};
bool inherit(struct inherited *what);

/* workload.c: the workload's memory, as the example kernels lay it out. */
const char *workload_adopt(const struct baton_workload *record);
void workload_count_swap(void);
uint64_t workload_swaps(void);
/* A frame out of the receive ring into `frame`, and its length; 0 where there is none. */
size_t workload_receive(uint8_t *frame);
bool workload_can_send(void);
void workload_send(const uint8_t *frame, size_t length);
void workload_notify(void);
/* Whether a ring held what cannot be, so that it cannot be gone on with. */
bool workload_broken(void);
size_t workload_answer(const uint8_t *request, size_t length, uint8_t *reply);
void workload_learn(const uint8_t address[4], const uint8_t mac[6]);
struct network {
	uint8_t mac[6];
	uint8_t address[4];
	uint16_t port;
};
const struct network *workload_network(void);
#define FRAME_MAX 1514
#define DATAGRAM_MAX 1064

/* net.c: Ethernet, ARP, IPv4 and UDP, as much as an answer needs. */
unsigned int net_poll(void);

void *memcpy(void *to, const void *from, size_t length);
void *memset(void *to, int value, size_t length);
int memcmp(const void *left, const void *right, size_t length);

#endif
