#include "bundle.h"

#include <dlfcn.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// With two more to be looked for.
enum { MOST_NAMES = 30 };

typedef struct {
  const char *names[MOST_NAMES + 2];
  int64_t values[MOST_NAMES + 2];
  size_t count;
} Sizes;

static bool fail(Bundle *bundle, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(bundle->error, sizeof bundle->error, format, arguments);
  va_end(arguments);
  return false;
}

// True where onnxruntime has no complaint.
static bool ok(Bundle *bundle, OrtStatus *status) {
  if (status == NULL) return true;
  fail(bundle, "onnxruntime: %s", bundle->ort->GetErrorMessage(status));
  bundle->ort->ReleaseStatus(status);
  return false;
}

static const struct {
  const char *name;
  ONNXTensorElementDataType type;
  size_t size;
} TYPES[] = {
    {"float32", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 4},
    {"float64", ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, 8},
    {"float16", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, 2},
    {"int64", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, 8},
    {"int32", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, 4},
    {"uint8", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, 1},
    {"bool", ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL, 1},
};

ONNXTensorElementDataType type_named(const char *dtype) {
  for (size_t i = 0; i < sizeof TYPES / sizeof *TYPES; ++i)
    if (strcmp(TYPES[i].name, dtype) == 0) return TYPES[i].type;
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
}

size_t element_size(ONNXTensorElementDataType type) {
  for (size_t i = 0; i < sizeof TYPES / sizeof *TYPES; ++i)
    if (TYPES[i].type == type) return TYPES[i].size;
  return 0;
}

size_t count_elements(const Array *array) {
  size_t count = 1;
  for (size_t axis = 0; axis < array->rank; ++axis) count *= (size_t)array->dims[axis];
  return count;
}

int axis_of(const Spec *spec, const char *name) {
  for (size_t axis = 0; axis < spec->rank; ++axis)
    if (spec->axes[axis] != NULL && strcmp(spec->axes[axis], name) == 0) return (int)axis;
  return -1;
}

bool is_given(const Spec *spec) { return spec->output < 0 && !spec->is_mask && !spec->is_adapter; }

static char *read_text(const char *folder, const char *name) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  FILE *file = fopen(path, "rb");
  if (file == NULL) return NULL;
  fseek(file, 0, SEEK_END);
  const long size = ftell(file);
  rewind(file);
  char *text = size >= 0 ? malloc((size_t)size + 1) : NULL;
  if (text != NULL) text[fread(text, 1, (size_t)size, file)] = '\0';
  fclose(file);
  return text;
}

static Json *read_json(const char *folder, const char *name) {
  char *text = read_text(folder, name);
  Json *json = text != NULL ? json_parse(text) : NULL;
  free(text);
  return json;
}

// Ids lie in [0, vocab_size), other values in a range that is given, if any.
static void read_range(Spec *spec, const Json *vocab_size, const Json *range) {
  if (vocab_size != NULL && vocab_size->kind == JSON_NUMBER) {
    spec->has_range = true;
    spec->high = vocab_size->number;
  }
  if (range != NULL && range->kind == JSON_ARRAY && json_count(range) == 2) {
    spec->has_range = true;
    spec->low = range->child->number;
    spec->high = range->child->next->number;
  }
}

static bool read_specs(Bundle *bundle, const Json *list, Spec *specs, size_t *count) {
  if (list == NULL || json_count(list) > MOST_TENSORS) return fail(bundle, "no list of tensors");
  for (const Json *item = list->child; item != NULL; item = item->next) {
    const Json *name = json_get(item, "name"), *dtype = json_get(item, "dtype");
    const Json *axes = json_get(item, "axes");
    if (name == NULL || name->text == NULL || dtype == NULL || dtype->text == NULL || axes == NULL)
      return fail(bundle, "a tensor without name, dtype or axes");
    Spec *spec = &specs[(*count)++];
    spec->name = name->text;
    spec->type = type_named(dtype->text);
    read_range(spec, json_get(item, "vocab_size"), json_get(item, "value_range"));
    spec->output = -1;
    if (element_size(spec->type) == 0) return fail(bundle, "no type for %s here", dtype->text);
    if (json_count(axes) > MOST_AXES) return fail(bundle, "%s has too many axes", spec->name);
    for (const Json *axis = axes->child; axis != NULL; axis = axis->next) {
      spec->axes[spec->rank] = axis->text;
      spec->sizes[spec->rank++] = (int64_t)axis->number;
    }
  }
  return true;
}

