/*
 * Ethernet, ARP, IPv4 (RFC 791) and UDP (RFC 768), as much as it takes to answer who asked: an answer
 * goes back to where the question came from, so no address has to be looked up.
 */
#include "delta.h"

/* Frames taken in one go. */
#define BUDGET 64
enum { ETHERNET = 14, ARP = 28, IPV4 = 20, UDP = 8 };

static uint16_t get16(const uint8_t *at)
{
	return (uint16_t)(at[0] << 8 | at[1]);
}

static void put16(uint8_t *at, uint16_t value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
}

/* The ones' complement sum of RFC 1071, to be folded. */
static uint32_t sum(uint32_t sum, const uint8_t *bytes, size_t length)
{
	for (size_t i = 0; i + 1 < length; i += 2)
		sum += get16(bytes + i);
	if (length % 2)
		sum += (uint32_t)bytes[length - 1] << 8;
	return sum;
}

static uint16_t fold(uint32_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

/* The checksum over UDP's pseudo header, header and data. */
static uint16_t udp_sum(const uint8_t *ip, const uint8_t *udp, size_t length)
{
	return fold(sum(sum(17 + (uint32_t)length, ip + 12, 8), udp, length));
}

static void ethernet(uint8_t *out, const uint8_t *frame)
{
	memcpy(out, frame + 6, 6);
	memcpy(out + 6, workload_network()->mac, 6);
	memcpy(out + 12, frame + 12, 2);
}

/* Answers who asks for the workload's address, and remembers it for whoever serves next. */
static void arp(const uint8_t *frame, size_t length)
{
	static const uint8_t request[] = { 0, 1, 8, 0, 6, 4, 0, 1 };
	const uint8_t *packet = frame + ETHERNET;
	const struct network *own = workload_network();
	if (length < ETHERNET + ARP || memcmp(packet, request, sizeof request) != 0 ||
	    memcmp(packet + 24, own->address, 4) != 0 || packet[8] & 1)
		return;
	workload_learn(packet + 14, packet + 8);
	uint8_t out[ETHERNET + ARP];
	ethernet(out, frame);
	memcpy(out + ETHERNET, request, sizeof request);
	put16(out + ETHERNET + 6, 2);
	memcpy(out + ETHERNET + 8, own->mac, 6);
	memcpy(out + ETHERNET + 14, own->address, 4);
	memcpy(out + ETHERNET + 18, packet + 8, 10);
	workload_send(out, sizeof out);
}

static void ipv4(const uint8_t *frame, size_t length)
{
	static uint8_t out[ETHERNET + IPV4 + UDP + DATAGRAM_MAX];
	const uint8_t *ip = frame + ETHERNET;
	const struct network *own = workload_network();
	if (length < ETHERNET + IPV4)
		return;
	size_t head = (ip[0] & 15) * 4, whole = get16(ip + 2);
	/* Version 4; all of it there; no fragment; UDP; for the workload. */
	if (ip[0] >> 4 != 4 || head < IPV4 || whole < head + UDP || whole > length - ETHERNET ||
	    get16(ip + 6) & 0x3fff || ip[9] != 17 || fold(sum(0, ip, head)) != 0 ||
	    memcmp(ip + 16, own->address, 4) != 0 || frame[6] & 1)
		return;
	const uint8_t *udp = ip + head;
	size_t stated = get16(udp + 4);
	if (stated < UDP || stated > whole - head || get16(udp + 2) != own->port ||
	    (get16(udp + 6) != 0 && udp_sum(ip, udp, stated) != 0))
		return;
	uint8_t *reply = out + ETHERNET + IPV4 + UDP;
	size_t answer = workload_answer(udp + UDP, stated - UDP, reply);
	if (answer == 0)
		return;
	ethernet(out, frame);
	uint8_t *to = out + ETHERNET;
	memset(to, 0, IPV4 + UDP);
	to[0] = 0x45;
	put16(to + 2, (uint16_t)(IPV4 + UDP + answer));
	put16(to + 6, 0x4000); /* not to be fragmented */
	to[8] = 64;
	to[9] = 17;
	memcpy(to + 12, own->address, 4);
	memcpy(to + 16, ip + 12, 4);
	put16(to + 10, fold(sum(0, to, IPV4)));
	memcpy(to + IPV4, udp + 2, 2);
	memcpy(to + IPV4 + 2, udp, 2);
	put16(to + IPV4 + 4, (uint16_t)(UDP + answer));
	uint16_t check = udp_sum(to, to + IPV4, UDP + answer);
	put16(to + IPV4 + 6, check ? check : 0xffff);
	workload_send(out, ETHERNET + IPV4 + UDP + answer);
}

unsigned int net_poll(void)
{
	static uint8_t frame[FRAME_MAX];
	unsigned int frames = 0;
	/* Each frame may be answered, so none is taken that could not be. */
	while (frames < BUDGET && workload_can_send()) {
		size_t length = workload_receive(frame);
		if (length == 0)
			break;
		frames++;
		switch (get16(frame + 12)) {
		case 0x0806: arp(frame, length); break;
		case 0x0800: ipv4(frame, length); break;
		}
	}
	workload_notify();
	return frames;
}
