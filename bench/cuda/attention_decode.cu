// Ladder 3: paged decode attention (paged_attention.cuh), Llama-3-8B heads. Checks odd lengths with poisoned page tails against
// fp64, the same sequence alone and in a batch bit by bit, then times split lengths and warp counts over batch and context with
// KV rotated past L2.
//
// Usage: attention_decode OUT.json | --check
#include <cstring>

#include "bench_common.h"
#include "paged_attention.cuh"

namespace {

using namespace bench;

constexpr float kKScale = 0.5f, kVScale = 2.0f;

template <typename KV>
constexpr bool kIsFp8 = sizeof(KV) == 1;

// Device state of one batch: queries, tables, items, scratch.
struct Batch {
  Batch(const std::vector<int>& lengths, const std::vector<std::vector<int>>& pages, int split) : lengths(lengths) {
    int longest = *std::max_element(lengths.begin(), lengths.end());
    params.table_pitch = (longest + kPage - 1) / kPage;
    params.max_chunks = (longest + split - 1) / split;
    params.split = split;
    std::vector<int> table(lengths.size() * params.table_pitch, 0x7FFFFFFF);
    std::vector<int4> list;
    for (size_t s = 0; s < lengths.size(); ++s) {
      std::copy(pages[s].begin(), pages[s].end(), table.begin() + s * params.table_pitch);
      for (int c = 0; c * split < lengths[s]; ++c) {
        for (int h = 0; h < kKvHeads; ++h) list.push_back({static_cast<int>(s), h, c, lengths[s]});
      }
    }
    block_table = Buffer<int>(table.size());
    block_table.Upload(table);
    items = Buffer<int4>(list.size());
    items.Upload(list);
    item_count = Buffer<int>(1);
    item_count.Upload({static_cast<int>(list.size())});
    size_t owners = lengths.size() * kKvHeads;
    partial = Buffer<float>(owners * params.max_chunks * kGroup * kHeadDim);
    partial_ml = Buffer<float2>(owners * params.max_chunks * kGroup);
    arrived = Buffer<unsigned>(owners);
    arrived.FillBytes(0);
    partial.FillBytes(0xFF);
    partial_ml.FillBytes(0xFF);
    params.block_table = block_table.data();
    params.items = items.data();
    params.item_count = item_count.data();
    params.partial = partial.data();
    params.partial_ml = partial_ml.data();
    params.arrived = arrived.data();
  }

