# Convolutions of block rows, from planes or from words of them.

cdef class CompiledConvolution(_InPasses):
    """A convolution with packed weights for one size of input. Everything that memory safety rests on is checked here.

    Args:
        kernel_set: as of `choose`.
        dtype: of the activations.
        values: [rows, kept * taps * block] in the type and packing of the kernels' rows; where these read words, whole
            words of kept channels, [rows, words * taps * block * elements of a word].
        indices: int32 [rows, kept], channels within the group.
        block, groups: as the weight's.
        bias: float32 [out_channels] or None; it and `requantize` in the order of the block rows' channels.
        activation: a name or None.
        in_shape, out_shape: (channels, height, width).
        copies: intp [copies, 2] row and column of each copy of a channel; none to read the input in place.
        pad, stride: (height, width).
        band, plane_rows, channel_stride, tile_pixels, pixels_outside: see kernels/conv.h.
        tap_offsets: intp [taps].
        requantize: a `Requantization`; for uint8 activations alone, which need it and have neither bias nor activation.
        run_pixels: of a run whose words are made at once; where the kernels read words.
        out_dtype: of the outputs, where it is not that of the kernels' rows: float32, of bfloat16.
        columns: that each kept channel counts for, see kernels/conv.h; where the kernels read words.
        order: int32 [out_channels], the output channel that each channel of the block rows is; None where they follow
            each other.

    Raises:
        TypeError, ValueError: an argument that does not fit.
    """

    cdef subp_conv _call
    cdef object _order

    def __cinit__(
        self,
        kernel_set,
        dtype,
        values,
        indices,
        block,
        groups,
        bias,
        activation,
        in_shape,
        out_shape,
        copies,
        pad,
        stride,
        tap_offsets,
        *,
        band,
        plane_rows,
        channel_stride,
        tile_pixels,
        bint pixels_outside,
        requantize=None,
        run_pixels=None,
        str out_dtype="",
        columns=1,
        order=None,
    ):
        cdef subp_conv *call = &self._call
        cdef const subp_row *halve
        cdef _Array kept = _array("indices", indices, "int32", (None, None)), weights, offsets, summands
        cdef _Array copy_rows = None, copy_columns = None, taps, places
        cdef _Kernels kernels
        cdef _Requantize constants
        in_shape, out_shape = _wholes("in_shape", in_shape, 3), _wholes("out_shape", out_shape, 3)
        block, groups = _whole("block", block), _whole("groups", groups)
        indices = np.array(indices, np.int32)  # of its own: nobody can change them between check and use
        tap_offsets = np.array(tap_offsets, np.intp)
        call.activation = _activation_number(activation)
        call.in_channels, call.height, call.width = in_shape
        call.out_channels, call.out_h, call.out_w = out_shape
        call.pad_top, call.pad_left = _wholes("pad", pad, 2, 0)
        call.stride_h, call.stride_w = _wholes("stride", stride, 2)
        call.band, call.plane_rows = _whole("band", band), _whole("plane_rows", plane_rows)
        call.channel_stride = _whole("channel_stride", channel_stride)
        call.tile_pixels = _whole("tile_pixels", tile_pixels)
        call.pixels_outside = pixels_outside
        call.block, call.groups = block, groups
        call.rows, call.kept = kept.shape
        _check_rows(kept.shape[0], kept.shape[1], in_shape[0], out_shape[0], groups, block, indices)
        taps = _array("tap_offsets", tap_offsets, "intp", (None,))
        call.taps = <int32_t>_whole("taps", taps.shape[0])
        kernels = _Kernels(kernel_set, dtype, min(block, out_shape[0] + MAX_TILE_CHANNELS))
        call.packed = call.kept
        self._take_types(kernels.of_row[0])
        call.kernels = kernels.of_row
        constants = _requantize(requantize, self._dtype, out_shape[0], bias is not None or activation is not None)
        if constants is not None:
            call.requantize, call.padding = &constants.c, <uint64_t>constants.padding
            call.start, call.factor = <const int32_t *>constants.start.data, _floats(constants.factor)
        self._out_dtype = _stored_type(kernels.of_row[0], constants, out_dtype)
        call.to_float = self._dtype != self._out_dtype
        call.element, call.weight_element = self._element, _FORMATS[_DTYPES[kernels.of_row[0].weight_dtype]][1]
        call.out_element = _FORMATS[self._out_dtype][1]
        words = kernels.of_row[0].interleave > 1
        call.columns = columns = _whole("columns", columns)
        if words:
            call.kept *= call.columns
            call.words = (call.kept + kernels.of_row[0].interleave - 1) // kernels.of_row[0].interleave
            call.packed = call.words * SUBP_WORD // call.weight_element
        weights = _array(
            "values", values, _DTYPES[kernels.of_row[0].weight_dtype],
            (kept.shape[0], <object>call.packed * taps.shape[0] * block),
        )
        farthest = int(tap_offsets.max()) + call.band * call.out_w
        if np.min(tap_offsets) < 0:
            raise ValueError(f"tap_offsets has {np.min(tap_offsets)}; expected none below 0")
        copies = np.array(copies, np.intp)
        if copies.ndim != 2 or copies.shape[1] != 2:
            raise ValueError(f"copies has shape {list(copies.shape)}; expected [copies, 2]")
        call.copies = len(copies)
        if call.copies:
            _whole("a row or column of copies", copies.min(), 0)
            _whole("a row or column of copies", copies.max(), 0)
            if len(copies) % columns or (columns > 1 and not words):
                raise ValueError(f"{len(copies)} copies do not divide into {columns} columns, or kernels read no words")
            room = len(copies) * plane_rows * out_shape[2]
            if plane_rows < band:
                raise ValueError(f"plane_rows is {plane_rows}; expected at least the band's, {band}")
            if channel_stride < room or farthest > room // columns:
                raise ValueError(
                    f"a channel's planes have {room} floats, channel_stride is {channel_stride} and taps read up to "
                    f"{farthest}; expected no more than the planes of a column, and all planes within channel_stride"
                )
            copy_rows = _array("rows", np.ascontiguousarray(copies[:, 0]), "intp", (None,))
            copy_columns = _array("columns", np.ascontiguousarray(copies[:, 1]), "intp", (None,))
            call.copy_rows = <const Py_ssize_t *>copy_rows.data
            call.copy_cols = <const Py_ssize_t *>copy_columns.data
        elif (
            columns > 1 or in_shape[1:] != out_shape[1:] or channel_stride != in_shape[1] * in_shape[2]
            or tap_offsets.tolist() != [0]
        ):
            raise ValueError(
                f"without copies of it the input {list(in_shape)} is read in place; expected an output of that size, "
                f"one tap at 0 and a channel_stride of {in_shape[1] * in_shape[2]}"
            )
        moved = self._plan_words(kernel_set, dtype, tap_offsets, indices, run_pixels) if words else None
        if words:  # whole words, the last channel again where none is left: pack_words counts on that
            missing = call.words * kernels.of_row[0].interleave - call.kept
            step = len(copies) // columns * plane_rows * out_shape[2]
        else:
            missing = step = 0
        offsets = _offsets(indices, in_shape[0], channel_stride, columns, step, missing)
        self.scratch = (
            subp_conv_planes(call) + subp_conv_shared_words(call) + subp_conv_own_words(call)
        ) // 4
        halve = subp_choose(subp_row_table, subp_row_count, _admitted(kernel_set), &_Request("halve", dtype).c)
        call.halve = NULL if halve == NULL else halve.run.halve
        summands = _optional("bias", bias, "float32", out_shape[:1])
        call.bias = _floats(summands)
        self._order = _own_order(order, out_shape[0])
        places = _multiples(self._order, out_shape[0], call.out_h * call.out_w)
        call.out_offsets = <const Py_ssize_t *>places.data
        call.values, call.channel_offsets = weights.data, <const int32_t *>offsets.data
        call.tap_offsets = <const Py_ssize_t *>taps.data
        self._arrays = (weights, offsets, taps, summands, places, copy_rows, copy_columns, kernels, constants, moved)
        self._in_shape, self._out_shape = in_shape, out_shape
        self._passes, self._fills = subp_conv_passes(call), subp_conv_fills(call)

    cdef _Array _plan_words(self, kernel_set, dtype, tap_offsets, indices, run_pixels):
        """Lays out the words of kept channels; returns what keeps the offsets of taps in them alive."""
        cdef subp_conv *call = &self._call
        cdef const subp_row *interleave = _choose(kernel_set, _Request("interleave", dtype))
        cdef _Array offsets
        if interleave.interleave != call.kernels[0].interleave:
            raise ValueError(f"{interleave.name.decode()} makes other words than {call.kernels[0].name.decode()} reads")
        call.interleave = interleave.run.interleave
        call.state = subp_thread_state(call.kernels[0])  # rows of other sets, if any, are narrower and have none
        plane, band = call.plane_rows * call.out_w, call.band * call.out_w
        copy, within = np.divmod(tap_offsets, plane)
        if int(within.max()) + band > plane:
            raise ValueError(f"a tap reads {band} pixels from {within.max()} on; a copy has {plane}")
        every = np.arange(call.in_channels // call.groups, dtype=np.int32)
        call.shared = indices.shape[1] == len(every) and bool((indices == every).all())
        call.run_pixels, call.halo = min(_whole("run_pixels", run_pixels), band), int(within.max())
        room = (band if call.shared else call.run_pixels) + call.halo
        # Kernels write whole vectors, no longer than a cache line. An odd number of lines, as of planes.
        line = 4 * SUBP_LINE // SUBP_WORD
        call.word_plane = ((room + line - 1) // line | 1) * line
        if call.words * call.groups * max(1, call.copies) * call.word_plane >= 2**31:
            raise ValueError(f"words of {call.kept} channels on {room} pixels are too many; expected less than 2**31")
        moved = np.ascontiguousarray(copy * call.word_plane + within, np.intp)
        offsets = _array("word_offsets", moved, "intp", (None,))
        call.word_offsets = <const Py_ssize_t *>offsets.data
        return offsets

    cdef subp_conv_parts _divide(self, int threads) noexcept nogil:
        return subp_conv_divide(&self._call, threads)

    cdef void _fill(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, Py_ssize_t channel,
                    void *scratch) noexcept nogil:
        subp_conv_fill(&self._call, arrays, pass_, channel, scratch)

    cdef void _part(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, const subp_conv_parts *parts,
                    Py_ssize_t part, const void *scratch, void *own) noexcept nogil:
        subp_conv_part(&self._call, arrays, pass_, parts, part, scratch, self._words(own))

    cdef void _whole(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, void *own) noexcept nogil:
        subp_conv_pass(&self._call, arrays, pass_, own, self._words(own))

    cdef void *_words(self, const void *own) noexcept nogil:
        """A thread's own words, behind the planes and the shared words in its scratch."""
        return <char *>own + subp_conv_planes(&self._call) + subp_conv_shared_words(&self._call)




cdef tuple _common(CompiledConvolution convolution):
    """What convolutions must share to be run from the same planes."""
    cdef const subp_conv *call = &convolution._call
    return (
        convolution._in_shape, convolution._out_shape[1:], convolution.scratch, call.copies, call.band, call.plane_rows,
        call.channel_stride, convolution._dtype, convolution._out_dtype, call.padding,
    )


def run_rows(
    convolutions,  # CompiledConvolutions of one block row each that differ in their weights alone
    x,  # IN float32 [1, in_channels, height, width]
    outs,  # OUT for each, as for `CompiledConvolution.run`
    scratch,  # as for `CompiledConvolution.run` of one thread
    threads,
    bint dynamic,
):
    """Runs several convolutions of one input, each by one thread, scheduled statically or dynamically.

    This is what a convolution would be whose block rows differ in what they keep: the benchmark compares with it.

    Raises:
        TypeError, ValueError: an argument that does not fit.
    """
    cdef Py_ssize_t i, n, count, fills
    cdef int workers = _threads(threads)
    cdef const subp_conv *first
    cdef subp_conv_parts whole
    cdef CompiledConvolution convolution
    cdef _Array source, target, memory
    cdef const subp_conv **calls = NULL
    cdef subp_conv_arrays *arrays = NULL
    cdef void *planes
    convolutions, outs, held = list(convolutions), list(outs), []
    count = len(convolutions)
    if not count or len(outs) != count:
        raise ValueError(f"{count} convolutions and {len(outs)} outputs; expected as many, and at least one")
    for each in convolutions:
        if not isinstance(each, CompiledConvolution) or (<CompiledConvolution>each)._arrays is None:
            raise TypeError(f"convolutions have a {type(each).__name__}; expected CompiledConvolutions")
        if (<CompiledConvolution>each)._call.words:
            raise ValueError("convolutions whose kernels read words make their own; expected others")
        if _common(each) != _common(convolutions[0]) or (<CompiledConvolution>each)._call.rows != 1:
            raise ValueError(
                "the convolutions have several block rows, or planes that differ; expected one row, and the same planes"
            )
    convolution = convolutions[0]
    source = _array("x", x, convolution._dtype, (1, *convolution._in_shape))
    memory = _room(scratch, convolution.scratch)
    planes = _data(memory)
    try:
        calls = <const subp_conv **>PyMem_Malloc(count * sizeof(void *))
        arrays = <subp_conv_arrays *>PyMem_Malloc(count * sizeof(subp_conv_arrays))
        if calls == NULL or arrays == NULL:
            raise MemoryError()
        for i in range(count):
            convolution = convolutions[i]
            target = _array("out", outs[i], convolution._out_dtype, (1, *convolution._out_shape), True)
            held.append(target)
            calls[i] = &convolution._call
            arrays[i].x, arrays[i].out, arrays[i].residual = source.data, target.data, NULL
        first, fills, whole = calls[0], subp_conv_fills(calls[0]), subp_conv_divide(calls[0], 1)
        if workers > 1:
            workers = _team(workers)
        for n in range(subp_conv_passes(first)):
            for i in prange(fills, nogil=True, schedule="static", num_threads=workers, use_threads_if=workers > 1):
                subp_conv_fill(first, arrays, n, i, planes)
            if dynamic:
                for i in prange(count, nogil=True, schedule="dynamic", num_threads=workers, use_threads_if=workers > 1):
                    subp_conv_part(calls[i], &arrays[i], n, &whole, 0, planes, NULL)
            else:
                for i in prange(count, nogil=True, schedule="static", num_threads=workers, use_threads_if=workers > 1):
                    subp_conv_part(calls[i], &arrays[i], n, &whole, 0, planes, NULL)
    finally:
        PyMem_Free(calls)
        PyMem_Free(arrays)
