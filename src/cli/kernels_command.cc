#include <CLI/Config.hpp>
#include <cstdio>

#include "cli/commands.h"

namespace ekiben::cli {

void AddKernelsCommand(CLI::App&, Outcome&) {}

}  // namespace ekiben::cli
