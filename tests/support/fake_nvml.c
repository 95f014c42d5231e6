/* A stand-in for NVIDIA's libnvidia-ml.so.1: boards of known power, for tests on machines with no GPU.

   The environment variable FAKE_NVML names a text file with one board per line, written as key=value words. It is read
   on every call, so a test changes a board under a running process. The keys are listed in fake_meters.py.

   The counter is the integral of the board's draw over time, so all processes see the same one. Time is the wall clock's,
   or, where FAKE_NVML_CLOCK has the Unix time in ns at which the monotonic clock began, that one's: it takes no steps.
   Beside the file, FILE.INDEX may hold the board's events, one a line: "UNIX_S DRAW" (from then on it draws that) or
   "UNIX_S reset" (the counter begins at 0 again). Only what pynvml, Zeus and Joulesweep call is here. Layouts are those
   of pynvml's structures. */

#define _XOPEN_SOURCE 700

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define EPOCH_S 1700000000 /* the counter's zero: near enough that millijoules stay exact */
#define MIB 1048576ULL

enum { SUCCESS, UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED, NOT_FOUND = 6, INSUFFICIENT_SIZE }; /* the answers */
enum { DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15, VERSION_MISMATCH = 25 };
enum { VOLTA = 5, AMPERE = 7 };
enum { MEMORY_V2 = 0x02000028, TEMPERATURE_V1 = 0x0100000C };
enum { TOTAL_ENERGY = 83, POWER_AVERAGE = 185, POWER_INSTANT = 186 }; /* fields, */
enum { UNSIGNED_INT = 1, UNSIGNED_LONG_LONG = 3, SCOPE_GPU = 0 };     /* their types and what they are of */

typedef struct { char words[2048]; int index; double age_s; } Board; /* age_s: since the file was written */
typedef struct { char shape; double first_w, second_w; int64_t period_ns; } Draw; /* shapes: square, saw, sine */
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } Process;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory2;
typedef struct { unsigned version, sensor; int temperature_c; } Temperature;
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } Pci;
typedef struct {
    uint32_t id, scope;
    int64_t timestamp_us, latency_us;
    unsigned type, result;
    union { unsigned u; unsigned long long ull; } value;
} Field;

static int sessions; /* nvmlInit without nvmlShutdown */

static int64_t since_epoch_ns(struct timespec time) {
    return ((int64_t)time.tv_sec - EPOCH_S) * 1000000000 + time.tv_nsec;
}

static int64_t now_ns(void) {
    const char *clock = getenv("FAKE_NVML_CLOCK");
    struct timespec now;
    if (clock) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        return since_epoch_ns(now) + strtoll(clock, NULL, 10);
    }
    clock_gettime(CLOCK_REALTIME, &now);
    return since_epoch_ns(now);
}

/* Read the board of a number. Returns how many boards were seen on the way: all of them for the number -1, and -1 where
   there is no file. */
static int scan(int wanted, Board *board) {
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    struct stat status;
    int seen = 0;
    if (!file) return -1;
    board->words[0] = ' ';
    while (fgets(board->words + 1, sizeof board->words - 1, file))
        if (strchr(board->words, '=') && seen++ == wanted) break;
    fstat(fileno(file), &status);
    board->index = wanted;
    board->age_s = (double)(now_ns() - since_epoch_ns(status.st_mtim)) / 1e9;
    fclose(file);
    return seen;
}

/* Copy the text of a key. Returns whether the board has it. */
static int text(const Board *board, const char *key, char *value, size_t size) {
    char start[64];
    snprintf(start, sizeof start, " %s=", key);
    const char *found = strstr(board->words, start);
    *value = 0;
    if (!found) return 0;
    found += strlen(start);
    snprintf(value, size, "%.*s", (int)strcspn(found, " \n"), found);
    return 1;
}

