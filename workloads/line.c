// The protocol of schemas/README.md in C, with nothing but POSIX: a line fitted by stochastic gradient descent.
//   cc -O2 -o line workloads/line.c && trainmgr run line
#include "protocol.h"
enum { STEPS = 1500, EVERY = 25, SAMPLES = 200 }; static const double LOW = 1e-4, HIGH = 1;
static const char *NAMED[] = {"initial", "best"}, *PATHS[] = {"checkpoints/initial.txt", "checkpoints/best.txt"};
static double weights[2], saved[2][2], lr = 0.4, best = INFINITY; // too fast on purpose: there is something to do
static long step, handled, waiting; // waiting: the last revision that was read before its moment
static unsigned state, kept[2], stopping;
static const char *run; // its id; NULL: nobody supervises
static double uniform(void) { return (state = state * 1664525u + 1013904223u) / 4294967296.0; }
static void sample(double s[2]) { s[0] = uniform() - 0.5, s[1] = 30 * s[0] - 1 + uniform() - uniform(); }
static double error(const double s[2]) { return weights[0] * s[0] + weights[1] - s[1]; }
static double loss(double s[][2], int n) { return n ? loss(s + 1, n - 1) + error(*s) * error(*s) / SAMPLES : 0; }
static int save(int which) { // whole on disk before anybody hears of it; 0 where the disk refuses
  FILE *file = run ? fopen("checkpoints/new", "w") : NULL;
  if (file) fprintf(file, "%ld %.17g %.17g\n", step, weights[0], weights[1]);
  if (run && (!file || fclose(file) || rename("checkpoints/new", PATHS[which]))) return 0;
  return memcpy(saved[which], weights, sizeof weights), kept[which] = 1;
}
static void refuse(long revision, const char *reason) {
  SAY("refused", "\"revision\":%ld,\"step\":%ld,\"reason\":\"%s\"", handled = revision, step, reason);
}
static void answer(const char *entry) {
  const char *params = find(entry, "params"), *value = find(params, "lr"), *at = find(entry, "at_step");
  const char *command = find(entry, "command"), *name = find(command, "name"), *to = find(command, "to");
  const char *until = at ? at : find(entry, "valid_until_step"), *first = params ? blank(params + 1) : "}";
  long revision = whole(entry, "revision"), back = 0;
  double old = lr, wanted = value ? strtod(value, NULL) : lr;
  if (revision <= handled || stopping) return;
  if (at && step < atol(at)) return (void)(waiting = revision);
  while (to && back < 2 && !is(to, NAMED[back]) && !is(to, PATHS[back])) back++;
  if (until && step > atol(until)) return refuse(revision, "too late");
  if (*first == '"' && (!is(first, "lr") || *blank(skip(blank(skip(first)))) == '"')) return refuse(revision, "not lr");
  if (!(wanted >= LOW && wanted <= HIGH)) return refuse(revision, "lr is out of its bounds");
  if (command && !is(name, "rollback") && !is(name, "stop")) return refuse(revision, "no such command is offered");
  if (to && (back == 2 || !kept[back])) return refuse(revision, "there is no such checkpoint");
  if (to) memcpy(weights, saved[back], sizeof weights);
  handled = revision, lr = wanted, stopping = is(name, "stop");
  char changes[80] = "";
  if (lr != old) snprintf(changes, sizeof changes, "\"lr\":[%.17g,%.17g]", old, lr);
  SAY("applied", "\"revision\":%ld,\"step\":%ld,\"boundary\":\"step\",\"changes\":{%s},\"command\":%.*s", revision,
      step, changes, command ? (int)(skip(command) - command) : 4, command ? command : "null");
}
static void poll(void) { // at the boundary after each step: read what is new, then do what has come to its moment
  static const char *control = "";
  const char *news = run ? changed(run) : NULL;
  if (news && waiting > handled && !find(news, "schedule") && whole(news, "revision") > waiting)
    refuse(waiting, "superseded by a later revision");
  const char *schedule = find(control = news ? news : control, "schedule");
  if (!schedule) answer(control);
  for (const char *p = schedule ? blank(schedule + 1) : ""; *p == '{'; p = blank(skip(p))) answer(p);
}
int main(void) {
  const char *seed = getenv("TRAINMGR_SEED") ? getenv("TRAINMGR_SEED") : "1";
  double valid[SAMPLES][2], test[SAMPLES][2], one[2];
  state = strtoull(seed, NULL, 10), run = begin();
  SAY("start", "\"workload\":\"line-c\",\"pid\":%d,\"seed\":%s,\"total_steps\":%d,\"commands\":[\"rollback\",\"stop\"],"
      "\"objective\":{\"metric\":\"val_loss\",\"mode\":\"min\"},\"action_space\":[{\"name\":\"lr\",\"type\":\"float\","
      "\"low\":%g,\"high\":%g,\"value\":%g,\"scale\":\"log\",\"max_ratio\":2,\"min_ratio\":0.1,\"boundary\":\"step\","
      "\"group\":\"optimizer\"}],\"metrics\":{\"loss\":{\"description\":\"squared error of a sample\"},"
      "\"val_loss\":{\"description\":\"mean squared error\"}}",
      (int)getpid(), seed, STEPS, LOW, HIGH, lr);
  if (save(0)) SAY("checkpoint", "\"step\":0,\"path\":\"%s\"", PATHS[0]);
  for (int i = 0; i < SAMPLES; i++) sample(valid[i]), sample(test[i]);
  while (step < STEPS && !stopping) {
    double off = (sample(one), error(one));
    weights[0] -= lr * off * one[0], weights[1] -= lr * off, step++;
    nanosleep(&(struct timespec){0, 2000000}, NULL); // stands for the work of a real step
    SAY("step", "\"step\":%ld,\"metrics\":{\"loss\":%s}", step, FIGURE(off * off));
    poll();
    if (step % EVERY || stopping) continue;
    double found = loss(valid, SAMPLES);
    int better = found < best && save(1) && (best = found, 1);
    SAY("eval", "\"step\":%ld,\"metrics\":{\"val_loss\":%s},\"params\":{\"lr\":%.17g}", step, FIGURE(found), lr);
    if (better) SAY("checkpoint", "\"step\":%ld,\"path\":\"%s\",\"best\":true", step, PATHS[1]);
  }
  const char *status = stopping ? "stopped" : "completed", *end = FIGURE(loss(test, SAMPLES));
  SAY("end", "\"status\":\"%s\",\"step\":%ld,\"metrics\":{\"test_loss\":%s}", status, step, end);
}
