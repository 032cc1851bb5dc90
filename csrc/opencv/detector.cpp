// OpenCV's detector on the CPU. It calls the kernel that was compiled for the instruction set of this machine, and
// computes scores in OpenCV's own order of sums.
#include "opencv/detector.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <unordered_map>
#include <utility>

#include "common/image_view.h"
#include "common/simd/instruction_set.h"

namespace maskfeat {
namespace {

// cv::cartToPolar approximates the arc tangent of c, 0 <= c <= 1, in degrees. These are its coefficients of c, c^3, c^5
// and c^7.
constexpr float kDegrees = static_cast<float>(180 / kPi);
constexpr float kOpencvArc[] = {0.9997878412794807f * kDegrees, -0.3258083974640975f * kDegrees,
                                0.1555786518463281f * kDegrees, -0.04432655554792128f * kDegrees};

#define CPU_KERNEL "opencv/detector_kernel.h"
#include "common/simd/every_instruction_set.h"

// A pixel of a block: the place of its votes, the cells that it votes for, and its weight in each.
struct BlockPixel {
  int64_t offset;
  int64_t cells;
  int64_t histogram[4];
  float weight[4];
};

// The pixels in OpenCV's order: first those that vote for one cell, then for two, then for four, each column by column.
std::vector<BlockPixel> block_pixels(const OpencvHog& hog, int64_t width) {
  const float sigma = static_cast<float>(hog.sigma), scale = 1.0f / (sigma * sigma * 2);
  const float middle[] = {hog.block[0] * 0.5f, hog.block[1] * 0.5f};
  const int64_t across = hog.block[0] / hog.cell[0], down = hog.block[1] / hog.cell[1];
  std::vector<BlockPixel> of[3];
  for (int64_t x = 0; x < hog.block[0]; ++x)
    for (int64_t y = 0; y < hog.block[1]; ++y) {
      const float dx = x - middle[0], dy = y - middle[1];
      const float gaussian = std::exp(-(dy * dy + dx * dx) * scale);
      float share[2][2];  // shares of the cell before and the next one, along x and y
      int64_t first[2];
      const float at[] = {(x + 0.5f) / hog.cell[0] - 0.5f, (y + 0.5f) / hog.cell[1] - 0.5f};
      for (int i = 0; i < 2; ++i) {
        first[i] = static_cast<int64_t>(std::floor(at[i]));
        share[i][1] = at[i] - first[i], share[i][0] = 1.0f - share[i][1];
      }
      BlockPixel pixel{(width * y + x) * 2, 0, {}, {}};
      for (int64_t j = 0; j < 2; ++j)
        for (int64_t i = 0; i < 2; ++i) {
          const int64_t column = first[0] + i, row = first[1] + j;
          if (column < 0 || column >= across || row < 0 || row >= down) continue;
          pixel.histogram[pixel.cells] = (column * down + row) * hog.bins;
          pixel.weight[pixel.cells++] = gaussian * (share[0][i] * share[1][j]);
        }
      of[pixel.cells / 2].push_back(pixel);
    }
  of[0].insert(of[0].end(), of[1].begin(), of[1].end());
  of[0].insert(of[0].end(), of[2].begin(), of[2].end());
  return std::move(of[0]);
}

// Adds f(i), i < count, to `start` in four parts, as OpenCV's vectors do. Those left over are added one after the
// other.
template <typename Sum, typename F>
Sum sum_in_fours(int64_t count, Sum start, const F& f) {
  float part[4];
  for (int lane = 0; lane < 4; ++lane) part[lane] = f(lane);
  int64_t i = 4;
  for (; i + 4 <= count; i += 4)
    for (int lane = 0; lane < 4; ++lane) part[lane] += f(i + lane);
  const Sum left = part[0] + part[1], right = part[2] + part[3];
  start += left + right;
  for (; i < count; ++i) start += f(i);
  return start;
}

void normalise(float* v, int64_t count, float clip) {
  const auto square = [v](int64_t i) { return v[i] * v[i]; };
  float scale = 1.0f / (std::sqrt(sum_in_fours(count, 0.0f, square)) + count * 0.1f);
  for (int64_t i = 0; i < count; ++i) v[i] = std::min(v[i] * scale, clip);
  scale = 1.0f / (std::sqrt(sum_in_fours(count, 0.0f, square)) + 1e-3f);
  for (int64_t i = 0; i < count; ++i) v[i] *= scale;
}

}  // namespace

void resize_linear_exact(const ByteImage& image, const Taps& y, const Taps& x, uint8_t* out) {
  DISPATCH(resize_linear_exact, image, y, x, out);
}

void window_scores(const BlockWindows& windows, const float* weights, double offset, double* scores) {
  DISPATCH(window_scores, windows, weights, offset, scores);
}

void opencv_gradient(const ByteImage& image, const OpencvHog& hog, int64_t left, int64_t top, int64_t width,
                     int64_t begin, int64_t end, float* votes, uint8_t* bins) {
  DISPATCH(opencv_gradient, image, hog, left, top, width, begin, end, votes, bins);
}

void opencv_scores(const ByteImage& image, const OpencvHog& hog, const int64_t* padding, const float* weights,
                   double offset, const int64_t* places, int64_t count, double* scores) {
  if (count == 0) return;
  const int64_t width = image.width + 2 * padding[0];
  int64_t top = places[1], bottom = places[1];
  for (int64_t i = 0; i < count; ++i)
    top = std::min(top, places[2 * i + 1]), bottom = std::max(bottom, places[2 * i + 1]);
  top += padding[1], bottom += padding[1] + hog.window[1];
  std::vector<float> votes((bottom - top) * width * 2);
  std::vector<uint8_t> bins(votes.size());
  opencv_gradient(image, hog, padding[0], padding[1], width, top, bottom, votes.data(), bins.data());

  const std::vector<BlockPixel> pixels = block_pixels(hog, width);
  const int64_t entries = hog.block[0] / hog.cell[0] * (hog.block[1] / hog.cell[1]) * hog.bins;
  const int64_t across = (hog.window[0] - hog.block[0]) / hog.stride[0] + 1;
  const int64_t down = (hog.window[1] - hog.block[1]) / hog.stride[1] + 1;
  std::unordered_map<int64_t, int64_t> known;  // the place of a block in `blocks`
  std::vector<float> blocks;
  const auto block_at = [&](int64_t place) {
    const auto [entry, is_new] = known.try_emplace(place, static_cast<int64_t>(blocks.size()));
    if (!is_new) return entry->second;
    blocks.resize(blocks.size() + entries);
    float* const histogram = blocks.data() + entry->second;
    for (const BlockPixel& pixel : pixels) {
      const float* const vote = votes.data() + place * 2 + pixel.offset;
      const uint8_t* const bin = bins.data() + place * 2 + pixel.offset;
      for (int64_t cell = 0; cell < pixel.cells; ++cell) {
        float* const to = histogram + pixel.histogram[cell];
        to[bin[0]] += vote[0] * pixel.weight[cell], to[bin[1]] += vote[1] * pixel.weight[cell];
      }
    }
    normalise(histogram, entries, hog.clip);
    return entry->second;
  };
  for (int64_t n = 0; n < count; ++n) {
    const int64_t x = places[2 * n] + padding[0], y = places[2 * n + 1] + padding[1] - top;
    double score = offset;
    for (int64_t i = 0; i < across; ++i)
      for (int64_t j = 0; j < down; ++j) {
        const int64_t at = block_at((y + j * hog.stride[1]) * width + x + i * hog.stride[0]);
        const float* const block = blocks.data() + at;
        const float* const weight = weights + (i * down + j) * entries;
        score = sum_in_fours(entries, score, [=](int64_t k) { return weight[k] * block[k]; });
      }
    scores[n] = score;
  }
}

}  // namespace maskfeat
