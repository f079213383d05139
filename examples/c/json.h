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

#ifdef __cplusplus
}
#endif
#endif
