// src/ops/ptx.cuh in plain C++, over tests/cuda_emulation/machine.h: the same functions, what they mean written out.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include <array>
#include <cstdint>
#include <cstring>

#include "base/check.h"
#include "base/dtype.h"

namespace ekiben::cuda {

inline void LaunchDependents() {}
inline void WaitUpstream() {}

// --- Numbers ---

inline uint32_t RoundedBf16(float x) {
  uint32_t bits = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return 0x7FFF;
  return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}
inline uint32_t Pack2(float low, float high) {
  return RoundedBf16(low) | RoundedBf16(high) << 16;
}
inline uint32_t PackHalf2(float low, float high) {
  return uint32_t{F32ToF16(low)} | uint32_t{F32ToF16(high)} << 16;
}
inline float FromHalf(uint32_t bits) {
  return F16ToF32(static_cast<uint16_t>(bits));
}
inline float FromBf16(uint32_t bits) {
  return std::bit_cast<float>(bits << 16);
}
inline float FromFp8Slowly(uint32_t code) {
  int exponent = static_cast<int>(code >> 3 & 15), fraction = static_cast<int>(code & 7);
  float value = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -9)
                              : std::ldexp(static_cast<float>(8 + fraction), exponent - 10);
  if ((code & 0x7F) == 0x7F) value = NAN;
  return (code & 0x80) != 0 ? -value : value;
}
inline float FromFp8(uint32_t code) {
  static const auto values = [] {
    std::array<float, 256> all{};
    for (uint32_t i = 0; i < 256; ++i) all[i] = FromFp8Slowly(i);
    return all;
  }();
  return values[code & 0xFF];
}
inline uint32_t RoundedFp8(float x) {
  uint32_t sign = std::signbit(x) ? 0x80 : 0;
  float size = std::abs(x);
  if (std::isnan(x)) return 0x7F;
  if (size == 0) return sign;
  if (size >= 448) return sign | 0x7E;
  int exponent = 0;
  (void)std::frexp(size, &exponent);
  exponent = std::max(exponent - 1, -6);
  // nearbyint rounds halves to even; a full fraction carries into the exponent by itself.
  auto steps = static_cast<uint32_t>(std::nearbyint(std::ldexp(size, 3 - exponent)));
  return sign | (static_cast<uint32_t>(exponent + 6) * 8 + steps);
}
inline uint32_t PackFp8x2(float low, float high) {
  return RoundedFp8(low) | RoundedFp8(high) << 8;
}
inline uint32_t HalfFromFp8x2(uint32_t two_codes) {
  return PackHalf2(FromFp8(two_codes & 0xFF), FromFp8(two_codes >> 8 & 0xFF));
}
inline void HalvesFromFp8x4(uint32_t four_codes, uint32_t& low, uint32_t& high) {
  low = HalfFromFp8x2(four_codes & 0xFFFF);
  high = HalfFromFp8x2(four_codes >> 16);
}
inline float2 FloatsFromFp8x2(uint32_t two_codes) {
  return make_float2(FromFp8(two_codes & 0xFF), FromFp8(two_codes >> 8 & 0xFF));
}
inline float Exp2(float x) {
  return std::exp2(x);
}
inline float Reciprocal(float x) {
  return 1 / x;
}

// --- Barriers in shared memory and the bulk copy engine ---

