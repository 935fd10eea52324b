// A bundle carried out: what `runner/child.py` does in Python.
#pragma once

#include <filesystem>

namespace runner {

int carry_out(const std::filesystem::path& folder); // exit status: 0 with a result.json, 2 for a bundle that cannot be read

} // namespace runner
