/* The live areas: who owns what, how far everybody is, and the processors that are parked. */
#include "delta.h"

/* How long a claimed processor may take to leave the park area, in milliseconds. */
#define CLAIM 2000
#define WORKER_STACK 4096
#define WORKERS 16

static struct baton_ledger *ledger;
static struct baton_exchange *exchange;
static struct baton_park_slot *park;
static uint16_t me, prime;
static struct baton_partition_status *status;

void worker_entry(void);
_Noreturn void worker(uint64_t number);

static const struct baton_extent *extent(uint32_t purpose, uint64_t length)
{
	const struct baton_extent *found = NULL;
	while ((found = handoff_next(BATON_KIND_EXTENT, found)) != NULL)
		if (found->purpose == purpose && found->length >= length &&
		    found->base % PAGE == 0)
			return found;
	return NULL;
}

bool baton_find(void)
{
	const struct baton_extent *at = extent(BATON_PURPOSE_LEDGER, sizeof *ledger);
	const struct baton_extent *talk = extent(BATON_PURPOSE_EXCHANGE, sizeof *exchange);
	const struct baton_extent *area = extent(BATON_PURPOSE_PARK, BATON_PARK_AREA);
	if (at == NULL || talk == NULL || area == NULL)
		return false;
	ledger = pointer(at->base);
	exchange = pointer(talk->base);
	park = pointer(area->base + BATON_PARK_FIRST);
	return atomic_load_explicit(&ledger->magic, memory_order_acquire) == BATON_LEDGER_MAGIC;
}

/* ---- The ledger ---- */

static uint64_t stewardship(void)
{
	return atomic_load_explicit(&ledger->stewardship, memory_order_acquire);
}

static uint64_t word_of(uint32_t slot)
{
	return atomic_load_explicit(&ledger->slots[slot].word, memory_order_acquire);
}

static bool is_split(uint32_t parent)
{
	return parent != 0 && parent <= BATON_LEDGER_SLOTS &&
	       baton_word_phase(word_of(parent - 1)) == BATON_PHASE_SPLIT;
}

/* What is in a slot; whether it counts. */
static bool entry_at(uint32_t slot, struct entry *entry)
{
	if (slot >= BATON_LEDGER_SLOTS)
		return false;
	struct baton_ledger_slot *raw = &ledger->slots[slot];
	uint64_t word = word_of(slot);
	*entry = (struct entry){
		.slot = (uint16_t)slot,
		.kind = atomic_load_explicit(&raw->kind, memory_order_relaxed),
		.base = atomic_load_explicit(&raw->base, memory_order_relaxed),
		.length = atomic_load_explicit(&raw->length, memory_order_relaxed),
		.phase = baton_word_phase(word),
		.owner = baton_word_owner(word),
		.next = baton_word_next(word),
	};
	uint32_t parent = atomic_load_explicit(&raw->parent, memory_order_acquire);
	if (word_of(slot) != word)
		return false;
	if (entry->phase == BATON_PHASE_PENDING && is_split(parent))
		entry->phase = BATON_PHASE_SETTLED;
	return entry->phase == BATON_PHASE_SETTLED || entry->phase == BATON_PHASE_INTENT ||
	       entry->phase == BATON_PHASE_EFFECT;
}

static uint32_t slots(void)
{
	uint32_t used = atomic_load_explicit(&ledger->used, memory_order_acquire);
	return used < BATON_LEDGER_SLOTS ? used : BATON_LEDGER_SLOTS;
}

bool ledger_find(uint32_t kind, uint64_t base, uint64_t length, struct entry *found)
{
	for (uint32_t slot = 0; slot < slots(); slot++)
		if (entry_at(slot, found) && found->kind == kind && base >= found->base &&
		    length <= found->length && base - found->base <= found->length - length)
			return true;
	return false;
}

bool ledger_overlaps(uint32_t kind, uint64_t base, uint64_t length)
{
	struct entry entry;
	for (uint32_t slot = 0; slot < slots(); slot++)
		if (entry_at(slot, &entry) && entry.kind == kind &&
		    (base < entry.base ? entry.base - base < length
				       : base - entry.base < entry.length))
			return true;
	return false;
}

uint16_t ledger_steward(void)
{
	uint64_t bits = stewardship();
	struct entry workload;
	if (baton_stewardship_follows(bits) &&
	    entry_at(baton_stewardship_slot(bits), &workload) &&
	    workload.owner == (BATON_OWNER_PARTITION | baton_stewardship_next(bits)))
		return baton_stewardship_next(bits);
	return baton_stewardship_holder(bits);
}

