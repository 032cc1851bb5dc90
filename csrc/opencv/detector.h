// What OpenCV's detector does besides histograms of blocks, on the CPU: it resizes images, stores gradients, scores
// windows and groups hits. This knows neither Python nor torch.
#pragma once

#include <cstdint>
#include <vector>

namespace maskfeat {

// Bytes [channels, height, width] in place. Strides may have any value.
struct ByteImage {
  const uint8_t* data;
  int64_t channels, height, width;
  int64_t channel_stride, row_stride, column_stride;
};

// How an axis is resized: for each new pixel, the old pixel before it, and 256 times the weight of the next old pixel.
struct Taps {
  int64_t size;
  const int32_t* before;  // [size]
  const int32_t* weight;  // [size]
};

// Resizes by INTER_LINEAR_EXACT into out [y.size, x.size, channels]. The channels of a pixel must be neighbours in
// memory.
void resize_linear_exact(const ByteImage& image, const Taps& y, const Taps& x, uint8_t* out);

// Blocks [columns, rows, entries], and the windows that share them. Window (x, y) consists of the blocks in columns
// x * step_x + i * block_x and rows y * step_y + j * block_y, for i < across and j < down.
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

// cv::HOGDescriptor::computeGradient, for the rows [begin, end) of the padded image. The padding is `left` columns and
// `top` rows. Writes the two bins nearest to each pixel's orientation, and the votes for them, both [end - begin,
// width, 2].
void opencv_gradient(const ByteImage& image, const OpencvHog& hog, int64_t left, int64_t top, int64_t width,
                     int64_t begin, int64_t end, float* votes, uint8_t* bins);

// The scores [count] of windows at places [count, 2], each (x, y). They have the bits of cv::HOGDescriptor::detect
// where OpenCV uses AVX2. Windows must lie in the image and its padding (x, y), which is on all sides.
void opencv_scores(const ByteImage& image, const OpencvHog& hog, const int64_t* padding, const float* weights,
                   double offset, const int64_t* places, int64_t count, double* scores);

// Numbers the classes of similar rectangles [count, 4], each (x, y, width, height). Two are similar where no side
// differs by more than eps times the mean of the smaller width and the smaller height. A class consists of rectangles
// that are connected by similar pairs. Classes [count] are numbered by their first members.
void similar_classes(const int64_t* rectangles, int64_t count, double eps, int64_t* classes);

struct Hit {
  double x, y, log_scale;
};

// The climb of cv::groupRectangles_meanshift: modes [end - begin] are the places where the hits [begin, end) end.
void climb_to_modes(const Hit* hits, const double* weights, int64_t count, int64_t begin, int64_t end, Hit* modes);

// Collects the places in `climbed` that differ, in their order, and the density of each.
void distinct_modes(const Hit* hits, const double* weights, int64_t count, const Hit* climbed, std::vector<Hit>& modes,
                    std::vector<double>& densities);

}  // namespace maskfeat