inline uint32_t SharedAddressOf(const void* pointer) {
  return emulation::SharedAddress(pointer);
}
struct BarrierState {
  uint64_t expected : 12, pending : 12, phase : 1;
  int64_t bytes : 39;
};
static_assert(sizeof(BarrierState) == 8);
inline void BarrierChange(uint32_t rank, uint32_t barrier, int arrivals, int64_t bytes) {
  auto& state = *reinterpret_cast<BarrierState*>(emulation::SharedOf(rank, barrier, 8));
  CHECK(static_cast<int>(state.pending) >= arrivals, "more arrivals than the barrier expects");
  state.bytes = state.bytes + bytes;
  state.pending = state.pending - static_cast<unsigned>(arrivals);
  if (state.pending == 0 && state.bytes == 0) {
    state.pending = state.expected;
    state.phase = state.phase ^ 1;
    emulation::Moved();
  }
}
inline void BarrierInit(uint32_t barrier, uint32_t count) {
  auto& state = *reinterpret_cast<BarrierState*>(emulation::Shared(barrier, 8));
  state.expected = state.pending = count;
  state.phase = 0;
  state.bytes = 0;
}
inline void BarrierExpect(uint32_t barrier, uint32_t bytes) {
  BarrierChange(emulation::ClusterRank(), barrier, 0, bytes);
  BarrierChange(emulation::ClusterRank(), barrier, 1, 0);
}
inline void BarrierArrive(uint32_t barrier) {
  BarrierChange(emulation::ClusterRank(), barrier, 1, 0);
}
inline void BarrierArriveRemote(uint32_t barrier, uint32_t rank) {
  BarrierChange(rank, barrier, 1, 0);
}
inline void BarrierReleaseRemote(uint32_t barrier, uint32_t rank) {
  BarrierChange(rank, barrier, 1, 0);
}
inline void BarrierWait(uint32_t barrier, uint32_t parity) {
  while (reinterpret_cast<BarrierState*>(emulation::Shared(barrier, 8))->phase == parity) emulation::Yield();
}
inline void BarrierWaitLocal(uint32_t barrier, uint32_t parity) {
  BarrierWait(barrier, parity);
}
inline void BarrierInitDone() {}
inline uint64_t EvictFirst() {
  return 0;
}
inline uint64_t EvictLast() {
  return 0;
}
inline uint64_t EvictNormal() {
  return 0;
}
// Where the 128-byte swizzle puts what would be at `address`.
inline uint32_t Swizzled(uint32_t address) {
  return address ^ ((address >> 7 & 7) << 4);
}
inline void PrefetchMap(const CUtensorMap*) {}
inline void TileLoad(uint32_t shared, const CUtensorMap* map, int x, int y, uint32_t barrier, uint64_t) {
  CHECK(shared % 1024 == 0, "a swizzled tile at {}", shared);
  for (uint32_t r = 0; r < map->box_rows; ++r) {
    for (uint32_t piece = 0; piece < 8; ++piece) {
      std::byte* to = emulation::Shared(Swizzled(shared + r * 128 + piece * 16), 16);
      for (uint32_t b = 0; b < 16; b += map->element_bytes) {
        int64_t row = y + int64_t{r}, column = x + int64_t{piece * 16 + b} / map->element_bytes;
        bool inside = row >= 0 && row < static_cast<int64_t>(map->rows) && column >= 0 &&
                      column < static_cast<int64_t>(map->columns);
        if (inside) {
          std::memcpy(
              to + b,
              map->data + static_cast<uint64_t>(row) * map->stride + static_cast<uint64_t>(column) * map->element_bytes,
              map->element_bytes);
        } else {
          std::memset(to + b, 0, map->element_bytes);
        }
      }
    }
  }
  BarrierChange(emulation::ClusterRank(), barrier, 0, -int64_t{128} * map->box_rows);
}
inline void BulkLoad(uint32_t shared, const void* from, uint32_t bytes, uint32_t barrier) {
  CHECK(shared % 16 == 0 && bytes % 16 == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0);
  std::memcpy(emulation::Shared(shared, bytes), from, bytes);
  BarrierChange(emulation::ClusterRank(), barrier, 0, -int64_t{bytes});
}

inline void StoresBeforeAsync() {}

// --- Asynchronous copies of 16 bytes ---

inline void CopyAsync(uint32_t shared, const void* from, bool valid) {
  CHECK(shared % 16 == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0);
  std::byte* to = emulation::Shared(shared, 16);
  if (valid) {
    std::memcpy(to, from, 16);
  } else {
    std::memset(to, 0, 16);
  }
}
inline void CopyAsyncCommit() {}
template <int kGroups>
inline void CopyAsyncWait() {}

// --- Threads and CTAs meeting ---

