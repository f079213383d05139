// `selftest LIBRARY BUNDLE` replays a bundle's golden vectors and prints one line of JSON.

#include <chrono>
#include <cmath>
#include <cstring>
#include <iostream>
#include <limits>
#include <numeric>

#include "bundle.hpp"

namespace {

using bundle::Bundle;
using bundle::ContractError;
using bundle::Spec;
using bundle::Stream;
using bundle::Tensors;
using Shape = std::vector<std::int64_t>;

const Json &need(const Json &object, const std::string &key) {
  if (const Json *found = json_get(&object, key.c_str())) return *found;
  throw std::runtime_error("goldens.json lacks " + key);
}

std::vector<std::int64_t> integers(const Json &list) {
  std::vector<std::int64_t> found;
  for (const Json *item = list.child; item != nullptr; item = item->next)
    found.push_back(static_cast<std::int64_t>(item->number));
  return found;
}

std::string decode_base64(const std::string &text) {
  static const std::string alphabet =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes;
  unsigned bits = 0, count = 0;
  for (const char c : text.substr(0, text.find('='))) {
    const std::size_t found = alphabet.find(c);
    if (found == std::string::npos) throw std::runtime_error("goldens.json is damaged");
    bits = bits << 6 | static_cast<unsigned>(found);
    count += 6;
    if (count < 8) continue;
    count -= 8;
    bytes.push_back(static_cast<char>(bits >> count & 0xFF));
  }
  return bytes;
}

std::size_t count_of(const Shape &shape) {
  return static_cast<std::size_t>(
      std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>()));
}

Ort::Value make_tensor(ONNXTensorElementDataType type, const Shape &shape) {
  Ort::AllocatorWithDefaultOptions allocator;
  return Ort::Value::CreateTensor(allocator, shape.data(), shape.size(), type);
}

char *bytes_of(const Ort::Value &value) {
  return const_cast<char *>(static_cast<const char *>(value.GetTensorRawData()));
}

// An array of goldens.json, little-endian as this machine must be.
Ort::Value read_tensor(const Json &stored) {
  const auto type = bundle::type_named(need(stored, "dtype").text);
  const Shape shape = integers(need(stored, "shape"));
  const std::string bytes = decode_base64(need(stored, "data").text);
  if (bytes.size() != count_of(shape) * bundle::element_size(type))
    throw std::runtime_error("goldens.json holds an array of another size than it says");
  Ort::Value value = make_tensor(type, shape);
  std::memcpy(bytes_of(value), bytes.data(), bytes.size());
  return value;
}

Tensors read_inputs(const Json &entry) {
  Tensors inputs;
  for (const Json *item = need(entry, "inputs").child; item != nullptr; item = item->next)
    inputs.emplace(item->key, read_tensor(*item));
  return inputs;
}

double number_at(const Ort::Value &value, std::size_t index) {
  switch (value.GetTensorTypeAndShapeInfo().GetElementType()) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return value.GetTensorData<float>()[index];
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE:
      return value.GetTensorData<double>()[index];
    default:
      return std::numeric_limits<double>::quiet_NaN();
  }
}

// Copy `length` positions along an axis from one tensor into another.
void copy_positions(const Ort::Value &source, std::int64_t from, Ort::Value &target,
                    std::int64_t to, std::int64_t length, std::size_t axis) {
  const auto info = source.GetTensorTypeAndShapeInfo();
  const Shape shape = info.GetShape();
  const Shape into = target.GetTensorTypeAndShapeInfo().GetShape();
  const std::size_t outer = count_of(Shape(shape.begin(), shape.begin() + axis));
  const std::size_t inner = count_of(Shape(shape.begin() + axis + 1, shape.end())) *
                            bundle::element_size(info.GetElementType());
  for (std::size_t row = 0; row < outer; ++row)
    std::memcpy(bytes_of(target) + (row * into[axis] + to) * inner,
                bytes_of(source) + (row * shape[axis] + from) * inner, length * inner);
}

// Feed inputs in chunks, and join the outputs.
Tensors streamed(Bundle &model, const Tensors &inputs, const std::vector<std::int64_t> &chunks) {
  Stream stream(model);
  Tensors joined;
  const std::int64_t total = std::accumulate(chunks.begin(), chunks.end(), std::int64_t{0});
  for (const std::int64_t chunk : chunks) {
    const std::int64_t start = stream.length();
    Tensors now;
    for (const Spec &spec : model.contract().inputs) {
      const auto given = inputs.find(spec.name);
      if (given == inputs.end()) continue;
      const std::size_t axis = spec.axis("seq").value();
      Shape shape = given->second.GetTensorTypeAndShapeInfo().GetShape();
      shape[axis] = chunk;
      Ort::Value part = make_tensor(spec.type, shape);
      copy_positions(given->second, start, part, 0, chunk, axis);
      now.emplace(spec.name, std::move(part));
    }
    const Tensors outputs = stream.read(now);
    for (const Spec &spec : model.contract().outputs) {
      const auto output = outputs.find(spec.name);
      if (output == outputs.end()) continue;
      const std::size_t axis = spec.axis("seq").value();
      Shape shape = output->second.GetTensorTypeAndShapeInfo().GetShape();
      shape[axis] = total;
      auto &whole = joined.try_emplace(spec.name, make_tensor(spec.type, shape)).first->second;
      copy_positions(output->second, 0, whole, start, chunk, axis);
    }
  }
  return joined;
}

