#include "bundle.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <sstream>

namespace bundle {
namespace {

struct Type {
  const char *name;
  ONNXTensorElementDataType type;
  std::size_t size;
};

constexpr Type TYPES[] = {
    {"float32", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 4},
    {"float64", ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, 8},
    {"float16", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, 2},
    {"int64", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, 8},
    {"int32", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, 4},
    {"uint8", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, 1},
    {"bool", ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL, 1},
};

const Json &need(const Json &object, const char *key) {
  if (const Json *found = json_get(&object, key)) return *found;
  throw std::runtime_error(std::string("contract.json lacks ") + key);
}

std::string text_of(const Json &value) { return value.text != nullptr ? value.text : ""; }

std::vector<Spec> read_specs(const Json &list) {
  std::vector<Spec> specs;
  for (const Json *item = list.child; item != nullptr; item = item->next) {
    Spec spec{text_of(need(*item, "name")), type_named(text_of(need(*item, "dtype"))), {}, {}};
    if (const Json &vocab = need(*item, "vocab_size"); vocab.kind == JSON_NUMBER)
      spec.range = {0.0, vocab.number};
    const Json *range = json_get(item, "value_range");
    if (range != nullptr && json_count(range) == 2)
      spec.range = {range->child->number, range->child->next->number};
    for (const Json *axis = need(*item, "axes").child; axis != nullptr; axis = axis->next) {
      if (axis->kind == JSON_STRING) {
        spec.axes.emplace_back(std::string(axis->text));
      } else {
        spec.axes.emplace_back(static_cast<std::int64_t>(axis->number));
      }
    }
    specs.push_back(std::move(spec));
  }
  return specs;
}

void check_keys(const Json &object, const char *known) {
  const char *unknown = json_unknown(&object, known);
  if (unknown == nullptr) return;
  throw std::runtime_error("the contract has the key " + std::string(unknown) +
                           ", which is not known here");
}

void check_each(const Json &list, const char *known) {
  for (const Json *item = list.child; item != nullptr; item = item->next) check_keys(*item, known);
}

Contract read_contract(const Json &document) {
  if (need(document, "format").number != 1)
    throw std::runtime_error("contract.json is of a format that is not known here");
  const Json &from = need(document, "contract");
  check_keys(from, CONTRACT_KEYS);
  check_each(need(from, "inputs"), TENSOR_KEYS);
  check_each(need(from, "outputs"), TENSOR_KEYS);
  check_each(need(from, "cache"), PAIR_KEYS);
  Contract contract;
  contract.inputs = read_specs(need(from, "inputs"));
  contract.outputs = read_specs(need(from, "outputs"));
  contract.mask = text_of(need(from, "mask"));
  for (const Json *pair = need(from, "cache").child; pair != nullptr; pair = pair->next)
    contract.cache[text_of(need(*pair, "past"))] = text_of(need(*pair, "present"));
  if (const Json *adapters = json_get(&from, "adapters"))
    for (const Json *pair = adapters->child; pair != nullptr; pair = pair->next)
      for (const char *key : {"down", "up"}) contract.adapters.insert(text_of(need(*pair, key)));
  const Json &most = need(from, "max_seq_len");
  if (most.kind == JSON_NUMBER) contract.max_seq_len = static_cast<std::int64_t>(most.number);
  contract.min_seq_len = static_cast<std::int64_t>(need(from, "min_seq_len").number);
  if (const Json *ragged = json_get(&from, "ragged")) contract.ragged = text_of(*ragged);
  return contract;
}

template <typename Number>
bool all_within(const Spec &spec, const Ort::Value &value) {
  const Number *numbers = value.GetTensorData<Number>();
  const std::size_t count = value.GetTensorTypeAndShapeInfo().GetElementCount();
  return std::all_of(numbers, numbers + count, [&](Number number) {
    const double given = static_cast<double>(number);
    return given >= spec.range->first && given < spec.range->second;
  });
}

// Of types that are not read here no value is.
bool is_within(const Spec &spec, const Ort::Value &value) {
  switch (spec.type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64: return all_within<std::int64_t>(spec, value);
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32: return all_within<std::int32_t>(spec, value);
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8: return all_within<std::uint8_t>(spec, value);
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: return all_within<float>(spec, value);
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE: return all_within<double>(spec, value);
    default: return false;
  }
}

std::int64_t size_of(const Sizes &sizes, const std::string &name) {
  const auto found = sizes.find(name);
  return found == sizes.end() ? 0 : found->second;
}

// The mask is all ones, the first past is empty, and so are adapters: their rank is 0.
Ort::Value make_default(const Spec &spec, const Sizes &sizes) {
  std::vector<std::int64_t> shape;
  std::int64_t count = 1;
  for (const Axis &axis : spec.axes) {
    const std::string *name = std::get_if<std::string>(&axis);
    shape.push_back(name != nullptr ? size_of(sizes, *name) : std::get<std::int64_t>(axis));
    count *= shape.back();
  }
  Ort::AllocatorWithDefaultOptions allocator;
  Ort::Value value = Ort::Value::CreateTensor(allocator, shape.data(), shape.size(), spec.type);
  if (spec.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64)
    std::fill_n(value.GetTensorMutableData<std::int64_t>(), count, 1);
  if (spec.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32)
    std::fill_n(value.GetTensorMutableData<std::int32_t>(), count, 1);
  return value;
}

}  // namespace

std::string load_onnxruntime(const std::string &library) {
  void *handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) throw std::runtime_error(dlerror());
  using GetBase = const OrtApiBase *(*)();
  const auto get_base = reinterpret_cast<GetBase>(dlsym(handle, "OrtGetApiBase"));
  if (get_base == nullptr) throw std::runtime_error(library + " is no onnxruntime");
  const OrtApi *api = get_base()->GetApi(ORT_API_VERSION);
  if (api == nullptr) throw std::runtime_error(library + " is too old");
  Ort::InitApi(api);
  return get_base()->GetVersionString();
}

