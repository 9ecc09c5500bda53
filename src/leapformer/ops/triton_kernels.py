"""The chunked algorithm as Triton kernels: forward and backward on a GPU.

Keys are cut into chunks of `CHUNK`. One program a chunk sums k'^T [v, 1]; a scan over the chunks
turns the sums into the state before each; then one program a tile of queries reads the last state
whose keys all of its queries see, and visits the few chunks that only some of them see. That serves
every visibility: causal queries visit one or two chunks, under wait-k a tile visits the chunks it
spans, and where all is visible there is nothing left to visit. The backward pass is the same thing
twice: once for the queries, and once mirrored, with states of q'^T [g, g_total] that come from the
end, for the keys.

The widened vectors are never formed. x' = [phi(x) cos a; phi(x) sin a], so a product with a state
is two products of width D scaled by row, and the score of a pair is one product of width D times
cos a cos b + sin a sin b. In half precision each product has one factor that was given (phi(q),
phi(k), v, g): products of two such run in their own dtype, the others in `SUM`, and states are
summed from float32 factors. All add up in float32.

Nothing is read from a table: a program knows from its number which tokens it has, and counts from
the rule what its queries see. Only documents packed into one row bring a table, since tiles and
chunks do not cross their bounds (they are segments; the scan begins anew in each), and a visibility
that is no rule brings its counts.

A state of the kernels is each half's values [D, E] and then its normaliser [D], so that rows begin
at whole vectors; the scan translates from and to the sums [F, E + 1] of a `LeapState`.

Letters: B batch, H heads, N queries, S keys, D key width, E value width, F the width of x' (2D, or
D without proportions).
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Are these kernels made for Triton's interpreter, which runs on a CPU?"""

# Branches on what is known when a kernel is compiled have their `else` also where the `if` returns:
# only then does the compiler leave the other one out.

# Arguments that change from call to call and that no memory access is aligned by: a kernel compiled
# for one value serves all.
_ANY = ["queries", "keys", "length", "heads", "many", "tiles", "size", "start", "step", "lookahead"]


