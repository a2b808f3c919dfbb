/* The workload where it lies: its header checked, its two rings gone on with, its store served. */
#include "delta.h"
#include "workload.h"

/* What virtio and this workload negotiated: VERSION_1, ACCESS_PLATFORM and MAC. */
#define FEATURES (UINT64_C(1) << 32 | UINT64_C(1) << 33 | UINT64_C(1) << 5)
#define VIRTIO_HEADER 12
#define DESCRIPTOR_NEXT 1
#define DESCRIPTOR_WRITE 2
#define NO_INTERRUPT 1
#define NO_NOTIFY 1
enum { RECEIVE, TRANSMIT };

struct ring {
	uint16_t size;
	struct descriptor *descriptors;
	struct available *available;
	struct used *used;
	struct driver_state *state;
	uint8_t *buffers;
	uint64_t buffers_at; /* For the device. */
	volatile uint16_t *notify;
	bool given; /* Chains that the device was not notified of. */
};

static uint8_t *memory;
static struct workload_header *header;
static struct store_slot *store;
static uint32_t store_slots;
static struct ring rings[2];
static struct network network;
static bool broken;

#define LOAD(from) atomic_load_explicit(from, memory_order_relaxed)
#define SAVE(to, value) atomic_store_explicit(to, value, memory_order_relaxed)

/* Adds to a counter that only the owner of the workload writes. */
static void count(shared64 *counter)
{
	SAVE(counter, LOAD(counter) + 1);
}

/* ---- Adoption ---- */

static uint64_t pages(uint64_t bytes)
{
	return (bytes + PAGE - 1) & ~(PAGE - 1);
}

static bool power_of_two(uint64_t number)
{
	return number != 0 && (number & (number - 1)) == 0;
}

static uint32_t fixed_checksum(void)
{
	uint32_t words[WORKLOAD_FIXED / 4], *word = words;
	for (shared32 *at = (shared32 *)header; word < words + WORKLOAD_FIXED / 4; at++)
		*word++ = LOAD(at);
	words[offsetof(struct workload_header, checksum) / 4] = 0;
	return crc32(0, words, sizeof words);
}

/* Where the parts of a queue begin, from its start; each does at a page of its own. */
enum ring_part { AVAILABLE, USED, STATE, END, RING_PARTS };

static void lay_out(uint32_t size, uint64_t parts[RING_PARTS])
{
	parts[AVAILABLE] = pages(UINT64_C(16) * size);
	parts[USED] = parts[AVAILABLE] + pages(6 + UINT64_C(2) * size);
	parts[STATE] = parts[USED] + pages(6 + UINT64_C(8) * size);
	parts[END] = parts[STATE] + PAGE;
}

static void ring_at(struct ring *ring, uint64_t queue, uint64_t buffers, uint16_t size)
{
	uint64_t parts[RING_PARTS];
	lay_out(size, parts);
	*ring = (struct ring){
		.size = size,
		.descriptors = (struct descriptor *)(memory + queue),
		.available = (struct available *)(memory + queue + parts[AVAILABLE]),
		.used = (struct used *)(memory + queue + parts[USED]),
		.state = (struct driver_state *)(memory + queue + parts[STATE]),
		.buffers = memory + buffers,
		.buffers_at = (uint64_t)memory + buffers,
	};
}

/* Every size is read once; the areas have one arrangement for each set of sizes. */
static const char *adopt_areas(uint64_t have)
{
	uint32_t receive = LOAD(&header->queue_size[RECEIVE]);
	uint32_t transmit = LOAD(&header->queue_size[TRANSMIT]);
	store_slots = LOAD(&header->store_slots);
	if (!power_of_two(receive) || receive > RING_MAX || !power_of_two(transmit) ||
	    transmit > RING_MAX || !power_of_two(store_slots) || store_slots > 1 << 20 ||
	    LOAD(&header->value_capacity) != VALUE_MAX || LOAD(&header->buffer_size) != BUFFER ||
	    LOAD(&header->header_length) != PAGE)
		return "a size is not what this layout has";
	uint64_t receive_parts[RING_PARTS], transmit_parts[RING_PARTS];
	lay_out(receive, receive_parts);
	lay_out(transmit, transmit_parts);
	const uint64_t lengths[AREAS] = {
		[STORE] = pages(store_slots * sizeof(struct store_slot)),
		[RECEIVE_QUEUE] = receive_parts[END],
		[TRANSMIT_QUEUE] = transmit_parts[END],
		[RECEIVE_BUFFERS] = pages(BUFFER * receive),
		[TRANSMIT_BUFFERS] = pages(BUFFER * transmit),
	};
	uint64_t offsets[AREAS], at = PAGE;
	for (int area = 0; area < AREAS; at += lengths[area++]) {
		offsets[area] = at;
		if (LOAD(&header->areas[area].offset) != at ||
		    LOAD(&header->areas[area].length) != lengths[area])
			return "an area is not where this layout has it";
	}
	if (LOAD(&header->length) != at || at > have)
		return "the header states another length";
	store = (struct store_slot *)(memory + offsets[STORE]);
	ring_at(&rings[RECEIVE], offsets[RECEIVE_QUEUE], offsets[RECEIVE_BUFFERS],
		(uint16_t)receive);
	ring_at(&rings[TRANSMIT], offsets[TRANSMIT_QUEUE], offsets[TRANSMIT_BUFFERS],
		(uint16_t)transmit);
	for (int i = 0; i < 2; i++)
		if (LOAD(&rings[i].state->size) != rings[i].size)
			return "a ring is of another size";
	return NULL;
}

