// Tensor maps for the bulk copy engine (TileLoad of ops/ptx.cuh): tiles of a row-major matrix arrive in shared memory,
// swizzled in 128-byte rows. Encoded on the host by the driver, through the runtime's entry point, so that nothing
// links against libcuda.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "ops/cuda_ops.h"

namespace ekiben::cuda {

// A row-major [rows][columns] matrix of bf16, or of bytes (e4m3), read in boxes of box_rows x 128 bytes, swizzled.
// Outside reads as zero.
inline cudaError_t EncodeRows(CUtensorMap* map, const void* data, bool bytes, uint64_t rows, uint64_t columns,
                              uint32_t box_rows) {
  using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                              const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                              CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    cudaError_t status =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
    return status == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(function) : nullptr;
  }();
  if (encode == nullptr) return cudaErrorNotSupported;
  cuuint64_t sizes[2] = {columns, rows}, strides[1] = {columns * (bytes ? 1 : 2)};
  cuuint32_t box[2] = {bytes ? 128u : 64u, box_rows}, steps[2] = {1, 1};
  CUresult status =
      encode(map, bytes ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(data),
             sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return status == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// The cache's pools over all layers: a row is a head's token, a box one head's block.
struct CacheMaps {
  CUtensorMap keys, values;
};
// In boxes of a block's tokens, or of fewer.
inline cudaError_t EncodeCache(CacheMaps* maps, const KvLayout& kv, int32_t box_tokens = 0) {
  const auto columns = static_cast<uint64_t>(kv.head_stride);
  const uint64_t rows = kv.layer_elements() / columns * static_cast<uint64_t>(kv.layers);
  if (rows > 0x7FFFFFFFu) return cudaErrorInvalidValue;  // coordinates are 32 bits
  const auto block = static_cast<uint32_t>(box_tokens > 0 ? box_tokens : kv.tokens_per_block);
  cudaError_t status = EncodeRows(&maps->keys, kv.keys, kv.fp8, rows, columns, block);
  if (status != cudaSuccess) return status;
  return EncodeRows(&maps->values, kv.values, kv.fp8, rows, columns, block);
}

}  // namespace ekiben::cuda
