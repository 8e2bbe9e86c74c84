# Convolutions by Winograd's algorithm.

cdef class CompiledWinograd(_InPasses):
    """A 3x3 convolution with stride 1 through Winograd's transforms, for one size of input.

    Args:
        kernel_set, dtype, indices, block, groups, bias, activation, in_shape, out_shape, pad, order: as
            `CompiledConvolution`.
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
        order=None,
    ):
        cdef subp_winograd *call = &self._call
        cdef const subp_row *transformed
        cdef _Array kept = _array("indices", indices, "int32", (None, None)), weights, offsets, summands, places
        cdef _Array sums
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
        places = _multiples(_own_order(order, out_shape[0]), out_shape[0], call.tiles.out_h * call.tiles.out_w)
        sums = _multiples(None, kernels.of_row[0].channels, pitch)
        call.out_offsets, call.sum_offsets = <const Py_ssize_t *>places.data, <const Py_ssize_t *>sums.data
        call.values, call.channel_offsets = weights.data, <const int32_t *>offsets.data
        self._arrays = (weights, offsets, summands, places, sums, kernels)
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