/*
 * The header says where the device is notified, and delta has no way of its own to the device's
 * configuration space. It takes care that nothing is there which the ledger knows of: no memory, and
 * no remapping unit.
 */
static const char *adopt_device(uint16_t workload)
{
	struct entry function;
	if (LOAD(&header->nic.present) != 1 || LOAD(&header->nic.features) != FEATURES)
		return "the workload has no network device that delta can go on with";
	if (!ledger_find(BATON_RESOURCE_FUNCTION, LOAD(&header->nic.function), 1, &function) ||
	    function.owner != (BATON_OWNER_WORKLOAD | workload))
		return "the network device is not the workload's";
	for (int i = 0; i < 2; i++) {
		uint64_t at = LOAD(&header->nic.notify[i]);
		if (at % 2 != 0 || at >> 46 != 0 ||
		    ledger_overlaps(BATON_RESOURCE_MEMORY, at & ~(PAGE - 1), PAGE) ||
		    ledger_overlaps(BATON_RESOURCE_REMAPPING_UNIT, at & ~(PAGE - 1), PAGE))
			return "the network device cannot be notified there";
		if (!map(at, 2, true))
			return "there is no room for page tables";
		rings[i].notify = pointer(at);
	}
	return NULL;
}

static void unpack(uint64_t packed, uint8_t *bytes, size_t length)
{
	for (size_t i = 0; i < length; i++)
		bytes[i] = (uint8_t)(packed >> 8 * i);
}

const char *workload_adopt(const struct baton_workload *record)
{
	if (record->layout != WORKLOAD_MAGIC || record->layout_version != WORKLOAD_VERSION)
		return "the workload has a layout that delta does not know";
	if (record->base % PAGE != 0 || record->length < PAGE)
		return "the workload's memory has no room for a header";
	if (!map(record->base, record->length, false))
		return "there is no room for page tables";
	memory = pointer(record->base);
	header = (struct workload_header *)memory;
	if (atomic_load_explicit(&header->magic, memory_order_acquire) != WORKLOAD_MAGIC ||
	    LOAD(&header->version) != WORKLOAD_VERSION)
		return "the workload's memory does not begin with its header";
	if (LOAD(&header->checksum) != fixed_checksum())
		return "the checksum of the workload's header is wrong";
	if (LOAD(&header->dma_base) != record->base)
		return "the device knows the workload at another address";
	const char *wrong = adopt_areas(record->length);
	if (wrong == NULL)
		wrong = adopt_device(record->id);
	unpack(LOAD(&header->mac), network.mac, sizeof network.mac);
	unpack(LOAD(&header->address), network.address, sizeof network.address);
	network.port = (uint16_t)LOAD(&header->port);
	return wrong;
}

const struct network *workload_network(void)
{
	return &network;
}

uint64_t workload_swaps(void)
{
	return LOAD(&header->counters.swaps);
}

void workload_count_swap(void)
{
	SAVE(&header->counters.first_doorbell, 0);
	count(&header->counters.swaps);
	/* Delta looks for itself. */
	SAVE(&rings[RECEIVE].available->flags, NO_INTERRUPT);
	SAVE(&rings[TRANSMIT].available->flags, NO_INTERRUPT);
}

/* ---- The rings ---- */

static bool bit(shared64 words[4], uint32_t number)
{
	return LOAD(&words[number / 64]) >> number % 64 & 1;
}

static void set_bit(shared64 words[4], uint32_t number, bool on)
{
	uint64_t mask = UINT64_C(1) << number % 64, old = LOAD(&words[number / 64]);
	SAVE(&words[number / 64], on ? old | mask : old & ~mask);
}

static bool violation(struct ring *ring, bool ends)
{
	count(&ring->state->violations);
	broken |= ends;
	return false;
}