static bool all_known(Bundle *bundle, const Json *object, const char *known) {
  const char *unknown = json_unknown(object, known);
  return unknown == NULL || fail(bundle, "the contract has the key %s, which is not known here", unknown);
}

static bool keys_are_known(Bundle *bundle, const Json *contract) {
  static const char *const lists[][2] = {
      {"inputs", TENSOR_KEYS}, {"outputs", TENSOR_KEYS}, {"cache", PAIR_KEYS}};
  const Json *format = json_get(bundle->document, "format");
  if (format == NULL || format->kind != JSON_NUMBER || format->number != 1)
    return fail(bundle, "contract.json is of a format that is not known here");
  if (!all_known(bundle, contract, CONTRACT_KEYS)) return false;
  for (size_t i = 0; i < sizeof lists / sizeof *lists; ++i) {
    const Json *list = json_get(contract, lists[i][0]);
    if (list == NULL) return fail(bundle, "the contract has no %s", lists[i][0]);
    for (const Json *item = list->child; item != NULL; item = item->next)
      if (!all_known(bundle, item, lists[i][1])) return false;
  }
  return true;
}

// Which inputs are the cache, the mask, and adapters.
static bool read_roles(Bundle *bundle, const Json *contract) {
  const Json *cache = json_get(contract, "cache"), *mask = json_get(contract, "mask");
  const Json *adapters = json_get(contract, "adapters");
  for (size_t i = 0; i < bundle->num_inputs; ++i) {
    Spec *spec = &bundle->inputs[i];
    spec->is_mask = mask != NULL && mask->text != NULL && strcmp(mask->text, spec->name) == 0;
    const Json *first = adapters != NULL ? adapters->child : NULL;
    for (const Json *pair = first; pair != NULL; pair = pair->next) {
      const Json *down = json_get(pair, "down"), *up = json_get(pair, "up");
      if (down == NULL || down->text == NULL || up == NULL || up->text == NULL)
        return fail(bundle, "an adapter names no inputs");
      if (strcmp(down->text, spec->name) == 0 || strcmp(up->text, spec->name) == 0)
        spec->is_adapter = true;
    }
    for (const Json *pair = cache != NULL ? cache->child : NULL; pair != NULL; pair = pair->next) {
      const Json *past = json_get(pair, "past"), *present = json_get(pair, "present");
      if (past == NULL || past->text == NULL || present == NULL || present->text == NULL)
        return fail(bundle, "the cache names no past or no present");
      if (strcmp(past->text, spec->name) != 0) continue;
      for (size_t o = 0; o < bundle->num_outputs; ++o)
        if (strcmp(bundle->outputs[o].name, present->text) == 0) spec->output = (int)o;
      if (spec->output < 0) return fail(bundle, "there is no output %s", present->text);
    }
  }
  return true;
}

static bool read_contract(Bundle *bundle, const char *folder) {
  bundle->document = read_json(folder, "contract.json");
  bundle->goldens = read_json(folder, "goldens.json");
  const Json *contract = json_get(bundle->document, "contract");
  if (contract == NULL || bundle->goldens == NULL) return fail(bundle, "%s is no bundle", folder);
  const Json *least = json_get(contract, "min_seq_len"), *most = json_get(contract, "max_seq_len");
  const Json *ragged = json_get(contract, "ragged");
  bundle->min_seq_len = least != NULL && least->kind == JSON_NUMBER ? (int64_t)least->number : 1;
  bundle->ragged = ragged != NULL ? ragged->text : NULL;
  bundle->max_seq_len = most != NULL && most->kind == JSON_NUMBER ? (int64_t)most->number : INT64_MAX;
  return keys_are_known(bundle, contract) &&
         read_specs(bundle, json_get(contract, "inputs"), bundle->inputs, &bundle->num_inputs) &&
         read_specs(bundle, json_get(contract, "outputs"), bundle->outputs, &bundle->num_outputs) &&
         read_roles(bundle, contract);
}

bool bundle_load(Bundle *bundle, const char *library, const char *folder) {
  memset(bundle, 0, sizeof *bundle);
  void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  if (handle == NULL) return fail(bundle, "%s", dlerror());
  // A function pointer through memcpy: ISO C converts none from void *.
  const OrtApiBase *(*get_base)(void);
  void *symbol = dlsym(handle, "OrtGetApiBase");
  if (symbol == NULL) return fail(bundle, "%s is no onnxruntime", library);
  memcpy(&get_base, &symbol, sizeof get_base);
  bundle->version = get_base()->GetVersionString();
  bundle->ort = get_base()->GetApi(ORT_API_VERSION);
  if (bundle->ort == NULL) return fail(bundle, "onnxruntime %s is too old", bundle->version);
  if (!read_contract(bundle, folder)) return false;
  char path[4096];
  snprintf(path, sizeof path, "%s/model.onnx", folder);
  OrtSessionOptions *options = NULL;
  const bool made =
      ok(bundle, bundle->ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "bundle", &bundle->env)) &&
      ok(bundle, bundle->ort->CreateSessionOptions(&options)) &&
      ok(bundle, bundle->ort->CreateSession(bundle->env, path, options, &bundle->session)) &&
      ok(bundle, bundle->ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault,
                                                  &bundle->memory));
  if (options != NULL) bundle->ort->ReleaseSessionOptions(options);
  return made;
}

