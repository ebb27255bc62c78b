/* A slow accelerator for llama-server: loaded before libllama, it lets every pass of the model last as long as
 * it would on a slower machine, and sleeps meanwhile.
 *
 *     seconds = PACE_STEP + PACE_BESIDE x (sequences - 1) + PACE_PROMPT x prompt tokens
 *
 * A pass reads the weights once (PACE_STEP), each sequence's cache (PACE_BESIDE) and computes for each token of a
 * prompt (PACE_PROMPT). A sequence with one token in the pass is decoding. A pass that follows the last one at
 * once counts from that one's end, so that a busy machine hardly slows the server. All else, batching, slots,
 * HTTP, is the server's own. Only its one decoding thread comes here. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#define SEQUENCES 256

#define SECOND 1000000000LL

static int tokens[SEQUENCES];
static int64_t last_end;

/* No server outlives the bench that started it. */
__attribute__((constructor)) static void end_with_parent(void) {
    prctl(PR_SET_PDEATHSIG, SIGTERM);
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * SECOND + time.tv_nsec;
}

static double setting(const char *name) {
    const char *text = getenv(name);
    return text ? atof(text) : 0.0;
}

static double pass_seconds(void) {
    int sequences = 0, prompt = 0;
    for (int i = 0; i < SEQUENCES; i++) {
        sequences += tokens[i] > 0;
        prompt += tokens[i] > 1 ? tokens[i] : 0;
    }
    return setting("PACE_STEP") + setting("PACE_BESIDE") * (sequences > 1 ? sequences - 1 : 0)
        + setting("PACE_PROMPT") * prompt;
}

void llama_batch_ext_clear(void *batch) {
    static void (*own)(void *);
    if (!own) own = (void (*)(void *))dlsym(RTLD_NEXT, "llama_batch_ext_clear");
    memset(tokens, 0, sizeof tokens);
    own(batch);
}

int32_t llama_batch_ext_add_token(void *batch, int32_t sequence, int32_t token) {
    static int32_t (*own)(void *, int32_t, int32_t);
    if (!own) own = (int32_t (*)(void *, int32_t, int32_t))dlsym(RTLD_NEXT, "llama_batch_ext_add_token");
    tokens[(uint32_t)sequence % SEQUENCES]++;
    return own(batch, sequence, token);
}

int32_t llama_process(void *context, int type, void *batch) {
    static int32_t (*own)(void *, int, void *);
    if (!own) own = (int32_t (*)(void *, int, void *))dlsym(RTLD_NEXT, "llama_process");
    int64_t began = now(), took = (int64_t)(pass_seconds() * SECOND);
    int32_t status = own(context, type, batch);
    int64_t end = (began - last_end < took / 2 ? last_end : began) + took;
    struct timespec until = {end / SECOND, end % SECOND};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) {
    }
    last_end = now() - end < took / 2 ? end : now();
    return status;
}
