# Convolutions compiled for one size of input, as _kernels.pyx includes them.

cdef class _Kernels:
    """The kernels that a block row takes, one after the other."""

    cdef const subp_row **of_row
    cdef Py_ssize_t count

    def __cinit__(self, kernel_set, dtype, Py_ssize_t block):
        cdef Py_ssize_t n = 0
        cdef const subp_row *row
        self.of_row = <const subp_row **>PyMem_Malloc(block * sizeof(void *))
        if self.of_row == NULL:
            raise MemoryError()
        while n < block:
            row = _choose(kernel_set, _Request("conv2d", dtype, channels=block - n))
            self.of_row[self.count] = row
            n += row.channels
            self.count += 1
        for n in range(self.count):
            row = self.of_row[n]
            same = row.weight_dtype == self.of_row[0].weight_dtype and row.out_dtype == self.of_row[0].out_dtype
            if not same or row.interleave != self.of_row[0].interleave:
                names = f"{self.of_row[0].name.decode()} and {row.name.decode()}"
                raise ValueError(f"kernels {names} do not read the same weights")

    def __dealloc__(self):
        PyMem_Free(self.of_row)


cdef str _stored_type(const subp_row *row, _Requantize constants, str wanted):
    """The type of the outputs: that of the row, or float32 where integers' constants or the caller want it."""
    own = _DTYPES[row.out_dtype]
    if wanted not in ("", own) and (own, wanted) != ("bfloat16", "float32"):
        raise ValueError(f"out_dtype is {wanted!r}; kernels of {_DTYPES[row.dtype]} store {own}")
    return "float32" if constants is not None and constants.to_float else wanted or own


cdef class _InPasses:
    """A convolution as passes, each of channels to fill planes with, then parts to compute from the planes."""

    cdef object _arrays  # keeps alive what pointers lead to
    cdef tuple _in_shape, _out_shape  # (channels, height, width)
    cdef Py_ssize_t _passes, _fills  # of an image, of a pass
    cdef str _dtype, _out_dtype
    cdef Py_ssize_t _element
    cdef readonly Py_ssize_t scratch  # float32 for every thread, whatever the data type

    cdef _take_types(self, const subp_row *row):
        """The types of a row's arrays."""
        self._dtype, self._out_dtype = _DTYPES[row.dtype], _DTYPES[row.out_dtype]
        self._element = _FORMATS[self._dtype][1]

    cdef subp_conv_parts _divide(self, int threads) noexcept nogil:
        """Cuts a pass for so many threads."""

    cdef void _fill(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, Py_ssize_t channel,
                    void *scratch) noexcept nogil:
        """Fills a channel's planes; `scratch` is shared by all threads."""

    cdef void _part(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, const subp_conv_parts *parts,
                    Py_ssize_t part, const void *scratch, void *own) noexcept nogil:
        """Computes a part from the planes in `scratch`; `own` is the thread's."""

    cdef void _whole(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, void *own) noexcept nogil:
        """A pass by one thread alone."""

    def bind(
        self,
        x,  # IN [batch, in_channels, height, width]
        residual,  # IN as out, or None
        out,  # OUT [batch, out_channels, out_h, out_w]
        scratch,  # at least `scratch` floats for every thread; contents do not matter
        threads,
    ):
        """Returns a call that runs it on these arrays: out = activation(conv(x) + bias + residual).

        Raises:
            TypeError, ValueError: an argument that does not fit.
        """
        cdef _Passes call = _Passes.__new__(_Passes)
        cdef _Array source, target, addend, memory
        if self._arrays is None:
            raise ValueError("this convolution was not made completely; make another")
        call.threads = _threads(threads)
        source = _array("x", x, self._dtype, (None, *self._in_shape))
        target = _array("out", out, self._out_dtype, (source.shape[0], *self._out_shape), True)
        addend = _optional("residual", residual, self._out_dtype, target.shape)
        if addend is not None and self._dtype != self._out_dtype:
            raise ValueError(
                f"a residual beside outputs of {self._out_dtype} from {self._dtype}, which no kernel adds; expected "
                "None"
            )
        memory = _room(scratch, self.scratch * call.threads)
        call.arrays.x, call.arrays.out, call.arrays.residual = source.data, target.data, _data(addend)
        call.scratch = _data(memory)
        call.what, call.passes = self, self._passes * source.shape[0]
        call.held = (source, addend, target, memory)
        return call

    def run(self, x, residual, out, scratch, threads):
        """Runs it; arguments as for `bind`."""
        self.bind(x, residual, out, scratch, threads)()


