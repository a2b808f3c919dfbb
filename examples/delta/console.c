/* A 16550-compatible UART in port space, polled both ways. */
#include "delta.h"

#include <stdarg.h>

/* How long the other end may take to read a character, in milliseconds. */
#define PATIENCE 1000

static uint16_t base;

void console_init(uint16_t port)
{
	base = port;
	out8((uint16_t)(base + 1), 0);	  /* no interrupts */
	out8((uint16_t)(base + 3), 0x80); /* the divisor: 115,200 bits a second */
	out8(base, 1);
	out8((uint16_t)(base + 1), 0);
	out8((uint16_t)(base + 3), 0x03); /* 8 bits, no parity, one stop bit */
	out8((uint16_t)(base + 2), 0x07); /* FIFOs on and empty */
	out8((uint16_t)(base + 4), 0x03);
}

static void put(char character)
{
	uint64_t deadline = after(PATIENCE);
	while (!(in8((uint16_t)(base + 5)) & 0x20))
		if (now() > deadline)
			return;
	out8(base, (uint8_t)character);
}

static void put_number(uint64_t number, unsigned int radix)
{
	char digits[20];
	int count = 0;
	do {
		digits[count++] = "0123456789abcdef"[number % radix];
		number /= radix;
	} while (number);
	while (count)
		put(digits[--count]);
}

/* Knows %s, %c, %u (unsigned int), %lu and %lx (uint64_t). */
void print(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	for (; *format; format++) {
		if (*format != '%') {
			put(*format);
			continue;
		}
		bool wide = *++format == 'l';
		if (wide)
			format++;
		if (*format == 's') {
			for (const char *text = va_arg(arguments, const char *); *text; text++)
				put(*text);
		} else if (*format == 'c') {
			put((char)va_arg(arguments, int));
		} else {
			uint64_t number = wide ? va_arg(arguments, unsigned long)
					       : va_arg(arguments, unsigned int);
			put_number(number, *format == 'x' ? 16 : 10);
		}
	}
	va_end(arguments);
}

/* The line that has just been ended, or NULL. What does not fit of it is lost. */
const char *read_line(void)
{
	static char line[64];
	static size_t length;
	while (in8((uint16_t)(base + 5)) & 0x01) {
		char character = (char)in8(base);
		if (character == '\n' || character == '\r') {
			line[length] = 0;
			length = 0;
			if (line[0])
				return line;
		} else if (length < sizeof line - 1) {
			line[length++] = character;
		}
	}
	return NULL;
}
