// The attention of docs/attention.md on the CPU, forward and backward, and one step of decoding.
//
// A sequence is cut into tiles of at most 64 queries and 64 keys, whatever the visibility: the keys
// that all queries of a tile see are in a running state, the others meet them in a small product of
// which only the visible half is computed. Each head runs alone, in scratch memory of its thread.
//
// Letters: D key width, E value width, F = R D the width of a widened query or key (R = 2 with
// proportions, 1 without). D and F/R are padded to whole vectors. The state is kept as
// [E + 1][F]: its last row, of values that are all one, sums the weights.
//
// Scratch names: x is phi of a query or key, wide its product with (cos, sin) of its angle; a
// trailing t marks an array whose rows are columns of the other.

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

namespace {

using std::int64_t;

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int COLUMNS = 4;  // vectors of a register block: 6 x 4 sums in 32 registers
#else
constexpr int COLUMNS = 2;
#endif
constexpr int ROWS = 6;
constexpr int64_t C = 64;  // queries, and keys, of a tile at most

template <class T>
struct Simd {
  typedef T Vector __attribute__((vector_size(BYTES), aligned(alignof(T)), may_alias));
  static constexpr int64_t width = BYTES / sizeof(T);
};
template <class T>
using Vec = typename Simd<T>::Vector;
template <class T>
constexpr int64_t W = Simd<T>::width;

template <class T>
constexpr T HALF_PI = T(1.57079632679489661923);

template <class T>
inline Vec<T>& at(T* x) {
  return *reinterpret_cast<Vec<T>*>(x);
}
template <class T>
inline const Vec<T>& at(const T* x) {
  return *reinterpret_cast<const Vec<T>*>(x);
}

inline int64_t up(int64_t n, int64_t m) { return (n + m - 1) / m * m; }

// The call, as native.py hands it over.

enum Type : int64_t { FLOAT, DOUBLE, BFLOAT16, HALF };
constexpr int64_t SIZES[] = {4, 8, 2, 2};
enum Feature : int64_t { RELU, ELU };

extern "C" {
struct View {  // strides in elements; of a tensor with four axes the last one is dense
  char* data;
  int64_t batch, head, row;
};

struct Call {
  int64_t batch, heads, queries, keys, width, values;
  int64_t type, feature, turned, documents, count_stride, whole, poison;
  double eps;
  View q, k, v, p_q, p_k, y, total, grad_y, dq, dk, dv, dp_q, dp_k;
  const int64_t* counts;
  const int64_t* bounds;
  const uint8_t* mask;      // [B, S]; null: all keys are real
  const void* sums;         // [B, H, R D, E + 1], like the three below
  const void* grad_after;   // null: zero
  void* after;              // null: not wanted
  void* grad_sums;          // null: not wanted
};

struct Leap {  // the maps W1 [hidden, D], b1, W2 [1, hidden], b2 of LeaP, dense; W2 null: W1 alone
  const char *w1, *b1, *w2, *b2;
  int64_t hidden;
};

struct Step {  // one query and one key; y [B, H, 1, E], `after` like `sums`
  int64_t batch, heads, width, values, type, feature, turned, poison;
  double eps;
  View q, k, v, p_q, p_k, y;
  Leap leap_q, leap_k;  // W1 null: the proportions are given
  const uint8_t* mask;  // [B]; null: all keys are real
  const void* sums;     // [B, H, R D, E + 1]
  void* after;
};
}

// c[m][n] (+)= sum_k a(m, k) b[k][n], of M rows and N vectors; a(m, k) = a[m * am + k * ak].
template <class T, int M, int N>
void block(int64_t K, const T* a, int64_t am, int64_t ak, const T* b, int64_t ldb, T* c,
           int64_t ldc, bool add) {
  Vec<T> sum[M][N];
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) sum[m][n] = add ? at(c + m * ldc + n * W<T>) : Vec<T>{};
  for (int64_t k = 0; k < K; ++k) {
    Vec<T> row[N];
    for (int n = 0; n < N; ++n) row[n] = at(b + n * W<T>);
    for (int m = 0; m < M; ++m) {
      const T factor = a[m * am];
      for (int n = 0; n < N; ++n) sum[m][n] += factor * row[n];
    }
    a += ak;
    b += ldb;
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) at(c + m * ldc + n * W<T>) = sum[m][n];
}

template <class T, int M>
void columns(int64_t vectors, int64_t K, const T* a, int64_t am, int64_t ak, const T* b,
             int64_t ldb, T* c, int64_t ldc, bool add) {
  for (; vectors >= COLUMNS; vectors -= COLUMNS) {
    block<T, M, COLUMNS>(K, a, am, ak, b, ldb, c, ldc, add);
    b += COLUMNS * W<T>;
    c += COLUMNS * W<T>;
  }
  switch (vectors) {
    case 1: return block<T, M, 1>(K, a, am, ak, b, ldb, c, ldc, add);
    case 2: return block<T, M, 2>(K, a, am, ak, b, ldb, c, ldc, add);
    case 3: return block<T, M, 3>(K, a, am, ak, b, ldb, c, ldc, add);
  }
}

// At most ROWS rows, n a whole number of vectors.
template <class T>
void strip(int64_t m, int64_t n, int64_t K, const T* a, int64_t am, int64_t ak, const T* b,
           int64_t ldb, T* c, int64_t ldc, bool add) {
  const int64_t vectors = n / W<T>;
  switch (m) {
    case 1: return columns<T, 1>(vectors, K, a, am, ak, b, ldb, c, ldc, add);
    case 2: return columns<T, 2>(vectors, K, a, am, ak, b, ldb, c, ldc, add);
    case 3: return columns<T, 3>(vectors, K, a, am, ak, b, ldb, c, ldc, add);
    case 4: return columns<T, 4>(vectors, K, a, am, ak, b, ldb, c, ldc, add);
    case 5: return columns<T, 5>(vectors, K, a, am, ak, b, ldb, c, ldc, add);
    case 6: return columns<T, 6>(vectors, K, a, am, ak, b, ldb, c, ldc, add);
  }
}
static_assert(ROWS == 6);

