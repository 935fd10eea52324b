// A bundle carried out: what `runner/child.py` does in Python.
#pragma once

#include <filesystem>

namespace runner {

// Carries out the bundle of a folder, what comes of it goes into another. `pte` is where the program lies, if not where the bundle
// says. Exit status: 0 with a result.json, 2 for a bundle that cannot be read.
int carry_out(const std::filesystem::path& folder, const std::filesystem::path& into, const std::filesystem::path& pte);

void print_machine(); // one line of JSON

} // namespace runner
