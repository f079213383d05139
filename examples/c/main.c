// `selftest LIBRARY BUNDLE` replays a bundle's golden vectors and prints one line of JSON.
// LIBRARY is libonnxruntime.so, by path or as the loader finds it.

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bundle.h"

enum { CALLS = 100 };

static Bundle bundle;  // too large for the stack

static void stop(const char *where) {
  fprintf(stderr, "%s: %s\n", where, bundle.error);
  exit(1);
}

static const Json *need(const Json *object, const char *key) {
  const Json *found = json_get(object, key);
  if (found != NULL) return found;
  fprintf(stderr, "goldens.json lacks %s\n", key);
  exit(1);
}

static void *decode_base64(const char *text, size_t *size) {
  static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  unsigned char *bytes = malloc(strlen(text) / 4 * 3 + 4);
  unsigned bits = 0, count = 0;
  *size = 0;
  for (; *text != '\0' && *text != '='; ++text) {
    const char *found = strchr(alphabet, *text);
    if (found == NULL) stop("goldens.json is damaged");
    bits = bits << 6 | (unsigned)(found - alphabet);
    if ((count += 6) >= 8) bytes[(*size)++] = (unsigned char)(bits >> (count -= 8));
  }
  return bytes;
}

// An array of goldens.json, little-endian as this machine must be. Free its data.
static Array read_array(const Json *stored, const char *shape) {
  Array array = {.type = type_named(need(stored, "dtype")->text)};
  for (const Json *size = need(stored, shape)->child; size != NULL; size = size->next)
    if (array.rank < MOST_AXES) array.dims[array.rank++] = (int64_t)size->number;
  size_t bytes;
  array.data = decode_base64(need(stored, "data")->text, &bytes);
  if (strcmp(shape, "shape") == 0 && bytes != count_elements(&array) * element_size(array.type))
    stop("goldens.json holds an array of another size than it says");
  return array;
}

// The inputs of a case, in the contract's order; gives their number.
static size_t read_inputs(const Json *entry, Array *inputs) {
  size_t count = 0;
  for (size_t i = 0; i < bundle.num_inputs; ++i)
    if (is_given(&bundle.inputs[i]))
      inputs[count++] = read_array(need(need(entry, "inputs"), bundle.inputs[i].name), "shape");
  return count;
}

static double number_at(const Array *array, size_t index) {
  switch (array->type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: return ((const float *)array->data)[index];
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE: return ((const double *)array->data)[index];
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64: return (double)((const int64_t *)array->data)[index];
    default: return NAN;
  }
}

// Part of an array along an axis; free its data.
static Array slice(const Array *array, int axis, int64_t start, int64_t length) {
  Array part = *array;
  size_t inner = element_size(array->type), outer = 1;
  for (size_t a = (size_t)axis + 1; a < array->rank; ++a) inner *= (size_t)array->dims[a];
  for (int a = 0; a < axis; ++a) outer *= (size_t)array->dims[a];
  part.dims[axis] = length;
  const size_t row = (size_t)length * inner, whole = (size_t)array->dims[axis] * inner;
  part.data = malloc(outer * row + 1);
  for (size_t k = 0; k < outer; ++k)
    memcpy((char *)part.data + k * row, (char *)array->data + k * whole + (size_t)start * inner, row);
  return part;
}

// The largest error of an output, over the expected numbers' largest. `got` holds the positions of
// the whole from `start` on, along `axis`; the last ones too where `is_last`.
static double error_of(const Array *got, const Json *stored, int axis, int64_t start, bool is_last) {
  Array kept = read_array(stored, "shape"), whole = {0};
  for (const Json *size = need(stored, "whole_shape")->child; size != NULL; size = size->next)
    whole.dims[whole.rank++] = (int64_t)size->number;
  const size_t stride = (size_t)need(stored, "stride")->number;
  double worst = 0, scale = 0;
  bool fits = got->rank == whole.rank;
  for (size_t a = 0; fits && a < whole.rank; ++a)
    fits = (int)a == axis && !is_last ? got->dims[a] + start < whole.dims[a]
                                      : got->dims[a] + ((int)a == axis ? start : 0) == whole.dims[a];
  size_t inner = 1;
  for (size_t a = axis < 0 ? whole.rank : (size_t)axis + 1; a < whole.rank; ++a)
    inner *= (size_t)whole.dims[a];
  const size_t positions = axis < 0 ? 1 : (size_t)whole.dims[axis];
  const size_t here = axis < 0 ? 1 : (size_t)got->dims[axis];
  for (size_t k = 0; fits && k < count_elements(&kept); ++k) {
    const size_t flat = k * stride, position = flat / inner % positions;
    const double expected = number_at(&kept, k);
    scale = fmax(scale, fabs(expected));
    if (axis >= 0 && (position < (size_t)start || position >= (size_t)start + here)) continue;
    const size_t row = axis < 0 ? 0 : flat / inner / positions;
    const size_t index =
        axis < 0 ? flat : (row * here + position - (size_t)start) * inner + flat % inner;
    const double difference = fabs(number_at(got, index) - expected);
    if (!(difference <= worst)) worst = difference;  // NaN too
  }
  free(kept.data);
  return !fits ? INFINITY : worst == 0 ? 0 : worst / scale;
}