static double number(const Board *board, const char *key, double otherwise) {
    char value[64];
    return text(board, key, value, sizeof value) ? strtod(value, NULL) : otherwise;
}

/* "FIRST", "FIRST:SECOND:PERIOD_S" (a square wave, the first half first), "saw:FIRST:SECOND:PERIOD_S" (it rises, or falls,
   and begins again) or "sine:MEAN:SWING:PERIOD_S". */
static Draw parse(const char *value) {
    char shape = value[0] == 's' ? value[1] : 'q'; /* 'a' of saw, 'i' of sine */
    double first_w = 0, second_w = 0, period_s = 1;
    if (shape != 'q') value = strchr(value, ':') + 1;
    if (sscanf(value, "%lf:%lf:%lf", &first_w, &second_w, &period_s) < 3) second_w = first_w;
    return (Draw){shape, first_w, second_w, (int64_t)(period_s * 1e9)};
}

static double watts_at(Draw wave, int64_t ns) {
    double share = (double)(ns % wave.period_ns) / (double)wave.period_ns;
    if (wave.shape == 'a') return wave.first_w + (wave.second_w - wave.first_w) * share;
    if (wave.shape == 'i') return wave.first_w + wave.second_w * sin(2 * M_PI * share);
    return ns % wave.period_ns < wave.period_ns / 2 ? wave.first_w : wave.second_w;
}

static long double joules_until(Draw wave, int64_t ns) {
    int64_t half = wave.period_ns / 2, rest = ns % wave.period_ns, first_ns = rest < half ? rest : half;
    long double share = (long double)rest / wave.period_ns, period_s = wave.period_ns / 1e9L, s = ns / 1e9L;
    if (wave.shape == 'a')
        return (wave.first_w * (s - rest / 1e9L)) + (wave.second_w - wave.first_w) / 2 * (s - rest / 1e9L)
               + period_s * share * (wave.first_w + (wave.second_w - wave.first_w) * share / 2);
    if (wave.shape == 'i')
        return wave.first_w * s + wave.second_w * period_s / (2 * M_PI) * (1 - cos(2 * M_PI * (double)share));
    first_ns += ns / wave.period_ns * half;
    return ((long double)first_ns * wave.first_w + (long double)(ns - first_ns) * wave.second_w) / 1e9L;
}

/* Joules from the counter's last zero up to a moment, and the draw at that moment. */
static long double joules_at(const Board *board, int64_t ns, Draw *wave) {
    char path[4096], line[160], word[128];
    long double total = 0, at_s;
    int64_t since = 0;
    snprintf(path, sizeof path, "%s.%d", getenv("FAKE_NVML"), board->index);
    FILE *events = fopen(path, "r");
    text(board, "watts", word, sizeof word);
    *wave = parse(word);
    while (events && fgets(line, sizeof line, events)) {
        int64_t at = 0;
        if (sscanf(line, "%Lf %127s", &at_s, word) < 2) continue;
        at = (int64_t)((at_s - EPOCH_S) * 1e9L);
        if (at > ns) break;
        total += joules_until(*wave, at) - joules_until(*wave, since);
        since = at;
        if (!strcmp(word, "reset")) total = 0;
        else *wave = parse(word);
    }
    if (events) fclose(events);
    return total + joules_until(*wave, ns) - joules_until(*wave, since);
}

static unsigned power_mw(const Board *board, double average_s) { /* as reported: now, or the mean of the last seconds */
    Draw wave, ignored;
    int64_t now = now_ns(), span = (int64_t)(average_s * 1e9);
    long double joules = joules_at(board, now, &wave);
    double watts = watts_at(wave, now);
    if (span && joules >= joules_at(board, now - span, &ignored))
        watts = (double)((joules - joules_at(board, now - span, &ignored)) / (span / 1e9L));
    return (unsigned)(watts * number(board, "power_error", 1) * 1000 + 0.5);
}