template <class T>
void product(int64_t m, int64_t n, int64_t K, const T* a, int64_t am, int64_t ak, const T* b,
             int64_t ldb, T* c, int64_t ldc, bool add) {
  constexpr int64_t panel = COLUMNS * W<T>;
  for (int64_t n0 = 0; n0 < n; n0 += panel)
    for (int64_t m0 = 0; m0 < m; m0 += ROWS)
      strip(std::min<int64_t>(ROWS, m - m0), std::min(panel, n - n0), K, a + m0 * am, am, ak,
            b + n0, ldb, c + m0 * ldc + n0, ldc, add);
}

template <class T>
T dot(const T* a, const T* b, int64_t n) {  // n a whole number of vectors
  Vec<T> sum = {};
  for (int64_t e = 0; e < n; e += W<T>) sum += at(a + e) * at(b + e);
  T total = 0;
  for (int64_t e = 0; e < W<T>; ++e) total += sum[e];
  return total;
}

// e^x for x <= 0, without a call, so that loops over it become vector code: 2^n times the series of
// e^r, |r| <= ln 2 / 2. What would be subnormal is the smallest normal number.
template <class T>
inline T exponential(T x) {
  constexpr bool single = sizeof(T) == 4;
  typedef std::conditional_t<single, int32_t, int64_t> Bits;
  constexpr T least = single ? T(-87.3) : T(-708.3);
  constexpr T magic = single ? T(12582912) : T(6755399441055744);  // 1.5 * 2^23, 1.5 * 2^52
  constexpr int mantissa = single ? 23 : 52, bias = single ? 127 : 1023, terms = single ? 8 : 14;
  x = x > 0 ? T(0) : x < least ? least : x;
  const T shifted = x * T(1.4426950408889634074) + magic, n = shifted - magic;
  const T high = single ? T(0.693359375) : T(6.93145751953125e-1);
  const T low = single ? T(-2.12194440054690583e-4) : T(1.42860682030941723212e-6);
  const T r = (x - n * high) - n * low;
  T sum = 1;
  for (int k = terms; k > 0; --k) sum = 1 + r * sum * T(1.0 / k);
  Bits bits;
  std::memcpy(&bits, &shifted, sizeof(T));
  bits = static_cast<Bits>((bits + bias) << mantissa);  // the low bits of `shifted` are n
  T power;
  std::memcpy(&power, &bits, sizeof(T));
  return sum * power;
}

// phi of n numbers, in place.
template <class T>
void features(T* x, int64_t n, int64_t feature) {
  if (feature == RELU)
    for (int64_t d = 0; d < n; ++d) x[d] = x[d] < 0 ? T(0) : x[d];
  else
    for (int64_t d = 0; d < n; ++d) x[d] = x[d] > 0 ? x[d] + 1 : exponential(x[d]);
}

// cos and sin of pi/2 p for n numbers p in [0, 1], by their series at 0; `sine` holds p before.
template <class T>
void cosines(int64_t n, T* cosine, T* sine) {
  constexpr int terms = sizeof(T) == 4 ? 7 : 12;
  for (int64_t r = 0; r < n; ++r) {
    const T x = sine[r] * HALF_PI<T>, square = x * x;
    T even = 1, odd = 1;
    for (int k = terms; k > 0; --k) {
      even = 1 - square * even * T(1.0 / ((2 * k - 1) * (2 * k)));
      odd = 1 - square * odd * T(1.0 / ((2 * k) * (2 * k + 1)));
    }
    cosine[r] = even;
    sine[r] = x * odd;
  }
}

// A square of one vector a row: riffling the first half of the rows with the second, as often as
// the width has binary digits, brings every column into a row.
#if defined(__GNUC__) && !defined(__clang__)
template <class T>
void square(const T* from, int64_t ldf, T* to, int64_t ldt, bool add) {
  constexpr int64_t w = W<T>;
  typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> Index;
  typedef Index Indices __attribute__((vector_size(BYTES)));
  Indices low, high;
  for (int64_t e = 0; e < w; ++e) {
    low[e] = e / 2 + (e % 2) * w;
    high[e] = low[e] + w / 2;
  }
  typedef T Full __attribute__((vector_size(BYTES)));
  Full x[w], y[w];
  for (int64_t r = 0; r < w; ++r) x[r] = at(from + r * ldf);
  for (int64_t step = 1; step < w; step *= 2) {
    for (int64_t r = 0; r < w / 2; ++r) {
      y[2 * r] = __builtin_shuffle(x[r], x[r + w / 2], low);
      y[2 * r + 1] = __builtin_shuffle(x[r], x[r + w / 2], high);
    }
    for (int64_t r = 0; r < w; ++r) x[r] = y[r];
  }
  for (int64_t r = 0; r < w; ++r) at(to + r * ldt) = add ? at(to + r * ldt) + x[r] : x[r];
}
#else
template <class T>
void square(const T* from, int64_t ldf, T* to, int64_t ldt, bool add) {
  for (int64_t r = 0; r < W<T>; ++r)
    for (int64_t e = 0; e < W<T>; ++e)
      to[r * ldt + e] = (add ? to[r * ldt + e] : T(0)) + from[e * ldf + r];
}
#endif

// to[column][row] (+)= from[row][column]; rows and columns are whole numbers of vectors.
template <class T>
void transpose(const T* from, int64_t ldf, int64_t rows, int64_t columns, T* to, int64_t ldt,
               bool add = false) {
  for (int64_t r = 0; r < rows; r += W<T>)
    for (int64_t e = 0; e < columns; e += W<T>)
      square(from + r * ldf + e, ldf, to + e * ldt + r, ldt, add);
}

template <class T, class S>
void convert(T* to, const S* from, int64_t n) {
  for (int64_t e = 0; e < n; ++e) to[e] = static_cast<T>(from[e]);
}

