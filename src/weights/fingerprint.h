// The checkpoint's cache key: SHA-256 over the header bytes of its files, each tensor's name, dtype, shape and size,
// and the first, middle and last 4 KiB of its content. It reads a few MB of a checkpoint of any size. Two checkpoints
// that differ only elsewhere inside a tensor share it: it is a cache key, not a proof of integrity. Thread: pure
// function.
#pragma once
#include <map>
#include <span>
#include <string>
#include <vector>

#include "weights/checkpoint.h"

namespace ekiben {

// `headers`: metadata, configuration and tokenizer files, in a fixed order.
std::string Fingerprint(const std::map<std::string, CheckpointTensor, std::less<>>& tensors,
                        const std::vector<std::span<const std::byte>>& headers);

}  // namespace ekiben
