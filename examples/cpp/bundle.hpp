// A bundle through onnxruntime's C++ interface. The library is loaded when the program runs, so one
// binary goes with every version from that of its headers on.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#include "../c/json.h"

namespace bundle {

// The contract is not kept.
struct ContractError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

using Document = std::unique_ptr<const Json, void (*)(const Json *)>;
using Tensors = std::map<std::string, Ort::Value>;
using Axis = std::variant<std::int64_t, std::string>;  // a size, or the name of one that varies
using Sizes = std::map<std::string, std::int64_t>;

// An input or output, as contract.json describes it.
struct Spec {
  std::string name;
  ONNXTensorElementDataType type;
  std::vector<Axis> axes;
  std::optional<std::pair<double, double>> range;  // every value lies in [first, second)

  // Where the axis `name` is, if it has one.
  std::optional<std::size_t> axis(const std::string &name) const;
};

struct Contract {
  std::vector<Spec> inputs, outputs;
  std::map<std::string, std::string> cache;  // past -> present
  std::string mask;                          // empty: none
  std::set<std::string> adapters;            // inputs of adapters; none is used here
  std::optional<std::int64_t> max_seq_len;
  std::int64_t min_seq_len = 1;
  std::string ragged;  // how rows share a call; empty: packed

  // Whether a call of so many rows takes one position.
  bool reads_singly(std::int64_t past, std::int64_t batch) const;
};

// Load libonnxruntime and give its version; before anything else.
std::string load_onnxruntime(const std::string &library);

// The JSON document in a file.
Document read_json(const std::string &path);

ONNXTensorElementDataType type_named(const std::string &dtype);
std::size_t element_size(ONNXTensorElementDataType type);

// A model that takes what its contract allows.
class Bundle {
 public:
  explicit Bundle(const std::string &folder);

  const Contract &contract() const { return contract_; }

  // Every output but the cache. The inputs are all but the cache, the mask and adapters.
  Tensors run(const Tensors &inputs);

  // The sizes of the axes; throws ContractError.
  Sizes check(const Tensors &inputs, std::int64_t past) const;

  bool is_given(const Spec &spec) const;

 private:
  friend class Stream;
  Ort::Env env_{ORT_LOGGING_LEVEL_ERROR, "bundle"};
  Ort::Session session_{nullptr};
  Contract contract_;
};

// Reads sequences chunk by chunk; the cache holds what came before.
class Stream {
 public:
  explicit Stream(Bundle &bundle) : bundle_(bundle) {}

  // The outputs for the next positions. Where it throws, the stream is as it was.
  Tensors read(const Tensors &inputs);

  std::int64_t length() const { return length_; }

 private:
  Bundle &bundle_;
  std::int64_t length_ = 0;
  Tensors past_;
};

}  // namespace bundle