template <class T>
void load_row(T* to, const char* from, int64_t offset, int64_t n, int64_t type) {
  if constexpr (std::is_same_v<T, double>) {
    convert(to, reinterpret_cast<const double*>(from) + offset, n);
  } else {
    switch (type) {
      case FLOAT: return convert(to, reinterpret_cast<const float*>(from) + offset, n);
      case BFLOAT16: return convert(to, reinterpret_cast<const c10::BFloat16*>(from) + offset, n);
      case HALF: return convert(to, reinterpret_cast<const c10::Half*>(from) + offset, n);
    }
  }
}

template <class T>
void store_row(char* to, int64_t offset, const T* from, int64_t n, int64_t type) {
  if constexpr (std::is_same_v<T, double>) {
    convert(reinterpret_cast<double*>(to) + offset, from, n);
  } else {
    switch (type) {
      case FLOAT: return convert(reinterpret_cast<float*>(to) + offset, from, n);
      case BFLOAT16: return convert(reinterpret_cast<c10::BFloat16*>(to) + offset, from, n);
      case HALF: return convert(reinterpret_cast<c10::Half*>(to) + offset, from, n);
    }
  }
}

// Memory of one thread, kept between calls; it grows to what a call needs.
struct Scratch {
  std::unique_ptr<char, void (*)(void*)> memory{nullptr, std::free};
  int64_t size = 0;

  char* ready(int64_t bytes, bool poison) {
    if (size < bytes) {
      memory.reset();  // first, so that both are never held
      size = 0;
      memory.reset(static_cast<char*>(std::aligned_alloc(64, up(bytes, 64))));
      if (!memory) throw std::bad_alloc();
      size = bytes;
    }
    if (poison) std::memset(memory.get(), 0xff, bytes);  // all bits set: a NaN in every type
    return memory.get();
  }
};

// Queries i0..i1 beside keys j0..j1. Keys before j0 are in the state. `hidden`: some query must not
// see some of the tile's keys; else these go into the state before the queries read it.
struct Tile {
  int64_t i0, i1, j0, j1;
  bool hidden;
};

void cut(const int64_t* counts, int64_t i, int64_t i_end, int64_t j, int64_t limit,
         std::vector<Tile>& tiles) {
  while (i < i_end || j < limit) {
    int64_t i1 = i;
    while (i1 < i_end && i1 - i < C && counts[i1] <= j + C) ++i1;
    const int64_t j1 = i1 > i ? counts[i1 - 1] : std::min(j + C, limit);
    tiles.push_back({i, i1, j, j1, i1 > i && counts[i] < j1});
    i = i1;
    j = j1;
  }
}

// One head of one sequence, in the scratch memory of the thread that runs it.
template <class T>
class Head {
 public:
  Head(const Call& call, int64_t b, int64_t h, const int64_t* counts, bool forwards,
       Scratch& scratch)
      : c(call), b(b), h(h), counts(counts), D(call.width), E(call.values),
        R(call.turned ? 2 : 1), Dp(up(D, w)), Ep(up(E, w)), ldv(up(E + 1, w)), F(R * Dp),
        ahead(forwards ? C : -C) {
    const std::pair<T**, int64_t> arrays[] = {
        {&x_q, C * Dp},           {&x_k, C * Dp},         {&x_t, Dp * C},    {&wide_q, C * F},
        {&wide_k, C * F},         {&wide_t, F * C},       {&wide, C * F},    {&values, C * ldv},
        {&values_t, ldv * C},     {&found, C * ldv},      {&rows, C * Ep},   {&rows_t, ldv * C},
        {&weights, C * C},        {&grad_weights, C * C}, {&state, (E + 1) * F},
        {&line, std::max(Dp, Ep)}, {&cos_q, C},           {&sin_q, C},       {&cos_k, C},
        {&sin_k, C},              {&total, C}};
    int64_t size = 0;
    for (auto [array, n] : arrays) size += up(n, 64);
    T* next = reinterpret_cast<T*>(scratch.ready(size * sizeof(T), call.poison));
    for (auto [array, n] : arrays) {
      *array = next;
      next += up(n, 64);
    }
    if (R == 1) wide_q = x_q, wide_k = x_k, wide_t = x_t;
  }

  // The state from memory, [R D, E + 1]; null: empty.
  void begin(const T* sums) {
    const int64_t all = R * D * (E + 1);
    int filled = 0;
    for (int64_t n = 0; sums && n < all; ++n) filled |= sums[n] != 0;
    fresh = !filled;
    if (fresh) return;
    std::fill_n(state, (E + 1) * F, T(0));
    for (int64_t r = 0; r < R; ++r)
      for (int64_t d = 0; d < D; ++d)
        for (int64_t e = 0; e <= E; ++e)
          state[e * F + r * Dp + d] = sums[(r * D + d) * (E + 1) + e];
  }

  void end(T* sums) const {
    for (int64_t r = 0; r < R; ++r)
      for (int64_t d = 0; d < D; ++d)
        for (int64_t e = 0; e <= E; ++e)
          sums[(r * D + d) * (E + 1) + e] = fresh ? T(0) : state[e * F + r * Dp + d];
  }

  // The state as it lies here, [E + 1][F], for other pieces of the sequence.
  int64_t state_size() const { return (E + 1) * F; }
  void copy_state(T* to) const {
    if (fresh) std::fill_n(to, state_size(), T(0));
    else std::copy_n(state, state_size(), to);
  }
  void set_state(const T* from) {
    fresh = false;
    std::copy_n(from, state_size(), state);
  }

  // The keys of a tile, read into the state and nothing more.
  void absorb_keys(const Tile& t) {
    if (t.j0 == t.j1) return;
    load_keys(t, false);
    add_keys(t);
  }

  // What a tile's queries add to the gradient of the state, and nothing more.
  void absorb_queries(const Tile& t) {
    if (t.i0 == t.i1) return;
    load_queries(t, false);
    load_found(t);
    add_found(t);
  }

