// The machine that runs this, emulated or not: what it is, whether its matrix instructions are right, which kernels it got.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace runner {

std::string isa();

// Extensions that XNNPACK chooses kernels by.
std::vector<std::string> cpu_features();

// Matrix instructions that this CPU says it has, tried out against plain arithmetic: empty for a right one, else what is wrong.
// An emulator may announce an instruction and compute it wrongly (SMOPA in QEMU before 9.0, its issue 2083).
std::map<std::string, std::string> try_instructions();

// Those instructions of Arm's vector and matrix units that are in the microkernels which XNNPACK has chosen so far. Its tables of
// choices hold pointers to them, and nothing tells their names: their code is read.
std::vector<std::string> used_instructions();

// Free memory and, where the system tells it, the highest temperature: units in the names.
std::map<std::string, double> conditions();

} // namespace runner
