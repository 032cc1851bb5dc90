// What OpenCV's detector adds to the Python module maskfeat_kernels._numpy_ops. maskfeat_kernels/compat checks
// arguments with messages for users. The checks here keep a direct call inside its memory.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "opencv/detector.h"

namespace py = pybind11;

namespace {

using maskfeat::ByteImage;
using maskfeat::Hit;
using maskfeat::OpencvHog;
using maskfeat::Taps;
// Functions that release the GIL return this type. A conversion to py::array would count a reference.
template <typename T>
using Array = py::array_t<T, py::array::c_style>;
using Pair = std::array<int64_t, 2>;

constexpr int64_t kMost = int64_t{1} << 31;  // pixels along an axis

void require(bool right, const char* expected) {
  if (!right) throw std::invalid_argument(expected);
}

// A view of [C, H, W] in place.
ByteImage view_image(const py::array_t<uint8_t>& x) {
  require(x.ndim() == 3 && x.shape(0) >= 1 && x.shape(1) >= 1 && x.shape(2) >= 1, "x must be [C, H, W]");
  require(x.shape(0) < 1 << 20 && x.shape(1) < kMost && x.shape(2) < kMost, "x has too many pixels");
  return {x.data(), x.shape(0), x.shape(1), x.shape(2), x.strides(0), x.strides(1), x.strides(2)};
}

Taps view_taps(const Array<int32_t>& before, const Array<int32_t>& weight, int64_t size) {
  require(before.ndim() == 1 && weight.ndim() == 1 && before.size() == weight.size(),
          "taps must be two lists of a length");
  for (int64_t i = 0; i < before.size(); ++i) {
    require(before.at(i) >= 0 && before.at(i) < size, "a tap is outside x");
    require(weight.at(i) >= 0 && weight.at(i) <= 256, "a weight is not one of 0 to 256");
  }
  return {before.size(), before.data(), weight.data()};
}

Array<uint8_t> resize_linear_exact(const py::array_t<uint8_t>& x, const Array<int32_t>& y_before,
                                   const Array<int32_t>& y_weight, const Array<int32_t>& x_before,
                                   const Array<int32_t>& x_weight) {
  const ByteImage image = view_image(x);
  require((image.channels == 1 || image.channel_stride == 1) &&
              (image.width == 1 || image.column_stride == image.channels) && image.width * image.channels < kMost / 2,
          "the colours of a pixel and the pixels of a row of x must be side by side");
  const Taps down = view_taps(y_before, y_weight, image.height), across = view_taps(x_before, x_weight, image.width);
  require(across.size * image.channels < kMost, "the result has too many pixels");
  Array<uint8_t> out({down.size, across.size, image.channels});
  uint8_t* const data = out.mutable_data();
  const py::gil_scoped_release release;
  maskfeat::resize_linear_exact(image, down, across, data);
  return out;
}

Array<double> window_scores(const Array<float>& blocks, const Array<float>& weights, double offset, const Pair& windows,
                            const Pair& step, const Pair& block_step) {
  require(blocks.ndim() == 3 && weights.ndim() == 3 && blocks.shape(2) == weights.shape(2),
          "blocks must be [columns, rows, entries] and weights [across, down, entries]");
  for (int i = 0; i < 2; ++i) {
    require(windows[i] >= 1 && step[i] >= 1 && block_step[i] >= 1 && weights.shape(i) >= 1 && windows[i] < kMost &&
                step[i] < kMost && block_step[i] < kMost && weights.shape(i) < kMost,
            "windows, steps and blocks of a window must be positive");
    require((windows[i] - 1) * step[i] + (weights.shape(i) - 1) * block_step[i] < blocks.shape(i),
            "a window is outside the blocks");
  }
  const maskfeat::BlockWindows view{blocks.data(),    blocks.shape(0),  blocks.shape(1), blocks.shape(2),
                                    windows[0],       windows[1],       step[0],         step[1],
                                    weights.shape(0), weights.shape(1), block_step[0],   block_step[1]};
  Array<double> out({windows[1], windows[0]});
  const float* const weight = weights.data();
  double* const data = out.mutable_data();
  const py::gil_scoped_release release;
  maskfeat::window_scores(view, weight, offset, data);
  return out;
}

// `sizes` are those of window, block, stride and cell, each (width, height).
OpencvHog read_hog(const std::array<Pair, 4>& sizes, int64_t bins, double sigma, float clip, bool sqrt,
                   bool is_signed) {
  OpencvHog hog{};
  hog.bins = bins, hog.sigma = sigma, hog.clip = clip, hog.sqrt = sqrt, hog.is_signed = is_signed;
  for (int i = 0; i < 2; ++i) {
    hog.window[i] = sizes[0][i], hog.block[i] = sizes[1][i], hog.stride[i] = sizes[2][i], hog.cell[i] = sizes[3][i];
    require(hog.cell[i] >= 1 && hog.stride[i] >= 1 && hog.block[i] >= hog.cell[i] && hog.window[i] >= hog.block[i] &&
                hog.window[i] < kMost && hog.stride[i] < kMost,
            "a cell must fit into a block, and a block into a window");
  }
  require(bins >= 1 && bins <= 255, "bins must be 1 to 255");
  return hog;
}

std::tuple<py::array, py::array> opencv_gradient(const py::array_t<uint8_t>& x, int64_t bins, bool sqrt, bool is_signed,
                                                 const Pair& before, const Pair& after) {
  const ByteImage image = view_image(x);
  require(bins >= 1 && bins <= 255, "bins must be 1 to 255");
  for (const int64_t pad : {before[0], before[1], after[0], after[1]})
    require(pad >= 0 && pad < kMost, "padding must not be negative");
  OpencvHog hog{};
  hog.bins = bins, hog.sqrt = sqrt, hog.is_signed = is_signed;
  const int64_t width = image.width + before[0] + after[0], height = image.height + before[1] + after[1];
  Array<float> votes({height, width, int64_t{2}});
  Array<uint8_t> nearest({height, width, int64_t{2}});
  float* const vote = votes.mutable_data();
  uint8_t* const bin = nearest.mutable_data();
  {
    const py::gil_scoped_release release;
    maskfeat::opencv_gradient(image, hog, before[0], before[1], width, 0, height, vote, bin);
  }
  return {votes, nearest};
}

Array<double> opencv_scores(const py::array_t<uint8_t>& x, const std::array<Pair, 4>& sizes, int64_t bins, double sigma,
                            float clip, bool sqrt, bool is_signed, const Pair& padding, const Array<float>& weights,
                            double offset, const Array<int64_t>& places) {
  const ByteImage image = view_image(x);
  const OpencvHog hog = read_hog(sizes, bins, sigma, clip, sqrt, is_signed);
  const int64_t entries = hog.block[0] / hog.cell[0] * (hog.block[1] / hog.cell[1]) * bins;
  const int64_t blocks =
      ((hog.window[0] - hog.block[0]) / hog.stride[0] + 1) * ((hog.window[1] - hog.block[1]) / hog.stride[1] + 1);
  require(entries >= 4 && weights.ndim() == 1 && weights.size() == blocks * entries,
          "weights must be those of a window, with 4 entries a block or more");
  require(places.ndim() == 2 && places.shape(1) == 2, "places must be [N, 2]");
  require(padding[0] >= 0 && padding[1] >= 0 && padding[0] < kMost && padding[1] < kMost,
          "padding must not be negative");
  for (int64_t i = 0; i < places.shape(0); ++i)
    require(places.at(i, 0) >= -padding[0] && places.at(i, 0) <= image.width + padding[0] - hog.window[0] &&
                places.at(i, 1) >= -padding[1] && places.at(i, 1) <= image.height + padding[1] - hog.window[1],
            "a window is outside x and its padding");
  Array<double> out(places.shape(0));
  const float* const weight = weights.data();
  const int64_t* const place = places.data();
  const int64_t count = places.shape(0);
  double* const data = out.mutable_data();
  const py::gil_scoped_release release;
  maskfeat::opencv_scores(image, hog, padding.data(), weight, offset, place, count, data);
  return out;
}

Array<int64_t> similar_classes(const Array<int64_t>& rectangles, double eps) {
  require(rectangles.ndim() == 2 && rectangles.shape(1) == 4, "rectangles must be [N, 4]");
  Array<int64_t> out(rectangles.shape(0));
  const int64_t* const from = rectangles.data();
  int64_t* const to = out.mutable_data();
  const int64_t count = out.size();
  const py::gil_scoped_release release;
  maskfeat::similar_classes(from, count, eps, to);
  return out;
}

// Hits are [N, 3]: x, y and the logarithm of the scale.
void require_hits(const Array<double>& hits, const Array<double>& weights) {
  require(hits.ndim() == 2 && hits.shape(1) == 3 && weights.ndim() == 1 && weights.size() == hits.shape(0),
          "hits must be [N, 3] and weights [N]");
}

Array<double> climb_to_modes(const Array<double>& hits, const Array<double>& weights, int64_t begin, int64_t end) {
  require_hits(hits, weights);
  require(begin >= 0 && begin <= end && end <= hits.shape(0), "begin and end must be in order, and of hits");
  Array<double> out({end - begin, int64_t{3}});
  const Hit* const from = reinterpret_cast<const Hit*>(hits.data());
  Hit* const to = reinterpret_cast<Hit*>(out.mutable_data());
  const double* const weight = weights.data();
  const int64_t count = weights.size();
  const py::gil_scoped_release release;
  maskfeat::climb_to_modes(from, weight, count, begin, end, to);
  return out;
}

std::tuple<py::array, py::array> distinct_modes(const Array<double>& hits, const Array<double>& weights,
                                                const Array<double>& climbed) {
  require_hits(hits, weights);
  require_hits(climbed, weights);
  std::vector<Hit> modes;
  std::vector<double> densities;
  const Hit* const from = reinterpret_cast<const Hit*>(hits.data());
  const Hit* const to = reinterpret_cast<const Hit*>(climbed.data());
  {
    const double* const weight = weights.data();
    const int64_t count = weights.size();
    const py::gil_scoped_release release;
    maskfeat::distinct_modes(from, weight, count, to, modes, densities);
  }
  Array<double> out({static_cast<int64_t>(modes.size()), int64_t{3}});
  std::copy(modes.begin(), modes.end(), reinterpret_cast<Hit*>(out.mutable_data()));
  return {out, Array<double>(densities.size(), densities.data())};
}

}  // namespace

void add_opencv(py::module_& m) {
  m.def("resize_linear_exact", &resize_linear_exact,
        "Bytes x [C, H, W], which lie as [H, W, C], as INTER_LINEAR_EXACT resizes them, by the taps of both axes: [h, "
        "w, C].");
  m.def("window_scores", &window_scores,
        "The scores [windows down, windows across] of a linear classifier with weights [across, down, entries] on "
        "windows\n"
        "of blocks [columns, rows, entries]; pairs are (x, y), counted in blocks.");
  m.def("opencv_gradient", &opencv_gradient, "cv2.HOGDescriptor.computeGradient of bytes x [C, H, W].");
  m.def(
      "opencv_scores", &opencv_scores,
      "The scores [N] that cv2.HOGDescriptor.detect gives windows at places [N, 2] of bytes x [C, H, W], bit for bit\n"
      "where OpenCV uses AVX2.");
  m.def("similar_classes", &similar_classes, "The classes [N] of rectangles [N, 4] that are connected by similarity.");
  m.def("climb_to_modes", &climb_to_modes, "Where the hits [begin, end) of hits [N, 3] climb to by mean shift.");
  m.def("distinct_modes", &distinct_modes, "The modes [M, 3] among what all hits climbed to, and their densities [M].");
}
