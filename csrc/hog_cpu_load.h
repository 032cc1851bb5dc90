// How pixels get into the buffers of hog_cpu_kernel.h, which includes this once per instruction set: no include guard.

constexpr int64_t kStreamBytes = 16 << 10;  // of an image, read before they are used

// load: `count` pixels, STEP apart, in chunks of a number that is known here, so that they can be vectorised; the last chunk
// may overlap the one before.
template <int64_t STEP, int64_t CHUNK = 16, typename Pixel, typename Line>
inline void load_pixels(const Pixel* __restrict from, int64_t count, Line* __restrict to) {
  if constexpr (CHUNK > 1)
    if (count < CHUNK) return load_pixels<STEP, CHUNK / 2>(from, count, to);
  for (int64_t begin = 0; begin < count; begin += CHUNK) {
    const int64_t first = std::min(begin, count - CHUNK);
    for (int64_t i = first; i < first + CHUNK; ++i) to[i] = widen(from[STEP * i]);
  }
}

// load: `columns` pixels of row y from column x0 on, mirrored at the image border, which they overstep by one at most.
template <typename Pixel, typename Line>
inline void load_line(const ImageView& image, const Pixel* plane, int64_t y, int64_t x0, int64_t columns,
                      Line* __restrict line) {
  const Pixel* row = plane + reflect(y, image.height) * image.row_stride;
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
  if (begin > x0) line[0] = widen(row[reflect<int64_t>(-1, image.width) * step]);
  if (end < x0 + columns) line[columns - 1] = widen(row[reflect(image.width, image.width) * step]);
}

// Pixels side by side in a tile, from a corner of an image plane on.
template <typename Pixel>
struct Segment {
  const Pixel* plane;
  int64_t y0, x0;
};

// Reads a byte of every cache line of the pixels in rows y0 .. y1 - 1 and columns x0 .. x1 - 1 (what is outside the image
// is left out), in the order of memory. Nothing waits for these loads, but the processor sees a stream, and fetches far
// ahead of it, as it does not of columns that are walked down: images in memory are then done in a fifth less time, and
// patches in up to two fifths less. Asking for the lines by prefetch instructions does not have that effect.
template <typename Pixel>
inline void stream_in(const ImageView& image, const Pixel* plane, int64_t y0, int64_t y1, int64_t x0, int64_t x1) {
  constexpr int64_t kLine = 64, kMostApart = 4;  // bytes; pixels, between which there is no row to be streamed
  const int64_t step = image.column_stride;
  if (step < 1 || step > kMostApart) return;
  x0 = std::max<int64_t>(x0, 0), x1 = std::min(x1, image.width);
  for (int64_t y = std::max<int64_t>(y0, 0); y < std::min(y1, image.height); ++y) {
    const Pixel* const row = plane + y * image.row_stride;
    const auto* at = reinterpret_cast<const volatile char*>(row + x0 * step);
    const auto* const last = reinterpret_cast<const volatile char*>(row + (x1 - 1) * step);
    for (; at < last; at += kLine) (void)*at;
    (void)*last;
  }
}

// The same of patches that follow each other in a row of the grid, unless they lie far apart.
template <typename Pixel>
inline void stream_in(const ImageView& image, const Segment<Pixel>* patches, int64_t count, int64_t side) {
  constexpr int64_t kSparse = 4;  // patches that there would be room for, to one that is wanted
  for (int64_t first = 0, next; first < count; first = next) {
    const Segment<Pixel>& left = patches[first];
    for (next = first + 1; next < count; ++next)
      if (patches[next].plane != left.plane || patches[next].y0 != left.y0 || patches[next].x0 <= patches[next - 1].x0)
        break;
    const int64_t end = patches[next - 1].x0 + side;
    if (end - left.x0 <= kSparse * side * (next - first))
      stream_in(image, left.plane, left.y0 - 1, left.y0 + side + 1, left.x0 - 1, end + 1);
  }
}