/* Delta is the steward by the commit; from here on it is on paper too. */
void ledger_take_up(void)
{
	uint64_t bits = baton_stewardship(me, baton_stewardship_epoch(stewardship()) + 1);
	atomic_store_explicit(&ledger->stewardship, bits, memory_order_release);
}

/* Intent, effect and completion of a transfer whose effect needs nothing done. */
static bool transfer(const struct entry *entry, uint32_t to)
{
	struct baton_ledger_slot *raw = &ledger->slots[entry->slot];
	uint32_t epoch = baton_stewardship_epoch(stewardship());
	const uint64_t steps[] = {
		baton_word(BATON_PHASE_INTENT, entry->owner, to, epoch),
		baton_word(BATON_PHASE_EFFECT, entry->owner, to, epoch),
		baton_word(BATON_PHASE_SETTLED, to, to, epoch),
	};
	uint64_t found = word_of(entry->slot);
	if (baton_word_owner(found) != entry->owner)
		return false;
	for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
		if (!atomic_compare_exchange_strong_explicit(&raw->word, &found, steps[i],
							     memory_order_acq_rel,
							     memory_order_acquire))
			return false;
		found = steps[i];
	}
	return true;
}

/* ---- The exchange ---- */

const char *baton_arrive(void)
{
	const struct baton_header *header = handoff_header();
	struct entry cpu;
	me = header->reader;
	prime = header->writer;
	if (prime != ledger_steward())
		return "the handoff was not written by the steward";
	if (header->epoch != baton_stewardship_epoch(stewardship()))
		return "the handoff was written in another epoch";
	if (!ledger_find(BATON_RESOURCE_CPU, apic_id(), 1, &cpu) ||
	    cpu.owner != (BATON_OWNER_PARTITION | me))
		return "the handoff is for somebody else's processor";
	struct baton_partition_status *place = &exchange->status[me % BATON_MAX_PARTITIONS];
	if (atomic_load_explicit(&place->partition, memory_order_acquire) !=
		    (BATON_PLACE_IN_USE | me) ||
	    atomic_load_explicit(&place->state, memory_order_acquire) != BATON_STATE_LAUNCHED)
		return "nobody is expected in this partition's place";
	status = place;
	return NULL;
}

void status_enter(uint32_t state)
{
	atomic_store_explicit(&status->since, now(), memory_order_relaxed);
	atomic_store_explicit(&status->state, state, memory_order_release);
}

/* The handoff is in a version that delta reads, and that is the one it speaks. */
void status_speak(void)
{
	const struct baton_version version = handoff_header()->version;
	uint32_t bits = (uint32_t)version.major << 16 | version.minor;
	atomic_store_explicit(&status->version, bits, memory_order_relaxed);
	atomic_store_explicit(&status->features, BATON_FEATURE_ADOPT_DEVICES,
			      memory_order_release);
}

void status_beat(void)
{
	atomic_fetch_add_explicit(&status->heartbeat, 1, memory_order_relaxed);
}

_Noreturn void give_up(enum reason reason, const char *why)
{
	print("@failed kernel=delta text=\"%s\"\n", why);
	if (status != NULL) {
		atomic_store_explicit(&status->failure, reason, memory_order_relaxed);
		atomic_store_explicit(&status->detail, 0, memory_order_relaxed);
		atomic_store_explicit(&status->state, BATON_STATE_FAILED, memory_order_release);
	}
	halt();
}

uint32_t prime_state(void)
{
	struct baton_partition_status *place = &exchange->status[prime % BATON_MAX_PARTITIONS];
	return atomic_load_explicit(&place->state, memory_order_acquire);
}

static struct baton_mailbox *mailbox(uint16_t from, uint16_t to)
{
	return &exchange->mailboxes[from % BATON_MAX_PARTITIONS][to % BATON_MAX_PARTITIONS];
}

int mailbox_receive(uint64_t message[BATON_MESSAGE_WORDS])
{
	static uint32_t taken;
	struct baton_mailbox *box = mailbox(prime, me);
	uint32_t head = atomic_load_explicit(&box->head, memory_order_acquire);
	if (head == taken)
		return 0;
	if (head - taken > BATON_MAILBOX_SLOTS)
		return -1;
	_Atomic(uint64_t) *slot = box->slots[taken % BATON_MAILBOX_SLOTS];
	for (int word = 0; word < BATON_MESSAGE_WORDS; word++)
		message[word] = atomic_load_explicit(&slot[word], memory_order_relaxed);
	atomic_store_explicit(&box->tail, ++taken, memory_order_release);
	return 1;
}