void bundle_free(Bundle *bundle) {
  if (bundle->memory != NULL) bundle->ort->ReleaseMemoryInfo(bundle->memory);
  if (bundle->session != NULL) bundle->ort->ReleaseSession(bundle->session);
  if (bundle->env != NULL) bundle->ort->ReleaseEnv(bundle->env);
  json_free(bundle->document);
  json_free(bundle->goldens);
}

// NaN for a type that is not read here: it is in no range.
static double value_at(const Array *array, size_t index) {
  switch (array->type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64: return (double)((const int64_t *)array->data)[index];
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32: return ((const int32_t *)array->data)[index];
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8: return ((const uint8_t *)array->data)[index];
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: return ((const float *)array->data)[index];
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE: return ((const double *)array->data)[index];
    default: return NAN;
  }
}

// Where the size of a named axis is kept: what the first input says.
static int64_t *size_of(Sizes *sizes, const char *name) {
  for (size_t i = 0; i < sizes->count; ++i)
    if (strcmp(sizes->names[i], name) == 0) return &sizes->values[i];
  sizes->names[sizes->count] = name;
  return &sizes->values[sizes->count++];
}

// Whether a call of such rows takes one position.
static bool reads_singly(const char *ragged, int64_t past, int64_t batch) {
  if (ragged == NULL) return false;
  return strcmp(ragged, "single") == 0 ||
         (past > 0 && (strcmp(ragged, "steps") == 0 ||
                       (strcmp(ragged, "packed_steps") == 0 && batch > 1)));
}

// Check the inputs against the contract; give the sizes of batch and seq.
static bool check(Bundle *bundle, const Array *inputs, int64_t past, int64_t *batch, int64_t *seq) {
  Sizes sizes = {0};
  *batch = *seq = 0;
  for (size_t i = 0; i < bundle->num_inputs; ++i) {
    const Spec *spec = &bundle->inputs[i];
    if (!is_given(spec)) continue;
    const Array *array = inputs++;
    if (array->type != spec->type) return fail(bundle, "%s has another dtype", spec->name);
    if (array->rank != spec->rank)
      return fail(bundle, "%s has rank %zu, expected %zu", spec->name, array->rank, spec->rank);
    for (size_t axis = 0; axis < spec->rank; ++axis) {
      const char *name = spec->axes[axis];
      int64_t expected = spec->sizes[axis];
      if (name != NULL) {
        if (sizes.count == MOST_NAMES) return fail(bundle, "more than %d named axes", MOST_NAMES);
        int64_t *known = size_of(&sizes, name);
        if (*known == 0) *known = array->dims[axis];
        expected = *known;
      }
      if (array->dims[axis] != expected || expected < 1)
        return fail(bundle, "axis %zu of %s is %lld, expected %lld", axis, spec->name,
                    (long long)array->dims[axis], (long long)(expected < 1 ? 1 : expected));
    }
    for (size_t k = 0; spec->has_range && k < count_elements(array); ++k) {
      const double value = value_at(array, k);
      if (!(value >= spec->low && value < spec->high))
        return fail(bundle, "%s holds %g, expected values in [%g, %g)", spec->name, value, spec->low,
                    spec->high);
    }
  }
  *batch = *size_of(&sizes, "batch");
  *seq = *size_of(&sizes, "seq");
  if (past + *seq > bundle->max_seq_len)
    return fail(bundle, "%lld positions, expected at most %lld", (long long)(past + *seq),
                (long long)bundle->max_seq_len);
  if (past + *seq < bundle->min_seq_len)
    return fail(bundle, "%lld positions, expected at least %lld", (long long)(past + *seq),
                (long long)bundle->min_seq_len);
  if (*seq > 1 && reads_singly(bundle->ragged, past, *batch))
    return fail(bundle, "%lld positions in a call, expected 1 here", (long long)*seq);
  return true;
}

