// Arguments of a program that calls one kernel, as cuda_program.py writes them: whole numbers, in:PATH for an array
// that is read from a file, out:PATH:BYTES for one that is written to it at the end.
//
// Arrays have exactly their size, so that a sanitizer sees the first byte beyond. Compiled by nvcc they are in the GPU's
// memory, otherwise in the host's. Results start as 0xff bytes (NaN), unless KEEP_UNINITIALISED is set.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "common/cuda_launch.h"

// A tensor in one of the arrays; strides count elements.
struct Tensor {
  char* data;
  int dtype;
  std::vector<int64_t> size, stride;
};

class Arguments {
 public:
  Arguments(int argc, char** argv) : words_(argv + 1, argv + argc) {}

  int64_t number() { return std::stoll(next()); }
  bool empty() const { return next_ == words_.size(); }

  char* array() {
    const std::string word = next();
    const size_t path = word.find(':') + 1, size = word.rfind(':') + 1;
    const bool out = word.compare(0, 4, "out:") == 0;
    std::vector<char> bytes;
    if (out) {
      bytes.resize(std::stoull(word.substr(size)), '\xff');
    } else {
      std::ifstream file(word.substr(path), std::ios::binary);
      if (!file) stop("cannot read " + word);
      bytes.assign(std::istreambuf_iterator<char>(file), {});
    }
    arrays_.push_back({allocate(bytes.size()), bytes.size(), out ? word.substr(path, size - 1 - path) : ""});
    if (!out || !std::getenv("KEEP_UNINITIALISED")) copy(arrays_.back().data, bytes.data(), bytes.size());
    return static_cast<char*>(arrays_.back().data);
  }

  // array, dtype, bytes of an element, offset, number of axes, sizes, strides
  Tensor tensor() {
    Tensor x{array(), static_cast<int>(number()), {}, {}};
    const int64_t element_bytes = number();
    x.data += number() * element_bytes;
    x.size.resize(number());
    x.stride.resize(x.size.size());
    for (int64_t& size : x.size) size = number();
    for (int64_t& stride : x.stride) stride = number();
    return x;
  }

  // Writes the results unless the launch failed, and frees all arrays; returns what main returns.
  int finish(int error) {
    if (!empty()) stop("too many arguments");
#ifdef __CUDACC__
    if (!error) error = cudaDeviceSynchronize();
#endif
    for (const Array& array : arrays_) {
      if (!array.path.empty() && !error) {
        std::vector<char> bytes(array.bytes);
        copy(bytes.data(), array.data, array.bytes);
        std::ofstream(array.path, std::ios::binary).write(bytes.data(), bytes.size());
      }
      release(array.data);
    }
    if (error) fprintf(stderr, "CUDA error %d\n", error);
    return error;
  }

 private:
  struct Array {
    void* data;
    size_t bytes;
    std::string path;  // empty for an input
  };

#ifdef __CUDACC__
  static void* allocate(size_t bytes) {
    void* data = nullptr;
    check(cudaMalloc(&data, bytes));
    return data;
  }
  static void copy(void* to, const void* from, size_t bytes) { check(cudaMemcpy(to, from, bytes, cudaMemcpyDefault)); }
  static void release(void* data) { check(cudaFree(data)); }
#else
  static void* allocate(size_t bytes) {
    void* data = nullptr;
    check(posix_memalign(&data, 256, bytes));
    return data;
  }
  static void copy(void* to, const void* from, size_t bytes) { memcpy(to, from, bytes); }
  static void release(void* data) { free(data); }
#endif

  const std::string& next() {
    if (empty()) stop("too few arguments");
    return words_[next_++];
  }
  static void check(int error) {
    if (error) stop("error " + std::to_string(error));
  }
  [[noreturn]] static void stop(const std::string& message) {
    fprintf(stderr, "%s\n", message.c_str());
    std::exit(2);
  }

  std::vector<std::string> words_;
  std::vector<Array> arrays_;
  size_t next_ = 0;
};
