#include "ops/paged_attention_body.h"

void ekiben::avx2::RunAttentionItem(const AttentionItem& item, const AttentionItem* next) {
  AttentionItemInLanes(item, next);
}