static unsigned long long energy_mj(const Board *board) { /* up to the last tick, some time ago */
    Draw wave;
    int64_t tick_ns = (int64_t)(number(board, "tick_ms", 100) * 1e6);
    int64_t now = now_ns() - (int64_t)(number(board, "lag_ms", 0) * 1e6);
    if (tick_ns > 1) now -= now % tick_ns;
    return (unsigned long long)(joules_at(board, now, &wave) * 1000 + number(board, "offset_mj", 0));
}

/* The seconds or the error that a list "FUNCTION:VALUE,…" has for a function, whose name begins with nvmlDevice; a star
   stands for all functions. */
static double listed(const Board *board, const char *key, const char *function) {
    char list[512], *rest = list, *entry;
    text(board, key, list, sizeof list);
    while ((entry = strtok_r(rest, ",", &rest))) {
        char *value = strchr(entry, ':');
        if (!value) continue;
        *value = 0;
        if (*entry == '*' || !strncmp(function + strlen("nvmlDevice"), entry, strlen(entry))) return strtod(value + 1, NULL);
    }
    return 0;
}

static int temperature_c(const Board *board) { /* a straight fall from the moment the file was written, if it falls */
    char value[64];
    double from = 0, to = 0, seconds = 0;
    text(board, "temp_c", value, sizeof value);
    if (sscanf(value, "%lf:%lf:%lf", &from, &to, &seconds) < 3) return (int)from;
    return (int)(board->age_s >= seconds ? to : from + (to - from) * board->age_s / seconds);
}

static double limit_mw(const Board *board) { return number(board, "limit_w", 0) * 1000; }
static int arch(const Board *board) { return (int)number(board, "arch", AMPERE); }
static int counts(const Board *board) { return arch(board) >= VOLTA && number(board, "counter", 1); }

/* The board of a handle, which is its number plus one. */
static int find(void *handle, Board *board) {
    int index = (int)(intptr_t)handle - 1;
    if (!sessions) return UNINITIALIZED;
    if (index < 0 || scan(index, board) <= index) return INVALID_ARGUMENT;
    return number(board, "lost", 0) ? GPU_IS_LOST : SUCCESS;
}

static unsigned long long throttles(const Board *board) {
    char value[64];
    text(board, "throttle", value, sizeof value);
    return strtoull(value, NULL, 16);
}

static int capability(const Board *board) { /* times ten */
    static const int of_arch[] = {0, 0, 30, 50, 60, 70, 75, 80, 89, 90, 100};
    return of_arch[arch(board) > 10 ? 10 : arch(board)];
}

static int copy(const char *from, char *to, unsigned size) {
    return (unsigned)snprintf(to, size, "%s", from) < size ? SUCCESS : INSUFFICIENT_SIZE;
}

/* The board of a handle as a function finds it: it answers late, or with an error, where the board is told to. A delay
   ends early when the file no longer asks for it. */
static int opened(void *handle, Board *board, const char *function) {
    int failed = find(handle, board);
    double waited_s = 0;
    while (!failed && waited_s < listed(board, "delay", function)) {
        double rest_s = listed(board, "delay", function) - waited_s, nap_s = rest_s < 0.02 ? rest_s : 0.02;
        nanosleep(&(struct timespec){.tv_nsec = (long)(nap_s * 1e9)}, NULL);
        waited_s += nap_s;
        failed = find(handle, board);
    }
    return failed ? failed : (int)listed(board, "fail", function);
}

/* The NVML functions. BOARD opens the board of a handle or leaves with the error. */
#define BOARD                                                                                                          \
    Board b;                                                                                                           \
    int failed = opened(handle, &b, __func__);                                                                         \
    if (failed) return failed;

/* A function that answers one value, where `can` holds; the next two: of a numbered kind of thing, and two values. */
#define ONE(function, type, can, value)                                                                                \
    int function(void *handle, type *answer) {                                                                         \
        BOARD if (!(can)) return NOT_SUPPORTED;                                                                        \
        *answer = (type)(value);                                                                                       \
        return SUCCESS;                                                                                                \
    }
