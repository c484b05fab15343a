#include "ops/rope_body.h"

void ekiben::avx512::RunRopeToken(const RopeToken& token) {
  RopeTokenInLanes(token);
}