  // The output of a tile; `carry`: what follows needs the state after it.
  void forward(const Tile& t, bool carry) {
    const int64_t queries = t.i1 - t.i0, keys = t.j1 - t.j0, padded = up(queries, w);
    if (keys && (carry || queries)) {
      load_keys(t, false);
      if (!t.hidden) add_keys(t);
    }
    if (!queries) return;
    load_queries(t, true);
    std::fill_n(total, padded, T(0));
    if (t.hidden) {
      for (int64_t j = 0; j < keys; j += ROWS) {  // weights[j][i]
        const int64_t m = std::min<int64_t>(ROWS, keys - j), i = first_query(t, j) / w * w;
        strip(m, padded - i, D, x_k + j * Dp, Dp, int64_t(1), x_t + i, C, weights + j * C + i, C,
              false);
      }
      for (int64_t j = 0; j < keys; ++j) {
        T* row = weights + j * C;
        const int64_t first = first_query(t, j);
        turn(row, cos_k[j], sin_k[j], cos_q, sin_q, first, padded, padded);
        for (int64_t i = first / w * w; i < padded; i += w) at(total + i) += at(row + i);
      }
      for (int64_t i = 0; i < queries; i += ROWS) {
        const int64_t m = std::min<int64_t>(ROWS, queries - i);
        strip(m, Ep, seen(t, i + m - 1), weights + i, int64_t(1), C, values, ldv, rows + i * Ep, Ep,
              false);
      }
    }
    if (!fresh) {
      product(E + 1, padded, F, state, F, int64_t(1), wide_t, C, rows_t, C, false);
      for (int64_t i = 0; i < padded; i += w) at(total + i) += at(rows_t + E * C + i);
      transpose(rows_t, C, Ep, padded, rows, Ep, t.hidden);
    } else if (!t.hidden) {
      std::fill_n(rows, queries * Ep, T(0));
    }
    for (int64_t i = 0; i < queries; ++i) {
      const T scale = 1 / std::max(total[i], T(c.eps));
      for (int64_t e = 0; e < Ep; e += w) at(rows + i * Ep + e) *= scale;
      store_row(c.y.data, offset(c.y, t.i0 + i), rows + i * Ep, E, c.type);
      number(c.total, t.i0 + i) = total[i];
    }
    if (t.hidden && carry) add_keys(t);
  }

  // The gradients of a tile's queries, from the state before them.
  void backward_queries(const Tile& t, bool carry) {
    const int64_t queries = t.i1 - t.i0, keys = t.j1 - t.j0;
    if (keys && (carry || queries)) {
      load_keys(t, false);
      if (!t.hidden) add_keys(t);
    }
    if (!queries) return;
    load_queries(t, false);
    load_found(t);
    if (!fresh) product(queries, F, E + 1, found, ldv, int64_t(1), state, F, wide, F, false);
    else if (!t.hidden) std::fill_n(wide, queries * F, T(0));
    if (t.hidden) {
      differentiate_weights(t);
      for (int64_t f = 0; f < F; f += PANEL)
        for (int64_t i = 0; i < queries; i += ROWS) {
          const int64_t m = std::min<int64_t>(ROWS, queries - i);
          strip(m, std::min(PANEL, F - f), seen(t, i + m - 1), grad_weights + i * C, C, int64_t(1),
                wide_k + f, F, wide + i * F + f, F, !fresh);
        }
    }
    store_gradients(queries, t.i0, x_q, cos_q, sin_q, nullptr, c.dq, c.dp_q);
    if (t.hidden && carry) add_keys(t);
  }

  // The gradients of a tile's keys, from that of the state after them.
  void backward_keys(const Tile& t, bool carry) {
    const int64_t queries = t.i1 - t.i0, keys = t.j1 - t.j0, padded = up(keys, w);
    if (queries && (carry || keys)) {
      load_queries(t, false);
      load_found(t);
      if (!t.hidden) add_found(t);
    }
    if (!keys) return;
    load_keys(t, true);
    if (!fresh) {
      product(keys, F, E + 1, values, ldv, int64_t(1), state, F, wide, F, false);
      product(E, padded, F, state, F, int64_t(1), wide_t, C, rows_t, C, false);
      transpose(rows_t, C, Ep, padded, rows, Ep);
    } else if (!t.hidden) {
      std::fill_n(wide, keys * F, T(0));
      std::fill_n(rows, keys * Ep, T(0));
    }
    if (t.hidden) {
      for (int64_t i = 0; i < queries; i += ROWS) {  // weights[i][j]
        const int64_t m = std::min<int64_t>(ROWS, queries - i);
        strip(m, up(seen(t, i + m - 1), w), D, x_q + i * Dp, Dp, int64_t(1), x_t, C,
              weights + i * C, C, false);
      }
      for (int64_t i = 0; i < queries; ++i)
        turn(weights + i * C, cos_q[i], sin_q[i], cos_k, sin_k, 0, seen(t, i), padded);
      differentiate_weights(t);
      for (int64_t j = 0; j < keys; j += ROWS) {
        const int64_t m = std::min<int64_t>(ROWS, keys - j), i = first_query(t, j);
        strip(m, Ep, queries - i, weights + i * C + j, int64_t(1), C, found + i * ldv, ldv,
              rows + j * Ep, Ep, !fresh);
      }
      for (int64_t f = 0; f < F; f += PANEL)
        for (int64_t j = 0; j < keys; j += ROWS) {
          const int64_t m = std::min<int64_t>(ROWS, keys - j), i = first_query(t, j);
          strip(m, std::min(PANEL, F - f), queries - i, grad_weights + i * C + j, int64_t(1), C,
                wide_q + i * F + f, F, wide + j * F + f, F, !fresh);
        }
    }
    const uint8_t* real = mask();
    for (int64_t j = 0; j < keys; ++j) {
      if (real && !real[t.j0 + j]) std::fill_n(rows + j * Ep, E, T(0));
      store_row(c.dv.data, offset(c.dv, t.j0 + j), rows + j * Ep, E, c.type);
    }
    store_gradients(keys, t.j0, x_k, cos_k, sin_k, real, c.dk, c.dp_k);
    if (t.hidden && carry) add_found(t);
  }

  // No gradient reaches the keys j..end.
  void clear_keys(int64_t j, int64_t end) {
    std::fill_n(line, std::max(Dp, Ep), T(0));
    for (; j < end; ++j) {
      store_row(c.dk.data, offset(c.dk, j), line, D, c.type);
      store_row(c.dv.data, offset(c.dv, j), line, E, c.type);
      if (R == 2) number(c.dp_k, j) = 0;
    }
  }