@triton.jit
def _rows(base, rows, there, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """[rows, BLOCK] of a matrix whose rows are `stride` apart; zeros where nothing is there."""
    columns = tl.arange(0, BLOCK)
    keep = there[:, None] & (columns[None, :] < WIDTH)
    at = rows.to(tl.int64)[:, None] * stride + columns[None, :]
    return tl.load(base + at, mask=keep, other=0.0)


@triton.jit
def _store_rows(base, x, rows, there, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    keep = there[:, None] & (columns[None, :] < WIDTH)
    tl.store(base + rows.to(tl.int64)[:, None] * stride + columns[None, :], x, mask=keep)


@triton.jit
def _phi(x, D: tl.constexpr, BLOCK: tl.constexpr, ELU: tl.constexpr):
    """The feature map of rows [..., BLOCK], in their dtype; zeros beyond D. NaN stays NaN."""
    y = x.to(tl.float32)
    if ELU:
        y = tl.where(y > 0, y + 1.0, tl.exp(tl.where(y > 0, 0.0, y)))
        y = tl.where(tl.arange(0, BLOCK)[None, :] < D, y, 0.0)
    else:
        y = tl.where(y < 0, 0.0, y)
    return y.to(x.dtype)


@triton.jit
def _phi_backward(grad, phi, ELU: tl.constexpr):
    """The gradient for x, from that for phi(x): the slope can be read off phi itself."""
    phi = phi.to(tl.float32)
    if ELU:
        return grad * tl.minimum(phi, 1.0)
    else:
        return tl.where(phi > 0, grad, 0.0)


@triton.jit
def _cos_sin(p):
    """cos and sin of pi/2 * p for p in [0, 1], within 1.5e-7: Taylor's series around 1/2. (The
    general functions of a GPU would take most of a kernel's registers.)"""
    y = (p - 0.5) * 1.5707963267948966
    s = y * y
    cos = 1.0 + s * (-1 / 2 + s * (1 / 24 + s * (-1 / 720 + s * (1 / 40320 - s / 3628800))))
    sin = y * (1.0 + s * (-1 / 6 + s * (1 / 120 + s * (-1 / 5040 + s / 362880))))
    return 0.7071067811865476 * (cos - sin), 0.7071067811865476 * (cos + sin)


@triton.jit
def _turn(p, rows, there, P: tl.constexpr):
    """cos and sin of the rows' angles; of padding both are 0, so that it weighs nothing."""
    if P:
        cos, sin = _cos_sin(tl.load(p + rows, mask=there, other=0.0).to(tl.float32))
        return tl.where(there, cos, 0.0), tl.where(there, sin, 0.0)
    else:
        return tl.where(there, 1.0, 0.0), tl.zeros_like(there.to(tl.float32))


@triton.jit
def _cosines(cos_i, sin_i, cos_j, sin_j, P: tl.constexpr):
    """cos(a_i - b_j), for all pairs."""
    if P:
        return cos_i[:, None] * cos_j[None, :] + sin_i[:, None] * sin_j[None, :]
    else:
        return cos_i[:, None] * cos_j[None, :]


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    """a @ b, added up in float32. The interpreter takes the bits of bfloat16 for whole numbers, and
    is given their values, which come to the same."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _factor(x, SUM: tl.constexpr, PRECISION: tl.constexpr):
    """x as a factor of a product in `SUM`. Tensor cores cut tf32 off after ten bits, which would
    make all sums too small, so it is rounded before; NaN stays NaN."""
    x = x.to(SUM)
    if SUM == tl.float32 and PRECISION == "tf32":  # noqa: SIM300
        rounded = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
        return tl.where(x == x, rounded.to(tl.float32, bitcast=True), x)
    else:
        return x


@triton.jit
def _mix(a, b, SUM: tl.constexpr, PRECISION: tl.constexpr):
    """a @ b, where one of them was computed: its range may be that of float32."""
    return _dot(_factor(a, SUM, PRECISION), _factor(b, SUM, PRECISION), PRECISION)


@triton.jit
def _state(
    sums, half, D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    SUM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One half (0 cos, 1 sin) of a state: values [BLOCK_D, BLOCK_E], as factors, and normaliser
    [BLOCK_D]."""
    rows, columns = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    at = sums + half * D * (E + 1)
    keep = (rows[:, None] < D) & (columns[None, :] < E)
    values = tl.load(at + rows[:, None] * E + columns[None, :], mask=keep, other=0.0)
    norm = tl.load(at + D * E + rows, mask=rows < D, other=0.0)
    return _factor(values, SUM, PRECISION), norm


@triton.jit
def _segment(table, tile, length, DOCS: tl.constexpr, CHUNK: tl.constexpr):
    """Of a tile in a row of so many tokens: its first token, and its segment's first token, the one
    behind its last, and its first state. `table` [T, 4] holds them, of documents."""
    if DOCS:
        at = table + 4 * tile
        return tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)
    else:
        return tile * CHUNK, 0, length, 0


@triton.jit
def _seen(counts, i, begin, end, size, start, step, lookahead, RULE: tl.constexpr):
    """How many keys the queries i see: by the rule of `Visible`, in a segment of these bounds, or
    as `counts` says."""
    if RULE:
        unit = tl.minimum((i - begin) // size + start, end - begin).to(tl.int64)
        return (begin + tl.minimum(unit * step + lookahead, end - begin)).to(tl.int32)
    else:
        return tl.load(counts + i)


@triton.jit
def _first(key, low, stop, counts, begin, end, size, start, step, lookahead, RULE: tl.constexpr):
    """The first of the queries low..stop that sees this key; `stop`, if none does."""
    while low < stop:
        middle = (low + stop) // 2
        sees = _seen(counts, middle, begin, end, size, start, step, lookahead, RULE) > key
        stop = tl.where(sees, middle, stop)
        low = tl.where(sees, low, middle + 1)
    return low


@triton.jit
def _last_key(
    counts, first, stop, begin, end, size, start, step, lookahead, RULE: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """The end of the keys of a segment that count: of all with WHOLE, where the state is wanted,
    else of those that one of its queries first..stop sees."""
    if WHOLE:
        return end
    else:
        last = tl.maximum(stop - 1, first)
        seen = _seen(counts, last, begin, end, size, start, step, lookahead, RULE)
        return tl.where(stop > first, seen, begin)


@triton.jit
def _tile(
    counts, table, queries, keys, heads, tiles, size, start, step, lookahead,
    ROWS: tl.constexpr, RULE: tl.constexpr, DOCS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The tile of queries of this program: row of the grid, batch, head, the queries, which are
    there and how many keys each sees; the first key that one of them may not see (a chunk's bound),
    the one behind the last that one sees, and the state that holds all before."""
    row, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    b, h = row // heads, row % heads
    counts += b * queries if ROWS else 0
    first, begin, stop, state = _segment(table, tile, queries, DOCS, CHUNK)
    end = stop if DOCS else keys
    last = tl.minimum(first + CHUNK, stop) - 1
    rows = first + tl.arange(0, CHUNK)
    near = tl.minimum(rows, last)
    seen = _seen(counts, near, begin, end, size, start, step, lookahead, RULE)
    least = _seen(counts, first, begin, end, size, start, step, lookahead, RULE)
    most = _seen(counts, last, begin, end, size, start, step, lookahead, RULE)
    whole = (least - begin) // CHUNK
    return row, b, h, rows, rows < stop, seen, begin + whole * CHUNK, most, state + whole


@triton.jit
def _store_state(
    sums, half, wide, scale, y, one, D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """wide^T [scale * y, one] into one half of a state."""
    rows, columns = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    at = sums + half * D * (E + 1)
    keep = (rows[:, None] < D) & (columns[None, :] < E)
    scaled = _factor(wide * scale[:, None], tl.float32, PRECISION)
    values = _dot(tl.trans(scaled), y, PRECISION)
    tl.store(at + rows[:, None] * E + columns[None, :], values, mask=keep)
    tl.store(at + D * E + rows, tl.sum(wide * one[:, None], 0), mask=rows < D)


@triton.jit(do_not_specialize=_ANY)
def _sum_chunks(
    x, p, y, total, along, mask, counts, table, states, eps,
    xb, xh, xn, yb, yh, yn, length, queries, heads, tiles, many, size, start, step, lookahead,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    P: tl.constexpr, MASK: tl.constexpr, GRAD: tl.constexpr, ELU: tl.constexpr,
    ROWS: tl.constexpr, RULE: tl.constexpr, DOCS: tl.constexpr, WHOLE: tl.constexpr,
    PRECISION: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The sum of x'^T [y, 1] over a chunk of keys, into the place of the state behind it. With GRAD
    the rows are queries, y and 1 the gradients of numerator and total, and the place that of the
    state before."""
    row, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    b, h = row // heads, row % heads
    first, begin, end, state = _segment(table, tile, length, DOCS, CHUNK)
    rows = first + tl.arange(0, CHUNK)
    if GRAD:
        there = rows < end
    else:
        stop = end if DOCS else queries
        there = rows < _last_key(
            counts + (b * queries if ROWS else 0),
            begin, stop, begin, end, size, start, step, lookahead, RULE, WHOLE,
        )  # fmt: skip
    if MASK:
        there = there & (tl.load(mask + b * length + rows, mask=there, other=0) != 0)
    cos, sin = _turn(p + row * length, rows, there, P)
    x = _rows(x + b * xb + h * xh, rows, there, xn, D, BLOCK_D).to(tl.float32)
    x = _phi(x, D, BLOCK_D, ELU)
    y = _rows(y + b * yb + h * yh, rows, there, yn, E, BLOCK_E).to(tl.float32)
    one = tl.where(there, 1.0, 0.0)
    scale = one
    if GRAD:
        scale = 1.0 / tl.maximum(tl.load(total + row * length + rows, mask=there, other=1.0), eps)
        one = tl.load(along + row * length + rows, mask=there, other=0.0)
    place = state + (first - begin) // CHUNK + (0 if GRAD else 1)
    at = states + (row * many + place) * ((2 if P else 1) * D * (E + 1))
    _store_state(at, 0, x * cos[:, None], scale, y, one, D, E, BLOCK_D, BLOCK_E, PRECISION)
    if P:
        _store_state(at, 1, x * sin[:, None], scale, y, one, D, E, BLOCK_D, BLOCK_E, PRECISION)


@triton.jit(do_not_specialize=["chunks", "segments", "many"])
def _scan(
    states, before, after, table, chunks, segments, many,
    D: tl.constexpr, E: tl.constexpr, SIZE: tl.constexpr, REVERSE: tl.constexpr,
    DOCS: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of chunks to the state before each: running sums, from the end with REVERSE, beginning
    with `before` in a row, with zeros in each document. `after` is the sum over a whole row.

    `table` [G, 2], of documents: the first state and the number of chunks.
    """
    row, segment = (tl.program_id(0) // segments).to(tl.int64), tl.program_id(0) % segments
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    keep = at < SIZE
    half, inside = at // (D * (E + 1)), at % (D * (E + 1))
    norm = inside >= D * E
    outside = half * D + tl.where(norm, inside - D * E, inside // E)
    outside = outside * (E + 1) + tl.where(norm, E, inside % E)
    begin = 0
    if DOCS:
        begin, chunks = tl.load(table + 2 * segment), tl.load(table + 2 * segment + 1)
        running = tl.zeros((BLOCK,), tl.float32)
    else:
        running = tl.load(before + row * SIZE + outside, mask=keep, other=0.0)
    base = row * many + begin
    edge = base + (chunks if REVERSE else 0)
    tl.store(states + edge * SIZE + at, running, mask=keep)
    step = tl.arange(0, GROUP)
    for i in range(0, chunks, GROUP):
        place = base + (chunks - 1 - i - step if REVERSE else i + 1 + step)
        there = (i + step < chunks)[:, None] & keep[None, :]
        places = states + place[:, None] * SIZE + at[None, :]
        found = tl.load(places, mask=there, other=0.0)
        tl.store(places, running[None, :] + tl.cumsum(found, 0), mask=there)
        running += tl.sum(found, 0)
    if not DOCS:
        tl.store(after + row * SIZE + outside, running, mask=keep)


@triton.jit(do_not_specialize=_ANY)
def _forward(
    q, k, v, p_q, p_k, mask, counts, table, states, y, total, eps,
    qb, qh, qn, kb, kh, kn, vb, vh, vn,
    queries, keys, heads, tiles, many, size, start, step, lookahead,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    P: tl.constexpr, MASK: tl.constexpr, ELU: tl.constexpr,
    ROWS: tl.constexpr, RULE: tl.constexpr, DOCS: tl.constexpr,
    SUM: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Output y [B, N, H, E] and total [B, H, N] of a tile of queries: the state before, then the
    chunks that not all of them see."""
    row, b, h, rows, there, seen, first, end, state = _tile(
        counts, table, queries, keys, heads, tiles, size, start, step, lookahead,
        ROWS, RULE, DOCS, CHUNK,
    )  # fmt: skip
    cos, sin = _turn(p_q + row * queries, rows, there, P)
    x = _phi(_rows(q + b * qb + h * qh, rows, there, qn, D, BLOCK_D), D, BLOCK_D, ELU)
    at = states + (row * many + state) * ((2 if P else 1) * D * (E + 1))
    held, norm = _state(at, 0, D, E, BLOCK_D, BLOCK_E, SUM, PRECISION)
    found = _mix(x, held, SUM, PRECISION) * cos[:, None]
    weight = tl.sum(x.to(tl.float32) * norm[None, :], 1) * cos
    if P:
        held, norm = _state(at, 1, D, E, BLOCK_D, BLOCK_E, SUM, PRECISION)
        found += _mix(x, held, SUM, PRECISION) * sin[:, None]
        weight += tl.sum(x.to(tl.float32) * norm[None, :], 1) * sin
    for key in range(first, end, CHUNK):
        places = key + tl.arange(0, CHUNK)
        real = places < end
        if MASK:
            real = real & (tl.load(mask + b * keys + places, mask=real, other=0) != 0)
        cos_k, sin_k = _turn(p_k + row * keys, places, real, P)
        z = _phi(_rows(k + b * kb + h * kh, places, real, kn, D, BLOCK_D), D, BLOCK_D, ELU)
        w = _dot(x, tl.trans(z), PRECISION)
        w *= _cosines(cos, sin, cos_k, sin_k, P)
        w = tl.where(places[None, :] < seen[:, None], w, 0.0)
        values = _rows(v + b * vb + h * vh, places, real, vn, E, BLOCK_E)
        found += _mix(w, values, SUM, PRECISION)
        weight += tl.sum(w, 1)
    found = found / tl.maximum(weight, eps)[:, None]
    _store_rows(y + (b * queries * heads + h) * E, found, rows, there, heads * E, E, BLOCK_E)
    tl.store(total + row * queries + rows, weight, mask=there)


@triton.jit(do_not_specialize=_ANY)
def _backward_queries(
    q, k, v, p_q, p_k, mask, counts, table, states, grad, y, total, dq, dp, along, eps,
    qb, qh, qn, kb, kh, kn, vb, vh, vn, gb, gh, gn, yb, yh, yn,
    queries, keys, heads, tiles, many, size, start, step, lookahead,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    P: tl.constexpr, MASK: tl.constexpr, ELU: tl.constexpr,
    ROWS: tl.constexpr, RULE: tl.constexpr, DOCS: tl.constexpr,
    SUM: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of queries (dq [B, N, H, D]) and of their proportions: what `_forward`
    reads, transposed. `along` [B, H, N] becomes the gradient of the total, which the keys want."""
    row, b, h, rows, there, seen, first, end, state = _tile(
        counts, table, queries, keys, heads, tiles, size, start, step, lookahead,
        ROWS, RULE, DOCS, CHUNK,
    )  # fmt: skip
    cos, sin = _turn(p_q + row * queries, rows, there, P)
    x = _phi(_rows(q + b * qb + h * qh, rows, there, qn, D, BLOCK_D), D, BLOCK_D, ELU)
    g = _rows(grad + b * gb + h * gh, rows, there, gn, E, BLOCK_E)
    out = _rows(y + b * yb + h * yh, rows, there, yn, E, BLOCK_E)
    weight = tl.load(total + row * queries + rows, mask=there, other=1.0)
    scale = 1.0 / tl.maximum(weight, eps)
    one = tl.sum(g.to(tl.float32) * out.to(tl.float32), 1) * scale
    one = tl.where(there & (weight >= eps), -one, 0.0)
    tl.store(along + row * queries + rows, one, mask=there)

    at = states + (row * many + state) * ((2 if P else 1) * D * (E + 1))
    held, norm = _state(at, 0, D, E, BLOCK_D, BLOCK_E, SUM, PRECISION)
    wide = _mix(g, tl.trans(held), SUM, PRECISION) * scale[:, None] + one[:, None] * norm[None, :]
    dx = wide * cos[:, None]
    d_cos, d_sin = tl.sum(wide * x, 1), tl.zeros_like(cos)
    if P:
        held, norm = _state(at, 1, D, E, BLOCK_D, BLOCK_E, SUM, PRECISION)
        wide = _mix(g, tl.trans(held), SUM, PRECISION) * scale[:, None]
        wide += one[:, None] * norm[None, :]
        dx += wide * sin[:, None]
        d_sin += tl.sum(wide * x, 1)
    for key in range(first, end, CHUNK):
        places = key + tl.arange(0, CHUNK)
        real = places < end
        if MASK:
            real = real & (tl.load(mask + b * keys + places, mask=real, other=0) != 0)
        cos_k, sin_k = _turn(p_k + row * keys, places, real, P)
        z = _phi(_rows(k + b * kb + h * kh, places, real, kn, D, BLOCK_D), D, BLOCK_D, ELU)
        values = _rows(v + b * vb + h * vh, places, real, vn, E, BLOCK_E)
        dw = _dot(g, tl.trans(values), PRECISION) * scale[:, None] + one[:, None]
        dw = tl.where((places[None, :] < seen[:, None]) & real[None, :], dw, 0.0)
        dx += _mix(dw * _cosines(cos, sin, cos_k, sin_k, P), z, SUM, PRECISION)
        if P:
            dw *= _dot(x, tl.trans(z), PRECISION)
            d_cos += tl.sum(dw * cos_k[None, :], 1)
            d_sin += tl.sum(dw * sin_k[None, :], 1)
    dx = _phi_backward(dx, x, ELU)
    _store_rows(dq + (b * queries * heads + h) * D, dx, rows, there, heads * D, D, BLOCK_D)
    if P:
        angle = 1.5707963267948966 * (cos * d_sin - sin * d_cos)
        tl.store(dp + row * queries + rows, angle, mask=there)


@triton.jit(do_not_specialize=_ANY)
def _backward_keys(
    q, k, v, p_q, p_k, mask, counts, table, states, grad, total, along, dk, dv, dp, eps,
    qb, qh, qn, kb, kh, kn, vb, vh, vn, gb, gh, gn,
    queries, keys, heads, tiles, many, size, start, step, lookahead,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    P: tl.constexpr, MASK: tl.constexpr, ELU: tl.constexpr,
    ROWS: tl.constexpr, RULE: tl.constexpr, DOCS: tl.constexpr, WHOLE: tl.constexpr,
    SUM: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Gradients of a chunk of keys (dk [B, S, H, D]), of its values (dv [B, S, H, E]) and of its
    proportions: from the state of all queries that see the whole chunk, and from the tiles of those
    that see part of it. Pairs are [key, query] here."""
    row, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    b, h = row // heads, row % heads
    counts += b * queries if ROWS else 0
    key, begin, end, state = _segment(table, tile, keys, DOCS, CHUNK)
    stop = end if DOCS else queries
    places = key + tl.arange(0, CHUNK)
    inside = places < end
    last = _last_key(counts, begin, stop, begin, end, size, start, step, lookahead, RULE, WHOLE)
    last = tl.minimum(last, key + CHUNK)
    real = places < last
    if MASK:
        real = real & (tl.load(mask + b * keys + places, mask=real, other=0) != 0)
    some = _first(key, begin, stop, counts, begin, end, size, start, step, lookahead, RULE)
    every = _first(last - 1, some, stop, counts, begin, end, size, start, step, lookahead, RULE)
    behind = (every - begin + CHUNK - 1) // CHUNK

    cos_k, sin_k = _turn(p_k + row * keys, places, real, P)
    z = _phi(_rows(k + b * kb + h * kh, places, real, kn, D, BLOCK_D), D, BLOCK_D, ELU)
    values = _rows(v + b * vb + h * vh, places, real, vn, E, BLOCK_E)
    at = states + (row * many + state + behind) * ((2 if P else 1) * D * (E + 1))
    held, norm = _state(at, 0, D, E, BLOCK_D, BLOCK_E, SUM, PRECISION)
    d_values = _mix(z, held, SUM, PRECISION) * cos_k[:, None]
    wide = _mix(values, tl.trans(held), SUM, PRECISION) + norm[None, :]
    dz = wide * cos_k[:, None]
    d_cos, d_sin = tl.sum(wide * z, 1), tl.zeros_like(cos_k)
    if P:
        held, norm = _state(at, 1, D, E, BLOCK_D, BLOCK_E, SUM, PRECISION)
        d_values += _mix(z, held, SUM, PRECISION) * sin_k[:, None]
        wide = _mix(values, tl.trans(held), SUM, PRECISION) + norm[None, :]
        dz += wide * sin_k[:, None]
        d_sin += tl.sum(wide * z, 1)
    for query in range(begin + (some - begin) // CHUNK * CHUNK, begin + behind * CHUNK, CHUNK):
        rows = query + tl.arange(0, CHUNK)
        there = rows < stop
        seen = _seen(
            counts, tl.minimum(rows, stop - 1), begin, end, size, start, step, lookahead, RULE
        )
        cos, sin = _turn(p_q + row * queries, rows, there, P)
        x = _phi(_rows(q + b * qb + h * qh, rows, there, qn, D, BLOCK_D), D, BLOCK_D, ELU)
        g = _rows(grad + b * gb + h * gh, rows, there, gn, E, BLOCK_E)
        weight = tl.load(total + row * queries + rows, mask=there, other=1.0)
        scale = 1.0 / tl.maximum(weight, eps)
        one = tl.load(along + row * queries + rows, mask=there, other=0.0)
        sees = (places[:, None] < seen[None, :]) & real[:, None] & there[None, :]
        turn = _cosines(cos_k, sin_k, cos, sin, P)
        score = _dot(z, tl.trans(x), PRECISION)
        w = tl.where(sees, score * turn * scale[None, :], 0.0)
        d_values += _mix(w, g, SUM, PRECISION)
        dw = _dot(values, tl.trans(g), PRECISION) * scale[None, :] + one[None, :]
        dw = tl.where(sees, dw, 0.0)
        dz += _mix(dw * turn, x, SUM, PRECISION)
        if P:
            dw *= score
            d_cos += tl.sum(dw * cos[None, :], 1)
            d_sin += tl.sum(dw * sin[None, :], 1)
    dz = tl.where(real[:, None], _phi_backward(dz, z, ELU), 0.0)
    _store_rows(dk + (b * keys * heads + h) * D, dz, places, inside, heads * D, D, BLOCK_D)
    _store_rows(dv + (b * keys * heads + h) * E, d_values, places, inside, heads * E, E, BLOCK_E)
    if P:
        angle = tl.where(real, 1.5707963267948966 * (cos_k * d_sin - sin_k * d_cos), 0.0)
        tl.store(dp + row * keys + places, angle, mask=inside)