// Feed a case in chunks, and compare each output with its part of the record.
static double replay(const Json *entry, const int64_t *chunks, size_t num_chunks, bool *repeats) {
  Array inputs[MOST_TENSORS], parts[MOST_TENSORS], got, again;
  OrtValue *outputs[MOST_TENSORS], *others[MOST_TENSORS];
  const size_t count = read_inputs(entry, inputs);
  Stream stream = {0}, twin = {0};
  double worst = 0;
  for (size_t c = 0; c < num_chunks; ++c) {
    const int64_t start = stream.length;
    for (size_t i = 0, k = 0; i < bundle.num_inputs; ++i)
      if (is_given(&bundle.inputs[i])) {
        parts[k] = slice(&inputs[k], axis_of(&bundle.inputs[i], "seq"), start, chunks[c]);
        ++k;
      }
    if (!stream_read(&bundle, &stream, parts, outputs) ||
        !stream_read(&bundle, &twin, parts, others))
      stop("a golden vector");
    for (size_t o = 0; o < bundle.num_outputs; ++o) {
      const Spec *spec = &bundle.outputs[o];
      const Json *stored = json_get(need(entry, "outputs"), spec->name);
      if (outputs[o] == NULL || stored == NULL) continue;
      if (!bundle_view(&bundle, outputs[o], &got) || !bundle_view(&bundle, others[o], &again))
        stop("an output");
      worst = fmax(worst, error_of(&got, stored, axis_of(spec, "seq"), start,
                                    c + 1 == num_chunks));
      *repeats &= memcmp(got.data, again.data,
                         count_elements(&got) * element_size(got.type)) == 0;
    }
    bundle_release(&bundle, outputs);
    bundle_release(&bundle, others);
    for (size_t k = 0; k < count; ++k) free(parts[k].data);
  }
  for (size_t k = 0; k < count; ++k) free(inputs[k].data);
  stream_free(&bundle, &stream);
  stream_free(&bundle, &twin);
  return worst;
}

static int64_t positions_of(const Json *entry) {
  for (size_t i = 0; i < bundle.num_inputs; ++i) {
    const int axis = axis_of(&bundle.inputs[i], "seq");
    if (!is_given(&bundle.inputs[i]) || axis < 0) continue;
    const Json *size = need(need(need(entry, "inputs"), bundle.inputs[i].name), "shape")->child;
    for (int a = 0; a < axis; ++a) size = size->next;
    return (int64_t)size->number;
  }
  return 1;
}

static double milliseconds_per_call(const Json *entry) {
  Array inputs[MOST_TENSORS];
  OrtValue *outputs[MOST_TENSORS];
  const size_t count = read_inputs(entry, inputs);
  struct timespec before, after;
  clock_gettime(CLOCK_MONOTONIC, &before);
  for (int call = 0; call < CALLS; ++call) {
    Stream stream = {0};
    if (!stream_read(&bundle, &stream, inputs, outputs)) stop("a timed call");
    bundle_release(&bundle, outputs);
    stream_free(&bundle, &stream);
  }
  clock_gettime(CLOCK_MONOTONIC, &after);
  for (size_t k = 0; k < count; ++k) free(inputs[k].data);
  return ((double)(after.tv_sec - before.tv_sec) * 1e3 +
          (double)(after.tv_nsec - before.tv_nsec) / 1e6) / CALLS;
}

// Three requests that the contract forbids: a rank, a dtype, a length (none, where all are allowed).
static int count_refusals(const Json *entry) {
  Array inputs[MOST_TENSORS], bad[3];
  OrtValue *outputs[MOST_TENSORS];
  const size_t count = read_inputs(entry, inputs);
  const Array good = inputs[0];
  bad[0] = bad[1] = bad[2] = good;
  bad[0].dims[bad[0].rank++] = 1;
  bad[1].type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
  bad[2].dims[1] = bundle.max_seq_len == INT64_MAX ? 0 : bundle.max_seq_len + 1;
  bad[2].data = calloc(count_elements(&bad[2]), element_size(good.type));
  for (int k = 0; k < 3; ++k) {
    Stream stream = {0};
    inputs[0] = bad[k];
    if (stream_read(&bundle, &stream, inputs, outputs)) stop("a wrong request was not refused");
  }
  free(bad[2].data);
  inputs[0] = good;
  for (size_t k = 0; k < count; ++k) free(inputs[k].data);
  return 3;
}

int main(int argc, char **argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: %s LIBRARY BUNDLE\n", argv[0]);
    return 2;
  }
  if (!bundle_load(&bundle, argv[1], argv[2])) stop(argv[2]);
  const Json *cases = need(bundle.goldens, "cases"), *streams = need(bundle.goldens, "streams");
  const Json *timed = cases->child->next != NULL ? cases->child->next : cases->child;
  double worst = 0;
  bool repeats = true;
  for (const Json *entry = cases->child; entry != NULL; entry = entry->next) {
    const int64_t all = positions_of(entry);
    worst = fmax(worst, replay(entry, &all, 1, &repeats));
  }
  for (const Json *plan = streams->child; plan != NULL; plan = plan->next) {
    const Json *entry = cases->child;
    for (int k = (int)need(plan, "case")->number; k > 0; --k) entry = entry->next;
    int64_t chunks[64];
    size_t count = 0;
    for (const Json *size = need(plan, "chunks")->child; size != NULL && count < 64; size = size->next)
      chunks[count++] = (int64_t)size->number;
    worst = fmax(worst, replay(entry, chunks, count, &repeats));
  }
  printf("{\"runtime\": \"onnxruntime %s\", \"cases\": %zu, \"streams\": %zu, \"refused\": %d, "
         "\"error\": %.3e, \"repeats\": %s, \"ms_per_call\": %.4f}\n",
         bundle.version, json_count(cases), json_count(streams), count_refusals(timed), worst,
         repeats ? "true" : "false", milliseconds_per_call(timed));
  const bool passed = repeats && worst <= need(bundle.goldens, "tolerance")->number;
  bundle_free(&bundle);
  return passed ? 0 : 1;
}
