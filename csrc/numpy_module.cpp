// The Python module maskfeat_kernels._numpy_ops: functions of NumPy arrays on the CPU, without torch.
#include <pybind11/pybind11.h>

void add_hog(pybind11::module_& m);     // hog/numpy.cpp
void add_opencv(pybind11::module_& m);  // opencv/numpy.cpp

PYBIND11_MODULE(_numpy_ops, m) {
  m.doc() = "HOG and OpenCV's detector for NumPy arrays on the CPU.";
  add_hog(m);
  add_opencv(m);
}