#define ONE_OF(function, kinds, value)                                                                                 \
    int function(void *handle, unsigned kind, unsigned *answer) {                                                      \
        BOARD if (kind >= kinds) return INVALID_ARGUMENT;                                                              \
        *answer = (unsigned)(value);                                                                                   \
        return SUCCESS;                                                                                                \
    }
#define TWO(function, can, one, two)                                                                                   \
    int function(void *handle, unsigned *first, unsigned *second) {                                                    \
        BOARD if (!(can)) return NOT_SUPPORTED;                                                                        \
        *first = (unsigned)(one);                                                                                      \
        *second = (unsigned)(two);                                                                                     \
        return SUCCESS;                                                                                                \
    }

ONE(nvmlDeviceGetIndex, unsigned, 1, b.index)
ONE(nvmlDeviceGetArchitecture, unsigned, 1, arch(&b))
ONE(nvmlDeviceGetTotalEnergyConsumption, unsigned long long, counts(&b), energy_mj(&b))
ONE(nvmlDeviceGetPowerUsage, unsigned, 1, power_mw(&b, number(&b, "average_s", 0)))
ONE(nvmlDeviceGetEnforcedPowerLimit, unsigned, 1, limit_mw(&b))
ONE(nvmlDeviceGetPowerManagementLimit, unsigned, 1, limit_mw(&b))
ONE(nvmlDeviceGetPowerManagementDefaultLimit, unsigned, 1, limit_mw(&b))
ONE(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, 1, throttles(&b))
ONE(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, 1, throttles(&b))
ONE(nvmlDeviceGetPersistenceMode, unsigned, 1, 1)
ONE(nvmlDeviceGetC2cModeInfoV, unsigned, 0, 0) /* not Grace Hopper */
ONE_OF(nvmlDeviceGetTemperature, 1, temperature_c(&b))
ONE_OF(nvmlDeviceGetClockInfo, 4, number(&b, kind == 2 ? "mem_mhz" : "sm_mhz", 0))
ONE_OF(nvmlDeviceGetMaxClockInfo, 4, number(&b, kind == 2 ? "mem_mhz" : "sm_mhz", 0))
TWO(nvmlDeviceGetPowerManagementLimitConstraints, 1, 100000, limit_mw(&b))
TWO(nvmlDeviceGetCudaComputeCapability, 1, capability(&b) / 10, capability(&b) % 10)
TWO(nvmlDeviceGetMigMode, number(&b, "mig", -1) >= 0, number(&b, "mig", 0), number(&b, "mig", 0))

int nvmlDeviceGetUtilizationRates(void *handle, unsigned rates[2]) { /* a split board has none */
    BOARD
    if (number(&b, "mig", 0) > 0) return NOT_SUPPORTED;
    rates[0] = (unsigned)number(&b, "utilization", 0); /* per cent */
    rates[1] = rates[0] / 2;
    return SUCCESS;
}

int nvmlDeviceGetTemperatureV(void *handle, Temperature *answer) {
    if (answer->version != TEMPERATURE_V1) return VERSION_MISMATCH;
    return nvmlDeviceGetTemperature(handle, answer->sensor, (unsigned *)&answer->temperature_c);
}

int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned size) {
    char value[96];
    BOARD
    text(&b, "uuid", value, sizeof value);
    return copy(value, uuid, size);
}

int nvmlDeviceGetName(void *handle, char *name, unsigned size) {
    char value[96];
    BOARD
    text(&b, "name", value, sizeof value);
    for (char *c = value; *c; c++)
        if (*c == '_') *c = ' ';
    return copy(value, name, size);
}