 private:
  static constexpr int64_t w = W<T>, PANEL = COLUMNS * W<T>;
  const Call& c;
  const int64_t b, h;
  const int64_t* counts;
  const int64_t D, E, R, Dp, Ep, ldv, F;
  T *x_q, *x_k, *x_t, *wide_q, *wide_k, *wide_t, *wide, *values, *values_t, *found, *rows, *rows_t;
  T *weights, *grad_weights, *state, *line, *cos_q, *sin_q, *cos_k, *sin_k, *total;
  const int64_t ahead;  // from a tile to the next, in rows
  bool fresh = true;  // the state is empty, and its memory holds nothing

  int64_t offset(const View& view, int64_t row) const {
    return b * view.batch + h * view.head + row * view.row;
  }
  T& number(const View& view, int64_t row) const {
    return reinterpret_cast<T*>(view.data)[offset(view, row)];
  }
  const uint8_t* mask() const { return c.mask ? c.mask + b * c.keys : nullptr; }

  // How many keys of the tile its query i sees, and which query is the first to see its key j.
  int64_t seen(const Tile& t, int64_t i) const { return counts[t.i0 + i] - t.j0; }
  int64_t first_query(const Tile& t, int64_t j) const {
    return std::upper_bound(counts + t.i0, counts + t.i1, t.j0 + j) - (counts + t.i0);
  }

  // cos and sin of the proportions; zero for what is not real.
  void rotate(const View& p, int64_t row, int64_t n, const uint8_t* real, T* cosine,
              T* sine) const {
    if (R == 1) return;
    for (int64_t r = 0; r < n; ++r) sine[r] = number(p, row + r);
    std::fill(sine + n, sine + up(n, w), T(0));
    cosines(up(n, w), cosine, sine);
    for (int64_t r = 0; real && r < n; ++r)
      if (!real[row + r]) cosine[r] = sine[r] = 0;
  }

  // A row of a tensor, while the same row of the tile that comes next is called for.
  void load(const View& from, int64_t row, int64_t n, T* to) const {
    const int64_t here = offset(from, row), size = SIZES[c.type];
    const char* next = from.data + (here + ahead * from.row) * size;
    for (int64_t byte = 0; byte < n * size; byte += 64) __builtin_prefetch(next + byte, 0, 2);
    load_row(to, from.data, here, n, c.type);
  }

  // phi of rows of q or k, padded with zeros.
  void load_features(const View& from, int64_t row, int64_t n, const uint8_t* real, T* x) const {
    for (int64_t r = 0; r < n; ++r) {
      T* to = x + r * Dp;
      if (real && !real[row + r]) {
        std::fill_n(to, Dp, T(0));
        continue;
      }
      load(from, row + r, D, to);
      features(to, D, c.feature);
      std::fill(to + D, to + Dp, T(0));
    }
    std::fill_n(x + n * Dp, (up(n, w) - n) * Dp, T(0));
  }

  // The factors of phi: wide[r] = [cos x[r], sin x[r]], and the same of the transposed x.
  void widen(const T* x, int64_t n, const T* cosine, const T* sine, T* to) const {
    if (R == 1) return;
    for (int64_t r = 0; r < n; ++r)
      for (int64_t d = 0; d < Dp; d += w) {
        at(to + r * F + d) = cosine[r] * at(x + r * Dp + d);
        at(to + r * F + Dp + d) = sine[r] * at(x + r * Dp + d);
      }
  }
  void widen_transposed(const T* x, int64_t n, const T* cosine, const T* sine) {
    transpose(x, Dp, up(n, w), Dp, x_t, C);
    if (R == 1 || fresh) return;
    for (int64_t d = 0; d < Dp; ++d)
      for (int64_t r = 0; r < n; r += w) {
        at(wide_t + d * C + r) = at(cosine + r) * at(x_t + d * C + r);
        at(wide_t + (Dp + d) * C + r) = at(sine + r) * at(x_t + d * C + r);
      }
  }

  void load_queries(const Tile& t, bool transposed) {
    const int64_t n = t.i1 - t.i0;
    rotate(c.p_q, t.i0, n, nullptr, cos_q, sin_q);
    load_features(c.q, t.i0, n, nullptr, x_q);
    if (transposed) widen_transposed(x_q, n, cos_q, sin_q);
    else widen(x_q, n, cos_q, sin_q, wide_q);
  }

  void load_keys(const Tile& t, bool transposed) {
    const int64_t n = t.j1 - t.j0;
    const uint8_t* real = mask();
    rotate(c.p_k, t.j0, n, real, cos_k, sin_k);
    load_features(c.k, t.j0, n, real, x_k);
    if (transposed) widen_transposed(x_k, n, cos_k, sin_k);
    else widen(x_k, n, cos_k, sin_k, wide_k);
    for (int64_t j = 0; j < n; ++j) {
      T* to = values + j * ldv;
      if (real && !real[t.j0 + j]) std::fill_n(to, E, T(0));
      else load(c.v, t.j0 + j, E, to);
      to[E] = 1;
      std::fill(to + E + 1, to + ldv, T(0));
    }
    std::fill_n(values + n * ldv, (up(n, w) - n) * ldv, T(0));
  }

  // Gradients of a tile's numerators and totals, side by side as the values and their one.
  void load_found(const Tile& t) {
    const int64_t n = t.i1 - t.i0;
    for (int64_t i = 0; i < n; ++i) {
      T* to = found + i * ldv;
      load(c.grad_y, t.i0 + i, E, to);
      std::fill(to + E, to + ldv, T(0));
      load(c.y, t.i0 + i, E, line);
      std::fill(line + E, line + Ep, T(0));
      const T weight = number(c.total, t.i0 + i), eps = T(c.eps);
      const T scale = 1 / std::max(weight, eps);
      for (int64_t e = 0; e < Ep; e += w) at(to + e) *= scale;
      const T along = dot(to, line, Ep);
      to[E] = weight < eps ? T(0) : -along;
    }
    std::fill_n(found + n * ldv, (up(n, w) - n) * ldv, T(0));
  }