/* The next chain that came back. Each of this workload is a single descriptor. */
static bool take_used(struct ring *ring, uint16_t *head, uint32_t *length)
{
	uint16_t last = (uint16_t)LOAD(&ring->state->last_used);
	uint16_t used = atomic_load_explicit(&ring->used->index, memory_order_acquire);
	if (broken || used == last)
		return false;
	uint16_t available = LOAD(&ring->available->index);
	if ((uint16_t)(used - last) > (uint16_t)(available - last))
		return violation(ring, true);
	struct used_element *element = &ring->used->ring[last & (ring->size - 1)];
	uint32_t id = LOAD(&element->id);
	*length = LOAD(&element->length);
	SAVE(&ring->state->last_used, (uint16_t)(last + 1));
	if (id >= ring->size || !bit(ring->state->heads, id))
		return violation(ring, false);
	set_bit(ring->state->heads, id, false);
	set_bit(ring->state->busy, id, false);
	*head = (uint16_t)id;
	return true;
}

static void submit(struct ring *ring, uint16_t id, uint32_t length, bool device_writes)
{
	struct descriptor *descriptor = &ring->descriptors[id];
	SAVE(&descriptor->address, ring->buffers_at + BUFFER * id);
	SAVE(&descriptor->length, length);
	SAVE(&descriptor->flags, device_writes ? DESCRIPTOR_WRITE : 0);
	SAVE(&descriptor->next, 0);
	set_bit(ring->state->busy, id, true);
	set_bit(ring->state->heads, id, true);
	uint16_t index = LOAD(&ring->available->index);
	SAVE(&ring->available->ring[index & (ring->size - 1)], id);
	/* The device must not see the index before the entry and the descriptor. */
	atomic_store_explicit(&ring->available->index, (uint16_t)(index + 1),
			      memory_order_release);
	ring->given = true;
}

/* A transmit descriptor that is free, or the ring's size where all are busy. */
static uint16_t free_descriptor(struct ring *ring)
{
	for (uint16_t id = 0; id < ring->size; id++)
		if (!bit(ring->state->busy, id))
			return id;
	return ring->size;
}

size_t workload_receive(uint8_t *frame)
{
	struct ring *ring = &rings[RECEIVE];
	uint16_t id;
	uint32_t length;
	while (take_used(ring, &id, &length)) {
		bool whole = length >= VIRTIO_HEADER + 14 && length <= VIRTIO_HEADER + FRAME_MAX;
		if (whole) {
			/* Copied out before anything looks at it. */
			memcpy(frame, ring->buffers + BUFFER * (size_t)id + VIRTIO_HEADER,
			       length - VIRTIO_HEADER);
			count(&header->counters.frames_received);
		} else {
			count(&header->counters.dropped);
		}
		submit(ring, id, BUFFER, true);
		if (whole)
			return length - VIRTIO_HEADER;
	}
	return 0;
}

/* Whether a frame can be sent; takes back what was sent before where it has to. */
bool workload_can_send(void)
{
	struct ring *ring = &rings[TRANSMIT];
	uint16_t id;
	uint32_t length;
	while (take_used(ring, &id, &length))
		;
	return free_descriptor(ring) < ring->size;
}

void workload_send(const uint8_t *frame, size_t length)
{
	struct ring *ring = &rings[TRANSMIT];
	uint16_t id = free_descriptor(ring);
	if (id == ring->size || length > FRAME_MAX) {
		count(&header->counters.dropped);
		return;
	}
	uint8_t *buffer = ring->buffers + BUFFER * (size_t)id;
	memset(buffer, 0, VIRTIO_HEADER);
	memcpy(buffer + VIRTIO_HEADER, frame, length);
	submit(ring, id, (uint32_t)(VIRTIO_HEADER + length), false);
	count(&header->counters.frames_sent);
}

void workload_notify(void)
{
	for (uint16_t queue = 0; queue < 2; queue++) {
		struct ring *ring = &rings[queue];
		if (!ring->given)
			continue;
		ring->given = false;
		/* The index must be visible before the flag is read. */
		atomic_thread_fence(memory_order_seq_cst);
		if (LOAD(&ring->used->flags) & NO_NOTIFY)
			continue;
		*ring->notify = queue;
		if (queue == TRANSMIT) {
			uint64_t time = now();
			count(&header->counters.doorbells);
			SAVE(&header->counters.last_doorbell, time);
			if (LOAD(&header->counters.first_doorbell) == 0)
				SAVE(&header->counters.first_doorbell, time);
		}
	}
}

bool workload_broken(void)
{
	return broken;
}

/* ---- Neighbours ---- */

