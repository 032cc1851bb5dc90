// Moves and sums of token rows on the CPU. A thread does a range of rows. Memory decides the time, so that a thread
// moves whole rows and every byte once.
//
// cpu.cpp includes this file once per instruction set, in a namespace that defines kVectorBytes. There is no include
// guard.

// Calls run(T()) with the type of the elements.
template <typename Run>
void with_type(Dtype dtype, const Run& run) {
  switch (dtype) {
    case Dtype::float16: return run(Float16());
    case Dtype::bfloat16: return run(BFloat16());
    case Dtype::float32: return run(float());
    case Dtype::float64: return run(double());
    case Dtype::uint8: return;  // tokens are floats
  }
}

template <typename T>
const T* row_of(const TokenView& view, int64_t b, int64_t n) {
  return static_cast<const T*>(view.data) + b * view.batch_stride + n * view.row_stride;
}

// A result of this size leaves the cache before its last row is written. Its memory was not in the cache before,
// either. Stores that bypass the cache then save a third of the traffic. They do not read lines only to overwrite them.
constexpr int64_t kStreamedBytes = 8 << 20;

// A row is prefetched so many rows before it is copied, as no processor foresees which rows come next.
constexpr int64_t kAheadBytes = 6 << 10;

// A store that bypasses the cache, to an aligned address. finish_streams() makes such stores visible to other threads.
// Without SSE2 the stores are plain.
template <typename V>
inline void stream_vector(V v, void* to) {
#ifdef __SSE2__
  if constexpr (sizeof(V) == 64) return _mm512_stream_si512(static_cast<__m512i*>(to), (__m512i)v);
  if constexpr (sizeof(V) == 32) return _mm256_stream_si256(static_cast<__m256i*>(to), (__m256i)v);
  if constexpr (sizeof(V) == 16) return _mm_stream_si128(static_cast<__m128i*>(to), (__m128i)v);
#endif
  store_vector(v, to);
}
inline void finish_streams() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

// memcpy() by cache lines, which prefetches the lines of a later row. With STREAM, stores bypass the cache, and what is
// read need not stay in the cache either.
template <bool STREAM>
void copy_lines(const char* __restrict from, int64_t bytes, char* __restrict to, const char* later) {
  constexpr int64_t kParts = kCacheLine / kVectorBytes;
  using Part = Vector<char, kVectorBytes>;
  if constexpr (STREAM) {  // whole lines
    const int64_t head = std::min<int64_t>(-reinterpret_cast<uintptr_t>(to) % kCacheLine, bytes);
    memcpy(to, from, head);
    from += head, to += head, later += head, bytes -= head;
  }
  const int64_t end = bytes / kCacheLine * kCacheLine;
  for (int64_t i = 0; i < end; i += kCacheLine) {
    __builtin_prefetch(later + i, 0, STREAM ? 0 : 3);
    Part part[kParts];
    for (int64_t k = 0; k < kParts; ++k) part[k] = load_vector<Part>(from + i + k * kVectorBytes);
    for (int64_t k = 0; k < kParts; ++k) {
      char* const target = to + i + k * kVectorBytes;
      STREAM ? stream_vector(part[k], target) : store_vector(part[k], target);
    }
  }
  memcpy(to + end, from + end, bytes - end);
}

// Writes rows of a result [rows, width]. Other threads see them after its destructor.
template <typename T>
struct RowWriter {
  RowWriter(int64_t rows, int64_t width)
      : width(width),
        ahead(std::max<int64_t>(1, kAheadBytes / std::max<int64_t>(1, width * sizeof(T)))),
        streamed(rows * width * int64_t(sizeof(T)) >= kStreamedBytes) {}
  RowWriter(const RowWriter&) = delete;
  RowWriter& operator=(const RowWriter&) = delete;
  ~RowWriter() { finish_streams(); }

  // `later` is the row that is `ahead` rows further on.
  void copy(const T* __restrict from, int64_t stride, T* __restrict to, const T* later) const {
    if (stride != 1) {
      for (int64_t d = 0; d < width; ++d) to[d] = from[d * stride];
      return;
    }
    const char *const source = reinterpret_cast<const char*>(from), *const lines = reinterpret_cast<const char*>(later);
    char* const target = reinterpret_cast<char*>(to);
    const int64_t bytes = width * sizeof(T);
    streamed ? copy_lines<true>(source, bytes, target, lines) : copy_lines<false>(source, bytes, target, lines);
  }

  const int64_t width, ahead;
  const bool streamed;
};

template <typename T>
void add_row(const T* __restrict from, int64_t stride, int64_t width, Wide<T>* __restrict sum) {
  if (stride == 1) {
    for (int64_t d = 0; d < width; ++d) sum[d] += widen(from[d]);
  } else {
    for (int64_t d = 0; d < width; ++d) sum[d] += widen(from[d * stride]);
  }
}

template <typename T>
void narrow_row(const Wide<T>* __restrict from, int64_t width, T* __restrict to) {
  for (int64_t d = 0; d < width; ++d) to[d] = narrow<T>(from[d]);
}

template <typename T>
int64_t gather_rows(const TokenView& tokens, const IdView& ids, T* out, int64_t begin, int64_t end) {
  const RowWriter<T> writer(tokens.batch * ids.columns, tokens.width);
  const auto row = [&](int64_t item) -> const T* {
    const int64_t b = item / ids.columns, id = ids.at(b, item % ids.columns);
    return id < 0 || id >= tokens.length ? nullptr : row_of<T>(tokens, b, id);
  };
  for (int64_t item = begin; item < end; ++item) {
    const T *const from = row(item), *const later = row(std::min(item + writer.ahead, end - 1));
    if (!from) return item;
    writer.copy(from, tokens.column_stride, out + item * tokens.width, later ? later : from);
  }
  return end;
}