int nvmlDeviceGetMemoryInfo_v2(void *handle, Memory2 *memory) {
    BOARD
    if (memory->version != MEMORY_V2) return VERSION_MISMATCH;
    memory->total = (unsigned long long)number(&b, "memory_mib", 0) * MIB;
    memory->used = memory->total / 100;
    memory->reserved = 0;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *handle, unsigned long long total_free_used[3]) {
    Memory2 memory = {.version = MEMORY_V2};
    int failed = nvmlDeviceGetMemoryInfo_v2(handle, &memory);
    memcpy(total_free_used, (unsigned long long[]){memory.total, memory.free, memory.used}, 3 * sizeof memory.total);
    return failed;
}

int nvmlDeviceGetPciInfo_v3(void *handle, Pci *pci) {
    BOARD
    *pci = (Pci){.bus = (unsigned)b.index + 1, .id = 0x20B010DE};
    snprintf(pci->legacy, sizeof pci->legacy, "0000:%02X:00.0", pci->bus & 0xFF);
    snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02X:00.0", pci->bus & 0xFF);
    return SUCCESS;
}

/* Asked with no room, it says how much it needs. The process 0 stands for the one that asks. */
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, Process *processes) {
    char list[1024], *rest = list, *pid;
    unsigned room = *count;
    BOARD
    text(&b, "pids", list, sizeof list);
    for (*count = 0; (pid = strtok_r(rest, ",", &rest)); ++*count)
        if (*count < room)
            processes[*count] = (Process){atoi(pid) ? (unsigned)atoi(pid) : (unsigned)getpid(), MIB, ~0U, ~0U};
    return *count > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetFieldValues(void *handle, int count, Field *fields) {
    BOARD
    for (Field *field = fields; field < fields + count; field++) {
        int average = field->id == POWER_AVERAGE && arch(&b) >= AMPERE;
        int instant = field->id == POWER_INSTANT && number(&b, "instant", 1);
        field->timestamp_us = now_ns() / 1000 + EPOCH_S * 1000000LL;
        field->latency_us = 0;
        field->result = SUCCESS;
        field->type = UNSIGNED_INT;
        if (field->scope == SCOPE_GPU && (instant || average))
            field->value.u = power_mw(&b, average ? number(&b, "average_s", 0) : 0);
        else if (field->id == TOTAL_ENERGY && counts(&b)) {
            field->type = UNSIGNED_LONG_LONG;
            field->value.ull = energy_mj(&b);
        } else
            field->result = NOT_SUPPORTED;
    }
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    Board b;
    *count = sessions ? (unsigned)scan(-1, &b) : 0;
    return sessions ? SUCCESS : UNINITIALIZED;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    Board b;
    *handle = (void *)(intptr_t)(index + 1);
    return find(*handle, &b);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    Board b;
    char value[96];
    if (!sessions) return UNINITIALIZED;
    for (int i = 0; scan(i, &b) > i; i++)
        if (text(&b, "uuid", value, sizeof value) && !strcmp(value, uuid))
            return nvmlDeviceGetHandleByIndex_v2((unsigned)i, handle);
    return NOT_FOUND;
}

int nvmlInitWithFlags(unsigned flags) {
    Board b;
    (void)flags;
    if (getenv("FAKE_NVML_INIT")) return atoi(getenv("FAKE_NVML_INIT")); /* it does not start, for this reason */
    if (scan(-1, &b) < 0) return DRIVER_NOT_LOADED;
    sessions++;
    return SUCCESS;
}
int nvmlInit(void) { return nvmlInitWithFlags(0); } /* torch asks for this one */
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return sessions ? (sessions--, SUCCESS) : UNINITIALIZED; }
const char *nvmlErrorString(int error) { return error ? "an error of the fake NVML" : "no error"; }

int nvmlSystemGetDriverVersion(char *to, unsigned size) { return copy("999.01", to, size); }
int nvmlSystemGetNVMLVersion(char *to, unsigned size) { return copy("13.999.01", to, size); }
