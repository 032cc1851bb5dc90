"""The kernels of HOG of blocks in Triton; the pixels are read once in the forward direction.

    forward     cells_kernel      pixels -> histograms of cells, which blocks may share
                normalise_kernel  histograms of cells -> blocks
    backward    cells_kernel      as above
                spread_kernel     gradient of the result -> gradient of the cells of each block
                pixels_kernel     gradient of the cells of each block -> gradient of the pixels, in gather form

A program of cells_kernel does GROUP rows of cells (of all planes), CELLS cells wide, and BINS of the bins. It walks
down their pixels with a sum for each bin and column in registers, and adds the columns up at the end. A pixel is
visited once for each cell that weights it: once where blocks share box cells, nine times on average for OpenCV's
bilinear ones. A visit loads 4 neighbours (Sobel: 8) of each channel, all but the first touch of a line from the
first-level cache. It takes some 60 operations, 30 more for each channel after the first and for linear votes, and 3
(linear: 6) for each of BINS: arithmetic bounds it, not bandwidth.

A program of pixels_kernel does PIXELS pixels. Each reads the gradients of its 4 neighbours (Sobel: 8) again, as above,
and of every cell that weights one of them 1 number (linear: 2). No sum depends on the order in which programs run.
"""

import triton
import triton.language as tl

from .votes import (
    angle_rate,
    constant,
    pixel,
    plane_offset,
    root,
    shown_axis,
    shown_image,
    shown_strides,
    strongest,
    tree_sum,
    vote,
)

# Pixels to cells


