// Counters and tallies, and the functions by which a test reads them (tests/cuda_stub/counters.py).
#include <cstdio>
#include <cstdlib>
#include <map>

#include "standin.h"

namespace standin {

std::recursive_mutex mutex;

static const char* const NAMES[COUNTERS] = {
    "launches",
    "captured_nodes",
    "graph_replays",
    "replayed_nodes",
    "synchronisations",
    "host_to_device_pageable",
    "host_to_device_pinned",
    "device_to_host",
    "device_to_device",
    "fills",
    "allocations",
    "frees",
    "pinned_allocations",
    "out_of_memory",
    "refused",
};

static long counters[COUNTERS];
static std::map<std::string, long> tallies[TALLIES];

void count(Counter counter, long amount) {
  Lock lock;
  counters[counter] += amount;
}

void tally(Tally table, const std::string& name, long amount) {
  Lock lock;
  tallies[table][name] += amount;
}

void note_refusal(const std::string& what) {
  count(REFUSED);
  tally(REFUSALS, what);
  if (getenv("FAKE_CUDA_LOG") != nullptr) {
    fprintf(stderr, "stand-in for CUDA: refused %s\n", what.c_str());
  }
}

}  // namespace standin

using namespace standin;

EXPORT const char* fake_counter_name(int counter) {
  return counter < COUNTERS ? NAMES[counter] : nullptr;
}

EXPORT long fake_counter(int counter) {
  Lock lock;
  return counters[counter];
}

// "count<TAB>name" a line. The text stays valid until this thread's next call.
EXPORT const char* fake_tally(int table) {
  static thread_local std::string text;
  Lock lock;
  text.clear();
  for (const auto& [name, amount] : tallies[table]) {
    text += std::to_string(amount) + "\t" + name + "\n";
  }
  return text.c_str();
}

EXPORT void fake_reset() {
  Lock lock;
  for (long& counter : counters) {
    counter = 0;
  }
  for (auto& table : tallies) {
    table.clear();
  }
}
