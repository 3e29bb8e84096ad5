/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* hash.h - CityHash64 v1.1. */
#ifndef KV_HASH_H
#define KV_HASH_H

#include "base/integers.h"

uint64_t kv_hash(const uint8_t *key, size_t key_bytes);
/* Hash `count` keys of the same length, `stride` bytes apart. */
void kv_hash_many(const uint8_t *keys, size_t stride, size_t key_bytes, size_t count, uint64_t *hashes);

#endif
