// What a script in C needs for schemas/README.md, whatever it trains: lines of telemetry, values out of control.json.
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static FILE *telemetry; // with a buffer for the longest line, so that each is one append
static long seq;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

static const char *figure(char text[32], double value) { // JSON has no NaN and no infinities
  if (!isfinite(value)) return isnan(value) ? "\"NaN\"" : value > 0 ? "\"Infinity\"" : "\"-Infinity\"";
  return snprintf(text, 32, "%.17g", value), text;
}

#define FIGURE(value) figure((char[32]){0}, value)

// A whole record: what is common to all, and the other keys in the manner of printf.
#define SAY(event, ...) do { \
  fprintf(telemetry, "{\"v\":1,\"t\":%.6f,\"seq\":%ld,\"event\":\"" event "\",", now(), seq++); \
  fprintf(telemetry, __VA_ARGS__), fputs("}\n", telemetry), fflush(telemetry); } while (0)

static const char *blank(const char *p) { return p + strspn(p, " \t\r\n,:"); }

static const char *skip(const char *p) { // behind the JSON value that begins here
  for (int depth = 0; *p; p++) {
    if (*p == '"') while (*++p && *p != '"') p += *p == '\\' && p[1];
    depth += (*p == '{' || *p == '[') - (*p == '}' || *p == ']');
    if (!*p || (depth <= 0 && strchr(" \t\r\n,:]}", p[1]))) return p + !!*p;
  }
  return p;
}

static int is(const char *p, const char *word) {
  return p && *p == '"' && !strncmp(p + 1, word, strlen(word)) && p[strlen(word) + 1] == '"';
}

static const char *find(const char *object, const char *key) { // its value; NULL where that is missing or null
  const char *p = object && *object == '{' ? blank(object + 1) : "";
  while (*p == '"' && !is(p, key)) p = blank(skip(blank(skip(p))));
  return *p != '"' || *(p = blank(skip(p))) == 'n' ? NULL : p;
}

static long whole(const char *object, const char *key) {
  const char *value = find(object, key);
  return value ? atol(value) : 0;
}

static const char *begin(void) { // into the run directory, for all relative paths; its id, NULL where nobody supervises
  const char *folder = getenv("TRAINMGR_RUN_DIR"), *last = folder ? strrchr(folder, '/') : NULL;
  if (folder && chdir(folder)) folder = NULL;
  if (folder) mkdir("checkpoints", 0700);
  if (!(telemetry = fopen(folder ? "telemetry.jsonl" : "/dev/null", "a"))) exit(1);
  setvbuf(telemetry, NULL, _IOFBF, 1 << 16);
  return last && folder ? last + 1 : folder;
}

static const char *changed(const char *run) { // the control file, if it is new and of this run
  static char texts[2][1 << 24];
  static int turn;
  char *fresh = texts[turn], *seen = texts[!turn];
  FILE *file = fopen("control.json", "r");
  if (!file) return NULL;
  fresh[fread(fresh, 1, sizeof *texts - 1, file)] = 0;
  fclose(file);
  if (!strcmp(fresh, seen) || whole(fresh, "v") != 1 || !is(find(fresh, "run"), run)) return NULL;
  turn = !turn;
  return fresh;
}
