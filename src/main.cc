#include "cli/command_line.h"

int main(int argc, char** argv) {
  return ekiben::cli::RunCommandLine(argc, argv);
}