  // Scores to weights: times the cosine of the difference of angles between first and last, which
  // alone are seen; zero outside.
  void turn(T* row, T cosine, T sine, const T* cosines, const T* sines, int64_t first, int64_t last,
            int64_t n) const {
    const int begin = first, end = last;
    if (R == 1)
      for (int i = 0; i < n; ++i) row[i] = i >= begin && i < end ? row[i] : T(0);
    else
      for (int i = 0; i < n; ++i) {
        const T weight = row[i] * (cosine * cosines[i] + sine * sines[i]);
        row[i] = i >= begin && i < end ? weight : T(0);
      }
  }

  // grad_weights[i][j], zero where query i does not see key j.
  void differentiate_weights(const Tile& t) {
    const int64_t queries = t.i1 - t.i0, padded = up(t.j1 - t.j0, w);
    transpose(values, ldv, padded, Ep, values_t, C);
    std::fill_n(values_t + E * C, padded, T(1));
    for (int64_t i = 0; i < queries; i += ROWS) {
      const int64_t m = std::min<int64_t>(ROWS, queries - i);
      strip(m, up(seen(t, i + m - 1), w), E + 1, found + i * ldv, ldv, int64_t(1), values_t, C,
            grad_weights + i * C, C, false);
      for (int64_t r = i; r < i + m; ++r)
        std::fill(grad_weights + r * C + seen(t, r), grad_weights + r * C + padded, T(0));
    }
  }

  void add_keys(const Tile& t) {
    product(E + 1, F, t.j1 - t.j0, values, int64_t(1), ldv, wide_k, F, state, F, !fresh);
    fresh = false;
  }
  void add_found(const Tile& t) {
    product(E + 1, F, t.i1 - t.i0, found, int64_t(1), ldv, wide_q, F, state, F, !fresh);
    fresh = false;
  }

  // From the gradient of n widened rows, `wide`, to those of the rows and of their proportions.
  void store_gradients(int64_t n, int64_t row, const T* x, const T* cosine, const T* sine,
                       const uint8_t* real, const View& dx, const View& dp) {
    for (int64_t r = 0; r < n; ++r) {
      const T* phi = x + r * Dp;
      T* grad = wide + r * F;
      if (R == 2) {
        Vec<T> slope = {};
        for (int64_t d = 0; d < Dp; d += w) {
          const Vec<T> even = at(grad + d), odd = at(grad + Dp + d);
          at(grad + d) = cosine[r] * even + sine[r] * odd;
          slope += at(phi + d) * (cosine[r] * odd - sine[r] * even);
        }
        T sum = 0;
        for (int64_t e = 0; e < w; ++e) sum += slope[e];
        number(dp, row + r) = real && !real[row + r] ? T(0) : HALF_PI<T> * sum;
      }
      if (real && !real[row + r]) std::fill_n(grad, D, T(0));
      else if (c.feature == RELU)
        for (int64_t d = 0; d < D; ++d) grad[d] = phi[d] <= 0 ? T(0) : grad[d];
      else
        for (int64_t d = 0; d < D; ++d) grad[d] *= std::min(phi[d], T(1));
      store_row(dx.data, offset(dx, row + r), grad, D, c.type);
    }
  }
};

// Tokens that see each other and no others: a row of the batch, or a packed document.
struct Sequence {
  int64_t b;
  const int64_t* counts;
  const std::vector<Tile>* tiles;
  int64_t limit, end;  // keys from limit to end are in no tile
};

struct Plan {
  std::vector<std::vector<Tile>> tiles;
  std::vector<Sequence> sequences;

  explicit Plan(const Call& c) {
    const int64_t several = c.documents ? c.documents : c.batch;
    const bool shared = !c.documents && !c.count_stride;
    tiles.resize(shared ? std::min<int64_t>(several, 1) : several);
    for (int64_t n = 0; n < several; ++n) {
      const int64_t* counts = c.counts + (c.documents ? 0 : n * c.count_stride);
      const int64_t start = c.documents ? c.bounds[n] : 0;
      const int64_t i_end = c.documents ? c.bounds[n + 1] : c.queries;
      const int64_t j_end = c.documents ? i_end : c.keys;
      const int64_t limit = c.whole ? j_end : start < i_end ? counts[i_end - 1] : start;
      std::vector<Tile>& own = tiles[shared ? 0 : n];
      if (!shared || n == 0) cut(counts, start, i_end, start, limit, own);
      sequences.push_back({c.documents ? 0 : n, counts, &own, limit, j_end});
    }
  }
};

Scratch& scratch_of_thread() {
  thread_local Scratch scratch;
  return scratch;
}

// A call: its heads run beside each other, and where these are fewer than the threads, each is cut
// into pieces, whose states are found first.
template <class T>
class Run {
 public:
  explicit Run(const Call& call) : c(call), plan(call) {
    heads = c.heads * static_cast<int64_t>(plan.sequences.size());
    const int64_t threads = at::get_num_threads();
    if (!c.documents && heads && heads < threads) {
      const int64_t tiles = static_cast<int64_t>(plan.tiles[0].size());
      pieces = std::clamp<int64_t>(std::min((threads + heads - 1) / heads, tiles / 8), 1, threads);
    }
  }

  void forward() {
    states(true);
    each(true, [&](Head<T>& head, const Sequence& s, int64_t from, int64_t to, bool last,
                   int64_t place) {
      start(head, place, c.sums);
      const bool after = last && c.after;
      for (int64_t t = from; t < to; ++t) head.forward((*s.tiles)[t], after || t + 1 < to);
      if (after) head.end(at_head(c.after, place));
    });
  }

  void backward() {
    states(true);
    each(true, [&](Head<T>& head, const Sequence& s, int64_t from, int64_t to, bool, int64_t place) {
      start(head, place, c.sums);
      for (int64_t t = from; t < to; ++t) head.backward_queries((*s.tiles)[t], t + 1 < to);
    });
    states(false);
    each(false, [&](Head<T>& head, const Sequence& s, int64_t from, int64_t to, bool last,
                    int64_t place) {
      start(head, place, c.grad_after);
      const bool before = place % pieces == 0 && c.grad_sums;
      for (int64_t t = to - 1; t >= from; --t)
        head.backward_keys((*s.tiles)[t], before || t > from);
      if (before) head.end(at_head(c.grad_sums, place));
      if (last) head.clear_keys(s.limit, s.end);
    });
  }

