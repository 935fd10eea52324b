// Written by `python -m verifier.runner.constants` from runner/constants.py: change it there.
#pragma once

#include <cstdint>

namespace runner {

constexpr const char* kBundleSchema = "runner.bundle/5";
constexpr const char* kBundleFile = "bundle.txt";
constexpr const char* kResultFile = "result.json";
constexpr const char* kPlaceFile = "at.txt";
constexpr const char* kEtdumpFile = "trace.etdp";
constexpr const char* kBufferFile = "trace.bin";
constexpr const char* kImageEntry = "image.npy";
constexpr const char* kSessionSchema = "verifier.session/1";
constexpr const char* kLoop = "@loop";
constexpr int64_t kLoopSide = 256;
constexpr int64_t kLoopTimes = 8;
constexpr float kPixelMean[] = {0.48145466f, 0.4578275f, 0.40821073f};
constexpr float kPixelStd[] = {0.26862954f, 0.26130258f, 0.27577711f};
constexpr const char* kSystem = "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the human's questions. ";
constexpr const char* kBeforeImage = "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the human's questions. USER: ";
constexpr int64_t kFramePx = 336;
constexpr int64_t kPictureLimitBytes = 536870912;
constexpr int64_t kPictureLimitPixels = 67108864;
constexpr int64_t kPictureLimitAspect = 168;
constexpr int64_t kFileLimitBytes = 67108864;
constexpr int64_t kVocabularyLimit = 1048576;
constexpr int64_t kPieceLimitBytes = 4096;
constexpr int64_t kIdLimit = 16777216;
constexpr int64_t kFirstByte = 3;

} // namespace runner