void workload_learn(const uint8_t address[4], const uint8_t mac[6])
{
	uint32_t wanted = 0;
	uint64_t packed = 0;
	for (int i = 3; i >= 0; i--)
		wanted = wanted << 8 | address[i];
	for (int i = 5; i >= 0; i--)
		packed = packed << 8 | mac[i];
	int place = -1;
	for (int i = 0; i < WORKLOAD_NEIGHBOURS; i++) {
		uint32_t found = LOAD(&header->neighbours[i].address);
		if (found == wanted && LOAD(&header->neighbours[i].mac) == packed)
			return;
		if (found == wanted || (found == 0 && place < 0))
			place = i;
	}
	if (place < 0)
		place = address[3] % WORKLOAD_NEIGHBOURS;
	/* Free while the two halves do not belong together. */
	SAVE(&header->neighbours[place].address, 0);
	atomic_store_explicit(&header->neighbours[place].mac, packed, memory_order_release);
	atomic_store_explicit(&header->neighbours[place].address, wanted, memory_order_release);
}

/* ---- The store ---- */

static uint32_t first_slot(uint32_t key)
{
	int bits = __builtin_ctz(store_slots);
	return bits == 0 ? 0 : key * UINT32_C(0x9e3779b1) >> (32 - bits);
}

/* The slot of a key, or the free one where it would be; NULL where there is neither. */
static struct store_slot *find(uint32_t key)
{
	for (uint32_t step = 0; step < store_slots; step++) {
		struct store_slot *slot = &store[(first_slot(key) + step) & (store_slots - 1)];
		if (atomic_load_explicit(&slot->writes, memory_order_acquire) == 0 ||
		    LOAD(&slot->key) == key)
			return slot;
	}
	return NULL;
}

static bool put(struct store_slot *slot, uint32_t key, const uint8_t *value, uint32_t length)
{
	uint64_t writes = LOAD(&slot->writes);
	if (writes == 0) {
		uint64_t keys = LOAD(&header->store.occupied);
		if (keys >= store_slots - store_slots / 8)
			return false;
		SAVE(&slot->key, key);
		SAVE(&header->store.occupied, keys + 1);
	}
	SAVE(&slot->length, length);
	for (uint32_t at = 0; at < length; at += 8) {
		uint64_t word = 0;
		memcpy(&word, value + at, length - at < 8 ? length - at : 8);
		SAVE(&slot->value[at / 8], word);
	}
	atomic_store_explicit(&slot->writes, writes + 1, memory_order_release);
	atomic_store_explicit(&header->store.applied, LOAD(&header->store.applied) + 1,
			      memory_order_release);
	return true;
}

static uint32_t get(struct store_slot *slot, uint8_t *value)
{
	uint32_t length = LOAD(&slot->length);
	if (length > VALUE_MAX)
		length = VALUE_MAX;
	for (uint32_t at = 0; at < length; at += 8) {
		uint64_t word = LOAD(&slot->value[at / 8]);
		memcpy(value + at, &word, length - at < 8 ? length - at : 8);
	}
	return length;
}

static bool well_formed(const struct request *request, size_t carried)
{
	bool reserved = request->reserved[0] | request->reserved[1] | request->reserved[2] ||
			request->reserved2 != 0;
	bool length = request->value_length == carried && carried <= VALUE_MAX;
	return !reserved && length &&
	       (request->op == OP_WRITE || (request->op == OP_READ && carried == 0));
}

size_t workload_answer(const uint8_t *datagram, size_t length, uint8_t *out)
{
	struct request request;
	if (length < sizeof request) {
		count(&header->counters.malformed);
		return 0;
	}
	memcpy(&request, datagram, sizeof request);
	if (request.magic != REQUEST_MAGIC) {
		count(&header->counters.malformed);
		return 0;
	}
	struct reply reply = {
		.magic = REPLY_MAGIC,
		.op = request.op | OP_REPLY,
		.status = STATUS_REFUSED,
		.kernel = 'd',
		.swap = (uint8_t)workload_swaps(),
		.sequence = request.sequence,
		.key = request.key,
	};
	struct store_slot *slot = find(request.key);
	if (well_formed(&request, length - sizeof request)) {
		if (request.op == OP_WRITE) {
			if (slot != NULL && put(slot, request.key, datagram + sizeof request,
						request.value_length))
				reply.status = STATUS_OK;
		} else if (slot != NULL && LOAD(&slot->writes) != 0) {
			reply.status = STATUS_OK;
			reply.value_length = get(slot, out + sizeof reply);
		} else {
			reply.status = STATUS_NOT_FOUND;
		}
	}
	reply.writes = slot == NULL ? 0 : LOAD(&slot->writes);
	reply.applied = LOAD(&header->store.applied);
	if (reply.status == STATUS_REFUSED)
		count(&header->counters.refused);
	count(&header->counters.answered);
	memcpy(out, &reply, sizeof reply);
	return sizeof reply + reply.value_length;
}
