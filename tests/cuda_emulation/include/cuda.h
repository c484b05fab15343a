// The driver's tensor maps: what ops/bulk_copy.cuh asks for. Names and shapes are CUDA's.
#pragma once
#include <cstdint>

enum CUresult { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1 };
enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_UINT8, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 };
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE };
enum CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_128B };
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_L2_256B };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE };
using cuuint64_t = uint64_t;
using cuuint32_t = uint32_t;

struct CUtensorMap {
  const unsigned char* data = nullptr;
  uint64_t rows = 0, columns = 0, stride = 0;
  uint32_t box_rows = 0, element_bytes = 0;  // boxes are 128 bytes wide
};
