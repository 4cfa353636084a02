// What several processes hold on the cards they share.
//
// FAKE_CUDA_LEDGER names a file. It begins with the most bytes that were ever held on each device,
// by all together; then it has one slot a process: the bytes that this one holds on each. A process
// keeps a lock on its slot for as long as it lives, so that the memory of one that is killed comes
// back at once, as it does on a card. Without the variable each process has the cards to itself.
#include "standin.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace standin {

struct Slot {
  size_t bytes[MAX_DEVICES];
};

constexpr int SLOTS = 256;

struct Ledger {
  size_t peak[MAX_DEVICES];  // stub.memory_peaks reads it
  Slot slots[SLOTS];
};

constexpr off_t WHOLE = SLOTS;  // the byte whose lock guards the whole file; the others guard slots

static int file = -1;
static Ledger* ledger = nullptr;
static int own_slot = -1;

// Lock or unlock one byte. The system drops a process's locks when it ends.
static bool set_lock(off_t byte, short type, bool wait) {
  struct flock lock = {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  return fcntl(file, wait ? F_SETLKW : F_SETLK, &lock) == 0;
}

static bool locked_by_another(off_t byte) {
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  return fcntl(file, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

static void open_ledger() {
  static bool tried = false;
  if (tried) {
    return;
  }
  tried = true;
  const char* path = getenv("FAKE_CUDA_LEDGER");
  if (path == nullptr) {
    return;
  }
  file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0 || ftruncate(file, sizeof(Ledger)) != 0) {
    abort();
  }
  void* memory = mmap(nullptr, sizeof(Ledger), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (memory == MAP_FAILED) {
    abort();
  }
  ledger = static_cast<Ledger*>(memory);
  for (int slot = 0; slot < SLOTS && own_slot < 0; slot++) {
    if (set_lock(slot, F_WRLCK, false)) {
      memset(&ledger->slots[slot], 0, sizeof(Slot));
      own_slot = slot;
    }
  }
}

LedgerLock::LedgerLock() {
  open_ledger();
  if (ledger != nullptr) {
    set_lock(WHOLE, F_WRLCK, true);
  }
}

LedgerLock::~LedgerLock() {
  if (ledger != nullptr) {
    set_lock(WHOLE, F_UNLCK, false);
  }
}

size_t held_by_others(int device) {
  size_t bytes = 0;
  for (int slot = 0; ledger != nullptr && slot < SLOTS; slot++) {
    const size_t held = ledger->slots[slot].bytes[physical_device(device)];
    if (slot != own_slot && held > 0 && locked_by_another(slot)) {
      bytes += held;
    }
  }
  return bytes;
}

void publish(int device, size_t bytes) {
  if (own_slot < 0) {
    return;
  }
  const int physical = physical_device(device);
  ledger->slots[own_slot].bytes[physical] = bytes;
  ledger->peak[physical] = std::max(ledger->peak[physical], held_by_others(device) + bytes);
}

}  // namespace standin
