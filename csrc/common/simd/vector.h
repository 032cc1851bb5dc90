// Vectors of kVectorBytes bytes. The code is the same for every instruction set. every_instruction_set.h includes it
// once per instruction set, in a namespace that defines kVectorBytes. There is no include guard.

constexpr int64_t kCacheLine = 64;  // bytes
constexpr int64_t kMostApart = 4;   // rows whose pixels are further apart are not prefetched

constexpr int64_t round_up(int64_t n, int64_t multiple) { return ceil_div(n, multiple) * multiple; }

// `all` is divided into as few shares as possible. None exceeds `most`, and all have about one size. This is the first.
constexpr int64_t first_share(int64_t all, int64_t most) {
  return ceil_div(all, std::max<int64_t>(1, ceil_div(all, most)));
}

template <typename T, int64_t LANES>
struct VectorOf {
  typedef T type __attribute__((vector_size(LANES * sizeof(T))));
};
template <typename T, int64_t LANES>
using Vector = typename VectorOf<T, LANES>::type;

// The memory need not be aligned.
template <typename V>
inline V load_vector(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}
template <typename V>
inline void store_vector(V v, void* to) {
  std::memcpy(to, &v, sizeof(v));
}

// Converts the numbers of a vector to another type. 16-bit integers take two steps, each of which is one instruction.
template <typename Wide, typename V>
inline Wide convert(V v) {
  if constexpr (sizeof(v[0]) == sizeof(int16_t)) {
    const auto wide = __builtin_convertvector(v, decltype(Wide{} == Wide{}));
    return __builtin_convertvector(wide, Wide);
  } else {
    return __builtin_convertvector(v, Wide);
  }
}

// The same into several vectors. For arm64, GCC would take the upper half of 16-bit integers apart lane by lane.
template <typename Wide, typename V, size_t PARTS>
inline void convert_parts(V v, Wide (&parts)[PARTS]) {
  if constexpr (sizeof(v[0]) == sizeof(int16_t) && sizeof(V) == 16) {
    using Int = decltype(Wide{} == Wide{});
    parts[0] = __builtin_convertvector(Int(SHUFFLE(v, v, 0, 0, 1, 1, 2, 2, 3, 3)) >> 16, Wide);
    parts[1] = __builtin_convertvector(Int(SHUFFLE(v, v, 4, 4, 5, 5, 6, 6, 7, 7)) >> 16, Wide);
  } else {
    Vector<std::decay_t<decltype(v[0])>, sizeof(Wide) / sizeof(parts[0][0])> narrow[PARTS];
    std::memcpy(narrow, &v, sizeof(v));
    for (size_t part = 0; part < PARTS; ++part) parts[part] = convert<Wide>(narrow[part]);
  }
}

// The lanes of `a`, followed by those of `b`.
template <typename V, int... LANE>
inline auto concatenate(V a, V b, std::integer_sequence<int, LANE...>) {
  return SHUFFLE(a, b, LANE...);
}

// sum + addend in the lanes where `chosen` holds, else sum. Vectors of 64 bytes have masked additions. For the others
// it is cheaper to add zero than to blend. That gives the same bits, since no sum here is a negative zero.
template <typename V, typename Mask>
inline V add_where(V sum, Mask chosen, V addend) {
  if constexpr (sizeof(V) == 64) return chosen ? sum + addend : sum;
  return sum + (chosen ? addend : V{});
}

// Both vectors consist of groups of 2 * HALF lanes. In each group the right half is added to the left half. The result
// has the groups of `a`, followed by those of `b`.
template <int HALF, typename V, int... LANE>
inline V halve(V a, V b, std::integer_sequence<int, LANE...>) {
  return SHUFFLE(a, b, (LANE / HALF * 2 * HALF + LANE % HALF)...) +
         SHUFFLE(a, b, (LANE / HALF * 2 * HALF + HALF + LANE % HALF)...);
}

// `columns` consists of groups of GROUP numbers, a power of two. Each group is halved as above until WIDTH sums are
// left. Returns a vector of the sums of one group, from sum `first` on.
template <int GROUP, int WIDTH, typename V>
inline V reduce_group(const decltype(V{}[0] + 0)* columns, int first) {
  if constexpr (WIDTH == GROUP) {
    return load_vector<V>(columns + first);
  } else {
    return reduce_group<GROUP, 2 * WIDTH, V>(columns, first) +
           reduce_group<GROUP, 2 * WIDTH, V>(columns, first + WIDTH);
  }
}

// The same for as many groups as fill a vector.
template <int GROUP, int WIDTH, typename V>
inline V reduce(const decltype(V{}[0] + 0)* columns) {
  constexpr int kLanes = sizeof(V) / sizeof(V{}[0]);
  if constexpr (WIDTH == GROUP || WIDTH >= kLanes) {
    return reduce_group<GROUP, WIDTH, V>(columns, 0);
  } else {
    const int64_t read = kLanes / (2 * WIDTH) * GROUP;
    return halve<WIDTH>(reduce<GROUP, 2 * WIDTH, V>(columns), reduce<GROUP, 2 * WIDTH, V>(columns + read),
                        std::make_integer_sequence<int, kLanes>());
  }
}