 private:
  const Call& c;
  const Plan plan;
  int64_t heads = 0, pieces = 1;
  std::vector<T> between;  // the state at the start of each piece, [heads][pieces][E + 1][F]
  int64_t state_size = 0;

  // The state of a head in a tensor [B, H, R D, E + 1]; packed documents have none.
  T* at_head(const void* sums, int64_t place) const {
    if (!sums || c.documents) return nullptr;
    const int64_t size = c.width * (c.turned ? 2 : 1) * (c.values + 1);
    return const_cast<T*>(static_cast<const T*>(sums)) + place / pieces * size;
  }

  template <class F>
  void each(bool forwards, const F& work) const {
    at::parallel_for(0, heads * pieces, 1, [&](int64_t begin, int64_t end) {
      Scratch& scratch = scratch_of_thread();
      for (int64_t place = begin; place < end; ++place) {
        const Sequence& s = plan.sequences[place / pieces / c.heads];
        const int64_t piece = place % pieces, tiles = static_cast<int64_t>(s.tiles->size());
        Head<T> head(c, s.b, place / pieces % c.heads, s.counts, forwards, scratch);
        work(head, s, tiles * piece / pieces, tiles * (piece + 1) / pieces, piece + 1 == pieces,
             place);
      }
    });
  }

  void start(Head<T>& head, int64_t place, const void* sums) const {
    if (pieces > 1) head.set_state(between.data() + place * state_size);
    else head.begin(at_head(sums, place));
  }

  // Find the state before each piece, or the gradient of the state after each piece: what each
  // piece adds is put where the next one starts, and summed up along the sequence.
  void states(bool before) {
    if (pieces == 1) return;
    state_size = (c.values + 1) * (c.turned ? 2 : 1) * up(c.width, W<T>);
    between.resize(heads * pieces * state_size);
    const int64_t first = before ? 0 : pieces - 1, step = before ? 1 : -1;
    each(true, [&](Head<T>& head, const Sequence& s, int64_t from, int64_t to, bool, int64_t place) {
      const int64_t piece = place % pieces, next = piece + step;
      if (piece == first) {
        head.begin(at_head(before ? c.sums : c.grad_after, place));
        head.copy_state(between.data() + place * state_size);
      }
      if (next < 0 || next == pieces) return;
      head.begin(nullptr);
      for (int64_t t = from; t < to; ++t)
        before ? head.absorb_keys((*s.tiles)[t]) : head.absorb_queries((*s.tiles)[t]);
      head.copy_state(between.data() + (place + step) * state_size);
    });
    for (int64_t head = 0; head < heads; ++head)
      for (int64_t n = 1; n < pieces; ++n) {
        T* own = between.data() + (head * pieces + first + n * step) * state_size;
        for (int64_t e = 0; e < state_size; ++e) own[e] += own[e - step * state_size];
      }
  }
};

// A state of F rows of L numbers takes in a key, after = before + k v^T, and is read, found = q after:
// N vectors of columns, of which the last begins at `last`.
template <class T, int N>
void advance(int64_t F, int64_t L, const T* k, const T* q, const T* v, const T* before, T* after,
             T* found, int64_t last) {
  Vec<T> value[N], sum[N];
  const auto column = [&](int n) { return n + 1 < N ? n * W<T> : last; };
  for (int n = 0; n < N; ++n) value[n] = at(v + column(n)), sum[n] = Vec<T>{};
  for (int64_t f = 0; f < F; ++f, before += L, after += L)
    for (int n = 0; n < N; ++n) {
      const Vec<T> state = at(before + column(n)) + k[f] * value[n];
      at(after + column(n)) = state;
      sum[n] += q[f] * state;
    }
  for (int n = 0; n < N; ++n) at(found + column(n)) = sum[n];
}

// All columns. The last vector ends with the row: what it shares with the one before is found twice.
template <class T>
void advance(int64_t F, int64_t L, const T* k, const T* q, const T* v, const T* before, T* after,
             T* found) {
  for (int64_t e = 0; L < W<T> && e < L; ++e) {
    T sum = 0;
    for (int64_t f = 0; f < F; ++f) {
      after[f * L + e] = before[f * L + e] + k[f] * v[e];
      sum += q[f] * after[f * L + e];
    }
    found[e] = sum;
  }
  constexpr int most = 5;
  for (int64_t e = 0; L >= W<T> && e < L; e += most * W<T>) {
    const int64_t vectors = std::min<int64_t>(most, (L - e + W<T> - 1) / W<T>);
    const int64_t last = std::min((vectors - 1) * W<T>, L - W<T> - e);
    const auto some = [&](auto run) { run(F, L, k, q, v + e, before + e, after + e, found + e, last); };
    switch (vectors) {
      case 1: some(advance<T, 1>); break;
      case 2: some(advance<T, 2>); break;
      case 3: some(advance<T, 3>); break;
      case 4: some(advance<T, 4>); break;
      case 5: some(advance<T, 5>); break;
    }
  }
}

// One step of decoding, of up to C heads at a time.
template <class T>
class Stepper {
 public:
  Stepper(const Step& call, Scratch& scratch)
      : c(call), D(call.width), E(call.values), R(call.turned ? 2 : 1), Dp(up(D, w)),
        hidden(up(std::max<int64_t>({call.leap_q.hidden, call.leap_k.hidden, 1}), w)) {
    const std::pair<T**, int64_t> arrays[] = {
        {&x_q, C * Dp},       {&x_k, C * Dp},    {&cos_q, C},    {&sin_q, C},
        {&cos_k, C},          {&sin_k, C},       {&wide_q, R * D}, {&wide_k, R * D},
        {&value, E + 1},      {&found, E + 1},   {&w1, hidden * Dp}, {&w1_t, Dp * hidden},
        {&b1, hidden},        {&w2, hidden},     {&inside, C * hidden}};
    int64_t size = 0;
    for (auto [array, n] : arrays) size += up(n, 64);
    T* next = reinterpret_cast<T*>(scratch.ready(size * sizeof(T), call.poison));
    for (auto [array, n] : arrays) {
      *array = next;
      next += up(n, 64);
    }
  }

