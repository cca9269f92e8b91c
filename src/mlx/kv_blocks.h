// Memory of key and value caches, which grow in place.
//
// MLX gives a primitive its input's memory only when nothing else holds it,
// and tasks that are still running hold it: with asynchronous evaluation every
// token would copy the whole cache. So our caches live in blocks that are only
// appended to, as slices of a Go array are. A block knows how many positions
// have been written. Whoever continues an array at that position writes after
// it, in the same block, where no other holder of the block looks; whoever
// continues it elsewhere (after a trim, or for a second time) gets a copy.
#pragma once

#include <cstdint>

#include "mlx/array.h"

namespace mlx_entropy {

namespace mx = mlx::core;

// Gives `out` [1, heads, capacity, dim] memory for the cache `in`, which may be
// null, followed by positions [offset, offset + tokens). True when that is the
// memory of `in`, which then holds the positions before; otherwise the caller
// has to copy them.
bool continue_cache(const mx::array* in, mx::array& out, int64_t offset,
                    int64_t tokens);

}  // namespace mlx_entropy