Document read_json(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  Document document(json_parse(text.c_str()),
                    [](const Json *json) { json_free(const_cast<Json *>(json)); });
  if (document == nullptr) throw std::runtime_error(path + " is no JSON document");
  return document;
}

ONNXTensorElementDataType type_named(const std::string &dtype) {
  for (const Type &type : TYPES)
    if (dtype == type.name) return type.type;
  throw std::runtime_error("no type for " + dtype + " here");
}

std::size_t element_size(ONNXTensorElementDataType wanted) {
  for (const Type &type : TYPES)
    if (wanted == type.type) return type.size;
  throw std::runtime_error("a tensor of a type that is not known here");
}

std::optional<std::size_t> Spec::axis(const std::string &wanted) const {
  const auto found = std::find(axes.begin(), axes.end(), Axis(wanted));
  if (found == axes.end()) return std::nullopt;
  return static_cast<std::size_t>(found - axes.begin());
}

bool Contract::reads_singly(std::int64_t past, std::int64_t batch) const {
  return ragged == "single" ||
         (past > 0 && (ragged == "steps" || (ragged == "packed_steps" && batch > 1)));
}

Bundle::Bundle(const std::string &folder) {
  contract_ = read_contract(*read_json(folder + "/contract.json"));
  session_ = Ort::Session(env_, (folder + "/model.onnx").c_str(), Ort::SessionOptions());
}

bool Bundle::is_given(const Spec &spec) const {
  return spec.name != contract_.mask && contract_.cache.count(spec.name) == 0 &&
         contract_.adapters.count(spec.name) == 0;
}

Tensors Bundle::run(const Tensors &inputs) { return Stream(*this).read(inputs); }

Sizes Bundle::check(const Tensors &inputs, std::int64_t past) const {
  Sizes sizes;
  std::size_t found = 0;
  for (const Spec &spec : contract_.inputs) {
    if (!is_given(spec)) continue;
    const auto given = inputs.find(spec.name);
    if (given == inputs.end()) throw ContractError("the input " + spec.name + " is missing");
    ++found;
    const auto info = given->second.GetTensorTypeAndShapeInfo();
    const std::vector<std::int64_t> shape = info.GetShape();
    if (info.GetElementType() != spec.type) throw ContractError(spec.name + " has another dtype");
    if (shape.size() != spec.axes.size()) throw ContractError(spec.name + " has another rank");
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
      const std::string *name = std::get_if<std::string>(&spec.axes[axis]);
      const std::int64_t expected = name != nullptr ? sizes.emplace(*name, shape[axis]).first->second
                                                    : std::get<std::int64_t>(spec.axes[axis]);
      if (shape[axis] == expected && expected > 0) continue;
      std::ostringstream message;
      message << "axis " << axis << " of " << spec.name << " is " << shape[axis] << ", expected "
              << std::max<std::int64_t>(expected, 1);
      throw ContractError(message.str());
    }
    if (spec.range && !is_within(spec, given->second)) {
      std::ostringstream message;
      message << spec.name << " must hold values in [" << spec.range->first << ", "
              << spec.range->second << ")";
      throw ContractError(message.str());
    }
  }
  if (found != inputs.size()) throw ContractError("there is an input that the model does not take");
  const std::int64_t total = past + sizes["seq"];
  if (contract_.max_seq_len && total > *contract_.max_seq_len)
    throw ContractError(std::to_string(total) + " positions, expected at most " +
                        std::to_string(*contract_.max_seq_len));
  if (total < contract_.min_seq_len)
    throw ContractError(std::to_string(total) + " positions, expected at least " +
                        std::to_string(contract_.min_seq_len));
  if (sizes["seq"] > 1 && contract_.reads_singly(past, sizes["batch"]))
    throw ContractError(std::to_string(sizes["seq"]) + " positions in a call, expected 1 here");
  return sizes;
}

Tensors Stream::read(const Tensors &inputs) {
  const Contract &contract = bundle_.contract();
  Sizes sizes = bundle_.check(inputs, length_);
  const std::int64_t total = length_ + sizes["seq"];
  sizes["total_seq"] = total;
  sizes["past_seq"] = sizes["past_slots"] = 0;
  std::vector<const char *> in_names, out_names;
  std::vector<const OrtValue *> values;
  std::vector<Ort::Value> defaults;  // keeps them alive during the call
  for (const Spec &spec : contract.inputs) {
    const auto given = inputs.find(spec.name);
    const auto past = past_.find(spec.name);
    in_names.push_back(spec.name.c_str());
    if (given != inputs.end()) {
      values.push_back(given->second);
    } else if (past != past_.end()) {
      values.push_back(past->second);
    } else {
      defaults.push_back(make_default(spec, sizes));
      values.push_back(defaults.back());
    }
  }
  for (const Spec &spec : contract.outputs) out_names.push_back(spec.name.c_str());
  std::vector<OrtValue *> results(out_names.size(), nullptr);
  Ort::ThrowOnError(Ort::GetApi().Run(bundle_.session_, nullptr, in_names.data(), values.data(),
                                      values.size(), out_names.data(), out_names.size(),
                                      results.data()));
  Tensors outputs;
  for (std::size_t o = 0; o < results.size(); ++o)
    outputs.emplace(contract.outputs[o].name, Ort::Value(results[o]));
  for (const auto &[past, present] : contract.cache) {
    past_.insert_or_assign(past, std::move(outputs.at(present)));
    outputs.erase(present);
  }
  length_ = total;
  return outputs;
}

}  // namespace bundle
