// What OpenCV's detector does beside histograms of blocks, on the CPU: resizing, gradients as they are stored, scores of
// windows, and the modes of hits. Knows neither Python nor torch.
#pragma once

#include <cstdint>
#include <vector>

namespace maskfeat {

// Bytes [channels, height, width] with any strides.
struct ByteImage {
  const uint8_t* data;
  int64_t channels, height, width;
  int64_t channel_stride, row_stride, column_stride;
};

// Where a resized axis comes from: the pixel before each place, and 256 times the weight of the next one.
struct Taps {
  int64_t size;
  const int32_t* before;  // [size]
  const int32_t* weight;  // [size]
};

// INTER_LINEAR_EXACT into out [y.size, x.size, channels]; the bytes of a row of the image must lie in the same order.
void resize_linear_exact(const ByteImage& image, const Taps& y, const Taps& x, uint8_t* out);

// Blocks [columns, rows, entries], each once, and the windows that share them: window (x, y) holds the blocks (x * step_x +
// i * block_x, y * step_y + j * block_y), i < across, j < down.
struct BlockWindows {
  const float* blocks;
  int64_t columns, rows, entries;
  int64_t windows_x, windows_y, step_x, step_y;
  int64_t across, down, block_x, block_y;
};

// The scores [windows_y, windows_x] of a linear classifier with weights [across, down, entries].
void window_scores(const BlockWindows& windows, const float* weights, double offset, double* scores);

// The parameters of a cv::HOGDescriptor; sizes are (width, height).
struct OpencvHog {
  int64_t window[2], block[2], stride[2], cell[2];
  int64_t bins;
  double sigma;
  float clip;
  bool sqrt, is_signed;
};

// cv::HOGDescriptor::computeGradient, for the rows [begin, end) of the image with `left` columns and `top` rows of padding:
// votes [end - begin, width, 2] for the two bins [end - begin, width, 2] nearest to each pixel's orientation.
void opencv_gradient(const ByteImage& image, const OpencvHog& hog, int64_t left, int64_t top, int64_t width,
                     int64_t begin, int64_t end, float* votes, uint8_t* bins);

// The scores [count] of windows at places [count, 2] (x, y) in the image, bit for bit those of cv::HOGDescriptor::detect
// where OpenCV uses AVX2. Windows must lie in the image and its padding (x, y) on all sides.
void opencv_scores(const ByteImage& image, const OpencvHog& hog, const int64_t* padding, const float* weights,
                   double offset, const int64_t* places, int64_t count, double* scores);

// The classes [count], by their first members, of rectangles [count, 4] (x, y, width, height) that are connected by similarity:
// no side is off by more than eps times the mean of the smaller width and the smaller height.
void similar_classes(const int64_t* rectangles, int64_t count, double eps, int64_t* classes);

struct Hit {
  double x, y, log_scale;
};

// cv::groupRectangles_meanshift: where the hits [begin, end) climb to, into modes [end - begin].
void climb_to_modes(const Hit* hits, const double* weights, int64_t count, int64_t begin, int64_t end, Hit* modes);

// Those of `modes` that differ, in their order, and the density of each.
void distinct_modes(const Hit* hits, const double* weights, int64_t count, const Hit* climbed, std::vector<Hit>& modes,
                    std::vector<double>& densities);

}  // namespace maskfeat