bool mailbox_send(const uint64_t message[BATON_MESSAGE_WORDS])
{
	static uint32_t sent;
	struct baton_mailbox *box = mailbox(me, prime);
	uint32_t tail = atomic_load_explicit(&box->tail, memory_order_acquire);
	if (sent - tail >= BATON_MAILBOX_SLOTS)
		return false;
	_Atomic(uint64_t) *slot = box->slots[sent % BATON_MAILBOX_SLOTS];
	for (int word = 0; word < BATON_MESSAGE_WORDS; word++)
		atomic_store_explicit(&slot[word], message[word], memory_order_relaxed);
	atomic_store_explicit(&box->head, ++sent, memory_order_release);
	return true;
}

/* ---- The park area ---- */

static struct baton_park_slot *slot_of(uint32_t cpu)
{
	for (int i = 0; i < BATON_PARK_COUNT; i++) {
		uint64_t word = atomic_load_explicit(&park[i].word, memory_order_acquire);
		if (baton_park_cpu(word) == cpu && baton_park_state(word) != BATON_PARK_STATE_EMPTY)
			return &park[i];
	}
	return NULL;
}

static uint32_t park_state(struct baton_park_slot *slot)
{
	return baton_park_state(atomic_load_explicit(&slot->word, memory_order_acquire));
}

static _Atomic(unsigned int) at_work;

unsigned int workers(void)
{
	return atomic_load_explicit(&at_work, memory_order_acquire);
}

/* A claimed processor: it has nothing to do here, and is delta's from its descriptor tables on. */
_Noreturn void worker(uint64_t number)
{
	(void)number;
	set_descriptors();
	atomic_fetch_add_explicit(&at_work, 1, memory_order_release);
	halt();
}

bool claim(uint32_t cpu)
{
	static uint8_t stacks[WORKERS][WORKER_STACK] __attribute__((aligned(16)));
	static unsigned int claimed;
	struct baton_park_slot *slot = slot_of(cpu);
	if (slot == NULL || claimed == WORKERS)
		return false;
	uint64_t stack = (uint64_t)(stacks[claimed] + WORKER_STACK);
	atomic_store_explicit(&slot->entry, (uint64_t)worker_entry, memory_order_relaxed);
	atomic_store_explicit(&slot->page_table, page_table(), memory_order_relaxed);
	atomic_store_explicit(&slot->stack, stack, memory_order_relaxed);
	atomic_store_explicit(&slot->argument, claimed, memory_order_relaxed);
	uint64_t parked = baton_park_word(cpu, BATON_PARK_STATE_PARKED);
	if (!atomic_compare_exchange_strong_explicit(
		    &slot->word, &parked, baton_park_word(cpu, BATON_PARK_STATE_CLAIMED),
		    memory_order_acq_rel, memory_order_acquire))
		return false;
	claimed++;
	send_nmi(cpu);
	for (uint64_t deadline = after(CLAIM); workers() < claimed; pause())
		if (now() > deadline)
			return false;
	return true;
}

/* ---- What the prime had ---- */

bool inherit(struct inherited *what)
{
	const uint32_t theirs = BATON_OWNER_PARTITION | prime, mine = BATON_OWNER_PARTITION | me;
	struct entry entry;
	/* Nothing is taken before none of its processors can reach it any more. */
	for (uint32_t slot = 0; slot < slots(); slot++)
		if (entry_at(slot, &entry) && entry.kind == BATON_RESOURCE_CPU &&
		    entry.owner == theirs) {
			struct baton_park_slot *place = slot_of((uint32_t)entry.base);
			if (place == NULL || park_state(place) != BATON_PARK_STATE_PARKED)
				return false;
		}
	*what = (struct inherited){ 0 };
	for (uint32_t slot = 0; slot < slots(); slot++) {
		if (!entry_at(slot, &entry) || entry.owner != theirs)
			continue;
		if (!transfer(&entry, mine))
			give_up(REASON_DISAGREES, "somebody else writes the ledger");
		if (entry.kind == BATON_RESOURCE_MEMORY)
			what->memory += entry.length;
		else if (entry.kind == BATON_RESOURCE_FUNCTION)
			what->functions++;
		else if (entry.kind == BATON_RESOURCE_CPU)
			what->cpus += claim((uint32_t)entry.base);
	}
	return true;
}
