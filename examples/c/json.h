// A reader of JSON documents, as small as bundles need.
#ifndef CAUSAL_ONNX_JSON_H
#define CAUSAL_ONNX_JSON_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT } JsonKind;

typedef struct Json {
  JsonKind kind;
  double number;        // of a number; 1 for true
  char *text;           // of a string, UTF-8
  char *key;            // of a member of an object
  struct Json *child;   // the first element or member
  struct Json *next;    // the one after this
} Json;

// The document in `text`, or NULL where it is none. Free it with json_free.
Json *json_parse(const char *text);
void json_free(Json *json);

// The member `key` of an object, or NULL.
const Json *json_get(const Json *object, const char *key);
size_t json_count(const Json *list);
// The first key of an object that is no word of `known`, or NULL.
const char *json_unknown(const Json *object, const char *known);

// What is read here of a contract, of its inputs and outputs, and of the pairs of its cache. A key
// that is not known may restrict what a call may contain.
#define CONTRACT_KEYS                                                                              \
  "adapters bos_token_id cache causal_block computed eos_token_ids form format free_axes inputs "  \
  "last_only mask max_seq_len min_onnxruntime min_seq_len opset outputs pad_token_id precision "   \
  "ragged unbatched"
#define TENSOR_KEYS "name dtype axes vocab_size kind value_range"
#define PAIR_KEYS "past present bounded shared computed_from"

#ifdef __cplusplus
}
#endif
#endif