  // The heads first..first + n of all in the batch, n <= C.
  void run(int64_t first, int64_t n) {
    load(c.q, c.p_q, c.leap_q, first, n, x_q, cos_q, sin_q);
    load(c.k, c.p_k, c.leap_k, first, n, x_k, cos_k, sin_k);
    for (int64_t r = 0; r < n; ++r) {
      const int64_t head = first + r, place = head * R * D * (E + 1);
      const bool real = !c.mask || c.mask[head / c.heads];
      widen(x_q + r * Dp, cos_q[r], sin_q[r], wide_q);
      if (real) {
        widen(x_k + r * Dp, cos_k[r], sin_k[r], wide_k);
        load_row(value, c.v.data, offset(c.v, head), E, c.type);
        value[E] = 1;
      } else {
        std::fill_n(wide_k, R * D, T(0));
        std::fill_n(value, E + 1, T(0));
      }
      advance(R * D, E + 1, wide_k, wide_q, value, static_cast<const T*>(c.sums) + place,
              static_cast<T*>(c.after) + place, found);
      const T scale = 1 / std::max(found[E], T(c.eps));
      for (int64_t e = 0; e < E; ++e) found[e] *= scale;
      store_row(c.y.data, offset(c.y, head), found, E, c.type);
    }
  }

 private:
  static constexpr int64_t w = W<T>;
  const Step& c;
  const int64_t D, E, R, Dp, hidden;
  T *x_q, *x_k, *cos_q, *sin_q, *cos_k, *sin_k, *wide_q, *wide_k, *value, *found, *w1, *w1_t, *b1,
      *w2, *inside;

  int64_t offset(const View& view, int64_t head) const {
    return head / c.heads * view.batch + head % c.heads * view.head;
  }

  void load_features(const View& from, int64_t first, int64_t n, int64_t feature, T* x) const {
    for (int64_t r = 0; r < n; ++r) {
      load_row(x + r * Dp, from.data, offset(from, first + r), D, c.type);
      features(x + r * Dp, D, feature);
      std::fill(x + r * Dp + D, x + (r + 1) * Dp, T(0));
    }
  }

  // phi of the queries or keys, and cos and sin of their proportions, given or learned.
  void load(const View& from, const View& p, const Leap& leap, int64_t first, int64_t n, T* x,
            T* cosine, T* sine) {
    load_features(from, first, n, leap.w1 ? RELU : c.feature, x);
    if (leap.w1) {
      learned(leap, x, n, sine);
      if (c.feature != RELU) load_features(from, first, n, c.feature, x);
    } else if (R == 2) {
      for (int64_t r = 0; r < n; ++r)
        sine[r] = reinterpret_cast<const T*>(p.data)[offset(p, first + r)];
    }
    if (R == 2) cosines(n, cosine, sine);
  }

  // LeaP: p = sigmoid(W2 relu(W1 x + b1) + b2) of n rows x = relu(q) or relu(k).
  void learned(const Leap& leap, const T* x, int64_t n, T* p) {
    const bool two = leap.w2;
    const int64_t r = leap.hidden, rp = up(r, w);
    std::fill_n(w1, rp * Dp, T(0));
    for (int64_t j = 0; j < r; ++j) load_row(w1 + j * Dp, leap.w1, j * D, D, c.type);
    std::fill_n(b1, rp, T(0));
    load_row(b1, leap.b1, 0, r, c.type);
    if (two) {
      T last;
      load_row(&last, leap.b2, 0, 1, c.type);
      std::fill_n(w2, rp, T(0));
      load_row(w2, leap.w2, 0, r, c.type);
      transpose(w1, Dp, rp, Dp, w1_t, rp);
      for (int64_t i = 0; i < n; ++i) std::copy_n(b1, rp, inside + i * rp);
      product(n, rp, D, x, Dp, int64_t(1), w1_t, rp, inside, rp, true);
      features(inside, n * rp, RELU);
      for (int64_t i = 0; i < n; ++i) p[i] = dot(inside + i * rp, w2, rp) + last;
    } else {
      for (int64_t i = 0; i < n; ++i) p[i] = dot(x + i * Dp, w1, Dp) + b1[0];
    }
    for (int64_t i = 0; i < n; ++i) {
      const T small = exponential(-std::abs(p[i]));
      p[i] = (p[i] < 0 ? small : T(1)) / (1 + small);
    }
  }

  void widen(const T* x, T cosine, T sine, T* to) const {
    for (int64_t d = 0; d < D; ++d) to[d] = R == 1 ? x[d] : cosine * x[d];
    for (int64_t d = 0; R == 2 && d < D; ++d) to[D + d] = sine * x[d];
  }
};

template <class T>
void step(const Step& c) {
  const int64_t size = c.width * (c.turned ? 2 : 1) * (c.values + 1);
  const int64_t worth_a_thread = std::max<int64_t>(1, (1 << 17) / std::max<int64_t>(size, 1));
  at::parallel_for(0, c.batch * c.heads, worth_a_thread, [&](int64_t begin, int64_t end) {
    Stepper<T> stepper(c, scratch_of_thread());
    for (; begin < end; begin += C) stepper.run(begin, std::min(C, end - begin));
  });
}

template <class T>
void run(const Call& call, bool backward) {
  Run<T> run(call);
  backward ? run.backward() : run.forward();
}

}  // namespace

// Both give 0, or 1 where memory ran out.
extern "C" int leapformer_attention(const Call* call, int backward) {
  try {
    call->type == DOUBLE ? run<double>(*call, backward) : run<float>(*call, backward);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

extern "C" int leapformer_step(const Step* call) {
  try {
    call->type == DOUBLE ? step<double>(*call) : step<float>(*call);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}
