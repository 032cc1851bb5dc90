// BUG KERNEL BLOCKS X OUT; KERNEL is 0 for the sum and 1 for the histogram.
#include "driver.h"
#include "seeded_bugs.h"

int main(int argc, char** argv) {
  Arguments arguments(argc, argv);
  const Bug bug = static_cast<Bug>(arguments.number());
  const bool histogram = arguments.number() == 1;
  const int blocks = static_cast<int>(arguments.number());
  const float* x = reinterpret_cast<float*>(arguments.tensor().data);
  float* out = reinterpret_cast<float*>(arguments.array());
  return arguments.finish(seeded(bug, histogram, x, out, blocks));
}
