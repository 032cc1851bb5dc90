// Resizing, gradients and scores of windows for OpenCV's detector, in loops that compilers vectorise. Each function
// runs in the thread that calls it. detector.cpp includes this file once per instruction set, after
// common/simd/vector.h. There is no include guard.

// Both directions are exact in integers, so that their order is free. Down comes first, where neighbours share weights.
void resize_linear_exact(const ByteImage& image, const Taps& y, const Taps& x, uint8_t* out) {
  const int64_t channels = image.channels, width = image.width * channels, size = x.size * channels;
  std::vector<int32_t> row(width + channels), taps(size), shares(size);
  for (int64_t u = 0; u < size; ++u) {
    taps[u] = static_cast<int32_t>(x.before[u / channels] * channels + u % channels);
    shares[u] = x.weight[u / channels];
  }
  int32_t* const __restrict blend = row.data();
  const int32_t* const __restrict before = taps.data();
  const int32_t* const __restrict share = shares.data();
  for (int64_t v = 0; v < y.size; ++v) {
    const uint8_t* const __restrict above = image.data + y.before[v] * image.row_stride;
    const uint8_t* const __restrict below = y.before[v] + 1 < image.height ? above + image.row_stride : above;
    const int32_t weight = y.weight[v];
    for (int64_t u = 0; u < width; ++u) blend[u] = above[u] * (256 - weight) + below[u] * weight;
    for (int64_t c = 0; c < channels; ++c) blend[width + c] = blend[width - channels + c];
    uint8_t* const __restrict to = out + v * size;
    for (int64_t u = 0; u < size; ++u) {
      const int32_t a = blend[before[u]], b = blend[before[u] + channels];
      to[u] = static_cast<uint8_t>((a * 256 + (b - a) * share[u] + (1 << 15)) >> 16);
    }
  }
}

// Adds to sums [COUNT] the products of weights [length] with COUNT runs of blocks, which are `apart` floats from each
// other. Each product is summed in 8 parts, which are then added one after the other. The order is the same at every
// vector width.
template <int COUNT>
inline void add_products(const float* weights, const float* blocks, int64_t apart, int64_t length, double* sums) {
  constexpr int64_t kSums = 8, kLanes = std::min<int64_t>(kSums, kVectorBytes / sizeof(float));
  constexpr int64_t kVectors = kSums / kLanes;
  using V = Vector<float, kLanes>;
  V parts[COUNT][kVectors]{};
  int64_t k = 0;
  for (; k + kSums <= length; k += kSums)
#pragma GCC unroll 2
    for (int64_t part = 0; part < kVectors; ++part) {
      const V weight = load_vector<V>(weights + k + part * kLanes);
#pragma GCC unroll 6
      for (int i = 0; i < COUNT; ++i) parts[i][part] += weight * load_vector<V>(blocks + i * apart + k + part * kLanes);
    }
  for (int i = 0; i < COUNT; ++i) {
    float sum = 0;
    for (int64_t lane = 0; lane < kSums; ++lane) sum += parts[i][lane / kLanes][lane % kLanes];
    for (int64_t rest = k; rest < length; ++rest) sum += weights[rest] * blocks[i * apart + rest];
    sums[i] += sum;
  }
}

void window_scores(const BlockWindows& w, const float* weights, double offset, double* scores) {
  constexpr int64_t kAtOnce = 6;
  // The blocks down a window are one run where they are neighbours in memory.
  const bool is_run = w.block_y == 1;
  const int64_t runs = is_run ? 1 : w.down, length = is_run ? w.down * w.entries : w.entries;
  std::vector<double> sums(w.windows_y + kAtOnce);
  for (int64_t x = 0; x < w.windows_x; ++x) {
    std::fill(sums.begin(), sums.end(), offset);
    for (int64_t i = 0; i < w.across; ++i)
      for (int64_t j = 0; j < runs; ++j) {
        const float* const weight = weights + (i * runs + j) * length;
        const float* const from = w.blocks + ((x * w.step_x + i * w.block_x) * w.rows + j * w.block_y) * w.entries;
        const int64_t apart = w.step_y * w.entries;
        int64_t y = 0;
        for (; y + kAtOnce <= w.windows_y; y += kAtOnce)
          add_products<kAtOnce>(weight, from + y * apart, apart, length, sums.data() + y);
        for (; y < w.windows_y; ++y) add_products<1>(weight, from + y * apart, apart, length, sums.data() + y);
      }
    for (int64_t y = 0; y < w.windows_y; ++y) scores[y * w.windows_x + x] = sums[y];
  }
}

