#include "ops/rope_body.h"

void ekiben::avx2::RunRopeToken(const RopeToken& token) {
  RopeTokenInLanes(token);
}
