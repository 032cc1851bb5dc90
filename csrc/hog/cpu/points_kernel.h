// HOG of windows at points on the CPU: the blocks of a small region, many times. The votes of a pixel are the same in
// every window. Where windows overlap enough, all votes of the rectangle that holds them are computed first. Otherwise
// each window computes its own. Sums have the order of blocks_kernel.h, and so the bits, in both cases.
//
// blocks_kernel.h includes this file. There is no include guard.

// The votes of the rows [begin, end) of a rectangle, in chunks as wide as a tile.
template <typename T>
void compute_votes(const ImageView& image, const Channels& channels, const BlockPlan& plan, int64_t plane,
                   const PlaneVotes& to, int64_t begin, int64_t end) {
  BlockPlan own = plan;
  own.region = to.region;
  const int64_t width = own.region.width, across = blocks_of_tile(plan, plan.x.blocks(width));
  const int64_t chunk = (across - 1) * plan.x.stride + plan.x.pixels;
  BlockTile<T> tile(image, channels, own, across);
  tile.vote_pitch = to.pitch, tile.ring_rows = own.region.height;
  for (int64_t left = 0; left < width; left += chunk) {
    tile.votes = static_cast<T*>(to.votes) + left, tile.bin = static_cast<IntOf<T>*>(to.bins) + left;
    tile.begin({0, 1, left, std::min(chunk, width - left)});
    vote_rows(tile, image.plane_offset(plane), begin, end);
  }
  for (int64_t y = begin; y < end; ++y)  // whole vectors are read there
    for (int64_t k = 0; k < 2; ++k)
      std::fill_n(static_cast<T*>(to.votes) + (2 * y + k) * to.pitch + width, to.pitch - width, T(0));
}

void votes_of_plane(const ImageView& image, const Channels& channels, const BlockPlan& plan, int64_t plane,
                    const PlaneVotes& to, int64_t begin, int64_t end) {
  image.dtype == Dtype::float64 ? compute_votes<double>(image, channels, plan, plane, to, begin, end)
                                : compute_votes<float>(image, channels, plan, plane, to, begin, end);
}

// Asks for the votes of a window that comes next. Its rows lie too far apart for the processor to foresee them.
template <typename T>
inline void prefetch_window(const PlaneVotes& votes, const Region& window) {
  constexpr int64_t kLine = kCacheLine / sizeof(T);
  const int64_t first = window.top - votes.region.top, left = window.left - votes.region.left;
  for (int64_t y = first; y < first + window.height; ++y)
    for (int64_t x = left; x < left + window.width + kLine; x += kLine) {
      const T* const vote = static_cast<const T*>(votes.votes) + 2 * y * votes.pitch + x;
      __builtin_prefetch(vote), __builtin_prefetch(vote + votes.pitch);
      __builtin_prefetch(static_cast<const T*>(votes.bins) + y * votes.pitch + x);
    }
}

// The windows at the corners [begin, end) of a plane. `votes` is null where each window computes its own.
template <typename T>
void compute_windows(const ImageView& image, const Channels& channels, const BlockPlan& plan, const Corners& corners,
                     int64_t plane, const PlaneVotes* votes, T* out, int64_t begin, int64_t end) {
  BlockPlan own = plan;
  const int64_t across = plan.block_columns(), stride = plan.x.stride, count = blocks_of_tile(plan, across);
  BlockTile<T> tile(image, channels, own, count);
  for (int64_t n = begin; n < end; ++n) {
    own.region = corners.window(plan, plane, n);
    if (votes && n + 1 < end) prefetch_window<T>(*votes, corners.window(plan, plane, n + 1));
    T* const to = out + corners.place(plane, n) * plan.size();
    for (int64_t block = 0; block < across; block += count) {
      const int64_t blocks = std::min(count, across - block), left = block * stride;
      tile.begin({block, blocks, left, (blocks - 1) * stride + plan.x.pixels});
      if (votes) {
        const int64_t row = own.region.top - votes->region.top, column = own.region.left - votes->region.left + left;
        tile.votes = static_cast<T*>(votes->votes) + 2 * row * votes->pitch + column;
        tile.bin = static_cast<IntOf<T>*>(votes->bins) + row * votes->pitch + column;
        tile.vote_pitch = votes->pitch, tile.ring_rows = votes->region.height;
        tile.votes_end = votes->region.height;  // none is missing
      }
      tile_rows(tile, image.plane_offset(plane), 0, plan.block_rows(), to);
    }
  }
}

void windows_of_plane(const ImageView& image, const Channels& channels, const BlockPlan& plan, const Corners& corners,
                      int64_t plane, const PlaneVotes* votes, void* out, int64_t begin, int64_t end) {
  image.dtype == Dtype::float64
      ? compute_windows(image, channels, plan, corners, plane, votes, static_cast<double*>(out), begin, end)
      : compute_windows(image, channels, plan, corners, plane, votes, static_cast<float*>(out), begin, end);
}