@triton.jit(do_not_specialize=("items",))
def cells_kernel(
    image,
    y,
    x,
    cells,  # [planes, y.cells, x.cells, bins]
    items,  # rows of cells in all: planes * y.cells
    D: tl.constexpr,
    FAR: tl.constexpr,
    T: tl.constexpr,
    INDEX: tl.constexpr,
    GROUP: tl.constexpr,
    CELLS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BINS: tl.constexpr,
):
    image, y, x = shown_image(image), shown_axis(y), shown_axis(x)
    item = tl.program_id(0).to(INDEX) * GROUP + tl.arange(0, GROUP)[:, None, None]
    cell = tl.program_id(1) * CELLS + tl.arange(0, CELLS)[None, :, None]
    i = tl.arange(0, COLUMNS)[None, None, :]
    bins = tl.program_id(2) * BINS + tl.arange(0, BINS)[:, None, None, None]
    here = (item < items) & (cell < x.cells) & (i < D.x.length)

    plane = image.pixels + plane_offset(item // y.cells, image)
    cell_row = item % y.cells
    kind_y, kind_x = cell_row % D.y.period, cell % D.x.period
    row = y.begin + cell_row // D.y.period * D.y.step + tl.load(y.starts + kind_y)
    column = x.begin + cell // D.x.period * D.x.step + tl.load(x.starts + kind_x) + i
    weight_x = tl.load(x.weights + kind_x * D.x.length + i, mask=i < D.x.length, other=0)

    sums = tl.zeros((BINS, GROUP, CELLS, COLUMNS), T)
    for j in range(D.y.length):
        gx, gy, _ = strongest(plane, image, y, x, row + j, column, here, D, FAR, T)
        magnitude, _, _, bin, share = vote(gx, gy, D)
        magnitude *= tl.load(y.weights + kind_y * D.y.length + j)
        if D.linear:
            above = magnitude * share
            sums += tl.where(bins == bin[None, :, :, :], (magnitude - above)[None, :, :, :], 0.0)
            sums += tl.where(bins == ((bin + 1) % D.bins)[None, :, :, :], above[None, :, :, :], 0.0)
        else:
            sums += tl.where(bins == bin[None, :, :, :], magnitude[None, :, :, :], 0.0)
    histogram = tl.sum(sums * weight_x[None, :, :, :], axis=3)

    item, cell = tl.reshape(item, (1, GROUP, 1)), tl.reshape(cell, (1, 1, CELLS))
    bins = tl.reshape(bins, (BINS, 1, 1))
    place = cells + (item.to(tl.int64) * x.cells + cell) * D.bins + bins
    tl.store(place, histogram, mask=(item < items) & (cell < x.cells) & (bins < D.bins))


# Cells to blocks


@triton.jit
def _block(
    cells, y, x, items, strides, D: tl.constexpr, INDEX: tl.constexpr, GROUP: tl.constexpr, ENTRIES: tl.constexpr
):
    """GROUP blocks of histograms [GROUP, ENTRIES], their places in the result and in a list of blocks, and a mask."""
    y, x, strides = shown_axis(y), shown_axis(x), shown_strides(strides)
    item = tl.program_id(0).to(INDEX) * GROUP + tl.arange(0, GROUP)[:, None]
    entry = tl.arange(0, ENTRIES)[None, :]
    here = (item < items) & (entry < D.y.per_block * D.x.per_block * D.bins)
    bin, cell_row, cell_column = entry % D.bins, entry // D.bins // D.x.per_block, entry // D.bins % D.x.per_block
    plane = (item // x.blocks // y.blocks).to(tl.int64)
    row, column = item // x.blocks % y.blocks, item % x.blocks
    cell = (plane * y.cells + row * D.y.block_step + cell_row) * x.cells + column * D.x.block_step + cell_column
    v = tl.load(cells + cell * D.bins + bin, mask=here, other=0)
    place = plane * strides.plane + row.to(tl.int64) * strides.row + column.to(tl.int64) * strides.column
    place += cell_row.to(tl.int64) * strides.cell_row + cell_column.to(tl.int64) * strides.cell_column
    place += bin.to(tl.int64) * strides.bin
    return v, place, item.to(tl.int64) * (D.y.per_block * D.x.per_block * D.bins) + entry, here


@triton.jit
def _norm(v, EPS: tl.constexpr, D: tl.constexpr, GROUP: tl.constexpr, ENTRIES: tl.constexpr):
    """The norm of each row, NaN where it is not finite, and its gradient."""
    if D.norm == "none":
        norm = tree_sum(v * 0, GROUP, ENTRIES)[:, None] + 1
        slope = tl.zeros_like(v)
    elif D.norm == "l1" or D.norm == "l1-sqrt":
        norm = tree_sum(v, GROUP, ENTRIES)[:, None] + EPS
        slope = tl.zeros_like(v) + 1
    else:
        square = tree_sum(v * v, GROUP, ENTRIES)[:, None]
        if D.norm == "unit":
            length = root(square)
            least = constant(EPS, length)
            norm = tl.where(length < least, least, length)
            slope = tl.where(length < least, 0.0, v / norm)
        elif D.opencv:
            length = root(square)
            norm = length + EPS
            slope = v / tl.where(length == 0, 1.0, length)
        else:
            norm = root(square + EPS * EPS)
            slope = v / norm
    return tl.where(norm < float("inf"), norm, float("nan")), slope


@triton.jit(do_not_specialize=("items",))
def normalise_kernel(
    cells,  # [planes, y.cells, x.cells, bins]
    out,
    y,
    x,
    items,  # blocks in all
    strides,  # of out
    D: tl.constexpr,
    INDEX: tl.constexpr,
    GROUP: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    v, place, _, here = _block(cells, y, x, items, strides, D, INDEX, GROUP, ENTRIES)
    norm, _ = _norm(v, D.eps, D, GROUP, ENTRIES)
    v = v / norm
    if D.norm == "l1-sqrt":
        v = root(v)
    if D.norm == "l2-hys":
        clip = constant(D.clip, v)
        v = tl.where(v > clip, clip, v)
        norm, _ = _norm(v, D.eps_again, D, GROUP, ENTRIES)
        v = v / norm
    tl.store(out + place, v, mask=here)


@triton.jit(do_not_specialize=("items",))
def spread_kernel(
    cells,  # [planes, y.cells, x.cells, bins]
    grad,
    grad_blocks,  # [planes, y.blocks, x.blocks, down, across, bins]
    y,
    x,
    items,  # blocks in all
    strides,  # of grad
    D: tl.constexpr,
    INDEX: tl.constexpr,
    GROUP: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    v, place, scratch, here = _block(cells, y, x, items, strides, D, INDEX, GROUP, ENTRIES)
    g = tl.load(grad + place, mask=here, other=0)
    norm, slope = _norm(v, D.eps, D, GROUP, ENTRIES)
    v = v / norm
    if D.norm == "l1-sqrt":
        g = tl.where(v == 0, 0.0, g / (2 * root(tl.where(v == 0, 1.0, v))))
    if D.norm == "l2-hys":
        clip = constant(D.clip, v)
        clipped = tl.where(v > clip, clip, v)
        norm_again, slope_again = _norm(clipped, D.eps_again, D, GROUP, ENTRIES)
        g = (g - slope_again * tree_sum(g * (clipped / norm_again), GROUP, ENTRIES)[:, None]) / norm_again
        g = tl.where(v > clip, 0.0, g)
    if D.norm != "none":
        g -= slope * tree_sum(g * v, GROUP, ENTRIES)[:, None]
    g = g / norm
    tl.store(grad_blocks + scratch, g, mask=here)


# Cells to pixels


@triton.jit
def _unfold(axis, q, fold):
    """The place of q in the mirrored image number ``fold``, whether it is a new one, and the sign of differences."""
    last = tl.maximum(axis.size - 1, 1)
    odd = (fold % 2 != 0) & (axis.size > 1)
    place = fold * last + tl.where(odd, last - q, q)
    return place, (place > fold * last) | (fold == axis.first_fold) | (axis.size == 1), tl.where(odd, -1, 1)


@triton.jit
def _holding(axis, at, number, D: tl.constexpr, ACROSS: tl.constexpr):
    """One of the cells that weight the pixel ``at`` of the region: block, cell, weight, and whether it exists."""
    CELLS: tl.constexpr = D.x if ACROSS else D.y
    block = at // CELLS.stride - number // CELLS.holders
    offset = at - block * CELLS.stride
    valid = (at >= 0) & (block >= 0) & (block < axis.blocks) & (offset < CELLS.pixels)
    k = tl.load(axis.holder + offset, mask=valid, other=0) + number % CELLS.holders
    cell = block * CELLS.block_step + k
    kind = cell % CELLS.period
    valid &= k < CELLS.per_block
    i = at - cell // CELLS.period * CELLS.step - tl.load(axis.starts + kind, mask=valid, other=0)
    valid &= (i >= 0) & (i < CELLS.length)
    return block, k, tl.load(axis.weights + kind * CELLS.length + i, mask=valid, other=0), valid


@triton.jit
def _gradient_grad(
    image, y, x, grad_blocks, plane, row, column, here, D: tl.constexpr, FAR: tl.constexpr, T: tl.constexpr
):
    """The gradient of the loss to gx and gy of a pixel of the region, and the channel that they are of."""
    begin = image.pixels + plane_offset(plane, image)
    gx, gy, channel = strongest(begin, image, y, x, row, column, here, D, FAR, T)
    magnitude, sine, cosine, bin, share = vote(gx, gy, D)
    at_bin, at_next = tl.zeros_like(gx), tl.zeros_like(gx)
    for number_y in range(D.y.overlap * D.y.holders):
        block_row, k_row, weight_y, valid_y = _holding(y, row - y.begin, number_y, D, False)
        for number_x in range(D.x.overlap * D.x.holders):
            block_column, k_column, weight_x, valid_x = _holding(x, column - x.begin, number_x, D, True)
            block = (plane.to(tl.int64) * y.blocks + block_row) * x.blocks + block_column
            place = grad_blocks + ((block * D.y.per_block + k_row) * D.x.per_block + k_column) * D.bins
            valid = here & valid_y & valid_x
            weight = weight_y * weight_x
            at_bin += weight * tl.load(place + bin, mask=valid, other=0)
            if D.linear:
                at_next += weight * tl.load(place + (bin + 1) % D.bins, mask=valid, other=0)
    by_magnitude, by_angle = at_bin, tl.zeros_like(gx)  # derivatives; that by the angle is divided by the magnitude
    if D.linear:
        by_magnitude = at_bin + share * (at_next - at_bin)
        by_angle = (at_next - at_bin) * angle_rate(sine, cosine, D) * D.bins_per_radian
    inverse = tl.where(magnitude == 0, 0.0, 1 / tl.where(magnitude == 0, 1.0, magnitude))
    to_sine = (by_magnitude * sine + by_angle * cosine) * inverse
    to_cosine = (by_magnitude * cosine - by_angle * sine) * inverse
    if D.horizontal:
        to_sine, to_cosine = to_cosine, to_sine
    return to_sine, to_cosine, channel


@triton.jit(do_not_specialize=("items",))
def pixels_kernel(
    image,
    y,
    x,
    grad_blocks,  # [planes, y.blocks, x.blocks, down, across, bins]
    out,  # [planes, channels of which one is taken, y.size, x.size]
    items,  # planes * y.size * x.size
    D: tl.constexpr,
    FAR: tl.constexpr,
    T: tl.constexpr,
    INDEX: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The gradient of a pixel p, from those of gx and gy at its neighbours q, which read it.

    At a border of the image the derivative across the border is zero, whatever the pixels are. Sobel's smoothing across
    the border reads the pixel inside twice.
    """
    image, y, x = shown_image(image), shown_axis(y), shown_axis(x)
    item = tl.program_id(0).to(INDEX) * PIXELS + tl.arange(0, PIXELS)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[:, None]
    plane, p_y, p_x = item // x.size // y.size, item // x.size % y.size, item % x.size
    sums = tl.zeros((CHANNELS, PIXELS), T)
    for n in range(8 if D.sobel else 4):
        around = n + n // 4 if D.sobel else 2 * n + 1  # of the 3 x 3 pixels around, row by row
        dy, dx = around // 3 - 1, around % 3 - 1
        q_y, q_x = p_y + dy, p_x + dx
        here = (item < items) & (q_y >= 0) & (q_y < y.size) & (q_x >= 0) & (q_x < x.size)
        border_y, border_x = (q_y == 0) | (q_y == y.size - 1), (q_x == 0) | (q_x == x.size - 1)
        from_gx, from_gy = tl.where(border_x, 0, -dx), tl.where(border_y, 0, -dy)
        if D.sobel:
            from_gx *= tl.where(border_y & ((dy != 0) | (y.size == 1)), 2, 1) * (2 - dy * dy)
            from_gy *= tl.where(border_x & ((dx != 0) | (x.size == 1)), 2, 1) * (2 - dx * dx)
        if FAR:
            for fold_y in range(y.first_fold, y.last_fold + 1):
                row, new_y, sign_y = _unfold(y, q_y, fold_y)
                for fold_x in range(x.first_fold, x.last_fold + 1):
                    column, new_x, sign_x = _unfold(x, q_x, fold_x)
                    new = here & new_y & new_x
                    to_gx, to_gy, channel = _gradient_grad(image, y, x, grad_blocks, plane, row, column, new, D, FAR, T)
                    to_p = from_gx * sign_x * to_gx + from_gy * sign_y * to_gy
                    sums += tl.where(channels == channel[None, :], to_p[None, :], 0.0)
        else:
            to_gx, to_gy, channel = _gradient_grad(image, y, x, grad_blocks, plane, q_y, q_x, here, D, FAR, T)
            sums += tl.where(channels == channel[None, :], (from_gx * to_gx + from_gy * to_gy)[None, :], 0.0)
    item, plane = item[None, :], plane[None, :]
    here = (item < items) & (channels < image.channels)
    if D.sqrt:
        start = image.pixels + plane_offset(plane, image) + channels.to(tl.int64) * image.channel_stride
        place = start + p_y[None, :].to(tl.int64) * image.row_stride + p_x[None, :].to(tl.int64) * image.pixel_stride
        p = root(pixel(place, here, T))
        sums = tl.where(p == 0, 0.0, sums / (2 * tl.where(p == 0, 1.0, p)))
    row = (plane.to(tl.int64) * image.channels + channels) * y.size + p_y[None, :]
    tl.store(out + row * x.size + p_x[None, :], sums, mask=here)
