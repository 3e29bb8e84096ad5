/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * hash.c - CityHash64 v1.1, the hash that MICA2 clients put on the wire.
 *
 * Written from the algorithm's public description (Pike and Alakuijala, 2011-2013). The names of the four length
 * classes and of the mixing steps are the ones used there.
 */
#include <string.h>

#include "base/hash.h"

#define K0 0xc3a5c85c97cb3127ULL
#define K1 0xb492b66fbe98f273ULL
#define K2 0x9ae16a3b2f90404fULL
#define K_MUL 0x9ddfea08eb382d69ULL

static uint64_t hash_1_to_16(const uint8_t *key, size_t key_bytes);
static uint64_t hash_17_to_32(const uint8_t *key, size_t key_bytes);
static uint64_t hash_33_to_64(const uint8_t *key, size_t key_bytes);
static uint64_t hash_over_64(const uint8_t *key, size_t key_bytes);

uint64_t kv_hash(const uint8_t *key, size_t key_bytes)
{
	if (key_bytes == 0)
		return K2;
	if (key_bytes <= 16)
		return hash_1_to_16(key, key_bytes);
	if (key_bytes <= 32)
		return hash_17_to_32(key, key_bytes);
	if (key_bytes <= 64)
		return hash_33_to_64(key, key_bytes);
	return hash_over_64(key, key_bytes);
}

void kv_hash_many(const uint8_t *keys, size_t stride, size_t key_bytes, size_t count, uint64_t *hashes)
{
	if (key_bytes == 8) {
		/* With a constant length the compiler removes every branch: five multiplications per key. */
		for (size_t i = 0; i < count; i++)
			hashes[i] = hash_1_to_16(keys + i * stride, 8);
		return;
	}
	for (size_t i = 0; i < count; i++)
		hashes[i] = kv_hash(keys + i * stride, key_bytes);
}

/* ---- Mixing ---- */

struct pair {
	uint64_t first, second;
};

static inline uint64_t fetch64(const uint8_t *from)
{
	uint64_t word;

	memcpy(&word, from, sizeof(word));
	return word;
}

static inline uint64_t fetch32(const uint8_t *from)
{
	uint32_t word;

	memcpy(&word, from, sizeof(word));
	return word;
}

static inline uint64_t rotate(uint64_t word, int right)
{
	return word >> right | word << (64 - right);
}

static inline uint64_t shift_mix(uint64_t word)
{
	return word ^ word >> 47;
}

static inline uint64_t mix_16(uint64_t u, uint64_t v, uint64_t mul)
{
	uint64_t a = shift_mix((u ^ v) * mul);

	return shift_mix((v ^ a) * mul) * mul;
}

static inline struct pair weak_mix_32(const uint8_t *from, uint64_t a, uint64_t b)
{
	uint64_t last = fetch64(from + 24);
	uint64_t start;

	a += fetch64(from);
	start = a;
	b = rotate(b + a + last, 21);
	a += fetch64(from + 8) + fetch64(from + 16);
	b += rotate(a, 44);
	return (struct pair){ a + last, b + start };
}

/* ---- The four length classes ---- */

static inline uint64_t hash_1_to_16(const uint8_t *key, size_t key_bytes)
{
	uint64_t mul = K2 + key_bytes * 2;

	if (key_bytes >= 8) {
		uint64_t a = fetch64(key) + K2;
		uint64_t b = fetch64(key + key_bytes - 8);

		return mix_16(rotate(b, 37) * mul + a, (rotate(a, 25) + b) * mul, mul);
	}
	if (key_bytes >= 4)
		return mix_16(key_bytes + (fetch32(key) << 3), fetch32(key + key_bytes - 4), mul);

	uint64_t y = key[0] + ((uint64_t)key[key_bytes >> 1] << 8);
	uint64_t z = key_bytes + ((uint64_t)key[key_bytes - 1] << 2);

	return shift_mix(y * K2 ^ z * K0) * K2;
}

static uint64_t hash_17_to_32(const uint8_t *key, size_t key_bytes)
{
	const uint8_t *end = key + key_bytes;
	uint64_t mul = K2 + key_bytes * 2;
	uint64_t a = fetch64(key) * K1;
	uint64_t b = fetch64(key + 8);
	uint64_t c = fetch64(end - 8) * mul;
	uint64_t d = fetch64(end - 16) * K2;

	return mix_16(rotate(a + b, 43) + rotate(c, 30) + d, a + rotate(b + K2, 18) + c, mul);
}

static uint64_t hash_33_to_64(const uint8_t *key, size_t key_bytes)
{
	const uint8_t *end = key + key_bytes;
	uint64_t mul = K2 + key_bytes * 2;
	uint64_t a = fetch64(key) * K2;
	uint64_t b = fetch64(key + 8);
	uint64_t c = fetch64(end - 24);
	uint64_t d = fetch64(end - 32);
	uint64_t e = fetch64(key + 16) * K2;
	uint64_t f = fetch64(key + 24) * 9;
	uint64_t g = fetch64(end - 8);
	uint64_t h = fetch64(end - 16) * mul;
	uint64_t u = rotate(a + g, 43) + (rotate(b, 30) + c) * 9;
	uint64_t v = ((a + g) ^ d) + f + 1;
	uint64_t w = __builtin_bswap64((u + v) * mul) + h;
	uint64_t x = rotate(e + f, 42) + c;
	uint64_t y = (__builtin_bswap64((v + w) * mul) + g) * mul;
	uint64_t z = e + f + c;

	a = __builtin_bswap64((x + z) * mul + y) + b;
	return shift_mix((z + a) * mul + d + h) * mul + x;
}

static uint64_t hash_over_64(const uint8_t *key, size_t key_bytes)
{
	const uint8_t *end = key + key_bytes;
	uint64_t x = fetch64(end - 40);
	uint64_t y = fetch64(end - 16) + fetch64(end - 56);
	uint64_t z = mix_16(fetch64(end - 48) + key_bytes, fetch64(end - 24), K_MUL);
	struct pair v = weak_mix_32(end - 64, key_bytes, z);
	struct pair w = weak_mix_32(end - 32, y + K1, x);

	x = x * K1 + fetch64(key);
	/* Whole blocks of 64 bytes from the start. The last 64 bytes have been mixed in above. */
	for (size_t blocks = (key_bytes - 1) / 64; blocks > 0; blocks--, key += 64) {
		uint64_t next_x;

		x = rotate(x + y + v.first + fetch64(key + 8), 37) * K1 ^ w.second;
		y = rotate(y + v.second + fetch64(key + 48), 42) * K1 + v.first + fetch64(key + 40);
		next_x = rotate(z + w.first, 33) * K1;
		v = weak_mix_32(key, v.second * K1, x + w.first);
		w = weak_mix_32(key + 32, next_x + w.second, y + fetch64(key + 16));
		z = x;
		x = next_x;
	}
	return mix_16(mix_16(v.first, w.first, K_MUL) + shift_mix(y) * K1 + z, mix_16(v.second, w.second, K_MUL) + x,
		      K_MUL);
}
