/* From the handoff to a machine of delta's own. The rules are in docs/abi.md, entry.md and swap.md. */
#include "delta.h"

/* The console until the handoff says which: the second UART of a PC. */
#define LAST_RESORT 0x2f8
/* How long delta waits for a commit that was announced, in milliseconds. */
#define EXPECT 30000
/* How long it holds a committed workload for an onlooker before it serves all the same. */
#define HOLD 20000
/* A vector for the workload's devices. They are told not to interrupt, and delta does not look. */
#define VECTOR 0x60
#define FEATURES BATON_FEATURE_ADOPT_DEVICES

_Noreturn void delta(uint64_t handoff, uint64_t receipt);

static unsigned int processors;
static uint64_t memory_bytes;

/* The handoff cannot be honoured: nothing of it is relied on to say so. */
static _Noreturn void refuse(uint64_t receipt, enum reason reason, const char *why)
{
	print("@handoff-refused kernel=delta text=\"%s\"\n", why);
	/* The last act: the prime takes the processor as soon as it sees this. */
	atomic_store_explicit((_Atomic(uint64_t) *)pointer(receipt), (uint64_t)reason,
			      memory_order_release);
	halt();
}

static const void *record(uint32_t kind, const char *missing)
{
	const void *found = handoff_next(kind, NULL);
	if (found == NULL)
		give_up(REASON_NO_RECORD, missing);
	return found;
}

static void announce(void)
{
	print("@up kernel=delta letter=d abi=%u.%u partition=%u cpus=%u memory=%lu\n",
	      BATON_VERSION_MAJOR, BATON_VERSION_MINOR, handoff_header()->reader, processors,
	      memory_bytes);
}

/* The partition's other processors wait in the park area. */
static void start_processors(void)
{
	const struct baton_cpu *cpu = NULL;
	while ((cpu = handoff_next(BATON_KIND_CPU, cpu)) != NULL) {
		if (cpu->apic_id != apic_id() && !claim(cpu->apic_id))
			give_up(REASON_PROCESSOR, "a processor did not come out of the park area");
		processors++;
	}
	const struct baton_memory *range = NULL;
	while ((range = handoff_next(BATON_KIND_MEMORY, range)) != NULL)
		memory_bytes += range->length;
}

static void come_up(uint64_t at, uint64_t receipt)
{
	const char *wrong = handoff_read(at, FEATURES);
	if (wrong != NULL)
		refuse(receipt, REASON_UNREADABLE, wrong);
	const struct baton_console *console = handoff_next(BATON_KIND_CONSOLE, NULL);
	if (console != NULL)
		console_init((uint16_t)console->port);
	if (!(handoff_header()->features & BATON_FEATURE_ADOPT_DEVICES))
		refuse(receipt, REASON_FEATURES, "the prime cannot hand devices over");
	if (!baton_find())
		refuse(receipt, REASON_NO_BATON, "there is no baton where the handoff says");
	if (!find_apic())
		refuse(receipt, REASON_PROCESSOR, "the local APIC is not in xAPIC mode");
	wrong = baton_arrive();
	if (wrong != NULL)
		refuse(receipt, REASON_DISAGREES, wrong);
	status_enter(BATON_STATE_ENTERED);
	const struct baton_version version = handoff_header()->version;
	print("@entered kernel=delta partition=%u version=%u.%u bytes=%lu\n",
	      handoff_header()->reader, version.major, version.minor, handoff_header()->length);
	status_speak();
	status_enter(BATON_STATE_NEGOTIATED);
	print("@negotiated version=%u.%u features=%lu\n", version.major, version.minor,
	      (uint64_t)FEATURES);

	const struct baton_clock *clock = record(BATON_KIND_CLOCK, "the handoff has no clock");
	if (clock->tsc_hertz < 1000000)
		give_up(REASON_NO_RECORD, "the time stamp counter does not run");
	expect_hertz(clock->tsc_hertz);
	start_processors();
	wrong = workload_adopt(record(BATON_KIND_WORKLOAD, "the handoff has no workload"));
	if (wrong != NULL)
		give_up(REASON_WORKLOAD, wrong);
	announce();
	status_enter(BATON_STATE_READY);
}

/* Answers the console; whether it said "go". */
static bool obey(void)
{
	const char *line = read_line();
	if (line == NULL)
		return false;
	bool status = memcmp(line, "status", 7) == 0, go = memcmp(line, "go", 3) == 0;
	if (status)
		announce();
	if (status || go)
		print("@done command=%s result=ok\n", line);
	else
		print("@done command=%s result=refused text=\"delta knows status and go\"\n", line);
	return go;
}

/* The next message of the prime's; whether there is one. */
static bool heard(uint64_t message[BATON_MESSAGE_WORDS])
{
	int result = mailbox_receive(message);
	if (result < 0)
		give_up(REASON_MAILBOX, "the prime's mailbox holds nonsense");
	return result > 0;
}

/* Waits for the commit, which is one store of the prime's; whether to hold after it. */
static bool wait_for_commit(void)
{
	uint64_t message[BATON_MESSAGE_WORDS];
	bool expected = false, hold = false;
	for (uint64_t deadline = 0;; pause()) {
		if (expected && ledger_steward() == handoff_header()->reader)
			return hold;
		if (expected && now() > deadline)
			expected = false;
		if (heard(message)) {
			switch (message[0]) {
			case BATON_MESSAGE_EXPECT:
				hold = message[1] == 1;
				expected = true;
				deadline = after(EXPECT);
				if (!mailbox_send((const uint64_t[BATON_MESSAGE_WORDS]){
					    BATON_MESSAGE_EXPECTING, apic_id(), VECTOR,
					    [7] = message[7] }))
					give_up(REASON_MAILBOX, "the prime does not listen");
				break;
			case BATON_MESSAGE_STAND:
				expected = false;
				break;
			}
		}
		if (!expected) {
			status_beat();
			obey();
		}
	}
}

_Noreturn void delta(uint64_t handoff, uint64_t receipt)
{
	console_init(LAST_RESORT);
	set_descriptors();
	come_up(handoff, receipt);

	bool hold = wait_for_commit();
	uint64_t committed = now();
	if (hold) {
		print("@committed partition=%u\n", handoff_header()->reader);
		for (uint64_t deadline = after(HOLD); now() < deadline && !obey(); pause())
			;
	}
	workload_count_swap();
	net_poll();
	uint64_t served = now();
	status_enter(BATON_STATE_SERVING);
	ledger_take_up();
	print("@serving kernel=delta swap=%lu commit_to_service_ns=%lu\n", workload_swaps(),
	      nanoseconds(served - committed));

	bool alone = false;
	for (;;) {
		if (net_poll() > 0)
			continue;
		if (workload_broken())
			give_up(REASON_WORKLOAD, "a ring holds what cannot be");
		struct inherited what;
		if (!alone && prime_state() == BATON_STATE_RETIRED && inherit(&what)) {
			alone = true;
			processors += what.cpus;
			memory_bytes += what.memory;
			print("@inherited cpus=%u bytes=%lu devices=%u workers=%u\n", what.cpus,
			      what.memory, what.functions, workers());
		}
		obey();
		pause();
	}
}