// The positions of each id n in one row of ids, in ascending order. The first is first[n]. next[k] follows k. -1 is the
// end.
struct Positions {
  Positions(int64_t length, int64_t count) : first(length), next(count) {}

  void read(const IdView& ids, int64_t b) {
    const int64_t length = first.size();
    std::fill(first.begin(), first.end(), -1);
    for (int64_t k = static_cast<int64_t>(next.size()) - 1; k >= 0; --k) {
      const int64_t id = ids.at(b, k);
      if (id < 0 || id >= length) continue;
      next[k] = first[id];
      first[id] = k;
    }
  }

  std::vector<int64_t> first;  // [N]
  std::vector<int64_t> next;   // [K]
};

template <typename T>
void scatter_add_rows(const TokenView& values, const IdView& ids, int64_t length, T* out, int64_t begin, int64_t end) {
  const int64_t width = values.width, stride = values.column_stride;
  Positions positions(length, ids.columns);
  const RowWriter<T> writer(values.batch * length, width);
  const std::vector<T> zeros(width);
  std::vector<Wide<T>> sum(width);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / length, n = item % length;
    if (n == 0 || item == begin) positions.read(ids, b);
    T* to = out + item * width;
    int64_t k = positions.first[n];
    if (k < 0) {
      writer.copy(zeros.data(), 1, to, zeros.data());
    } else if (positions.next[k] < 0) {
      const int64_t later = std::min(k + writer.ahead, values.length - 1);  // if the ids ascend
      writer.copy(row_of<T>(values, b, k), stride, to, row_of<T>(values, b, later));
    } else {
      std::fill(sum.begin(), sum.end(), Wide<T>(0));
      for (; k >= 0; k = positions.next[k]) add_row(row_of<T>(values, b, k), stride, width, sum.data());
      narrow_row<T>(sum.data(), width, to);
    }
  }
}

template <typename T>
void mask_rows(const TokenView& tokens, const T* mask_token, int64_t mask_token_stride, const MaskView& mask, T* out,
               int64_t begin, int64_t end) {
  const RowWriter<T> writer(tokens.batch * tokens.length, tokens.width);
  struct Row {
    const T* data;
    int64_t stride;
  };
  const auto row = [&](int64_t item) -> Row {
    const int64_t b = item / tokens.length, n = item % tokens.length;
    if (mask.at(b, n)) return {mask_token, mask_token_stride};
    return {row_of<T>(tokens, b, n), tokens.column_stride};
  };
  for (int64_t item = begin; item < end; ++item) {
    const Row from = row(item), later = row(std::min(item + writer.ahead, end - 1));
    writer.copy(from.data, from.stride, out + item * tokens.width, later.data);
  }
}

template <typename T, typename Result>
void sum_chunks(const TokenView& x, const MaskView& mask, Result* sums, int64_t begin, int64_t end) {
  const int64_t rows = x.batch * x.length, width = x.width;
  std::vector<Wide<T>> slice(width), chunk(width);
  for (int64_t item = begin; item < end; ++item) {
    std::fill(chunk.begin(), chunk.end(), Wide<T>(0));
    const int64_t chunk_end = std::min((item + 1) * kChunkRows, rows);
    for (int64_t row = item * kChunkRows; row < chunk_end;) {
      std::fill(slice.begin(), slice.end(), Wide<T>(0));
      for (const int64_t slice_end = std::min(row + kSliceRows, chunk_end); row < slice_end; ++row) {
        const int64_t b = row / x.length, n = row % x.length;
        if (mask.data && !mask.at(b, n)) continue;
        add_row(row_of<T>(x, b, n), x.column_stride, width, slice.data());
      }
      add_row(slice.data(), 1, width, chunk.data());
    }
    narrow_row<Result>(chunk.data(), width, sums + item * width);
  }
}

int64_t masked_gather(const TokenView& tokens, const IdView& ids, void* out, int64_t begin, int64_t end) {
  int64_t first_wrong = end;
  with_type(tokens.dtype,
            [&](auto type) { first_wrong = gather_rows(tokens, ids, static_cast<decltype(type)*>(out), begin, end); });
  return first_wrong;
}

void masked_scatter_add(const TokenView& values, const IdView& ids, int64_t length, void* out, int64_t begin,
                        int64_t end) {
  with_type(values.dtype,
            [&](auto type) { scatter_add_rows(values, ids, length, static_cast<decltype(type)*>(out), begin, end); });
}

void mask_tokens(const TokenView& tokens, const void* mask_token, int64_t mask_token_stride, const MaskView& mask,
                 void* out, int64_t begin, int64_t end) {
  with_type(tokens.dtype, [&](auto type) {
    using T = decltype(type);
    mask_rows(tokens, static_cast<const T*>(mask_token), mask_token_stride, mask, static_cast<T*>(out), begin, end);
  });
}

void masked_sum(const TokenView& x, const MaskView& mask, Dtype result, void* sums, int64_t begin, int64_t end) {
  const bool last = x.batch * x.length <= kChunkRows;
  with_type(x.dtype, [&](auto type) {
    using T = decltype(type);
    if (!last) return sum_chunks<T>(x, mask, static_cast<Wide<T>*>(sums), begin, end);
    with_type(result, [&](auto result_type) {
      using Result = decltype(result_type);
      if constexpr (std::is_same_v<Result, T> || std::is_same_v<Wide<Result>, T>) {
        sum_chunks<T>(x, mask, static_cast<Result*>(sums), begin, end);
      }
    });
  });
}