cdef _Array _room(scratch, Py_ssize_t wanted):
    """Scratch memory of at least so many floats; None where none is wanted."""
    cdef _Array memory
    if not wanted:
        return None
    memory = _array("scratch", scratch, "float32", (None,), True)
    if memory.shape[0] < wanted:
        raise ValueError(f"scratch has {memory.shape[0]} floats; expected at least {wanted}")
    return memory


cdef class _Passes:
    """A convolution and the arrays it runs on, all of them checked."""

    cdef _InPasses what
    cdef tuple held  # keeps alive what pointers lead to
    cdef subp_conv_arrays arrays
    cdef void *scratch
    cdef Py_ssize_t passes
    cdef int threads

    def __call__(self):
        """Runs it."""
        cdef _InPasses what = self.what
        cdef Py_ssize_t i, n, fills, size, passes = self.passes
        cdef const subp_conv_arrays *arrays = &self.arrays
        cdef int threads = self.threads
        cdef char *memory = <char *>self.scratch
        cdef subp_conv_parts parts
        if what is None:
            raise ValueError("nothing is bound; use what `bind` returns")
        fills, size = what._fills, 4 * what.scratch
        if threads > 1:
            threads = _team(threads)
        if threads == 1:
            with nogil:
                for i in range(passes):
                    what._whole(arrays, i, memory)
            return
        # Passes of a thread's own need no exchange between caches; where they do not divide well, threads share each.
        if passes % threads == 0 or passes >= 4 * threads:
            for i in prange(passes, nogil=True, schedule="static", num_threads=threads):
                what._whole(arrays, i, memory + threadid() * size)
            return
        parts = what._divide(threads)
        for n in range(passes):
            if fills:
                for i in prange(fills, nogil=True, schedule="static", num_threads=threads):
                    what._fill(arrays, n, i, memory)
            for i in prange(parts.parts, nogil=True, schedule="static", num_threads=threads):
                what._part(arrays, n, &parts, i, memory, memory + threadid() * size)


# No kernel's tile has more output channels.
cdef enum: MAX_TILE_CHANNELS = 64


