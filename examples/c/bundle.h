// A bundle through onnxruntime's C interface, which is loaded when the program runs.
#ifndef CAUSAL_ONNX_BUNDLE_H
#define CAUSAL_ONNX_BUNDLE_H

#include <onnxruntime_c_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "json.h"

enum { MOST_AXES = 8, MOST_TENSORS = 512 };

// An array in C order. `data` belongs to whoever made it.
typedef struct {
  ONNXTensorElementDataType type;
  size_t rank;
  int64_t dims[MOST_AXES];
  void *data;
} Array;

// An input or output, as contract.json describes it.
typedef struct {
  const char *name;
  ONNXTensorElementDataType type;
  size_t rank;
  const char *axes[MOST_AXES];  // NULL: a fixed size
  int64_t sizes[MOST_AXES];     // of the fixed ones
  bool has_range;
  double low, high;             // every value lies in [low, high)
  bool is_mask;
  bool is_adapter;              // of a low-rank adapter: none is used here, so its rank is 0
  int output;                   // for a past: the output that is its present; else -1
} Spec;

typedef struct {
  const OrtApi *ort;
  const char *version;
  OrtEnv *env;
  OrtSession *session;
  OrtMemoryInfo *memory;
  Json *document, *goldens;
  Spec inputs[MOST_TENSORS], outputs[MOST_TENSORS];
  size_t num_inputs, num_outputs;
  int64_t min_seq_len, max_seq_len;  // INT64_MAX: no limit
  const char *ragged;                // how rows share a call; NULL: packed
  char error[512];      // what went wrong last
} Bundle;

// A sequence that is read chunk by chunk. Start with zeros: `Stream stream = {0};`
typedef struct {
  int64_t length;
  OrtValue *past[MOST_TENSORS];  // by input; NULL: empty
} Stream;

// All functions give false and set `bundle->error` where something is wrong.
bool bundle_load(Bundle *bundle, const char *library, const char *folder);
void bundle_free(Bundle *bundle);

// Read the next positions. `inputs` holds one array for each input that is neither a past nor the
// mask, in the contract's order; `outputs` gets an OrtValue for each output that is no present, the
// others are NULL. Release them with `bundle_release`.
bool stream_read(Bundle *bundle, Stream *stream, const Array *inputs, OrtValue **outputs);
void stream_free(Bundle *bundle, Stream *stream);
void bundle_release(Bundle *bundle, OrtValue **outputs);

// A view of an OrtValue; its data stays onnxruntime's.
bool bundle_view(Bundle *bundle, OrtValue *value, Array *array);

bool is_given(const Spec *spec);  // an input that a caller gives
int axis_of(const Spec *spec, const char *name);  // -1: it has none
size_t element_size(ONNXTensorElementDataType type);  // 0: not known here
ONNXTensorElementDataType type_named(const char *dtype);
size_t count_elements(const Array *array);

#endif
