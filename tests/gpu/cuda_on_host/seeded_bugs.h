// The bugs of seeded_bugs.cu.
#pragma once

// clang-format off
#define BUGS(X) \
  X(none) \
  X(global_out_of_bounds) \
  X(shared_out_of_bounds) \
  X(misaligned_vector) \
  X(uninitialised_shared) \
  X(missing_barrier) \
  X(early_exit) \
  X(divergent_barrier) \
  X(shuffle_without_fence) \
  X(absent_lanes) \
  X(unnamed_lane) \
  X(unwritten_result) \
  X(dynamic_out_of_bounds) \
  X(plain_addition) \
  X(too_many_threads)
// clang-format on

#define NAME(name) name,
enum class Bug { BUGS(NAME) };
#undef NAME

// One of the two kernels on `blocks` blocks of 64 values; returns the CUDA error of the launch.
int seeded(Bug bug, bool histogram, const float* x, float* out, int blocks);
