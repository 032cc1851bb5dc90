// How hog/cpu/cells_kernel.h gets its pixels: from copies in the tile, or from their place in the image. Both are
// prefetched into the cache. That file includes this one once per instruction set. There is no include guard.

constexpr int64_t kMaxSegments = 32;  // patches side by side in a tile

// load: `count` pixels that are STEP apart. They are loaded in chunks whose size the compiler knows, so that it can
// vectorise the loop. The last chunk may overlap the one before.
template <int64_t STEP, int64_t CHUNK = 16, typename Pixel, typename Line>
inline void load_pixels(const Pixel* __restrict from, int64_t count, Line* __restrict to) {
  if constexpr (CHUNK > 1)
    if (count < CHUNK) return load_pixels<STEP, CHUNK / 2>(from, count, to);
  for (int64_t begin = 0; begin < count; begin += CHUNK) {
    const int64_t first = std::min(begin, count - CHUNK);
    for (int64_t i = first; i < first + CHUNK; ++i) to[i] = widen(from[STEP * i]);
  }
}

// load: `columns` pixels of row y, from column x0 on. They may lie outside the image by one pixel on each side.
template <typename Pixel, typename Line>
inline void load_line(const ImageView& image, const Pixel* plane, int64_t y, int64_t x0, int64_t columns,
                      Line* __restrict line) {
  const Pixel* row = plane + mirror_once(y, image.height) * image.row_stride;
  const int64_t step = image.column_stride;
  const int64_t begin = std::max<int64_t>(x0, 0), end = std::min(x0 + columns, image.width);
  const Pixel* __restrict from = row + begin * step;
  Line* __restrict to = line + (begin - x0);
  if (step == 1) {
    load_pixels<1>(from, end - begin, to);
  } else if (step == 3) {  // interleaved RGB
    load_pixels<3>(from, end - begin, to);
  } else {
    for (int64_t i = 0; i < end - begin; ++i) to[i] = widen(from[i * step]);
  }
  if (begin > x0) line[0] = widen(row[mirror_once<int64_t>(-1, image.width) * step]);
  if (end < x0 + columns) line[columns - 1] = widen(row[mirror_once(image.width, image.width) * step]);
}

// A rectangle of pixels of an image plane, which has a place in the tile. Its top left pixel is (y0, x0).
template <typename Pixel>
struct Segment {
  const Pixel* plane;
  int64_t y0, x0;
};

// gradient_columns() reads LineColumns or PatchColumns. next() gives the next vector of columns, in the row above the
// first. Of this vector, load(0) is the left neighbours, load(1) the pixels, and load(2) the right neighbours, all
// widened.

// Columns of lines that were copied into the tile. The pixels are `apart` after their left neighbours, and the right
// neighbours `apart` after the pixels.
template <typename Line>
struct LineColumns {
  struct Column {
    const Line* at;
    int64_t stride, apart;

    Vector<Line, kVectorBytes / sizeof(Line)> load(int64_t neighbour) const {
      return load_vector<Vector<Line, kVectorBytes / sizeof(Line)>>(at + neighbour * apart);
    }
    void down() { at += stride; }
  };
  Column next() {
    const Column column{first, stride, apart};
    first += kVectorBytes / sizeof(Line);
    return column;
  }

  const Line* first;
  int64_t stride, apart;
};

// Columns of patches side by side. Each patch is read in its place or from a copy. A patch is as wide as whole vectors,
// or has the 16 columns that are half a vector of bytes.
template <typename Line, typename Pixel>
class PatchColumns {
 public:
  static constexpr int64_t kLanes = kVectorBytes / sizeof(Line), kColumns = std::min<int64_t>(kLanes, 16);
  static constexpr int kParts = kLanes / kColumns;  // parts of a vector, each of one patch
  static constexpr bool kInPlace = std::is_same_v<Pixel, Line> || std::is_same_v<Pixel, uint8_t>;
  using Stored = std::conditional_t<kInPlace, Pixel, Line>;  // half precision is widened only once, when it is copied

  explicit PatchColumns(int64_t columns) : columns(columns) {}

  // Adds a patch. If it has to be copied, it goes to `copy`. Returns the end of the copies.
  Stored* add(const ImageView& image, const Segment<Pixel>& from, int64_t rows, Stored* copy) {
    if constexpr (kInPlace) {
      if (image.column_stride == 1 && from.x0 > 0 && from.x0 + columns < image.width && from.y0 > 0 &&
          from.y0 + rows < image.height) {
        patches[count++] = {from.plane + (from.y0 - 1) * image.row_stride + from.x0 - 1, image.row_stride};
        return copy;
      }
    }
    patches[count++] = {copy, columns + 2};
    for (int64_t y = from.y0 - 1; y <= from.y0 + rows; ++y, copy += columns + 2)
      load_line(image, from.plane, y, from.x0 - 1, columns + 2, copy);
    return copy;
  }

  struct Column {
    const Stored* at[kParts];
    int64_t stride[kParts];

