// AMX: eight tiles of up to 16 rows of 16 words of 32 bits, and what can be done with them.
//
// In assembly, so that no flag has to let the compiler use AMX in the whole file.

#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace {

// Asks the system for the tiles, for this process; says whether it grants them.
inline bool request_tiles() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // linux/arch/x86/include/uapi/asm/prctl.h
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// Takes 64 bytes: the palette, 1, at 0; bytes of a row as 16 bits each from 16 on; rows from 48 on.
inline void configure_tiles(const void* shape) {
  asm volatile("ldtilecfg (%0)" ::"r"(shape) : "memory");
}

inline void release_tiles() { asm volatile("tilerelease" ::); }

template <int tile>
inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(tile));
}

template <int tile>
inline void load_tile(const uint32_t* from, int64_t stride) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(tile), "r"(from), "r"(stride * 4) : "memory");
}

template <int tile>
inline void store_tile(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(tile), "r"(to), "r"(stride * 4) : "memory");
}

template <int sum, int x, int w>
inline void add_bf16_tile() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(x), "i"(w));
}

template <int sum, int x, int w>
inline void add_int8_tile() {
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(x), "i"(w));
}

template <int sum, int x, int w>
inline void add_signed_tile() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(x), "i"(w));
}

}  // namespace