// The largest error, relative to each output's scale.
double error_of(const Tensors &outputs, const Json &entry) {
  double worst = 0;
  for (const Json *stored = need(entry, "outputs").child; stored != nullptr; stored = stored->next) {
    const Ort::Value &got = outputs.at(stored->key);
    if (got.GetTensorTypeAndShapeInfo().GetShape() != integers(need(*stored, "whole_shape")))
      return std::numeric_limits<double>::infinity();
    const Ort::Value kept = read_tensor(*stored);
    const auto stride = static_cast<std::size_t>(need(*stored, "stride").number);
    double difference = 0, scale = 0;
    for (std::size_t k = 0; k < kept.GetTensorTypeAndShapeInfo().GetElementCount(); ++k) {
      const double here = std::abs(number_at(got, k * stride) - number_at(kept, k));
      if (!(here <= difference)) difference = here;  // NaN too
      scale = std::max(scale, std::abs(number_at(kept, k)));
    }
    const double relative = difference == 0 ? 0 : difference / scale;
    if (!(relative <= worst)) worst = relative;
  }
  return worst;
}

bool same_bits(const Tensors &one, const Tensors &other) {
  for (const auto &[name, value] : one) {
    const auto info = value.GetTensorTypeAndShapeInfo();
    const std::size_t size = info.GetElementCount() * bundle::element_size(info.GetElementType());
    if (std::memcmp(bytes_of(value), bytes_of(other.at(name)), size) != 0) return false;
  }
  return true;
}

// Three requests that the contract forbids: a rank, a dtype, a length. All must be refused.
int count_refusals(Bundle &model, const Json &entry) {
  Tensors inputs = read_inputs(entry);
  auto &[name, good] = *inputs.begin();
  const auto type = good.GetTensorTypeAndShapeInfo().GetElementType();
  const Shape shape = good.GetTensorTypeAndShapeInfo().GetShape();
  Shape deeper = shape, longer = shape;
  deeper.push_back(1);
  const auto most = model.contract().max_seq_len;
  longer[1] = most ? *most + 1 : 0;  // without a limit, no position at all is too few
  Ort::Value bad[] = {make_tensor(type, deeper),
                      make_tensor(ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, shape),
                      make_tensor(type, longer)};
  int refused = 0;
  for (Ort::Value &value : bad) {
    const auto info = value.GetTensorTypeAndShapeInfo();
    std::memset(bytes_of(value), 0,
                info.GetElementCount() * bundle::element_size(info.GetElementType()));
    inputs.insert_or_assign(name, std::move(value));
    try {
      model.run(inputs);
    } catch (const ContractError &) {
      ++refused;
    }
  }
  if (refused != 3) throw std::runtime_error("a wrong request was not refused");
  return refused;
}

double milliseconds_per_call(Bundle &model, const Json &entry) {
  constexpr int calls = 100;
  const Tensors inputs = read_inputs(entry);
  const auto start = std::chrono::steady_clock::now();
  for (int call = 0; call < calls; ++call) model.run(inputs);
  const std::chrono::duration<double, std::milli> passed = std::chrono::steady_clock::now() - start;
  return passed.count() / calls;
}

bool selftest(const std::string &library, const std::string &folder) {
  const std::string version = bundle::load_onnxruntime(library);
  Bundle model(folder);
  const bundle::Document goldens = bundle::read_json(folder + "/goldens.json");
  std::vector<const Json *> cases;
  for (const Json *entry = need(*goldens, "cases").child; entry != nullptr; entry = entry->next)
    cases.push_back(entry);
  double worst = 0;
  bool repeats = true;
  for (const Json *entry : cases) {
    const Tensors inputs = read_inputs(*entry);
    const Tensors outputs = model.run(inputs);
    repeats = repeats && same_bits(outputs, model.run(inputs));
    worst = std::max(worst, error_of(outputs, *entry));
  }
  const Json &streams = need(*goldens, "streams");
  for (const Json *plan = streams.child; plan != nullptr; plan = plan->next) {
    const Json &entry = *cases.at(static_cast<std::size_t>(need(*plan, "case").number));
    const Tensors outputs = streamed(model, read_inputs(entry), integers(need(*plan, "chunks")));
    worst = std::max(worst, error_of(outputs, entry));
  }
  const Json &timed = *cases[cases.size() > 1 ? 1 : 0];
  std::cout << "{\"runtime\": \"onnxruntime " << version << "\", \"cases\": " << cases.size()
            << ", \"streams\": " << json_count(&streams)
            << ", \"refused\": " << count_refusals(model, timed) << ", \"error\": " << worst
            << ", \"repeats\": " << (repeats ? "true" : "false")
            << ", \"ms_per_call\": " << milliseconds_per_call(model, timed) << "}\n";
  return repeats && worst <= need(*goldens, "tolerance").number;
}

}  // namespace

int main(int argc, char **argv) {
  if (argc != 3) {
    std::cerr << "usage: " << argv[0] << " LIBRARY BUNDLE\n";
    return 2;
  }
  try {
    return selftest(argv[1], argv[2]) ? 0 : 1;
  } catch (const std::exception &error) {
    std::cerr << argv[2] << ": " << error.what() << "\n";
    return 1;
  }
}
