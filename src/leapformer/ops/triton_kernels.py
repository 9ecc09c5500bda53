"""The chunked algorithm as Triton kernels: forward and backward on a GPU.

Keys are cut into chunks of `CHUNK`. One program a chunk sums k'^T [v, 1]; a scan over the chunks
turns the sums into the state before each; then one program a tile of queries reads the last state
whose keys all of its queries see, and visits the few chunks that only some of them see. That serves
every visibility: causal queries visit one or two chunks, under wait-k a tile visits the chunks it
spans, and where all is visible there is nothing left to visit. The backward pass is the same thing
twice: once for the queries, and once mirrored, with states of q'^T [g, g_total] that come from the
end, for the keys.

The widened vectors are never formed. x' = [phi(x) cos a; phi(x) sin a], so a product with a state is
two products of width D scaled by row, and the score of a pair is one product of width D times
cos a cos b + sin a sin b.

Documents packed into one row are segments: tiles and chunks do not cross their bounds, and the scan
begins anew in each. Letters: B batch, H heads, N queries, S keys, D key width, E value width, R 1 or
B (rows of counts), F the width of x' (2D, or D without proportions).
"""

import triton
import triton.language as tl


@triton.jit
def _rows(base, rows, there, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """[rows, BLOCK] of a matrix whose rows are `stride` apart; zeros where nothing is there."""
    columns = tl.arange(0, BLOCK)
    keep = there[:, None] & (columns[None, :] < WIDTH)
    return tl.load(base + rows[:, None] * stride + columns[None, :], mask=keep, other=0.0)


@triton.jit
def _features(base, rows, there, stride, D: tl.constexpr, BLOCK: tl.constexpr, ELU: tl.constexpr):
    """Rows [rows, BLOCK] of queries or keys in float32, and phi of them; zeros beyond D."""
    x = _rows(base, rows, there, stride, D, BLOCK).to(tl.float32)
    if ELU:
        phi = tl.where(x > 0, x + 1.0, tl.exp(tl.minimum(x, 0.0)))
        return x, tl.where(tl.arange(0, BLOCK)[None, :] < D, phi, 0.0)
    return x, tl.maximum(x, 0.0)


@triton.jit
def _phi_backward(grad, x, ELU: tl.constexpr):
    """The gradient of the feature map at x."""
    if ELU:
        return grad * tl.exp(tl.minimum(x, 0.0))
    return tl.where(x > 0, grad, 0.0)


@triton.jit
def _store_rows(base, x, rows, there, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    keep = there[:, None] & (columns[None, :] < WIDTH)
    tl.store(base + rows[:, None] * stride + columns[None, :], x, mask=keep)


@triton.jit
def _turn(p, rows, there, P: tl.constexpr):
    """cos and sin of pi/2 * p; of padding both are 0, so that it weighs nothing."""
    if P:
        angle = tl.load(p + rows, mask=there, other=0.0).to(tl.float32) * 1.5707963267948966
        return tl.where(there, tl.cos(angle), 0.0), tl.where(there, tl.sin(angle), 0.0)
    return tl.where(there, 1.0, 0.0), tl.zeros(rows.shape, tl.float32)


@triton.jit
def _state(
    sums, half, D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr
):
    """One half (0 cos, 1 sin) of a state [F, E + 1]: values [BLOCK_D, BLOCK_E] and normaliser."""
    rows, columns = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    at = sums + (half * D + rows) * (E + 1)
    keep = (rows[:, None] < D) & (columns[None, :] < E)
    values = tl.load(at[:, None] + columns[None, :], mask=keep, other=0.0)
    return values, tl.load(at + E, mask=rows < D, other=0.0)


@triton.jit
def _store_state(
    sums, half, wide, y, one, D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """wide^T [y, one] into one half of a state."""
    rows, columns = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    at = sums + (half * D + rows) * (E + 1)
    keep = (rows[:, None] < D) & (columns[None, :] < E)
    values = tl.dot(tl.trans(wide), y, input_precision=PRECISION)
    tl.store(at[:, None] + columns[None, :], values, mask=keep)
    tl.store(at + E, tl.sum(wide * one[:, None], 0), mask=rows < D)


@triton.jit
def _grad_found(grad, y, total, rows, there, eps):
    """Gradients of numerator [rows, E] and total [rows], from those of y = numerator / total."""
    total = tl.load(total + rows, mask=there, other=1.0)
    numerator = grad / tl.maximum(total, eps)[:, None]
    along = tl.sum(numerator * y, 1)
    return numerator, tl.where(there & (total >= eps), -along, 0.0)


@triton.jit
def _chunk_sums(
    x, p, y, y_out, total, mask, states, tiles, eps,
    xb, xh, xn, yb, yh, yn, ob, oh, on, length, heads, many,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    P: tl.constexpr, MASK: tl.constexpr, GRAD: tl.constexpr, ELU: tl.constexpr,
    PRECISION: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The sum of x'^T [y, 1] over a tile of rows, into its place among the `many` states. With GRAD
    the rows are queries, and y and 1 are the gradients of numerator and total.

    `tiles` [T, 3]: first row, the row behind the last, the state.
    """
    tile = tiles + 3 * tl.program_id(0)
    row = tl.program_id(1)
    b, h = row // heads, row % heads
    rows = tl.load(tile) + tl.arange(0, CHUNK)
    there = rows < tl.load(tile + 1)
    if MASK:
        there = there & (tl.load(mask + b * length + rows, mask=there, other=0) != 0)
    cos, sin = _turn(p + row * length, rows, there, P)
    _, x = _features(x + b * xb + h * xh, rows, there, xn, D, BLOCK_D, ELU)
    y = _rows(y + b * yb + h * yh, rows, there, yn, E, BLOCK_E).to(tl.float32)
    one = tl.where(there, 1.0, 0.0)
    if GRAD:
        y_out = _rows(y_out + b * ob + h * oh, rows, there, on, E, BLOCK_E).to(tl.float32)
        y, one = _grad_found(y, y_out, total + row * length, rows, there, eps)
    at = states + (row * many + tl.load(tile + 2)).to(tl.int64) * ((2 if P else 1) * D * (E + 1))
    _store_state(at, 0, x * cos[:, None], y, one, D, E, BLOCK_D, BLOCK_E, PRECISION)
    if P:
        _store_state(at, 1, x * sin[:, None], y, one, D, E, BLOCK_D, BLOCK_E, PRECISION)


@triton.jit
def _scan(
    states, first, last, segments, size, many,
    REVERSE: tl.constexpr, FIRST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of chunks to the state before each: running sums, from the end with REVERSE, beginning
    with `first` (zeros without FIRST) in every segment; `last` is the sum over all.

    `segments` [G, 2]: the first state and the number of chunks.
    """
    segment = segments + 2 * tl.program_id(0)
    row = tl.program_id(1)
    at = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    keep = at < size
    begin, chunks = tl.load(segment), tl.load(segment + 1)
    running = tl.zeros((BLOCK,), tl.float32)
    if FIRST:
        running = tl.load(first + row.to(tl.int64) * size + at, mask=keep, other=0.0)
    base = states + (row * many + begin).to(tl.int64) * size + at
    if REVERSE:
        tl.store(base + chunks.to(tl.int64) * size, running, mask=keep)
        for i in range(0, chunks):
            place = base + (chunks - 1 - i).to(tl.int64) * size
            running += tl.load(place, mask=keep, other=0.0)
            tl.store(place, running, mask=keep)
    else:
        tl.store(base, running, mask=keep)
        for i in range(0, chunks):
            place = base + (i + 1) * size
            running += tl.load(place, mask=keep, other=0.0)
            tl.store(place, running, mask=keep)
    tl.store(last + row.to(tl.int64) * size + at, running, mask=keep)


@triton.jit
def _span(tile, counts, queries, b, ROWS: tl.constexpr, CHUNK: tl.constexpr):
    """A tile of queries: their rows, which are there, how many keys each sees, the first key that
    one of them may not see (a chunk's bound), and the key behind the last that one sees.

    `tile`: first query, the one behind the last, first key of the segment, its first state.
    """
    rows = tl.load(tile) + tl.arange(0, CHUNK)
    there = rows < tl.load(tile + 1)
    seen = tl.load(counts + (b * queries if ROWS else 0) + rows, mask=there, other=0)
    begin = tl.load(tile + 2)
    least = tl.min(tl.where(there, seen, 2147483647), 0)
    whole = (least - begin) // CHUNK
    return rows, there, seen, begin + whole * CHUNK, tl.max(seen, 0), tl.load(tile + 3) + whole


@triton.jit
def _forward(
    q, k, v, p_q, p_k, mask, counts, states, y, total, tiles, eps,
    qb, qh, qn, kb, kh, kn, vb, vh, vn, yb, yh, yn, queries, keys, heads, many,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    P: tl.constexpr, MASK: tl.constexpr, ROWS: tl.constexpr, ELU: tl.constexpr,
    PRECISION: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Output and total of a tile of queries: the state before, then the chunks that not all see."""
    row = tl.program_id(1)
    b, h = row // heads, row % heads
    rows, there, seen, key, end, state = _span(
        tiles + 4 * tl.program_id(0), counts, queries, b, ROWS, CHUNK
    )
    cos, sin = _turn(p_q + row * queries, rows, there, P)
    _, x = _features(q + b * qb + h * qh, rows, there, qn, D, BLOCK_D, ELU)
    at = states + (row * many + state).to(tl.int64) * ((2 if P else 1) * D * (E + 1))
    values, norm = _state(at, 0, D, E, BLOCK_D, BLOCK_E)
    found = tl.dot(x, values, input_precision=PRECISION) * cos[:, None]
    weight = tl.sum(x * norm[None, :], 1) * cos
    if P:
        values, norm = _state(at, 1, D, E, BLOCK_D, BLOCK_E)
        found += tl.dot(x, values, input_precision=PRECISION) * sin[:, None]
        weight += tl.sum(x * norm[None, :], 1) * sin
    for start in range(key, end, CHUNK):
        places = start + tl.arange(0, CHUNK)
        real = places < end
        if MASK:
            real = real & (tl.load(mask + b * keys + places, mask=real, other=0) != 0)
        cos_k, sin_k = _turn(p_k + row * keys, places, real, P)
        _, z = _features(k + b * kb + h * kh, places, real, kn, D, BLOCK_D, ELU)
        w = tl.dot(x, tl.trans(z), input_precision=PRECISION)
        w *= cos[:, None] * cos_k[None, :] + sin[:, None] * sin_k[None, :]
        w = tl.where(places[None, :] < seen[:, None], w, 0.0)
        values = _rows(v + b * vb + h * vh, places, real, vn, E, BLOCK_E).to(tl.float32)
        found += tl.dot(w, values, input_precision=PRECISION)
        weight += tl.sum(w, 1)
    found = found / tl.maximum(weight, eps)[:, None]
    _store_rows(y + b * yb + h * yh, found, rows, there, yn, E, BLOCK_E)
    tl.store(total + row * queries + rows, weight, mask=there)


@triton.jit
def _backward_queries(
    q, k, v, p_q, p_k, mask, counts, states, grad, y, total, dq, dp, tiles, eps,
    qb, qh, qn, kb, kh, kn, vb, vh, vn, gb, gh, gn, yb, yh, yn, queries, keys, heads, many,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    P: tl.constexpr, MASK: tl.constexpr, ROWS: tl.constexpr, ELU: tl.constexpr,
    PRECISION: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of queries, and of their proportions: what `_forward` reads, transposed."""
    row = tl.program_id(1)
    b, h = row // heads, row % heads
    rows, there, seen, key, end, state = _span(
        tiles + 4 * tl.program_id(0), counts, queries, b, ROWS, CHUNK
    )
    cos, sin = _turn(p_q + row * queries, rows, there, P)
    raw, x = _features(q + b * qb + h * qh, rows, there, qn, D, BLOCK_D, ELU)
    g = _rows(grad + b * gb + h * gh, rows, there, gn, E, BLOCK_E).to(tl.float32)
    out = _rows(y + b * yb + h * yh, rows, there, yn, E, BLOCK_E).to(tl.float32)
    g, g_one = _grad_found(g, out, total + row * queries, rows, there, eps)

    at = states + (row * many + state).to(tl.int64) * ((2 if P else 1) * D * (E + 1))
    values, norm = _state(at, 0, D, E, BLOCK_D, BLOCK_E)
    wide = tl.dot(g, tl.trans(values), input_precision=PRECISION) + g_one[:, None] * norm[None, :]
    dx = wide * cos[:, None]
    d_cos, d_sin = tl.sum(wide * x, 1), tl.zeros_like(cos)
    if P:
        values, norm = _state(at, 1, D, E, BLOCK_D, BLOCK_E)
        wide = tl.dot(g, tl.trans(values), input_precision=PRECISION)
        wide += g_one[:, None] * norm[None, :]
        dx += wide * sin[:, None]
        d_sin += tl.sum(wide * x, 1)
    for start in range(key, end, CHUNK):
        places = start + tl.arange(0, CHUNK)
        real = places < end
        if MASK:
            real = real & (tl.load(mask + b * keys + places, mask=real, other=0) != 0)
        cos_k, sin_k = _turn(p_k + row * keys, places, real, P)
        _, z = _features(k + b * kb + h * kh, places, real, kn, D, BLOCK_D, ELU)
        values = _rows(v + b * vb + h * vh, places, real, vn, E, BLOCK_E).to(tl.float32)
        dw = tl.dot(g, tl.trans(values), input_precision=PRECISION) + g_one[:, None]
        dw = tl.where((places[None, :] < seen[:, None]) & real[None, :], dw, 0.0)
        turned = dw * (cos[:, None] * cos_k[None, :] + sin[:, None] * sin_k[None, :])
        dx += tl.dot(turned, z, input_precision=PRECISION)
        if P:
            dw *= tl.dot(x, tl.trans(z), input_precision=PRECISION)
            d_cos += tl.sum(dw * cos_k[None, :], 1)
            d_sin += tl.sum(dw * sin_k[None, :], 1)
    dx = _phi_backward(dx, raw, ELU)
    _store_rows(dq + row.to(tl.int64) * queries * D, dx, rows, there, D, D, BLOCK_D)
    if P:
        angle = 1.5707963267948966 * (cos * d_sin - sin * d_cos)
        tl.store(dp + row * queries + rows, angle, mask=there)


@triton.jit
def _backward_keys(
    q, k, v, p_q, p_k, mask, counts, states, grad, y, total, dk, dv, dp, tiles, spans, eps,
    qb, qh, qn, kb, kh, kn, vb, vh, vn, gb, gh, gn, yb, yh, yn, queries, keys, heads, many,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    P: tl.constexpr, MASK: tl.constexpr, ROWS: tl.constexpr, ELU: tl.constexpr,
    PRECISION: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Gradients of a chunk of keys, its values and proportions: from the state of all queries that
    see the whole chunk, and from the tiles of those that see part of it.

    `tiles` [T, 5]: first key, the one behind the last; of the segment the first query, the one
    behind the last, and the first state. `spans` [R, T, 2]: the first query that sees a key of the
    chunk, and the first that sees them all.
    """
    tile = tiles + 5 * tl.program_id(0)
    row = tl.program_id(1)
    b, h = row // heads, row % heads
    places = tl.load(tile) + tl.arange(0, CHUNK)
    real = places < tl.load(tile + 1)
    inside = real
    if MASK:
        real = real & (tl.load(mask + b * keys + places, mask=real, other=0) != 0)
    span = spans + 2 * ((b * tl.num_programs(0) if ROWS else 0) + tl.program_id(0))
    begin, stop = tl.load(tile + 2), tl.load(tile + 3)
    some, every = tl.load(span), tl.load(span + 1)
    behind = (every - begin + CHUNK - 1) // CHUNK
    cos_k, sin_k = _turn(p_k + row * keys, places, real, P)
    raw, z = _features(k + b * kb + h * kh, places, real, kn, D, BLOCK_D, ELU)
    values = _rows(v + b * vb + h * vh, places, real, vn, E, BLOCK_E).to(tl.float32)

    at = states + (row * many + tl.load(tile + 4) + behind).to(tl.int64) * (
        (2 if P else 1) * D * (E + 1)
    )
    grads, norm = _state(at, 0, D, E, BLOCK_D, BLOCK_E)
    d_values = tl.dot(z, grads, input_precision=PRECISION) * cos_k[:, None]
    wide = tl.dot(values, tl.trans(grads), input_precision=PRECISION) + norm[None, :]
    dz = wide * cos_k[:, None]
    d_cos, d_sin = tl.sum(wide * z, 1), tl.zeros_like(cos_k)
    if P:
        grads, norm = _state(at, 1, D, E, BLOCK_D, BLOCK_E)
        d_values += tl.dot(z, grads, input_precision=PRECISION) * sin_k[:, None]
        wide = tl.dot(values, tl.trans(grads), input_precision=PRECISION) + norm[None, :]
        dz += wide * sin_k[:, None]
        d_sin += tl.sum(wide * z, 1)
    first = begin + (some - begin) // CHUNK * CHUNK
    for start in range(first, begin + behind * CHUNK, CHUNK):
        rows = start + tl.arange(0, CHUNK)
        there = rows < stop
        seen = tl.load(counts + (b * queries if ROWS else 0) + rows, mask=there, other=0)
        cos, sin = _turn(p_q + row * queries, rows, there, P)
        _, x = _features(q + b * qb + h * qh, rows, there, qn, D, BLOCK_D, ELU)
        g = _rows(grad + b * gb + h * gh, rows, there, gn, E, BLOCK_E).to(tl.float32)
        out = _rows(y + b * yb + h * yh, rows, there, yn, E, BLOCK_E).to(tl.float32)
        g, g_one = _grad_found(g, out, total + row * queries, rows, there, eps)
        sees = (places[None, :] < seen[:, None]) & real[None, :]
        turn = cos[:, None] * cos_k[None, :] + sin[:, None] * sin_k[None, :]
        score = tl.dot(x, tl.trans(z), input_precision=PRECISION)
        w = tl.where(sees, score * turn, 0.0)
        d_values += tl.dot(tl.trans(w), g, input_precision=PRECISION)
        dw = tl.dot(g, tl.trans(values), input_precision=PRECISION) + g_one[:, None]
        dw = tl.where(sees, dw, 0.0)
        dz += tl.dot(tl.trans(dw * turn), x, input_precision=PRECISION)
        if P:
            dw *= score
            d_cos += tl.sum(dw * cos[:, None], 0)
            d_sin += tl.sum(dw * sin[:, None], 0)
    dz = tl.where(real[:, None], _phi_backward(dz, raw, ELU), 0.0)
    _store_rows(dk + row.to(tl.int64) * keys * D, dz, places, inside, D, D, BLOCK_D)
    _store_rows(dv + row.to(tl.int64) * keys * E, d_values, places, inside, E, E, BLOCK_E)
    if P:
        angle = tl.where(real, 1.5707963267948966 * (cos_k * d_sin - sin_k * d_cos), 0.0)
        tl.store(dp + row * keys + places, angle, mask=inside)