// The gradient of the channel where it is longest. A table turns bytes into floats. OpenCV computes four columns at
// once and takes the first of equal channels. In the columns that are left over it takes the last.
inline void strongest_gradient(const ByteImage& image, const float* table, const int64_t* columns, int64_t width,
                               const int64_t* rows, float* __restrict dx, float* __restrict dy) {
  for (int64_t channel = 0; channel < image.channels; ++channel) {
    const uint8_t* const plane = image.data + channel * image.channel_stride;
    const uint8_t* const above = plane + rows[0] * image.row_stride;
    const uint8_t* const here = plane + rows[1] * image.row_stride;
    const uint8_t* const below = plane + rows[2] * image.row_stride;
    for (int64_t u = 0; u < width; ++u) {
      const int64_t column = columns[u];
      const float gx = table[here[columns[u + 1]]] - table[here[columns[u - 1]]];
      const float gy = table[below[column]] - table[above[column]];
      const float before = dx[u] * dx[u] + dy[u] * dy[u], length = gx * gx + gy * gy;
      const bool is_stronger = channel == 0 || (u < width / 4 * 4 ? length > before : length >= before);
      if (is_stronger) dx[u] = gx, dy[u] = gy;
    }
  }
}

void opencv_gradient(const ByteImage& image, const OpencvHog& hog, int64_t left, int64_t top, int64_t width,
                     int64_t begin, int64_t end, float* votes, uint8_t* bins) {
  float table[256];
  for (int i = 0; i < 256; ++i) table[i] = hog.sqrt ? std::sqrt(static_cast<float>(i)) : static_cast<float>(i);
  const double angles = hog.is_signed ? 2 * kPi : kPi;
  const float scale = static_cast<float>(static_cast<double>(hog.bins) / angles);
  const float radians = static_cast<float>(kPi / 180);
  std::vector<int64_t> columns(width + 2);
  for (int64_t u = 0; u < width + 2; ++u) columns[u] = mirror(u - 1 - left, image.width) * image.column_stride;
  std::vector<float> buffer(4 * width);
  float* const dx = buffer.data();
  float* const dy = dx + width;
  for (int64_t v = begin; v < end; ++v) {
    int64_t rows[3];
    for (int64_t i = 0; i < 3; ++i) rows[i] = mirror(v - 1 + i - top, image.height);
    strongest_gradient(image, table, columns.data() + 1, width, rows, dx, dy);
    float* const __restrict length = dy + width;
    float* const __restrict angle = length + width;
    for (int64_t u = 0; u < width; ++u) {  // as cv::cartToPolar, whose vectors fuse products and sums
      const float x = dx[u], y = dy[u], ax = std::abs(x), ay = std::abs(y);
      length[u] = std::sqrt(std::fma(x, x, y * y));
      const float c = std::min(ax, ay) / (std::max(ax, ay) + 2.220446e-16f), cc = c * c;
      float a =
          std::fma(std::fma(std::fma(cc, kOpencvArc[3], kOpencvArc[2]), cc, kOpencvArc[1]), cc, kOpencvArc[0]) * c;
      a = ax >= ay ? a : 90.0f - a;
      a = x < 0 ? 180.0f - a : a;
      a = y < 0 ? 360.0f - a : a;
      angle[u] = a * radians * scale - 0.5f;
    }
    float* const vote = votes + (v - begin) * width * 2;
    uint8_t* const bin = bins + (v - begin) * width * 2;
    const int32_t count = static_cast<int32_t>(hog.bins);
    for (int64_t u = 0; u < width; ++u) {
      const int32_t below = static_cast<int32_t>(angle[u]) - (angle[u] < 0);
      const float share = angle[u] - static_cast<float>(below);
      vote[2 * u] = length[u] * (1.0f - share), vote[2 * u + 1] = length[u] * share;
      const int32_t first = below < 0 ? below + count : below >= count ? below - count : below;
      bin[2 * u] = static_cast<uint8_t>(first);
      bin[2 * u + 1] = static_cast<uint8_t>(first + 1 < count ? first + 1 : 0);
    }
  }
}
