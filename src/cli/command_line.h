// The command line: parses, runs one command, prints its error, returns the exit code.
// Thread: main's.
#pragma once

namespace ekiben::cli {

int RunCommandLine(int argc, char** argv);

}  // namespace ekiben::cli
