"""Native core of mlx-entropy: codec, fused kernels and MLX primitives."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

class PlaneInfo:
    """One integer plane of a coded matrix (see docs/format.md)."""

    @property
    def name(self) -> str:
        """codes, scales, offsets, corrections, biases or floats."""
    @property
    def classes(self) -> int:
        """Entropy-coded classes; 1 means that nothing is entropy-coded."""
    @property
    def raw_bits(self) -> int:
        """Low bits of each value that are stored raw."""
    @property
    def base(self) -> int:
        """Value of class 0 with all raw bits zero."""
    @property
    def frequencies(self) -> list[int]:
        """Frequency of each class; the sum is ``2**precision_bits``."""
    @property
    def exceptions(self) -> int:
        """Values outside the table, stored on the side."""
    @property
    def count(self) -> int:
        """Values in the plane."""

class CodedInfo:
    """What the header of a coded matrix says."""

    @property
    def scheme(self) -> str:
        """affine, float or symbols."""
    @property
    def codec(self) -> str:
        """rans16, rans32 or raw (no plane is entropy-coded)."""
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def bits(self) -> int:
        """Bits of a code (affine, symbols) or of a value (float)."""
    @property
    def group_size(self) -> int:
        """Weights that share a scale; 0 unless affine."""
    @property
    def dtype(self) -> mx.Dtype:
        """Type of the scales (affine), values (float) or symbols."""
    @property
    def tile_rows(self) -> int: ...
    @property
    def tiles(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def planes(self) -> list[PlaneInfo]: ...

class RANSTable:
    """Frequencies of an entropy-coded alphabet of 1 to 256 symbols."""

    @staticmethod
    def from_counts(counts: Sequence[int]) -> RANSTable:
        """Scale counts to frequencies that sum to ``2**precision_bits``.

        Precision is 8 bits for at most 16 symbols, else 12. A symbol with
        count 0, or so rare that an escape is cheaper, gets frequency 0.
        """
    @property
    def frequencies(self) -> list[int]: ...
    @property
    def precision_bits(self) -> int: ...
    def cost(self, counts: Sequence[int]) -> float:
        """Bits a symbol that this table spends on that histogram."""

def entropy_encode(
    symbols: mx.array, table: RANSTable | None = None, *, tile_rows: int = 0
) -> mx.array:
    """Code a uint8 matrix ``[rows, cols]`` or vector; returns uint8 bytes."""

def entropy_decode(
    coded: mx.array, *, row_start: int = 0, row_stop: int | None = None
) -> mx.array:
    """Inverse of entropy_encode: uint8 ``[row_stop - row_start, cols]``."""

def encode_affine(
    weight: mx.array,
    scales: mx.array,
    biases: mx.array,
    group_size: int,
    bits: int,
    *,
    tile_rows: int = 0,
    block_rows: int = 0,
) -> mx.array:
    """Code MLX affine-quantized weights without loss; returns uint8 bytes.

    ``weight`` uint32 ``[..., cols * bits / 32]``, ``scales`` and ``biases``
    ``[..., cols / group_size]``; leading axes are flattened to rows.
    """

def decode_affine(
    coded: mx.array, *, row_start: int = 0, row_stop: int | None = None
) -> tuple[mx.array, mx.array, mx.array]:
    """Packed weight, scales, biases of the rows, bit-identical, 2-D."""

def encode_float(
    weight: mx.array, *, tile_rows: int = 0, block_rows: int = 0
) -> mx.array:
    """Code float16, bfloat16 or float32 ``[..., cols]`` without loss."""

def decode_float(
    coded: mx.array, *, row_start: int = 0, row_stop: int | None = None
) -> mx.array:
    """Values ``[rows, cols]`` of encode_float, bit-identical."""

def validate(coded: mx.array) -> CodedInfo:
    """Check every byte a kernel could follow; ValueError says what is wrong.

    Checks header, checksum, tables, offsets, and decodes every stream once.
    """

def describe(coded: mx.array) -> CodedInfo:
    """Header only: structure is checked, checksum and streams are not."""

class CodecChoice:
    """A form that a coded matrix could have, with its predicted cost.

    `codec` is "rans", "tree" or "flat" (a tree of one leaf: plain bits);
    `merges` counts the merges that a value passes in a tree.
    """

    @property
    def codec(self) -> str: ...
    @property
    def pass_cost(self) -> float | None: ...
    @property
    def bits_per_weight(self) -> float: ...
    @property
    def merges(self) -> float: ...
    @property
    def nanoseconds_per_weight(self) -> float: ...

def transcode(
    coded: mx.array, codec: str = "auto", *, pass_cost: float | None = None
) -> mx.array:
    """The same matrix in another codec, bit for bit; evaluated at once.

    ``codec`` is "rans" (smallest), "tree" (decodes faster, within a few
    percent of the entropy; with ``pass_cost`` the tree that minimizes bits +
    pass_cost * merges), "flat" (plain bits) or "auto" (what `rank_codecs` puts
    first; ``coded`` itself if that is what it is already).

    ValueError if ``coded`` is damaged or an argument unknown.
    """

def rank_codecs(coded: mx.array) -> list[CodecChoice]:
    """Forms for ``coded`` on this machine, with this target and threads.

    The best is first: the fastest by `machine_model`, and the smallest among
    those as fast. Float matrices stay as they are.
    """

def machine_model() -> dict[str, Any]:
    """What this machine was measured at: nanoseconds a weight on one thread.

    Keys: target, threads, rans_nanoseconds, tree_nanoseconds (without merges),
    merge_nanoseconds (each), bytes_per_nanosecond (of memory, all threads),
    file (in the user's cache folder, where it is kept; "" if it cannot be).
    """

def plane_entropies(coded: mx.array) -> dict[str, float]:
    """Zero-order entropy of each plane's values, in bits a value."""

def entropy_coded_matmul(
    x: mx.array, coded: mx.array, output_dims: int, *, stream: object = None
) -> mx.array:
    """``x @ W.T`` without writing W to memory; lazy; dtype of x.

    ``x`` ``[..., cols]`` float32, float16 or bfloat16; result
    ``[..., output_dims]``. Differentiable and vmap-able in x.
    """

def entropy_coded_gather_matmul(
    x: mx.array,
    coded: mx.array,
    indices: mx.array,
    output_dims: int,
    *,
    stream: object = None,
) -> mx.array:
    """Products with blocks of rows of W, as `mx.gather_qmm`; lazy.

    W is ``rows / output_dims`` matrices on top of each other, coded with
    ``block_rows=output_dims``. ``x`` ``[..., m, cols]`` and integer
    ``indices`` ``[...]`` (their leading axes are broadcast) give
    ``[..., m, output_dims]`` in the dtype of x. Only the matrices that occur
    in ``indices`` are decoded, each of them once.
    """

def entropy_coded_embedding(
    indices: mx.array,
    coded: mx.array,
    dims: int,
    dtype: mx.Dtype,
    *,
    stream: object = None,
) -> mx.array:
    """Rows of W, ``[*indices.shape, dims]``; lazy; only their tiles decode.

    Negative indices count from the end. An index outside ``[-rows, rows)``
    gives zeros: nobody could catch an error at evaluation.
    """

def entropy_dequantize(
    coded: mx.array,
    rows: int,
    cols: int,
    dtype: mx.Dtype,
    *,
    stream: object = None,
) -> mx.array:
    """The whole weight matrix ``[rows, cols]`` in ``dtype``; lazy."""

class FusedLlama:
    """The decoder layers of a llama-family model, ready to run."""

    def __init__(
        self,
        coded: Sequence[mx.array],
        biases: Sequence[mx.array | None],
        norms: Sequence[mx.array],
        head_norms: Sequence[mx.array],
        inverse_frequencies: mx.array,
        *,
        heads: int,
        kv_heads: int,
        head_dim: int,
        eps: float,
        attention_scale: float,
        rope_scale: float = 1.0,
        rope_traditional: bool = False,
    ) -> None:
        """Evaluate and check the weights; ValueError says what does not fit.

        ``coded`` and ``biases`` (vectors or None): q, k, v, o, gate, up and
        down of each layer. ``norms``: vectors ``[hidden]``, two of each layer,
        then the last. ``head_norms``: vectors ``[head_dim]`` of q and k of
        each layer, or none at all. Pair i of each head turns by ``position *
        rope_scale * inverse_frequencies[i]``.
        """
    def __call__(
        self,
        x: mx.array,
        keys: Sequence[mx.array],
        values: Sequence[mx.array],
        offset: int,
        capacity: int,
        *,
        stream: object = None,
    ) -> tuple[mx.array, list[mx.array], list[mx.array]]:
        """All layers and the last norm on the next tokens; lazy.

        ``x`` ``[1, n, hidden]`` float32, float16 or bfloat16, at positions
        from ``offset`` on; ``keys`` and ``values`` of each layer ``[1,
        kv_heads, at least offset, head_dim]``, or empty lists at the start.
        Returns an array like ``x``, and keys and values ``[1, kv_heads,
        capacity, head_dim]``. Positions from ``offset`` on of the caches
        given are not kept.
        """

def is_traced(arrays: list[mx.array]) -> bool:
    """Whether any stands for others in a function that is transformed.

    That is while MLX differentiates, vectorizes or compiles a function.
    """

def xxh64(data: Any) -> int:
    """XXH64, seed 0, of the bytes of any object with a contiguous buffer.

    BufferError or TypeError for other objects. The GIL is released.
    """

def targets() -> list[str]:
    """Targets this machine can run, best first; "scalar" is always last."""

def target() -> str:
    """The target that kernels run on now."""

def set_target(name: str) -> None:
    """Force a target; ValueError if this machine cannot run it."""

def cpu_features() -> dict[str, bool]:
    """Instruction sets that both the CPU and the operating system enable."""

def num_threads() -> int: ...
def threads_source() -> str:
    """Who decided on `num_threads`: a function, a variable, or the machine."""

def set_num_threads(count: int) -> None:
    """Threads of the pool, the calling one included.

    0 means ``MLX_ENTROPY_NUM_THREADS``, else ``OMP_NUM_THREADS``, else the
    CPUs that this process may use, a container's quota included. The variables
    are read once.
    """

def time_regions(regions: int, *, handover: bool) -> float:
    """Seconds that handing an empty region to the threads takes.

    With ``handover`` until every thread has taken a task.
    """

def read_bandwidth(nbytes: int, passes: int = 5) -> list[float]:
    """Bytes a second at which the threads read memory, one figure a pass."""
