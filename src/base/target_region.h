// Compiles a region of a file for an instruction set, so that one library
// holds several targets and no build flag decides what it needs to run.
// Standard and intrinsic headers must be included before the region.
#pragma once

#define MLX_ENTROPY_PRAGMA(text) _Pragma(#text)

#if defined(__clang__)
#define MLX_ENTROPY_BEGIN_TARGET(features)                                   \
  MLX_ENTROPY_PRAGMA(clang attribute push(__attribute__((target(features))), \
                                          apply_to = function))
#define MLX_ENTROPY_END_TARGET MLX_ENTROPY_PRAGMA(clang attribute pop)
#else
#define MLX_ENTROPY_BEGIN_TARGET(features) \
  MLX_ENTROPY_PRAGMA(GCC push_options) MLX_ENTROPY_PRAGMA(GCC target(features))
#define MLX_ENTROPY_END_TARGET MLX_ENTROPY_PRAGMA(GCC pop_options)
#endif