    Vector<Line, kLanes> load(int64_t neighbour) const {
      using Part = Vector<Stored, kColumns>;
      const Part left = load_vector<Part>(at[0] + neighbour);
      if constexpr (kParts == 2) {
        const Part right = load_vector<Part>(at[1] + neighbour);
        return convert<Vector<Line, kLanes>>(concatenate(left, right, std::make_integer_sequence<int, kLanes>()));
      } else {
        return convert<Vector<Line, kLanes>>(left);
      }
    }
    void down() {
      for (int part = 0; part < kParts; ++part) at[part] += stride[part];
    }
  };
  Column next() {
    Column column;
    for (int part = 0; part < kParts; ++part) {
      const Patch& from =
          patches[std::min(patch, count - 1)];  // with an odd number of patches the last half is not used
      column.at[part] = from.first + x, column.stride[part] = from.stride;
      if ((x += kColumns) == columns) x = 0, ++patch;
    }
    return column;
  }

 private:
  struct Patch {
    const Stored* first;  // one row above the patch and one column left of it
    int64_t stride;
  };
  const int64_t columns;
  Patch patches[kMaxSegments];
  int64_t count = 0, patch = 0, x = 0;
};

// Prefetches the pixels that are needed next, some cache lines at each step of the work on others. A processor does not
// foresee columns that are walked down. It would wait for lines that are all prefetched at once.
class Prefetcher {
 public:
  // Adds rows y0 to y1 - 1 and columns x0 to x1 - 1 of a plane, as far as they lie in the image.
  template <typename Pixel>
  void add(const ImageView& image, const Pixel* plane, int64_t y0, int64_t y1, int64_t x0, int64_t x1) {
    constexpr int64_t kMostBytes = 256 << 10;  // more would not stay in the cache
    y0 = std::max<int64_t>(y0, 0), y1 = std::min(y1, image.height);
    x0 = std::max<int64_t>(x0, 0), x1 = std::min(x1, image.width);
    const int64_t bytes = (x1 - x0) * image.column_stride * static_cast<int64_t>(sizeof(Pixel));
    if (image.column_stride < 1 || image.column_stride > kMostApart || bytes * (y1 - y0) > kMostBytes) return;
    const int64_t row_bytes = image.row_stride * static_cast<int64_t>(sizeof(Pixel));
    const auto* first = reinterpret_cast<const char*>(plane + y0 * image.row_stride + x0 * image.column_stride);
    const bool is_one = bytes == row_bytes;  // rows without a gap count as one
    const int64_t rows = is_one ? 1 : y1 - y0,
                  lines = ((is_one ? bytes * (y1 - y0) : bytes) + kCacheLine - 2) / kCacheLine + 1;
    strips[count++] = {first, lines, rows, row_bytes};
    total += rows * lines;
  }

  // Adds patches and their halo. Patches that are near each other are added as one, with what lies between them.
  template <typename Pixel>
  void add(const ImageView& image, const Segment<Pixel>* patches, int64_t patch_count, int64_t side) {
    const int64_t near =
        2 * kCacheLine / (static_cast<int64_t>(sizeof(Pixel)) * std::max<int64_t>(1, image.column_stride));
    for (int64_t first = 0, next; first < patch_count; first = next) {
      const Segment<Pixel>& left = patches[first];
      int64_t x1 = left.x0 + side;
      for (next = first + 1; next < patch_count; ++next) {
        const Segment<Pixel>& patch = patches[next];
        if (patch.plane != left.plane || patch.y0 != left.y0 || patch.x0 < x1 || patch.x0 > x1 + near) break;
        x1 = patch.x0 + side;
      }
      add(image, left.plane, left.y0 - 1, left.y0 + side + 1, left.x0 - 1, x1 + 1);
    }
  }

  // Spreads the prefetches over this number of steps, or fewer.
  void start(int64_t steps) { portion = std::max(kLeast, ceil_div(total, steps)); }

  void step() {
    if (done < count) prefetch();
  }

 private:
  // It is not inlined, so that the loops that call it keep their registers. GCC takes a function that only prefetches
  // for one without effect and drops the call. The empty assembly prevents that.
  __attribute__((noinline)) void prefetch() {
    asm volatile("");
    for (int64_t left = portion, wanted; left > 0 && done < count; left -= wanted) {
      Strip& from = strips[done];
      const char* const at = from.first + line * kCacheLine;
      wanted = std::min(left, from.lines - line);
      for (int64_t i = 0; i < wanted; ++i) __builtin_prefetch(at + i * kCacheLine);
      if ((line += wanted) < from.lines) continue;
      line = 0, from.first += from.stride;
      if (--from.rows == 0) ++done;
    }
  }

  static constexpr int64_t kLeast = 8;  // cache lines that are worth a call

  struct Strip {
    const char* first;
    int64_t lines, rows, stride;  // cache lines of a row, rows that are left, bytes from a row to the next
  };
  Strip strips[kMaxSegments];
  int64_t count = 0, done = 0, line = 0, total = 0, portion = 0;
};
