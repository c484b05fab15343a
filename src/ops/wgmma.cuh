// wgmma, f32 accumulators in registers. Wgmma<kTokens>: both operands in shared memory, 64 weight rows x kTokens
// tokens, one 32-byte step of K (16 bf16 or 32 e4m3). WgmmaRows: 64 rows from registers x 128 columns from shared
// memory, 16 of K. One specialisation a size, because the instruction names its registers one by one.
#pragma once
#include <cstdint>

namespace ekiben::cuda {

__device__ __forceinline__ void WgmmaFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits for all but the last kGroups commits.
template <int kGroups>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}
// What a product in flight reads or writes stays in its registers up to here: the compiler sees no other tie between
// them and a wait.
template <int kCount>
__device__ __forceinline__ void WgmmaHold(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <int kSteps>
__device__ __forceinline__ void WgmmaHold(uint32_t (&a)[kSteps][4]) {
#pragma unroll
  for (int i = 0; i < kSteps; ++i)
    asm volatile("" : "+r"(a[i][0]), "+r"(a[i][1]), "+r"(a[i][2]), "+r"(a[i][3])::"memory");
}

template <int kTokens>
struct Wgmma;

// registers: "%0, ..."; a, b, p: the numbers of the operands after them; then the registers as asm outputs.
#define EKIBEN_WGMMA(n, registers, a, b, p, ...)                                                    \
  if constexpr (kFp8) {                                                                             \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" p ", 0;\nwgmma.mma_async.sync.aligned.m64n" n \
                 "k32.f32.e4m3.e4m3 {" registers "}, %" a ", %" b ", p, 1, 1;\n}\n"                 \
                 : __VA_ARGS__                                                                      \
                 : "l"(weights), "l"(tokens), "r"(accumulate));                                     \
  } else {                                                                                          \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" p ", 0;\nwgmma.mma_async.sync.aligned.m64n" n \
                 "k16.f32.bf16.bf16 {" registers "}, %" a ", %" b ", p, 1, 1, 0, 0;\n}\n"           \
                 : __VA_ARGS__                                                                      \
                 : "l"(weights), "l"(tokens), "r"(accumulate));                                     \
  }
// clang-format off: register lists
#define EKIBEN_WGMMA_F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define EKIBEN_WGMMA_F16(i) EKIBEN_WGMMA_F4(i), EKIBEN_WGMMA_F4(i + 4), EKIBEN_WGMMA_F4(i + 8), EKIBEN_WGMMA_F4(i + 12)
#define EKIBEN_WGMMA_R0 "%0, %1, %2, %3"
#define EKIBEN_WGMMA_R4 ", %4, %5, %6, %7"
#define EKIBEN_WGMMA_R8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define EKIBEN_WGMMA_R16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
// clang-format on

template <>
struct Wgmma<8> {
  template <bool kFp8>
  static __device__ __forceinline__ void Run(float (&d)[4], uint64_t weights, uint64_t tokens, int accumulate) {
    EKIBEN_WGMMA("8", EKIBEN_WGMMA_R0, "4", "5", "6", EKIBEN_WGMMA_F4(0))
  }
};
template <>
struct Wgmma<16> {
  template <bool kFp8>
  static __device__ __forceinline__ void Run(float (&d)[8], uint64_t weights, uint64_t tokens, int accumulate) {
    EKIBEN_WGMMA("16", EKIBEN_WGMMA_R0 EKIBEN_WGMMA_R4, "8", "9", "10", EKIBEN_WGMMA_F4(0), EKIBEN_WGMMA_F4(4))
  }
};
template <>
struct Wgmma<32> {
  template <bool kFp8>
  static __device__ __forceinline__ void Run(float (&d)[16], uint64_t weights, uint64_t tokens, int accumulate) {
    EKIBEN_WGMMA("32", EKIBEN_WGMMA_R0 EKIBEN_WGMMA_R4 EKIBEN_WGMMA_R8, "16", "17", "18", EKIBEN_WGMMA_F16(0))
  }
};
template <>
struct Wgmma<64> {
  template <bool kFp8>
  static __device__ __forceinline__ void Run(float (&d)[32], uint64_t weights, uint64_t tokens, int accumulate) {
    EKIBEN_WGMMA("64", EKIBEN_WGMMA_R0 EKIBEN_WGMMA_R4 EKIBEN_WGMMA_R8 EKIBEN_WGMMA_R16, "32", "33", "34",
                 EKIBEN_WGMMA_F16(0), EKIBEN_WGMMA_F16(16))
  }
};

// d[64][128] (+)= a[64][16] * b[16][128]. a: the fragment of ops/ptx.cuh's Multiply, each warp 16 rows. b under the
// 128-byte swizzle: rows of 128 bytes of K for each column, or with kAcross rows of 128 bytes of columns for each of K.
#define EKIBEN_WGMMA_R32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define EKIBEN_WGMMA_R48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define EKIBEN_WGMMA_ROWS(type, across)                                                                                \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type  \
               " {" EKIBEN_WGMMA_R0 EKIBEN_WGMMA_R4 EKIBEN_WGMMA_R8 EKIBEN_WGMMA_R16 EKIBEN_WGMMA_R32 EKIBEN_WGMMA_R48 \
               "}, {%64, %65, %66, %67}, %68, p, 1, 1, " across ";\n}\n"                                               \
               : EKIBEN_WGMMA_F16(0), EKIBEN_WGMMA_F16(16), EKIBEN_WGMMA_F16(32), EKIBEN_WGMMA_F16(48)                 \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));

template <bool kHalf, bool kAcross>
__device__ __forceinline__ void WgmmaRows(float (&d)[64], const uint32_t (&a)[4], uint64_t b, int accumulate) {
  if constexpr (kHalf && kAcross) {
    EKIBEN_WGMMA_ROWS("f16", "1")
  } else if constexpr (kHalf) {
    EKIBEN_WGMMA_ROWS("f16", "0")
  } else if constexpr (kAcross) {
    EKIBEN_WGMMA_ROWS("bf16", "1")
  } else {
    EKIBEN_WGMMA_ROWS("bf16", "0")
  }
}

#undef EKIBEN_WGMMA_ROWS
#undef EKIBEN_WGMMA_R32
#undef EKIBEN_WGMMA_R48
#undef EKIBEN_WGMMA
#undef EKIBEN_WGMMA_F4
#undef EKIBEN_WGMMA_F16
#undef EKIBEN_WGMMA_R0
#undef EKIBEN_WGMMA_R4
#undef EKIBEN_WGMMA_R8
#undef EKIBEN_WGMMA_R16

}  // namespace ekiben::cuda