// An empty past, adapters of rank 0, or a mask of ones; its memory is onnxruntime's.
static bool fill(Bundle *bundle, const Spec *spec, int64_t batch, int64_t total, OrtValue **value) {
  int64_t dims[MOST_AXES];
  for (size_t axis = 0; axis < spec->rank; ++axis) {
    const char *name = spec->axes[axis];
    dims[axis] = name == NULL                        ? spec->sizes[axis]
                 : strcmp(name, "batch") == 0     ? batch
                 : strcmp(name, "total_seq") == 0 ? total
                                                  : 0;
  }
  OrtAllocator *allocator;
  void *ones;
  if (!ok(bundle, bundle->ort->GetAllocatorWithDefaultOptions(&allocator)) ||
      !ok(bundle, bundle->ort->CreateTensorAsOrtValue(allocator, dims, spec->rank, spec->type, value)))
    return false;
  if (!spec->is_mask) return true;
  if (!ok(bundle, bundle->ort->GetTensorMutableData(*value, &ones))) return false;
  const bool is_long = spec->type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
  for (int64_t k = 0; k < batch * total; ++k) {
    if (is_long) ((int64_t *)ones)[k] = 1;
    else ((int32_t *)ones)[k] = 1;
  }
  return true;
}

bool stream_read(Bundle *bundle, Stream *stream, const Array *inputs, OrtValue **outputs) {
  int64_t batch, seq;
  if (!check(bundle, inputs, stream->length, &batch, &seq)) return false;
  OrtValue *values[MOST_TENSORS] = {0};
  const char *in_names[MOST_TENSORS], *out_names[MOST_TENSORS];
  bool good = true;
  for (size_t i = 0; good && i < bundle->num_inputs; ++i) {
    const Spec *spec = &bundle->inputs[i];
    in_names[i] = spec->name;
    if (is_given(spec)) {
      const Array *array = inputs++;
      good = ok(bundle, bundle->ort->CreateTensorWithDataAsOrtValue(
                            bundle->memory, array->data,
                            count_elements(array) * element_size(array->type), array->dims,
                            array->rank, array->type, &values[i]));
    } else if (stream->past[i] != NULL) {
      values[i] = stream->past[i];
    } else {
      good = fill(bundle, spec, batch, stream->length + seq, &values[i]);
    }
  }
  for (size_t o = 0; o < bundle->num_outputs; ++o) {
    out_names[o] = bundle->outputs[o].name;
    outputs[o] = NULL;
  }
  good = good && ok(bundle, bundle->ort->Run(bundle->session, NULL, in_names,
                                             (const OrtValue *const *)values, bundle->num_inputs,
                                             out_names, bundle->num_outputs, outputs));
  for (size_t i = 0; i < bundle->num_inputs; ++i) {
    // Where the call failed, the stream stays as it was.
    if (values[i] != NULL && (good || values[i] != stream->past[i]))
      bundle->ort->ReleaseValue(values[i]);
    if (!good || bundle->inputs[i].output < 0) continue;
    stream->past[i] = outputs[bundle->inputs[i].output];
    outputs[bundle->inputs[i].output] = NULL;
  }
  if (good) stream->length += seq;
  return good;
}

void stream_free(Bundle *bundle, Stream *stream) {
  for (size_t i = 0; i < bundle->num_inputs; ++i)
    if (stream->past[i] != NULL) bundle->ort->ReleaseValue(stream->past[i]);
  memset(stream, 0, sizeof *stream);
}

void bundle_release(Bundle *bundle, OrtValue **outputs) {
  for (size_t o = 0; o < bundle->num_outputs; ++o) {
    if (outputs[o] != NULL) bundle->ort->ReleaseValue(outputs[o]);
    outputs[o] = NULL;
  }
}

bool bundle_view(Bundle *bundle, OrtValue *value, Array *array) {
  OrtTensorTypeAndShapeInfo *info = NULL;
  bool good = ok(bundle, bundle->ort->GetTensorTypeAndShape(value, &info)) &&
              ok(bundle, bundle->ort->GetTensorElementType(info, &array->type)) &&
              ok(bundle, bundle->ort->GetDimensionsCount(info, &array->rank));
  if (good && array->rank > MOST_AXES) good = fail(bundle, "an output of %zu axes", array->rank);
  good = good && ok(bundle, bundle->ort->GetDimensions(info, array->dims, array->rank)) &&
         ok(bundle, bundle->ort->GetTensorMutableData(value, &array->data));
  if (info != NULL) bundle->ort->ReleaseTensorTypeAndShapeInfo(info);
  return good;
}