template <class T>
T* DynamicShared() {
  return reinterpret_cast<T*>(emulation::DynamicShared());
}
template <int kBarrier, int kThreads>
inline void NamedBarrier() {
  emulation::MeetNamed(kBarrier, kThreads);
}
inline uint32_t ClusterRank() {
  return emulation::ClusterRank();
}
inline uint32_t ClusterSize() {
  return emulation::ClusterSize();
}
inline void ClusterArrive() {
  emulation::ClusterArrive();
}
inline void ClusterArriveRelaxed() {
  emulation::ClusterArrive();
}
inline void ClusterWait() {
  emulation::ClusterWait();
}
inline void ClusterMeet() {
  emulation::ClusterArrive();
  emulation::ClusterWait();
}
inline void ClusterMeetRelaxed() {
  ClusterMeet();
}
inline float4 LoadClusterFloat4(uint32_t shared, uint32_t rank) {
  CHECK(shared % 16 == 0);
  return *reinterpret_cast<float4*>(emulation::SharedOf(rank, shared, 16));
}
inline float4 LoadSharedFloat4(uint32_t address) {
  return LoadClusterFloat4(address, ClusterRank());
}
inline void StoreClusterFloat(uint32_t shared, uint32_t rank, float value) {
  *reinterpret_cast<float*>(emulation::SharedOf(rank, shared, 4)) = value;
}
inline void StoreShared(uint32_t address, float value) {
  *reinterpret_cast<float*>(emulation::Shared(address, 4)) = value;
}

template <int kRegisters>
inline void TakeRegisters() {}
template <int kRegisters>
inline void GiveRegisters() {}

// --- Tensor cores by warps ---

struct LoadedMatrices {
  uint32_t address;
  uint32_t* r;
};
template <bool kTransposed>
void LoadAllMatrices(void* const* all) {
  auto lane = [&](int i) -> LoadedMatrices& { return *static_cast<LoadedMatrices*>(all[i]); };
  for (int m = 0; m < 4; ++m) {
    uint16_t matrix[8][8];
    for (int row = 0; row < 8; ++row) {
      CHECK(lane(8 * m + row).address % 16 == 0);
      std::memcpy(matrix[row], emulation::Shared(lane(8 * m + row).address, 16), 16);
    }
    for (int i = 0; i < 32; ++i) {
      int a = i / 4, b = 2 * (i % 4);
      uint32_t low = kTransposed ? matrix[b][a] : matrix[a][b],
               high = kTransposed ? matrix[b + 1][a] : matrix[a][b + 1];
      lane(i).r[m] = low | high << 16;
    }
  }
}
inline void LoadMatrices(uint32_t (&r)[4], uint32_t address) {
  LoadedMatrices mine{address, r};
  emulation::MeetWarp(&mine, LoadAllMatrices<false>);
}
inline void LoadMatricesTransposed(uint32_t (&r)[4], uint32_t address) {
  LoadedMatrices mine{address, r};
  emulation::MeetWarp(&mine, LoadAllMatrices<true>);
}

struct Transposed {
  uint32_t from, to;
};
inline void TransposeAll(void* const* all) {
  auto lane = [&](int row, int column) -> Transposed& { return *static_cast<Transposed*>(all[4 * row + column / 2]); };
  for (int row = 0; row < 8; ++row) {
    for (int column = 0; column < 8; column += 2) {
      auto element = [&](int r, int c) { return lane(r, c).from >> (16 * (c % 2)) & 0xFFFF; };
      lane(row, column).to = element(column, row) | element(column + 1, row) << 16;
    }
  }
}
inline uint32_t TransposeMatrix(uint32_t r) {
  Transposed mine{r, 0};
  emulation::MeetWarp(&mine, TransposeAll);
  return mine.to;
}

struct Multiplied {
  float* c;
  std::array<uint32_t, 4> a;
  std::array<uint32_t, 2> b;
};
template <bool kHalf>
void MultiplyAll(void* const* all) {
  auto number = [](uint32_t bits) { return kHalf ? FromHalf(bits & 0xFFFF) : FromBf16(bits & 0xFFFF); };
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& from = *static_cast<Multiplied*>(all[lane]);
    int g = lane / 4, t = lane % 4;
    for (int h = 0; h < 2; ++h) {
      for (int i = 0; i < 4; ++i)
        a[g + 8 * (i % 2)][2 * t + 8 * (i / 2) + h] = number(from.a[static_cast<size_t>(i)] >> (16 * h));
      for (int i = 0; i < 2; ++i) b[2 * t + 8 * i + h][g] = number(from.b[static_cast<size_t>(i)] >> (16 * h));
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    auto& to = *static_cast<Multiplied*>(all[lane]);
    for (int i = 0; i < 4; ++i) {
      int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      float sum = to.c[i];
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
      to.c[i] = sum;
    }
  }
}
template <bool kHalf>
inline void Multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Multiplied mine{c, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  emulation::MeetWarp(&mine, MultiplyAll<kHalf>);
}

}  // namespace ekiben::cuda
