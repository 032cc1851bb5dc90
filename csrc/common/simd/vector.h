// Vectors of kVectorBytes, the same code for every instruction set: included by each kernel of the CPU once per instruction
// set, in a namespace that defines kVectorBytes: no include guard.

constexpr int64_t kCacheLine = 64;  // bytes
constexpr int64_t kMostApart = 4;   // pixels of a row; those further apart are not fetched ahead

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// The first of as few shares of `all` as hold `most` each, all of about one size.
constexpr int64_t first_share(int64_t all, int64_t most) {
  const int64_t shares = std::max<int64_t>(1, (all + most - 1) / most);
  return (all + shares - 1) / shares;
}

template <typename T, int64_t LANES>
struct VectorOf {
  typedef T type __attribute__((vector_size(LANES * sizeof(T))));
};
template <typename T, int64_t LANES>
using Vector = typename VectorOf<T, LANES>::type;

// Memory need not be aligned.
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

// The numbers of a vector in another type; 16-bit integers in two steps, each of which is one instruction.
template <typename Wide, typename V>
inline Wide convert(V v) {
  if constexpr (sizeof(v[0]) == sizeof(int16_t)) {
    const auto wide = __builtin_convertvector(v, decltype(Wide{} == Wide{}));
    return __builtin_convertvector(wide, Wide);
  } else {
    return __builtin_convertvector(v, Wide);
  }
}

// The lanes of `a` and then those of `b`.
template <typename V, int... LANE>
inline auto concatenate(V a, V b, std::integer_sequence<int, LANE...>) {
  return SHUFFLE(a, b, LANE...);
}

// sum + addend in the lanes where `chosen` holds. 64-byte vectors have masked additions; in the others, adding zero where
// it does not hold is cheaper than a blend, and gives the same bits: no sum here is a negative zero.
template <typename V, typename Mask>
inline V add_where(V sum, Mask chosen, V addend) {
  if constexpr (sizeof(V) == 64) return chosen ? sum + addend : sum;
  return sum + (chosen ? addend : V{});
}

// Of groups of 2 * HALF lanes, the groups of `a` and then those of `b`: the right half added to the left.
template <int HALF, typename V, int... LANE>
inline V halve(V a, V b, std::integer_sequence<int, LANE...>) {
  return SHUFFLE(a, b, (LANE / HALF * 2 * HALF + LANE % HALF)...) +
         SHUFFLE(a, b, (LANE / HALF * 2 * HALF + HALF + LANE % HALF)...);
}

// Numbers in groups of GROUP, a power of two, each group halved in this way until WIDTH are left of it. As many of one group
// as fill a vector, from `first` on.
template <int GROUP, int WIDTH, typename V>
inline V reduce_group(const decltype(V{}[0] + 0)* columns, int first) {
  if constexpr (WIDTH == GROUP) {
    return load_vector<V>(columns + first);
  } else {
    return reduce_group<GROUP, 2 * WIDTH, V>(columns, first) +
           reduce_group<GROUP, 2 * WIDTH, V>(columns, first + WIDTH);
  }
}

// The same of as many groups as fill a vector.
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
