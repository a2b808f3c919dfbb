/* The processor: time, ports, descriptor tables, page tables, and its local APIC. */
#include "delta.h"

/* Until the handoff says how quick the time stamp counter is, it is taken to be quick. */
static uint64_t ticks_per_second = UINT64_C(5000000000);

uint64_t now(void)
{
	uint32_t low, high;
	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return (uint64_t)high << 32 | low;
}

void expect_hertz(uint64_t hertz)
{
	ticks_per_second = hertz;
}

uint64_t after(uint32_t milliseconds)
{
	return now() + ticks_per_second / 1000 * milliseconds;
}

uint64_t nanoseconds(uint64_t ticks)
{
	uint64_t seconds = ticks / ticks_per_second;
	return seconds * UINT64_C(1000000000) +
	       ticks % ticks_per_second * UINT64_C(1000000) / (ticks_per_second / 1000);
}

void pause(void)
{
	__asm__ volatile("pause" ::: "memory");
}

_Noreturn void halt(void)
{
	for (;;)
		__asm__ volatile("cli; hlt");
}

void out8(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

uint8_t in8(uint16_t port)
{
	uint8_t value;
	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static uint64_t read_msr(uint32_t msr)
{
	uint32_t low, high;
	__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
	return (uint64_t)high << 32 | low;
}

/* ---- Descriptor tables ---- */

struct table_pointer {
	uint16_t limit;
	uint64_t base;
} __attribute__((packed));

struct gate {
	uint16_t low;
	uint16_t selector;
	uint16_t type;
	uint16_t middle;
	uint32_t high;
	uint32_t reserved;
};

extern const uint8_t exception_stubs[];
void load_descriptors(const struct table_pointer *gdt, const struct table_pointer *idt);
_Noreturn void exception(uint64_t vector, uint64_t first, uint64_t second);

static const uint64_t gdt[] = {
	0,
	UINT64_C(0x00af9b000000ffff), /* 64-bit code */
	UINT64_C(0x00cf93000000ffff), /* data */
};
static struct gate idt[32];

void set_descriptors(void)
{
	for (size_t vector = 0; vector < 32; vector++) {
		uint64_t to = (uint64_t)(exception_stubs + 16 * vector);
		idt[vector] = (struct gate){
			.low = (uint16_t)to,
			.selector = 8,
			.type = 0x8e00, /* interrupt gate, present */
			.middle = (uint16_t)(to >> 16),
			.high = (uint32_t)(to >> 32),
		};
	}
	const struct table_pointer gdt_at = { sizeof gdt - 1, (uint64_t)gdt };
	const struct table_pointer idt_at = { sizeof idt - 1, (uint64_t)idt };
	load_descriptors(&gdt_at, &idt_at);
}

_Noreturn void exception(uint64_t vector, uint64_t first, uint64_t second)
{
	print("@panic text=\"exception %lu, stack %lx %lx\"\n", vector, first, second);
	give_up(REASON_EXCEPTION, "an exception");
}

/* ---- The local APIC, in xAPIC mode ---- */

static volatile uint32_t *apic;

bool find_apic(void)
{
	uint64_t base = read_msr(0x1b);
	if (!(base & 1 << 11) || base & 1 << 10)
		return false;
	apic = pointer(base & UINT64_C(0xffffffffff000));
	return true;
}

uint32_t apic_id(void)
{
	return apic[0x20 / 4] >> 24;
}

void send_nmi(uint32_t to)
{
	apic[0x310 / 4] = to << 24;
	apic[0x300 / 4] = 4 << 8 | 1 << 14; /* NMI, assert, physical destination */
}

/* ---- Page tables ---- */

#define PRESENT UINT64_C(0x1)
#define WRITE UINT64_C(0x2)
#define UNCACHED UINT64_C(0x18) /* PCD and PWT */
#define LARGE UINT64_C(0x80)
#define NO_EXECUTE (UINT64_C(1) << 63)
#define ADDRESS UINT64_C(0xffffffffff000)

/* The entry tables map the partition's memory, the baton and the local APIC where they are. */
void *pointer(uint64_t physical)
{
	return (void *)physical;
}

uint64_t page_table(void)
{
	uint64_t root;
	__asm__ volatile("mov %%cr3, %0" : "=r"(root));
	return root & ADDRESS;
}

/* Where a page of delta's own image lies; 0 where it is not mapped. */
static uint64_t physical(const void *own)
{
	uint64_t address = (uint64_t)own, table = page_table();
	for (int shift = 39;; shift -= 9) {
		uint64_t entry = ((uint64_t *)pointer(table))[address >> shift & 511];
		uint64_t offset = address & ((UINT64_C(1) << shift) - 1);
		if (!(entry & PRESENT))
			return 0;
		if (shift == 12 || entry & LARGE)
			return (entry & ADDRESS & ~((UINT64_C(1) << shift) - 1)) + offset;
		table = entry & ADDRESS;
	}
}

static uint64_t *new_table(void)
{
	static uint64_t tables[24][512] __attribute__((aligned(4096)));
	static size_t used;
	return used < sizeof tables / sizeof tables[0] ? tables[used++] : NULL;
}

/* Maps a page of 4 KiB at its physical address; whether it could be. */
static bool map_page(uint64_t at, uint64_t leaf)
{
	uint64_t *entry = (uint64_t *)pointer(page_table()) + (at >> 39 & 511);
	for (int shift = 30; shift >= 12; shift -= 9) {
		if (!(*entry & PRESENT)) {
			uint64_t *table = new_table();
			if (table == NULL)
				return false;
			*entry = physical(table) | PRESENT | WRITE;
		} else if (*entry & LARGE) {
			/* Memory that the entry tables map; registers are not among it. */
			return !(leaf & UNCACHED);
		}
		entry = (uint64_t *)pointer(*entry & ADDRESS) + (at >> shift & 511);
	}
	if (!(*entry & PRESENT))
		*entry = at | leaf;
	return true;
}

bool map(uint64_t base, uint64_t length, bool registers)
{
	uint64_t leaf = PRESENT | WRITE | NO_EXECUTE | (registers ? UNCACHED : 0);
	uint64_t end = base + length;
	if (end < base || end > UINT64_C(1) << 47)
		return false;
	for (uint64_t at = base & ~(PAGE - 1); at < end; at += PAGE)
		if (!map_page(at, leaf))
			return false;
	return true;
}

/* ---- What the compiler may call ---- */

void *memcpy(void *restrict to, const void *restrict from, size_t length)
{
	void *result = to;
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(length) : : "memory");
	return result;
}

void *memset(void *to, int value, size_t length)
{
	void *result = to;
	__asm__ volatile("rep stosb" : "+D"(to), "+c"(length) : "a"(value) : "memory");
	return result;
}

int memcmp(const void *left, const void *right, size_t length)
{
	const uint8_t *a = left, *b = right;
	for (; length; length--, a++, b++)
		if (*a != *b)
			return *a - *b;
	return 0;
}
