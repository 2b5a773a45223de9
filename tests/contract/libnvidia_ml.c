/* A driver library for tests: the functions of NVML that the daemon calls, with NVML's own
   signatures, struct layouts and codes, told what to say by the lines "key number" of the file
   $FAKE_NVML, which is read again at every call. With -DOLD it is a driver from before 510. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, STALE = 999 };
#define NOT_AVAILABLE (~0ULL)

typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned long long total, free, used; } memory_v1;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gpu_instance, compute_instance; } process;

static int opened = -1; /* the "epoch" that nvmlInit saw: a driver that was reset knows its old callers no more */

static long long get(const char *key, long long otherwise) {
  char name[80];
  long long value;
  FILE *file = fopen(getenv("FAKE_NVML"), "r");
  while (file && fscanf(file, "%79s %lld", name, &value) == 2)
    if (!strcmp(name, key)) otherwise = value;
  if (file) fclose(file);
  return otherwise;
}

static long long of(const char *key, long index, long long otherwise) {
  char name[80];
  snprintf(name, sizeof name, "%s.%ld", key, index);
  return get(name, otherwise);
}

static int usable(void) {
  if (opened < 0) return UNINITIALIZED;
  return opened == get("epoch", 0) ? SUCCESS : STALE;
}

int nvmlInitWithFlags(unsigned int flags) {
  int code = get("init", SUCCESS);
  (void)flags;
  if (code == SUCCESS) opened = get("epoch", 0);
  return code;
}

int nvmlShutdown(void) {
  if (opened < 0) return UNINITIALIZED;
  opened = -1;
  return SUCCESS;
}

const char *nvmlErrorString(int code) {
  static char words[40];
  snprintf(words, sizeof words, "Fake Error %d", code);
  return words;
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
  *count = get("count", 0);
  return usable();
}

/* A handle is an opaque pointer; this one is the index plus one. */
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
  *device = (void *)(long)(index + 1);
  return usable() ? usable() : (int)of("handle", index, SUCCESS);
}

int nvmlDeviceGetName(void *device, char *name, unsigned int length) {
  snprintf(name, length, "Fake GPU %ld", (long)device - 1);
  return usable();
}

int nvmlDeviceGetUUID(void *device, char *uuid, unsigned int length) {
  snprintf(uuid, length, "GPU-0000000%ld", (long)device - 1);
  return usable();
}

int nvmlDeviceGetMigMode(void *device, unsigned int *current, unsigned int *pending) {
  long long mode = of("mig", (long)device - 1, -1);
  *current = *pending = mode > 0;
  return mode < 0 ? NOT_SUPPORTED : usable();
}

int nvmlDeviceGetMemoryInfo(void *device, memory_v1 *memory) {
  long index = (long)device - 1;
  while (get("stuck", 0)) usleep(5000);
  memory->total = of("total", index, 0);
  memory->free = of("free", index, 0);
  memory->used = memory->total - memory->free;
  return usable() ? usable() : (int)of("memory", index, SUCCESS);
}

static int processes(const char *kind, void *device, unsigned int *count, process *rows) {
  long index = (long)device - 1;
  char key[80];
  unsigned int room = *count;
  snprintf(key, sizeof key, "%s.code", kind);
  if (usable() || of(key, index, SUCCESS)) return usable() ? usable() : (int)of(key, index, SUCCESS);
  snprintf(key, sizeof key, "%s.count", kind);
  *count = of(key, index, 0);
  if (*count > room) return INSUFFICIENT_SIZE;
  for (unsigned int row = 0; row < *count; row++) {
    snprintf(key, sizeof key, "%s.%u.pid", kind, row);
    rows[row].pid = of(key, index, 0);
    snprintf(key, sizeof key, "%s.%u.used", kind, row);
    rows[row].used = of(key, index, NOT_AVAILABLE);
  }
  return SUCCESS;
}

int nvmlSystemGetProcessName(unsigned int pid, char *name, unsigned int length) {
  snprintf(name, length, "/opt/fake/process-%u", pid);
  return of("nameless", pid, 0) ? NOT_FOUND : usable();
}

int nvmlDeviceGetComputeRunningProcesses_v2(void *device, unsigned int *count, process *rows) {
  return processes("compute", device, count, rows);
}

int nvmlDeviceGetGraphicsRunningProcesses_v2(void *device, unsigned int *count, process *rows) {
  return processes("graphics", device, count, rows);
}

#ifndef OLD
int nvmlDeviceGetMemoryInfo_v2(void *device, memory_v2 *memory) {
  long index = (long)device - 1;
  while (get("stuck", 0)) usleep(5000);
  if (memory->version != (sizeof(memory_v2) | 2 << 24)) return 25; /* ARGUMENT_VERSION_MISMATCH */
  memory->total = of("total", index, 0);
  memory->free = of("free", index, 0);
  memory->reserved = of("reserved", index, 0);
  memory->used = memory->total - memory->free - (get("used_has_reserved", 0) ? 0 : memory->reserved);
  return usable() ? usable() : (int)of("memory", index, SUCCESS);
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned int *count, process *rows) {
  return processes("compute", device, count, rows);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned int *count, process *rows) {
  return processes("graphics", device, count, rows);
}
#endif
