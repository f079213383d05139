#include "json.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_DEPTH = 64 };  // of nesting; more is no bundle's, and would exhaust the stack

static Json *parse_value(const char **at, int depth);

static void skip_space(const char **at) {
  while (**at == ' ' || **at == '\n' || **at == '\r' || **at == '\t') ++*at;
}

static bool take(const char **at, const char *word) {
  const size_t length = strlen(word);
  if (strncmp(*at, word, length) != 0) return false;
  *at += length;
  return true;
}

// Four hexadecimal digits as UTF-8. Names beyond the basic plane are not needed here.
static bool parse_escape(const char **at, char **out) {
  char digits[5] = {0};
  for (int i = 0; i < 4; ++i) {
    if (!strchr("0123456789abcdefABCDEF", (*at)[i]) || (*at)[i] == '\0') return false;
    digits[i] = (*at)[i];
  }
  *at += 4;
  const unsigned code = (unsigned)strtoul(digits, NULL, 16);
  if (code >= 0xD800 && code < 0xE000) return false;
  if (code < 0x80) {
    *(*out)++ = (char)code;
  } else if (code < 0x800) {
    *(*out)++ = (char)(0xC0 | code >> 6);
    *(*out)++ = (char)(0x80 | (code & 0x3F));
  } else {
    *(*out)++ = (char)(0xE0 | code >> 12);
    *(*out)++ = (char)(0x80 | (code >> 6 & 0x3F));
    *(*out)++ = (char)(0x80 | (code & 0x3F));
  }
  return true;
}

static char *parse_string(const char **at) {
  if (!take(at, "\"")) return NULL;
  const char *end = *at;
  while (*end != '\0' && *end != '"') end += end[0] == '\\' && end[1] != '\0' ? 2 : 1;
  // No escape is shorter than what it stands for.
  char *text = malloc((size_t)(end - *at) + 1);
  char *out = text;
  while (text != NULL && **at != '"') {
    char c = *(*at)++;
    bool good = c != '\0';
    if (c == '\\') {
      const char *plain = "\"\\/bfnrt", *meant = "\"\\/\b\f\n\r\t";
      c = *(*at)++;
      const char *found = c != '\0' ? strchr(plain, c) : NULL;
      if (c == 'u') {
        good = parse_escape(at, &out);
        c = '\0';
      } else {
        good = found != NULL;
        if (good) *out++ = meant[found - plain];
      }
    } else if (good) {
      *out++ = c;
    }
    if (!good) {
      free(text);
      return NULL;
    }
  }
  if (text == NULL) return NULL;
  ++*at;
  *out = '\0';
  return text;
}

// The elements up to `close`, each with its key in an object.
static bool parse_list(const char **at, Json *list, const char *close, int depth) {
  Json **end = &list->child;
  skip_space(at);
  if (take(at, close)) return true;
  do {
    char *key = NULL;
    skip_space(at);
    if (list->kind == JSON_OBJECT) {
      key = parse_string(at);
      skip_space(at);
      if (key == NULL || !take(at, ":")) {
        free(key);
        return false;
      }
    }
    *end = parse_value(at, depth + 1);
    if (*end == NULL) {
      free(key);
      return false;
    }
    (*end)->key = key;
    end = &(*end)->next;
    skip_space(at);
  } while (take(at, ","));
  return take(at, close);
}

static Json *parse_value(const char **at, int depth) {
  Json *json = calloc(1, sizeof *json);
  bool good = json != NULL && depth < MOST_DEPTH;
  skip_space(at);
  if (!good) {
    // Nothing is read.
  } else if (**at == '"') {
    json->kind = JSON_STRING;
    json->text = parse_string(at);
    good = json->text != NULL;
  } else if (take(at, "[")) {
    json->kind = JSON_ARRAY;
    good = parse_list(at, json, "]", depth);
  } else if (take(at, "{")) {
    json->kind = JSON_OBJECT;
    good = parse_list(at, json, "}", depth);
  } else if (take(at, "true")) {
    json->kind = JSON_BOOL;
    json->number = 1;
  } else if (take(at, "false")) {
    json->kind = JSON_BOOL;
  } else if (!take(at, "null")) {
    char *end;
    json->kind = JSON_NUMBER;
    json->number = strtod(*at, &end);
    good = end != *at;
    *at = end;
  }
  if (good) return json;
  json_free(json);
  return NULL;
}

Json *json_parse(const char *text) {
  Json *json = parse_value(&text, 0);
  skip_space(&text);
  if (json != NULL && *text == '\0') return json;
  json_free(json);
  return NULL;
}

void json_free(Json *json) {
  while (json != NULL) {
    Json *next = json->next;
    json_free(json->child);
    free(json->text);
    free(json->key);
    free(json);
    json = next;
  }
}

const Json *json_get(const Json *object, const char *key) {
  if (object == NULL || object->kind != JSON_OBJECT) return NULL;
  for (const Json *member = object->child; member != NULL; member = member->next)
    if (strcmp(member->key, key) == 0) return member;
  return NULL;
}

size_t json_count(const Json *list) {
  size_t count = 0;
  for (const Json *item = list->child; item != NULL; item = item->next) ++count;
  return count;
}

const char *json_unknown(const Json *object, const char *known) {
  for (const Json *member = object->child; member != NULL; member = member->next) {
    const size_t length = strlen(member->key);
    const char *at = length > 0 ? strstr(known, member->key) : NULL;
    while (at != NULL && ((at != known && at[-1] != ' ') || (at[length] != ' ' && at[length] != '\0')))
      at = strstr(at + 1, member->key);
    if (at == NULL || strchr(member->key, ' ') != NULL) return member->key;
  }
  return NULL;
}
