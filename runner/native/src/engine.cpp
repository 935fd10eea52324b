#include "engine.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>

#include <executorch/extension/tensor/tensor_ptr_maker.h>
#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/backend/options.h>

#include "constants.hpp"

// The wheel has the thread pool's library but not its header: these are the two functions of it that are used here.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(uint32_t num_threads);
};
ThreadPool* get_threadpool();
} // namespace executorch::extension::threadpool

namespace runner {
namespace {

using executorch::aten::ScalarType;
using executorch::runtime::Error;
using executorch::runtime::EValue;

struct Dtype {
  const char* name;
  ScalarType type;
};

constexpr Dtype kDtypes[] = {
    {"b1", ScalarType::Bool},
    {"u1", ScalarType::Byte},
    {"i1", ScalarType::Char},
    {"i2", ScalarType::Short},
    {"i4", ScalarType::Int},
    {"i8", ScalarType::Long},
    {"f2", ScalarType::Half},
    {"f4", ScalarType::Float},
    {"f8", ScalarType::Double},
};

ScalarType scalar_type(const std::string& name) {
  for (const Dtype& dtype : kDtypes) {
    if (name == dtype.name) {
      return dtype.type;
    }
  }
  throw CallError{"the runtime has no tensors of dtype " + name};
}

} // namespace

std::string error_text(Error error) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%x", static_cast<unsigned>(error));
  return text;
}

Program::Program(const std::filesystem::path& pte, size_t debug_buffer_bytes, LoadMode mode)
    : debug_buffer_(debug_buffer_bytes) {
  std::unique_ptr<executorch::etdump::ETDumpGen> tracer;
  if (debug_buffer_bytes != 0) {
    tracer = std::make_unique<executorch::etdump::ETDumpGen>();
    tracer->set_event_tracer_debug_level(executorch::runtime::EventTracerDebugLogLevel::kIntermediateOutputs);
    if (!tracer->set_debug_buffer({debug_buffer_.data(), debug_buffer_.size()}).ok()) {
      throw std::runtime_error("the debug buffer of the event tracer cannot be set");
    }
    tracer_ = tracer.get();
  }
  module_ = std::make_unique<executorch::extension::Module>(pte.string(), mode, std::move(tracer));
  loaded = module_->load();
}

bool Program::has(const std::string& method) const {
  const auto names = module_->method_names();
  return names.ok() && names->count(method) != 0;
}

std::vector<TensorFacts> Program::inputs(const std::string& method) const {
  const auto meta = module_->method_meta(method);
  if (!meta.ok()) {
    throw CallError{"Failed to find method " + method + ", error: " + error_text(meta.error())};
  }
  std::vector<TensorFacts> found;
  for (size_t at = 0; at < meta->num_inputs(); ++at) {
    const auto tensor = meta->input_tensor_meta(at);
    if (!tensor.ok()) {
      throw CallError{"an input of " + method + " is no tensor"};
    }
    TensorFacts facts;
    for (const Dtype& dtype : kDtypes) {
      facts.dtype = dtype.type == tensor->scalar_type() ? dtype.name : facts.dtype;
    }
    facts.sizes.assign(tensor->sizes().begin(), tensor->sizes().end());
    found.push_back(std::move(facts));
  }
  return found;
}

std::vector<EValue> Program::call(const std::string& method, const std::vector<Array>& inputs) {
  std::vector<executorch::extension::TensorPtr> tensors;
  std::vector<EValue> values;
  for (const Array& array : inputs) {
    std::vector<executorch::aten::SizesType> sizes(array.shape.begin(), array.shape.end());
    void* data = const_cast<uint8_t*>(array.bytes.data());
    tensors.push_back(executorch::extension::from_blob(data, sizes, scalar_type(array.dtype)));
    values.emplace_back(*tensors.back());
  }
  auto answer = module_->execute(method, values);
  if (!answer.ok()) {
    throw CallError{"Failed to execute method " + method + ", error: " + error_text(answer.error())};
  }
  return std::move(*answer);
}