  std::vector<int> lengths;
  Buffer<int> block_table, item_count;
  Buffer<int4> items;
  Buffer<float> partial;
  Buffer<float2> partial_ml;
  Buffer<unsigned> arrived;
  AttentionParams params = {};
};

template <typename KV>
void SetScales(AttentionParams& params) {
  params.scale_log2 = 1.4426950408889634f / std::sqrt(static_cast<float>(kHeadDim)) * (kIsFp8<KV> ? kKScale : 1.0f);
  params.v_scale = kIsFp8<KV> ? kVScale : 1.0f;
}

template <typename KV>
void Check() {
  std::vector<int> lengths = {1, 63, 64, 65, 127, 300, 511, 1000, 1337, 17};
  int total_pages = 90;
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  size_t pool_count = static_cast<size_t>(total_pages) * kKvHeads * kPage * kHeadDim;
  std::vector<KV> k(pool_count), v(pool_count);
  std::memset(static_cast<void*>(k.data()), 0xFF, pool_count * sizeof(KV));  // NaN wherever no token lives
  std::memset(static_cast<void*>(v.data()), 0xFF, pool_count * sizeof(KV));
  std::vector<int> order(total_pages);
  for (int i = 0; i < total_pages; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), random);
  std::vector<std::vector<int>> pages;
  int taken = 0;
  auto at = [&](size_t s, int head, int token) {
    return ((static_cast<size_t>(pages[s][token / kPage]) * kKvHeads + head) * kPage + token % kPage) * kHeadDim;
  };
  for (size_t s = 0; s < lengths.size(); ++s) {
    int need = (lengths[s] + kPage - 1) / kPage;
    Require(taken + need <= total_pages, "pages");
    pages.emplace_back(order.begin() + taken, order.begin() + taken + need);
    taken += need;
    for (int h = 0; h < kKvHeads; ++h) {
      for (int token = 0; token < lengths[s]; ++token) {
        size_t base = at(s, h, token);
        for (int d = 0; d < kHeadDim; ++d) {
          k[base + d] = KV(normal(random) * 2);
          v[base + d] = KV(normal(random));
        }
      }
    }
  }
  std::vector<__nv_bfloat16> q(lengths.size() * kQHeads * kHeadDim);
  for (auto& x : q) x = __nv_bfloat16(normal(random));
  std::vector<double> want(q.size());
  double scale = 1 / std::sqrt(static_cast<double>(kHeadDim)) * (kIsFp8<KV> ? kKScale : 1.0);
  for (size_t s = 0; s < lengths.size(); ++s) {
    for (int h = 0; h < kQHeads; ++h) {
      const __nv_bfloat16* query = q.data() + (s * kQHeads + h) * kHeadDim;
      std::vector<double> score(lengths[s]);
      double top = -1e300, sum = 0;
      for (int token = 0; token < lengths[s]; ++token) {
        size_t base = at(s, h / kGroup, token);
        for (int d = 0; d < kHeadDim; ++d) score[token] += Decode(query[d]) * Decode(k[base + d]);
        score[token] *= scale;
        top = std::max(top, score[token]);
      }
      for (double& x : score) sum += x = std::exp(x - top);
      for (int token = 0; token < lengths[s]; ++token) {
        size_t base = at(s, h / kGroup, token);
        for (int d = 0; d < kHeadDim; ++d) {
          want[(s * kQHeads + h) * kHeadDim + d] += score[token] / sum * Decode(v[base + d]) * (kIsFp8<KV> ? kVScale : 1.0);
        }
      }
    }
  }
  Buffer<KV> k_pool(pool_count), v_pool(pool_count);
  k_pool.Upload(k);
  v_pool.Upload(v);
  Buffer<__nv_bfloat16> q_device(q.size()), out(q.size() + 64);
  q_device.Upload(q);
  double worst = 0;
  for (int split : {64, 128, 256, 512}) {
    for (int warps : {4, 8}) {
      Batch batch(lengths, pages, split);
      batch.params.q = q_device.data();
      batch.params.out = out.data();
      SetScales<KV>(batch.params);
      AttentionLaunch launch;
      PrepareAttention<KV>(launch, k_pool.data(), v_pool.data(), total_pages, warps, batch.params);
      std::vector<uint16_t> first;
      for (int repeat = 0; repeat < 3; ++repeat) {
        out.FillBytes(0xFF);
        RunAttention(launch, nullptr, false);
        CUDA_OK(cudaDeviceSynchronize());
        std::vector<__nv_bfloat16> host = out.Download();
        std::vector<double> got;
        for (size_t i = 0; i < want.size(); ++i) got.push_back(Decode(host[i]));
        double error = RelativeError(got, want);
        // P is rounded to 8 (bf16) or 11 (fp16) bits and the output to bf16.
        Require(error < 6e-3, "attention %s split %d warps %d: error %g", kIsFp8<KV> ? "fp8" : "bf16", split, warps, error);
        worst = std::max(worst, error);
        std::vector<uint16_t> bits(host.size());
        std::memcpy(bits.data(), host.data(), host.size() * 2);
        if (first.empty()) first = bits;
        Require(bits == first, "attention is not deterministic");
      }
      // Each sequence alone gives the same bits.
      for (size_t s = 0; s < lengths.size(); s += 4) {
        Batch alone({lengths[s]}, {pages[s]}, split);
        alone.params.q = q_device.data() + s * kQHeads * kHeadDim;
        alone.params.out = out.data();
        SetScales<KV>(alone.params);
        AttentionLaunch single;
        PrepareAttention<KV>(single, k_pool.data(), v_pool.data(), total_pages, warps, alone.params);
        RunAttention(single, nullptr, false);
        CUDA_OK(cudaDeviceSynchronize());
        std::vector<__nv_bfloat16> host = out.Download(0, kQHeads * kHeadDim);
        Require(std::memcmp(host.data(), first.data() + s * kQHeads * kHeadDim, host.size() * 2) == 0, "batch changes attention");
      }
    }
  }
  std::printf("check attention %s: lengths 1..1337, poisoned tails, 4 splits x 2 warp counts x 3 runs: worst relative error %.2e, bits equal\n",
              kIsFp8<KV> ? "fp8" : "bf16", worst);
}