cdef _check_rows(rows, Py_ssize_t kept, in_channels, out_channels, groups, block, indices):
    """The block rows of a weight against the channels."""
    if in_channels % groups or out_channels % groups:
        raise ValueError(f"{in_channels} input and {out_channels} output channels do not split into {groups} groups")
    expected = groups * ((out_channels // groups + block - 1) // block)
    if rows != expected:
        raise ValueError(f"indices have {rows} block rows; expected {expected}")
    if np.min(indices) < 0 or np.max(indices) >= in_channels // groups:
        raise ValueError(
            f"indices are from {np.min(indices)} to {np.max(indices)}; expected channels from 0 to "
            f"{in_channels // groups - 1}, those of a group"
        )


cdef _Array _offsets(indices, in_channels, stride, columns=1, step=0, missing=0):
    """Where the planes of kept channels are, `stride` elements apart, and of each its columns, `step` elements apart;
    the last `missing` times more. In 32 bits, because products in 64 would compete with the kernels' own for a port of
    the CPU."""
    if in_channels * stride >= 2**31:
        raise ValueError(f"{in_channels} channels of {stride} elements are too large; expected less than 2**31 in all")
    offsets = indices[:, :, None] * np.int32(stride) + np.arange(columns, dtype=np.int32) * np.int32(step)
    offsets = np.pad(offsets.reshape(len(indices), -1), ((0, 0), (0, missing)), mode="edge").astype(np.int32, order="C")
    return _array("offsets", offsets, "int32", (None, None))


cdef class CompiledConvolution(_InPasses):
    """A convolution with packed weights for one size of input. Everything that memory safety rests on is checked here.

    Args:
        kernel_set: as of `choose`.
        dtype: of the activations.
        values: [rows, kept * taps * block] in the type and packing of the kernels' rows; where these read words, whole
            words of kept channels, [rows, words * taps * block * elements of a word].
        indices: int32 [rows, kept], channels within the group.
        block, groups: as the weight's.
        bias: float32 [out_channels] or None.
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

    Raises:
        TypeError, ValueError: an argument that does not fit.
    """

    cdef subp_conv _call

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
    ):
        cdef subp_conv *call = &self._call
        cdef const subp_row *halve
        cdef _Array kept = _array("indices", indices, "int32", (None, None)), weights, offsets, summands
        cdef _Array copy_rows = None, copy_columns = None, taps
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
        call.values, call.channel_offsets = weights.data, <const int32_t *>offsets.data
        call.tap_offsets = <const Py_ssize_t *>taps.data
        self._arrays = (weights, offsets, taps, summands, copy_rows, copy_columns, kernels, constants, moved)
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


cdef class CompiledWinograd(_InPasses):
    """A 3x3 convolution with stride 1 through Winograd's transforms, for one size of input.

    Args:
        kernel_set, dtype, indices, block, groups, bias, activation, in_shape, out_shape, pad: as `CompiledConvolution`.
        size: outputs of a tile along a side.
        values: [rows, positions * kept * block], a row as `tiles` of [positions, kept, channels of the tile]; where
            kernels transform them, [rows, kept * 9 * block] as they are.
        run, call_tiles, pitch: see kernels/winograd.h.
        out_dtype: of the outputs, where it is not that of the transforms' row: float32, of bfloat16.

    Raises:
        TypeError, ValueError: an argument that does not fit, or no transforms for the size.
    """

    cdef subp_winograd _call

    def __cinit__(
        self,
        kernel_set,
        dtype,
        size,
        values,
        indices,
        block,
        groups,
        bias,
        activation,
        in_shape,
        out_shape,
        pad,
        *,
        run,
        call_tiles,
        pitch,
        str out_dtype="",
    ):
        cdef subp_winograd *call = &self._call
        cdef const subp_row *transformed
        cdef _Array kept = _array("indices", indices, "int32", (None, None)), weights, offsets, summands
        cdef _Kernels kernels
        size = _whole("size", size)
        call.transforms = _choose(kernel_set, _Request("winograd", dtype, size=size))
        in_shape, out_shape = _wholes("in_shape", in_shape, 3), _wholes("out_shape", out_shape, 3)
        block, groups, pitch = _whole("block", block), _whole("groups", groups), _whole("pitch", pitch)
        call.run, call.call_tiles, call.pitch = _whole("run", run), _whole("call_tiles", call_tiles), pitch
        if pitch < call.run + SUBP_TILE_SLACK:
            wanted = call.run + SUBP_TILE_SLACK
            raise ValueError(f"pitch is {pitch}; expected at least {wanted}, for a run and its slack")
        indices = np.array(indices, np.int32)
        _check_rows(kept.shape[0], kept.shape[1], in_shape[0], out_shape[0], groups, block, indices)
        kernels = _Kernels(kernel_set, "float32", min(block, out_shape[0] + MAX_TILE_CHANNELS))
        self._take_types(call.transforms)
        self._out_dtype = _stored_type(call.transforms, None, out_dtype)
        call.outputs = _choose(kernel_set, _Request("winograd", self._out_dtype, size=size))
        transformed = subp_choose(
            subp_row_table, subp_row_count, _admitted(kernel_set), &_Request("winograd_weights", dtype, size=size).c
        )
        call.weights = NULL if transformed == NULL else transformed.run.winograd_weights
        if transformed != NULL and kernels.of_row[0].channels > SUBP_WINOGRAD_CHANNELS:
            raise ValueError(
                f"{transformed.name.decode()} transforms {<int>SUBP_WINOGRAD_CHANNELS} channels at most; "
                f"{kernels.of_row[0].name.decode()} has {kernels.of_row[0].channels}"
            )
        call.element, call.out_element = self._element, _FORMATS[self._out_dtype][1]
        call.weight_element = _FORMATS[_DTYPES[call.transforms.weight_dtype]][1]
        terms = (size + 2) ** 2 if transformed == NULL else 9
        weights = _array(
            "values", values, _DTYPES[call.transforms.weight_dtype], (kept.shape[0], terms * kept.shape[1] * block)
        )
        call.kernels, call.tiles_of_row = kernels.of_row, kernels.count
        call.activation = _activation_number(activation)
        call.in_channels, call.tiles.height, call.tiles.width = in_shape
        call.out_channels, call.tiles.out_h, call.tiles.out_w = out_shape
        call.tiles.pad_top, call.tiles.pad_left = _wholes("pad", pad, 2, 0)
        call.tiles.across = (out_shape[2] + size - 1) // size
        call.rows, call.kept, call.block, call.groups = kept.shape[0], kept.shape[1], block, groups
        offsets = _offsets(indices, in_shape[0], pitch)
        summands = _optional("bias", bias, "float32", out_shape[:1])
        call.bias = _floats(summands)
        call.values, call.channel_offsets = weights.data, <const int32_t *>offsets.data
        self._arrays = (weights, offsets, summands, kernels)
        self._in_shape, self._out_shape = in_shape, out_shape
        self._passes, self._fills = subp_winograd_passes(call), subp_winograd_fills(call)
        self.scratch = subp_winograd_planes(call) + subp_winograd_sums(call)

    cdef subp_conv_parts _divide(self, int threads) noexcept nogil:
        cdef subp_conv_parts parts
        parts.row_step, parts.pixel_step, parts.parts = 1, self._call.run, subp_winograd_parts(&self._call)
        return parts

    cdef void _fill(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, Py_ssize_t channel,
                    void *scratch) noexcept nogil:
        subp_winograd_fill(&self._call, arrays, pass_, channel, scratch)

    cdef void _part(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, const subp_conv_parts *parts,
                    Py_ssize_t part, const void *scratch, void *own) noexcept nogil:
        cdef char *sums = <char *>own + subp_winograd_planes(&self._call) * 4
        subp_winograd_part(&self._call, arrays, pass_, part, scratch, sums)

    cdef void _whole(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, void *own) noexcept nogil:
        cdef char *sums = <char *>own + subp_winograd_planes(&self._call) * 4
        subp_winograd_pass(&self._call, arrays, pass_, own, sums)


cdef _describe(subp_window *w, in_size, out_size, kernel, stride, dilation, pad):
    """Fills in a window; every pair is (height, width)."""
    w.height, w.width = _wholes("the input's size", in_size, 2)
    w.out_h, w.out_w = _wholes("the output's size", out_size, 2)
    w.kernel_h, w.kernel_w = _wholes("kernel", kernel, 2)
    w.stride_h, w.stride_w = _wholes("stride", stride, 2)
    w.dilation_h, w.dilation_w = _wholes("dilation", dilation, 2)
    w.pad_top, w.pad_left = _wholes("pad", pad, 2, 0)


# Planes of a depthwise convolution that a thread takes at once.
cdef enum: PLANES_AT_ONCE = 16


cdef class CompiledDepthwise:
    """A depthwise convolution for one size of input; it reads its input in place.

    Args:
        kernel_set: as of `choose`.
        dtype: of the activations.
        values: [channels, kernel_h, kernel_w] in the type of the kernel's row.
        bias: float32 [channels] or None.
        activation: a name or None.
        in_size, out_size, stride, dilation, pad: (height, width); pad is that of the top and the left.
        requantize: for uint8 a `Requantization`, in place of bias and activation.
        out_dtype: as of `CompiledConvolution`.

    Raises:
        TypeError, ValueError: an argument that does not fit.
    """

    cdef subp_window _window
    cdef const subp_row *_kernel
    cdef str _dtype, _out_dtype
    cdef _Array _values, _bias, _padding
    cdef _Requantize _requantize
    cdef int _activation
    cdef readonly Py_ssize_t scratch  # none; as that of CompiledConvolution

    def __cinit__(
        self,
        kernel_set,
        dtype,
        values,
        bias,
        activation,
        in_size,
        out_size,
        stride,
        dilation,
        pad,
        requantize=None,
        str out_dtype="",
    ):
        cdef _Array weights
        shape = np.shape(values)
        if len(shape) != 3:
            raise ValueError(f"values is {_told(values)}; expected an array of shape [channels, kernel_h, kernel_w]")
        request = _Request("depthwise", dtype, kernel=shape[1:], stride=stride, dilation=dilation)
        self._kernel = _choose(kernel_set, request)
        self._dtype = _DTYPES[self._kernel.dtype]
        weights = _array("values", values, _DTYPES[self._kernel.weight_dtype], (None, None, None))
        self._activation = _activation_number(activation)
        _describe(&self._window, in_size, out_size, weights.shape[1:], stride, dilation, pad)
        self._bias = _optional("bias", bias, "float32", weights.shape[:1])
        other = bias is not None or activation is not None
        self._requantize = _requantize(requantize, self._dtype, weights.shape[0], other)
        self._out_dtype = _stored_type(self._kernel, self._requantize, out_dtype)
        zero = 0 if self._requantize is None else self._requantize.padding
        padding = np.full(self._window.width, zero, _FORMATS[self._dtype][0])
        self._padding = _array("padding", padding, self._dtype, (None,))
        self._values = weights

    cdef _constants(self, const subp_requantize **constants, const int32_t **start, const float **factor):
        """Fills in what a call is handed of `requantize`."""
        constants[0], start[0], factor[0] = NULL, NULL, NULL
        if self._requantize is not None:
            constants[0] = &self._requantize.c
            start[0], factor[0] = <const int32_t *>self._requantize.start.data, _floats(self._requantize.factor)

    def bind(
        self,
        x,  # IN [batch, channels, height, width]
        residual,  # IN as out, or None
        out,  # OUT [batch, channels, out_h, out_w]
        scratch,  # not used
        threads,
    ):
        """Returns a call that runs it on these arrays: out = activation(conv(x) + bias + residual).

        Raises:
            TypeError, ValueError: an argument that does not fit.
        """
        cdef _Planes call = _Planes.__new__(_Planes)
        cdef const subp_window *w = &self._window
        cdef _Array source, target, addend
        if self._values is None:
            raise ValueError("this convolution was not made completely; make another")
        channels = self._values.shape[0]
        source = _array("x", x, self._dtype, (None, channels, w.height, w.width))
        target = _array("out", out, self._out_dtype, (source.shape[0], channels, w.out_h, w.out_w), True)
        if residual is not None and self._dtype != self._out_dtype:
            raise ValueError(
                f"a residual beside outputs of {self._out_dtype} from {self._dtype}, which no kernel adds; expected "
                "None"
            )
        addend = _optional("residual", residual, self._out_dtype, target.shape)
        call.threads, call.channels = _threads(threads), channels
        call.step = min(PLANES_AT_ONCE, (channels + call.threads - 1) // call.threads)
        call.steps = (channels + call.step - 1) // call.step
        call.items = source.shape[0] * call.steps
        call.run, call.element = self._kernel.run.depthwise, _FORMATS[self._dtype][1]
        call.weight_element, call.out_element = self._values.itemsize, _FORMATS[self._out_dtype][1]
        call.whole.window, call.whole.activation, call.whole.padding = w, self._activation, self._padding.data
        call.whole.in_stride, call.whole.out_stride = w.height * w.width, w.out_h * w.out_w
        call.whole.input, call.whole.out, call.whole.residual = source.data, target.data, _data(addend)
        call.whole.values, call.whole.bias = self._values.data, _floats(self._bias)
        call.whole.to_float = self._dtype != self._out_dtype
        self._constants(&call.whole.requantize, &call.whole.start, &call.whole.factor)
        call.held = (self, source, addend, target)
        return call

    def run(self, x, residual, out, scratch, threads):
        """Runs it; arguments as for `bind`."""
        self.bind(x, residual, out, scratch, threads)()


cdef class _Planes(_Bound):
    """Planes of a depthwise convolution, `step` of one image at a time."""

    cdef subp_depthwise_fn run
    cdef subp_depthwise whole  # as for the first plane of all
    cdef Py_ssize_t channels, step, steps
    cdef Py_ssize_t element, weight_element, out_element

    cdef void _item(self, Py_ssize_t i, int thread) noexcept nogil:
        cdef subp_depthwise call = self.whole
        cdef Py_ssize_t channel = i % self.steps * self.step, first = i // self.steps * self.channels + channel
        call.count = min(self.step, self.channels - channel)
        call.input = <const char *>call.input + first * call.in_stride * self.element
        call.out = <char *>call.out + first * call.out_stride * self.out_element
        call.values = (
            <const char *>call.values + channel * call.window.kernel_h * call.window.kernel_w * self.weight_element
        )
        if call.bias != NULL:
            call.bias += channel
        if call.requantize != NULL:
            call.start += channel
            call.factor += channel
        if call.residual != NULL:
            call.residual = <const char *>call.residual + first * call.out_stride * self.out_element
        self.run(&call)


# What is between two convolutions in a part's memory at most, where one block row is not more, and the parts that there
# are at least for threads to share, where block rows are that many.
cdef enum:
    PART_BYTES = 16384
    LEAST_PARTS = 16


cdef class CompiledFusedDepthwise(_InPasses):
    """A convolution and the depthwise one that reads its output, which is never in memory as a whole.

    Args:
        first: its band is the most rows that the windows of `band` output rows see.
        second: over the output of the first.
        band: output rows of a pass.

    Raises:
        TypeError, ValueError: the two do not fit, or the band is too large for the first's.
    """

    cdef subp_fused_depthwise _call
    cdef Py_ssize_t _first  # bytes of scratch for the first convolution

    def __cinit__(self, CompiledConvolution first not None, CompiledDepthwise second not None, band):
        cdef subp_fused_depthwise *call = &self._call
        cdef const subp_window *w = &second._window
        cdef object seen, pitch, between_rows = first._call.band  # of any size until they are checked
        cdef tuple shape
        if first._arrays is None or second._values is None:
            raise ValueError("one of the convolutions was not made completely; make another")
        band = _whole("band", band)
        shape = (second._values.shape[0], w.height, w.width)
        if shape != first._out_shape:
            raise ValueError(f"the second convolution reads {list(shape)}; the first gives {list(first._out_shape)}")
        seen = min(shape[1], (band - 1) * w.stride_h + (second._values.shape[1] - 1) * w.dilation_h + 1)
        if seen > between_rows:
            raise ValueError(f"{band} output rows see {seen} rows; the first convolution's band has {between_rows}")
        call.first, call.window, call.kernel, call.band = first._call, second._window, second._kernel, band
        call.values, call.padding, call.bias = second._values.data, second._padding.data, _floats(second._bias)
        call.activation = second._activation
        second._constants(&call.requantize, &call.start, &call.factor)
        # An odd number of cache lines, or all channels would compete for the same few sets of the L1 cache.
        line = 4 * SUBP_LINE // first._element
        pitch = ((between_rows * shape[2] + line - 1) // line | 1) * line
        if pitch * first._call.block >= 2**40:
            raise ValueError(f"a block row of {first._call.block} channels of {pitch} elements is too large")
        if len({first._dtype, first._out_dtype, second._dtype, second._out_dtype}) > 1:
            raise ValueError(
                f"the first convolution is of {first._dtype} to {first._out_dtype}, the second of {second._dtype} to "
                f"{second._out_dtype}; expected one type"
            )
        self._dtype, self._out_dtype, self._element = first._dtype, first._out_dtype, first._element
        call.pitch = pitch
        # More block rows of small planes, whose first run of each has nothing to be prepared along with.
        most = min(PART_BYTES // (pitch * first._call.block * first._element), first._call.rows // LEAST_PARTS)
        call.step = max(1, most)
        self._arrays = (first, second)
        self._in_shape, self._out_shape = first._in_shape, (shape[0], w.out_h, w.out_w)
        self._passes, self._fills = subp_fused_depthwise_passes(call), first._fills
        self._first = 4 * first.scratch
        self.scratch = first.scratch + (call.step * call.first.block * call.pitch * self._element + 3) // 4

    cdef subp_conv_parts _divide(self, int threads) noexcept nogil:
        cdef subp_conv_parts parts
        parts.row_step, parts.pixel_step, parts.parts = 1, 0, subp_fused_depthwise_parts(&self._call)
        return parts

    cdef void _fill(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, Py_ssize_t channel,
                    void *scratch) noexcept nogil:
        subp_fused_depthwise_fill(&self._call, arrays, pass_, channel, scratch)

    cdef void _part(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, const subp_conv_parts *parts,
                    Py_ssize_t part, const void *scratch, void *own) noexcept nogil:
        subp_fused_depthwise_part(
            &self._call, arrays, pass_, part, scratch, self._words(own), <char *>own + self._first
        )

    cdef void _whole(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, void *own) noexcept nogil:
        subp_fused_depthwise_pass(&self._call, arrays, pass_, own, self._words(own), <char *>own + self._first)

    cdef void *_words(self, const void *own) noexcept nogil:
        """A thread's own words for the first convolution, as of `CompiledConvolution`."""
        return <char *>own + subp_conv_planes(&self._call.first) + subp_conv_shared_words(&self._call.first)


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