void Program::write_trace(const std::filesystem::path& folder) {
  const executorch::etdump::ETDumpResult dump = tracer_->get_etdump_data();
  if (dump.buf == nullptr) {
    throw std::runtime_error("the event tracer recorded nothing");
  }
  const std::pair<const char*, std::pair<const void*, size_t>> files[] = {
      {kEtdumpFile, {dump.buf, dump.size}}, {kBufferFile, {debug_buffer_.data(), debug_buffer_.size()}}};
  for (const auto& [name, contents] : files) {
    std::ofstream file(folder / name, std::ios::binary);
    file.write(static_cast<const char*>(contents.first), static_cast<std::streamsize>(contents.second));
    file.close();
    if (!file) {
      std::free(dump.buf);
      throw std::runtime_error((folder / name).string() + ": cannot be written: is the disk full?");
    }
  }
  std::free(dump.buf);
}

Array to_array(const EValue& value) {
  if (!value.isTensor()) {
    throw CallError{"an output that is no tensor"};
  }
  const auto tensor = value.toTensor();
  for (const Dtype& dtype : kDtypes) {
    if (tensor.scalar_type() == dtype.type) {
      Array array;
      array.dtype = dtype.name;
      array.shape.assign(tensor.sizes().begin(), tensor.sizes().end());
      array.bytes.resize(tensor.nbytes());
      std::memcpy(array.bytes.data(), tensor.const_data_ptr(), tensor.nbytes());
      return array;
    }
  }
  throw CallError{"an output of a dtype that is no plain number"};
}

Array first_rows(const Array& array, const Part& part) {
  if (part.axis >= array.shape.size() || part.length < 0 || part.length > array.shape[part.axis]) {
    throw CallError{"an output has no part of this axis and length"};
  }
  size_t outer = 1;
  size_t inner = item_bytes(array.dtype);
  for (size_t axis = 0; axis < array.shape.size(); ++axis) {
    (axis < part.axis ? outer : inner) *= axis == part.axis ? 1 : static_cast<size_t>(array.shape[axis]);
  }
  const size_t whole = inner * static_cast<size_t>(array.shape[part.axis]);
  const size_t taken = inner * static_cast<size_t>(part.length);
  Array made{array.dtype, array.shape, std::vector<uint8_t>(outer * taken)};
  made.shape[part.axis] = part.length;
  for (size_t row = 0; row < outer; ++row) {
    std::memcpy(made.bytes.data() + row * taken, array.bytes.data() + row * whole, taken);
  }
  return made;
}

Array last_row(const Array& array) {
  if (array.shape.empty() || array.count() == 0) {
    throw CallError{"an output that has no last row"};
  }
  const int64_t width = array.shape.back();
  const size_t taken = item_bytes(array.dtype) * static_cast<size_t>(width);
  return Array{array.dtype, {1, width}, std::vector<uint8_t>(array.bytes.end() - static_cast<std::ptrdiff_t>(taken), array.bytes.end())};
}

int64_t argmax(const Array& logits) {
  const int64_t width = logits.shape.back();
  const auto* last = reinterpret_cast<const float*>(logits.bytes.data()) + (logits.count() - width);
  return std::max_element(last, last + width) - last;
}

void set_threads(uint32_t count) {
  auto* pool = executorch::extension::threadpool::get_threadpool();
  if (pool != nullptr) {
    pool->_unsafe_reset_threadpool(count);
  }
}

void set_workspace_sharing(const std::string& mode) {
  constexpr const char* kModes[] = {"disabled", "per_model", "global"}; // numbered as XNNPACK's WorkspaceSharingMode
  const auto* found = std::find(std::begin(kModes), std::end(kModes), mode);
  if (found == std::end(kModes)) {
    throw std::runtime_error("--workspace_sharing is " + mode + ", expected disabled, per_model or global");
  }
  executorch::runtime::BackendOptions<1> options;
  options.set_option("workspace_sharing_mode", static_cast<int>(found - kModes));
  const Error error = executorch::runtime::set_option("XnnpackBackend", options.view());
  if (error != Error::Ok) {
    throw std::runtime_error("XNNPACK does not take --workspace_sharing " + mode + ", error " + error_text(error));
  }
}

Program::LoadMode load_mode(const std::string& name) {
  if (name != "mmap" && name != "file") {
    throw std::runtime_error("--load_mode is " + name + ", expected mmap or file");
  }
  return name == "mmap" ? Program::LoadMode::Mmap : Program::LoadMode::File;
}

} // namespace runner