template <typename KV>
void RunLadder(Json& json) {
  const char* type = kIsFp8<KV> ? "fp8" : "bf16";
  double token_bytes = 2.0 * kKvHeads * kHeadDim * sizeof(KV);
  size_t pool_pages = 256 * 4096 / kPage;
  size_t pool_count = pool_pages * kKvHeads * kPage * kHeadDim;
  Buffer<KV> k_pool(pool_count), v_pool(pool_count);
  FillNormal(k_pool.data(), pool_count, 21, 1.0f);
  FillNormal(v_pool.data(), pool_count, 22, 1.0f);
  std::vector<int> order(pool_pages);
  for (size_t i = 0; i < pool_pages; ++i) order[i] = static_cast<int>(i);
  std::mt19937 random(9);
  std::shuffle(order.begin(), order.end(), random);
  Buffer<__nv_bfloat16> q(256 * kQHeads * kHeadDim), out(256 * kQHeads * kHeadDim);
  FillNormal(q.data(), q.size(), 23, 1.0f);
  for (int context : {1024, 4096}) {
    for (int b : {1, 4, 8, 16, 32, 64, 128, 256}) {
      double bytes = b * (context * token_bytes + 2.0 * kQHeads * kHeadDim * 2);
      int need = b * context / kPage;
      int sets = std::max<int>(1, std::min<int>(24, std::min<int>(pool_pages / need, static_cast<int>(kRotateBytes / bytes) + 1)));
      double best_us = 1e30;
      int best_split = 0, best_warps = 0;
      for (int split : {128, 256, 512, 1024}) {
        std::vector<Batch> batches;
        for (int set = 0; set < sets; ++set) {
          std::vector<std::vector<int>> pages(b);
          for (int s = 0; s < b; ++s) {
            auto begin = order.begin() + set * need + s * (context / kPage);
            pages[s].assign(begin, begin + context / kPage);
          }
          batches.emplace_back(std::vector<int>(b, context), pages, split);
        }
        for (int warps : {4, 8}) {
          std::vector<AttentionLaunch> launches(sets);
          for (int set = 0; set < sets; ++set) {
            batches[set].params.q = q.data();
            batches[set].params.out = out.data();
            SetScales<KV>(batches[set].params);
            PrepareAttention<KV>(launches[set], k_pool.data(), v_pool.data(), pool_pages, warps, batches[set].params);
          }
          int nodes = std::max(NodesFor(bytes / kReadLimit * 1e6 + 5, 3000), sets);
          out.FillBytes(0xFF);
          double us = TimeGraph(nodes, 7, [&](cudaStream_t stream, int i) { RunAttention(launches[i % sets], stream, false); });
          Require(CountNan(out.data(), static_cast<size_t>(b) * kQHeads * kHeadDim) == 0, "unwritten outputs");
          json.Row("\"kind\": \"config\", \"type\": \"%s\", \"context\": %d, \"batch\": %d, \"split\": %d, \"warps\": %d, \"us\": %.2f, \"tb_per_s\": %.3f",
                   type, context, b, split, warps, us, bytes / us * 1e-6);
          if (us < best_us) {
            best_us = us;
            best_split = split;
            best_warps = warps;
          }
          std::printf("%s%s%d/%d %.1f", split == 128 && warps == 4 ? "  split/warps us: " : "", split == 128 && warps == 4 ? "" : ", ", split, warps, us);
        }
      }
      double floor_us = bytes / kReadLimit * 1e6;
      std::printf("\nattention %-4s ctx %d B=%-4d best %7.1f us (split %d, %d warps)  %5.2f TB/s  of floor %4.0f%%\n", type, context, b, best_us,
                  best_split, best_warps, bytes / best_us * 1e-6, floor_us / best_us * 100);
      json.Row("\"kind\": \"best\", \"type\": \"%s\", \"context\": %d, \"batch\": %d, \"split\": %d, \"warps\": %d, \"best_us\": %.2f, \"floor_us\": %.2f, \"tb_per_s\": %.3f",
               type, context, b, best_split, best_warps, best_us, floor_us, bytes / best_us * 1e-6);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  Require(argc == 2, "usage: attention_decode OUT.json");
  Json json(argv[1], CommandLine(argc, argv));
  Check<__nv_bfloat16>();
  Check<__nv_fp8_e4m3>();
  if (std::strcmp(argv[1], "--check") == 0) return 0;
  RunLadder<__nv_bfloat16>(json);
  json.Write();
  RunLadder<__nv_fp8_e4m3>(json);
  json.Write();
  return 0;
}
