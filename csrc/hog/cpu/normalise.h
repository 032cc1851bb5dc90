// The normalisation of blocks on the CPU in every dialect, and its gradient. A thread does one block at a time, whose
// entries are summed by vectors. blocks_kernel.h includes this file once per instruction set. There is no include
// guard.

// The sum of all lanes, in every lane.
template <int HALF, typename V, int... LANE>
inline V sum_of_lanes(V v, std::integer_sequence<int, LANE...> lanes) {
  v += SHUFFLE(v, v, (LANE ^ HALF)...);
  if constexpr (HALF > 1) v = sum_of_lanes<HALF / 2>(v, lanes);
  return v;
}

// normalise: the sum of f(v), which may change v. kPartialSums partial sums are added as a tree at the end. This order
// is the same at every vector width.
template <typename T, typename F>
inline T sum_of(T* v, int64_t padded, const F& f) {
  using V = VectorFor<T>;
  constexpr int64_t kL = kLanes<T>, kParts = kPartialSums / kL;
  V sums[kParts]{};
  for (int64_t i = 0; i < padded; i += kPartialSums)
    for (int64_t part = 0; part < kParts; ++part) {
      V entries = load_vector<V>(v + i + part * kL);
      sums[part] += f(entries);
      store_vector(entries, v + i + part * kL);
    }
  for (int64_t half = kParts / 2; half > 0; half /= 2)
    for (int64_t part = 0; part < half; ++part) sums[part] += sums[part + half];
  return sum_of_lanes<kL / 2>(sums[0], std::make_integer_sequence<int, kL>())[0];
}

// NaN where an entry is not finite, else 0. It is not inlined, so that dialects that have a norm do not pay for it.
template <typename T>
[[gnu::noinline]] T zero_or_nan(T* v, int64_t padded) {
  return sum_of(v, padded, [](auto& entries) { return entries * 0; });
}

// normalise: the block v, which zeros follow. Returns a factor for all entries, which the caller multiplies by. It is
// NaN where the norm of the block is not finite. "l2-hys" divides and clips v here, so that the factor is the second
// one.
template <typename T>
inline T normalise(const BlockPlan& plan, T* v, int64_t padded) {
  const T eps = static_cast<T>(plan.eps), eps_again = static_cast<T>(plan.eps_again), clip = static_cast<T>(plan.clip);
  const auto squared = [](auto& entries) { return entries * entries; };
  if (plan.norm == Norm::none) return T(1) + zero_or_nan(v, padded);
  if (plan.norm == Norm::l1 || plan.norm == Norm::l1_sqrt)
    return T(1) / finite_or_nan(sum_of(v, padded, [](auto& entries) { return entries; }) + eps);
  const T square = sum_of(v, padded, squared);
  // A processor foresees this branch, so that the next block need not wait for the test.
  if (!std::isfinite(square)) return std::numeric_limits<T>::quiet_NaN();
  if (plan.norm == Norm::unit) return T(1) / (std::sqrt(square) < eps ? eps : std::sqrt(square));
  const bool is_opencv = plan.arithmetic == Arithmetic::opencv;
  const T factor = T(1) / (is_opencv ? std::sqrt(square) + eps : std::sqrt(square + eps * eps));
  if (plan.norm == Norm::l2) return factor;
  const VectorFor<T> limit = VectorFor<T>{} + clip;
  const T again = sum_of(v, padded, [factor, limit](auto& entries) {
    entries *= factor;
    entries = entries > limit ? limit : entries;
    return entries * entries;
  });
  return T(1) / (is_opencv ? std::sqrt(again) + eps_again : std::sqrt(again + eps_again * eps_again));
}

// g holds the gradient to v / length(v), and becomes the gradient to v. The length is |v| + eps where `add` is true,
// else sqrt(v.v + eps^2).
inline void length_backward(const std::vector<double>& v, std::vector<double>& g, double eps, bool add) {
  double square = 0, along = 0;
  for (size_t i = 0; i < v.size(); ++i) square += v[i] * v[i], along += v[i] * g[i];
  const double norm = std::sqrt(square), length = add ? norm + eps : std::sqrt(square + eps * eps);
  const double inner = add ? norm : length;
  const double projection = inner == 0 ? 0 : along / (length * length * inner);
  for (size_t i = 0; i < v.size(); ++i) g[i] = g[i] / length - v[i] * projection;
}

// g holds the gradient to a normalised block, and becomes the gradient to the block v. u is scratch of the same size.
inline void normalise_backward(const BlockPlan& plan, const std::vector<double>& v, std::vector<double>& g,
                               std::vector<double>& u) {
  const bool add = plan.arithmetic == Arithmetic::opencv;
  double sum = 0, square = 0, along = 0;
  for (const double entry : v) sum += entry, square += entry * entry;
  switch (plan.norm) {
    case Norm::none:
      for (double& entry : g) entry += v[0] * 0;  // all entries of a block are NaN, or none is
      return;
    case Norm::unit:
      if (!(std::sqrt(square) < plan.eps)) return length_backward(v, g, 0, false);
      for (double& entry : g) entry /= plan.eps;
      return;
    case Norm::l1_sqrt:
      for (size_t i = 0; i < v.size(); ++i) g[i] = v[i] == 0 ? 0 : g[i] / (2 * std::sqrt(v[i] / (sum + plan.eps)));
      [[fallthrough]];
    case Norm::l1:
      sum += plan.eps;
      for (size_t i = 0; i < v.size(); ++i) along += v[i] * g[i];
      for (double& entry : g) entry = (entry - along / sum) / sum;
      return;
    case Norm::l2: return length_backward(v, g, plan.eps, add);
    case Norm::l2_hys:
      const double length = add ? std::sqrt(square) + plan.eps : std::sqrt(square + plan.eps * plan.eps);
      for (size_t i = 0; i < v.size(); ++i) u[i] = v[i] / length > plan.clip ? plan.clip : v[i] / length;
      length_backward(u, g, plan.eps_again, add);
      for (size_t i = 0; i < v.size(); ++i) g[i] = v[i] / length > plan.clip ? 0 : g[i];
      return length_backward(v, g, plan.eps, add);
  }
}
