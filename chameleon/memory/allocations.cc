// Counts what a process allocates, for `chameleon.memory.measured_peak`: loaded before the C library (LD_PRELOAD), Linux with glibc.
//
// Two counts, both of what is allocated after `chameleon_watch(1)` and not yet freed:
//   tensors: blocks asked for with an alignment, in the bytes asked for. TVM's CPU device takes all its memory so (posix_memalign):
//            tensors, storages and the kernels' workspaces.
//   heap:    all blocks, in the bytes that the C library gives for them.
#include <errno.h>
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>

#include <atomic>

extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void __libc_free(void*);
}

namespace {
constexpr size_t kSlots = 1 << 16;  // aligned blocks alive at once, at most
void* g_blocks[kSlots];
size_t g_sizes[kSlots];
long long g_tensors, g_tensors_peak, g_heap, g_heap_peak, g_lost;
std::atomic<bool> g_watching{false};
std::atomic_flag g_lock = ATOMIC_FLAG_INIT;
void* const kFreed = reinterpret_cast<void*>(1);

struct Locked {
  Locked() {
    while (g_lock.test_and_set(std::memory_order_acquire)) {
    }
  }
  ~Locked() { g_lock.clear(std::memory_order_release); }
};

size_t Slot(void* p) { return (reinterpret_cast<uintptr_t>(p) >> 4) * 11400714819323198485ull >> 48; }

void Took(void* p, size_t tensor_bytes) {
  if (p == nullptr || !g_watching.load(std::memory_order_relaxed)) return;
  Locked locked;
  g_heap += malloc_usable_size(p);
  if (g_heap > g_heap_peak) g_heap_peak = g_heap;
  if (tensor_bytes == 0) return;
  size_t i = Slot(p), tried = 0;
  while (g_blocks[i] != nullptr && g_blocks[i] != kFreed) {
    i = (i + 1) % kSlots;
    if (++tried == kSlots) {
      ++g_lost;
      return;
    }
  }
  g_blocks[i] = p;
  g_sizes[i] = tensor_bytes;
  g_tensors += tensor_bytes;
  if (g_tensors > g_tensors_peak) g_tensors_peak = g_tensors;
}

void Gave(void* p) {
  if (p == nullptr || !g_watching.load(std::memory_order_relaxed)) return;
  Locked locked;
  g_heap -= malloc_usable_size(p);
  size_t i = Slot(p);
  for (size_t tried = 0; g_blocks[i] != nullptr && tried < kSlots; ++tried, i = (i + 1) % kSlots) {
    if (g_blocks[i] == p) {
      g_blocks[i] = kFreed;
      g_tensors -= g_sizes[i];
      return;
    }
  }
}
}  // namespace

extern "C" {
void* malloc(size_t size) {
  void* p = __libc_malloc(size);
  Took(p, 0);
  return p;
}

void* calloc(size_t n, size_t size) {
  void* p = __libc_calloc(n, size);
  Took(p, 0);
  return p;
}

void* realloc(void* old, size_t size) {
  Gave(old);
  void* p = __libc_realloc(old, size);
  Took(p == nullptr && size != 0 ? old : p, 0);
  return p;
}

void* memalign(size_t alignment, size_t size) {
  void* p = __libc_memalign(alignment, size);
  Took(p, size);
  return p;
}

void* aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }

int posix_memalign(void** out, size_t alignment, size_t size) {
  if (alignment % sizeof(void*) != 0 || (alignment & (alignment - 1)) != 0 || alignment == 0) return EINVAL;
  void* p = memalign(alignment, size);
  if (p == nullptr) return ENOMEM;
  *out = p;
  return 0;
}

void free(void* p) {
  Gave(p);
  __libc_free(p);
}

// Begin to count (1) or stop (0).
void chameleon_watch(int on) { g_watching.store(on != 0); }
long long chameleon_tensors_peak() { return g_tensors_peak; }
long long chameleon_heap_peak() { return g_heap_peak; }
long long chameleon_lost() { return g_lost; }
}
