// Histograms of blocks of NumPy arrays on the CPU, without torch. maskfeat_kernels/compat checks arguments with
// messages for users. The checks here keep a direct call inside its memory.
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#include <numpy/ndarraytypes.h>
#include <numpy/ufuncobject.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <vector>

#include "hog/cpu/points.h"

namespace py = pybind11;

namespace {

using maskfeat::BlockPlan;
using maskfeat::Channels;
using maskfeat::Dtype;
using maskfeat::ImageView;

void require(bool right, const char* expected) {
  if (!right) throw std::invalid_argument(expected);
}

Dtype dtype_of(const py::array& x) {
  const char kind = x.dtype().kind();
  const py::ssize_t size = x.itemsize();
  require(x.dtype().byteorder() != (PY_BIG_ENDIAN ? '<' : '>'), "x must be in native byte order");
  if (kind == 'u' && size == 1) return Dtype::uint8;
  require(kind == 'f' && (size == 2 || size == 4 || size == 8), "x must be uint8, float16, float32 or float64");
  return size == 2 ? Dtype::float16 : size == 4 ? Dtype::float32 : Dtype::float64;
}

// A view of [lead..., H, W] in place. NumPy's strides are in bytes.
ImageView view_images(const py::array& x, py::ssize_t lead) {
  ImageView view;
  view.data = x.data();
  view.dtype = dtype_of(x);
  const auto stride = [&](py::ssize_t axis) {
    require(x.strides(axis) % x.itemsize() == 0, "the strides of x must be whole elements");
    return static_cast<int64_t>(x.strides(axis) / x.itemsize());
  };
  require(reinterpret_cast<uintptr_t>(x.data()) % x.itemsize() == 0, "x must be aligned");
  require(lead <= ImageView::kMaxLead, "x has too many axes");
  view.lead = static_cast<int32_t>(lead);
  for (py::ssize_t axis = 0; axis < lead; ++axis) {
    view.lead_size[axis] = x.shape(axis);
    view.lead_stride[axis] = stride(axis);
  }
  view.height = x.shape(x.ndim() - 2), view.width = x.shape(x.ndim() - 1);
  view.row_stride = stride(x.ndim() - 2), view.column_stride = stride(x.ndim() - 1);
  return view;
}

// The channels of x [..., C, H, W] where each pixel takes one of them.
Channels view_channels(const py::array& x, bool chooses) {
  if (!chooses) return {1, 0};
  const py::ssize_t axis = x.ndim() - 3;
  require(x.shape(axis) >= 1 && x.shape(axis) <= Channels::kMost && x.strides(axis) % x.itemsize() == 0,
          "x must have 1 to 2^20 channels");
  return {x.shape(axis), x.strides(axis) / x.itemsize()};
}

// numpy.arctan2 of float64. scikit-image decides its bins by it. Where NumPy's is vectorised, its last bit sometimes
// differs from that of the C library.
PyUFuncGenericFunction numpy_arc_tangent_loop;
void* numpy_arc_tangent_data;

double numpy_arc_tangent(double sine, double cosine) {
  // The number between arguments and result is not used. Where a result touches an argument, NumPy 1 thinks that they
  // overlap, and does not vectorise.
  double numbers[] = {sine, cosine, 0, 0};
  char* arguments[] = {reinterpret_cast<char*>(numbers), reinterpret_cast<char*>(numbers + 1),
                       reinterpret_cast<char*>(numbers + 3)};
  const npy_intp count = 1, steps[] = {sizeof(double), sizeof(double), sizeof(double)};
  numpy_arc_tangent_loop(arguments, &count, steps, numpy_arc_tangent_data);
  return numbers[3];
}

void find_numpy_arc_tangent() {
  const py::module_ numpy = py::module_::import("numpy");
  const py::object arctan2 = numpy.attr("arctan2");
  require(py::isinstance(arctan2, numpy.attr("ufunc")), "numpy.arctan2 must be a ufunc");
  const auto* ufunc = reinterpret_cast<const PyUFuncObject*>(arctan2.ptr());
  for (int i = 0; i < ufunc->ntypes; ++i) {
    const char* types = ufunc->types + i * ufunc->nargs;
    if (types[0] != NPY_DOUBLE || types[1] != NPY_DOUBLE || types[2] != NPY_DOUBLE) continue;
    numpy_arc_tangent_loop = ufunc->functions[i], numpy_arc_tangent_data = ufunc->data[i];
  }
  require(numpy_arc_tangent_loop != nullptr, "numpy.arctan2 of float64 is missing");
}

py::array blocks_of_array(const py::array& x, const std::vector<int64_t>& numbers, const std::vector<double>& reals,
                          const std::array<int64_t, 5>& region, const std::vector<int64_t>& shape) {
  require(x.ndim() >= 2, "x must have the axes [..., C, H, W]");
  BlockPlan plan = maskfeat::read_block_plan(numbers.data(), numbers.size(), reals.data(), reals.size(), region.data());
  plan.arc_tangent = numpy_arc_tangent;
  const bool chooses = plan.strongest && x.ndim() > 2;  // each pixel takes one of its channels
  const ImageView image = view_images(x, x.ndim() - 2 - chooses);
  const Channels channels = view_channels(x, chooses);

  std::vector<int64_t> size(image.lead_size, image.lead_size + image.lead);
  const int64_t planes = maskfeat::product(size);
  require(maskfeat::product(shape) == plan.size(), "shape is not that of the result");
  size.insert(size.end(), shape.begin(), shape.end());
  const bool wide = image.dtype == Dtype::float64;
  py::array out(wide ? py::dtype::of<double>() : py::dtype::of<float>(), size);
  const int64_t rows = planes * plan.block_rows();
  if (out.size() == 0) return out;
  require(image.height >= 1 && image.width >= 1, "x has no pixels");
  void* data = out.mutable_data();
  const py::gil_scoped_release release;
  maskfeat::hog_blocks_cpu(image, channels, plan, data, 0, rows);
  return out;
}

py::array blocks_at_points(const py::array& x, const py::array_t<int64_t, py::array::c_style>& points,
                           const std::vector<int64_t>& numbers, const std::vector<double>& reals,
                           const std::array<int64_t, 5>& region, const std::vector<int64_t>& shape) {
  BlockPlan plan = maskfeat::read_block_plan(numbers.data(), numbers.size(), reals.data(), reals.size(), region.data());
  require(plan.strongest && (x.ndim() == 2 || x.ndim() == 3), "x must be [C, H, W] or [H, W], with one result");
  require(points.ndim() == 2 && points.shape(1) == 2, "points must be [N, 2]");
  require(plan.size() > 0 && maskfeat::product(shape) == plan.size(), "shape is not that of the result");
  plan.arc_tangent = numpy_arc_tangent;
  const ImageView image = view_images(x, 0);
  const Channels channels = view_channels(x, x.ndim() == 3);
  require(image.height >= 1 && image.width >= 1, "x has no pixels");
  const maskfeat::Corners corners{points.data(), points.shape(0), 1, true};
  maskfeat::check_corners(corners, 1);
  std::vector<int64_t> size{corners.count};
  size.insert(size.end(), shape.begin(), shape.end());
  py::array out(image.dtype == Dtype::float64 ? py::dtype::of<double>() : py::dtype::of<float>(), size);
  if (out.size() == 0) return out;
  void* data = out.mutable_data();
  const py::gil_scoped_release release;
  maskfeat::hog_points_cpu(image, channels, plan, corners, 1, data,
                           [](int64_t count, int64_t, const auto& run) { run(0, count); });
  return out;
}

}  // namespace

void add_hog(py::module_& m) {
  find_numpy_arc_tangent();
  m.def("hog_blocks", &blocks_of_array, py::arg("x"), py::arg("numbers"), py::arg("reals"), py::arg("region"),
        py::arg("shape"),
        "The blocks of x [..., C, H, W] or [H, W], uint8, float16, float32 or float64 of any strides: an array [..., "
        "(C unless\n"
        "the strongest is taken), *shape], float64 for float64, else float32. The other arguments are those of the op\n"
        "hog_blocks in ops.py. ValueError where an argument does not fit the others.");
  m.def("hog_blocks_at", &blocks_at_points, py::arg("x"), py::arg("points"), py::arg("numbers"), py::arg("reals"),
        py::arg("region"), py::arg("shape"),
        "The blocks of windows of x [C, H, W] or [H, W], of the strongest channel: an array [N, *shape]. `points`\n"
        "[N, 2] int64, each (y, x), are added to the region. All else is as for hog_blocks.");
}
